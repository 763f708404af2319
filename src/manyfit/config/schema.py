"""The schema: what Hydra composed becomes a checked, frozen Config. No torch here: a bad value answers at once."""

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, ValidationInfo, field_validator

from manyfit.config import guest, secrets
from manyfit.config.errors import ConfigError
from manyfit.config.numbers import holds_a_switch
from manyfit.config.secrets import mask
from manyfit.config.shown import MARK, Stand, as_written, paired
from manyfit.config.trust import require_all_trusted
from manyfit.config.written import to_yaml

# keys that say how to launch, not what to train
ASIDE = (
    *("apart", "autoresume", "claim", "experiment", "grids", "hydra", "pruner", "quick", "resume", "sampler", "sweep"),
    *("trusted", "tune", "tune_by", "tune_beside"),
)


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
ProbeName = Literal["gradient_norm", "dead_units", "gradient_noise", "update_angle", "test_set"]


def _batch_size(value: Any) -> Any:
    if value == "full" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError("must be an integer >= 1 or full")


def _probe(value: Any) -> Any:
    if value in get_args(ProbeName) or (isinstance(value, str) and "." in value.strip(".")):
        return value
    raise ValueError(f"must be one of {', '.join(get_args(ProbeName))}, or a function of yours by its dotted name")


BatchSize = Annotated[int | Literal["full"], PlainValidator(_batch_size)]


