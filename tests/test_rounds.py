"""Searches: the space, the study that outlives its processes, samplers and pruners, and the real command."""

import contextlib
import json
import os
import re
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from conftest import CONF, Compose, build, command, made, options, started
from manyfit.config import schema
from manyfit.config.errors import ConfigError, TrainingError
from manyfit.config.schema import Config, with_seed
from manyfit.progress import Screen
from manyfit.sweeps import findings, parent, rounds, settings, space, study
from manyfit.sweeps.fingerprint import DATA
from manyfit.sweeps.pruning import Judge
from manyfit.sweeps.search import Search
from manyfit.sweeps.study import Ledger, Told, derived_seed, lost, values_of
from manyfit.training.grouping import grouped
from manyfit.training.prepared import prepare
from test_cli import runs

SMALL = ["data=iris", "epochs=2", "model.hidden=[8]", "tracking=off", "sweep.seeds=1"]
LR = FloatDistribution(1e-5, 1e-1, log=True)


def parsed(*texts: str) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(texts))


# the space


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("interval(0,1)", FloatDistribution(0, 1)),
        ("tag(log,interval(1e-5,1e-1))", LR),
        ("int(interval(1,9))", IntDistribution(1, 9)),
        ("tag(log,int(interval(1,512)))", IntDistribution(1, 512, log=True)),
        ("int(tag(log,interval(1,512)))", IntDistribution(1, 512, log=True)),
        ("range(1,9)", IntDistribution(1, 8)),
        ("range(16,65,16)", IntDistribution(16, 64, step=16)),
        ("range(0,0.6,0.2)", FloatDistribution(0, 0.4, step=0.2)),
        ("choice(16,32,full)", CategoricalDistribution((16, 32, "full"))),
        ("16,32", CategoricalDistribution((16, 32))),
        ("choice([8],[16,16])", CategoricalDistribution(("[8]", "[16,16]"))),
        ("choice(true,relu)", CategoricalDistribution((True, "relu"))),
    ],
)
def test_each_form_of_the_grammar_has_its_distribution(text: str, expected: Any) -> None:
    """What Hydra's grammar says is what Optuna samples from."""
    assert space.space(parsed(f"key={text}")) == {"key": expected}


@pytest.mark.parametrize(
    "text",
    ["interval(1,0)", "tag(log,interval(0,1))", "tag(big,interval(1,2))", "tag(log,choice(1,2))", "range(3,3)", "5"],
)
def test_a_space_that_cannot_be_searched_is_refused_with_its_key(text: str) -> None:
    """The message has the full key, what must hold and what was got."""
    with pytest.raises(ConfigError, match=r"sweep\.space\.key must be .*, but got"):
        space.space(parsed(f"key={text}"))


@pytest.mark.parametrize("value", [1e-05, 0.1, 7, True, False, "null", "full", "[16,16]", "'a b'"])
def test_a_value_goes_through_the_command_line_unchanged(value: Any) -> None:
    """A trial's value written as an override is read back as the same."""
    (override,) = parsed(*space.overrides({"key": value}))
    expected = parsed(f"key={value}")[0].value() if isinstance(value, str) else value
    assert override.value() == expected
    assert type(override.value()) is type(expected)


def test_a_grid_lists_every_point() -> None:
    """The product of all values; an interval has no list."""
    points = space.grid(space.space(parsed("a=choice(x,y)", "b=range(1,4)", "c=range(0,0.3,0.1)")))
    assert len(points) == 2 * 3 * 3
    with pytest.raises(ConfigError, match="must be choice or range with sampler=grid"):
        space.grid({"lr": LR})


def test_quasi_random_points_fill_the_space() -> None:
    """Every quarter of each axis, in its own scale, has its share; of more points the first are the same."""
    drawn = space.space(parsed("lr=tag(log,interval(1e-4,1.0))", "m=interval(-1.0,1.0)", "k=int(interval(1,4))"))
    points = space.quasi_random(drawn, 64)
    assert points == space.quasi_random(drawn, 128)[:64]
    for key, edges in (("lr", [1e-4, 1e-3, 1e-2, 1e-1, 1]), ("m", [-1, -0.5, 0, 0.5, 1]), ("k", [1, 2, 3, 4, 5])):
        counts, _ = np.histogram([point[key] for point in points], edges)
        assert counts.sum() == 64
        assert counts.min() >= 14, key
    assert {type(point["k"]) for point in points} == {int}


# the objective


@pytest.mark.parametrize(
    ("reducer", "direction", "value"), [("best", "minimize", 1.0), ("best", "maximize", 3.0), ("last", "minimize", 2.0)]
)
def test_the_reducer_takes_the_best_or_the_last_measured_value(reducer: Any, direction: str, value: float) -> None:
    """Epochs without a value do not count."""
    result: Any = SimpleNamespace(metrics={"loss/gap": np.array([3.0, 1.0, 2.0, np.nan])})
    assert findings.value_of(result, f"{reducer} loss/gap", direction) == value


