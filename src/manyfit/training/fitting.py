"""fit(configs) -> results: the one path that every training takes, alone or as a population."""

import contextlib
import copy
import dataclasses
import functools
import inspect
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from torch import Tensor

from manyfit import curves
from manyfit.config.schema import Config, ConfigError, TrainingError, require_same_signature
from manyfit.data import splits
from manyfit.models import Predictor
from manyfit.parallel import ddp, devices
from manyfit.parallel.devices import on_gpu
from manyfit.parallel.ranks import Ranks
from manyfit.population.dropout import seed_of
from manyfit.population.members import Population
from manyfit.population.unit_rate import Plain, UnitRate, is_linear
from manyfit.progress import Screen
from manyfit.schedules import Schedule
from manyfit.tracking.tracker import NoTracker
from manyfit.training import checkpoints, probes
from manyfit.training.grouping import why_alone
from manyfit.training.loop import Blocks, Report, Stops, Training
from manyfit.training.prepared import Job, Result, Trained, captures, prepare
from manyfit.training.recording import Recorder

SMALL_STEP = 40e6  # floating-point operations; measured break-even of one thread and two, benchmarks/RESULTS.md

TALKATIVE = ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero")  # of devices and tips
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # which Lightning sets where operations are to repeat
COPIES_KEPT = 4  # of the weights in a state: weights, two moments, best

Place = Callable[[Callable[..., Trained], Sequence[Config], Report | None, Stops | None], Trained]


def fit(
    configs: Sequence[Config],
    recorder: Recorder | None = None,
    *,
    artifacts: bool = True,
    prune: Stops | None = None,
    screen: Screen | None = None,
    place: Place | None = None,
    keep: Path | None = None,
    resume: Path | None = None,
) -> list[Result]:
    """Train configs that may share a population, each as if it were alone, and track each as a run.

    Args:
        configs: One or more that differ at most in lr, weight decay, seed, dropout rates and schedule.
        recorder: Of the runs of these configs, in order; None: nothing is recorded.
        artifacts: Whether every run stores its picture and model.
        prune: Asked after every epoch which members are to stop.
        screen: Shows how far everything is.
        place: Where they are trained; None: here, or on the devices that the config asks for.
        keep: Folder for the state after the last epochs.
        resume: Folder of the state to go on from.

    Returns:
        A result for each config, in order.

    Raises:
        ValueError: Before any run exists: something in a config cannot be used, or they may not share a population.
        KeyboardInterrupt: Ctrl-C; the runs are KILLED and keep their epochs.
        SystemExit: 143 after SIGTERM, likewise.
        Exception: One of the training's own. A lone run is FAILED then; those of a population stay open, since it need
            not be the fault of all.
    """
    require_same_signature(configs)
    jobs = [prepare(config) for config in configs]
    if len(jobs) > 1 and (reason := why_alone(jobs[0])):
        raise ConfigError(f"configs must be one, but got {len(jobs)} that can share no population: {reason}.")
    recorder = recorder or Recorder(NoTracker(), configs)
    screen = screen or Screen("")  # which says nothing until it is entered
    with screen.population(len(jobs), configs[0].epochs) as show:

        def report(epoch: int, members: np.ndarray, measured: Mapping[str, np.ndarray]) -> None:
            recorder.epoch(epoch, members, measured)
            show(epoch, members, measured)

        try:
            run = functools.partial(train, keep=keep, resume=resume)
            place = place or (ddp.train if devices.world(configs[0].trainer) > 1 else _here)
            results = _results(jobs, place(run, configs, report, prune))
        except BaseException as error:
            if len(jobs) == 1 or not isinstance(error, Exception):
                recorder.fail(error)
            raise
    with screen.stage("drawing" if artifacts else "recording"):
        recorder.finish(results, artifacts)
    return results


def _here(run: Callable[..., Trained], *arguments: Any) -> Trained:
    return run(*arguments)


