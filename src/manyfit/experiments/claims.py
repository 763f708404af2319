"""Claims: functions from the runs of an experiment to a verdict."""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from manyfit.config.errors import ConfigError
from manyfit.config.trust import require_trusted, resolved
from manyfit.experiments.runs import Run
from manyfit.experiments.verdict import Verdict

Claim = Callable[[Sequence[Run]], Verdict]


def find(name: str, folders: Sequence[Path], trusted: Sequence[str] = ()) -> Claim:
    """The function that judges a claim.

    Args:
        name: Of a function in the file of that name beside the experiments' YAMLs, or your own by its dotted name.
        folders: Of the groups of options, such as conf/.
        trusted: See `trust.require_trusted`; a file beside a YAML that was chosen is trusted.

    Raises:
        ConfigError: There is none, its module is not trusted, or it is not annotated to return a Verdict.
    """
    files = [folder / "experiment" / f"{name}.py" for folder in folders]
    try:
        if "." in name:
            require_trusted(name, "claim", trusted)
            found = resolved(name)
        else:
            found = getattr(load(next(file for file in files if file.exists())), name)
    except StopIteration:
        known = sorted(file.stem for folder in folders for file in (folder / "experiment").glob("*.py"))
        raise ConfigError(
            f"claim must be one of {', '.join(known)}, or the dotted name of a function of yours, but got {name!r}."
        ) from None
    except ConfigError:
        raise
    except Exception as error:  # of whatever the file does
        raise ConfigError(f"claim must name a function that can be imported, but got {name!r} ({error}).") from None
    if not (inspect.isfunction(found) and inspect.get_annotations(found, eval_str=True).get("return") is Verdict):
        raise ConfigError(f"claim must name a function that is annotated to return a Verdict, but got {name!r}.")
    return found


def load(file: Path) -> ModuleType:
    """The module of a file that lies beside an experiment's YAML."""
    spec = importlib.util.spec_from_file_location(f"experiment_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def task_of(claim: Claim) -> str | None:
    """The one task that a claim is about, as `about` says; None: any."""
    return getattr(claim, "task", None)


def looks_at_networks(claim: Claim) -> bool:
    """Whether the networks of its runs are kept for it, as `with_networks` says."""
    return getattr(claim, "networks", False)
