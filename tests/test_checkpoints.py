"""Killed and resumed, or never killed: the same bits; and a file that is not whole is not taken for one."""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import Compose, assert_same_bits, interrupted
from manyfit.config.errors import ConfigError
from manyfit.config.schema import Config
from manyfit.training import checkpoints
from manyfit.training.fitting import fit, train
from manyfit.training.loop import Training
from manyfit.training.trained import Result

COMMON = ("data=wine", "epochs=6", "model.hidden=[12,5]", "model.dropout=0.3", "data.label_noise=0.1")
MLP = ("hidden", "activation", "init", "sigma", "dropout")  # arguments of model=mlp
CASES: dict[str, list[tuple[str, ...]]] = {
    "sgd": [("optimizer=nesterov",)],
    "adam": [("optimizer=adam", "optimizer.amsgrad=true")],
    "rmsprop": [("optimizer=rmsprop",)],
    "nadam": [("optimizer=nadam", "batch_size=7")],
    "used plainly": [("optimizer=sgd", "optimizer._target_=torch.optim.ASGD")],
    "lbfgs": [("optimizer=lbfgs", "batch_size=full")],
    "cosine": [("schedule=cosine",)],
    "plateau": [("schedule=plateau", "schedule.patience=0", "schedule.threshold=0.3")],
    "early stop": [("trainer.patience=2", "optimizer.lr=0.1")],
    "probes": [("probes=[gradient_norm,dead_units,gradient_noise,update_angle]",)],
    "population": [("seed=1",), ("seed=2", "optimizer.lr=0.01"), ("seed=3", "model.dropout=0.1")],
    "a user's model": [("model._target_=test_checkpoints.Users", *(f"~model.{key}" for key in MLP))],
}


class Users(nn.Module):
    """Draws random numbers of its own, and has statistics of the batches it saw."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(in_features, 9), nn.BatchNorm1d(9), nn.Linear(9, out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return self.b(F.dropout(self.norm(self.a(x)), 0.2, self.training))


class KilledError(Exception):
    pass


def killed(configs: list[Config], folder: Path, monkeypatch: pytest.MonkeyPatch, epoch: int, **kwargs: Any) -> None:
    """Train until right after the checkpoint of an epoch."""
    with monkeypatch.context() as patch:
        retire = Training._let_go

        def dies(self: Training, at: int) -> None:
            if at == epoch:
                raise KilledError
            retire(self, at)

        patch.setattr(Training, "_let_go", dies)
        with pytest.raises(KilledError):
            fit(configs, save_to=folder, **kwargs)


@pytest.mark.parametrize("engine", ["auto", "batched"])
@pytest.mark.parametrize("case", CASES)
def test_resumed_or_never_killed(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, engine: str
) -> None:
    """Every metric of every epoch, the best weights and the test score, killed twice on the way."""
    configs = [composed(*COMMON, f"trainer.engine={engine}", *member) for member in CASES[case]]
    whole = fit(configs)
    killed(configs, tmp_path, monkeypatch, 2)
    killed(configs, tmp_path, monkeypatch, 3, resume=tmp_path)
    for a, b in zip(whole, fit(configs, resume=tmp_path), strict=True):
        assert_same_bits(a, b)
        assert a.reason == b.reason
        assert np.all(np.diff(b.metrics["time/seconds"]) >= 0)


def test_a_member_that_was_let_go_stays_away(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A population is resumed with who was left."""
    configs = [composed(*COMMON, *member) for member in CASES["population"]]

    def prune(epoch: int, going: Any) -> list[int]:  # noqa: ARG001
        return [1] if epoch == 2 else []

    whole = fit(configs, stops=prune)
    killed(configs, tmp_path, monkeypatch, 4, stops=prune)
    assert [r.reason for r in whole] == ["finished", "pruned", "finished"]
    for a, b in zip(whole, fit(configs, resume=tmp_path), strict=True):
        assert_same_bits(a, b)
        assert a.reason == b.reason


