"""What `run.py --help` says of every key: the files of conf/ themselves, whose comments explain them."""

from collections.abc import Mapping
from pathlib import Path


def keys(conf: Path, choices: Mapping[str, str | None]) -> str:
    """The keys of config.yaml without Hydra's, and those of each chosen option, as they stand in their files.

    Args:
        conf: The folder.
        choices: The chosen option of each group; Hydra's own groups are left out, and what is none.
    """
    own = (conf / "config.yaml").read_text().partition("\n\n")[2].partition("\nhydra:\n")[0]
    chosen = [(group, option) for group, option in choices.items() if not group.startswith("hydra/")]
    files = [_option(conf, group, option) for group, option in reversed(chosen) if option not in (None, "none")]
    return "\n\n".join([own.rstrip(), *files]).replace("$", "$$")  # which Hydra's template takes for its own


def _option(conf: Path, group: str, option: str | None) -> str:
    file = conf / group / f"{option}.yaml"
    lines = file.read_text().rstrip().splitlines() if file.exists() else [f"# not in {conf}"]
    return "\n".join([f"{group}:  # {option}", *(f"  {line}" for line in lines)])
