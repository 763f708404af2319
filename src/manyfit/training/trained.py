"""What comes out of a training: arrays of a population, and what is known of each of its runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from manyfit import curves
from manyfit.config.schema import Config
from manyfit.data.encoding import Encoding
from manyfit.data.table import name_of
from manyfit.models import Predictor
from manyfit.native.members import filled
from manyfit.population.members import Population
from manyfit.training.prepared import EngineName

if TYPE_CHECKING:
    from manyfit.training.prepared import Job

STATUS = {"finished": "FINISHED", "stopped early": "FINISHED", "diverged": "FAILED", "pruned": "KILLED"}


@dataclass(frozen=True)
class Trained:
    """What a training leaves behind: arrays, wherever it took place.

    Attributes:
        history: (members, epochs + 1) by metric; NaN after a member's end.
        ended: Why each member ended, one of `STATUS`.
        weights: Of each member's best epoch, (members, parameters) on the CPU; buffers likewise.
        test: (members,) by metric, with these weights.
        devices: What it ran on.
        engine: What computed it.
        digests: Of the data that each member was trained on.
    """

    history: Mapping[str, np.ndarray]
    ended: Mapping[int, str]
    weights: Tensor
    buffers: Mapping[str, Tensor]
    test: Mapping[str, np.ndarray]
    devices: tuple[str, ...]
    engine: EngineName
    digests: tuple[str, ...]
    example: Tensor | None = None
    """Of a LightningModule, what it was given first to validate, (1, ...)."""
    failed: Mapping[int, Exception] = field(default_factory=dict)
    """Members that failed by themselves; of these nothing else is known."""


@dataclass(frozen=True)
class Result:
    """One run, trained.

    `metrics` are (epochs + 1,) arrays by name, epoch 0 first; `test` is measured once, with the weights of the best
    epoch; `most_frequent` is the share of test examples that guessing training's most frequent class gets right, None
    in a regression; `reason` is one of `STATUS`; `predictor` maps raw features to probabilities or values (of a
    LightningModule it is that), and `example` (1, *shape) is a row for it, `encoding` and `classes` say what its
    columns and outputs are; `weights` (parameters,) are the best epoch's, as the engine has them; `devices` and
    `engine` are what trained it; `sizes` are the examples to train, validate and test, 0 where nobody knows. Of a
    sweep's results most have no predictor and no weights any more.
    """

    config: Config
    metrics: Mapping[str, np.ndarray]
    summary: curves.Summary
    test: Mapping[str, float]
    most_frequent: float | None
    reason: str
    predictor: nn.Module | None
    weights: Tensor | None
    example: np.ndarray | None
    encoding: Encoding
    classes: tuple[str, ...]
    devices: tuple[str, ...]
    engine: EngineName
    sizes: tuple[int, int, int] = (0, 0, 0)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return tuple(map(name_of, self.encoding.inputs))

    def without_network(self) -> "Result":
        """What a report needs of a run."""
        return replace(self, predictor=None, weights=None)

    @property
    def once(self) -> dict[str, float]:
        """What is measured once: test scores, with the weights of the best epoch; which that is; the speed."""
        s = self.summary
        best = {} if s.best_epoch is None else {"best/epoch": float(s.best_epoch), "best/loss_val": s.best_loss_val}
        guessed = {} if self.most_frequent is None else {"accuracy/most_frequent": self.most_frequent}
        return {**self.test, **guessed, "examples_per_second": self.speed, **best}

    @property
    def status(self) -> str:
        """MLflow's word for how it ended."""
        return STATUS[self.reason]

    @property
    def seconds(self) -> float:
        """From the first step to the last."""
        return float(self.metrics["time/seconds"][-1])

    @property
    def speed(self) -> float:
        """Training examples per second, evaluation included; of a member of a population, its own."""
        return float(self.metrics["progress/examples"][-1]) / max(self.seconds, 1e-9)


