"""What only a CUDA device can show: `pytest -m gpu`."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import ROOT, Compose, assert_same_bits
from manyfit.config.errors import ConfigError
from manyfit.config.schema import Config
from manyfit.data.draws import order_states, orders
from manyfit.population.dense import gpu_kernels, sum_rows
from manyfit.training.fitting import fit
from manyfit.training.grouping import members as population_size
from manyfit.training.loop import Training
from manyfit.training.prepared import prepare
from manyfit.training.steps import Steps
from manyfit.training.trained import Result

HERE = torch.cuda.is_available()
gpu = [pytest.mark.gpu, pytest.mark.skipif(not HERE, reason="there is no CUDA device")]
DIGITS = ("data=digits", "epochs=4", "model.dropout=0.3")
COMMON = (*DIGITS, "trainer=gpu")
MLP = ("hidden", "activation", "init", "sigma")
OWN = ("data=digits", "epochs=4", "trainer=gpu", *(f"~model.{key}" for key in MLP))


class Convolutional(nn.Module):
    """A model of one's own, for 8x8 images in rows of 64."""

    def __init__(self, out_features: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.convolution, self.dropout = nn.Conv2d(1, 8, 3), nn.Dropout(dropout)
        self.output = nn.Linear(8 * 36, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, 64) -> (rows, classes)."""
        return self.output(self.dropout(self.convolution(x.view(-1, 1, 8, 8)).relu().flatten(1)))


class Waiting(nn.Module):
    """A model that asks the device for a number, which no graph can hold."""

    waits = staticmethod(lambda x: float(x.abs().max()))

    def __init__(self, in_features: int, out_features: int, dropout: float = 0.0) -> None:  # noqa: ARG002
        super().__init__()
        self.output = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, features) -> (rows, classes)."""
        return self.output(x / max(1.0, self.waits(x)))


class Sending(Waiting):
    """A model that sends the device a number, which torch refuses while a graph is recorded."""

    waits = staticmethod(lambda x: torch.tensor(1.0, device=x.device))


def members(composed: Compose, *overrides: str, count: int = 5) -> list[Config]:
    """Of several rates, decays, dropout rates and seeds."""
    one = [
        composed(
            "trainer=gpu",
            "epochs=4",
            *overrides,
            f"optimizer.lr={lr}",
            f"model.dropout={p}",
            f"optimizer.weight_decay={decay}",
        )
        for lr, p, decay in ((0.01, 0.3, 0.0), (0.001, 0.5, 0.01), (0.003, 0.0, 0.1))
    ]
    return [one[k % 3].model_copy(update={"seed": k}) for k in range(count)]


def close(a: Result, b: Result, tolerance: float) -> None:
    for name in ("loss/train", "loss/val"):
        np.testing.assert_allclose(a.metrics[name], b.metrics[name], rtol=tolerance, err_msg=name)


class TestOnAGpu:
    pytestmark = gpu

    def test_the_data_stays_on_the_device(self, composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
        """Examples, targets, weights and masks are there; a batch is an index."""
        seen: set[str] = set()
        honest = Training.training_step

        def step(self: Training, part: int, batch_idx: int) -> None:
            there = self.engine.examples
            tensors = (there.x_train, there.y_train, self.engine.weights, there.data.x_val, self.engine.index)
            seen.update(tensor.device.type for tensor in tensors)
            honest(self, part, batch_idx)

        monkeypatch.setattr(Training, "training_step", step)
        fit([composed(*COMMON)])
        assert seen == {"cuda"}

    @pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "16-mixed", "tf32"])
    def test_precisions(self, composed: Compose, precision: str) -> None:
        """Half precision learns about as well as single, and single as the CPU."""
        (cpu,) = fit([composed(*DIGITS, "trainer=cpu")])
        before = torch.backends.cuda.matmul.allow_tf32
        (result,) = fit([composed(*COMMON, f"trainer.precision={precision}")])
        tolerance = {"32-true": 1e-3, "64-true": 1e-3, "bf16-mixed": 0.1, "16-mixed": 0.05, "tf32": 0.05}
        close(result, cpu, tolerance[precision])
        assert result.devices == (torch.cuda.get_device_name(),)
        assert torch.backends.cuda.matmul.allow_tf32 == before

    @pytest.mark.parametrize(
        "overrides",
        [
            ("data=digits", "optimizer=adam", "batch_size=50", "model.hidden=[64,64]"),
            ("data=moons", "optimizer=sgd", "batch_size=full", "model.hidden=[16]", "model.activation=tanh"),
            ("data=diabetes", "optimizer=rmsprop", "trainer.gradient_clip=0.5"),
            ("data=wine", "optimizer=adam", "model.activation=gelu"),
            ("data=mnist", "optimizer=adamw", "batch_size=128", "model.hidden=[256,128]", "schedule=cosine"),
            ("data=mnist1d", "optimizer=nesterov", "batch_size=100", "model.hidden=[300,1]", "loss=cross_entropy"),
        ],
        ids=lambda overrides: " ".join(overrides[:2]),
    )
    def test_a_member_is_the_same_in_any_company(self, composed: Compose, overrides: tuple[str, ...]) -> None:
        """To the last bit: alone, among a few, among many."""
        configs = members(composed, *overrides, count=70)
        many = fit(configs)
        for count in (2, 5, 33):
            for few, result in zip(fit(configs[:count]), many[:count], strict=True):
                assert_same_bits(few, result)
        for k in (0, 2):
            assert_same_bits(fit([configs[k]])[0], many[k])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize(("rows", "width"), [(5, 1), (32, 2), (128, 10), (350, 33), (4096, 1), (20000, 3)])
    def test_sums_over_rows(self, rows: int, width: int, dtype: torch.dtype) -> None:
        """As exact as torch's, and the same bits for any number of members."""
        values = torch.randn(1, rows, width, device="cuda").to(dtype)
        one = sum_rows(values)
        torch.testing.assert_close(one, values.double().sum(1).to(one.dtype), rtol=1e-4, atol=1e-3)
        for members in (2, 7, 64, 300):
            assert torch.equal(sum_rows(values.expand(members, -1, -1).contiguous()), one.expand(members, -1))

    @pytest.mark.parametrize("n", [1, 2, 226, 624, 625, 1257, 20000])
    def test_orders(self, n: int) -> None:
        """Those that a CPU draws."""
        seeds = range(3, 70)
        kernels = gpu_kernels()
        assert kernels
        drawn = kernels.permutations(torch.from_numpy(order_states(seeds, 5).view(np.int64)).cuda(), n)
        assert torch.equal(drawn.cpu(), orders(seeds, 5, n))

    @pytest.mark.parametrize("graph", ["false", "true"])
    def test_twice_is_bit_equal(self, composed: Compose, graph: str) -> None:
        """With deterministic=true, which is the default."""
        configs = members(composed, "data=digits", f"trainer.cuda_graph={graph}")
        for a, b in zip(fit(configs), fit(configs), strict=True):
            assert_same_bits(a, b)

    @pytest.mark.parametrize("model", [COMMON, (*OWN, "model._target_=test_gpu.Convolutional")], ids=["dense", "own"])
    def test_a_step_never_waits_for_the_device(
        self, composed: Compose, monkeypatch: pytest.MonkeyPatch, model: tuple[str, ...]
    ) -> None:
        """Any host sync within a step raises; the first steps, which make the optimizer's state, may wait."""
        honest, watched = Steps._take, []

        def take(self: Steps, *arguments: Any) -> None:
            torch.cuda.set_sync_debug_mode("error" if self.done else "default")
            watched.append(self.done)
            try:
                honest(self, *arguments)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        monkeypatch.setattr(Steps, "_take", take)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
            (result,) = fit([composed(*model, "batch_size=7", "trainer.cuda_graph=false")])
        assert result.reason == "finished"
        assert max(watched) > 64

    @pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam", "adamw", "nadam", "radam", "rmsprop"])
    @pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "tf32"])
    def test_a_graph_gives_the_eager_curve(self, composed: Compose, optimizer: str, precision: str) -> None:
        """To the last bit, with a short last batch, dropout, and a member that is compacted away on the way."""
        common = ("data=digits", f"optimizer={optimizer}", f"trainer.precision={precision}", "batch_size=50")
        eager, captured = (
            fit(
                members(composed, *common, f"trainer.cuda_graph={graph}"),
                stops=lambda epoch, _: [1] if epoch == 2 else [],
            )
            for graph in ("false", "true")
        )
        for a, b in zip(eager, captured, strict=True):
            assert a.reason == b.reason
            assert_same_bits(a, b)

    @pytest.mark.parametrize("count", [1, 4])
    def test_a_graph_of_ones_own_model(self, composed: Compose, count: int) -> None:
        """A convolution, with its short last batch, alone and under vmap."""
        model = (*OWN, "model._target_=test_gpu.Convolutional", "model.dropout=0.2", "batch_size=50")
        eager, captured = (
            fit([composed(*model, f"seed={k}", f"trainer.cuda_graph={graph}") for k in range(count)])
            for graph in ("false", "true")
        )
        for a, b in zip(eager, captured, strict=True):
            close(a, b, 1e-4)

    @pytest.mark.parametrize("kind", ["Waiting", "Sending"])
    def test_a_model_that_waits_is_trained_without_a_graph(self, composed: Compose, kind: str) -> None:
        """By itself, unless a graph was asked for; and what is trained afterwards is as good as ever."""
        model = (*OWN, f"model._target_=test_gpu.{kind}", "model.dropout=0.0")
        (expected,) = fit([composed(*model, "trainer.cuda_graph=false")])
        (result,) = fit([composed(*model)])
        assert_same_bits(result, expected)
        with pytest.raises(RuntimeError, match="captur"):
            fit([composed(*model, "trainer.cuda_graph=true")])
        torch.cuda.empty_cache()  # an error as long as anything is being recorded
        self.test_twice_is_bit_equal(composed, "true")

    def test_resumed_or_never_killed(self, composed: Compose, tmp_path_factory: pytest.TempPathFactory) -> None:
        """Bit-equal on the device too."""
        folder = tmp_path_factory.mktemp("state")
        short, long = (composed(*COMMON, f"epochs={epochs}") for epochs in (2, 4))
        fit([short], save_to=folder)
        assert_same_bits(fit([long])[0], fit([long], resume=folder)[0])

    def test_a_population_fills_the_device_and_fits(self, composed: Compose) -> None:
        """Its size is by the device's memory, not by a CPU's cache."""
        wide = prepare(composed("data=mnist", "trainer=gpu", "model.hidden=[2048,2048]", "batch_size=128"))
        small = prepare(composed(*COMMON))
        free = torch.cuda.mem_get_info()[0]
        assert population_size(small) == 1024
        assert 8 <= population_size(wide) < 100
        fit([wide.config.model_copy(update={"seed": k, "epochs": 1}) for k in range(population_size(wide))])
        assert torch.cuda.max_memory_allocated() < free

    def test_two_ranks_on_one_device(self, composed: Compose, tmp_path: Path) -> None:
        """By gloo, since nccl wants a device for each: the curve of one."""
        (one,) = fit([composed(*COMMON, "epochs=2")])
        script = tmp_path / "ranks.py"
        script.write_text(TWO_RANKS)
        subprocess.run([sys.executable, str(script), str(ROOT / "conf"), str(tmp_path)], check=True, timeout=120)
        for name in ("loss/train", "loss/val"):
            np.testing.assert_allclose(np.load(tmp_path / "history.npz")[name][0], one.metrics[name], rtol=1e-4)


