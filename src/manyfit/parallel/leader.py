"""Under torchrun or srun the command runs in rank 0, and the other ranks train what it asks them to."""

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from manyfit.config.errors import TrainingError
from manyfit.config.schema import Config
from manyfit.parallel.channel import made
from manyfit.parallel.devices import by_srun, launched
from manyfit.parallel.rank_process import Train, group
from manyfit.parallel.signals import Leaving, noted_signals, obey_signals, sigterm_exits

if TYPE_CHECKING:
    from manyfit.parallel.ranks import Ranks
    from manyfit.progress import OnEpoch
    from manyfit.training.loop import Stops
    from manyfit.training.trained import Trained


def is_helper() -> bool:
    """Whether this process is a rank, other than the first, that torchrun started, or srun with trainer=slurm."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["RANK"]) > 0
    return by_srun() and int(os.environ.get("SLURM_PROCID", 0)) > 0


def serve() -> None:
    """Train what rank 0 asks for until it says that this is all.

    Raises:
        SystemExit: 1, a rank is gone; rank 0 says why, or its launcher.
    """
    from manyfit.parallel.ranks import PeerLostError

    leaving = Leaving()
    obey_signals(leaving)
    try:
        with group(leaving) as (ranks, device):
            gc.freeze()  # as the command does when the imports are over
            gc.enable()
            known: dict[type, Any] = {}
            while task := ranks.agree(None):
                run, configs = task
                made(run, known)(configs, ranks=ranks, device=device)
    except PeerLostError as error:
        sys.exit(f"rank {os.environ['RANK']}: {error}")


@contextlib.contextmanager
def lead() -> Iterator[None]:
    """For as long as the command runs in rank 0, the others are there to train with it."""
    if launched("slurm" if by_srun() else "elastic") == 1:
        yield
        return
    with group() as place, sigterm_exits(), noted_signals() as signals:
        leader = Leader(*place, signals)
        token = LEADER.set(leader)
        try:
            yield
        except BaseException as error:
            if getattr(error, "code", 1):  # not so well: whoever started the ranks ends them
                raise
        finally:
            LEADER.reset(token)
        if leader.broken:
            sys.exit(f"error: the ranks were given up after {leader.broken}")
        leader.ranks.agree(None)


@dataclass
class Leader:
    """Rank 0, which asks the others to train with it.

    Attributes:
        signals: Where the numbers of signals that came can be read.
        broken: Why it can ask no more: after an error here nobody knows where the others are.
    """

    ranks: "Ranks"
    device: int
    signals: int
    broken: str = ""
    known: dict[type, Any] = field(default_factory=dict)

    def train(
        self, run: Train, configs: Sequence[Config], report: "OnEpoch | None", stops: "Stops | None"
    ) -> "Trained":
        """See `ddp.train`."""
        from manyfit.parallel.ranks import PeerLostError

        if self.broken:
            raise TrainingError(f"the ranks were given up after an earlier error ({self.broken})")
        try:
            self.ranks.agree((run, list(configs)))
            trained: Trained = made(run, self.known)(configs, report, stops, ranks=self.ranks, device=self.device)
            return trained
        except BaseException as error:
            self.broken = f"{type(error).__name__}: {error}"
            if isinstance(error, PeerLostError):
                raise self._cause(error) from None
            raise

    def _cause(self, error: Exception) -> BaseException:
        """Why another rank is gone: all were asked to end, this one first, or it came to a bad end of its own."""
        with contextlib.suppress(BlockingIOError):
            number = os.read(self.signals, 1)[0]
            return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
        return TrainingError(str(error))


LEADER: ContextVar[Leader] = ContextVar("leader")
"""Of the command that runs in rank 0, between which and a training lies Hydra."""
