"""Studies that somebody else may have written: what is none of the search is neither composed nor run nor believed."""

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import CmaEsSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from conftest import command
from manyfit import cli
from manyfit.config.errors import ConfigError
from manyfit.sweeps import space as spaces
from manyfit.sweeps.cmaes import Replayed, replayed
from manyfit.sweeps.study import Told, lost, reopened, values_of
from test_rounds import LR, Saying, answered, check, cliff, finished, opened, search
from test_rounds import reported as reported

SEARCH = ["sweep=lr", "data=iris", "epochs=1", "model.hidden=[4]", "sweep.seeds=1", "sweep.study=shared"]
CODE = "{_code: \"import pathlib; pathlib.Path('trace').touch()\"}"
CALLED = {
    "trusted": "[torch.fx.graph_module]",
    "model._target_": "torch.fx.graph_module.reduce_graph_module",
    "+model.body": CODE,
    "+model.import_block": "''",
    "~model.hidden": "",
}
SECRET = "${oc.env:SECRET}"
STRANGE: list[dict[str, Any]] = [
    CALLED,
    {"name": SECRET},
    {"+hydra.callbacks.x._target_": "os.system"},
    {"+hydra.job.env_set.LD_PRELOAD": "./evil.so"},
    {"optimizer.lr": 7.0},
    {"tracking.uri": "http://evil"},
]
FINISHED = {"ended": "finished", "runs": [{"manyfit_run": "a", "seed": 0, "ended": "finished", "value": 0.0}]}
TOLD: list[dict[str, Any]] = [  # of trials at a point of the space
    {"runs": [{"ended": "finished", "seed": SECRET, "value": 0.0}]},
    {"runs": [{"ended": ["finished"]}]},
    {"runs": [{"ended": "<script>"}]},
    {"runs": [{"ended": "finished", "loss_val": "abc"}]},
    {"runs": [{"ended": "finished", "manyfit_run": ["a"]}]},
    {"runs": [{"ended": "finished", "mlflow_run_id": 3}]},
    {"runs": {"ended": "finished"}},
    {"runs": 1},
    {"curve": ["a"]},
    {"curve": {"0": 1}},
    {"manyfit_run": "a", "ended": "finished", "seed": -1},
]


def placed(params: dict[str, Any], state: TrialState = TrialState.COMPLETE, **kept: Any) -> FrozenTrial:
    """A trial with these values, better than any other."""
    known = {key: CategoricalDistribution([value]) for key, value in params.items()}
    known |= {"optimizer.lr": FloatDistribution(1e-5, 9.0, log=True)} if "optimizer.lr" in params else {}
    value = 0.0 if state == TrialState.COMPLETE else None
    return create_trial(state=state, value=value, params=params, distributions=known, **kept)


@pytest.mark.slow
def test_a_study_executes_nothing(tmp_path: Path) -> None:
    """Trials that are told, wait or run: they are left out in a sentence, and the search comes to its own end."""
    done = command(tmp_path, *SEARCH, "sweep.n_trials=2", "sweep.confirm_seeds=0")
    assert done.returncode == 0, done.stderr
    study = optuna.load_study(study_name="shared", storage=f"sqlite:///{tmp_path}/mlruns/optuna.db")
    for changes in STRANGE:
        study.add_trial(placed({"optimizer.lr": 0.01, **changes}, user_attrs=FINISHED))
        study.enqueue_trial({"optimizer.lr": 0.01, **changes})
    for kept in TOLD[:2]:
        study.add_trial(placed({"optimizer.lr": 0.01}, user_attrs={"ended": "finished", **kept}))
    study.add_trial(placed({"optimizer.lr": 0.01, **CALLED}, TrialState.WAITING))
    study.add_trial(placed({"optimizer.lr": 0.01, **CALLED}, TrialState.RUNNING, user_attrs={"owner": "shared"}))
    done = command(tmp_path, *SEARCH, "sweep.n_trials=3", "sweep.confirm_seeds=1", SECRET="hunter2")
    assert done.returncode == 0, done.stderr
    assert "16 trials of study shared are left out: they are not of this search" in done.stdout
    assert "3 runs of 3 settings" in done.stdout
    assert not (tmp_path / "trace").exists()
    assert "hunter2" not in done.stdout + done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
    trials = study.get_trials()
    assert all(trial.state.is_finished() for trial in trials)
    assert sum("sampler_seed" in trial.user_attrs for trial in trials) == 3


