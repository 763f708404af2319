"""Claims: statistics against closed forms and scipy, the three answers, and an experiment from command to verdict."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import CONF, ROOT, command, judged_by, options
from manyfit.config.errors import ConfigError
from manyfit.experiments import Chart, Region, Run, Series, charts, claims, runs, verdict
from manyfit.plots.style import png
from manyfit.statistics import POSITIVE, effect
from test_cli import runs as stored_runs

overfitting = judged_by("overfitting").overfitting
descends_again = judged_by("overfitting").descends_again

SEEDS = range(8)
APART = ("architectures",)  # which experiment=all leaves out


def made(seed: int, train: Sequence[float], val: Sequence[float], **settings: object) -> Run:
    """A run with these curves."""
    curves = {"loss/train": np.array(train), "loss/val": np.array(val), "loss/gap": np.array(val) - np.array(train)}
    return Run({"seed": seed, "data.train_size": 1000, "data.label_noise": 0.0, **settings}, curves)


def test_lost_seeds_decide_nothing() -> None:
    """Eight clear values beside some that diverged are no evidence on all of them."""
    assert verdict.decide(effect([1.0, 1.1] * 4)) == "holds"
    assert verdict.decide(effect([1.0, 1.1] * 4 + [np.inf])) == "undecided"


def test_what_nothing_was_left_to_measure_is_unknown() -> None:
    """In a claim's own words nan is unknown; words that hold these letters stay."""
    said = f"It costs {np.nan:.0%} of loss, {np.nan:+.1%} of accuracy, {np.nan:.2f} for Nancy and nanodegrees."
    assert verdict.known(said) == "It costs unknown of loss, unknown of accuracy, unknown for Nancy and nanodegrees."


@pytest.mark.parametrize(
    ("values", "answer"),
    [([1.0, 1.1] * 4, "holds"), ([-1.0, -1.1] * 4, "fails"), ([1.0, -1.1] * 4, "undecided"), ([1.0] * 3, "undecided")],
)
def test_three_answers(values: Sequence[float], answer: str) -> None:
    """Above, below, across; and too few seeds decide nothing."""
    assert verdict.decide(effect(values)) == answer


def test_a_difference_is_told_by_its_sign() -> None:
    """Nothing is -0.1 lower."""
    assert verdict.told(effect([0.1] * 8), "lower", "higher") == "0.1 [0.1, 0.1] lower"
    assert verdict.told(effect([-0.1] * 8), "lower", "higher") == "0.1 [0.1, 0.1] higher"


def test_holm_is_stricter_than_one_by_one() -> None:
    """A comparison that is decided by itself is not beside many that are not; clear ones stay."""
    rng = np.random.default_rng(0)
    border = rng.normal(0, 1, 8)
    border += 2.6 * border.std(ddof=1) / np.sqrt(8) - border.mean()
    noise = {f"n{i}": np.array([1.0, -1.1] * 4) for i in range(6)}
    alone, among = verdict.holm({"border": border}), verdict.holm({"border": border, "clear": [5.0, 5.1] * 4, **noise})
    assert alone["border"][0] == "holds"
    assert among["border"][0] == "undecided"
    assert among["clear"][0] == "holds"
    assert verdict.all_of([answer for answer, _ in among.values()]) == "undecided"


def test_measures_of_a_run() -> None:
    """Best, last and first epoch at a target, between epochs; a diverged run is infinitely bad."""
    run = made(0, [3, 2, 1, 0], [3, 1, 2, np.nan])
    assert run.reaches("loss/train", 1.5) == 1.5
    assert run.reaches("loss/train", -1) == np.inf
    assert run.best("loss/val") == 1
    assert run.final("loss/val") == 2
    assert Run(run.settings, run.metrics, diverged=True).final("loss/val") == np.inf


def test_a_group_is_called_by_the_name_of_what_is_built() -> None:
    assert Run({"seed": 0, "optimizer._target_": "torch.optim.Adam"}, {})["optimizer"] == "Adam"


def test_runs_are_paired_by_seed() -> None:
    """In whatever order; a seed that one side lacks is left out."""
    ours, theirs = [made(s, [0], [s + 1.0]) for s in (2, 0, 1)], [made(s, [0], [2.0 * s]) for s in (0, 1, 5)]
    assert sorted(runs.differences(ours, theirs, lambda r: r.final("loss/val"))) == [0.0, 1.0]


