"""A LightningModule or LightningDataModule of the user's own, which trains itself, or splits its own data.

It decides some of the config itself: those keys are then neither taken nor written down.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from manyfit.config.errors import ConfigError
from manyfit.config.trust import resolved

MODULE = ("loss", "probes", "metrics", "metrics_at", "eval_train_size", "trainer.engine", "trainer.cuda_graph")
OPTIMIZERS = ("optimizer", "schedule")
DATA = (
    "split_seed",
    "val_fraction",
    "test_fraction",
    "train_size",
    "label_noise",
    "standardise",
    "target_scale",
    "folds",
    "fold",
)
PACKAGES = ("lightning", "pytorch_lightning")
OURS = ("manyfit.", "torch.")


@dataclass(frozen=True)
class Guests:
    """What is Lightning's of a config.

    Attributes:
        model: Whether it is a LightningModule.
        data: Whether they are a LightningDataModule.
        decided: The keys that they decide, and which class does.
        defaults: What their constructors take where the config says nothing, by dotted key.
    """

    model: bool = False
    data: bool = False
    decided: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)


def guests(tree: Mapping[str, Any]) -> Guests:
    """Find out.

    Imports what `model` and `data` name, which is trusted, if that is not ours or torch's.

    Raises:
        ConfigError: One of them is not there; or the model cannot train on data that split themselves.
    """
    model, data = (_of_lightning(tree.get(group), group) for group in ("model", "data"))
    decided: dict[str, str] = {}
    trains, splits = _is(model, "LightningModule"), _is(data, "LightningDataModule")
    for group, cls, found in (("model", model, trains), ("data", data, splits)):
        if found and "pytorch_lightning" not in _homes(cls):
            raise ConfigError(
                f"{group} must be of the package pytorch_lightning, which trains here, but {cls.__name__} is of the "
                "package lightning. Import pytorch_lightning in its file: what it has is the same."
            )
    if trains:
        own = "configure_optimizers" in {name for cls in _users(model) for name in vars(cls)}
        decided |= dict.fromkeys((*MODULE, *OPTIMIZERS * own), model.__name__)
    if splits:
        if not trains:
            _resolved("model", str(tree["model"].get("_target_")))  # which says so if it is not there
            raise ConfigError(
                f"model must be a LightningModule with data that split themselves, as {data.__name__} does, but got "
                f"{tree['model'].get('_target_')}. Name yours: model._target_=..., or give the data as data=arrays."
            )
        asked = inspect.signature(data).parameters
        keys = [f"data.{key}" for key in DATA if key not in asked]
        own = "batch_size" not in asked or "batch_size" in tree["data"]  # which an option of conf/data may set
        decided |= dict.fromkeys((*keys, *["batch_size"] * own), data.__name__)
    defaults = _defaults("model", model) if trains else {}
    defaults |= _defaults("data", data) if splits else {}
    return Guests(trains, splits, decided, {key: v for key, v in defaults.items() if key not in decided})


def _defaults(group: str, cls: type) -> dict[str, Any]:
    """What a constructor takes where nobody says otherwise, by dotted key; plain values alone."""
    known = {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}
    plain = str | int | float | bool | None
    given = ("batch_size", "seed") if group == "data" else ()  # by the config
    return {f"{group}.{n}": v for n, v in known.items() if isinstance(v, plain) and n not in (*given, *DATA)}


def require_left_out(overrides: Sequence[str], decided: Mapping[str, str]) -> None:
    """Raise ConfigError where overrides, or the keys of a space, set what is decided elsewhere."""
    for given in (override.partition("=")[0].lstrip("+~") for override in overrides):
        for key, name in decided.items():
            if f"{given}.".startswith(f"{key}."):
                raise ConfigError(f"{given} must be left out: {_why(key, name)}")


def _why(key: str, name: str) -> str:
    if key in MODULE and key != "loss":
        return f"{name} is a LightningModule, trained by a Trainer of its own, which knows no {key}."
    group = "data" if key.startswith("data.") or key == "batch_size" else "model"
    return f"{name} decides {key} itself. What its constructor takes is set by {group}.NAME=..."


def without(tree: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """A tree without these dotted keys."""
    found: dict[str, Any] = {}
    for name, node in tree.items():
        inner = [key.partition(".")[2] for key in keys if key.startswith(f"{name}.")]
        if name not in keys:
            found[name] = without(node, inner) if inner and isinstance(node, Mapping) else node
    return found


def is_lightnings(cls: type, name: str = "LightningModule") -> bool:
    """Whether a class is one of Lightning's, of either of its packages; by name, since they take seconds to import."""
    named = [base.__module__.partition(".")[0] for base in cls.__mro__ if base.__name__ == name]
    return any(home in PACKAGES for home in named)


def _is(cls: Any, name: str) -> bool:
    return cls is not None and is_lightnings(cls, name)


def _homes(cls: type) -> set[str]:
    """The packages that its classes are of."""
    return {base.__module__.partition(".")[0] for base in cls.__mro__}


def _users(cls: type) -> list[type]:
    """The classes that it is made of, but Lightning's and torch's."""
    return [base for base in cls.__mro__ if base.__module__.partition(".")[0] not in (*PACKAGES, "torch")]


def _resolved(group: str, target: str) -> Any:
    """What a group names."""
    try:
        return resolved(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{group}._target_ must name something that can be imported, but got {target!r} ({error})."
        ) from None


def _of_lightning(node: Any, group: str) -> Any:
    """The class that a group names, if it may be Lightning's; what cannot be imported is refused where it is built."""
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if not isinstance(target, str) or target.startswith(OURS):
        return None
    try:
        found = _resolved(group, target)
    except ConfigError:
        return None
    return found if inspect.isclass(found) else None
