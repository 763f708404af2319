"""Where this process is: how it was called, where its options lie, on what kind of machine it runs."""

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from manyfit.config.errors import ConfigError


def called() -> str:
    """What a person types to have the same again: `python run.py` in a checkout, else `manyfit run`."""
    return "python run.py" if Path(sys.argv[0]).name == "run.py" else "manyfit run"


def modules() -> str:
    """Where the modules of one's own lie that a config may name, in words."""
    return "in this folder" if called() == "manyfit run" else "beside run.py"


def options() -> Path:
    """The folder of config.yaml: a wheel has it in the package, a checkout at its top."""
    package = Path(__file__).parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def folders() -> list[Path]:
    """Where `manyfit run` looks for options, the first first: conf/ of the working directory, if it is there."""
    own = Path.cwd() / "conf"
    return [*([own] if own.is_dir() and own.resolve() != options().resolve() else []), options()]


def cache() -> Path:
    """The user's folder for what can be made again; it may not exist, or not be writable."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "manyfit"


def cores() -> int:
    """How many this process may use; on macOS, which does not say, those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory(root: Path = Path("/")) -> int:
    """How many bytes this process may still take: of the machine, of its control groups, of its own address space.

    Args:
        root: Of the file system in which Linux tells; where nobody does, there is no limit.
    """
    left = [1024 * size for size in _numbers(root / "proc/meminfo", "MemAvailable")]
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        left += [limit - 1024 * size for size in _numbers(root / "proc/self/status", "VmSize")]
    return max(0, min([*left, *_of_groups(root)], default=sys.maxsize))


def spare_addresses() -> None:
    """Where addresses are limited (`ulimit -v`) threads share what they reserve, and what is freed is given back.

    glibc's malloc reserves 64 MB for each thread, and keeps what is freed in pieces that nothing large fits into.
    """
    if sys.platform == "linux" and resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        options = {"MALLOC_ARENA_MAX": (-8, 1), "MALLOC_MMAP_THRESHOLD_": (-3, 2**20)}  # of malloc.h
        os.environ |= {name: str(value) for name, (_, value) in options.items()} | os.environ  # of workers
        library = ctypes.CDLL(None)
        for option in options.values() if hasattr(library, "mallopt") else ():
            library.mallopt(*option)


def _of_groups(root: Path) -> Iterator[int]:
    """What each control group that this process is in leaves, cgroup v2 and v1; caches of files give way."""
    groups = root / "proc/self/cgroup"
    for _, kinds, path in (line.split(":", 2) for line in (groups.read_text().split() if groups.exists() else ())):
        if kinds in ("", "memory"):
            base = root / "sys/fs/cgroup" / kinds
            limit, used = ("limit_in_bytes", "usage_in_bytes") if kinds else ("max", "current")
            folder = base / path.strip("/")
            for place in (base, *(p for p in (folder, *folder.parents) if p.is_relative_to(base) and p != base)):
                cached = sum(_numbers(place / "memory.stat", "total_inactive_file" if kinds else "inactive_file"))
                limits, uses = (_numbers(place / f"memory.{name}", "") for name in (limit, used))
                yield from (most - now + cached for most, now in zip(limits, uses, strict=False))


def _numbers(path: Path, name: str) -> list[int]:
    """The number behind a name, alone in its line, in a file of the system; none where there is none."""
    try:
        lines = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    except OSError:
        return []
    found = [line[1:] if name else line for line in lines if not name or line[:1] == [name]]
    return [int(words[0]) for words in found if words and words[0].isdigit()]


def require_writable(folder: Path) -> None:
    """Raise ConfigError unless files can be put into a folder, which need not exist yet."""
    present = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not (present.is_dir() and os.access(present, os.W_OK | os.X_OK)):
        raise ConfigError(
            f"{folder} must be a folder that can be written, but got {present}. Start from another folder."
        )


def require_posix() -> None:
    """End the process on Windows, which has neither the signals nor the locks that runs are kept safe with."""
    if sys.platform == "win32":
        sys.exit("error: manyfit must run on Linux or macOS, but got Windows. Use it in WSL: wsl --install.")