def test_a_state_of_before_there_were_engines(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on with the only one there was, angles of updates included, which a probe's own state held."""
    member = (*COMMON, "probes=[gradient_norm,update_angle]")
    batched, auto = (composed(*member, f"trainer.engine={engine}") for engine in ("batched", "auto"))
    (whole,) = fit([batched])
    killed([batched], tmp_path, monkeypatch, 3)
    state = dict(checkpoints.load(tmp_path))
    state["probes"] = [{}, state.pop("angles")]
    del state["engine"]
    checkpoints.save(tmp_path / "old", 3, state)
    (resumed,) = fit([auto], resume=tmp_path / "old")
    assert resumed.engine == "batched"
    assert_same_bits(whole, resumed)


def test_an_engine_goes_on_with_its_own(composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other one cannot read is refused, before anything is trained."""
    native, batched = (composed(*COMMON, f"trainer.engine={engine}") for engine in ("native", "batched"))
    for began, other in ((native, batched), (batched, native)):
        folder = tmp_path / began.trainer.engine
        killed([began], folder, monkeypatch, 2)
        with pytest.raises(ConfigError, match=r"trainer\S* must be .* which the run began with"):
            fit([other], resume=folder)


def test_more_epochs_are_those_of_a_longer_training(composed: Compose, tmp_path: Path) -> None:
    """A finished training goes on as if it had been asked for more from the start."""
    short, long = (composed(*COMMON, f"epochs={epochs}") for epochs in (4, 7))
    fit([short], save_to=tmp_path)
    (whole,) = fit([long])
    (resumed,) = fit([long], resume=tmp_path)
    assert_same_bits(whole, resumed)


def test_what_a_killed_command_has_not_heard(composed: Compose, tmp_path: Path) -> None:
    """A state may be ahead of what was recorded: its epochs are told again, but for the first, then the others."""
    short, long = (composed(*COMMON, f"epochs={epochs}") for epochs in (4, 7))
    fit([short], save_to=tmp_path)
    told: dict[int, Mapping[str, np.ndarray]] = {}
    train([long], lambda epoch, _, measured: told.update({epoch: measured}), resume=tmp_path)
    (whole,) = fit([long])
    assert list(told) == list(range(1, 8))
    for epoch, measured in told.items():
        assert {name: values[0] for name, values in measured.items() if name != "time/seconds"} == {
            name: curve[epoch]
            for name, curve in whole.metrics.items()
            if name != "time/seconds" and np.isfinite(curve[epoch])
        }


def test_the_newest_whole_file_is_taken(tmp_path: Path) -> None:
    """A damaged file, a torn one and a leftover of a kill are passed over; with nothing whole it is said."""
    for epoch in (3, 4):
        checkpoints.save(tmp_path, epoch, {"epoch": epoch, "w": torch.randn(50)})
    new, old = checkpoints.files(tmp_path)
    content = bytearray(new.read_bytes())
    content[len(content) // 2] ^= 1
    new.write_bytes(content)
    (tmp_path / ".123.tmp").write_bytes(b"torn")
    assert checkpoints.load(tmp_path)["epoch"] == 3
    old.write_bytes(old.read_bytes()[:-1])
    with pytest.raises(ValueError, match="must hold a checkpoint that is whole"):
        checkpoints.load(tmp_path)


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    """Trees of every kind of leaf that a state has."""
    state = {
        "numbers": [1, 2.5, float("inf"), None, True, "word"],
        "pair": (torch.arange(3), np.array([1.5, np.nan])),
        "by number": {0: {"step": torch.tensor(3.0)}, 1: {}},
        "empty": torch.zeros(0, 2),
        "bits": np.array([True, False]),
    }
    checkpoints.save(tmp_path, 3, state)
    found = checkpoints.load(tmp_path)
    assert found["numbers"] == state["numbers"]
    assert torch.equal(found["pair"][0], torch.arange(3))
    np.testing.assert_array_equal(found["pair"][1], state["pair"][1])  # type: ignore[index]
    assert torch.equal(found["by number"][0]["step"], torch.tensor(3.0))
    assert found["by number"][1] == {}
    assert found["empty"].shape == (0, 2)
    assert found["bits"].dtype == bool


def test_a_disk_that_refuses_costs_the_checkpoint_only(composed: Compose, tmp_path: Path) -> None:
    """Training goes on, and the writer knows why."""
    (tmp_path / "file").write_text("")
    result: Result
    (result,) = fit([composed(*COMMON)], save_to=tmp_path / "file" / "below")
    assert result.reason == "finished"
    with checkpoints.Writer(tmp_path / "file" / "below") as writer:
        writer.put(1, {})
    assert isinstance(writer.error, OSError)


def test_the_newest_is_written_and_two_are_kept(tmp_path: Path) -> None:
    """While it rests the writer takes newer states; what came last is on the disk when it has finished."""
    with checkpoints.Writer(tmp_path) as writer:
        writer.rested = 0.0
        for epoch in range(1, 300):
            writer.put(epoch, {"epoch": epoch})
            time.sleep(0.001)
        written = len(list(tmp_path.glob("epoch-*")))
    assert checkpoints.load(tmp_path)["epoch"] == 299
    assert written >= 1  # three for the moment between a newer one's name and an older one's end
    assert len(list(tmp_path.iterdir())) == 2


def test_ctrl_c_locks_nothing(tmp_path: Path) -> None:
    """At whatever moment it comes, the next state is taken, and the last one is on the disk."""
    writer = checkpoints.Writer(tmp_path)
    writer.put(0, {"epoch": 0})
    assert interrupted(lambda: writer.put(1, {"epoch": 1}), 3.0) > 100

    def end() -> None:
        writer.put(2, {"epoch": 2})
        writer.finish(10)

    ended = threading.Thread(target=end, daemon=True)
    ended.start()
    ended.join(20)
    assert not ended.is_alive()
    assert checkpoints.load(tmp_path)["epoch"] == 2


def test_a_large_state_is_copied_when_it_would_be_written(tmp_path: Path) -> None:
    """Not while the writer is at work or rests from a large file."""
    with checkpoints.Writer(tmp_path) as writer:
        writer.rested = 0.0
        writer.put(1, {"w": torch.zeros(int(checkpoints.SMALL) // 4 + 1)})
        deadline = time.monotonic() + 30
        while writer.size == 0 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert not writer.wants
        writer.rested = 0.0
        writer.busy = False
        assert writer.wants


def test_an_error_of_the_writer_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be packed ends no thread that somebody waits for; the next state is written all the same."""
    with checkpoints.Writer(tmp_path / "never") as writer:
        writer.rested = 0.0
        writer.put(1, {"what": object()})
    assert not writer.busy
    assert (
        capsys.readouterr().err == "the state was not kept: TypeError: Object of type object is not JSON serializable\n"
    )
    with checkpoints.Writer(tmp_path / "later") as writer:
        writer.rested = 0.0
        writer.put(1, {"what": object()})
        while writer.error is None:
            time.sleep(0.01)
        writer.put(2, {"what": 2})
    assert checkpoints.load(tmp_path / "later") == {"what": 2}
    assert capsys.readouterr().err == ""
