"""What a refusal shows: an interpolation such as ${oc.env:KEY} as it is written, never what it stands for."""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from manyfit.config.errors import ConfigError

MARK = "${"
Stand = tuple[str, str, Any]
"""A dotted key, the interpolation that is written there, and what it stands for."""


@contextlib.contextmanager
def as_written(stands: Callable[[], Iterable[Stand]]) -> Iterator[None]:
    """What is refused within is told without what interpolations stand for.

    Args:
        stands: Asked only if something is refused.
    """
    try:
        yield
    except ValueError as error:
        known = list(stands())
        said = "\n".join(_told(line, known) for line in str(error).split("\n"))
        if said == str(error):
            raise
        raise ConfigError(said) from None  # the first one would be shown beside it


def paired(values: Any, source: Any, key: str = "") -> Iterator[Stand]:
    """The interpolations of a tree as written, with what stands in their place in the tree of values."""
    if isinstance(source, str) and MARK in source:
        yield key, source, values
    inner = source.items() if isinstance(source, Mapping) else enumerate(source) if isinstance(source, list) else ()
    for name, node in inner:
        try:
            value = values[name]
        except (KeyError, IndexError, TypeError):  # which is not there, as nobody could look it up
            value = None
        yield from paired(value, node, f"{key}.{name}" if key else str(name))


def looked_up(cfg: DictConfig) -> Iterator[Stand]:
    """Those of a composed config but for Hydra's own part."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    for key, written, _ in paired({}, OmegaConf.to_container(own)):
        with contextlib.suppress(Exception):  # whatever a resolver raises: then there is nothing to hide
            found = OmegaConf.select(own, key)
            yield key, written, OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found


def _told(line: str, stands: Sequence[Stand]) -> str:
    """A line of a refusal: what its own key has as written, and what others stand for, wherever it is."""
    for key, written, _ in stands:
        must, but, _ = line.partition(", but ")
        if but and f"{must.split(' ')[0]}.".startswith(f"{key}."):
            line = f"{must}, but got {written}."
    texts = {text: written for _, written, value in stands for text in _texts(value)}
    for text in sorted(texts, key=len, reverse=True):
        line = re.sub(rf"(?<!\w){re.escape(text)}(?!\w)", lambda _, text=text: texts[text], line)  # type: ignore[misc]
    return line


def _texts(value: Any) -> Iterator[str]:
    """The ways in which a message may write a value, or the parts of one."""
    if isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)
        return
    yield from filter(None, (str(value), repr(value)))
    if isinstance(value, float):
        yield f"{value:g}"
    if isinstance(value, str) and "/" in value:
        path = Path(value)
        yield from filter(None, (path.name, path.stem, str(path.expanduser().parent)))