class Checked(BaseModel):
    """A part of the config."""

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool | list) and holds_a_switch(value, cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("must be a number")
        return value


class Node(Checked):
    """A part whose keys are all named here."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Component(Checked):
    """A part that names what is built: `_target_` and its own arguments, which that class checks."""

    model_config = ConfigDict(frozen=True, extra="allow")
    target: str = Field(alias="_target_")

    @property
    def arguments(self) -> dict[str, Any]:
        """What goes to the target: everything that is not named by the schema."""
        return dict(self.model_extra or {})


class DataConfig(Component):
    """A source of examples and how they are split."""

    split_seed: Annotated[int, Field(ge=0)] = 0
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.15
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.15
    train_size: Count | None = None
    label_noise: Share = 0.0
    standardise: bool | Literal["channels"] = True
    target_scale: Literal["log", "rank"] | None = None
    folds: Annotated[int, Field(ge=2)] | None = None
    fold: Annotated[int, Field(ge=0)] | None = None


class Curves(Node):
    """The names that a LightningModule logs its losses under; None: they tell by themselves."""

    train: str | None = None
    val: str | None = None


class ModelConfig(Component):
    """A torch module; in_features or in_shape, and out_features come from the data."""

    weights: str | None = None
    curves: Curves = Field(default_factory=lambda: Curves())


class OptimizerConfig(Component):
    """A torch optimizer."""

    lr: Positive
    weight_decay: NonNegative = 0.0


ITS_OWN: dict[str, Component] = {  # of a LightningModule
    "loss": Component(_target_="its own"),
    "schedule": Component(_target_="its own"),
    "optimizer": OptimizerConfig.model_construct(_target_="its own", lr=math.nan, weight_decay=0.0),
}


class TrainerConfig(Node):
    """Where and how training runs."""

    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    devices: Count | Literal["auto"] = 1
    launcher: Literal["elastic", "slurm"] = "elastic"
    precision: Literal["32-true", "64-true", "bf16-mixed", "16-mixed", "tf32"] = "32-true"
    engine: Literal["auto", "native", "batched"] = "auto"
    cuda_graph: bool | Literal["auto"] = "auto"
    gradient_clip: Positive | None = None
    accumulate: Count = 1
    patience: Count | None = None
    deterministic: bool = True


class TrackingConfig(Node):
    """Which MLflow store, and which children of a sweep store picture and model."""

    kind: Literal["sqlite", "server", "off"] = "sqlite"
    uri: str | None = None
    artifacts: Literal["best", "all", "none"] = "best"


class Config(Node):
    """Everything that determines a run."""

    data: DataConfig
    model: ModelConfig
    loss: Component
    optimizer: OptimizerConfig
    schedule: Component
    trainer: TrainerConfig
    tracking: TrackingConfig
    name: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    batch_size: BatchSize = 32
    epochs: Count = 50
    eval_train_size: Count = 10000
    probes: tuple[Annotated[str, PlainValidator(_probe)], ...] = ()
    metrics: tuple[str, ...] = ()
    metrics_at: Literal["epochs", "best"] = "epochs"
    checkpoint: bool = True
    choices: Mapping[str, str] = Field(default_factory=dict, exclude=True)
    source: Mapping[str, Any] = Field(default_factory=dict, exclude=True)
    guests: guest.Guests = Field(default=guest.Guests(), exclude=True)
    trusted: tuple[str, ...] = Field(default=(), exclude=True)

    @property
    def experiment(self) -> str:
        """Name of the MLflow experiment; an address in it, such as an interpolation may bring, without its password."""
        return mask(self.name or self.choices.get("experiment") or "") or self.dataset

    @property
    def dataset(self) -> str:
        """What people call the data; your own table by its file."""
        choice = self.choices.get("data")
        if choice == "digits" and not self.data.target.startswith("manyfit."):  # one's own in the place of the default
            return self.data.target.rpartition(".")[2]
        file = Path(str(self.data.arguments["path"])).name.split(".")[0] if choice == "csv" else ""
        return mask(file or choice or self.data.target)

    @property
    def network(self) -> str:
        """What people call the model: its option, or the class of one's own that stands in the place of ours."""
        choice, (home, _, name) = self.choices.get("model", ""), self.model.target.rpartition(".")
        return choice if choice not in ("mlp", "perceptron") or home.startswith("manyfit.") else name

    def flat(self) -> dict[str, Any]:
        """The config as dotted keys, as the user wrote it: interpolations such as ${oc.env:KEY} stay unresolved."""
        return dict(flattened(self.source, ""))

    def stands(self) -> Iterator[Stand]:
        """Its interpolations, see `shown`."""
        return paired(self.model_dump(by_alias=True), self.source)

    def yaml(self) -> str:
        """The config as YAML, as the user wrote it."""
        return to_yaml(dict(self.source))

    def title(self) -> str:
        """What a person calls this run: `adam lr=0.003 b=64 s=0`, with what else differs from the usual."""
        if self.guests.model:
            return self._title_of_guest()
        parts = [self.choices.get("optimizer", self.optimizer.target.rsplit(".")[-1]), f"lr={self.optimizer.lr:g}"]
        parts.append(f"b={self.batch_size}")
        model = self.model.arguments
        if (network := self.network or "mlp") != "mlp":
            parts.append(network)
        hidden, usual = model.get("hidden"), {"mlp": [64, 64], "perceptron": []}
        if isinstance(hidden, list | tuple) and hidden != usual.get(network):
            parts.append("x".join(map(str, hidden)) or "linear")
        if model.get("activation", "relu") != "relu":
            parts.append(str(model["activation"]))
        if isinstance(p := model.get("dropout"), int | float) and p:
            parts.append(f"p={p:g}")
        if self.optimizer.weight_decay:
            parts.append(f"wd={self.optimizer.weight_decay:g}")
        if self.choices.get("schedule", "constant") != "constant":
            parts.append(self.choices["schedule"])
        return " ".join([*parts, *self._of_the_data(), f"s={self.seed}"])

    def _of_the_data(self) -> list[str]:
        """What is unusual about them."""
        said = [f"noise={self.data.label_noise:g}"] if self.data.label_noise else []
        if self.choices.get("data") == "csv":  # of one table several columns may be predicted
            said.append(f"target={self.data.arguments['target']}")
        said += [f"n={self.data.train_size}"] if self.data.train_size else []
        return said + ([f"fold={self.data.fold}"] if self.data.folds else [])

    def _title_of_guest(self) -> str:
        """`Net width=32 s=0`, with the optimizer where it is ours to choose."""
        given = {**self.model.arguments, **(self.data.arguments if self.guests.data else {})}
        said = [f"{key}={value}" for key, value in given.items() if isinstance(value, str | int | float)]
        if "optimizer" not in self.guests.decided:
            said += [self.choices.get("optimizer", "optimizer"), f"lr={self.optimizer.lr:g}"]
        said += [f"b={self.batch_size}"] if "batch_size" not in self.guests.decided else []
        said += self._of_the_data()
        return " ".join([self.network or self.model.target.rpartition(".")[2], *said, f"s={self.seed}"])


def parse(
    cfg: DictConfig | dict[str, Any], choices: Mapping[str, str | None] | None = None, overrides: Sequence[str] = ()
) -> Config:
    """Check what Hydra composed and freeze it.

    Args:
        cfg: The composed config; a dict has no interpolations.
        choices: The chosen option of each group (Hydra's runtime choices).
        overrides: What the command line says.

    Raises:
        ConfigError: A value is missing, of the wrong type or out of range; the message names its full key.
    """
    tree = cfg if isinstance(cfg, dict) else _container(cfg)
    refuse_passwords({key: node for key, node in tree.items() if key != "hydra"})
    if asked := missing(tree):
        raise ConfigError(f"{' and '.join(asked)} must be given, such as {asked[0]}=...")
    if tree.get("resume") is not None:
        raise ConfigError("resume must be given to a single run: a sweep that was stopped is started again as it was.")
    if (again := tree.get("autoresume", False)) not in (True, False):
        raise ConfigError(f"autoresume must be true or false, but got {again!r}.")
    if again and tree.get("tracking", {}).get("kind") == "off":
        raise ConfigError("autoresume must be false with tracking=off, which keeps no run to go on with, but got true.")
    trusted = tree.get("trusted") or []
    if not (isinstance(trusted, list | tuple) and all(isinstance(module, str) for module in trusted)):
        raise ConfigError(f"trusted must be a list of modules, such as [mylab.nets], but got {trusted!r}.")
    values, source = _trees(cfg)
    with as_written(lambda: paired(values, source)):
        return _parsed(values, source, trusted, choices or {}, overrides)


def _parsed(
    values: Mapping[str, Any],
    source: Mapping[str, Any],
    trusted: Sequence[str],
    choices: Mapping[str, str | None],
    overrides: Sequence[str],
) -> Config:
    require_all_trusted(values, trusted)
    guests = guest.guests(values)
    decided = list(guests.decided)
    guest.require_left_out(overrides, guests.decided)
    picked = {k: v for k, v in choices.items() if v is not None and not k.startswith("hydra")}
    known = {"choices": {k: v for k, v in picked.items() if k not in decided}, "guests": guests}
    known |= {"source": guest.without(source, decided), "trusted": trusted}
    known |= {key: part for key, part in ITS_OWN.items() if key in decided}
    try:
        parsed = Config.model_validate(guest.without(values, decided) | known)
    except ValidationError as error:
        raise ConfigError("\n".join(sorted({sentence(e) for e in error.errors()}))) from None
    _check_together(parsed)
    return parsed


def missing(tree: Mapping[str, Any]) -> list[str]:
    """The keys that only the user can give: they stand in conf/ as ???."""
    return [key for key, value in flattened({k: v for k, v in tree.items() if k != "hydra"}, "") if value == "???"]


def flat_of(cfg: DictConfig) -> dict[str, Any]:
    """What Hydra composed as `Config.flat` would have it, whether or not it is a config that can be used."""
    return dict(flattened(_container(_of_the_run(cfg)), ""))


def _of_the_run(cfg: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in ASIDE])


