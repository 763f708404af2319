"""What `--help` says of every key: the files of conf/ themselves, whose comments explain them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from manyfit.config import place


def keys(folders: Sequence[Path], choices: Mapping[str, str | None]) -> str:
    """The keys of config.yaml without Hydra's, and those of each chosen option, as they stand in their files.

    Args:
        folders: Of options; the first that has a file wins.
        choices: The chosen option of each group; Hydra's own groups are left out, and what is none.
    """
    own = _file(folders, "config.yaml").partition("\n\n")[2].partition("\nhydra:\n")[0]
    chosen = [(group, option) for group, option in choices.items() if not group.startswith("hydra/")]
    files = [_option(folders, group, option) for group, option in reversed(chosen) if option not in (None, "none")]
    said = "\n\n".join([own.rstrip(), *files]).replace("python run.py", place.called())
    return said.replace("$", "$$")  # which Hydra's template takes for its own


def _option(folders: Sequence[Path], group: str, option: str | None) -> str:
    lines = _file(folders, f"{group}/{option}.yaml").rstrip().splitlines()
    return "\n".join([f"{group}:  # {option}", *(f"  {line}" for line in lines)])


def _file(folders: Sequence[Path], name: str) -> str:
    files = [folder / name for folder in folders if (folder / name).is_file()]
    return files[0].read_text() if files else f"# not in {', '.join(map(str, folders))}"
