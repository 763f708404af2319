"""A config that was stored, with a run or its state: anybody may have written it, so it says what to train, no more."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from manyfit.config.earlier import DROPPED
from manyfit.config.errors import ConfigError
from manyfit.config.schema import flattened
from manyfit.config.shown import MARK


def restored(source: Any, said: Mapping[str, Any], key: str, advice: str) -> DictConfig:
    """The tree to be parsed, with what the command says in the place of what is stored.

    Its modules are trusted if they are without it: the command says what `trusted` is.

    Args:
        source: As it was stored: a tree, or YAML.
        said: By dotted key: values as written, or parts of the tree.
        key: Of the command, which names the run.
        advice: What to do about an interpolation; has {name} and {value}.

    Raises:
        ConfigError: It is no config, or holds an interpolation that the command does not say: none is looked up.
    """
    try:
        tree = OmegaConf.create(source)
        assert isinstance(tree, DictConfig)
        _without_dropped(tree)
        for name, value in said.items():
            OmegaConf.update(tree, name, value, merge=False)
    except (AssertionError, AttributeError, ValueError, OmegaConfBaseException, YAMLError, RecursionError):
        raise ConfigError(f"{key} must name a run with a config, but got one whose config is none.") from None
    for name, value in flattened(OmegaConf.to_container(tree), ""):
        if MARK in str(value) and not any(f"{name}.".startswith(f"{own}.") for own in said):
            raise ConfigError(
                f"{name} must be written out in a stored config, whose {MARK}...}} is not looked up, but got {value}. "
                + advice.format(name=name, value=value)
            )
    return tree


def _without_dropped(tree: DictConfig) -> None:
    for group, _, key in (dropped.rpartition(".") for dropped in DROPPED):
        (OmegaConf.select(tree, group) or {}).pop(key, None)
