"""What was measured of every member, and why each ended."""

from collections.abc import Mapping, Sequence

import numpy as np


class History:
    """The metrics of a population, epoch by epoch, while members leave it.

    Args:
        members: So many begin.
        epochs: Of the whole training.
        patience: Epochs without a better one after which each member stops; None: it does not.

    Attributes:
        values: By metric, (all members, epochs + 1); NaN after a member's end.
        members: Which of them are present.
        ended: Why the others, and those about to leave, ended.
    """

    def __init__(self, members: int, epochs: int, patience: Sequence[int | None] | None = None) -> None:
        self.size, self.epochs = members, epochs
        self.patience = np.array([np.inf if its is None else its for its in patience or [None] * members])
        self.values: dict[str, np.ndarray] = {}
        self.members = np.arange(members)
        self.ended: dict[int, str] = {}

    def note(self, epoch: int, measured: Mapping[str, np.ndarray]) -> None:
        """Metrics (members present,) of an epoch."""
        for name, values in measured.items():
            if name not in self.values:
                self.values[name] = np.full((self.size, self.epochs + 1), np.nan)
            self.values[name][self.members, epoch] = values

    def of(self, name: str, epoch: int) -> np.ndarray:
        """A metric of the members present, up to an epoch: (members present, epoch + 1)."""
        return self.values[name][self.members, : epoch + 1]

    def ends(self, epoch: int, best: np.ndarray) -> dict[int, str]:
        """Who ends with this epoch by itself, and why; `best` (all members,) are the best epochs before it."""
        losses = [self.of(f"loss/{split}", epoch)[:, -1] for split in ("train", "val")]
        finite = np.isfinite(losses).all(axis=0)
        early = epoch - 1 - best[self.members] >= self.patience[self.members]
        over = np.full(len(self.members), epoch == self.epochs)
        found: dict[int, str] = {}
        for reason, these in (("diverged", ~finite), ("stopped early", early), ("finished", over)):
            for member in self.members[these]:
                found.setdefault(int(member), reason)
        return found

    def going(self, epoch: int) -> dict[int, dict[str, float]]:
        """The metrics of an epoch of every member that goes on."""
        return {
            int(member): {name: float(values[member, epoch]) for name, values in self.values.items()}
            for member in self.members
            if int(member) not in self.ended
        }

    def stay(self) -> np.ndarray:
        """Which of the members present have not ended, (members present,)."""
        return ~np.isin(self.members, list(self.ended))

    def keep(self, stay: np.ndarray) -> None:
        """Leave only these of the members present."""
        self.members = self.members[stay]

    def state(self, epoch: int) -> dict[str, np.ndarray]:
        """All that was measured up to an epoch."""
        return {name: values[:, : epoch + 1] for name, values in self.values.items()}

    def load_state(self, values: Mapping[str, np.ndarray], ended: Mapping[int, str]) -> None:
        """Go on from a `state()`; there may be more epochs to come."""
        self.ended = {int(member): reason for member, reason in ended.items()}
        for name, known in values.items():
            self.values[name] = np.full((self.size, self.epochs + 1), np.nan)
            self.values[name][:, : known.shape[1]] = known
