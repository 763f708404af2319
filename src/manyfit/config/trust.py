"""Which modules a config may name: naming one runs it."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from manyfit.config import place
from manyfit.config.earlier import today
from manyfit.config.errors import ConfigError

TRUSTED = ("manyfit", "torch.nn", "torch.optim", "optuna", "pytorch_lightning", "lightning")
OTHERS = ("mlruns",)  # folders here whose files need not be one's own: a store's artifacts


def require_trusted(path: str, key: str, trusted: Sequence[str]) -> None:
    """Judge a dotted name before it is imported, since a module runs when it is.

    Args:
        path: The name.
        key: Of the config, where it stands.
        trusted: Modules that the user vouches for, with all that is in them.

    Raises:
        ConfigError: Its module is neither trusted nor the user's own, or it is private.
    """
    top, *parts = path.split(".")
    vouched = any(path.startswith(f"{module}.") for module in trusted) or _is_beside(top)
    if all(part.isidentifier() for part in (top, *parts)) and (vouched or _library(path)):
        if any(part.startswith("__" if vouched else "_") for part in parts):
            raise ConfigError(f"{key} must be public, but got {path!r}. Name what its module shows.")
        return
    known = f"{key} must be of a module {place.modules()}, or of {', '.join(TRUSTED)}, but got {path!r}"
    if not _spec(top):
        raise ConfigError(f"{known}, and there is no module of that name.")
    raise ConfigError(
        f"{known}, whose module would be run. If you trust it: trusted=[{path.rpartition('.')[0] or path}]."
    )


def require_all_trusted(tree: Any, trusted: Sequence[str]) -> None:
    """Judge every `_target_` of a tree, however deep, before any is imported; raises ConfigError.

    Who builds a part looks at what its own name stands for; of those further down nobody knows who will build them.
    """
    found = [(key, str(target)) for key, target in targets(tree)]
    for key, target in found:
        require_trusted(target, key, trusted)
    for key, target in found:
        if key.count(".") > 1:
            require_there(target, key)


def require_there(path: str, key: str) -> None:
    """Raise ConfigError unless a trusted name stands for something."""
    try:
        resolved(path)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key} must name something that can be imported, but got {path!r} ({error}).") from None


def targets(node: Any, key: str = "", words: Sequence[str] = ("_target_",)) -> Iterator[tuple[str, Any]]:
    """What stands under `_target_` in a tree and in its lists, by dotted key."""
    inner = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list | tuple) else ()
    for name, value in inner:
        full = f"{key}.{name}" if key else str(name)
        if name in words:
            yield full, value
        else:
            yield from targets(value, full, words)


def resolved(path: str) -> Any:
    """What a trusted name stands for.

    Modules are imported by names of their own: none is reached through another that has imported it. What a library
    of `TRUSTED` is asked for has to be its own, too.

    Raises:
        ImportError: It is not there, or is another module's.
        AttributeError: Likewise.
    """
    path = today(path)
    module, *parts = path.split(".")
    found = importlib.import_module(module)
    while parts:
        try:
            found = importlib.import_module(f"{module}.{parts[0]}")
        except ModuleNotFoundError as error:
            if error.name != f"{module}.{parts[0]}":
                raise
            break
        module = f"{module}.{parts.pop(0)}"
    for part in parts:
        found, module = getattr(found, part), f"{module}.{part}"
        if inspect.ismodule(found):
            raise ImportError(f"{module} is the module {found.__name__}, to be named by itself")
    home, library = str(getattr(found, "__module__", None)), _library(path)
    if library and not f"{home}.".startswith(f"{library}."):
        raise ImportError(f"it is of {home}, to be named there")
    return found


def is_a_librarys(path: str) -> bool:
    """Whether a dotted name is ours, or of a library that everybody trusts."""
    return _library(path) is not None


def _library(path: str) -> str | None:
    """Which of `TRUSTED` a name is of."""
    return next((module for module in TRUSTED if path.startswith(f"{module}.")), None)


def _is_beside(top: str) -> bool:
    """Whether a top-level module is a file or folder of the command's, or of the working directory; runs nothing."""
    spec = _spec(top) if top not in OTHERS else None
    places = list(spec.submodule_search_locations or ()) if spec else []
    if spec and spec.has_location:  # else its origin is no file: built-in, frozen
        places.append(str(spec.origin))
    return any(Path(place).parent.resolve() in (Path(sys.path[0]).resolve(), Path.cwd()) for place in places)


def _spec(top: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(top)
    except ValueError:  # no name, or no file: __main__
        return None
