"""What only a CUDA device can show: `pytest -m gpu`."""

import numpy as np
import pytest
import torch

from conftest import Compose, assert_same_bits
from manyfit.config import Config, ConfigError
from manyfit.jobs import Result, prepare
from manyfit.module import Training
from manyfit.training import fit

HERE = torch.cuda.is_available()
gpu = [pytest.mark.gpu, pytest.mark.skipif(not HERE, reason="there is no CUDA device")]
COMMON = ("data=digits", "epochs=4", "model.dropout=0.3", "optimizer.lr=0.001")


def members(composed: Compose, *overrides: str) -> list[Config]:
    return [composed(*COMMON, *overrides, f"seed={k}", f"optimizer.lr={10 ** -(2 + k % 3)}") for k in range(5)]


def close(a: Result, b: Result, tolerance: float) -> None:
    for name in ("loss/train", "loss/val"):
        np.testing.assert_allclose(a.metrics[name], b.metrics[name], rtol=tolerance, err_msg=name)


class TestOnAGpu:
    pytestmark = gpu

    def test_the_data_stays_on_the_device(self, composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
        """Examples, targets, weights and masks are there; a batch is an index."""
        seen: set[str] = set()
        honest = Training.training_step

        def step(self: Training, block: tuple, batch_idx: int) -> None:
            tensors = (self.x_train, self.y_train, self.population.weights, self.data.x_val, block[0])
            seen.update(tensor.device.type for tensor in tensors)
            honest(self, block, batch_idx)

        monkeypatch.setattr(Training, "training_step", step)
        fit([composed(*COMMON, "trainer=gpu")])
        assert seen == {"cuda"}

    @pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
    def test_precisions(self, composed: Compose, precision: str) -> None:
        """Half precision learns about as well as single, and single as the CPU."""
        (cpu,) = fit([composed(*COMMON, "trainer=cpu")])
        (result,) = fit([composed(*COMMON, "trainer=gpu", f"trainer.precision={precision}")])
        close(result, cpu, {"32-true": 1e-3, "bf16-mixed": 0.1, "16-mixed": 0.05}[precision])
        assert result.devices == (torch.cuda.get_device_name(),)

    def test_a_population_and_its_members(self, composed: Compose) -> None:
        """Alone or in company to 1e-5 of the loss, over a few epochs at stable rates."""
        configs = members(composed, "trainer=gpu", "epochs=2")
        for config, together in zip(configs, fit(configs), strict=True):
            close(together, fit([config])[0], 1e-4)

    @pytest.mark.parametrize("graph", ["false", "true"])
    def test_twice_is_bit_equal(self, composed: Compose, graph: str) -> None:
        """With deterministic=true, which is the default."""
        configs = members(composed, "trainer=gpu", f"trainer.cuda_graph={graph}")
        for a, b in zip(fit(configs), fit(configs), strict=True):
            assert_same_bits(a, b)

    def test_a_step_never_waits_for_the_device(self, composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
        """Any host sync within a step raises; the first steps, which make the optimizer's state, may wait."""
        honest = Training._step

        def watched(self: Training, *arguments: torch.Tensor) -> torch.Tensor:
            torch.cuda.set_sync_debug_mode("error" if self.steps_done else "default")
            try:
                return honest(self, *arguments)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        monkeypatch.setattr(Training, "_step", watched)
        (result,) = fit([composed(*COMMON, "trainer=gpu", "batch_size=7")])
        assert result.reason == "finished"

    @pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam", "adamw", "rmsprop"])
    @pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
    def test_a_captured_step_gives_the_eager_curve(self, composed: Compose, optimizer: str, precision: str) -> None:
        """With a short last batch, dropout, and a member that is compacted away on the way."""
        common = ("trainer=gpu", f"optimizer={optimizer}", f"trainer.precision={precision}", "batch_size=50")
        eager, captured = (
            fit(
                members(composed, *common, f"trainer.cuda_graph={graph}"),
                prune=lambda epoch, _: [1] if epoch == 2 else [],
            )
            for graph in ("false", "true")
        )
        for a, b in zip(eager, captured, strict=True):
            assert a.reason == b.reason
            close(a, b, 1e-5)

    def test_resumed_or_never_killed(self, composed: Compose, tmp_path_factory: pytest.TempPathFactory) -> None:
        """Bit-equal on the device too."""
        folder = tmp_path_factory.mktemp("state")
        short, long = (composed(*COMMON, "trainer=gpu", f"epochs={epochs}") for epochs in (2, 4))
        fit([short], keep=folder)
        assert_same_bits(fit([long])[0], fit([long], resume=folder)[0])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.cuda_graph=true"], "trainer.cuda_graph must be false here, but got true: there is no GPU"),
        (["trainer.cuda_graph=true", "optimizer=adagrad"], "the step of Adagrad cannot be captured"),
        (["trainer.precision=16-mixed"], "trainer.precision must be another than '16-mixed' without a GPU"),
    ],
)
def test_refused_without_one(composed: Compose, overrides: list[str], words: str) -> None:
    """Before a run exists, with the reasons."""
    with pytest.raises(ConfigError, match=words):
        prepare(composed("data=iris", "trainer=cpu", *overrides))
