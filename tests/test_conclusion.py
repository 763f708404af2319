"""The report on a sweep: numbers against scipy, honest warnings, a command that reruns, a readable note."""

import contextlib
import csv
import io
import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Compose, made
from manyfit.config.schema import Config, with_seed
from manyfit.progress import Screen
from manyfit.statistics import POSITIVE, Effect, effect
from manyfit.sweeps import cautions, conclusion, confirmation, findings, grids, report, rerun
from manyfit.sweeps.findings import Row, ranked
from manyfit.sweeps.parent import Child, Sweep

LR = "optimizer.lr"


@dataclass
class FakeRun:
    """Keeps what it is given."""

    id: str = "own"
    run_id: str | None = "mlflow"
    files: dict[str, bytes] = field(default_factory=dict)
    tagged: dict[str, str] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    models: int = 0

    def storing(self, _: str) -> contextlib.AbstractContextManager[None]:
        """Nothing goes wrong here."""
        return contextlib.nullcontext()

    def file(self, name: str, content: bytes) -> None:
        """An artifact."""
        self.files[name] = content

    def tags(self, tags: Mapping[str, str]) -> None:
        """Tags."""
        self.tagged |= tags

    def metrics(self, rows: list[tuple[str, float, int]]) -> None:
        """Values."""
        self.measured |= {name: value for name, value, _ in rows}

    def model(self, *_: object) -> None:
        """Counted."""
        self.models += 1


@dataclass
class FakeSweep:
    """Its runs end where `ends` says."""

    config: Config
    ends: Callable[[Config], float]
    parent: Any = field(default_factory=FakeRun)
    tags: dict[int, dict[str, str]] = field(default_factory=dict)
    children: dict[int, Child] = field(default_factory=dict)
    prune: Any = None
    screen: Screen = field(default_factory=lambda: Screen(""))
    calls: list[dict[int, Config]] = field(default_factory=list)

    def train(self, configs: Mapping[int, Config]) -> list[Child]:
        """Made-up results."""
        assert self.prune is None
        self.calls.append(dict(configs))
        found = [child(number, config, self.ends(config)) for number, config in configs.items()]
        self.children |= {one.number: one for one in found}
        return found


def child(number: int, config: Config, end: float) -> Child:
    run: Any = FakeRun(id=f"own{number}", run_id=f"run{number}")
    return Child(number, config, run, made(config, end))


def row(number: int, value: float, state: str = "finished", seed: int = 0, **params: Any) -> Row:
    named = {key.replace("__", "."): item for key, item in params.items()}
    return Row(number, named, value, state, seed, np.array([2.0, value]), None, None, None, None)


def by_rate(config: Config) -> float:
    """Best at a rate of 0.01, with some noise that depends on the seed."""
    noise = 0.02 * math.sin(config.seed)
    return 0.3 + abs(math.log10(config.optimizer.lr) + 2) / 3 + noise


def at(config: Config, lr: float, seed: int) -> Config:
    """The same config at another rate, without composing it again."""
    source = {**config.source, "optimizer": {**config.source["optimizer"], "lr": lr}}
    optimizer = config.optimizer.model_copy(update={"lr": lr})
    return with_seed(config.model_copy(update={"source": source, "optimizer": optimizer}), seed)


@pytest.fixture
def swept(composed: Compose) -> FakeSweep:
    """Three rates with two optimizers and four seeds, trained."""
    sweep = FakeSweep(composed("data=iris", "epochs=2"), by_rate)
    options = [composed("data=iris", "epochs=2", f"optimizer={name}") for name in ("adam", "sgd")]
    jobs = [at(config, lr, seed) for config in options for lr in (1e-3, 1e-2, 1e-1) for seed in range(4)]
    sweep.train(dict(enumerate(jobs)))
    sweep.calls.clear()
    return sweep


def test_settings_are_means_over_seeds_with_the_interval_of_all() -> None:
    """That of `statistics.effect`, which knows that a loss is positive."""
    values = [0.3, 0.5, 0.34, 0.01]
    (setting,) = ranked([row(i, value, seed=i, optimizer__lr=0.1) for i, value in enumerate(values)], limits=POSITIVE)
    expected = effect(values, limits=POSITIVE)
    assert setting.mean == pytest.approx(np.mean(values))
    assert setting.low > 0
    assert (setting.low, setting.high) == pytest.approx((expected.low, expected.high))


