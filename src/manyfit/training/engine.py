"""What a training asks of that which computes it: there are two, `native` and `batched`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from manyfit.data.splits import Dataset
from manyfit.parallel.ranks import Ranks
from manyfit.training.best import Best
from manyfit.training.faults import Faults
from manyfit.training.prepared import EngineName
from manyfit.training.rates import Rates


@dataclass(frozen=True)
class Outputs:
    """What a member says of its examples of a split: outputs (n, width), targets (n,), and the data they are of."""

    outputs: Tensor
    targets: Tensor
    data: Dataset


class Engine(ABC):
    """The members of a population that are present, in order: trained, measured, and let go.

    Attributes:
        name: The tag of a run that it trained.
        seeds: One for each member.
        rates: Theirs.
        ranks: The processes that train them together.
        faults: Of one member each; who has any is let go.
        parts: In how many an epoch is trained, each a batch to Lightning: an interrupt is heard between two.
        examples_per_epoch: To train on, (members,).
        batch_sizes: (members,).
        parameters: How many each has, (members,).
    """

    name: EngineName
    seeds: list[int]
    rates: Rates
    ranks: Ranks
    faults: Faults
    parts: int
    examples_per_epoch: np.ndarray
    batch_sizes: np.ndarray
    parameters: np.ndarray

    @property
    @abstractmethod
    def weights(self) -> Tensor:
        """(members, parameters), each row as this engine has it."""

    @property
    @abstractmethod
    def buffers(self) -> Mapping[str, Tensor]:
        """(members, ...) each."""

    @property
    @abstractmethod
    def steps_done(self) -> np.ndarray:
        """(members,), since the beginning."""

    @abstractmethod
    def begin(self, epoch: int) -> None:
        """Make ready for the epoch after so many."""

    @abstractmethod
    def train(self, part: int) -> None:
        """This part of the epoch's steps."""

    @abstractmethod
    def running(self) -> np.ndarray:
        """Mean losses (members,) in training, since they were last asked for."""

    @abstractmethod
    def measure(self, splits: Sequence[str], best: Best | None = None) -> dict[str, np.ndarray]:
        """Metrics of each split, named `loss/val`, `accuracy/test` and so on.

        Args:
            splits: train, val or test.
            best: Of all members, present or not, these weights; None: the present ones of those present.
        """

    @abstractmethod
    def outputs(self, split: str, best: Best | None = None) -> list[Outputs]:
        """Those of each member for its examples of train, val or test; best as for `measure`."""

    @abstractmethod
    def keep(self, stay: np.ndarray) -> None:
        """Leave only these of the members present, (members,) bool."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything that `load_state` needs to go on bit for bit; copies, on the CPU."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state()` of the same members."""

    @abstractmethod
    def gradients(self, index: Tensor, members: np.ndarray) -> Tensor:
        """Gradient (members, parameters) of some members' mean loss on examples (members, rows), without dropout.

        There are as many parameters as the largest of these members has.
        """

    @abstractmethod
    def ends(self, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Norms (members,) of what a gradient of all members holds of the first and the last weight matrix."""

    @abstractmethod
    def dead_share(self, index: Tensor) -> Tensor:
        """Share (members,) of the hidden units that are dead on examples (rows,); see `probes.DeadUnits`."""

    @abstractmethod
    def network(self, member: int) -> nn.Module:
        """A copy of what a member present is now, in evaluation mode, on the CPU."""

    @abstractmethod
    def examples_of(self, member: int) -> tuple[Tensor, Tensor]:
        """What a member present is trained on, on the CPU: examples (n, features), targets (n,)."""

    @abstractmethod
    def cosines(self) -> Tensor:
        """Mean cosine (members,) of successive updates since it was last asked for, if that is probed; NaN: of none."""