@pytest.mark.parametrize(
    "override", ["sweep.n_trials=0", "sweep.direction=up", "sweep.objective.reducer=mean", "+sweep.x=1"]
)
def test_a_wrong_setting_is_refused_with_its_key(override: str) -> None:
    """In the form of the house."""
    with pytest.raises(ConfigError, match=override.strip("+").split("=")[0].replace(".", r"\.") + " must"):
        settings.settings(whole(override))


# the study


def opened(folder: Path, total: int = 6, fingerprint: Mapping[str, Any] | None = None, **changes: Any) -> Ledger:
    def sampler(trials: int) -> tuple[RandomSampler, int]:
        seed = derived_seed(0, trials)
        return RandomSampler(seed=seed), seed

    arguments: dict[str, Any] = {
        "url": f"sqlite:///{folder}/optuna.db",
        "name": "study",
        "direction": "minimize",
        "fingerprint": fingerprint or {},
        "space": {"lr": LR, "b": CategoricalDistribution((1, 2))},
        "total": total,
        "sampler": sampler,
        "points": None,
        "folder": folder / "untold",
    }
    return Ledger(**{**arguments, **changes})


def finished(book: Ledger, size: int = 2) -> list[FrozenTrial]:
    """Claim and tell until nothing is left."""
    with book:
        while claimed := book.claim(size):
            for trial in claimed:
                book.tell(Told(trial.number, "COMPLETE", trial.params["lr"], {}))
    return book.trials()


def check(trials: Sequence[FrozenTrial], total: int) -> None:
    """The total is met, nothing is RUNNING or waits, no values are there twice."""
    counted = [trial for trial in trials if not lost(trial)]
    assert len(counted) == total
    assert all(trial.state.is_finished() for trial in trials)
    assert max(Counter(json.dumps(trial.params, sort_keys=True) for trial in counted).values()) == 1


def test_a_study_goes_on_to_its_total_without_repeating_itself(tmp_path: Path) -> None:
    """A second session with a larger total adds what is missing, with other values."""
    finished(opened(tmp_path, total=4))
    trials = finished(opened(tmp_path, total=9))
    check(trials, 9)
    assert len({trial.user_attrs["sampler_seed"] for trial in trials}) > 1
    assert finished(opened(tmp_path, total=9)) == trials


def test_another_fingerprint_is_refused_with_the_difference(tmp_path: Path) -> None:
    """Key, what the study has and what was got."""
    opened(tmp_path, fingerprint={"epochs": 50, "seed": 0})
    with pytest.raises(ConfigError, match="epochs must be 50 as in study study, but got 5."):
        opened(tmp_path, fingerprint={"epochs": 5, "seed": 0})


def test_a_storage_that_cannot_be_used_is_refused_without_its_password(tmp_path: Path) -> None:
    """The message names the key and hides the password."""
    with pytest.raises(ConfigError, match="sweep.storage must") as caught:
        opened(tmp_path, url="nosuch://me:secret@host/base")
    assert "secret" not in str(caught.value)


class OneIdea(RandomSampler):
    """Proposes the same, whatever it is told."""

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:  # noqa: ARG002
        """The largest."""
        return distribution.choices[-1] if name == "b" else distribution.high


STEPS = {"lr": FloatDistribution(0.05, 0.25, step=0.1), "b": CategoricalDistribution((1, 2))}


def test_no_point_is_tried_twice_and_the_space_may_be_exhausted(tmp_path: Path) -> None:
    """Six points of a study that is to have 64 trials: what a sampler repeats is asked anew, then drawn."""
    book = opened(tmp_path, total=64, space=STEPS, sampler=lambda _: (OneIdea(), 0))
    trials = finished(book)
    check(trials, 6)
    assert {(round(trial.params["lr"], 3), trial.params["b"]) for trial in trials} == {
        (lr, b) for lr in (0.05, 0.15, 0.25) for b in (1, 2)
    }
    book.study.enqueue_trial({"lr": 0.05})  # by a user, who wants what cannot be had
    assert all(lost(trial) for trial in finished(opened(tmp_path, total=64, space=STEPS))[len(trials) :])


def test_a_study_with_copies_counts_its_points(tmp_path: Path) -> None:
    """An earlier version trained a point again: what is there counts once, and what failed was tried."""
    book = opened(tmp_path, total=4, space=STEPS)
    for state in (TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE):
        values = [0.5] if state == TrialState.COMPLETE else None
        book.study.add_trial(create_trial(state=state, values=values, params={"lr": 0.15, "b": 1}, distributions=STEPS))
    trials = [trial for trial in finished(book)[3:] if not lost(trial)]
    assert len(trials) == 3
    assert {"lr": 0.15, "b": 1} not in [trial.params for trial in trials]