def test_what_has_no_value_does_not_count() -> None:
    """Pruned and NaN runs stay out of the mean; settings without any value come last."""
    rows = [row(0, math.nan, lr=1), row(1, 0.1, "pruned", lr=2), row(2, 0.5, lr=3), row(3, math.nan, seed=1, lr=3)]
    settings = ranked(rows)
    assert settings[0].params == {"lr": 3}
    assert (settings[0].mean, len(settings[0].counted)) == (0.5, 1)
    assert all(math.isnan(setting.mean) for setting in settings[1:])


def test_a_setting_that_diverged_for_a_seed_does_not_win() -> None:
    """However good its other seeds are."""
    rows = [row(0, 0.1, lr=1), row(1, math.nan, "diverged", seed=1, lr=1), row(2, 0.5, lr=2)]
    assert ranked(rows)[0].params == {"lr": 2}


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


def test_direction_turns_the_ranking() -> None:
    """Accuracy is to be large."""
    rows = [row(i, value, lr=i) for i, value in enumerate((0.2, 0.9, 0.5))]
    assert [s.mean for s in ranked(rows, "maximize")] == [0.9, 0.5, 0.2]


@pytest.mark.parametrize(
    ("best", "given", "side"),
    [
        (1e-3, [1e-3, 1e-2, 1e-1], "lowest"),
        (1e-1, [1e-3, 1e-2, 1e-1], "highest"),
        (1e-2, [1e-3, 1e-2, 1e-1], None),
        (1.1e-5, (1e-5, 1e-1), "lowest"),
        (9.9e-2, (1e-5, 1e-1), "highest"),
        (2e-2, (1e-5, 1e-1), None),
        (0.0, [0.0, 0.5], None),
        (0.5, [0.0, 0.5], "highest"),
        (32, [32], None),
        (128, [16, "full", 128], "highest"),
    ],
)
def test_edges(best: float, given: Any, side: str | None) -> None:
    """The rim of a range in decades, the ends of a list; 0 is a natural end."""
    assert cautions._side(best, given) == side


def test_edge_warning_names_the_key() -> None:
    """And what to try."""
    settings = ranked([row(i, float(i), optimizer__lr=lr) for i, lr in enumerate((0.1, 0.01))])
    assert any("optimizer.lr, 0.1, is the highest tried: higher" in line for line in cautions.sentences([], settings))


def test_seed_warnings() -> None:
    """One seed cannot tell; overlapping intervals do not; clear differences pass."""
    one = ranked([row(i, float(i), lr=i) for i in range(3)])
    near = ranked([row(2 * i + s, i + 3.0 * s, seed=s, lr=i) for i in range(2) for s in range(2)])
    clear = ranked([row(3 * i + s, 10 * i + 0.1 * s, seed=s, lr=i) for i in range(2) for s in range(3)])
    assert "one seed" in cautions._seeds(one)[0]
    assert "overlap" in cautions._seeds(near)[0]
    assert cautions._seeds(clear) == []


def test_share_of_bad_runs_and_unequal_budgets(composed: Compose) -> None:
    """Both are said; a good sweep hears neither."""
    configs = [composed("data=iris", f"epochs={epochs}") for epochs in (2, 5)]
    rows = [replace(row(i, 1.0, lr=i), config=config) for i, config in enumerate(configs)]
    rows += [row(2, math.nan, "failed", lr=2), row(3, math.nan, "diverged", lr=3)]
    found = " ".join(cautions.sentences(rows, ranked(rows)))
    assert "1 diverged and 1 failed of 4 runs" in found
    assert "epochs from 2 to 5" in found
    good = " ".join(cautions.sentences(rows[:1], ranked(rows[:1])))
    assert good == ""