def train(
    configs: Sequence[Config],
    report: Report | None = None,
    stops: Stops | None = None,
    *,
    ranks: Ranks | None = None,
    device: int = 0,
    keep: Path | None = None,
    resume: Path | None = None,
) -> Trained:
    """Train one population in this process.

    Args:
        configs: Its members.
        report: Told of every epoch.
        stops: Asked after every epoch which members are to be let go.
        ranks: The processes that train it together.
        device: Which of the machine's GPUs is this process's; without one it means nothing.
        keep: Folder for the state after the last epochs; rank 0 writes it.
        resume: Folder of the state to go on from; rank 0 reads it.
    """
    jobs, ranks = [prepare(config) for config in configs], ranks or Ranks()
    first = ranks.rank == 0
    state = ranks.agree(checkpoints.load(resume) if resume and first else None)
    with _settings(configs[0]), contextlib.ExitStack() as closing:
        trainer = _trainer(configs[0], device, state["epoch"] if state else 0)
        module = _module(jobs, trainer.strategy.root_device, ranks)
        module.report, module.stops = report, stops
        if state:
            module.load_state(state)
            for probe, its in zip(trainer.callbacks, state["probes"], strict=True):  # type: ignore[attr-defined]
                probe.load_state_dict(its)
        closing.enter_context(_threads(module))
        if keep and first:
            writer = checkpoints.Writer(keep, COPIES_KEPT * module.population.weights.nbytes)
            module.keep = functools.partial(_keep, closing.enter_context(writer), jobs)
        with _exits(trainer):
            _run(trainer, module)
            test = module.evaluate(module.best.weights, module.best.buffers, ["test"])
    return Trained(
        history=module.history,
        ended=module.ended,
        weights=module.best.weights.cpu(),
        buffers={name: buffer.cpu() for name, buffer in module.best.buffers.items()},
        test=test,
        devices=(_name(module.population.weights.device),) * module.ranks.world,
    )


def _keep(writer: checkpoints.Writer, jobs: Sequence[Job], epoch: int, state: Callable[[], Mapping[str, Any]]) -> None:
    """Put a state away, with what was being trained; the last in any case."""
    if writer.wants or epoch == jobs[0].config.epochs:
        given = [{"source": dict(job.config.source), "choices": dict(job.config.choices)} for job in jobs]
        writer.put(epoch, {"configs": json.dumps(given), "data": jobs[0].data.digest, **state()})


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def _run(trainer: pl.Trainer, module: Training) -> None:
    """Run the epochs."""
    with torch.random.fork_rng(devices=[]):  # for a user's model that draws random numbers of its own
        torch.manual_seed(seed_of("training", module.seeds[0]))
        trainer.fit(module, train_dataloaders=Blocks(module))


@contextlib.contextmanager
def _exits(trainer: pl.Trainer) -> Iterator[None]:
    """Lightning turns Ctrl-C and SIGTERM into exits of its own: they become what a shell expects.

    Any other is an exit that the model asked for, or what it calls: an error of the training.
    """
    try:
        yield
    except SystemExit as stop:
        if trainer.received_sigterm:
            raise SystemExit(143) from None
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise TrainingError(f"the model, or what it uses, called sys.exit({stop.code!r})") from stop


@contextlib.contextmanager
def _threads(module: Training) -> Iterator[None]:
    """A small step is faster on one thread, and leaves the other cores to tracking. The bits are the same on any."""
    threads = torch.get_num_threads()
    rows = module.batch_size // module.ranks.world
    work = 6 * module.population.weights.numel() * rows  # a multiply and an add, forward and twice back
    if work < SMALL_STEP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _settings(config: Config) -> Iterator[None]:
    """What a training sets for the whole process, Lightning's part included, is as it was afterwards.

    torch fills all memory before it is written where operations are to repeat: nothing here reads it before.
    """
    deterministic: Any = torch.utils.deterministic  # torch leaves it untyped
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    tf32, fill = (products.allow_tf32, convolutions.allow_tf32), deterministic.fill_uninitialized_memory
    workspace = os.environ.get(WORKSPACE)
    repeats, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, loggers = convolutions.benchmark, {name: logging.getLogger(name).level for name in TALKATIVE}
    products.allow_tf32 = convolutions.allow_tf32 = config.trainer.precision == "tf32"
    deterministic.fill_uninitialized_memory = False
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for words in ("GPU available but not used", "This instance was constructed with capturable=True"):
                warnings.filterwarnings("ignore", words)  # by trainer=cpu; by the steps before a graph
            warnings.filterwarnings("ignore", module="pytorch_lightning")  # on loaders we do not use, on its own torch
            yield
    finally:
        (products.allow_tf32, convolutions.allow_tf32), convolutions.benchmark = tf32, benchmark
        if workspace is None:
            os.environ.pop(WORKSPACE, None)
        torch.use_deterministic_algorithms(repeats, warn_only=warns)
        deterministic.fill_uninitialized_memory = fill
        for name, level in loggers.items():
            logging.getLogger(name).setLevel(level)


def _trainer(config: Config, device: int, epochs_done: int) -> pl.Trainer:
    return pl.Trainer(
        accelerator=devices.kind(config.trainer),
        devices=[device] if on_gpu(config.trainer) else 1,
        plugins=LightningEnvironment(),  # what launched this process is no business of Lightning's
        precision="32-true" if config.trainer.precision == "tf32" else config.trainer.precision,
        max_epochs=config.epochs - epochs_done,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=probes.callbacks(config.probes),
        deterministic=config.trainer.deterministic,
    )


