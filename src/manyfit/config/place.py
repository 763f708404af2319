"""Where this process is: how it was called, where its options lie, on what kind of machine it runs."""

import os
import sys
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