def test_importance_finds_what_matters() -> None:
    """Shares add up to one, and noise has little."""
    rng = np.random.default_rng(0)
    rows = [row(i, abs(math.log10(lr) + 2), optimizer__lr=lr, noise=float(rng.uniform()))
            for i, lr in enumerate(10.0 ** rng.uniform(-4, 0, 40))]  # fmt: skip
    shares = findings.importances(ranked(rows))
    assert list(shares) == [LR, "noise"]
    assert shares[LR] > 0.8
    assert sum(shares.values()) == pytest.approx(1)


def test_rows_of_a_grid_say_what_varies(swept: FakeSweep) -> None:
    """The chosen optimizer and the rate: neither the seed nor what follows from the optimizer."""
    rows = grids.rows_of(swept.children)
    assert len(rows) == 24
    assert rows[0].params == {"optimizer": "adam", LR: 1e-3}
    assert {row.seed for row in rows} == {0, 1, 2, 3}
    assert len(ranked(rows)) == 6


def test_rows_of_failed_and_diverged_children(composed: Compose) -> None:
    """A child without a result failed; lists become text."""
    configs = [composed("data=iris", f"model.hidden=[{width}]") for width in (4, 8)]
    run: Any = FakeRun()
    children = {0: Child(0, configs[0], run, error=ValueError("no")), 1: child(1, configs[1], math.nan)}
    rows = grids.rows_of(children)
    assert [row.state for row in rows] == ["failed", "diverged"]
    assert rows[1].params == {"model.hidden": "[8]"}


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("data=iris", "optimizer=sgd", "optimizer.lr=0.03", "seed=7", "batch_size=full"),
        ("model.hidden=[8,4]", "model.dropout=0.25", "schedule=cosine", "name='a b, c'"),
        ("data=csv", "data.path='my file.csv'", "data.target=y", "trainer.patience=3"),
        ("optimizer=adamw", "~optimizer.weight_decay", "+optimizer.foreach=false", 'name="it\'s"'),
        ("name='1e3'", "data.train_size=100", "optimizer.lr=1e-5", "trainer.deterministic=false"),
    ],
)
def test_the_command_composes_the_config(composed: Compose, overrides: tuple[str, ...]) -> None:
    """Parsed back as a shell and Hydra do, it is the same config."""
    config = composed(*overrides)
    words = shlex.split(rerun.command(config))
    assert words[:2] == ["manyfit", "run"]
    again = composed(*words[2:])
    assert again.flat() == config.flat()
    assert again == config


def test_the_command_of_a_table_of_ones_own_is_short(composed: Compose) -> None:
    """What only the user can give is named, and of the rest what differs."""
    config = composed("data=csv", "data.path='my file.csv'", "data.target=y", "epochs=7")
    said = {"data=csv", "optimizer=adam", "data.path='my file.csv'", "data.target=y", "epochs=7"}
    assert set(shlex.split(rerun.command(config))[2:]) == said | {"optimizer.lr=0.001", "batch_size=32", "seed=0"}


def test_fresh_seeds_are_fresh() -> None:
    """Not one of those searched with, all different."""
    used = [0, 1, 1000, 1003]
    seeds = confirmation.fresh_seeds(used, 8)
    assert len(set(seeds)) == 8
    assert not set(seeds) & set(used)


