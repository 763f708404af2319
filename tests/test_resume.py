"""resume=: the real command goes on with an earlier run, and says what is not as it would have gone on."""

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from conftest import Compose, command
from manyfit import resume
from manyfit.config.errors import ConfigError
from manyfit.training import checkpoints
from manyfit.training.fitting import fit
from manyfit.training.prepared import prepare
from test_cli import SMALL, client, runs


def test_where_a_schedule_jumps_is_said(composed: Compose, tmp_path: Path) -> None:
    """A cosine that had come to its end is stretched over more epochs, and lr rises; a constant one has no jump."""
    for schedule, lines in (("cosine", 2), ("constant", 1)):
        short, long = (composed(*SMALL, f"schedule={schedule}", f"epochs={epochs}") for epochs in (4, 8))
        fit([short], save_to=tmp_path / schedule)
        state = checkpoints.load(tmp_path / schedule)
        assert resume._changes(4, prepare(short), state) == ()
        said = resume._changes(4, prepare(long), state)
        assert len(said) == lines
        assert said[0].startswith("epochs: 8 instead of 4")
    (result,) = fit([long], resume=tmp_path / "constant")
    assert result.metrics["lr"][4] == result.metrics["lr"][5]


@pytest.mark.parametrize(
    ("first", "then", "refusal"),
    [
        (["epochs=4"], ["epochs=4"], "epochs must be > 4, which the run has, but got 4. Ask for more: epochs=8."),
        (["epochs=9", "optimizer.lr=1e9", "optimizer=sgd"], ["epochs=20"], "can go on, but this one diverged in epoch"),
        (["epochs=40", "optimizer.lr=1e-30", "trainer.patience=3"], ["epochs=60"], "trainer.patience must be > 3, the"),
        (["epochs=40", "optimizer.lr=1e-30", "trainer.patience=3"], ["epochs=60", "trainer.patience=4"], None),
    ],
)
def test_what_has_nothing_left_to_train_is_refused(
    composed: Compose, tmp_path: Path, first: list[str], then: list[str], refusal: str | None
) -> None:
    """It would end at once and look as if it had been trained; what is let through does train."""
    fit([composed(*SMALL, *first)], save_to=tmp_path)
    state, config = checkpoints.load(tmp_path), composed(*SMALL, *first, *then)
    with pytest.raises(ConfigError, match=refusal) if refusal else contextlib.nullcontext():
        resume._require_more(config, state)
    if not refusal:
        assert len(fit([config], resume=tmp_path)[0].metrics["loss/val"]) > state["epoch"] + 1


def test_other_data_are_refused(composed: Compose, tmp_path: Path) -> None:
    """What was trained on might be validated on; a state of before does not know its data, and goes on."""
    fit([composed(*SMALL)], save_to=tmp_path)
    state, now = checkpoints.load(tmp_path), composed(*SMALL, "epochs=9")
    resume._require_same_data(prepare(now), state)
    resume._require_same_data(prepare(now), {key: value for key, value in state.items() if key != "data"})
    with pytest.raises(ConfigError, match="data must be those that the run has been trained on, but wine has changed"):
        resume._require_same_data(prepare(composed("data=wine")), state)


@pytest.mark.slow
def test_the_page_says_what_changed(tmp_path: Path) -> None:
    """Terminal and tags: the new epochs, since the param cannot change, and where lr goes."""
    assert command(tmp_path, *SMALL, "schedule=cosine").returncode == 0
    (run,) = runs(tmp_path)
    done = command(tmp_path, f"resume={run.info.run_id[:6]}", "epochs=6")
    assert done.returncode == 0, done.stderr
    (run,) = runs(tmp_path)
    jump = re.search("schedule: cosine is now that of 6 epochs, so lr goes from .* to 0.0005", done.stdout)
    assert jump
    assert jump[0] in run.data.tags["resumed"]
    assert (run.data.params["epochs"], run.data.tags["resumed/epochs"]) == ("3", "6")


def test_a_stored_config_trusts_nobody(composed: Compose) -> None:
    """Only the command says which modules may run, whatever a checkpoint says."""
    config = composed("trusted=[evil]", "model._target_=evil.Net")
    stored: dict[str, Any] = {"source": {**config.source, "trusted": ["evil"]}, "choices": dict(config.choices)}
    with pytest.raises(ConfigError, match="model._target_ must be of a module in this folder"):
        resume._changed(stored, OmegaConf.create({"trusted": [], "tracking": {"kind": "off"}}), [])
    assert (
        resume._changed(stored, OmegaConf.create({"trusted": ["evil"], "tracking": {"kind": "off"}}), []).model.target
        == "evil.Net"
    )


@pytest.mark.slow
def test_a_tag_is_no_path(tmp_path: Path) -> None:
    """The tag manyfit.id, which anybody may set in a shared store, leads to no folder but that of a run's state."""
    (tmp_path / "mlruns").mkdir()
    store = client(tmp_path)
    run = store.create_run(store.create_experiment("x"), tags={"manyfit.id": "../../evil"})
    store.set_terminated(run.info.run_id)
    done = command(tmp_path, f"resume={run.info.run_id[:8]}", "epochs=6")
    assert done.returncode == 1
    assert "resume must name a run whose tag manyfit.id is of 32 hex digits, but got '../../evil'" in done.stderr
