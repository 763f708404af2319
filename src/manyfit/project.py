"""A project of one's own, for a team to start from: made once from the files in template/, and theirs from then on."""

import importlib.metadata
import shlex
import shutil
from pathlib import Path

from manyfit.config.errors import ConfigError
from manyfit.config.place import require_writable

TEMPLATE = Path(__file__).parent / "template"


def create(folder: Path) -> str:
    """Make the folder; returns what to do next.

    Raises:
        ConfigError: It exists, or cannot be made.
    """
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"NAME must be a new folder, but got {folder}, which exists. Choose another.")
    require_writable(folder)
    shutil.copytree(TEMPLATE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    readme = folder / "README.md"
    said = readme.read_text().replace("NAME\n", f"{folder.name}\n", 1)
    readme.write_text(said.replace("VERSION", importlib.metadata.version("manyfit")))
    made = "\n".join(f"  {path.relative_to(folder)}" for path in sorted(folder.rglob("*")) if path.is_file())
    first = f"  cd {shlex.quote(str(folder))}\n  manyfit run model=mine"
    return f"{folder} is there:\n{made}\n\n{first}\n\nIts README.md says more."