def strangers() -> list[FrozenTrial]:
    """None of which lies in the space of `opened`."""
    here = {"lr": LR, "b": CategoricalDistribution((1, 2))}
    told = [create_trial(value=0.0, params={"lr": 0.01, "b": 1}, distributions=here, user_attrs=kept) for kept in TOLD]
    words = CategoricalDistribution((True, 1.0, 1, 2, SECRET, None))
    odd = [
        create_trial(value=0.0, params={"lr": 0.01, "b": value}, distributions=here | {"b": words})
        for value in (True, 1.0, SECRET, None)
    ]
    wide = here | {"lr": FloatDistribution(1e-9, 9.0)}
    far = [create_trial(value=0.0, params={"lr": lr, "b": 1}, distributions=wide) for lr in (1e-7, 0.11)]
    few = create_trial(value=0.0, params={"lr": 0.01}, distributions={"lr": LR})
    more = create_trial(
        value=0.0, params={"lr": 0.01, "b": 1, "x": 1}, distributions=here | {"x": IntDistribution(1, 2)}
    )
    waiting = [
        create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": fixed})
        for fixed in ({"lr": 9.0}, {"lr": "0.01"}, {"b": 3}, {"x": 1}, ["lr"], 7, {"lr": float("nan")}, {"b": [1]})
    ]
    begun = create_trial(state=TrialState.WAITING, params={"lr": 0.01, "b": 2}, distributions=here | {"b": words})
    return [*told, *odd, *far, few, more, *waiting, begun]


def test_what_is_none_of_a_search_is_left_out(tmp_path: Path) -> None:
    """It counts for nothing, is claimed by nobody, and is given to no report."""
    given = strangers()
    study = opened(tmp_path).study
    with pytest.MonkeyPatch.context() as patch:  # whoever writes into the file is asked by nobody
        patch.setattr(optuna.distributions, "check_distribution_compatibility", lambda *_: None)
        for trial in given:
            study.add_trial(trial)
    book = opened(tmp_path)
    assert (book.strangers(), book.done()) == (len(given), 0)
    study.enqueue_trial({"lr": 0.02})  # a user's
    with book:
        for trial in book.claim(6):
            assert book.tell(Told(trial.number, "COMPLETE", trial.params["lr"], {}))
    assert book.done() == 6
    assert 0.02 in {trial.params["lr"] for trial in book.ended()}
    assert min(trial.number for trial in book.ended()) >= len(given)
    assert all(trial.state.is_finished() for trial in book.trials())


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_samplers_and_pruners_are_not_led_astray(sampler: str, reported: list[SimpleNamespace]) -> None:
    """A search among strangers comes to its end and reports on its own."""
    swept = ["optimizer.lr=range(0.0001,0.0005,0.0001)", "model.dropout=range(0,0.3,0.1)"]
    given = [f"sampler={sampler}", "pruner=median", "sweep.round=2", "sweep.study=own"]
    search(swept, *given, "sweep.n_trials=2", train=answered(cliff))
    study = optuna.load_study(study_name="own", storage="sqlite:///mlruns/optuna.db")
    here, screen = study.trials[0].distributions, Saying()
    for kept in TOLD:
        params = {"optimizer.lr": 0.0004, "model.dropout": 0.2}
        study.add_trial(create_trial(value=0.0, params=params, distributions=here, user_attrs=kept))
    study.add_trial(placed({"x": SECRET}))
    reported.clear()
    search(swept, *given, "sweep.n_trials=5", train=answered(cliff), screen=screen)
    assert len(reported) == 5
    assert not [row for row in reported if 2 <= row.number < 3 + len(TOLD)]
    assert [text for text in screen.said if f"{len(TOLD) + 1} trials of study own are left out" in text]


