"""The code of one's own that a config names: where it has changed, the same config is another run."""

import inspect
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from manyfit.config.trust import is_a_librarys, resolved


def is_own(file: str) -> bool:
    """Whether a file is neither ours nor an installed library's."""
    homes = str(Path(__file__).parents[1]), *map(sysconfig.get_path, ("stdlib", "purelib", "platlib"))
    return not file.startswith("<") and not any(Path(file).is_relative_to(home) for home in homes)


def files(names: Iterable[str]) -> list[str]:
    """The files of one's own that define what dotted names stand for, and the classes that it is made of.

    The whole file, since any line of it may matter; but not what it imports, such as other files of its package.
    """
    own = {name for name in names if "." in name and not is_a_librarys(name)}
    there = (getattr(sys.modules.get(module), "__file__", None) for name in own for module in _modules(name))
    return sorted({file for file in there if file and is_own(file) and Path(file).is_file()})


def _modules(name: str) -> Iterator[str]:
    """That it is found in, and those that define it."""
    found: Any = resolved(name)
    yield name.rpartition(".")[0]
    for part in inspect.getmro(found) if inspect.isclass(found) else (found,):
        yield str(getattr(part, "__module__", None))
