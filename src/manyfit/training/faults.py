"""Exceptions that are one member's own: it fails, and the others of its population go on."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn

from manyfit.config.errors import TrainingError
from manyfit.parallel.channel import portable

if TYPE_CHECKING:
    from manyfit.training.prepared import Job
    from manyfit.training.trained import Result


class MembersError(TrainingError):
    """Some members of a population failed, each by itself.

    Attributes:
        errors: By place in the population.
        results: Likewise, of the others; empty where nothing was trained.
    """

    def __init__(self, errors: Mapping[int, Exception], results: "Mapping[int, Result] | None" = None) -> None:
        super().__init__(errors, results)
        self.errors, self.results = errors, results or {}

    def __str__(self) -> str:
        return "; ".join(dict.fromkeys(f"{type(error).__name__}: {error}" for error in self.errors.values()))


class Faults:
    """Notes an exception where only one member's code runs, such as a schedule, a probe or a metric of the user's.

    Args:
        several: Members, in one process; the exception of a lone one is that of the training.
    """

    def __init__(self, several: bool) -> None:
        self.several = several
        self.found: dict[int, Exception] = {}

    @contextlib.contextmanager
    def of(self, member: int) -> Iterator[None]:
        """What is raised within is that member's fault, by place; the first counts."""
        try:
            yield
        except Exception as error:
            if not self.several:
                raise
            self.found.setdefault(member, portable(error).with_traceback(None))  # which would keep all members' memory

    def taken(self) -> dict[int, Exception]:
        """Those since it was last asked."""
        found, self.found = self.found, {}
        return found


def networks_of(jobs: "Sequence[Job]") -> list[nn.Module]:
    """New ones. Raises MembersError if some cannot be built, as with their seeds alone."""
    faults, made = Faults(len(jobs) > 1), []
    for place, job in enumerate(jobs):
        with faults.of(place):
            made.append(job.network)
    if faults.found:
        raise MembersError(faults.found)
    return made