def test_what_a_study_says_of_itself_may_be_anything(reported: list[SimpleNamespace]) -> None:
    """What is not as it was written is as if it were not there."""
    swept, given = (
        ["optimizer.lr=choice(0.0001,0.0002)", "model.dropout=choice(0.1)"],
        ["sampler=grid", "sweep.study=own"],
    )
    search(swept, *given, train=answered(cliff))
    study = optuna.load_study(study_name="own", storage="sqlite:///mlruns/optuna.db")
    for value in (1, "x", [1], {"run_id": 1}, {"run": ["x"], "run_id": {}, "a": 1}, {"owner": ["x"]}):
        for key in ("report", "reporting", "mlflow_run_ids"):
            study.set_user_attr(key, value)
        reported.clear()
        search(swept, *given, train=answered(cliff))
        assert len(reported) == 2
    claimed = study.user_attrs["reporting"] | {"owner": "own"}  # the study's own lock, which is held then
    study.set_user_attr("reporting", claimed)
    study.set_user_attr("report", {})
    reported.clear()
    search(swept, *given, train=answered(cliff))
    assert len(reported) == 2


@pytest.mark.parametrize("value", [1, "x", ["x"], {}, {"model._target_": ["x"]}])
def test_a_study_that_does_not_say_what_it_is_of(tmp_path: Path, value: Any) -> None:
    """It is refused in a sentence."""
    book = opened(tmp_path, fingerprint={"epochs": 50})
    book.study.set_user_attr("fingerprint", value)
    with pytest.raises(ConfigError, match=r"^(sweep\.study|epochs) must "):
        opened(tmp_path, fingerprint={"epochs": 50})


def test_trials_of_other_distributions_are_refused(tmp_path: Path) -> None:
    """Optuna keeps one kind to a key, and says so when it asks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optuna.distributions, "check_distribution_compatibility", lambda *_: None)
        opened(tmp_path).study.add_trial(placed({"lr": "x"}))
    with opened(tmp_path) as book, pytest.raises(ConfigError, match=r"^sweep\.study must be one that can be searched"):
        book.claim(1)


def test_a_study_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """In a sentence, by a search and by doctor; so is one of two objectives."""
    url = f"sqlite:///{tmp_path}/optuna.db"
    book = opened(tmp_path)
    book.study.add_trial(placed({"lr": 0.01}))
    with book.storage.engine.begin() as connection:  # type: ignore[attr-defined]
        connection.exec_driver_sql("update trial_params set distribution_json = '{'")
    for opens in (lambda: opened(tmp_path), lambda: reopened(url, "study", tmp_path)):
        with pytest.raises(ConfigError, match=r"^sweep\.storage must be a database that can be used"):
            opens()
    optuna.create_study(storage=url, study_name="two", directions=["minimize", "maximize"])
    for opens in (lambda: opened(tmp_path, name="two"), lambda: reopened(url, "two", tmp_path)):
        with pytest.raises(ConfigError, match=r"^sweep\.storage must be a database that can be used"):
            opens()


def test_doctor_hands_back_among_strangers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trials of other keys, and owners that are no process: what is the search's own is done with the same values."""
    monkeypatch.chdir(tmp_path)
    here = {"lr": LR, "b": CategoricalDistribution((1, 2))}
    known = {f"sweep.space.{key}": text for key, text in spaces.described(here).items()}
    dead = opened(tmp_path, fingerprint=known)
    with dead:
        begun = [trial.params for trial in dead.claim(2)]
        dead.open.clear()  # so that it leaves them as a kill would
    for owner in ("study", "../trace", ["x"], 3, "a.1.00000000"):
        dead.study.add_trial(placed({"x": "y"}, TrialState.RUNNING, user_attrs={"owner": owner}))
    assert cli.main(["doctor", "--study", "study", "--storage", f"sqlite:///{tmp_path}/optuna.db"]) == 0
    assert "handed back: 7 that" in capsys.readouterr().out
    waiting = [trial for trial in dead.trials() if trial.state == TrialState.WAITING]
    assert [values_of(trial) for trial in waiting] == begun
    check([trial for trial in finished(opened(tmp_path, fingerprint=known)) if not lost(trial)], 6)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    "line",
    [
        {"number": [0]},
        {"number": 0, "state": "COMPLETE", "value": None, "attributes": {}},
        {"number": 0, "state": "COMPLETE", "value": "x", "attributes": {}},
        {"number": 0, "state": "RUNNING", "value": 1.0, "attributes": {}},
        {"number": 0, "state": "FAIL", "value": None, "attributes": 3},
        {"number": 0, "state": "PRUNED", "value": None, "attributes": {}, "curve": ["x"]},
    ],
    ids=str,
)
def test_a_line_that_tells_nothing_is_let_go(tmp_path: Path, line: dict[str, Any]) -> None:
    """The others are told."""
    book, said = opened(tmp_path), list[str]()
    with book:
        owner, claimed = book.locks.owner, book.claim(2)
        book.open.clear()
    good = {"owner": owner, "number": claimed[1].number, "state": "COMPLETE", "value": 0.5, "attributes": {}}
    book.untold.parent.mkdir()
    book.untold.write_text(json.dumps({"owner": owner, **line}) + "\n" + json.dumps(good) + "\n")
    trials = finished(opened(tmp_path, waits=said.append))
    assert trials[1].value == 0.5
    assert [text for text in said if "has a line that tells nothing of a trial" in text]
    check([trial for trial in trials if not lost(trial)], 6)