def _module(jobs: Sequence[Job], device: torch.device, ranks: Ranks) -> Training:
    first, config = jobs[0], jobs[0].config
    dtype = torch.float64 if config.trainer.precision == "64-true" else torch.float32
    dataset = _on_device(first.data, device, dtype)
    population = Population([job.network.to(dtype) for job in jobs], [job.config.seed for job in jobs], device)
    decay = torch.tensor([job.config.optimizer.weight_decay for job in jobs], dtype=torch.float64)
    if is_linear(first.optimizer):
        can_capture = device.type == "cuda" and "capturable" in inspect.signature(first.optimizer).parameters
        options = {**first.options, "capturable": True} if can_capture else first.options
        optimizer: UnitRate | Plain = UnitRate(population.weights, first.optimizer, options, decay)
    else:
        parts = population.ordinary(population.weights)
        optimizer = Plain(parts, first.optimizer, first.options, decay, population.ordinary)
    n = len(dataset.x_train)
    return Training(
        population,
        optimizer,
        first.loss,
        dataset,
        _targets(jobs, dataset),
        seeds=[job.config.seed for job in jobs],
        lr=[job.config.optimizer.lr for job in jobs],
        schedules=_schedules(jobs),
        batch_size=first.batch_size,
        epochs=config.epochs,
        eval_rows=_eval_rows(n, config).to(device),
        patience=config.trainer.patience,
        gradient_clip=config.trainer.gradient_clip,
        captured=captures(config, first.optimizer),
        half=config.trainer.precision == "16-mixed",
        ranks=ranks,
    )


def _schedules(jobs: Sequence[Job]) -> list[Schedule]:
    """One for each member; those of one config share one of ours, unless it looks at what becomes of the member."""
    shared: dict[str, Schedule] = {}
    schedules = []
    for job in jobs:
        ours = type(job.schedule).__module__.startswith("manyfit.")
        looks = not ours or type(job.schedule).observe is not Schedule.observe
        key = job.config.schedule.model_dump_json(by_alias=True)
        schedules.append(copy.deepcopy(job.schedule) if looks else shared.setdefault(key, job.schedule))
    return schedules


def _on_device(dataset: splits.Dataset, device: torch.device, dtype: torch.dtype) -> splits.Dataset:
    tensors = {f.name: getattr(dataset, f.name) for f in dataclasses.fields(dataset)}
    tensors = {k: v for k, v in tensors.items() if isinstance(v, Tensor)}
    moved = {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in tensors.items()}
    return dataclasses.replace(dataset, **moved)


def _targets(jobs: Sequence[Job], dataset: splits.Dataset) -> Tensor:
    """Training targets (members, n) with each member's own label noise; (1, n) where there is none."""
    if not jobs[0].config.data.label_noise:
        return dataset.y_train[None]
    return torch.stack([job.y_train() for job in jobs]).to(dataset.y_train)


def _eval_rows(n: int, config: Config) -> Tensor:
    """The training examples that loss/train is measured on, (m,), always the same for one split."""
    if n <= config.eval_train_size:
        return torch.arange(n)
    generator = torch.Generator().manual_seed(seed_of("eval_train", config.data.split_seed))
    return torch.randperm(n, generator=generator)[: config.eval_train_size].sort().values


def _results(jobs: Sequence[Job], trained: Trained) -> list[Result]:
    geometry = Population([jobs[0].network], [0], torch.device("cpu"))
    results = []
    for k, job in enumerate(jobs):
        present = np.flatnonzero(~np.isnan(trained.history["progress/steps"][k]))
        metrics = {name: values[k, : present[-1] + 1] for name, values in trained.history.items()}
        baseline = job.loss.baseline(job.y_train(), len(job.data.classes))
        summary = curves.summarise(metrics["loss/train"], metrics["loss/val"], baseline)
        buffers = {name: b[k] for name, b in trained.buffers.items()}
        d = job.data
        network = geometry.member(job.network, trained.weights[k], buffers).float()
        predictor = Predictor(network, d.x_mean, d.x_std, d.y_mean, d.y_std, len(d.classes)).eval()
        results.append(
            Result(
                config=job.config,
                metrics=metrics,
                summary=summary,
                test={name: float(values[k]) for name, values in trained.test.items()},
                reason="diverged" if summary.verdict is curves.Verdict.DIVERGED else trained.ended[k],
                predictor=predictor,
                weights=trained.weights[k].clone(),  # a view would keep those of all
                features=d.features,
                classes=d.classes,
                example=(d.x_test[:1] * d.x_std + d.x_mean).numpy(),
                devices=trained.devices,
            )
        )
    return results