def _trees(cfg: DictConfig | dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the run is made of, with its interpolations resolved, and as written."""
    if isinstance(cfg, dict):
        tree = {key: value for key, value in cfg.items() if key not in ASIDE}
        return tree, tree
    cfg = _of_the_run(cfg)
    source = _container(cfg)
    try:
        return _container(cfg, resolve=True), source
    except OmegaConfBaseException as error:
        raise ConfigError(not_found(error, source)) from None


def not_found(error: OmegaConfBaseException, source: Mapping[str, Any]) -> str:
    """That an interpolation stands for nothing; which names no more than is written, where it is made of others."""
    key = error.full_key or "a value"
    written = str(dict(flattened(source, "")).get(key, ""))
    why = str(error).splitlines()[0] if written.count(MARK) == 1 and "not found" in str(error) else ""
    return f"{key} must be given: {why or 'what it is written as cannot be looked up'}{written and f', {written}'}."


def _container(cfg: DictConfig, resolve: bool = False) -> dict[str, Any]:
    tree = OmegaConf.to_container(cfg, resolve=resolve, throw_on_missing=resolve)
    assert isinstance(tree, dict)
    return {str(key): node for key, node in tree.items()}


def with_seed(config: Config, seed: int) -> Config:
    """The same config with another seed, in what is logged as well."""
    source = copy.deepcopy(dict(config.source))
    if source:
        source["seed"] = seed
    return config.model_copy(update={"seed": seed, "source": source})


def sentence(error: Any) -> str:
    """One pydantic error in the form of the house: key, what must hold, what was got."""
    path = [
        str(part) for part in error["loc"] if not str(part).startswith(("literal", "constrained", "int", "function"))
    ]
    condition = re.sub(r"^(Input|Value error,|String|List) ?(should |must )?", "", error["msg"])
    for kind in ("be a valid tuple", "be an instance of Sequence"):
        condition = condition.replace(kind, "be a list, such as [a,b]")
    condition = condition.replace("greater than or equal to", ">=").replace("less than or equal to", "<=")
    condition = condition.replace("greater than", ">").replace("less than", "<").split(", unable")[0]
    if error["type"] == "extra_forbidden":
        return f"{'.'.join(path)} must be a key of the config, but there is no such key."
    if error["type"] == "missing":
        return f"{'.'.join(path)} must be given, but it is missing."
    return f"{'.'.join(path)} must {condition}, but got {error['input']!r}."


def refuse_passwords(tree: Mapping[str, Any]) -> None:
    """Raise ConfigError if a config, as written, holds a password under any key."""
    for key in secrets.held_by(tree):
        raise ConfigError(
            f"{key} must hold no password, since configs are written down. Put it into an environment variable: "
            f"{key}='${{oc.env:MY_SECRET}}'."
        )


def _check_together(config: Config) -> None:
    lbfgs = config.optimizer.target.endswith(".LBFGS")
    if lbfgs and config.batch_size != "full":
        raise ConfigError(f"batch_size must be full with optimizer lbfgs, but got {config.batch_size}.")
    if not config.guests.model:
        if config.trainer.accumulate > 1:
            raise ConfigError(
                f"trainer.accumulate must be 1, since it is for a LightningModule alone, but got "
                f"{config.trainer.accumulate}. A batch_size as many times as large is the same step."
            )
        for split, name in config.model.curves:
            if name is not None:
                raise ConfigError(
                    f"model.curves.{split} must be null, since it is for a LightningModule alone, but got {name!r}. "
                    "Leave it out."
                )
    _check_folds(config.data)
    if config.data.val_fraction + config.data.test_fraction >= 1:
        total = config.data.val_fraction + config.data.test_fraction
        raise ConfigError(f"data.val_fraction + data.test_fraction must be < 1, but got {total:g}.")


def _check_folds(data: DataConfig) -> None:
    if data.folds is None and data.fold is not None:
        raise ConfigError(f"data.fold must be null without data.folds, but got {data.fold}. Add data.folds=5.")
    if data.folds is None:
        return
    if data.fold is None:
        raise ConfigError(
            f"data.folds must stand on the command line of a run or a grid, which trains each of the {data.folds}; or "
            "say which: data.fold=0."
        )
    if data.fold >= data.folds:
        raise ConfigError(f"data.fold must be < {data.folds}, which data.folds says, but got {data.fold}.")
    if data.test_fraction != DataConfig.model_fields["test_fraction"].default:
        raise ConfigError(
            f"data.test_fraction must be left out with data.folds, but got {data.test_fraction}: a fold is tested on, "
            f"which is 1/{data.folds} of the rows."
        )
    if data.val_fraction + 1 / data.folds >= 1:
        raise ConfigError(
            f"data.val_fraction must be < {1 - 1 / data.folds:g} with data.folds={data.folds}, but got "
            f"{data.val_fraction}: what is left is trained on."
        )


def flattened(node: Any, prefix: str) -> Sequence[tuple[str, Any]]:
    """The leaves of a tree by their dotted keys."""
    if isinstance(node, Mapping) and node:
        return [pair for key, value in node.items() for pair in flattened(value, f"{prefix}.{key}" if prefix else key)]
    return [(prefix, node)]