TWO_RANKS = """
import sys
import numpy as np
import torch.distributed as dist
import torch.multiprocessing as mp

def rank(number, conf, folder):
    from hydra import compose, initialize_config_dir
    from manyfit.config import schema
    from manyfit.parallel.ranks import Ranks
    from manyfit.training.fitting import train

    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
    with initialize_config_dir(conf, version_base="1.3"):
        overrides = ["data=digits", "epochs=2", "model.dropout=0.3", "trainer=gpu", "trainer.cuda_graph=false"]
        cfg = compose("config", overrides, return_hydra_config=True)
    trained = train([schema.parse(cfg, cfg.hydra.runtime.choices)], ranks=Ranks(number, 2))
    if number == 0:
        np.savez(f"{folder}/history.npz", **trained.history)
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(rank, sys.argv[1:], nprocs=2)
"""


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.cuda_graph=true"], "trainer.cuda_graph must be auto or false here, but got true: there is no CUDA"),
        (["trainer.cuda_graph=true", "optimizer=adagrad"], "the step of Adagrad cannot be captured"),
        (["trainer.cuda_graph=true", "probes=[update_angle]"], "probe update_angle looks at every step"),
        (["trainer.precision=16-mixed"], "trainer.precision must be another than '16-mixed' without a GPU"),
        (["trainer.precision=tf32"], "trainer.precision must be another than 'tf32' without a GPU. Use 32-true"),
    ],
)
def test_refused_without_one(composed: Compose, overrides: list[str], words: str) -> None:
    """Before a run exists, with the reasons."""
    with pytest.raises(ConfigError, match=words):
        prepare(composed("data=iris", "trainer=cpu", *overrides))
