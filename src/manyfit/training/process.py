"""What a training sets for its whole process, and puts back: threads, determinism, log levels, exits."""

import contextlib
import logging
import os
import signal
import warnings
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch

from manyfit.config.build import place_of
from manyfit.config.errors import TrainingError
from manyfit.config.schema import Config

SMALL_STEP = 40e6  # floating-point operations; measured break-even of one thread and two, benchmarks/RESULTS.md
TALKATIVE = ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero")  # of devices and tips
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # which Lightning sets where operations are to repeat


@contextlib.contextmanager
def exits(trainer: pl.Trainer) -> Iterator[None]:
    """Lightning turns Ctrl-C and SIGTERM into exits of its own: they become what a shell expects.

    Any other is an exit that the model asked for, or what it calls: an error of the training.
    """
    try:
        yield
    except SystemExit as stop:
        if trainer.received_sigterm:
            raise SystemExit(143) from None
        if stop.code == 128 + signal.SIGHUP:  # as parallel/signals.py ends a command whose terminal is closed
            raise
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise TrainingError(f"the model, or what it uses, called sys.exit({stop.code!r})") from stop


@contextlib.contextmanager
def going_on() -> Iterator[None]:
    """Lightning takes a StopIteration for the end of the examples: within a step it is an error of the training."""
    try:
        yield
    except StopIteration as stop:  # as its cause it would be taken for the generator's own, and raised again
        raise TrainingError(f"the model, or what it uses, raised {stop!r}{place_of(stop)}") from None


@contextlib.contextmanager
def threads(products: int) -> Iterator[None]:
    """A small step is faster on one thread, and leaves the other cores to tracking. The bits are the same on any.

    Args:
        products: Weights of a step, each times the examples that it sees.
    """
    before = torch.get_num_threads()
    if 6 * products < SMALL_STEP:  # a multiply and an add, forward and twice back
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def set_up(config: Config) -> Iterator[None]:
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
