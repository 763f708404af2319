"""manyfit from Python: what the command does, as objects, with nothing of the process changed."""

import doctest
import gc
import inspect
import logging
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.version import VersionBase
from nbclient import NotebookClient
from omegaconf import OmegaConf
from sklearn.datasets import load_diabetes, load_wine
from torch import Tensor, nn

import manyfit as mf
from conftest import ROOT, Compose, assert_same_bits, command
from manyfit import library, results
from manyfit.config.errors import ConfigError
from manyfit.sweeps import findings
from manyfit.sweeps.report import summary
from manyfit.tracking.reading import filtered
from manyfit.training.fitting import fit

pytestmark = pytest.mark.usefixtures("forked_uploader")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Own(nn.Module):
    """A model of the caller's."""

    def __init__(self, in_features: int, out_features: int, width: int = 8, interrupt: bool = False) -> None:
        super().__init__()
        self.layers, self.interrupt = nn.Sequential(nn.Linear(in_features, width), nn.ELU()), interrupt
        self.output = nn.Linear(width, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, features) -> (rows, classes)."""
        if self.interrupt and self.training and torch.is_grad_enabled():
            raise KeyboardInterrupt
        return self.output(self.layers(x))


def test_every_example_is_true() -> None:
    """Those of the docstrings; every public name has a docstring."""
    public = {name: getattr(mf, name) for name in mf.__all__}
    assert [doctest.testmod(module, extraglobs=public).failed for module in (library, results)] == [0, 0]
    assert all(inspect.getdoc(getattr(mf, name)) for name in mf.__all__)


def test_the_same_bits_as_the_command(composed: Compose) -> None:
    """Of a single run, and of members of a grid."""
    (expected,) = fit([composed("data=wine", "epochs=3", "optimizer.lr=0.01", "seed=1")])
    assert_same_bits(mf.fit("data=wine", lr=0.01, seed=1, epochs=3, tracking="off").result, expected)
    runs = mf.grid("seed=range(3)", data="wine", lr=[0.01, 0.1], epochs=3, tracking="off")
    (same,) = (run for run in runs if (run.config.seed, run.config.optimizer.lr) == (1, 0.01))
    for name in set(expected.metrics) - {"time/seconds"}:
        np.testing.assert_array_equal(same.result.metrics[name], expected.metrics[name])


def test_what_is_stored_is_found_again() -> None:
    """By bare names; curves by epoch; the best run is one of them."""
    runs = mf.grid("optimizer=sgd,adam", "seed=range(2)", data="iris", epochs=4)
    frame = mf.runs(where="optimizer = 'adam' and accuracy/test >= 0 and epochs = '4'")
    assert list(frame["optimizer"]) == ["adam"] * 2
    assert set(mf.runs("iris")["id"]) == {run.id for run in runs}
    histories = mf.histories(frame)
    assert len(histories) == 2 * 5
    assert len(mf.histories(frame["id"][0])) == len(mf.histories(frame["id"][:1])) == 5
    assert len(mf.histories(mf.runs(where="optimizer = 'nobody'"))) == 0
    assert list(mf.runs(where="status = 'FINISHED' and name LIKE 'adam%'")["name"]) == list(frame["name"])
    with pytest.raises(ValueError, match="where must be a filter that MLflow understands"):
        mf.runs(where="optimizer === 3")
    with pytest.raises(ValueError, match=r"no run here has 'optimzer'. Did you mean optimizer or "):
        mf.runs(where="optimzer = 'adam' and accuracy/test > 0")
    with pytest.raises(ValueError, match=r"where must say what manyfit.session is: write tags.`manyfit.session`"):
        mf.runs(where="manyfit.session = 'x'")
    for where, message in (
        ("accuracy > 0.9", r"no run here has 'accuracy'. Did you mean accuracy/"),
        (
            "optimizer.lr > 0.001",
            r"text by = or LIKE.*frame\[frame\['optimizer.lr'\].astype\(float\) > 0.001",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            mf.runs(where=where)
    with pytest.raises(ValueError, match="experiment must be one of .*, but got 'irsi'. Did you mean iris"):
        mf.runs("irsi")
    assert len(mf.runs("iris", where="epochs == 4 and optimizer.lr = 1e-3 and accuracy/test > -1")) == 2
    assert len(mf.runs(where="name = 'adam lr=0.001 b=32 s=1'")) == 1
    assert len(mf.runs(where="name = 'adam lr=0.001 b=32 s=9'")) == 0
    (of_one,) = (run for run in runs if run.id == frame["id"][0])
    stored = histories[histories["id"] == of_one.id]["loss/val"]
    np.testing.assert_array_equal(stored, of_one.curves["loss/val"])
    assert runs.best().id in set(frame["id"]) | {run.id for run in runs}
    assert list(runs.table()["n"]) == [2, 2]
    with pytest.raises(ValueError, match="experiment must be one of .*iris.*, but got 'nothing'"):
        mf.runs("nothing")


@pytest.mark.parametrize(
    ("where", "theirs"),
    [
        ("optimizer = 'adam'", "tags.`optimizer` = 'adam'"),
        (
            "optimizer.lr='0.1' and accuracy/test > 0.9",
            "params.`optimizer.lr` ='0.1' and metrics.`accuracy/test` > 0.9",
        ),
        ("params.`optimizer.lr` = '0.1'", "params.`optimizer.lr` = '0.1'"),
        ("metrics.x > 1 and seed = '3'", "metrics.x > 1 and params.`seed` = '3'"),
        ("name like 'a%' and epochs == 4", "attributes.`run_name` like 'a%' and params.`epochs` = '4'"),
        ("optimizer.lr = 1e-3 and test>-.5", "params.`optimizer.lr` = '0.001' and metrics.`test` > -.5"),
        ("name = 'adam lr=0.1 b=64 s=0'", "attributes.`run_name` = 'adam lr=0.1 b=64 s=0'"),
    ],
)
def test_a_filter_of_bare_names(where: str, theirs: str) -> None:
    """A metric's has a slash, a param's a dot; MLflow's own way of saying it stays."""
    assert filtered(where).replace(" ", "") == theirs.replace(" ", "")


