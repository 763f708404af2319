"""A LightningModule of the user's own, trained by a Trainer of its own; what comes after an epoch is as in any run.

Its training_step, optimizers, callbacks and logging are as they are. What it has not is a population.
"""

import contextlib
import inspect
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor

from manyfit.config.build import place_of
from manyfit.config.errors import ConfigError, TrainingError
from manyfit.config.schema import Config
from manyfit.data.splits import Dataset
from manyfit.losses import Loss
from manyfit.models import inside
from manyfit.parallel import devices
from manyfit.parallel.ranks import Ranks
from manyfit.population.dropout import seed_of
from manyfit.population.members import trainable
from manyfit.schedules import constant
from manyfit.training import process
from manyfit.training.epochs import NO_WEIGHTS, Epochs, Scheduled, mean_over, random_states_kept, seed_everywhere
from manyfit.training.loaders import data_module
from manyfit.training.logged import Curves, NoLossError, named
from manyfit.training.loop import Observers
from manyfit.training.prepared import Job, optimizer_of, schedule_of
from manyfit.training.trained import Trained

SAMPLER_SEED = "PL_GLOBAL_SEED"


def train(
    job: Job, observers: Observers, ranks: Ranks, device: int, folder: Path | None, state: Mapping[str, Any] | None
) -> Trained:
    """Train a LightningModule, as `fitting.train` trains others, from whose set-up it is called.

    Args:
        job: It and its data.
        observers: Are told of epochs, and asked.
        ranks: That train it together.
        device: Which GPU of the machine.
        folder: Where callbacks of its own may write to; None: somewhere that is gone afterwards.
        state: Of an earlier training, to go on from.
    """
    with contextlib.ExitStack() as closing:
        home = folder or Path(closing.enter_context(tempfile.TemporaryDirectory()))
        trainer = trainer_of(job.config, ranks, device, state, default_root_dir=home)
        epochs, test = _trained(job, module_of(job), trainer, observers, ranks, state)
    assert epochs.best
    return Trained(
        history=epochs.history.values,
        ended=epochs.history.ended,
        weights=NO_WEIGHTS,
        buffers=epochs.best.buffers,
        test={name: np.array([value]) for name, value in test.items()},
        devices=(devices.name_of(trainer.strategy.root_device),) * ranks.world,
        engine="lightning",
        digests=(job.data.digest,),
        example=epochs.example,
    )


def _trained(
    job: Job,
    network: pl.LightningModule,
    trainer: pl.Trainer,
    observers: Observers,
    ranks: Ranks,
    state: Mapping[str, Any] | None = None,
) -> tuple[Epochs, dict[str, float]]:
    """Train a module, from the beginning or from a state, and test it with its best weights.

    What its data and its hooks draw before the first epoch is a function of the seed, and the same whenever it is
    asked for: a split that is drawn in `setup` stays.
    """
    config = job.config
    assert isinstance(trainer.logger, Curves)
    drawn = seed_of("guest", config.seed)
    with process.exits(trainer), random_states_kept(), sampled_by(config.seed):
        seed_everywhere(drawn)
        data = data_module(job)
        scheduled = None if "optimizer" in config.guests.decided else Scheduled(config)
        epochs = Epochs(config, trainer.logger, observers, ranks, scheduled, state)
        trainer.callbacks += [*([scheduled] if scheduled else []), epochs]  # type: ignore[attr-defined]
        seed_everywhere(drawn)
        _watch(trainer, network)
        trainer.fit(network, datamodule=data, ckpt_path=Resumed.NAME if state else None)
        assert epochs.best
        network.load_state_dict({name: buffer[0] for name, buffer in epochs.best.buffers.items()})
        seed_everywhere(drawn)
        return epochs, tested(trainer, network, data, config, ranks)


def _watch(trainer: pl.Trainer, network: pl.LightningModule) -> None:
    """Steps of the module that raise StopIteration have failed, but for those that take batches from an iterator."""
    for name in ("training_step", "validation_step", "test_step"):
        if "dataloader_iter" not in inspect.signature(getattr(network, name)).parameters:
            setattr(trainer.strategy, name, process.going_on()(getattr(trainer.strategy, name)))


@contextlib.contextmanager
def sampled_by(seed: int) -> Iterator[None]:
    """Lightning shares examples out among devices in an order that this says."""
    before = os.environ.get(SAMPLER_SEED)
    os.environ[SAMPLER_SEED] = str(seed)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(SAMPLER_SEED)
        else:
            os.environ[SAMPLER_SEED] = before


