"""What people bring: a LightningModule beside a Trainer of one's own; folds together beside one by one.

    python benchmarks/brought.py

Ratios of arms that alternate in this process; times are of training, after imports.
"""

import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger

from conftest import build
from lightnings import Automatic, Tensors
from manyfit.training.fitting import fit
from manyfit.training.prepared import Job, Preparation

EPOCHS, REPEATS = 50, 7


def own_trainer() -> None:
    """As a script of one's own would: with its CSVLogger."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=EPOCHS,
            logger=CSVLogger(folder),
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        trainer.fit(Automatic(), datamodule=Tensors(32))


def jobs(*overrides: str) -> list[Job]:
    """Of one preparation."""
    preparation = Preparation()
    return [preparation.job(build(*overrides, f"data.fold={k}", f"seed={s}")) for k in range(10) for s in range(4)]


def compared(name: str, one: Callable[[], object], other: Callable[[], object]) -> None:
    """Medians of both, and of their ratio."""
    times: list[tuple[float, float]] = []
    for _ in range(REPEATS + 1):  # the first warms up
        start = time.perf_counter()
        one()
        middle = time.perf_counter()
        other()
        times.append((middle - start, time.perf_counter() - middle))
    first, second = (statistics.median(column) for column in zip(*times[1:], strict=True))
    ratio = statistics.median(a / b for a, b in times[1:])
    print(f"| {name} | {first:.2f} | {second:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    guest = build(
        "data._target_=lightnings.Tensors",
        "model._target_=lightnings.Automatic",
        "trusted=[lightnings]",
        f"epochs={EPOCHS}",
        *(f"~model.{key}" for key in ("hidden", "activation", "dropout", "init", "sigma")),
    )
    job = Preparation().job(guest)
    print("| arms | first, s | second, s | ratio |\n|---|---|---|---|")
    compared(f"a LightningModule, {EPOCHS} epochs: manyfit / a Trainer of one's own", lambda: fit([job]), own_trainer)
    folds = jobs("data=breast_cancer", "data.folds=10", "epochs=20")
    compared(
        "10 folds x 4 seeds, 20 epochs: one by one / together", lambda: [fit([j]) for j in folds], lambda: fit(folds)
    )
