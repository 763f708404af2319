"""An experiment of the course or of yours: its runs were a grid; here they are tuned, judged and drawn."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from omegaconf import DictConfig

from manyfit import claims
from manyfit.config import Config, ConfigError

if TYPE_CHECKING:
    from manyfit.claims import Claim, Verdict
    from manyfit.tracking import TrackedRun

REPORT_SEEDS = 8
FIRST_REPORT_SEED = 1000  # tuning seeds are below


class Sweep(Protocol):
    """What is asked of a command.Sweep."""

    config: Config
    parent: "TrackedRun"
    tracker: Any
    tags: dict[int, dict[str, str]]
    children: dict[int, Any]

    def train(self, configs: Mapping[int, Config], /) -> Sequence[Any]: ...  # noqa: D102


verdicts: list[tuple[str, "Verdict"]] = []  # of this process, for the table of experiment=all


@dataclass(frozen=True)
class Experiment:
    """What is asked of a grid's runs.

    Attributes:
        name: Of the experiment.
        claim: Judges the runs.
        tune: Keys whose best value on validation is trained again on fresh seeds.
        seeds: How many.
    """

    name: str
    claim: "Claim"
    tune: tuple[str, ...] = ()
    seeds: int = REPORT_SEEDS

    @classmethod
    def of(cls, cfg: DictConfig) -> Self | None:
        """The experiment that a composed config names; None where there is no claim.

        Raises:
            ConfigError: The claim is no function that judges, or it needs a store and there is none.
        """
        if cfg.claim is None:
            return None
        if cfg.tracking.kind == "off":
            raise ConfigError("tracking must store runs for a claim to be judged by them, but got off. Leave it out.")
        name = cfg.hydra.runtime.choices.get("experiment") or str(cfg.claim)
        return cls(name, claims.find(str(cfg.claim)), tuple(cfg.tune), 2 if cfg.quick else REPORT_SEEDS)

    def conclude(self, sweep: Sweep) -> "Verdict":
        """Train what was chosen, read everything back, judge, and store the verdict with its figure."""
        from manyfit.claims import charts
        from manyfit.figures import png
        from manyfit.jobs import prepare

        if self.tune:
            self._retrain(sweep)
        stored = sweep.tracker.children(sweep.parent, sweep.config.experiment)
        trained = {
            child.run.id: (prepare(child.config), child.result) for child in sweep.children.values() if child.result
        }
        runs = claims.runs_of(stored, trained)
        if not runs:
            raise ValueError("no run was trained")
        verdict = self.claim(runs)
        verdicts.append((self.name, verdict))
        effect = verdict.effect
        numbers = [("claim/effect", effect.mean), ("claim/low", effect.low), ("claim/high", effect.high)]
        sweep.parent.metrics([(name, value, 0) for name, value in numbers])
        sweep.parent.tags({"claim": self.name, "verdict": verdict.answer})
        title = f"{self.name}: {len(stored)} runs on {sweep.config.choices.get('data', sweep.config.data.target)}"
        sweep.parent.file(f"{self.name}.png", png(charts.draw(verdict, title)))
        return verdict

    def _retrain(self, sweep: Sweep) -> None:
        """For each of the other settings the value that is best on validation, on seeds that were not tuned with."""
        from manyfit.reports import confirmation

        groups: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
        for child in sweep.children.values():
            if child.config.seed >= FIRST_REPORT_SEED:
                continue
            flat = {key: value for key, value in child.config.flat().items() if key != "seed"}
            others = {key: value for key, value in flat.items() if key not in self.tune}
            groups[str(others)][str(flat)].append(child)
        configs: dict[int, Config] = {}
        number = max(sweep.children) + 1
        for candidates in groups.values():
            best = min(candidates.values(), key=_mean_loss)[0].config
            for seed in range(FIRST_REPORT_SEED, FIRST_REPORT_SEED + self.seeds):
                configs[number] = confirmation.with_seed(best, seed)
                sweep.tags[number] = {"manyfit.stage": "report"}
                number += 1
        sweep.train(configs)


def _mean_loss(children: Sequence[Any]) -> float:
    losses = [
        c.result.summary.best_loss_val if c.result and c.result.status == "FINISHED" else np.inf for c in children
    ]
    return float(np.mean(losses))
