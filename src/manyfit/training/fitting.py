"""fit(jobs) -> results: the one path that every training takes, alone or as a population."""

import contextlib
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from manyfit.config.errors import ConfigError, TrainingError
from manyfit.config.schema import Config
from manyfit.native import machine
from manyfit.parallel import ddp, devices
from manyfit.parallel.ranks import Ranks
from manyfit.population.dropout import seed_of
from manyfit.progress import OnEpoch, Screen
from manyfit.tracking.tracker import NoTracker
from manyfit.training import checkpoints, guest, process
from manyfit.training.building import make_trainer, make_training
from manyfit.training.faults import MembersError
from manyfit.training.grouping import require_same_signature, why_alone
from manyfit.training.loop import Observers, Parts, Stops, Training
from manyfit.training.prepared import Job, Preparation, dtype_of, engine_of, prepared
from manyfit.training.recording import Recorder
from manyfit.training.scoring import scores
from manyfit.training.trained import Result, Trained, results_of

COPIES_KEPT = 4  # of the weights in a state: weights, two moments, best

Place = Callable[[Any, Sequence[Config], OnEpoch | None, Stops | None], Trained]
"""Where a population is trained: by `train`, or what a process makes once of `Elsewhere`, with the other arguments."""


def fit(
    given: Sequence[Config | Job],
    recorder: Recorder | None = None,
    *,
    artifacts: bool = True,
    stops: Stops | None = None,
    screen: Screen | None = None,
    place: Place | None = None,
    save_to: Path | None = None,
    resume: Path | None = None,
) -> list[Result]:
    """Train configs that may share a population, each as if it were alone, and track each as a run.

    Args:
        given: One or more that may share a population, see `grouping`.
        recorder: Of their runs, in order; None: nothing is recorded.
        artifacts: Whether every run stores its picture and model.
        stops: Asked after every epoch which members are to stop.
        screen: Shows how far everything is.
        place: Where they are trained; None: here, or on the devices that they ask for.
        save_to: Folder for the state after the last epochs.
        resume: Folder of the state to go on from.

    Returns:
        A result for each, in order.

    Raises:
        ValueError: Before any run exists: something in a config cannot be used, or they may not share a population.
        KeyboardInterrupt: Ctrl-C; the runs are KILLED and keep their epochs.
        SystemExit: 143 after SIGTERM, likewise.
        MembersError: Some failed by themselves; the others have results, or are still to be trained.
        Exception: One of the training's own. A lone run is FAILED then; those of a population stay open, since it need
            not be the fault of all.
    """
    configs = [one.config if isinstance(one, Job) else one for one in given]
    jobs = prepared(given)
    require_same_signature(jobs)
    if len(jobs) > 1 and (reason := why_alone(jobs[0])):
        raise ConfigError(f"configs must be one, but got {len(jobs)} that can share no population: {reason}.")
    recorder = recorder or Recorder(NoTracker(), jobs)
    screen = screen or Screen("")  # which says nothing until it is entered
    if jobs[0].engine == "native":  # here, also for the processes that train
        kind = machine.kind_of(dtype_of(configs[0]))
        with screen.stage("compiling") if machine.missing(kind) else contextlib.nullcontext():
            machine.load(kind)
    with screen.population(len(jobs), configs[0].epochs) as show:

        def report(epoch: int, members: np.ndarray, measured: Mapping[str, np.ndarray]) -> None:
            recorder.epoch(epoch, members, measured)
            show(epoch, members, measured)

        try:
            elsewhere = place or (ddp.train if devices.world(configs[0].trainer) > 1 else None)
            if elsewhere:  # what travels there is the configs
                run = functools.partial(train, save_to=save_to, resume=resume) if save_to or resume else Elsewhere
                trained = elsewhere(run, configs, report, stops)
                if trained.digests != tuple(job.data.digest for job in jobs):
                    raise TrainingError("the data must not change while runs train on them, but they did.")
            else:
                trained = train(jobs, report, stops, save_to=save_to, resume=resume)
            results = results_of(jobs, trained)
        except BaseException as error:
            if len(jobs) == 1 or not isinstance(error, Exception):
                recorder.fail(error)
            raise
    with screen.stage("drawing" if artifacts else "recording"):
        recorder.finish(results, artifacts)
    for member, fault in trained.failed.items():
        recorder.fail(fault, [member])
    if trained.failed:
        raise MembersError(trained.failed, results)
    return list(results.values())


