"""The group `sweep`: what is searched for, how long, and on how many seeds."""

from collections.abc import Mapping
from typing import Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import Field, ValidationError

from manyfit.config import schema
from manyfit.config.errors import ConfigError
from manyfit.config.schema import Count, Node


class Objective(Node):
    """What is searched for: a curve, and the value of it that counts."""

    metric: str = "loss/val"
    reducer: Literal["best", "last"] = "best"

    def __str__(self) -> str:
        """`best loss/val`."""
        return f"{self.reducer} {self.metric}"


class Settings(Node):
    """The group `sweep`."""

    space: Mapping[str, str] = Field(default_factory=dict)
    n_trials: Count = 32
    objective: Objective = Objective()
    direction: Literal["minimize", "maximize"] = "minimize"
    study: str | None = None
    storage: str = "sqlite:///mlruns/optuna.db"
    round: Count | None = None
    seeds: Count = 4
    max_failures: Count = 16
    confirm_seeds: int = Field(default=8, ge=0)


def settings(cfg: DictConfig) -> Settings:
    """Check the group `sweep`.

    Raises:
        ConfigError: A value is of the wrong type or out of range; the message names its full key.
    """
    try:
        return Settings.model_validate(OmegaConf.to_container(cfg.get("sweep") or OmegaConf.create(), resolve=True))
    except ValidationError as error:
        lines = {schema.sentence({**e, "loc": ("sweep", *e["loc"])}) for e in error.errors()}
        raise ConfigError("\n".join(sorted(lines))) from None
