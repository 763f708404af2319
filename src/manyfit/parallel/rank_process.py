"""In a rank: join the others, train what is asked for, tell the command, and end when it is told to."""

import contextlib
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manyfit.config import place
from manyfit.config.schema import Config
from manyfit.parallel.channel import Channel, made
from manyfit.parallel.signals import Leaving, obey_signals

if TYPE_CHECKING:
    from manyfit.parallel.ranks import Ranks

FOREVER = 10**6  # seconds that a rank waits for another: a dead one is noticed by other means
Train = Callable[..., Any]  # what trains, or a class of such: see `made`


def work(door: str, run: Train, configs: Sequence[Config]) -> None:
    """A rank that the command started: train, and tell it."""
    command, leaving = announce(door, int(os.environ["RANK"])), Leaving()
    obey_signals(leaving)
    from manyfit.parallel.ranks import PeerLostError

    try:
        with group(leaving) as (ranks, device):
            first = ranks.rank == 0
            asking = {"report": command.report, "stops": command.stops} if first else {}
            trained = made(run, {})(configs, ranks=ranks, device=device, **asking)
        command.send(*(("trained", trained) if first else ("done",)))
    except Exception as error:
        lost = isinstance(error, PeerLostError)
        if not lost:
            traceback.print_exc()
        command.send("lost" if lost else "failed", f"{type(error).__name__}: {error}")
        sys.stderr.flush()
        os._exit(1)  # what is left of the group may wait for ranks that are gone


def announce(door: str, rank: int) -> Channel:
    """The channel to the command, whose address says which rank this is: no word has to be sent for it."""
    here = socket.socket(socket.AF_UNIX)
    here.bind(str(Path(door).with_name(str(rank))))
    here.connect(door)
    return Channel(connection.Connection(here.detach()))


@contextlib.contextmanager
def group(leaving: Leaving | None = None) -> Iterator[tuple["Ranks", int]]:
    """The process group, and which of the machine's GPUs is this rank's; its share of the cores is set."""
    from datetime import timedelta

    import pytorch_lightning  # noqa: F401  # imported later it keeps the group, whose threads may abort an ending Python
    import torch
    import torch.distributed as dist

    from manyfit.parallel.ranks import Ranks

    environment = _environment()
    gpus = torch.cuda.device_count()
    device = int(environment["LOCAL_RANK"]) % (gpus or 1)  # srun may show each of its tasks one GPU only
    if gpus:
        torch.cuda.set_device(device)
    torch.set_num_threads(max(1, place.cores() // int(environment.get("LOCAL_WORLD_SIZE", 1))))
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=timedelta(seconds=FOREVER))
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), leaving), device
    finally:
        if sys.exc_info()[0] is None:  # after an error it may wait for ranks that are gone
            dist.destroy_process_group()


def _environment() -> Mapping[str, str]:
    """What torch's launcher sets; srun's variables are translated into it."""
    if "RANK" not in os.environ:
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

        slurm = SLURMEnvironment(auto_requeue=False)
        os.environ |= {
            "MASTER_ADDR": slurm.main_address,
            "MASTER_PORT": str(slurm.main_port),
            "RANK": os.environ["SLURM_PROCID"],
            "WORLD_SIZE": os.environ["SLURM_NTASKS"],
            "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        }
    return os.environ
