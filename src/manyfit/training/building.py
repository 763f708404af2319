"""From jobs to what trains them: a Trainer of Lightning's, a population, and its module."""

import inspect
from collections.abc import Sequence

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment

from manyfit.config.schema import Config
from manyfit.parallel import devices
from manyfit.parallel.devices import on_gpu
from manyfit.parallel.ranks import Ranks
from manyfit.population.members import Population
from manyfit.population.unit_rate import Plain, Scaling, UnitRate, is_linear
from manyfit.training import probes
from manyfit.training.captured import Captured, captures
from manyfit.training.evaluation import Evaluation
from manyfit.training.examples import Examples
from manyfit.training.history import History
from manyfit.training.loop import Observers, Training
from manyfit.training.prepared import Job
from manyfit.training.rates import Rates, schedules_of
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
        callbacks=probes.callbacks(config.probes),
        deterministic=config.trainer.deterministic,
    )


def make_population(jobs: Sequence[Job], device: torch.device) -> Population:
    """The networks of jobs that train together, with the weights that their seeds give."""
    dtype = _dtype(jobs[0].config)
    return Population([job.network.to(dtype) for job in jobs], [job.config.seed for job in jobs], device)


def make_training(
    jobs: Sequence[Job], population: Population, trainer: pl.Trainer, ranks: Ranks, observers: Observers
) -> Training:
    """The module that trains a population of these jobs."""
    first, config = jobs[0], jobs[0].config
    device, members = population.weights.device, len(jobs)
    examples = Examples.of(jobs, device, _dtype(config))
    capture = captures(config, first.optimizer)
    of_steps, of_evaluations = (Captured(must=capture is True) if capture else None for _ in range(2))
    steps = Steps(
        population,
        _optimizer(jobs, population),
        first.loss,
        examples,
        first.batch_size,
        gradient_clip=config.trainer.gradient_clip,
        scaling=Scaling(members, device) if config.trainer.precision == "16-mixed" else None,
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
    rates = Rates([job.config.optimizer.lr for job in jobs], schedules_of(jobs), config.epochs * first.steps_per_epoch)
    history = History(members, config.epochs, config.trainer.patience)
    return Training([job.config.seed for job in jobs], steps, evaluation, rates, history, observers)


def _dtype(config: Config) -> torch.dtype:
    return torch.float64 if config.trainer.precision == "64-true" else torch.float32


def _optimizer(jobs: Sequence[Job], population: Population) -> UnitRate | Plain:
    cls, options = jobs[0].optimizer, jobs[0].options
    decay = torch.tensor([job.config.optimizer.weight_decay for job in jobs], dtype=torch.float64)
    if not is_linear(cls):
        return Plain(population.ordinary(population.weights), cls, options, decay, population.ordinary)
    if population.weights.is_cuda and "capturable" in inspect.signature(cls).parameters:
        options = {**options, "capturable": True}
    return UnitRate(population.weights, cls, options, decay)
