"""resume=: the real command goes on with an earlier run, and says what is not as it would have gone on."""

import contextlib
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from conftest import Compose, assert_same_bits, command, started
from manyfit import resume
from manyfit.config.errors import ConfigError
from manyfit.sweeps.parent import Sweep
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


@pytest.mark.usefixtures("forked_uploader")
def test_a_run_of_a_sweep(composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It kept no state, and is trained again to where it was; from there on as if it had been trained by itself."""
    monkeypatch.chdir(tmp_path)
    common = ("data=iris", "model.hidden=[8]", "model.dropout=0.2", "schedule=cosine")
    configs = {n: composed(*common, "epochs=3", f"seed={n}") for n in range(2)}
    with Sweep("two", configs[0]) as sweep:
        one = sweep.train(configs)[1]
    cfg = OmegaConf.create({"tracking": {"uri": None}, "trusted": [], "epochs": 6})
    assert one.run.run_id
    earlier = resume.find(cfg, [f"resume={one.run.run_id}", "epochs=6"])
    assert (earlier.run_id, earlier.epoch) == (one.run.run_id, 3)
    assert earlier.changes[0] == "state: it kept none, so its first 3 epochs were trained again"
    fit([configs[1]], save_to=tmp_path / "alone")
    goes_on, alone = (fit([earlier.job], resume=folder)[0] for folder in (earlier.folder, tmp_path / "alone"))
    assert_same_bits(goes_on, alone)
    assert one.result is not None
    assert goes_on.metrics["loss/val"][:4].tolist() == one.result.metrics["loss/val"].tolist()
    with pytest.raises(ConfigError, match="resume must name one run, but .* is a whole sweep"):
        resume.find(cfg, [f"resume={sweep.parent.run_id}", "epochs=6"])


def losses(folder: Path) -> list[tuple[int, float]]:
    """The validation loss of every epoch that is stored of the one run."""
    (run,) = runs(folder)
    return sorted((at.step, at.value) for at in client(folder).get_metric_history(run.info.run_id, "loss/val"))


@pytest.mark.slow
def test_the_same_command_again_and_again(tmp_path: Path) -> None:
    """Killed, it goes on from its state in the same run, to the bits of one that nobody killed; then it is finished."""
    given = ["data=digits", "model.hidden=[128,128]", "epochs=700", "autoresume=true"]
    with started(tmp_path, *given) as process:
        deadline = time.monotonic() + 90
        while not list(tmp_path.glob("mlruns/checkpoints/*/epoch-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGSTOP)  # it would be done before the other has started
        beside = command(tmp_path, *given)
        process.kill()
    assert "autoresume must be false while another process trains the same" in beside.stderr
    done = command(tmp_path, *given)
    assert done.returncode == 0, done.stderr
    assert re.search(r"resume  run [0-9a-f]{32}, from epoch [1-9]", done.stdout)
    (run,) = runs(tmp_path)
    assert run.info.status == "FINISHED"
    curve = losses(tmp_path)
    assert [step for step, _ in curve] == list(range(701))
    whole = tmp_path / "whole"
    whole.mkdir()
    assert command(whole, *given).returncode == 0
    assert losses(whole) == curve
    again = command(tmp_path, *given)
    assert again.returncode == 0
    assert "of this command; autoresume=false begins anew" in again.stdout
    assert len(runs(tmp_path)) == 1


def test_a_state_that_is_of_no_use(composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run that lacked nothing but its end, or whose state is damaged: it begins again, in the same run."""
    monkeypatch.chdir(tmp_path)
    job, folder = prepare(composed(*SMALL)), resume.folder_of("a" * 32)
    monkeypatch.setattr("manyfit.tracking.reading.stopped", lambda *_: "b" * 32)
    for damage in (lambda path: path, lambda path: path.write_bytes(b"")):
        fit([job], save_to=folder)
        for path in checkpoints.files(folder):
            damage(path)
        earlier = resume.unfinished(job, "a" * 32)
        assert earlier is not None
        assert (earlier.run_id, earlier.epoch) == ("b" * 32, 0)
        assert not checkpoints.files(folder)


def test_a_state_that_no_training_wrote(composed: Compose, tmp_path: Path) -> None:
    """Its hash is right, but a part is missing or strange: begun again, too; one for another machine is kept."""
    job = prepare(composed(*SMALL))
    fit([job], save_to=tmp_path, stops=lambda epoch, going: list(going) if epoch == 2 else [])
    whole = checkpoints.load(tmp_path)
    assert resume._last_epoch(job, tmp_path) == 2
    with pytest.raises(ConfigError, match="trainer must be one for the native engine, which the run began with"):
        resume._last_epoch(replace(job, engine="batched"), tmp_path)
    used = whole.keys() - {"configs", "updates"}
    for number, change in enumerate([*({part: "x"} for part in used), {"engine": np.ones(2)}, {"epoch": 10**12}]):
        checkpoints.save(tmp_path / str(number), 2, {**whole, **change})
        assert resume._last_epoch(job, tmp_path / str(number)) == 0, change
    checkpoints.save(tmp_path / "empty", 2, {})
    assert resume._last_epoch(job, tmp_path / "empty") == 0


def test_where_it_cannot_be_gone_on(composed: Compose) -> None:
    """Before a run exists: nothing is kept, or a word is no answer."""
    with pytest.raises(ConfigError, match="autoresume must be false with tracking=off"):
        composed("autoresume=true", "tracking=off")
    with pytest.raises(ConfigError, match="autoresume must be true or false, but got 'sometimes'"):
        composed("autoresume=sometimes")