def test_confirmation_in_words() -> None:
    """Better, worse, or cannot be told; a single pair has no interval; who won of several, and how that was judged."""

    def words(*interval: float, compared: int = 1, place: int = 0, lost: tuple[int, int] = (0, 0)) -> str:
        found, test = Effect(*interval, n=8), Effect(1.2, 0.4, 2, 8)  # type: ignore[misc]
        its = (compared, place, place, found, test, "accuracy/test", *lost)
        return confirmation.Confirmation(8, "loss/val", *its).words()

    assert words(0.031, 0.012, 0.05) == (
        "confirmed: best beats default by 0.031 [0.012, 0.05] in loss/val, with test accuracy 1.2 [0.4, 2.0] points "
        "higher, over 8 fresh seeds"
    )
    assert words(-0.031, -0.05, -0.012).startswith("refuted: default beats best by 0.031 [0.012, 0.05] in loss/val")
    assert words(0.01, -0.1, 0.12).startswith("not confirmed")
    for gain, said in ((0.2, "RMSE 0.2 [0.1, 0.3] lower"), (-0.2, "RMSE 0.2 [0.1, 0.3] higher")):
        assert confirmation._tested(Effect(gain, gain - 0.1, gain + 0.1, 8), "rmse/test") == said
    assert "interval unknown" in words(0.01, math.nan, math.nan)
    three = words(0.031, 0.012, 0.05, compared=3, place=2)
    assert three.startswith("confirmed: third best beats default by 0.031")
    assert three.endswith("over 8 fresh seeds; 3 settings were compared: intervals of 98.3%")
    assert words(0.03, 0.01, 0.05, lost=(2, 0)) == (
        "refuted: best failed or diverged on 2 of 8 fresh seeds, default on 0."
    )
    assert words(-0.03, -0.05, -0.01, lost=(0, 1)) == (
        "confirmed: default failed or diverged on 1 of 8 fresh seeds, best on 0."
    )


def test_the_best_of_three_is_chosen_on_the_fresh_seeds(composed: Compose) -> None:
    """Its gain has an interval that holds for all three at once; one that diverges for a seed comes after the rest."""
    default = composed("data=iris")
    ends = {1e-1: 0.5, 1e-2: 0.3, 1e-3: 0.4, default.optimizer.lr * 1.5: 0.1}

    def ended(config: Config) -> float:
        lost = config.optimizer.lr == 1.5 * default.optimizer.lr and config.seed == 1003
        return math.nan if lost else ends.get(config.optimizer.lr, 0.45) + 0.02 * math.sin(config.seed)

    rivals = {rank: at(default, lr, 0) for rank, lr in ((0, 1e-1), (2, 1e-2), (3, default.optimizer.lr * 1.5))}
    found = confirmation.confirm(
        FakeSweep(default, ended).train, rivals, at(default, 0.5, 0), 0, range(1000, 1008),
        lambda result: result.summary.best_loss_val, "loss/val",
    )  # fmt: skip
    assert (found.place, found.rank, found.wins, found.lost) == (1, 2, True, 0)  # the search's second was the default
    assert found.gain == effect([0.45 - 0.3] * 8, 1 - 0.05 / 3)
    assert [child.config.optimizer.lr for child in found.runs] == [1e-2] * 8


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


def test_the_table_holds_every_setting(swept: FakeSweep) -> None:
    """Sorted, readable by csv."""
    settings = ranked(grids.rows_of(swept.children))
    read = list(csv.DictReader(io.StringIO(report.table_csv(settings))))
    assert len(read) == 6
    assert [float(line["mean"]) for line in read] == sorted(setting.mean for setting in settings)
    assert (read[0]["n"], read[0]["finished"], read[0]["seeds"]) == ("4", "4", "0 1 2 3")
    assert report.table(settings, "best loss/val").count("\n") == 8


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


@pytest.mark.parametrize(
    ("keys", "objective", "classification", "apart"),
    [
        (["data", "optimizer"], "best loss/val", True, ["data"]),
        (["data.path", "data.label_noise"], "best accuracy/val", True, ["data.path"]),
        (["loss", "loss.delta"], "best loss/val", False, ["loss", "loss.delta"]),
        (["loss"], "best accuracy/val", True, []),
        (["data.train_size"], "best loss/val", True, []),
        (["data.train_size"], "best loss/val", False, ["data.train_size"]),
        (["data.train_size"], "best rmse/val", False, []),
    ],
)
def test_what_cannot_be_compared(keys: list[str], objective: str, classification: bool, apart: list[str]) -> None:
    """Other validation examples, another scale of the loss, another unit of it."""
    assert findings.incomparable(keys, objective, classification) == apart


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


def test_value_of(composed: Compose) -> None:
    """The objective by its name."""
    result = made(composed("data=iris"), 0.4)
    assert findings.value_of(result, "best loss/val") == 0.4
    assert findings.value_of(result, "best accuracy/val", "maximize") == pytest.approx(0.9)
    assert findings.value_of(result, "last accuracy/val", "maximize") == pytest.approx(0.9)


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
