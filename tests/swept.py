"""Sweeps whose runs are made up."""

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from conftest import made
from manyfit.config.schema import Config, with_seed
from manyfit.progress import Screen
from manyfit.sweeps.findings import Row
from manyfit.sweeps.parent import Child

LR = "optimizer.lr"


@dataclass
class FakeRun:
    """Keeps what it is given."""

    id: str = "own"
    run_id: str | None = "mlflow"
    files: dict[str, bytes] = field(default_factory=dict)
    tagged: dict[str, str] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    models: int = 0

    def storing(self, _: str) -> contextlib.AbstractContextManager[None]:
        """Nothing goes wrong here."""
        return contextlib.nullcontext()

    def file(self, name: str, content: bytes) -> None:
        """An artifact."""
        self.files[name] = content

    def tags(self, tags: Mapping[str, str]) -> None:
        """Tags."""
        self.tagged |= tags

    def metrics(self, rows: list[tuple[str, float, int]]) -> None:
        """Values."""
        self.measured |= {name: value for name, value, _ in rows}

    def model(self, *_: object) -> None:
        """Counted."""
        self.models += 1


@dataclass
class FakeSweep:
    """Its runs end where `ends` says."""

    config: Config
    ends: Callable[[Config], float]
    parent: Any = field(default_factory=FakeRun)
    tags: dict[int, dict[str, str]] = field(default_factory=dict)
    children: dict[int, Child] = field(default_factory=dict)
    prune: Any = None
    screen: Screen = field(default_factory=lambda: Screen(""))
    calls: list[dict[int, Config]] = field(default_factory=list)

    def train(self, configs: Mapping[int, Config]) -> list[Child]:
        """Made-up results."""
        assert self.prune is None
        self.calls.append(dict(configs))
        found = [child(number, config, self.ends(config)) for number, config in configs.items()]
        self.children |= {one.number: one for one in found}
        return found


def child(number: int, config: Config, end: float) -> Child:
    run: Any = FakeRun(id=f"own{number}", run_id=f"run{number}")
    return Child(number, config, run, made(config, end))


def row(number: int, value: float, state: str = "finished", seed: int = 0, **params: Any) -> Row:
    named = {key.replace("__", "."): item for key, item in params.items()}
    return Row(number, named, value, state, seed, np.array([2.0, value]), None, None, None, None)


def by_rate(config: Config) -> float:
    """Best at a rate of 0.01, with some noise that depends on the seed."""
    noise = 0.02 * math.sin(config.seed)
    return 0.3 + abs(math.log10(config.optimizer.lr) + 2) / 3 + noise


def at(config: Config, lr: float, seed: int) -> Config:
    """The same config at another rate, without composing it again."""
    source = {**config.source, "optimizer": {**config.source["optimizer"], "lr": lr}}
    optimizer = config.optimizer.model_copy(update={"lr": lr})
    return with_seed(config.model_copy(update={"source": source, "optimizer": optimizer}), seed)
