"""A config that was stored, with a run or its state: anybody may have written it, so it says what to train, no more."""

from collections.abc import Iterable, Mapping
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
        tree = OmegaConf.to_container(OmegaConf.create(source))
        assert isinstance(tree, dict)
        _forget(tree, said)
        _require_written_out(tree, advice)
        found = OmegaConf.create(tree)
        for name, value in said.items():
            OmegaConf.update(found, name, value, merge=False)
    except ConfigError:
        raise
    except (AssertionError, AttributeError, ValueError, OmegaConfBaseException, YAMLError, RecursionError):
        raise ConfigError(f"{key} must name a run with a config, but got one whose config is none.") from None
    return found


def _forget(tree: dict[Any, Any], said: Iterable[str]) -> None:
    """Take out what is said anew, whose place is kept, and what nothing says any more."""
    for name in (*DROPPED, *said):
        *path, last = name.split(".")
        node: Any = tree
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and last in node:
            node[last] = None
            if name in DROPPED:
                del node[last]


def _require_written_out(tree: Mapping[Any, Any], advice: str) -> None:
    """While it is plain: a `DictConfig` looks up what it is asked for."""
    for name, value in flattened(tree, ""):
        if MARK in str(value):
            raise ConfigError(
                f"{name} must be written out in a stored config, whose {MARK}...}} is not looked up, but got {value}. "
                + advice.format(name=name, value=value)
            )