@pytest.mark.filterwarnings("ignore:the .* are taken for classes")
def test_ones_own_data_and_model() -> None:
    """A frame, arrays, a class; what is in memory is kept as a file, so that the run can be made again."""
    x, y = load_wine(return_X_y=True, as_frame=True)
    run = mf.fit(model=Own, data=(x, y), epochs=3, tracking="off")
    assert isinstance(run.result.predictor.network, Own)
    np.testing.assert_allclose(run.predict(x).sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(run.predict(x[x.columns[::-1]]), run.predict(x.to_numpy()))
    again = mf.fit(
        f"data.path={run.config.data.arguments['path']}", "data.target=y", data="csv", epochs=1, tracking="off"
    )
    assert len(again.result.features) == x.shape[1]
    table = x.assign(kind=y)
    mine = mf.fit(data=(table, "kind"), epochs=1, tracking="off")
    assert mine.config.title().endswith("target=kind s=0")
    assert mine.classes == ("0", "1", "2")
    with pytest.raises(ValueError, match="x must be numbers, or a frame if there are words in it"):
        mine.predict([["red"] * 13])
    frame = pd.DataFrame({"age": np.arange(60.0), "town": ["Ulm", "Bonn=a", "Kiel"] * 20, "y": ["no", "yes"] * 30})
    words = mf.fit(data=frame, epochs=1, tracking="off")
    assert words.result.features == ("age", "town=Bonn=a", "town=Kiel", "town=Ulm")
    rows = frame[["town", "age"]].head(3)
    by_hand = [[0, 0, 0, 1], [1, 1, 0, 0], [2, 0, 1, 0]]
    np.testing.assert_array_equal(words.predict(rows), words.predict(by_hand))
    one_hot = pd.get_dummies(rows, columns=["town"], prefix_sep="=")
    np.testing.assert_array_equal(words.predict(one_hot), words.predict(by_hand))
    for broken, message in (
        (rows.drop(columns="town"), "x must have the columns age, town, but has no town"),
        (rows[["age", "age", "town"]], "x must name each column once, but got 'age'"),
        (
            rows.assign(age="old"),
            "x must have a finite number .* but got 'old' in the frame, row 1, column 'age' and 2",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            words.predict(broken)
    for unknown in ("Rom", None):
        found = words.predict(rows.assign(town=unknown))[0]
        np.testing.assert_array_equal(found, words.predict([[0, 0, 0, 0]])[0])
    median = words.result.encoding.medians[0]
    found = words.predict(rows.assign(age=[None, 1, 2], town="Rom"))[0]
    np.testing.assert_array_equal(found, words.predict([[median, 0, 0, 0]])[0])
    values = mf.fit(data=load_diabetes(as_frame=True, scaled=False).frame, target="target", epochs=2, tracking="off")
    assert values.predict(np.zeros((2, 10))).shape == (2, 1)


def test_what_is_refused_is_refused_in_the_commands_words() -> None:
    """As a ConfigError, which is a ValueError; nothing is written."""

    class Local(Own):
        pass

    refused: list[tuple[dict[str, Any], str]] = [
        ({"lr": -1}, "optimizer.lr must be > 0, but got -1"),
        ({"optimizer": "adma"}, r"optimizer must be one of .*, but got adma. Did you mean adam\?"),
        ({"optimzer": "adam"}, r"optimzer must be a key of the config, .* Did you mean optimizer\?"),
        ({"data": pd.DataFrame({"a": [1.0], "b": [2.0]})}, "target must be a column of data, but got 'y'. Say which"),
        ({"model": Local}, "model must be a class at the top of a module"),
        ({"seed": "1,2", "sweep": "lr"}, "seed|fit must be given one run"),
        ({"sweep": "lr"}, "fit must be given one run, but got an experiment or a sweep. Use grid, or search."),
        ({"experiment": "dropout"}, "fit must be given one run"),
        ({"resume": "abc"}, "resume=... and experiment=all must be given to the command"),
        ({"data": ([[1.0], [2.0]], [1])}, "data must be as many rows as targets, but got 2 and 1"),
    ]
    for given, words in refused:
        with pytest.raises(mf.ConfigError, match=words):
            mf.fit(**given)
    assert not Path("mlruns").exists()


def test_what_fails_in_a_sweep_costs_the_others_nothing() -> None:
    """A run that diverges is returned too, and `failure` says so; a grid that is asked for a search is refused."""
    runs = mf.grid(data="iris", optimizer="sgd", lr=[0.1, 1e12], epochs=3, tracking="off")
    assert "1 of 2 runs failed" in str(runs.failure)
    assert runs.best().config.optimizer.lr == 0.1
    assert "diverged" in mf.fit(data="iris", optimizer="sgd", lr=1e12, epochs=3, tracking="off").verdict.lower()
    with pytest.raises(mf.ConfigError, match="grid must be given values, but got a search. Use search."):
        mf.grid("sweep=lr", data="iris")


def test_lists_and_arrays() -> None:
    """A list is a value of one run, and values to try in a grid."""
    run = mf.fit(data="iris", epochs=1, probes=["gradient_norm"], tracking="off")
    assert "gradient_norm/first" in run.curves
    assert len(mf.grid(data="iris", epochs=1, lr=np.logspace(-3, -1, 3), tracking="off")) == 3


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    """Between two calls of one process."""
    table = tmp_path / "own.csv"
    for rows in (60, 80):
        table.write_text("x,y\n" + "".join(f"{i / 7},{'ab'[i % 2]}\n" for i in range(rows)))
        run = mf.fit(f"data.path={table}", "data.target=y", data="csv", epochs=1, tracking="off")
        assert run.curves["progress/examples"][1] == round(rows * 0.7)


def test_predict_says_what_it_needs() -> None:
    """Columns by name, or their number."""
    run = mf.fit(data="iris", epochs=1, tracking="off")
    with pytest.raises(ValueError, match=r"x must have the shape \(rows, 4\), but got \(1, 3\)"):
        run.predict([[1, 2, 3]])
    with pytest.raises(ValueError, match="x must have the columns .*, but has no"):
        run.predict(pd.DataFrame({"a": [1.0]}))


def test_they_show_themselves() -> None:
    """A run with its picture, a sweep with its table; a picture is a PNG."""
    run = mf.fit(data="iris", epochs=2, tracking="off")
    assert run.plot().startswith(b"\x89PNG")
    assert "data:image/png;base64," in run._repr_html_()
    assert run.verdict in run._repr_html_()
    runs = mf.grid(data="iris", lr=[0.01, 0.1], epochs=2, tracking="off")
    assert "<table" in runs._repr_html_()


def _process() -> dict[str, Any]:
    """What a library has to leave as it found it."""
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "default dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "torch's random numbers": torch.get_rng_state().tolist(),
        "NumPy's": np.random.get_state()[1].tolist(),
        "collector": (gc.isenabled(), gc.get_threshold()),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "levels": [logging.getLogger(name).level for name in ("", "pytorch_lightning", "lightning_fabric", "mlflow")],
        "filters": list(warnings.filters),
        "folder": Path.cwd(),
        "hydra": (GlobalHydra.instance().hydra, VersionBase.instance().getbase(), OmegaConf.has_resolver("manual")),
        "optuna": optuna.logging.get_verbosity(),
        "recursion": sys.getrecursionlimit(),
    }


def test_nothing_of_the_process_is_changed() -> None:
    """By a run, a grid and a refusal."""
    search = {"data": "iris", "epochs": 1, "n_trials": 1, "tracking": "off"}
    mf.search("optimizer.lr=choice(0.1)", **search)  # what is imported at first sets things of its own
    before = _process()
    mf.fit(data="iris", epochs=2, tracking="off")
    mf.grid(data="iris", seed=[1, 2], epochs=2)
    mf.search("optimizer.lr=choice(0.2)", **search)
    with pytest.raises(mf.ConfigError):
        mf.fit(lr=-1)
    assert _process() == before


def test_a_line_says_what_it_is() -> None:
    """And not what all its weights are."""
    run, runs = mf.fit(data="iris", epochs=1), mf.grid(data="iris", epochs=1, lr=[0.01, 0.1], tracking="off")
    assert repr(run).startswith(f"<run {run.id[:8]}: adam lr=0.001 b=32 s=0 on iris. ")
    assert repr(runs).startswith("<2 runs; best adam lr=0.")
    assert not [name for name in mf.runs() if name.startswith("manyfit.tracking")]


def test_what_is_taken_for_granted_is_a_warning() -> None:
    """A target of a few whole numbers is taken for classes."""
    rows = np.arange(60)
    with pytest.warns(UserWarning, match="classes"):
        mf.fit(data=(rows[:, None] / 60, rows % 3), epochs=1, tracking="off")


def test_ctrl_c_is_keyboard_interrupt() -> None:
    """The run is KILLED, and the process goes on."""
    with pytest.raises(KeyboardInterrupt):
        mf.fit("+model.interrupt=true", model=Own, data="iris", epochs=2)
    assert list(mf.runs()["status"]) == ["KILLED"]
    assert list(mf.runs()["model"]) == ["Own"]


@pytest.mark.parametrize("call", ["grid(lr=[0.01, 0.1]", "search('optimizer.lr=choice(0.01,0.1)', n_trials=2"])
def test_the_first_call_of_a_process(tmp_path: Path, call: str) -> None:
    """May be a grid or a search."""
    code = f"import manyfit as mf\nassert len(mf.{call}, data='iris', epochs=1, tracking='off')) >= 2"
    (tmp_path / "first.py").write_text(code)
    command(tmp_path, run=tmp_path / "first.py").check_returncode()


@pytest.mark.slow
def test_the_notebook(tmp_path: Path) -> None:
    """docs/notebook.ipynb runs from top to bottom, and shows what it says."""
    book = nbformat.read(ROOT / "docs/notebook.ipynb", as_version=4)
    patience = {"timeout": 300, "iopub_timeout": 60, "startup_timeout": 180}
    NotebookClient(book, resources={"metadata": {"path": str(tmp_path)}}, **patience).execute()
    shown = [output.data for cell in book.cells for output in cell.get("outputs", []) if "data" in output]
    assert sum("image/png;base64" in data.get("text/html", "") for data in shown) == 3
    told = [data["text/plain"] for data in shown if set(data) == {"text/plain"}]
    assert sum("digits: adam" in words or "runs on" in words or "search" in words for words in told) >= 3
    assert not any(output.get("name") == "stderr" for cell in book.cells for output in cell.get("outputs", []))
    assert sum("<table" in data.get("text/html", "") for data in shown) >= 4


def test_cross_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One word: a run for each fold, one setting, its test scores with an interval; every fold's own test set."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="fit must be given one run"):
        mf.fit("data=wine", "data.folds=5", tracking="off")
    with pytest.raises(ConfigError, match="data.folds must be null in a search"):
        mf.search("data=wine", "data.folds=5", "sweep=lr", tracking="off")
    runs = mf.grid("data=wine", "data.folds=5", "seed=range(2)", "optimizer=sgd,adam", epochs=3, tracking="off")
    assert len(runs) == 20
    assert sorted(run.result.sizes[2] for run in runs[:10]) == [35] * 4 + [36] * 6
    assert runs.report is not None
    assert [len(setting.counted) for setting in runs.report.settings] == [10, 10]
    best = runs.report.best
    assert best is not None
    (scores,) = [[run.test["accuracy/test"] for run in runs if run.config.optimizer.target == kind] for kind in
                 {str(best.rows[0].config.optimizer.target)}]  # fmt: skip
    found = findings.tested(best)["accuracy/test"]
    assert found.mean == pytest.approx(np.mean(scores))
    assert found.n == 5
    assert "over 5 folds, every example scored once" in summary(runs.report)
    assert list(runs.table()["optimizer"]) in (["sgd", "adam"], ["adam", "sgd"])
    assert runs.report.command is not None
    assert "data.folds=5" in runs.report.command
    assert "data.fold=" not in runs.report.command


def test_a_grid_by_another_objective() -> None:
    """What is searched for ranks a grid, too; scales of a target are compared by what is in its own units."""
    given = {"data": "diabetes", "epochs": 4, "tracking": "off", "seed": [0, 1]}
    usual = mf.grid("data.target_scale=null,rank", **given)
    assert usual.report is not None
    assert usual.report.best is None
    runs = mf.grid("data.target_scale=null,rank", "metrics=[mae]", "sweep.objective.metric=mae/val", **given)
    assert runs.report is not None
    assert runs.report.best is not None
    assert runs.report.objective == "best mae/val"
    means = [setting.mean for setting in runs.report.settings]
    assert means == sorted(means)
    with pytest.raises(ConfigError, match="sweep.objective.metric must be one of .* but got 'auc/val'"):
        mf.grid("data.target_scale=null,rank", "sweep.objective.metric=auc/val", **given)
