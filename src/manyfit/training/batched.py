"""The engine of GPUs and several devices, and of models, losses and optimizers that the kernel does not know."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from manyfit.data.draws import order_states, orders
from manyfit.population import dense
from manyfit.training.best import Best
from manyfit.training.engine import Engine, Outputs
from manyfit.training.evaluation import Evaluation, wide
from manyfit.training.rates import Rates
from manyfit.training.steps import Steps

DRAWN_ON_GPU = 16  # members whose orders a GPU draws sooner than a CPU
BLOCK = 64  # optimizer steps in what Lightning calls a batch: its 0.4 to 1.1 ms a batch then weigh little


class Batched(Engine):
    """Members in step, as products of many matrices at once.

    Args:
        steps: Train them.
        evaluation: Measures them.
        rates: Theirs.
        seeds: Theirs.
        angles: Whether cosines of successive updates are wanted.
    """

    name = "batched"

    def __init__(
        self, steps: Steps, evaluation: Evaluation, rates: Rates, seeds: Sequence[int], angles: bool = False
    ) -> None:
        self.steps, self.evaluation, self.rates, self.seeds = steps, evaluation, rates, list(seeds)
        self.faults = rates.faults
        self.population, self.examples, self.ranks = steps.population, steps.examples, steps.ranks
        self.parts = -(-steps.per_epoch // BLOCK)
        self.angles = Angles(self.population.weights) if angles else None
        if self.angles:
            steps.after.append(lambda: self.angles.note(self.population.weights))  # type: ignore[union-attr]

    @property
    def batch_sizes(self) -> np.ndarray:  # type: ignore[override]  # read-only here
        """(members,)."""
        return np.full(len(self.population), self.steps.batch_size)

    @property
    def examples_per_epoch(self) -> np.ndarray:  # type: ignore[override]  # read-only here
        """(members,)."""
        return np.full(len(self.population), len(self.examples))

    @property
    def parameters(self) -> np.ndarray:  # type: ignore[override]  # read-only here
        """(members,)."""
        return np.full(len(self.population), self.weights.shape[1])

    @property
    def weights(self) -> Tensor:
        """See Engine."""
        return self.population.weights

    @property
    def buffers(self) -> Mapping[str, Tensor]:
        """See Engine."""
        return self.population.buffers

    @property
    def steps_done(self) -> np.ndarray:
        """See Engine."""
        return np.full(len(self.population), self.steps.done)

    def begin(self, epoch: int) -> None:
        """Draw the orders, as mini-batches (steps, members, batch).

        The last short batch is padded with example 0, whose rows do not count. Of several ranks each has its own part
        of every batch.
        """
        steps, n = self.steps, len(self.examples)
        batch, count = steps.batch_size, steps.per_epoch
        drawn = _orders(self.seeds, epoch, n, self.weights.device)
        padded = torch.nn.functional.pad(drawn, (0, count * batch - n))
        self.index = padded.view(len(drawn), count, batch)[..., self.ranks.share(batch)].transpose(0, 1).contiguous()
        self.rows = [batch] * (count - 1) + [n - (count - 1) * batch]
        if self.angles:
            self.angles.begin(count)

    def train(self, part: int) -> None:
        """See Engine."""
        some = slice(part * BLOCK, (part + 1) * BLOCK)
        index, rows = self.index[some], self.rows[some]
        self.steps.take(index, rows, self.rates.together(self.steps.done, len(rows)))

    def running(self) -> np.ndarray:
        """See Engine."""
        self.ranks.sum(self.steps.running)
        losses = self.steps.running.cpu().double().numpy().copy()  # it is written to again
        self.steps.running.zero_()
        return losses

    def measure(self, splits: Sequence[str], best: Best | None = None) -> dict[str, np.ndarray]:
        """See Engine."""
        its = self.population if best is None else best
        return self.evaluation.measure(its.weights, its.buffers, splits)

    def outputs(self, split: str, best: Best | None = None) -> list[Outputs]:
        """See Engine."""
        its, y = self.population if best is None else best, self.examples.split(split)[1]
        every = self.evaluation.outputs(its.weights, its.buffers, split)
        return [Outputs(z, y[k if len(y) > 1 else 0], self.examples.data) for k, z in enumerate(every)]

    def keep(self, stay: np.ndarray) -> None:
        """Compact everything."""
        rows = torch.from_numpy(np.flatnonzero(stay)).to(self.weights.device)
        self.steps.keep(rows)
        self.examples.keep(rows)
        self.evaluation.forget()
        self.rates.keep(stay)
        self.seeds = [seed for seed, here in zip(self.seeds, stay, strict=True) if here]
        if self.angles:
            self.angles.keep(rows)

    def state(self) -> dict[str, Any]:
        """See Engine."""
        scaling = self.steps.scaling
        return {
            "steps": self.steps.done,
            "weights": self.weights.cpu().clone(),
            "buffers": {name: b.cpu().clone() for name, b in self.buffers.items()},
            "optimizer": copied(self.steps.optimizer.raw.state_dict()["state"]),
            "scaling": copied([scaling.scale, scaling.good]) if scaling else None,
            "angles": copied(self.angles.state()) if self.angles else None,
            **self.rates.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See Engine."""
        self.steps.done = state["steps"]
        self.weights.copy_(state["weights"])
        device, raw = self.weights.device, self.steps.optimizer.raw
        self.population.buffers = {name: b.to(device) for name, b in state["buffers"].items()}
        raw.load_state_dict({"state": state["optimizer"], "param_groups": raw.state_dict()["param_groups"]})
        self.rates.load_state(state["schedules"], state["last_lr"])
        if self.steps.scaling and state["scaling"]:
            self.steps.scaling.load(*state["scaling"])
        of_probes: list[Any] = state.get("probes", [])  # where they were before there were engines
        if self.angles and (its := state.get("angles") or next(filter(None, of_probes), None)):
            self.angles.load_state(its)

    def gradients(self, index: Tensor, members: np.ndarray) -> Tensor:
        """See Engine; of all members: they have one batch size."""
        assert len(members) == len(self.population)
        population, index = self.population, index.to(self.weights.device).contiguous()
        x, y = self.examples.batch(index)
        weights = population.weights.new_full(index.shape[1:], 1 / index.shape[1])
        kept, population.buffers = population.buffers, {name: b.clone() for name, b in population.buffers.items()}
        try:
            with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
                return population.gradient(x, y, weights, [], self.steps.loss)[1]
        finally:  # what the model itself changes in training mode is put back
            population.buffers = kept

    def ends(self, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """See Engine."""
        matrices = [part for part in self.population.unpack(gradients) if part.ndim > 2]
        first, last = (torch.linalg.vector_norm(part.flatten(1), dim=1) for part in (matrices[0], matrices[-1]))
        return first, last

    def dead_share(self, index: Tensor) -> Tensor:
        """See Engine."""
        x = self.examples.x_train[index.to(self.weights.device)].expand(len(self.population), -1, -1)
        assert self.population.stack is not None
        return dense.dead_share(self.population.stack, self.population.parameters, x)

    def network(self, member: int) -> nn.Module:
        """See Engine."""
        population = self.population
        buffers = {name: buffer[member].cpu() for name, buffer in population.buffers.items()}
        return population.member(copy.deepcopy(population.template), population.weights[member], buffers)

    def examples_of(self, member: int) -> tuple[Tensor, Tensor]:
        """See Engine."""
        y = self.examples.y_train
        return self.examples.x_train.cpu(), y[member if len(y) > 1 else 0].cpu()

    def cosines(self) -> Tensor:
        """See Engine."""
        assert self.angles is not None
        return self.angles.mean()


class Angles:
    """Cosines of successive updates of the weights (members, parameters), without a word from the device."""

    def __init__(self, weights: Tensor) -> None:
        self.weights, self.step = weights.clone(), 0
        self.updates = weights.new_zeros(len(weights), 2, weights.shape[1])  # the last two
        self.products = weights.new_zeros(0, len(weights), 2, 2)

    def begin(self, steps: int) -> None:
        """Room for an epoch's products."""
        self.step %= 2
        self.products = self.weights.new_zeros(steps + self.step, len(self.weights), 2, 2)

    def note(self, weights: Tensor) -> None:
        """After a step: the products of its update with itself and the one before."""
        torch.sub(weights, self.weights, out=self.updates[:, self.step % 2])
        self.weights.copy_(weights)
        torch.bmm(self.updates, self.updates.mT, out=self.products[self.step])
        self.step += 1

    def mean(self) -> Tensor:
        """Over the epoch, (members,); an update of 0 does not count."""
        p = self.products.to(wide(self.products.device))
        cosine = p[..., 0, 1] / (p[..., 0, 0].sqrt() * p[..., 1, 1].sqrt())
        return cosine.nanmean(0)

    def keep(self, rows: Tensor) -> None:
        """Leave only these members."""
        self.weights, self.updates = self.weights[rows], self.updates[rows]

    def state(self) -> dict[str, Any]:
        """The last updates, which the first of the next epoch is compared with."""
        return {"weights": self.weights, "updates": self.updates, "step": self.step}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state()`."""
        self.weights, self.updates = (state[name].to(self.weights.device) for name in ("weights", "updates"))
        self.step = state["step"]


def _orders(seeds: Sequence[int], epoch: int, n: int, device: torch.device) -> Tensor:
    """In which order each member visits n examples in an epoch, (members, n), on the device."""
    unique = list(dict.fromkeys(seeds))
    if device.type == "cuda" and len(unique) >= DRAWN_ON_GPU and (kernels := dense.gpu_kernels()):
        states = torch.from_numpy(order_states(unique, epoch).view(np.int64))
        drawn: Tensor = kernels.permutations(states.to(device), n)
    else:
        drawn = orders(unique, epoch, n).to(device)
    rows = {seed: row for row, seed in enumerate(unique)}
    return drawn if unique == seeds else drawn[[rows[seed] for seed in seeds]]


def copied(node: Any) -> Any:
    """A tree of dicts and lists with its tensors copied to the CPU."""
    if isinstance(node, Tensor):
        return node.detach().cpu().clone()
    if isinstance(node, dict):
        return {key: copied(value) for key, value in node.items()}
    return [copied(value) for value in node] if isinstance(node, list) else node