@pytest.mark.parametrize(("rise", "answer"), [(1.0, "holds"), (0.0, "fails"), (None, "undecided")])
def test_overfitting(rise: float | None, answer: str) -> None:
    """Wide networks that turn by 50%, that do not turn, that turn in some seeds only."""
    assert overfitting(widths(rise)).answer == answer


def test_the_ideal_lies_between() -> None:
    """The widest turns and the narrowest is the worst at its best: if the widest is best at the end, it fails still."""
    assert overfitting(widths(1.0, middle=1.4)).answer == "holds"
    assert overfitting(widths(1.0, middle=1.6)).answer == "fails"


def test_noise_is_told_as_what_it_is() -> None:
    """Labels of a classification are wrong, numbers are blurred; where all runs have noise, theirs is judged."""
    noisy = [replace(run, settings={**run.settings, "data.label_noise": 0.4}) for run in widths(1.0)]
    numbers = [replace(run, metrics={**run.metrics, "rmse/val": run.metrics["loss/val"]}) for run in noisy]
    assert "With 40% of labels wrong a second descent" in overfitting(noisy).sentence
    assert "With noise of 0.4 deviations in the target a second descent" in overfitting(numbers).sentence
    assert "second descent" not in overfitting(widths(1.0)).sentence


@pytest.mark.parametrize(
    ("shape", "seen"),
    [([3, 1, 2, 1.5], True), ([3, 1, 2, 2.5], False), ([3, 2, 1, 0.5], False), ([3, 1, 1, 1], False)],
)
def test_a_second_descent_is_seen_in_seeds_that_did_not_choose_it(shape: list[float], seen: bool) -> None:
    """It falls, rises and falls again; it stays up; it only falls; it falls and stays."""
    noise = np.random.default_rng(0).normal(0, 0.05, (16, len(shape)))
    assert descends_again(np.array(shape) + noise) == seen


def test_chance_is_no_second_descent() -> None:
    """However many places there are to go up and down at."""
    many = np.random.default_rng(1).normal(0, 1, (200, 16, 60))
    assert np.mean([descends_again(losses) for losses in many]) <= 0.05