@pytest.mark.parametrize("ending", [SystemExit, KeyboardInterrupt, RuntimeError])
def test_whatever_ends_a_session_leaves_no_trial_running(tmp_path: Path, ending: type[BaseException]) -> None:
    """What was claimed is done by the next session, with the same values."""
    book = opened(tmp_path)
    with contextlib.suppress(ending), book:
        claimed = book.claim(3)
        raise ending
    assert not [trial for trial in book.trials() if trial.state == TrialState.RUNNING]
    trials = finished(opened(tmp_path))
    check(trials, 6)
    again = [trial.params for trial in trials if "retry_of" in trial.user_attrs]
    assert again == [trial.params for trial in claimed]


@pytest.mark.parametrize("write", range(1, 26, 2))
@pytest.mark.parametrize("grid", [False, True])
def test_a_process_killed_at_any_write_loses_and_doubles_nothing(tmp_path: Path, write: int, grid: bool) -> None:
    """A process that dies just before its n-th write to the storage, and then another: the total is met."""
    values = {"lr": CategoricalDistribution((1, 2, 3)), "b": CategoricalDistribution((1, 2))}
    changes: dict[str, Any] = {"space": values, "points": space.grid(values)} if grid else {}
    opened(tmp_path, **changes)
    for death in (write, max(1, write // 3)):  # the second dies in the middle of clearing up after the first
        if not (child := os.fork()):
            book = opened(tmp_path, **changes)
            _dying(book.study._storage, death)
            finished(book)
            os._exit(0)
        os.waitpid(child, 0)
    check(finished(opened(tmp_path, **changes)), 6)


def _dying(storage: Any, after: int) -> None:
    """Let a storage end its process, as kill -9 would, before its n-th write."""
    left = [after]

    def fatal(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return method(*args, **kwargs)

        return call

    for name in dir(storage):
        if name.startswith(("set_trial", "create_new_trial")):
            setattr(storage, name, fatal(getattr(storage, name)))


def test_a_living_process_keeps_its_trials(tmp_path: Path) -> None:
    """Another process takes what is free, and nothing else."""
    with opened(tmp_path) as one, opened(tmp_path) as two:
        assert [trial.number for trial in one.claim(4)] == [0, 1, 2, 3]
        assert [trial.number for trial in two.claim(4)] == [4, 5]
        assert not two.claim(4)
        assert not [trial for trial in one.trials() if lost(trial)]


# samplers and pruners


def whole(*overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=True)


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[SimpleNamespace]:
    """The rows that a report was given, in the place of reports.py, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    rows: list[SimpleNamespace] = []
    fake = SimpleNamespace(Row=SimpleNamespace, conclude=lambda _, given, **__: rows.extend(given))
    monkeypatch.setitem(sys.modules, "manyfit.sweeps.conclusion", fake)
    monkeypatch.setattr("manyfit.sweeps.conclusion", fake, raising=False)
    return rows


class Counting(Screen):
    """Remembers what it was told to count."""

    def __init__(self) -> None:
        super().__init__("")
        self.counted: list[tuple[str, int, int]] = []

    def stage(self, words: str, runs: int | None = None, done: int = 0) -> contextlib.AbstractContextManager[None]:
        """As told."""
        self.counted += [(words, runs, done)] if runs is not None else []
        return super().stage(words, runs, done)


@dataclass(frozen=True)
class Job:
    """As the sweeper composes it."""

    number: int
    overrides: Sequence[str]

    def config(self) -> Config:
        """Accepted, or refused."""
        return build(*self.overrides)


def search(swept: Sequence[str], *overrides: str, train: Any = parent.Sweep.run, screen: Screen | None = None) -> None:
    """`rounds.run` as the sweeper calls it; `train` stands in for `Sweep.run`."""

    def jobs(given: Sequence[Sequence[str]], first: int) -> list[Job]:
        return [Job(number, job) for number, job in enumerate(given, first)]

    fixed = [*SMALL, *overrides]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parent.Sweep, "run", train)
        done = rounds.run(lambda given: whole(*given), parsed(*swept), fixed, jobs, screen or Screen(""))
    if done and done.failure:
        raise done.failure


def searched(swept: str, *overrides: str) -> Search:
    """As `rounds.run` settles it."""
    cfg = whole(*SMALL, *overrides)
    job = prepare(schema.parse(cfg, cfg.hydra.runtime.choices, cfg.hydra.overrides.task))
    return Search.of(cfg, settings.settings(cfg), job, space.space(parsed(swept)))


@pytest.mark.parametrize("pruner", options("pruner"))
@pytest.mark.parametrize("sampler", options("sampler"))
def test_every_sampler_goes_with_every_pruner(sampler: str, pruner: str, reported: list[SimpleNamespace]) -> None:
    """Four trials in two rounds, each with a row that has its values and its curve."""
    swept = ["batch_size=choice(16,32)", "model.dropout=range(0,0.4,0.1)", "optimizer.weight_decay=range(0,0.02,0.01)"]
    search(swept, f"sampler={sampler}", f"pruner={pruner}", "sweep.n_trials=4", "sweep.round=2")
    assert len({row.number for row in reported}) == len(reported) == 4
    assert {row.state for row in reported} <= {"finished", "pruned"}
    assert all(np.isfinite(row.value) and len(row.loss_val) and row.config.seed == row.seed == 0 for row in reported)


def answered(loss: Callable[[float, float, int], float]) -> Any:
    """Trainings that come to a loss given by learning rate, dropout and seed, without being run."""

    def train(sweep: parent.Sweep, jobs: Sequence[Job]) -> None:
        for job in jobs:
            values = dict(override.split("=", 1) for override in job.overrides)
            run = sweep.tracker.start(experiment="", name="", params={}, tags={})
            seed, lr = int(values.get("seed", 0)), float(values["optimizer.lr"])
            config = with_seed(sweep.config, seed)
            config = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"lr": lr})})
            result = made(config, loss(lr, float(values["model.dropout"]), seed))
            sweep.children[job.number] = parent.Child(job.number, config, run, result)

    return train


TWO = ["optimizer.lr=tag(log,interval(1e-5,1e-1))", "model.dropout=interval(0,0.6)"]


@pytest.mark.usefixtures("reported")
def test_the_trials_that_are_left_are_known_from_the_start() -> None:
    """Each round counts all trials of the study; a session that goes on counts those that are done already."""
    more = ("sampler=random", "sweep.round=2", "sweep.study=counted")
    first, second = Counting(), Counting()
    search([TWO[0]], *more, "sweep.n_trials=5", screen=first)
    search([TWO[0]], *more, "sweep.n_trials=6", screen=second)
    assert first.counted[:3] == [("round 1 of 3", 5, 0), ("round 2 of 3", 5, 2), ("round 3 of 3", 5, 4)]
    assert second.counted[0] == ("round 1 of 1", 6, 5)


def cliff(lr: float, dropout: float, seed: int) -> float:  # noqa: ARG001
    """Flat, but for a little of the dropout, and nothing comes of the upper half of the rates."""
    return 0.5 + 0.01 * dropout if lr < 1e-3 else np.nan


@pytest.mark.parametrize(("sampler", "trials"), [("tpe", 40), ("gp", 24), ("cmaes", 40)])
def test_a_sampler_learns_where_trainings_diverge(sampler: str, trials: int, reported: list[SimpleNamespace]) -> None:
    """The last of its proposals lie elsewhere; chance would put half of them there."""
    given = [f"sampler={sampler}", f"sweep.n_trials={trials}", "sweep.round=8", "seed=1"]
    search(TWO, *given, "sweep.storage='sqlite:///:memory:'", train=answered(cliff))
    assert sum(row.state == "diverged" for row in reported[:16]) >= 3
    assert sum(row.state == "diverged" for row in reported[-8:]) <= 1


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("sampler", options("sampler"))
def test_a_diverged_trial_is_the_worst_of_all(sampler: str, direction: str, reported: list[SimpleNamespace]) -> None:
    """For every sampler; the report calls it diverged, and the best trial is a real one."""
    swept = ["optimizer.lr=range(0.0005,0.0020,0.0005)", "model.dropout=range(0,0.2,0.1)"]
    given = [f"sampler={sampler}", "sweep.n_trials=6", "sweep.round=3", f"sweep.direction={direction}"]
    given += ["sweep.objective.metric=accuracy/val"] if direction == "maximize" else []
    search(swept, *given, train=answered(cliff))
    study = optuna.load_study(study_name=None, storage="sqlite:///mlruns/optuna.db")
    worst = np.inf if direction == "minimize" else -np.inf
    diverged = [trial for trial in study.trials if trial.user_attrs.get("ended") == "diverged"]
    assert {(trial.state, trial.value) for trial in diverged} == {(TrialState.COMPLETE, worst)}
    assert study.best_trial.user_attrs["ended"] == "finished"
    assert [row.number for row in reported if row.state == "diverged"] == [trial.number for trial in diverged]
    assert all(np.isnan(row.value) for row in reported if row.state == "diverged")


def test_an_exhausted_space_is_told(reported: list[SimpleNamespace], capsys: pytest.CaptureFixture[str]) -> None:
    """Three settings of twenty trials: each is trained once."""
    swept = ["optimizer.lr=choice(0.0001,0.0002,0.0003)", "model.dropout=choice(0.1)"]
    search(swept, "sweep.n_trials=20", "sweep.round=5", train=answered(cliff))
    assert sorted(row.params["optimizer.lr"] for row in reported) == [0.0001, 0.0002, 0.0003]
    assert "the space has only 3 settings: each is tried once, instead of 20 trials" in capsys.readouterr().out


def test_a_trials_seeds_are_one_observation(reported: list[SimpleNamespace]) -> None:
    """Its value is their mean, its curve the mean curve; each seed has a run with the trial's tags, and a row."""

    def loss(lr: float, dropout: float, seed: int) -> float:  # noqa: ARG001
        return 0.5 + 0.1 * seed if lr < 1e-3 or seed < 2 else np.nan

    swept = ["optimizer.lr=choice(0.0001,0.01)", "model.dropout=choice(0.1)"]
    search(swept, "sampler=grid", "sweep.seeds=3", train=answered(loss))
    trials = optuna.load_study(study_name=None, storage="sqlite:///mlruns/optuna.db").trials
    assert [trial.user_attrs["ended"] for trial in trials] == ["finished", "diverged"]
    assert [trial.value for trial in trials] == [pytest.approx(0.6), np.inf]
    assert list(trials[0].intermediate_values.values()) == pytest.approx([2.0, 1.5, 0.6])
    assert [(row.number, row.seed, row.state) for row in reported] == [
        (0, 0, "finished"), (0, 1, "finished"), (0, 2, "finished"),
        (1, 0, "finished"), (1, 1, "finished"), (1, 2, "diverged"),
    ]  # fmt: skip
    assert [row.value for row in reported[:3]] == pytest.approx([0.5, 0.6, 0.7])
    assert [row.run.id for row in reported] == [run["manyfit_run"] for t in trials for run in t.user_attrs["runs"]]


def test_rows_of_an_earlier_session_are_the_same(reported: list[SimpleNamespace]) -> None:
    """Values, seeds, curves and configs are read back from the study."""
    swept = ["optimizer.lr=choice(0.0001,0.0002)", "model.dropout=choice(0.1)"]
    for _ in range(2):
        search(swept, "sampler=grid", "sweep.seeds=2", train=answered(cliff))
    for first, again in zip(reported[:4], reported[4:], strict=True):
        assert (first.number, first.seed, first.state) == (again.number, again.seed, again.state)
        assert first.value == again.value
        assert (first.run is None, again.run is None) == (False, True)
        assert (again.config.seed, again.config.optimizer.lr) == (first.seed, first.params["optimizer.lr"])
        np.testing.assert_allclose(first.loss_val, again.loss_val)


def test_seeds_that_train_together_are_pruned_by_their_mean(reported: list[SimpleNamespace]) -> None:
    """As a whole: all runs of a trial have the same epochs, whatever their own values were."""
    given = ["pruner=successive_halving", "sampler=grid", "sweep.seeds=3"]
    search(["optimizer.lr=range(0.1,0.7,0.1)"], *given, "epochs=4")
    trials = optuna.load_study(study_name=None, storage="sqlite:///mlruns/optuna.db").trials
    assert {trial.state for trial in trials} == {TrialState.PRUNED, TrialState.COMPLETE}
    for trial in trials:
        rows = [row for row in reported if row.number == trial.number]
        assert [row.seed for row in rows] == [0, 1, 2]
        assert len({row.state for row in rows}) == 1
        assert {len(row.loss_val) for row in rows} == {len(trial.intermediate_values)}
        means = np.mean([row.loss_val for row in rows], axis=0)
        np.testing.assert_allclose(list(trial.intermediate_values.values()), means, rtol=1e-5)


def test_seeds_are_not_searched_and_repeated_at_once(reported: list[SimpleNamespace]) -> None:
    """One or the other."""
    with pytest.raises(ConfigError, match=r"sweep\.seeds must be 1 where seed is searched, but got 4"):
        search(["seed=choice(1,2)"], "sampler=grid", "sweep.seeds=4")
    assert not reported


@pytest.mark.parametrize("together", [1, 2])
def test_jobs_that_belong_together_share_a_population(together: int, composed: Compose) -> None:
    """Where a population can hold them."""
    jobs = {n: prepare(composed("data=iris", f"seed={n}")) for n in range(8)}
    groups = [group.numbers for group in grouped(jobs, 3, together=together)]
    assert groups == {1: [[0, 1, 2], [3, 4, 5], [6, 7]], 2: [[0, 1], [2, 3], [4, 5], [6, 7]]}[together]
    apart = grouped(jobs, workers=4, together=4 * together)  # rather than that, a worker has nothing to do
    assert [len(group.numbers) for group in apart] == {1: [4, 4], 2: [8]}[together]
    assert len(grouped(jobs, 1, together=together)) == 8


def test_a_study_of_an_earlier_version_goes_on(reported: list[SimpleNamespace]) -> None:
    """It kept one run in attributes of their own, its curve as well, and told diverged trials as failed."""
    swept = ["optimizer.lr=choice(0.0001,0.0002,0.01)", "model.dropout=choice(0.1)"]
    search(swept, "sampler=grid", "sweep.n_trials=1", train=answered(cliff))
    study = optuna.load_study(study_name=None, storage="sqlite:///mlruns/optuna.db")
    fingerprint = dict(study.user_attrs["fingerprint"])
    del fingerprint["sweep.seeds"]
    study.set_user_attr("fingerprint", fingerprint)
    first = study.trials[0]
    told = {"manyfit_run": "a", "mlflow_run_id": "b", "seed": 0, "curve": [2.0, 1.0, 0.4]}
    for lr, value, state in ((0.0002, 0.4, TrialState.COMPLETE), (0.01, None, TrialState.FAIL)):
        ended = "finished" if value else "diverged"
        params = {**first.params, "optimizer.lr": lr}
        known = {**told, "ended": ended}
        kept = {"params": params, "distributions": first.distributions, "user_attrs": known}
        study.add_trial(create_trial(state=state, value=value, **kept))
    reported.clear()
    search(swept, "sampler=grid", "pruner=median", train=answered(cliff))
    assert [(row.state, row.value, row.seed, row.run_id) for row in reported[1:2]] == [("finished", 0.4, 0, "b")]
    assert [row.state for row in reported] == ["finished", "finished", "diverged"]
    assert np.isnan(reported[2].value)
    np.testing.assert_allclose(reported[1].loss_val, [2.0, 1.0, 0.4])
    with pytest.raises(ConfigError, match=r"sweep\.seeds must be 1 as in study .*, but got 2"):
        search(swept, "sampler=grid", "sweep.seeds=2", train=answered(cliff))


def test_a_report_that_fails_loses_no_trial(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said that they are kept, and the same command reports again without training."""
    monkeypatch.chdir(tmp_path)
    swept = ["optimizer.lr=choice(0.0001,0.0002)", "model.dropout=choice(0.1)"]
    given = ["sampler=grid", "sweep.confirm_seeds=0"]

    def fail(_: Any) -> str:
        raise RuntimeError("no ink")

    with monkeypatch.context() as broken:
        broken.setattr("manyfit.sweeps.conclusion.summary", fail)
        with pytest.raises(RuntimeError, match="no ink"):
            search(swept, *given, train=answered(cliff))
    assert "the report failed; the 2 trials of study" in capsys.readouterr().err
    study = optuna.load_study(study_name=None, storage="sqlite:///mlruns/optuna.db")
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    search(swept, *given, train=answered(cliff))
    assert "2 runs of 2 settings" in capsys.readouterr().out
    assert len(study.trials) == 2


def test_only_optunas_own_samplers_are_let_through(reported: list[SimpleNamespace]) -> None:
    """A target elsewhere is refused before a study exists."""
    with pytest.raises(ConfigError, match="sampler._target_ must be one of optuna.samplers, but got 'os.system'"):
        search(["batch_size=choice(16,32)"], "sampler._target_=os.system")
    assert not reported
    assert not Path("mlruns").exists()


def test_a_pruned_child_is_a_pruned_trial(reported: list[SimpleNamespace]) -> None:
    """PRUNED, with its last value and the curve up to there; its run's id and the trial's number know each other."""
    search(["optimizer.lr=range(1,9)"], "pruner=successive_halving", "sampler=grid", "sweep.n_trials=8")
    trials = optuna.load_study(study_name=None, storage="sqlite:///mlruns/optuna.db").trials
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert pruned
    assert all(trial.value == pytest.approx(trial.intermediate_values[trial.last_step]) for trial in pruned)
    assert all(row.run.id == trials[row.number].user_attrs["runs"][0]["manyfit_run"] for row in reported)


def test_a_config_that_fails_is_a_failed_trial_and_the_command_says_so(reported: list[SimpleNamespace]) -> None:
    """The other trials go on; the exit names the first reason."""
    with pytest.raises(TrainingError, match="1 of 2 trials failed; the first is 1: data.train_size must be in"):
        search(["data.train_size=choice(50,1000)"], "sampler=grid")
    assert [row.state for row in reported] == ["finished", "failed"]


def test_so_many_failures_end_a_search(reported: list[SimpleNamespace]) -> None:
    """They would go on for ever, since they do not count; what is trained is reported; the same command tries anew."""
    swept = ["data.train_size=choice(50,60,1000,1001,1002,1003,1004,1005)"]
    settings = ["sampler=grid", "sweep.round=4", "sweep.max_failures=2"]
    with pytest.raises(TrainingError, match="2 of 4 trials failed; .* sweep.max_failures=2 ended the search"):
        search(swept, *settings)
    assert [row.state for row in reported] == ["finished", "finished", "failed", "failed"]
    reported.clear()
    with pytest.raises(TrainingError, match="4 of 4 trials failed"):  # the next four of the grid
        search(swept, *settings)
    assert [row.state for row in reported].count("finished") == 2


def test_one_process_reports(reported: list[SimpleNamespace]) -> None:
    """Of those that come to the end together; one that died in the midst of it leaves it to the next."""
    swept, screen = ["optimizer.lr=choice(0.1,0.2)"], Saying()
    search(swept, "sampler=grid")
    assert len(reported) == 2
    with study.reopened("sqlite:///mlruns/optuna.db", study_name(), Path("mlruns")) as book:
        (claimed,) = book.notes("reporter").values()
        book.note("reporter", lambda: claimed)  # it has begun to, and lives
        search(swept, "sampler=grid", screen=screen)
        assert len(reported) == 2
        assert any(f"process {book.locks.owner} reports on them" in text for text in screen.said)
    search(swept, "sampler=grid")
    assert len(reported) == 4


def test_what_fails_elsewhere_is_said(reported: list[SimpleNamespace]) -> None:
    """The total is not met, though nothing failed here: the exit code is not 0."""
    swept, given = ["optimizer.lr=choice(0.1,0.2,0.3)"], ["sampler=grid", "sweep.round=1"]
    honest = study.Ledger.claim

    def claim(ledger: Ledger, size: int) -> Any:
        """The first is another's, who fails."""
        if not (claimed := honest(ledger, size)) or claimed[0].number:
            return claimed
        ledger.tell(Told(0, "FAIL", None, {"ended": "failed"}))
        return honest(ledger, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study.Ledger, "claim", claim)
        with pytest.raises(TrainingError, match="1 trials failed elsewhere. The same command tries them again"):
            search(swept, *given)
    assert len(reported) == 3


class Saying(Screen):
    """Remembers what was said."""

    def __init__(self) -> None:
        super().__init__("")
        self.said: list[str] = []

    def say(self, text: str) -> None:
        """As told."""
        self.said.append(text)


def study_name() -> str:
    (name,) = optuna.get_all_study_names("sqlite:///mlruns/optuna.db")
    return str(name)


@pytest.mark.parametrize(
    ("given", "refusal"),
    [
        (["data=iris,wine"], "data must not be searched: runs that differ in it cannot be compared"),
        (["data.split_seed=choice(1,2)", "optimizer.lr=choice(0.1,0.2)"], "data.split_seed must not be searched"),
        (
            ["optimizer.lr=choice(0.1,0.2)", "sweep.objective.metric=accuracy/val"],
            "sweep.direction must be maximize with",
        ),
        (["loss=choice(cross_entropy,mse)"], "loss must not be searched"),
        (["data=diabetes", "data.train_size=choice(50,100)"], "data.train_size must not be searched"),
        (["optimizer.lr=choice(0.1,0.2)", "sweep.direction=maximize"], "sweep.direction must be minimize with"),
        (["sweep=lr", "optimizer.lr=0.1"], "optimizer.lr must be left to the search, but the"),
    ],
)
def test_a_search_that_would_find_the_wrong_thing_is_refused(
    reported: list[SimpleNamespace], given: list[str], refusal: str
) -> None:
    """Before a study exists."""
    swept = [override for override in given if "choice" in override or "," in override]
    with pytest.raises(ConfigError, match=refusal):
        search(swept, *(override for override in given if override not in swept))
    assert not reported
    assert not Path("mlruns/optuna.db").exists()


def test_a_study_knows_its_data(reported: list[SimpleNamespace]) -> None:
    """A table that has changed is another study's; one of before knows no data, and goes on."""
    own = ["data=csv", "data.path=own.csv", "data.target=y", "sweep.study=own", "epochs=2"]
    swept = ["optimizer.lr=choice(0.1,0.2)", "model.dropout=choice(0.1)"]
    rows = "".join(f"{i / 7},{'ab'[i % 2]}\n" for i in range(60))
    Path("own.csv").write_text("x,y\n" + rows)
    search(swept, *own, train=answered(cliff))
    Path("own.csv").write_text("x,y\n" + rows.replace("a", "c"))
    with pytest.raises(ConfigError, match="data, by their digest, must be ........ as in study own, but got"):
        search(swept, *own, train=answered(cliff))
    assert len(reported) == 2
    study = optuna.load_study(study_name="own", storage="sqlite:///mlruns/optuna.db")
    known = study.user_attrs["fingerprint"]
    study.set_user_attr("fingerprint", {k: v for k, v in known.items() if k not in (DATA, "data.drop")})
    search(swept, *own, train=answered(cliff))


def test_a_study_of_the_version_before_goes_on(reported: list[SimpleNamespace]) -> None:
    """Whose data's module had another name, whose config a key that is gone, one that only says how, and no engine."""
    given = ["optimizer.lr=choice(0.1,0.2)", "model.dropout=choice(0.1)"]
    search(given, "sweep.study=old", "sweep.n_trials=1", train=answered(cliff))
    study = optuna.load_study(study_name="old", storage="sqlite:///mlruns/optuna.db")
    known = study.user_attrs["fingerprint"] | {"trainer.compile": False, "trainer.cuda_graph": False}
    del known["trainer.engine"]
    study.set_user_attr("fingerprint", known | {"data._target_": "manyfit.sources.iris"})
    search(given, "sweep.study=old", "sweep.n_trials=2", train=answered(cliff))
    assert len(reported) == 1 + 2


def test_a_batch_larger_than_the_training_set_is_refused_before_a_study_exists(reported: list[SimpleNamespace]) -> None:
    """The whole space of batch sizes must be usable."""
    with pytest.raises(ConfigError, match="batch_size must be <= 106, the training examples, .* but got 1000"):
        search(["batch_size=choice(16,1000)"], "sampler=grid")
    assert not reported
    assert not Path("mlruns/optuna.db").exists()


def test_a_trials_value_is_that_of_the_weights_that_are_kept(reported: list[SimpleNamespace]) -> None:
    """Not of a dip of one epoch: what the run stores as best/loss_val."""
    search(["optimizer.lr=range(0.01,0.05,0.01)"], "sampler=grid", "epochs=12")
    assert reported
    assert [row.value for row in reported] == [row.result.summary.best_loss_val for row in reported]


@pytest.mark.parametrize("ending", [SystemExit, KeyboardInterrupt])
def test_an_interrupt_in_training_leaves_no_trial_running(
    reported: list[SimpleNamespace], ending: type[BaseException]
) -> None:
    """What training raises comes through, and the study can go on."""

    def interrupted(*_: Any) -> Sequence[Any]:
        raise ending

    with pytest.raises(ending):
        search(["optimizer.lr=choice(0.1,0.2)"], "sampler=grid", train=interrupted)
    search(["optimizer.lr=choice(0.1,0.2)"], "sampler=grid")
    check(optuna.load_study(study_name=None, storage="sqlite:///mlruns/optuna.db").trials, 2)
    assert sorted(row.params["optimizer.lr"] for row in reported) == [0.1, 0.2]


# the command

COMMAND = ["-m", "sweep=lr_batch_size", "data=iris", "epochs=20", "sweep.round=4"]
COMMAND += [
    "sweep.seeds=1",
    "sweep.n_trials=12",
    "sweep.study=shared",
    "sweep.confirm_seeds=0",
    "batch_size=choice(16,32,64)",
]


def done(folder: Path, of: str = "trials where state = 'COMPLETE'") -> int:
    """How many trials are told, or other rows are there, read without disturbing who may be making the tables."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{folder}/mlruns/optuna.db?mode=ro", uri=True)) as base:
            return int(base.execute(f"select count(*) from {of}").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def shared(folder: Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name="shared", storage=f"sqlite:///{folder}/mlruns/optuna.db").trials


@pytest.mark.slow
def test_the_command_killed_half_way_goes_on_to_the_total(tmp_path: Path) -> None:
    """After kill -9, the same command again: the total is met, nothing is doubled, each trial has its run.

    A third time it only says where the report is.
    """
    given = [*COMMAND, "epochs=200"]  # so that it is not at its end before the kill
    with started(tmp_path, *given):
        deadline = time.monotonic() + 120
        while done(tmp_path) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
    assert 4 <= done(tmp_path) < 12
    command(tmp_path, *given).check_returncode()
    check(shared(tmp_path), 12)
    assert all(len(trial.intermediate_values) == 201 for trial in shared(tmp_path) if not lost(trial))
    stored = {run.info.run_id for run in runs(tmp_path)}
    third = command(tmp_path, *given)
    told = re.search(r"shared has its 12 trials; run (\w{8}) reports on them", third.stdout)
    assert told
    assert {run.info.run_id for run in runs(tmp_path)} == stored
    assert any(run_id.startswith(told[1]) for run_id in stored)


def twice(folder: Path, *overrides: str) -> None:
    """Two commands, started at the same moment, come to a good end."""
    with started(folder, *overrides) as first, started(folder, *overrides) as second:
        for process in (first, second):
            _, errors = process.communicate(timeout=180)
            assert process.returncode == 0, errors


@pytest.mark.slow
def test_two_processes_share_one_total(tmp_path: Path) -> None:
    """Started at the same moment in an empty folder, they run the total together and no more."""
    twice(tmp_path, *COMMAND, "epochs=400")  # so that the first is not at its end before the other begins
    check(shared(tmp_path), 12)
    assert len({values_of(trial)["optimizer.lr"] for trial in shared(tmp_path)}) == 12
    assert len({trial.user_attrs["owner"] for trial in shared(tmp_path)}) == 2


@pytest.mark.slow
def test_a_password_in_the_storage_is_refused(tmp_path: Path) -> None:
    """Before anything is written."""
    url = "postgresql+psycopg://me:hunter2@localhost/db"
    done = command(tmp_path, "sweep=lr", f"sweep.storage='{url}'")
    assert done.returncode == 1
    assert "sweep.storage must hold no password" in done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file() and "hunter2" in path.read_text(errors="ignore")]
    assert not written


class AfterThree(BasePruner):
    """Stops a trial whose last epoch is 3 or later."""

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:  # noqa: ARG002
        """Whatever it was asked before."""
        assert trial.last_step is not None
        return trial.last_step >= 3


def test_a_member_that_is_trained_again_is_judged_as_before() -> None:
    """Its worker died: what a pruner knows of its later epochs must not stop it at an early one."""
    study = optuna.create_study()
    study.ask()
    judge = Judge(study, AfterThree())
    judge.refresh(study.get_trials())
    first, again = ([judge.stops(0, epoch, 1.0) for epoch in (1, 2, 3)] for _ in range(2))
    assert first == again == [False, False, True]
