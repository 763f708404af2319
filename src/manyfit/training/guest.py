"""A LightningModule of the user's own, trained by a Trainer of its own; what comes after an epoch is as in any run.

Its training_step, optimizers, callbacks and logging are as they are. What it has not is a population.
"""

import contextlib
import re
import tempfile
from collections.abc import Mapping
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
from manyfit.config.errors import ConfigError
from manyfit.config.schema import Config
from manyfit.data.splits import Dataset
from manyfit.losses import Loss
from manyfit.models import inside
from manyfit.parallel import devices
from manyfit.parallel.ranks import Ranks
from manyfit.population.members import trainable
from manyfit.schedules import constant
from manyfit.training import process
from manyfit.training.best import Best
from manyfit.training.epochs import NO_WEIGHTS, Epochs, Scheduled, random_states_kept, weights_of
from manyfit.training.loaders import data_module
from manyfit.training.logged import Curves, NoLossError, curve
from manyfit.training.loop import Observers
from manyfit.training.prepared import Job, optimizer_of, schedule_of
from manyfit.training.trained import Trained


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
    config, network = job.config, module_of(job)
    with contextlib.ExitStack() as closing:
        closing.enter_context(random_states_kept())
        data = data_module(config, job.data)
        home = folder or Path(closing.enter_context(tempfile.TemporaryDirectory()))
        trainer = trainer_of(config, ranks, device, state, default_root_dir=home)
        with process.exits(trainer):
            epochs = fitted(trainer, config, network, data, observers, ranks, state)
            network.load_state_dict({name: buffer[0] for name, buffer in epochs.best.buffers.items()})
            test = tested(trainer, network, data)
    return Trained(
        history=epochs.history.values,
        ended=epochs.history.ended,
        weights=torch.zeros(1, 0),
        buffers={name: buffer.cpu() for name, buffer in epochs.best.buffers.items()},
        test={name: np.array([value]) for name, value in test.items()},
        devices=(devices.name_of(trainer.strategy.root_device),) * ranks.world,
        engine="lightning",
        digests=(job.data.digest,),
        example=epochs.example,
    )


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
        "deterministic": config.trainer.deterministic,
        "logger": Curves(),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(**settings | more)


def fitted(
    trainer: pl.Trainer,
    config: Config,
    network: pl.LightningModule,
    data: pl.LightningDataModule,
    observers: Observers,
    ranks: Ranks,
    state: Mapping[str, Any] | None = None,
) -> Epochs:
    """Train a module, from the beginning or from a state; its weights are the last epoch's.

    Args:
        trainer: Made for this.
        config: Of the run.
        network: Begins with its weights.
        data: What it is trained on.
        observers: Are told of epochs, and asked.
        ranks: That train together.
        state: Of an earlier training, to go on from.
    """
    assert isinstance(trainer.logger, Curves)
    epochs = Epochs(config, trainer.logger, observers, ranks, Best(NO_WEIGHTS, weights_of(network)))
    trainer.callbacks += [*([] if "optimizer" in config.guests.decided else [Scheduled(config)]), epochs]  # type: ignore[attr-defined]
    if state:
        epochs.load_state(state)
        trainer.fit_loop.load_state_dict(state["checkpoint"]["loops"]["fit_loop"])
        trainer.fit_loop.restarting = False  # the state is of an epoch's end: nothing of it is to be done again
    trainer.fit(network, datamodule=data, ckpt_path=Resumed.NAME if state else None)
    return epochs


def tested(trainer: pl.Trainer, module: pl.LightningModule, data: pl.LightningDataModule) -> dict[str, float]:
    """Test scores by name, measured by test_step, or else by validation_step; none without test examples."""
    own = type(data).test_dataloader is not pl.LightningDataModule.test_dataloader
    if not own:
        return {}
    if is_overridden("test_step", module):
        (scores,) = trainer.test(module, datamodule=data, verbose=False) or [{}]
    else:
        data.prepare_data()
        data.setup("test")
        (scores,) = trainer.validate(module, dataloaders=data.test_dataloader(), verbose=False) or [{}]
    return {re.sub("/val$", "/test", curve(name)): float(value) for name, value in scores.items()}


class ItsOwnLoss(Loss):
    """A LightningModule's: nobody else can measure it."""

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """There is none."""
        raise NotImplementedError("a LightningModule's loss is in its training_step")

    def constant(self, targets: Tensor) -> Tensor:
        """There is none."""
        raise NotImplementedError("a LightningModule's loss is in its training_step")


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
    if config.trainer.gradient_clip and not network.automatic_optimization:
        raise ConfigError(
            "trainer.gradient_clip must be null with a module that optimizes by itself, but got "
            f"{config.trainer.gradient_clip}. Call self.clip_gradients in its training_step."
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
    if config.optimizer.weight_decay:
        options["weight_decay"] = config.optimizer.weight_decay
    return cls(trainable(module), **options, lr=config.optimizer.lr)  # type: ignore[call-arg]  # every optimizer's


def tried(job: Job, network: pl.LightningModule) -> tuple[str, ...]:
    """Train and validate a batch or two, before a run exists; the names of its curves.

    Raises:
        ConfigError: The module cannot be trained so, in the words of who refused; with the layer, if it was one.
    """
    limits: dict[str, Any] = {
        "max_epochs": 1,
        "limit_train_batches": 2,
        "limit_val_batches": 1,
        "accelerator": "cpu",
        "devices": 1,
    }
    limits |= {"precision": "64-true" if job.config.trainer.precision == "64-true" else "32-true"}
    with (
        process.set_up(job.config),
        tempfile.TemporaryDirectory() as folder,
        random_states_kept(),
        inside(network) as layer,
    ):
        try:
            data = data_module(job.config, job.data)
            trainer = trainer_of(job.config, Ranks(), 0, default_root_dir=folder, **limits)
            epochs = fitted(trainer, job.config, network, data, Observers(), Ranks())
        except NoLossError as error:
            raise ConfigError(str(error)) from None
        except ConfigError:
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ConfigError(f"model must train by a batch, but{layer()} says: {said}{place_of(error)}.") from error
    return tuple(epochs.history.values)