def train(
    given: Sequence[Config | Job],
    report: OnEpoch | None = None,
    stops: Stops | None = None,
    *,
    ranks: Ranks | None = None,
    device: int = 0,
    save_to: Path | None = None,
    resume: Path | None = None,
) -> Trained:
    """Train one population in this process.

    Args:
        given: Its members.
        report: Told of every epoch.
        stops: Asked after every epoch which members are to be let go.
        ranks: The processes that train it together.
        device: Which of the machine's GPUs is this process's; without one it means nothing.
        save_to: Folder for the state after the last epochs; rank 0 writes it.
        resume: Folder of the state to go on from; rank 0 reads it.
    """
    jobs, ranks = prepared(given), ranks or Ranks()
    config = jobs[0].config
    first = ranks.rank == 0
    state = ranks.agree(checkpoints.load(resume) if resume and first else None)
    if state and report and first:
        _tell_again(report, state)
    with process.set_up(config), contextlib.ExitStack() as closing:
        observers, name = Observers(report, stops), engine_of(jobs[0], state)
        if save_to and first:
            size = COPIES_KEPT * len(jobs) * jobs[0].weights * dtype_of(config).itemsize
            writer = closing.enter_context(checkpoints.Writer(save_to, size))
            ranks.leaving[:] = [functools.partial(writer.finish, timeout=10.0)]
            observers = Observers(report, stops, functools.partial(_save, writer, jobs))
        if name == "lightning":
            return guest.train(jobs[0], observers, ranks, device, save_to, state)
        trainer = make_trainer(config, device, state["epoch"] if state else 0)
        module = make_training(jobs, trainer, name, ranks, observers)
        engine = module.engine
        if state:
            module.load_state(state)
        products = 0 if name == "native" else engine.weights.numel() * jobs[0].batch_size // ranks.world
        closing.enter_context(process.threads(products))  # the native engine has threads of its own
        with process.exits(trainer):
            _run(trainer, module)
            test = engine.measure(["test"], module.best)
            test |= scores(engine, config.metrics, ["test"], config.trusted, module.best)
            module.failed |= engine.faults.taken()
    trained = Trained(
        history=module.history.values,
        ended=module.history.ended,
        weights=module.best.weights.cpu(),
        buffers={name: buffer.cpu() for name, buffer in module.best.buffers.items()},
        test=test,
        devices=(devices.name_of(engine.weights.device),) * ranks.world,
        engine=engine.name,
        digests=tuple(job.data.digest for job in jobs),
        failed=module.failed,
    )
    del module.engine, module.best  # trainer and module hold each other until the collector comes: not these
    return trained


class Elsewhere:
    """`train` in a process that trains one population after another: what their jobs share is built once there."""

    def __init__(self) -> None:
        self.preparation = Preparation()

    def __call__(self, configs: Sequence[Config], *observers: Any, **where: Any) -> Trained:
        """As `train`."""
        jobs = [self.preparation.job(config) for config in configs]
        self.preparation.close()
        return train(jobs, *observers, **where)


def _tell_again(report: OnEpoch, state: Mapping[str, Any]) -> None:
    """What a state knows of its epochs: the last of them a command that was killed need not have heard of.

    What its run has already is left out where it is delivered; epoch 0, which may be renewed, is not told.
    """
    history = state["history"]
    for epoch in range(1, state["epoch"] + 1):
        members = np.flatnonzero(np.isfinite(history["progress/steps"][:, epoch]))
        known = {name: values[members, epoch] for name, values in history.items()}
        report(epoch, members, {name: values for name, values in known.items() if not np.isnan(values).all()})


def _save(
    writer: checkpoints.Writer, jobs: Sequence[Job], epoch: int, state: Callable[[], Mapping[str, Any]], last: bool
) -> None:
    """Put a state away, with what was being trained; the last in any case."""
    if writer.wants or last:
        given = [{"source": dict(job.config.source), "choices": dict(job.config.choices)} for job in jobs]
        writer.put(epoch, {"configs": json.dumps(given), "data": jobs[0].data.digest, **state()})


def _run(trainer: pl.Trainer, module: Training) -> None:
    """Run the epochs."""
    with torch.random.fork_rng(devices=[]):  # for a user's model that draws random numbers of its own
        torch.manual_seed(seed_of("training", module.engine.seeds[0]))
        trainer.fit(module, train_dataloaders=Parts(module))
    if len(module.history.ended) < module.history.size:  # Lightning ends for a StopIteration, wherever that was raised
        raise TrainingError(f"training must go on to its end, but it ended after epoch {module.epochs_done}")
