"""On what a config trains: which kind of device, and how many."""

import gc
import os
import sys
import traceback
from typing import TYPE_CHECKING

from manyfit.config.build import target_of
from manyfit.config.errors import ConfigError
from manyfit.config.schema import Config, TrainerConfig

if TYPE_CHECKING:
    import torch


def on_gpu(trainer: TrainerConfig) -> bool:
    """Whether training runs on CUDA devices."""
    import torch

    return trainer.accelerator == "gpu" or (trainer.accelerator == "auto" and torch.cuda.is_available())


def kind(trainer: TrainerConfig) -> str:
    """Lightning's word for what training runs on: gpu (CUDA), mps (the GPU of a Mac, if it is asked for) or cpu."""
    return "gpu" if on_gpu(trainer) else "mps" if trainer.accelerator == "mps" else "cpu"


def gpus(trainer: TrainerConfig) -> int:
    """How many GPUs a config may train on."""
    import torch

    return torch.cuda.device_count() if on_gpu(trainer) else 0


def name_of(device: "torch.device") -> str:
    """What people call it: CPU, NVIDIA H200."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def give_back(error: BaseException) -> None:
    """The memory of a training that failed: what the frames hold that its exception went through, tensors above all."""
    import torch

    one: BaseException | None = error
    while one is not None:
        traceback.clear_frames(one.__traceback__)
        one = one.__cause__ or one.__context__
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def out_of_memory(error: Exception) -> bool:
    """Whether fewer at once may fit: as its words have it, since torch's error of a CPU is a plain RuntimeError.

    A process that the system kills for its memory (SIGKILL) has no words of its own.
    """
    said = ("alloc", "memory", "start new thread", "exit code -9")
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in said)


def launched(launcher: str = "elastic") -> int:
    """How many processes torchrun started, or srun with launcher=slurm, this one included; 1: none did."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ.get("SLURM_NTASKS", 1)) if launcher == "slurm" else 1


def by_srun() -> bool:
    """Whether the command line says that srun starts the ranks: they have to know before a config is composed."""
    return "trainer=slurm" in sys.argv


def world(trainer: TrainerConfig) -> int:
    """How many ranks train together."""
    if trainer.devices != "auto":
        return trainer.devices
    outside = launched(trainer.launcher)
    return outside if outside > 1 else gpus(trainer) or (1 if trainer.accelerator == "mps" else os.cpu_count() or 1)


def check(config: Config) -> None:
    """Refuse what cannot run on so many devices.

    Raises:
        ConfigError: Names the key.
    """
    import torch

    count, outside = world(config.trainer), launched(config.trainer.launcher)
    if config.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError("trainer.accelerator must be available, but got 'gpu' and there is no GPU. Use trainer=cpu.")
    if config.trainer.accelerator == "mps":
        _check_mps(config.trainer, count)
    if config.trainer.precision in ("16-mixed", "tf32") and not on_gpu(config.trainer):
        instead = {"16-mixed": "bf16-mixed", "tf32": "32-true"}[config.trainer.precision]
        raise ConfigError(
            f"trainer.precision must be another than '{config.trainer.precision}' without a GPU. Use {instead}."
        )
    if config.trainer.launcher == "slurm" and outside == 1:
        raise ConfigError(
            "trainer=slurm must be started by srun with --ntasks-per-node=2 or more. Else use trainer=ddp."
        )
    if config.trainer.launcher == "slurm" and not by_srun():
        raise ConfigError("trainer=slurm must stand on the command line, where the tasks of srun find it.")
    if outside > 1 and count != outside:
        raise ConfigError(
            f"trainer.devices must be auto or {outside}, the ranks that were started, but got {config.trainer.devices}."
            " Use trainer=ddp or trainer=ddp_cpu."
        )
    here = count if outside == 1 else int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if on_gpu(config.trainer) and here > torch.cuda.device_count():
        there = torch.cuda.device_count()
        raise ConfigError(f"trainer.devices must be <= {there}, the GPUs of this machine, but got {here}.")
    if "optimizer" in config.guests.decided:
        return
    optimizer = target_of(config.optimizer, "optimizer", torch.optim.Optimizer)
    if count > 1 and isinstance(optimizer, type) and issubclass(optimizer, torch.optim.LBFGS):
        raise ConfigError("trainer.devices must be 1 with optimizer lbfgs, which evaluates a step several times.")


def _check_mps(trainer: TrainerConfig, count: int) -> None:
    """Refuse what a Mac's GPU cannot do, or where there is none."""
    import torch

    if not torch.backends.mps.is_available():
        raise ConfigError(
            "trainer.accelerator must be available, but got 'mps' and there is no GPU of a Mac. Use trainer=cpu."
        )
    if trainer.precision == "64-true":
        raise ConfigError(
            "trainer.precision must be another than '64-true' on mps, which has no float64. Use 32-true or trainer=cpu."
        )
    if count > 1:
        raise ConfigError(f"trainer.devices must be 1 on mps, but got {count}. Use trainer=ddp_cpu.")
