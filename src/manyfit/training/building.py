"""From jobs to what trains them: a Trainer of Lightning's, an engine, and the module of both."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment

from manyfit.config.schema import Config
from manyfit.parallel import devices
from manyfit.parallel.devices import on_gpu
from manyfit.parallel.ranks import Ranks
from manyfit.population.members import Population
from manyfit.population.unit_rate import Plain, Scaling, UnitRate, is_linear
from manyfit.training import probes, process
from manyfit.training.batched import Batched
from manyfit.training.captured import Captured, captures
from manyfit.training.engine import Engine
from manyfit.training.evaluation import Evaluation
from manyfit.training.examples import Examples
from manyfit.training.faults import Faults, networks_of
from manyfit.training.history import History
from manyfit.training.loop import Observers, Training
from manyfit.training.native import Native
from manyfit.training.prepared import EngineName, Job, dtype_of, engine_of
from manyfit.training.rates import rates_of
from manyfit.training.steps import Steps


def make_trainer(config: Config, device: int, epochs_done: int) -> pl.Trainer:
    """Lightning's, for the epochs that are left, on one device of this process."""
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
        callbacks=probes.callbacks(config),
        deterministic=config.trainer.deterministic,
    )


def require_fits(job: Job, state: Mapping[str, Any]) -> None:
    """Raise whatever a state raises that is none of this job's training; a LightningModule's is its own affair."""
    name, epoch = engine_of(job, state), state["epoch"]
    if name == "lightning" or devices.world(job.config.trainer) > 1:
        return
    with process.set_up(job.config), torch.random.fork_rng(devices=[]):
        torch.set_rng_state(state["random"])
        training = make_training([job], make_trainer(job.config, 0, epoch), name, Ranks(), Observers())
        fresh = training.state()
        training.load_state(state)
    for part in ("weights", "buffers", "best", "members", "seconds", "last_lr"):
        if part in fresh and _form(fresh[part]) != _form(state[part]):
            raise ValueError(f"{part} of another form")
    if np.ravel(state["steps"])[:1] != state["history"]["progress/steps"][0, epoch]:
        raise ValueError("another number of steps than its history has")


def _form(node: Any) -> Any:
    """Shapes and kinds of a tree's tensors and arrays."""
    if isinstance(node, Mapping):
        return {name: _form(part) for name, part in node.items()}
    return (tuple(node.shape), str(node.dtype)) if hasattr(node, "shape") else type(node)


def make_training(
    jobs: Sequence[Job], trainer: pl.Trainer, engine: EngineName, ranks: Ranks, observers: Observers
) -> Training:
    """The module that trains these jobs as one population."""
    config = jobs[0].config
    history = History(len(jobs), config.epochs, [job.config.trainer.patience for job in jobs])
    if engine == "native":
        made: Engine = Native(jobs, angles="update_angle" in config.probes)
    else:
        made = _batched(jobs, trainer, ranks)
    return Training(made, history, observers)


def _batched(jobs: Sequence[Job], trainer: pl.Trainer, ranks: Ranks) -> Batched:
    first, config, device = jobs[0], jobs[0].config, trainer.strategy.root_device
    dtype, seeds = dtype_of(config), [job.config.seed for job in jobs]
    population = Population([network.to(dtype) for network in networks_of(jobs)], seeds, device)
    examples = Examples.of(jobs, device, dtype)
    capture = captures(config, first.optimizer)
    of_steps, of_evaluations = (Captured(must=capture is True) if capture else None for _ in range(2))
    steps = Steps(
        population,
        _optimizer(jobs, population),
        first.loss,
        examples,
        first.batch_size,
        gradient_clip=config.trainer.gradient_clip,
        scaling=Scaling(len(jobs), device) if config.trainer.precision == "16-mixed" else None,
        captured=of_steps,
        ranks=ranks,
    )
    evaluation = Evaluation(
        population,
        first.loss,
        examples,
        precision=trainer.precision_plugin.val_step_context,
        captured=of_evaluations,
        ranks=ranks,
    )
    rates = rates_of(jobs, Faults(len(jobs) > 1 and ranks.world == 1))
    return Batched(steps, evaluation, rates, seeds, angles="update_angle" in config.probes)


def _optimizer(jobs: Sequence[Job], population: Population) -> UnitRate | Plain:
    cls, options = jobs[0].optimizer, jobs[0].options
    decay = torch.tensor([job.config.optimizer.weight_decay for job in jobs], dtype=torch.float64)
    if not is_linear(cls):
        return Plain(population.ordinary(population.weights), cls, options, decay, population.ordinary)
    if population.weights.is_cuda and "capturable" in inspect.signature(cls).parameters:
        options = {**options, "capturable": True}
    return UnitRate(population.weights, cls, options, decay)
