"""A finished sweep is confirmed, reported and stored."""

import math
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import Compose
from manyfit.config.schema import Config
from manyfit.sweeps import conclusion, grids
from manyfit.sweeps.parent import Sweep
from swept import LR, FakeRun, FakeSweep, at, by_rate, row


def test_copies_are_one_observation(composed: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    """Twenty runs of one setting and seed have no interval, and count once everywhere."""
    sweep = FakeSweep(composed("data=iris"), by_rate)
    rows = [row(i, 0.111, optimizer__lr=0.1) for i in range(20)] + [row(20, 0.2, optimizer__lr=0.2)]
    conclusion.conclude(sweep, rows)
    out = capsys.readouterr().out
    assert "best loss/val 0.111 with one seed" in out
    assert "2 runs of 2 settings with 1 seed" in out
    assert "19 of 21 runs repeat the setting and seed of another, and do not count" in out
    assert "| 0.1 | 1 | 0.111 |" in sweep.parent.files["table.md"].decode()
    assert sweep.parent.tagged["sweep.runs"] == "2"


def test_a_grid_is_reported(swept: FakeSweep, capsys: pytest.CaptureFixture[str], composed: Compose) -> None:
    """Files, tags, metrics, note and the best child's picture and model; no history and no confirmation for a grid."""
    conclusion.conclude(swept, grids.rows_of(swept.children))
    parent: FakeRun = swept.parent
    expected = "lr_sensitivity.png curves.png importance.png table.md table.csv best.yaml best_command.txt"
    assert set(parent.files) == set(expected.split())
    assert swept.calls == []
    best = swept.children[4]
    assert parent.tagged["best.run_id"] == "run4"
    assert parent.tagged["sweep.runs"] == "24"
    assert parent.measured["sweep/finished"] == 24
    assert parent.measured["best/value"] == pytest.approx(np.mean([0.3 + 0.02 * math.sin(s) for s in range(4)]))
    assert composed(*shlex.split(parent.files["best_command.txt"].decode())[2:]) == best.config
    drawn = {number for number, one in swept.children.items() if one.run.models}  # type: ignore[attr-defined]
    assert drawn == {4}
    note = parent.tagged["mlflow.note.content"]
    assert "on iris: 24 runs of 6 settings with 4 seeds" in note
    assert "optimizer.lr=0.01** won: best loss/val 0.3" in note
    assert "manyfit run data=iris optimizer=adam" in note
    assert " best  optimizer=adam, optimizer.lr=0.01" in capsys.readouterr().out


def test_a_search_is_confirmed_on_fresh_seeds(swept: FakeSweep) -> None:
    """In one call, tagged, numbered after the search, without pruning; with a history."""
    swept.prune = prune = object()
    rows = grids.rows_of(swept.children)
    conclusion.conclude(swept, rows, default=swept.config, confirm_seeds=5, space={LR: (1e-3, 1e-1)})
    (trained,) = swept.calls
    assert list(trained) == list(range(24, 44))
    seeds = [config.seed for config in trained.values()]
    assert seeds == 4 * seeds[:5]
    assert not set(seeds) & {0, 1, 2, 3}
    assert all(config.source["seed"] == config.seed for config in trained.values())
    assert {config.optimizer.lr for config in list(trained.values())[:5]} == {0.01}
    assert swept.tags[24] == {"manyfit.role": "confirmation"}
    assert swept.prune is prune
    assert swept.config.source["seed"] == 0
    assert "**Confirmed:** best beats default by 0.333 [0.333, 0.333]" in swept.parent.tagged["mlflow.note.content"]
    assert "history.png" in swept.parent.files


def test_what_won_the_confirmation_is_recommended(composed: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    """The second best, or the default itself: in the summary, the note, the command, best.yaml and the tags."""
    default = composed("data=iris")
    for wins in (0.02, default.optimizer.lr):

        def ended(config: Config, wins: float = wins) -> float:
            return (0.3 if config.optimizer.lr == wins else 0.4) + 0.01 * math.sin(config.seed)

        rates = (0.01, 0.02, 0.03, 0.04)
        found = [(at(default, lr, 0), 0.1 + lr) for lr in rates]
        rows = [replace(row(i, v, optimizer__lr=c.optimizer.lr), config=c) for i, (c, v) in enumerate(found)]
        sweep = FakeSweep(default, ended)
        conclusion.conclude(sweep, rows, default=default, confirm_seeds=4, space={LR: (1e-3, 1)})
        assert {config.optimizer.lr for config in sweep.calls[0].values()} == {*rates[:3], default.optimizer.lr}
        again = composed(*shlex.split(sweep.parent.files["best_command.txt"].decode())[2:])
        assert again.optimizer.lr == wins
        assert f"lr: {wins}" in sweep.parent.files["best.yaml"].decode()
        note, out = sweep.parent.tagged["mlflow.note.content"], capsys.readouterr().out
        named = "second best beats default" if wins == 0.02 else "default beats best by"
        assert named in note
        assert named in out
        name = f"{'' if wins == 0.02 else 'the default, '}optimizer.lr={wins}"
        assert f"**{name}** won" in note
        assert f" best  {name} (its best run: " in out


def test_the_default_need_not_be_confirmed(swept: FakeSweep) -> None:
    """When it is the best itself."""
    default = swept.children[6].config
    conclusion.conclude(swept, grids.rows_of(swept.children), default=default)
    assert swept.calls == []
    assert "the best config is the default" in swept.parent.tagged["mlflow.note.content"]


def test_a_best_run_of_an_earlier_session(composed: Compose) -> None:
    """With its config there are command, confirmation and best.yaml; without it there is no crash."""
    default = composed("data=iris")
    for known in (True, False):
        sweep = FakeSweep(default, by_rate)
        configs = [at(default, lr, 0) for lr in (0.1, 0.01)]
        rows = [row(i, by_rate(config), optimizer__lr=config.optimizer.lr) for i, config in enumerate(configs)]
        rows = [replace(one, config=config if known else None) for one, config in zip(rows, configs, strict=True)]
        conclusion.conclude(sweep, rows, default=default, confirm_seeds=2, space={LR: (1e-3, 1)})
        assert ("best.yaml" in sweep.parent.files) == known
        assert [len(call) for call in sweep.calls] == ([6] if known else [])  # its picture is that of a run of these


MIXTURES = {
    "none": [],
    "one": [row(0, 0.5, optimizer__lr=0.1)],
    "seeds only": [row(i, 0.5 + i, seed=i) for i in range(3)],
    "all failed": [row(i, math.nan, "failed", optimizer__lr=0.1 * (i + 1)) for i in range(3)],
    "all diverged": [row(i, math.nan, "diverged", optimizer__lr=0.1 * (i + 1)) for i in range(3)],
    "all pruned": [row(i, 0.3, "pruned", optimizer__lr=0.1 * (i + 1)) for i in range(3)],
    "mixed": [row(i, 0.3 * i, state, optimizer__lr=0.1 * (i + 1), batch_size="full" if i % 2 else 8)
              for i, state in enumerate(("finished", "pruned", "diverged", "failed") * 4)],
    "missing params": [row(0, 0.3, optimizer__lr=0.1), row(1, 0.4, batch_size=8)],
}  # fmt: skip


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("name", MIXTURES)
def test_any_mixture_of_runs_is_reported(composed: Compose, name: str, direction: str) -> None:
    """There is always a note, a table and a summary."""
    default = composed("data=iris")
    sweep = FakeSweep(default, lambda config: math.nan if config.seed % 2 else 0.5)
    conclusion.conclude(sweep, MIXTURES[name], default=default, direction=direction, confirm_seeds=2)
    assert "mlflow.note.content" in sweep.parent.tagged
    assert "table.md" in sweep.parent.files


def test_runs_on_different_data_are_not_ranked(composed: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    """None is the best; all that was run is named, and listed in the order of the jobs."""
    sweep = FakeSweep(composed("data=wine"), lambda config: 0.5 if config.choices["data"] == "wine" else 0.1)
    sweep.train(
        {
            i: composed(f"data={name}", f"seed={seed}")
            for i, (name, seed) in enumerate((name, seed) for name in ("wine", "iris") for seed in (0, 1))
        }
    )
    conclusion.conclude(sweep, grids.rows_of(sweep.children))
    out = capsys.readouterr().out
    assert "data on wine, iris: 4 runs of 2 settings with 2 seeds each" in out
    assert "best  none: runs that differ in data cannot be compared by best loss/val" in out
    assert {"table.md", "table.csv"} == set(sweep.parent.files)
    wine, iris = (sweep.parent.files["table.csv"].decode().index(name) for name in ("wine", "iris"))
    assert wine < iris
    assert "best.run_id" not in sweep.parent.tagged


def test_tracking_off_prints_and_stores_nothing(composed: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers are wanted all the same."""
    sweep = FakeSweep(composed("data=iris", "tracking=off"), by_rate)
    conclusion.conclude(sweep, MIXTURES["one"])
    assert sweep.parent.files == {}
    assert "best loss/val 0.5" in capsys.readouterr().out


@pytest.mark.usefixtures("forked_uploader")
@pytest.mark.slow
def test_a_real_sweep_from_start_to_end(composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained, tracked and confirmed: the parent's artifacts are in the store."""
    monkeypatch.chdir(tmp_path)
    base = ("data=iris", "epochs=3", "trainer=cpu")
    default = composed(*base)
    with Sweep("rates", default) as sweep:
        sweep.train({i: composed(*base, f"optimizer.lr={lr}") for i, lr in enumerate((1e-2, 3e-2))})
        rows = grids.rows_of(sweep.children)
        conclusion.conclude(sweep, rows, default=default, confirm_seeds=2, space={LR: [1e-2, 3e-2]})
    names = {path.name for path in (tmp_path / "mlruns" / "artifacts").rglob("*.*")}
    assert {"lr_sensitivity.png", "curves.png", "history.png", "table.md", "best.yaml", "overfitting.png"} <= names
    assert len(sweep.children) == 2 + 3 * 2  # two fresh seeds each of the best, the second best and the default
