"""Which modules a config may name: naming one runs it."""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

from manyfit.config import place
from manyfit.config.errors import ConfigError

TRUSTED = ("manyfit", "torch.nn", "torch.optim", "optuna", "pytorch_lightning", "lightning")


def require_trusted(path: str, key: str, trusted: Sequence[str]) -> None:
    """Judge a dotted name before it is imported, since a module runs when it is.

    Args:
        path: The name.
        key: Of the config, where it stands.
        trusted: Modules that the user vouches for, with all that is in them.

    Raises:
        ConfigError: Its module is neither trusted nor the user's own.
    """
    if any(path.startswith(f"{module}.") for module in (*TRUSTED, *trusted)) or _is_beside(path.partition(".")[0]):
        return
    known = f"{key} must be of a module {place.modules()}, or of {', '.join(TRUSTED)}, but got {path!r}"
    if not _spec(path.partition(".")[0]):
        raise ConfigError(f"{known}, and there is no module of that name.")
    raise ConfigError(
        f"{known}, whose module would be run. If you trust it: trusted=[{path.rpartition('.')[0] or path}]."
    )


def _is_beside(top: str) -> bool:
    """Whether a top-level module is a file or folder of the command's, or of the working directory; runs nothing."""
    spec = _spec(top)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if spec and spec.has_location:  # else its origin is no file: built-in, frozen
        places.append(str(spec.origin))
    return any(Path(place).parent.resolve() in (Path(sys.path[0]).resolve(), Path.cwd()) for place in places)


def _spec(top: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(top)
    except ValueError:  # no name, or no file: __main__
        return None
