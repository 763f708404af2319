"""The best weights so far of every member, by smoothed validation loss."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manyfit import curves


class Best:
    """An epoch's smoothed loss is known once the next one is: weights are kept one epoch back.

    Args:
        weights: Of all members at the start, (members, parameters).
        buffers: Of all members, (members, ...) each.

    Attributes:
        weights: Each member's best, (members, parameters); `buffers` likewise.
        epoch: Each member's best epoch (members,).
    """

    def __init__(self, weights: Tensor, buffers: Mapping[str, Tensor]) -> None:
        self.weights, self.buffers = weights.clone(), {name: b.clone() for name, b in buffers.items()}
        self.value = np.full(len(weights), np.inf)
        self.epoch = np.zeros(len(weights), int)
        self._weights, self._buffers = self.weights.clone(), dict(self.buffers)  # of the last epoch, members present

    def note(self, members: np.ndarray, loss: np.ndarray, weights: Tensor, buffers: Mapping[str, Tensor]) -> None:
        """After an epoch: judge the one before, and keep this one's weights.

        Args:
            members: Which are present.
            loss: Their validation losses so far, (present, epochs + 1).
            weights: Theirs, (present, parameters).
            buffers: Theirs.
        """
        epoch = loss.shape[1] - 1
        if epoch > 0:
            self._accept(members, curves.smooth(loss[:, max(0, epoch - 2) :])[:, -2], epoch - 1)
        self._weights, self._buffers = weights.clone(), {name: b.clone() for name, b in buffers.items()}

    def leave(self, members: np.ndarray, loss: np.ndarray, stay: np.ndarray) -> None:
        """Members that do not stay end with this epoch: judge it too, and forget them. Arguments as for `note`."""
        epoch = loss.shape[1] - 1
        self._accept(members, np.where(stay, np.inf, curves.smooth(loss[:, max(0, epoch - 1) :])[:, -1]), epoch)
        self.keep(stay)

    def keep(self, stay: np.ndarray) -> None:
        """Leave only these of the members present, (members present,)."""
        rows = torch.from_numpy(np.flatnonzero(stay)).to(self.weights.device)
        self._weights, self._buffers = self._weights[rows], {name: b[rows] for name, b in self._buffers.items()}

    def state(self) -> dict[str, Any]:
        """What `load_state` goes on from."""
        return {
            "weights": self.weights.cpu().clone(),
            "buffers": {name: b.cpu().clone() for name, b in self.buffers.items()},
            "value": self.value.copy(),
            "epoch": self.epoch.copy(),
        }

    def load_state(self, state: Mapping[str, Any], weights: Tensor, buffers: Mapping[str, Tensor]) -> None:
        """Go on from a `state()` after an epoch that left these weights and buffers of the members present."""
        device = self.weights.device
        self.weights.copy_(state["weights"])
        self.buffers = {name: b.to(device) for name, b in state["buffers"].items()}
        self.value, self.epoch = state["value"], state["epoch"]
        self._weights, self._buffers = weights.clone(), {name: b.clone() for name, b in buffers.items()}

    def _accept(self, members: np.ndarray, value: np.ndarray, epoch: int) -> None:
        better = np.nan_to_num(value, nan=np.inf) < self.value[members]
        if not better.any():
            return
        rows = members[better]
        self.value[rows], self.epoch[rows] = value[better], epoch
        here = torch.from_numpy(np.flatnonzero(better)).to(self.weights.device)
        there = torch.from_numpy(rows).to(self.weights.device)
        self.weights[there] = self._weights[here]
        for name, buffer in self._buffers.items():
            self.buffers[name][there] = buffer[here]
