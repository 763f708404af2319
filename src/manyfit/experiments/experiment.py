"""An experiment of the course or of yours: its runs were a grid; here they are tuned, judged and drawn."""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from omegaconf import DictConfig

from manyfit.config.errors import ConfigError
from manyfit.config.schema import Config, with_seed
from manyfit.experiments import claims
from manyfit.experiments.runs import Run

if TYPE_CHECKING:
    from manyfit.experiments.claims import Claim
    from manyfit.experiments.verdict import Verdict
    from manyfit.sweeps.parent import Sweep
    from manyfit.training.prepared import Preparation
    from manyfit.training.trained import Result

REPORT_SEEDS = 8
STAGE = "manyfit.stage"  # a tag


@dataclass(frozen=True)
class Experiment:
    """What is asked of a grid's runs.

    Attributes:
        name: Of the experiment.
        claim: Judges the runs.
        tune: Keys whose best value is trained again on fresh seeds.
        tune_by: What is best: the lowest of a metric's curve, or the fewest epochs to a target (`loss/train <= 0.1`).
        seeds: How many.
        beside: What is trained on these seeds too, to be compared with.
    """

    name: str
    claim: "Claim"
    tune: tuple[str, ...] = ()
    tune_by: str = "loss/val"
    seeds: int = REPORT_SEEDS
    beside: tuple[Config, ...] = ()

    @classmethod
    def of(cls, cfg: DictConfig) -> Self | None:
        """The experiment that a composed config names; None where there is no claim.

        Raises:
            ConfigError: The claim is no function that judges, or has no runs to judge by.
        """
        if cfg.claim is None:
            return None
        if not TARGET.fullmatch(cfg.tune_by) or cfg.tune_by.startswith("test_set/"):
            raise ConfigError(
                "tune_by must be a metric, but none of the test set, or one with a target as in 'loss/train <= 0.1', "
                f"but got {cfg.tune_by!r}."
            )
        if cfg.tune_beside and not cfg.tune:
            raise ConfigError(
                "tune_beside must be empty where tune is, but got grids. Name what is tuned, or leave it out."
            )
        name = cfg.hydra.runtime.choices.get("experiment") or str(cfg.claim)
        seeds = 2 if cfg.quick else REPORT_SEEDS
        folders = [Path(source.path) for source in cfg.hydra.runtime.config_sources if source.schema == "file"]
        claim = claims.find(str(cfg.claim), folders, tuple(cfg.trusted or ()))
        return cls(name, claim, tuple(cfg.tune), cfg.tune_by, seeds)

    def accept(self, configs: Sequence[Config], preparation: "Preparation") -> None:
        """Raise ConfigError where the claim cannot judge runs of these configs."""
        if len(configs) < 2:
            raise ConfigError(
                "grids must hold two runs or more for a claim to judge, but got one. claim=null runs it alone."
            )
        wanted = claims.task_of(self.claim)
        for config in {config.data.model_dump_json(): config for config in configs}.values():
            if wanted and (got := preparation.job(config).data.task) != wanted:
                raise ConfigError(
                    f"data must be a {wanted} for the claim {self.name}, but got a {got}. Choose other data."
                )

    def conclude(self, sweep: "Sweep") -> "Verdict":
        """Train what was chosen, judge, and store the verdict with its figure."""
        from manyfit.experiments import charts
        from manyfit.experiments.verdict import known
        from manyfit.plots.style import png

        warnings = self._retrain(sweep) if self.tune else []
        runs = [
            Run.of(sweep.preparation.job(child.config), child.result, sweep.tags.get(number, {}).get(STAGE, "grid"))
            for number, child in sorted(sweep.children.items())
            if child.result
        ]
        if failed := len(sweep.children) - len(runs):
            warnings.append(f"{failed} of {len(sweep.children)} runs failed, and are not judged.")
        if not runs:
            raise ValueError("no run was trained")
        with sweep.screen.stage("judging"):
            verdict = self.claim(runs)
        sentence = " ".join([known(verdict.sentence), *warnings])
        verdict = replace(verdict, sentence=sentence, headline=known(verdict.headline))
        effect = verdict.effect
        numbers = [("claim/effect", effect.mean), ("claim/low", effect.low), ("claim/high", effect.high)]
        sweep.parent.metrics([(name, value, 0) for name, value in numbers])
        sweep.parent.tags({"claim": self.name, "verdict": verdict.answer})
        on = sweep.config.choices.get("data", sweep.config.data.target)
        title = f"{self.name}: {len(runs)} runs on {on}"
        with sweep.parent.storing(f"{self.name}.png"):
            sweep.parent.file(f"{self.name}.png", png(charts.draw(verdict, title)))
        return verdict

    def _retrain(self, sweep: "Sweep") -> list[str]:
        """For each of the other settings the best value, on seeds that were not tuned with; says what is in doubt."""
        from manyfit.sweeps import confirmation

        chosen, doubts = self._chosen(list(sweep.children.values()))
        fresh = confirmation.fresh_seeds({child.config.seed for child in sweep.children.values()}, self.seeds)
        stages = [(config, "report") for config in chosen] + [(config, "beside") for config in self.beside]
        again = [(with_seed(config, seed), stage) for config, stage in stages for seed in fresh]
        first = max(sweep.children) + 1
        sweep.tags |= {number: {STAGE: stage} for number, (_, stage) in enumerate(again, first)}
        with sweep.screen.stage("training the best of each setting on fresh seeds"):
            sweep.train({number: config for number, (config, _) in enumerate(again, first)})
        return doubts

    def _chosen(self, children: Sequence[Any]) -> tuple[list[Config], list[str]]:
        """For each of the other settings the one with the best value, and what is in doubt."""
        groups: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
        for child in children:
            flat = {key: value for key, value in child.config.flat().items() if key != "seed"}
            others = {key: None if key in self.tune else value for key, value in flat.items()}
            groups[str(others)][str(flat)].append(child)
        chosen: list[Config] = []
        edges: list[str] = []
        doubts: list[str] = []
        for candidates in groups.values():
            best = min(candidates.values(), key=self._rank)
            if len(candidates) > 1 and not math.isfinite(self._rank(best)):
                keys, of = " and ".join(self.tune), _seedless(best[0].config)
                doubts.append(f"Whatever its {keys}, {of} did not come to {self.tune_by}.")
            chosen.append(best[0].config)
            tried = [one[0].config for one in candidates.values()]
            edges += [edge for key in self.tune if (edge := _edge(key, chosen[-1], tried))]
        if edges:
            doubts.append(f"On the edge of what was tried: {', '.join(dict.fromkeys(edges))}.")
        return chosen, list(dict.fromkeys(doubts))

    def _rank(self, children: Sequence[Any]) -> float:
        """Of runs that differ in their seeds, in the mean; the lower the better."""
        return float(np.mean([reached(c.result, self.tune_by) for c in children]))