def results_of(jobs: "Sequence[Job]", trained: Trained) -> dict[int, Result]:
    """What is known of each run that did not fail, by place; jobs are the members, in order."""
    if trained.engine == "lightning":
        return {0: _of_guest(jobs[0], trained)}
    together = Population([jobs[0].network], [0], torch.device("cpu")) if trained.engine == "batched" else None
    found: dict[int, Result] = {}
    for k, job in ((k, job) for k, job in enumerate(jobs) if k not in trained.failed):
        present = np.flatnonzero(~np.isnan(trained.history["progress/steps"][k]))
        metrics = {name: values[k, : present[-1] + 1] for name, values in trained.history.items()}
        buffers, row = {name: b[k] for name, b in trained.buffers.items()}, trained.weights[k]
        network = job.network
        if together:
            network = together.member(network, row, buffers).float()
        else:
            row = row[: sum(parameter.numel() for parameter in network.parameters())]  # its own
            network = filled(network.to(row.dtype), row).float()
        test = {name: float(values[k]) for name, values in trained.test.items()}
        its = _result(job, metrics, test, trained.ended[k], trained.devices, trained.engine)
        # a view would keep the weights of all
        found[k] = replace(its, predictor=Predictor(network, job.data).eval(), weights=row.clone())
    return found


def restored(job: "Job", metrics: Mapping[str, np.ndarray], tags: Mapping[str, str]) -> Result:
    """What is known of a run that is stored, but for its network.

    Args:
        job: It.
        metrics: (epochs + 1,) by name, and (1,) of what is measured once.
        tags: Of the run.
    """
    length = len(metrics["loss/val"])
    known = {name: curve for name, curve in metrics.items() if len(curve) == length}
    test = {name: float(values[0]) for name, values in metrics.items() if name.endswith("/test") and len(values) == 1}
    devices = [part.split(" x ", 1) for part in tags["devices"].split(", ")]
    engine: EngineName = tags["engine"]  # type: ignore[assignment]
    return _result(
        job, known, test, tags["ended"], tuple(name for count, name in devices for _ in range(int(count))), engine
    )


def _result(
    job: "Job",
    metrics: Mapping[str, np.ndarray],
    test: Mapping[str, float],
    ended: str,
    devices: tuple[str, ...],
    engine: EngineName,
) -> Result:
    """All but the network; of a LightningModule the untrained network is the baseline."""
    d, losses, guest = job.data, (metrics["loss/train"], metrics["loss/val"]), engine == "lightning"
    if guest:
        summary = curves.summarise(*losses, float(losses[0][0]), "the untrained network")
    else:
        summary = curves.summarise(*losses, job.loss.baseline(job.y_train(), len(d.classes)))
    classes = () if guest else d.classes
    return Result(
        config=job.config,
        metrics=metrics,
        summary=summary,
        test=test,
        most_frequent=float((d.y_test == d.y_train.mode().values).double().mean()) if classes else None,
        reason="diverged" if summary.verdict is curves.Fit.DIVERGED else ended,
        predictor=None,
        weights=None,
        encoding=d.encoding,
        classes=classes,
        example=None if guest else (d.x_test[:1] * d.x_std + d.x_mean).reshape(1, *d.shape).numpy(),
        devices=devices,
        engine=engine,
        sizes=(len(d.y_train), len(d.y_val), len(d.y_test)),
    )


def _of_guest(job: "Job", trained: Trained) -> Result:
    """Likewise of a LightningModule, whose forward is what predicts."""
    present = np.flatnonzero(~np.isnan(trained.history["progress/steps"][0]))
    metrics = {name: values[0, : present[-1] + 1] for name, values in trained.history.items()}
    network = job.network
    network.load_state_dict({name: buffer[0] for name, buffer in trained.buffers.items()})
    test = {name: float(values[0]) for name, values in trained.test.items()}
    its = _result(job, metrics, test, trained.ended[0], trained.devices, "lightning")
    return replace(its, predictor=network.eval(), example=None if trained.example is None else trained.example.numpy())
