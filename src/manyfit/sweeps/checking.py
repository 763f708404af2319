"""Every job of a grid, composed, fitted to the data and tried, before the first run exists."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from manyfit.config.errors import ConfigError
from manyfit.config.schema import Config
from manyfit.config.secrets import mask

if TYPE_CHECKING:
    from manyfit.training.prepared import Preparation

Overrides = Sequence[str]
SIZE = "data.train_size"


@dataclass
class Checked:
    """The jobs of a grid that can be run.

    Attributes:
        configs: By their overrides; equal ones are one.
        repeats: How many jobs were equal to another.
        capped: What an experiment asked for as data.train_size, by how many examples there are to train on.
        notes: What the data's tables took for granted.
    """

    configs: dict[tuple[str, ...], Config] = field(default_factory=dict)
    repeats: int = 0
    capped: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    notes: dict[str, None] = field(default_factory=dict)

    def told(self) -> list[str]:
        """What is not as it was asked for, in lines."""
        lines = [
            f"{SIZE} is {rows}, all there are; the experiment asks for {', '.join(map(str, sorted(wishes)))}"
            for rows, wishes in self.capped.items()
        ]
        total = len(self.configs) + self.repeats
        return [*self.notes, *lines] + (
            [f"{self.repeats} of {total} jobs repeat another: each is run once"] if self.repeats else []
        )


def check(
    jobs: Sequence[Overrides],
    compose: Callable[[Overrides], Config],
    preparation: "Preparation",
    wish: bool = False,
) -> Checked:
    """Compose, parse and prepare every job.

    Args:
        jobs: The overrides of each.
        compose: From a job's overrides to its config.
        preparation: Of the command.
        wish: Whether data.train_size is an experiment's, which the data may cap.

    Raises:
        ConfigError: Some jobs cannot be run; each reason is told once, with how many jobs and the first of them.
    """
    from manyfit.training.prepared import identity  # torch: seconds

    found = Checked()
    refused: dict[str, list[Overrides]] = defaultdict(list)
    seen: dict[str, tuple[str, ...]] = {}
    for job in jobs:
        try:
            config = compose(job)
            asked = config.data.train_size
            if wish and asked and asked > (rows := preparation.training_rows(config.data)):
                found.capped[rows].add(asked)
                job = [*(override for override in job if not override.startswith(f"{SIZE}=")), f"{SIZE}={rows}"]
                config = compose(job)
            note = preparation.job(config).data.note
            found.notes |= {note: None} if note else {}
        except ValueError as error:
            refused[str(error)].append(job)
            continue
        if seen.setdefault(identity(config), tuple(job)) in found.configs:
            found.repeats += 1
        else:
            found.configs[tuple(job)] = config
    preparation.close()
    if refused:
        raise ConfigError(_reasons(refused, len(jobs)))
    return found


def _reasons(refused: Mapping[str, Sequence[Overrides]], total: int) -> str:
    lines = [
        f"{reason} ({len(jobs)} of {total} jobs, the first: {mask(' '.join(jobs[0]))})"
        for reason, jobs in refused.items()
    ]
    return "\n".join([*lines, "Nothing was run."])