TARGET = re.compile(r"([\w/]+)(?:\s*(<=|>=)\s*([-\d.e]+))?")


def reached(result: "Result | None", what: str) -> float:
    """The lowest value of `loss/val`, or the epochs to `loss/train <= 0.1`, between epochs interpolated.

    Infinite for a run that did not finish, or never came there.
    """
    matched = TARGET.fullmatch(what)
    assert matched
    name, sign, text = matched.groups()
    if result is None or result.status != "FINISHED" or name not in result.metrics:
        return np.inf
    if name == "loss/val" and sign is None:
        return result.summary.best_loss_val
    curve = result.metrics[name] * (-1 if sign == ">=" else 1)
    if sign is None:
        return float(np.nanmin(curve))
    return Run({}, {name: curve}).reaches(name, float(text) * (-1 if sign == ">=" else 1))


def _edge(key: str, best: Config, tried: Sequence[Config]) -> str | None:
    """That a number is the largest or smallest of three or more, and for which other settings; 0 has nothing below."""
    values = sorted({float(v) for config in tried if isinstance(v := config.flat().get(key), int | float)})
    value = best.flat().get(key)
    if len(values) < 3 or value == 0 or value not in (values[0], values[-1]):
        return None
    return f"{key}={value:g} of {_seedless(best)}"


def _seedless(config: Config) -> str:
    """Its title without the seed."""
    return config.title().removesuffix(f" s={config.seed}")