class Resumed(TorchCheckpointIO):
    """Hands over a checkpoint that is in memory already, under a name that no file has."""

    NAME = "<the run's own state>"

    def __init__(self, checkpoint: Mapping[str, Any]) -> None:
        self.checkpoint = checkpoint

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The state, or a file."""
        return dict(self.checkpoint) if path == self.NAME else super().load_checkpoint(path, *args, **kwargs)


def trainer_of(
    config: Config, ranks: Ranks, device: int, state: Mapping[str, Any] | None = None, **more: Any
) -> pl.Trainer:
    """Lightning's, on the devices and in the precision of the config; `more` are arguments of its own."""
    together = ranks.world > 1
    environment = TorchElasticEnvironment() if together else LightningEnvironment()
    settings: dict[str, Any] = {
        "accelerator": devices.kind(config.trainer),
        "devices": ranks.world if together else [device] if devices.on_gpu(config.trainer) else 1,
        "strategy": "ddp_find_unused_parameters_true" if together else "auto",
        "plugins": [environment, *([Resumed(state["checkpoint"])] if state else [])],
        "precision": "32-true" if config.trainer.precision == "tf32" else config.trainer.precision,
        "max_epochs": config.epochs,
        "num_sanity_val_steps": 0 if state else -1,  # the whole of it: epoch 0
        "gradient_clip_val": config.trainer.gradient_clip,
        "accumulate_grad_batches": config.trainer.accumulate,
        "deterministic": config.trainer.deterministic,
        "logger": Curves(),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(**settings | more)


def tested(
    trainer: pl.Trainer, module: pl.LightningModule, data: pl.LightningDataModule, config: Config, ranks: Ranks
) -> dict[str, float]:
    """Test scores by name, the mean over ranks: by test_step, or else by validation_step; none without examples."""
    if type(data).test_dataloader is pl.LightningDataModule.test_dataloader:
        return {}
    if is_overridden("test_step", module):
        loaders = trainer.test(module, datamodule=data, verbose=False)
    else:
        data.prepare_data()
        data.setup("test")
        loaders = trainer.validate(module, dataloaders=data.test_dataloader(), verbose=False)
    logged = {name: value for scores in loaders for name, value in scores.items()}
    scores = mean_over(ranks, {name: torch.tensor(float(value)).double() for name, value in logged.items()})
    found = named(scores, config.model.curves)
    return {f"{re.sub('/(train|val|test)$', '', name)}/test": value for name, value in found.items()}


class ItsOwnLoss(Loss):
    """A LightningModule's, which is in its training_step: to anybody else it is NaN."""

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG002
        """See Loss."""
        return torch.full(targets.shape, torch.nan)

    def constant(self, targets: Tensor) -> Tensor:  # noqa: ARG002
        """See Loss."""
        return torch.full((1,), torch.nan)


def job(config: Config, dataset: Dataset) -> Job:
    """A LightningModule and its data, built and tried.

    Raises:
        ConfigError: Something in the config cannot be used, or the module cannot be trained on the data.
    """
    made = Job(config, dataset, ItsOwnLoss(), torch.optim.Optimizer, {}, constant(), 0, "lightning", 0)
    network = module_of(made)
    if "optimizer" not in config.guests.decided:
        optimizer_of(config, network)  # which may refuse
        schedule_of(config, 1)
    if not is_overridden("training_step", network):
        raise ConfigError(
            f"model must have a training_step, but {type(network).__name__} has none. Give it one, or give its network "
            "alone, as an nn.Module."
        )
    if not is_overridden("validation_step", network):
        raise ConfigError(
            f"model must have a validation_step, but {type(network).__name__} has none: there would be no curve to see "
            "overfitting by. Give it one that logs val_loss."
        )
    if config.trainer.gradient_clip and not network.automatic_optimization:
        raise ConfigError(
            "trainer.gradient_clip must be null with a module that optimizes by itself, but got "
            f"{config.trainer.gradient_clip}. Call self.clip_gradients in its training_step."
        )
    if config.trainer.accumulate > 1 and not network.automatic_optimization:
        raise ConfigError(
            "trainer.accumulate must be 1 with a module that optimizes by itself, but got "
            f"{config.trainer.accumulate}. Let its training_step count."
        )
    logged = tried(made, network)
    weights = sum(parameter.numel() for parameter in network.parameters())
    return replace(made, weights=weights, curves=logged)


def module_of(job: Job) -> pl.LightningModule:
    """A new one in the seed's weights; if it has no optimizers, with the config's."""
    network, config = job.network, job.config
    assert isinstance(network, pl.LightningModule)
    if "optimizer" not in config.guests.decided:
        network.configure_optimizers = partial(_optimizer, config, network)  # type: ignore[method-assign]
    return network


def _optimizer(config: Config, module: pl.LightningModule) -> torch.optim.Optimizer:
    """The config's, for its configure_optimizers."""
    cls, options = optimizer_of(config, module)
    if "weight_decay" in inspect.signature(cls).parameters:
        options["weight_decay"] = config.optimizer.weight_decay
    return cls(trainable(module), **options, lr=config.optimizer.lr)  # type: ignore[call-arg]  # every optimizer's


def tried(job: Job, network: pl.LightningModule) -> tuple[str, ...]:
    """Train and validate a batch or two, before a run exists; the names of its curves.

    Raises:
        ConfigError: The module cannot be trained so, in the words of who refused; with the layer, if it was one.
    """
    few = {f"limit_{split}_batches": count for split, count in (("train", 2), ("val", 1), ("test", 1))}
    limits: dict[str, Any] = {**few, "accelerator": "cpu", "devices": 1}
    limits |= {"precision": "64-true" if job.config.trainer.precision == "64-true" else "32-true"}
    with process.set_up(job.config), tempfile.TemporaryDirectory() as folder, inside(network) as layer:
        try:
            trainer = trainer_of(job.config, Ranks(), 0, default_root_dir=folder, **limits)
            epochs, _ = _trained(job, network, trainer, Observers(stops=lambda _, going: list(going)), Ranks())
        except NoLossError as error:
            raise ConfigError(str(error)) from None
        except (ConfigError, TrainingError):
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ConfigError(f"model must train by a batch, but{layer()} says: {said}{place_of(error)}.") from error
    if not np.isfinite(epochs.history.values["progress/steps"][0, 0]):
        raise ConfigError(
            "model must log its validation loss before the first step as well, but "
            f"{type(network).__name__} logs nothing in Lightning's sanity check, which here is epoch 0. Leave out what "
            "asks for trainer.sanity_checking."
        )
    return tuple(epochs.history.values)
