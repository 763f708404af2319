"""Claims put to the test: from the finished runs of an experiment, read back from the store, to a verdict."""

import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from manyfit.config.schema import ConfigError, require_trusted, today
from manyfit.experiments.runs import Run, by, curve, differences, line, parsed
from manyfit.experiments.verdict import Chart, Region, Series, Verdict, about, all_of, decide, holm, with_networks
from manyfit.statistics import Effect, effect

if TYPE_CHECKING:
    from manyfit.tracking.reading import StoredRun
    from manyfit.training.prepared import Job, Result

__all__ = [
    "Chart",
    "Claim",
    "Effect",
    "Region",
    "Run",
    "Series",
    "Verdict",
    "about",
    "all_of",
    "by",
    "curve",
    "decide",
    "differences",
    "effect",
    "find",
    "holm",
    "line",
    "looks_at_networks",
    "runs_of",
    "task_of",
    "with_networks",
]

Claim = Callable[[Sequence[Run]], Verdict]


def find(name: str, trusted: Sequence[str] = ()) -> Claim:
    """The function that judges a claim: one of `manyfit.experiments.course`, or your own by its dotted name.

    Args:
        name: Of the claim.
        trusted: See `config.require_trusted`.

    Raises:
        ConfigError: There is none, its module is not trusted, or it is not annotated to return a Verdict.
    """
    path = name if "." in name else f"manyfit.experiments.course.{name}"
    require_trusted(path, "claim", trusted)
    try:
        found = pkgutil.resolve_name(today(path))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"claim must name a function that can be imported, but got {name!r} ({error}).") from None
    if not (inspect.isfunction(found) and inspect.get_annotations(found, eval_str=True).get("return") is Verdict):
        raise ConfigError(f"claim must name a function that is annotated to return a Verdict, but got {name!r}.")
    return found


def task_of(claim: Claim) -> str | None:
    """The one task that a claim is about, as `about` says; None: any."""
    return getattr(claim, "task", None)


def looks_at_networks(claim: Claim) -> bool:
    """Whether the networks of its runs are kept for it, as `with_networks` says."""
    return getattr(claim, "networks", False)


def runs_of(stored: Sequence["StoredRun"], trained: Mapping[str, tuple["Job", "Result"]]) -> list[Run]:
    """What the store holds, for a claim to look at; what never trained is left out.

    Args:
        stored: The children of an experiment.
        trained: What this session trained, by the tag `manyfit.id`.
    """
    runs = []
    for one in (run for run in stored if run.metrics):
        job, result = trained.get(one.tags.get("manyfit.id", ""), (None, None))
        runs.append(
            Run(
                settings={key: parsed(text) for key, text in one.params.items()},
                metrics=one.metrics,
                once=one.last,
                stage=one.tags.get("manyfit.stage", "grid"),
                diverged=one.tags.get("ended") == "diverged",
                job=job,
                result=result,
            )
        )
    return runs
