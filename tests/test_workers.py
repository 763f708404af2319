"""Populations trained side by side in processes: the same bits as in one, whatever happens to a process."""

import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from conftest import Compose, assert_same_bits, epochs_stored, started
from manyfit.config.errors import ConfigError, TrainingError
from manyfit.parallel.channel import GoneError
from manyfit.parallel.launch import Launch
from manyfit.parallel.workers import Pool, Process, processes
from manyfit.sweeps.parent import Sweep
from manyfit.training.fitting import fit, train


def killing(mark: Path, times: int) -> str:
    """A source of data that kills its process while it is loaded, so many times."""
    return (
        f"import os\nMARK, TIMES, TEST = {str(mark)!r}, {times}, {os.getpid()}\n"
        + """
from manyfit.data.table import Table
from manyfit.data.sources import iris

def deadly(lives: int = 0) -> Table:
    if os.getpid() != TEST and lives == 0:
        with open(MARK, "a") as file:
            file.write(".")
        if os.path.getsize(MARK) <= TIMES:
            os.kill(os.getpid(), 9)
    return iris()
"""
    )


def test_two_workers_give_the_bits_of_one(composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six members of two shapes in two processes of one thread, with one pruned; every child is as if alone."""
    monkeypatch.chdir(tmp_path)
    common = ("data=wine", "epochs=3", "model.dropout=0.3", "tracking=off")
    configs = {
        n: composed(*common, f"seed={n}", f"optimizer.lr={10 ** -(1 + n % 3)}", f"batch_size={16 if n < 4 else 32}")
        for n in range(6)
    }
    with Sweep(
        "many",
        configs[0],
        launch=Launch(workers=2),
        prune=lambda numbers, epoch, _: {1} & {*numbers} if epoch == 2 else (),
    ) as sweep:
        children = sweep.train(configs)
        again = sweep.train({7: composed(*common, "seed=7"), 8: composed(*common, "seed=8")})
    assert [child.result.reason for child in children if child.result] == ["finished", "pruned"] + ["finished"] * 4
    for child in [*children, *again]:
        if child.number != 1:
            assert child.result is not None
            assert_same_bits(child.result, fit([child.config])[0])
    assert not [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]


@pytest.mark.usefixtures("forked_workers")
def test_an_error_of_the_command_leaves_no_worker_behind_at_work(composed: Compose) -> None:
    """Its report fails in the middle of a training: the next population hears nothing of that one."""
    long, short = composed("data=iris", "epochs=300"), composed("data=iris", "epochs=2")

    def fails(*_: object) -> None:
        raise OSError("disk full")

    heard: list[int] = []
    with Pool(processes(1)) as pool, pool.turn:
        with pytest.raises(OSError, match="disk full"):
            pool.train(train, [long], fails, None)
        trained = pool.train(train, [short], lambda epoch, *_: heard.append(epoch), None)
    assert heard == [0, 1, 2]
    assert trained.history["loss/val"].shape == (1, 3)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize(("deaths", "fails"), [(1, False), (4, True)])
def test_a_worker_that_dies_is_replaced_once(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: int, fails: bool
) -> None:
    """Killed while it trains one member, it is trained by another worker; killed again, that member fails alone.

    It dies twice of the population, which holds another member, and twice of that one by itself.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module = f"deadly_{deaths}"  # a name of its own: an import is remembered, with its folder
    (tmp_path / f"{module}.py").write_text(killing(tmp_path / "mark", deaths))
    common = ("data=iris", f"data._target_={module}.deadly", "epochs=3", "tracking=off")
    configs = {0: composed(*common, "+data.lives=1"), 1: composed(*common), 2: composed(*common, "+data.lives=1")}
    with Sweep("deadly", configs[0], launch=Launch(workers=2)) as sweep:
        children = sweep.train(configs)
    assert [child.error is None for child in children] == [True, not fails, True]
    if fails:
        assert isinstance(children[1].error, TrainingError)
        assert "2 workers died of these runs, the last with exit code -9" in str(children[1].error)
    else:
        assert children[1].result is not None
        assert_same_bits(children[1].result, fit([configs[1]])[0])


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_the_workers(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """Every run is KILLED and keeps its epochs; no process is left."""
    arguments = ["-m", "hydra.launcher.workers=2", "seed=1,2,3,4", "epochs=100000", "data=digits"]
    with started(tmp_path, *arguments) as process:
        deadline = time.monotonic() + 60
        while epochs_stored(tmp_path, "distinct run_uuid") < 4 and time.monotonic() < deadline:
            time.sleep(0.1)
        children = psutil.Process(process.pid).children()
        found = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert len(found) == 2
    assert not psutil.wait_procs(found, timeout=15)[1]
    runs = stored(tmp_path)
    assert [run.info.status for run in runs] == ["KILLED"] * 4
    assert all(run.data.metrics["loss/val"] > 0 for run in runs)


def stored(folder: Path) -> list:
    """Children that have epochs."""
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return [run for run in runs if "loss/val" in run.data.metrics]


def test_refused(composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A population is shared out over devices, or several over workers; not both."""
    monkeypatch.chdir(tmp_path)
    config = composed("data=iris", "trainer=ddp_cpu", "tracking=off")
    with (
        Sweep("both", config, launch=Launch(workers=2)) as sweep,
        pytest.raises(ConfigError, match="hydra.launcher.workers must be 1 or auto with trainer.devices > 1"),
    ):
        sweep.train({0: config})


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_a_worker_that_dies_before_its_first_word(composed: Compose) -> None:
    """Another takes its place, whether it was gone before it was asked or while it was starting."""
    config = composed("data=iris", "epochs=2")
    with Pool(processes(1)) as pool, pool.turn:
        for _ in range(2):
            (worker,) = pool.workers
            assert isinstance(worker, Process)
            worker.process.kill()
            trained = pool.train(train, [config], None, None)
            assert trained.history["loss/val"].shape == (1, 3)


class Threaded:
    """A worker that is a thread of this process: what it says, it is told to say beforehand."""

    lives = 2

    def __init__(self, *words: tuple) -> None:
        self.words, self.dead = list(words), threading.Event()
        self.channel: Any = self

    def receive(self) -> tuple:
        """What comes next; without any more words it is dead once it is killed."""
        if not self.words:
            self.dead.wait()
            raise GoneError
        word = self.words.pop(0)
        if word == ("dies",):
            raise GoneError
        if word == ("later",):
            time.sleep(0.2)
            return self.receive()
        return word

    def send(self, *_: Any) -> None:
        """It is of no interest."""

    def passes_on(self, *_: Any) -> bool:
        """It has no epochs."""
        return False

    def kill(self) -> None:
        """Whoever listens to it hears of it."""
        self.dead.set()

    def fate(self) -> str:
        """Of its own."""
        return "of nothing"

    def again(self) -> "Threaded":
        """It would say the same."""
        return Threaded(*self.others)

    others: Sequence[tuple] = ()  # words of who comes after it


READY = ("ready", None)


def test_a_worker_that_waits_for_its_node_keeps_nobody() -> None:
    """Two populations, a worker that is ready and one that never will be: the one trains both."""
    quick, pending = Threaded(READY, ("trained", 1), ("trained", 2)), Threaded()
    with Pool([pending, quick]) as pool, pool.turn:
        assert [pool.train(len, [], None, None) for _ in range(2)] == [1, 2]


def test_members_move_while_another_worker_is_awaited() -> None:
    """One dies and who is to come in its place finds no room: who is there trains what it had."""
    dies, lives = Threaded(READY, ("dies",)), Threaded(("later",), READY, ("trained", 3))
    with Pool([dies, lives]) as pool, pool.turn:
        assert pool.train(len, [], None, None) == 3
        assert dies not in pool.workers
        assert len(pool.workers) == 2


def test_members_of_which_workers_die_are_given_up() -> None:
    """After so many as its kind may lose."""
    worker = Threaded(READY, ("dies",))
    worker.others = [READY, ("dies",)]
    with (
        Pool([worker]) as pool,
        pool.turn,
        pytest.raises(TrainingError, match="2 workers died of these runs, the last"),
    ):
        pool.train(len, [], None, None)


def test_who_cannot_start_is_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    """It is said why; the others go on, and without any it is what the command says."""
    with Pool([Threaded(("refused", "no such folder")), Threaded(READY)]) as pool:
        pool.ready()
        while len(pool.workers) == 2:
            time.sleep(0.01)
    assert capfd.readouterr().err == "a worker is left out: no such folder\n"
    with Pool([Threaded(("refused", "no such folder"))]) as pool, pytest.raises(ConfigError, match="no such folder"):
        pool.ready()
    dies = Threaded(("dies",))
    dies.others = [("dies",)]
    with Pool([dies]) as pool, pytest.raises(ConfigError, match="2 workers died as they started, the last of nothing"):
        pool.ready()


def test_an_end_reaches_who_waits_for_a_worker() -> None:
    """None is free, and none will be."""
    with Pool([Threaded()]) as pool:
        threading.Timer(0.1, pool.stop, [KeyboardInterrupt()]).start()
        with pool.turn, pytest.raises(KeyboardInterrupt):
            pool.train(len, [], None, None)