class Evil:
    """What a pickle may do."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave a trace."""
        return Path.touch, (Path("trace"),)


PLANE = {"x": FloatDistribution(-1.0, 1.0), "y": FloatDistribution(-1.0, 1.0)}


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_pickle_in_a_study_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna's CMA-ES keeps its state as one, and has run whatever stood there."""
    monkeypatch.chdir(tmp_path)
    evil = {f"{kind}:optimizer:0": pickle.dumps(Evil()).hex() for kind in ("cma", "sepcma")}
    evil |= {"cma:generation": [0]}
    for sampler in (replayed(CmaEsSampler(seed=0)), replayed(CmaEsSampler(seed=0, use_separable_cma=True))):
        study = optuna.create_study(sampler=sampler)
        for _ in range(3):
            study.add_trial(
                create_trial(value=0.0, params={"x": 0.0, "y": 0.0}, distributions=PLANE, system_attrs=evil)
            )
        assert set(study.ask(PLANE).params) == {"x", "y"}
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("options", [{}, {"with_margin": True}, {"use_separable_cma": True}], ids=str)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_what_is_made_again_is_what_was_pickled(options: dict[str, Any]) -> None:
    """Of each generation: the same mean, step and covariance; a pickle has but half of that, so not to the last bit."""
    study = optuna.create_study(sampler=CmaEsSampler(seed=1, **options))
    study.optimize(lambda trial: sum(trial.suggest_float(key, -1.0, 1.0) ** 2 for key in PLANE), n_trials=60)
    theirs, ours = CmaEsSampler(seed=1, **options), Replayed(seed=1, **options)
    kept = [t for t in study.trials if any(":optimizer" in key for key in t.system_attrs)]
    trans = optuna._transform._SearchSpaceTransform(
        PLANE, transform_step=not options.get("with_margin"), transform_0_1=True
    )
    assert len(kept) > 5
    for trial in kept:
        pickled = theirs._restore_optimizer([trial])
        ours._restore_optimizer(study.trials[: trial.number])
        again = ours._init_optimizer(trans, StudyDirection.MINIMIZE)
        for one, other in ((pickled, again), (getattr(pickled, "_cma", None), getattr(again, "_cma", None))):
            state, made = ({} if it is None else it.__dict__ for it in (one, other))
            for name in ("_g", "_mean", "_sigma", "_C", "_D", "_ps", "_pc"):
                if state.get(name) is not None:
                    np.testing.assert_allclose(made[name], state[name], rtol=1e-9, atol=1e-12, err_msg=name)