def widths(rise: float | None, middle: float = 1.0) -> list[Run]:
    """Three widths, sixteen seeds; the middle one ends at this validation loss."""
    every = []
    for seed in range(16):
        turn = rise if rise is not None else float(seed // 2 % 2) * 0.4
        for width, low in ((2, 1.8), (16, 1.0), (64, 1.0)):
            end = low + (0.5 * turn if width == 64 else 0.01 * seed / 8)
            end += (middle - 1.0) * (width == 16)
            every.append(made(seed, [2.3, 1, 0.5], [2.3, low + 0.001 * seed, end], **{"model.hidden": [width]}))
    return every


def test_a_curve_may_be_over_another_clock() -> None:
    """Mean and interval of the metric, at the mean of what is counted; epochs that a run lacks are left out."""
    every = []
    for seed, end in ((0, 1.0), (1, np.nan)):
        one = made(seed, [3, 2, end], [3, 2, 1])
        clock = {"time/seconds": np.array([0.0, 2.0 + seed, 8.0])}
        every.append(Run(one.settings, {**one.metrics, **clock}))
    assert runs.curve("a", every, "loss/train", "time/seconds").x == [0, 2.5]
    assert runs.curve("a", every, "loss/val").x == [0, 1, 2]


def test_the_band_of_a_curve_is_the_interval_of_a_verdict() -> None:
    """At every epoch, also where it would reach below 0; of a single run there is none."""
    every = [made(seed, [3, 2], [2.0, loss]) for seed, loss in enumerate([0.001, 0.002, 0.9])]
    band = runs.curve("a", every, "loss/val")
    found = effect([0.001, 0.002, 0.9], limits=POSITIVE)
    assert (band.low[1], band.y[1], band.high[1]) == pytest.approx((found.low, found.mean, found.high))  # type: ignore[index]
    assert band.low[1] > 0  # type: ignore[index]
    assert np.isnan(runs.curve("a", every[:1], "loss/val").low).all()  # type: ignore[arg-type]


def test_charts_draw_what_they_are_given() -> None:
    """Lines with bands, words as bars, a level, a map: a picture for each."""
    line = Series("a", [1, 10, 100], [1, 2, 3], [0.9, 1.9, 2.9], [1.1, 2.1, 3.1])
    words = Series("b", ["relu", "tanh"], [1, 2], [0.5, 1.5], [1.5, 2.5])
    grid = np.linspace(0, 1, 5)
    region = Region("after", ("u", "v"), grid, grid, np.outer(grid, grid), np.random.rand(9, 2), np.arange(9) % 2)
    panels = (Chart("x", "y", [line], x_log=True, level=(2, "target")), Chart("x", "y", [words]), region)
    panels += (panels[0],) * 2  # a second row, with a place that stays empty
    found = verdict.Verdict("holds", effect([1.0] * 8), "units", "It does.", "It does", panels)
    assert png(charts.draw(found, "title")).startswith(b"\x89PNG")
    assert "| holds |" in charts.verdicts([("one", found)])


@pytest.mark.parametrize("name", ["nothing_of_that_name", "os.system", "manyfit.statistics.effect"])
def test_only_judges_are_let_through(name: str) -> None:
    """What is not trusted, is not there, or is not annotated to return a Verdict, is refused by the key's name."""
    with pytest.raises(
        ConfigError, match=r"^claim must (name a function|be of a module|be one of architectures, batch_size, )"
    ):
        claims.find(name, [CONF])


def own(folder: Path, change: tuple[str, str] = ("", "")) -> subprocess.CompletedProcess[str]:
    """Run the worked example of the README, with a change to its function."""
    text = (ROOT / "README.md").read_text()
    named = r"```(yaml|python)\n((?:#[^\n]*\n)?# (?:experiments/wine_width.yaml|mychecks.py)[^`]*)```"
    blocks = dict(re.findall(named, text))
    (folder / "experiment").mkdir()
    (folder / "experiment" / "wine_width.yaml").write_text(blocks["yaml"])
    (folder / "mychecks.py").write_text(blocks["python"].replace(*change))
    return command(folder, f"--config-dir={folder}", "experiment=wine_width", PYTHONPATH=str(folder))


def test_the_readmes_own_experiment(tmp_path: Path) -> None:
    """The worked example, as it stands in the README, comes to its verdict."""
    done = own(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "verdict  holds: 64 units end" in done.stdout


def test_a_claim_that_raises_loses_nothing(tmp_path: Path) -> None:
    """The runs are finished and reported on; the parent says what was wrong, and the exit code is 1."""
    done = own(tmp_path, ('"model.hidden"', '"model.hiden"'))
    assert done.returncode == 1
    assert "the claim could not be judged: KeyError: \"the runs have no setting 'model.hiden'\"" in done.stderr
    assert 'by(runs, "model.hiden")' in done.stderr  # the line of the claim itself
    assert "16 runs of 2 settings with 8 seeds each (16 finished" in done.stdout
    found = stored_runs(tmp_path)
    (parent,) = [run for run in found if run.data.tags.get("manyfit.kind") == "sweep"]
    assert [run.info.status for run in found if run is not parent] == ["FINISHED"] * 16
    assert parent.info.status == "FAILED"
    assert "KeyError" in parent.data.tags["error"]


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list]:
    """The folder, the output and the runs of all quick versions in one command, which ends with their table."""
    folder = tmp_path_factory.mktemp("course")
    done = command(folder, "experiment=all", "quick=true", seconds=400)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, stored_runs(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in options("experiment") if name not in ("all", *APART)])
def test_quick_experiment(course: tuple[Path, str, list], name: str) -> None:
    """From the command to a verdict and a figure on the parent run; two seeds decide nothing."""
    folder, said, found = course
    (parent,) = [run for run in found if run.data.tags.get("claim") == name]
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["verdict"] == "undecided"
    assert f"| {name} | undecided |" in said
    assert len(list((folder / "mlruns" / "artifacts" / parent.info.run_id).rglob(f"{name}.png"))) == 1
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) >= 2
    assert {run.info.status for run in children} <= {"FINISHED", "FAILED"}
