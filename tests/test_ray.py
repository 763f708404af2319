"""Sweeps on a cluster of Ray, with nodes that die: the runs, the bits and the words of one process."""

import contextlib
import importlib.util
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import psutil
import pytest
from mlflow.entities import Run
from omegaconf import OmegaConf

from conftest import command, started
from hosts import Network
from hydra_plugins.manyfit.fused import RayConfig, launch_of
from manyfit.config.errors import ConfigError
from manyfit.parallel import ray_cluster
from manyfit.parallel.launch import Launch
from manyfit.parallel.ray_cluster import Place
from test_cli import client, runs
from test_launcher import children

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

NETWORK = ["data=digits", "model.hidden=[192]", "model.dropout=0.3", "batch_size=16"]
GRID = ["-m", *NETWORK, "epochs=24", "optimizer.lr=1e-4,1e-3,3e-3,3e-2", "optimizer=sgd,adam", "seed=range(0,8)"]
SEARCH = ["sweep=lr", *NETWORK, "epochs=7", "sweep.n_trials=48", "sweep.seeds=1", "sweep.confirm_seeds=2"]


@pytest.fixture(scope="module")
def cluster() -> Iterator["Cluster"]:
    """A node of one CPU, to which tests add another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # others may be busy here
        from ray.cluster_utils import Cluster

        logging.getLogger("ray").setLevel(logging.ERROR)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        yield cluster
        cluster.shutdown()


def on(cluster: "Cluster") -> list[str]:
    return ["hydra/launcher=ray", f"hydra.launcher.address={cluster.address}"]


def until(happened: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def heard(folder: Path) -> int:
    """How many epochs of runs the command has heard of so far."""
    return sum(path.read_bytes().count(b'"loss/val"') for path in folder.glob("mlruns/spool/*/journal.jsonl"))


def values(folder: Path, run: Run) -> dict[str, list[float]]:
    """All that was measured of a run, but for the clock."""
    store = client(folder)
    names = set(run.data.metrics) - {"time/seconds", "examples_per_second"}
    points = {name: store.get_metric_history(run.info.run_id, name) for name in names}
    return {name: [m.value for m in sorted(found, key=lambda m: m.step)] for name, found in points.items()}


def assert_as_in_one_process(here: Path, there: Path) -> None:
    """The same children, each once and at its end, with the same bits."""
    ours, theirs = children(here), children(there)
    assert set(ours) == set(theirs)
    for name, run in ours.items():
        assert run.info.status == theirs[name].info.status != "RUNNING"
        assert values(here, run) == values(there, theirs[name]), name


@pytest.mark.slow
def test_a_grid_outlives_a_node(cluster: "Cluster", tmp_path: Path) -> None:
    """One of two dies in the middle: all of 64 runs are there, none twice, with the bits of one process."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    node = cluster.add_node(num_cpus=1)
    with started(two, *GRID, *on(cluster)) as process:
        until(lambda: heard(two) > 64 * 3)
        cluster.remove_node(node, allow_graceful=False)
        said, errors = process.communicate(240)
    assert process.returncode == 0, errors
    assert "a worker died: its 32 runs begin again in another" in errors
    assert "Traceback" not in errors
    assert "64 finished" in said
    assert command(one, *GRID).returncode == 0
    assert len(children(two)) == len(runs(two)) - 1 == 64
    assert_as_in_one_process(one, two)


@pytest.mark.slow
def test_a_search_outlives_a_node(cluster: "Cluster", tmp_path: Path) -> None:
    """One dies in the second of three rounds, another comes: the same 48 trials, told once, and one report."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    node = cluster.add_node(num_cpus=1)
    given = [*SEARCH, "epochs=20"]  # long enough for the node to die in the midst of a round
    with started(two, *given, *on(cluster)) as process:
        until(lambda: heard(two) > 16 * 21 + 16 * 2)
        cluster.remove_node(node, allow_graceful=False)
        new = cluster.add_node(num_cpus=1)
        _, errors = process.communicate(240)
    cluster.remove_node(new)
    assert process.returncode == 0, errors
    assert "a worker died: its 8 runs begin again in another" in errors
    assert command(one, *given).returncode == 0
    studies = [optuna.load_study(study_name=None, storage=f"sqlite:///{f}/mlruns/optuna.db") for f in (one, two)]
    told = [[(t.state.name, t.params, t.value) for t in study.trials] for study in studies]
    assert told[0] == told[1]
    assert len(told[1]) == 48
    assert len(children(two)) == len(runs(two)) - 1
    assert_as_in_one_process(one, two)


@pytest.mark.slow
def test_a_search_is_pruned(cluster: "Cluster", tmp_path: Path) -> None:
    """The cluster of this machine: epochs come back as they end and decisions go out, so that runs stop early."""
    node = cluster.add_node(num_cpus=1)
    auto = ["hydra/launcher=ray", "hydra.launcher.address=auto"]
    pruned = command(tmp_path, *SEARCH, "pruner=median", *auto, RAY_ADDRESS=cluster.address, seconds=240)
    cluster.remove_node(node)
    assert pruned.returncode == 0, pruned.stderr
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/mlruns/optuna.db")
    stopped = [trial for trial in study.trials if trial.state.name == "PRUNED"]
    assert len(study.trials) == 48 == len(stopped) + sum(trial.state.name == "COMPLETE" for trial in study.trials)
    assert stopped
    early = [run for run in children(tmp_path).values() if "pruned_at" in run.data.tags]
    assert len(early) == len(stopped)
    for run in early:
        assert len(values(tmp_path, run)["loss/val"]) == int(run.data.tags["pruned_at"]) + 1 < 8
    assert "RUNNING" not in {run.info.status for run in runs(tmp_path)}


@pytest.mark.slow
def test_an_interrupt_ends_what_ray_runs(cluster: "Cluster", tmp_path: Path) -> None:
    """Ctrl-C, while one worker trains and another waits for a node: KILLED with its epochs, and no actor is left."""
    arguments = ["-m", "data=iris", "epochs=100000", "seed=1,2", "hydra.launcher.workers=2", *on(cluster)]
    with started(tmp_path, *arguments) as process:
        until(lambda: heard(tmp_path) > 10)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(60)
    assert process.returncode == 130, errors
    assert "ray" not in errors.replace("joining Ray", "").lower()
    (run,) = [run for run in runs(tmp_path) if "loss/val" in run.data.metrics]
    assert run.info.status == "KILLED"
    until(lambda: not [p for p in psutil.process_iter(["name"]) if p.info["name"].startswith("ray::Actor")], 15)


RUN = "manyfit run -m model._target_=hosted.Net data=iris epochs=3 seed=0,1,2,3,4,5,6,7 hydra.launcher.max_members=2"
RUN += " hydra/launcher=ray hydra.launcher.address=auto"
HOSTED = """
import pathlib, socket, torch
class Net(torch.nn.Linear):
    def __init__(self, in_features, out_features):
        super().__init__(in_features, out_features)
        pathlib.Path("built-on-" + socket.gethostname()).touch()
"""
BY_HAND = {
    "first": f"""
        ray get-auth-token --generate && ray start --head --num-cpus=1 && touch head
        until [ -e joined ]; do sleep 0.2; done
        {RUN}; code=$?
        touch over; ray stop; exit $code""",
    "second": """
        until [ -e head ]; do sleep 0.2; done
        ray start --address=10.77.0.2:6379 --num-cpus=1 && touch joined
        until [ -e over ]; do sleep 0.2; done
        ray stop""",
}
TOGETHER = f"""
    [ $(hostname) = second ] || {{ ray get-auth-token --generate && touch head; }}
    until [ -e head ]; do sleep 0.2; done
    ray symmetric-run --address 10.77.0.2:6379 --min-nodes 2 --num-cpus 1 -- bash -c '{RUN} && touch well'
    [ -e well ]"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "scripts", [BY_HAND, {"first": TOGETHER, "second": TOGETHER}], ids=["by hand", "symmetric-run"]
)
def test_two_hosts_join_as_the_documentation_says(tmp_path: Path, scripts: dict[str, str]) -> None:
    """With a token, processes and a network card of its own each, on one disk: both train a network of one's own."""
    (tmp_path / "home").mkdir()
    (tmp_path / "hosted.py").write_text(HOSTED)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path / "home"), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT": "120"}  # for the other host, which may be slow
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RAY_worker_niceness": "0"}
    with Network() as network, contextlib.ExitStack() as stack:
        for host in scripts:
            network.add(host)
        first, second = (
            stack.enter_context(_booted(network, host, script, tmp_path, environment))
            for host, script in scripts.items()
        )
        assert first.wait(180) == 0, (tmp_path / "first.log").read_text()
        if scripts is BY_HAND:  # else it goes on looking for the first, for a minute
            assert second.wait(60) == 0, (tmp_path / "second.log").read_text()
    assert len(children(tmp_path)) == 8
    assert (tmp_path / "built-on-second").exists()


@contextlib.contextmanager
def _booted(
    network: Network, host: str, script: str, folder: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """The host does what the script says, and is switched off; it has a folder of Ray's, and asks nobody for names."""
    boot = "mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && mount --bind /dev/null /etc/resolv.conf"
    words = ["bash", "-c", f"{boot}\n{script}\nexit $?"]
    with (folder / f"{host}.log").open("w") as log:
        process = subprocess.Popen(
            [*network.on(host, booted=True), *words], cwd=folder, env=environment, stdout=log, stderr=log
        )
        with process:
            try:
                yield process
            finally:
                process.kill()


def _name(process: psutil.Process) -> str:
    """Of one that may be gone by now."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name()
    return ""


@pytest.mark.slow
def test_ray_on_this_machine_lets_no_one_in() -> None:
    """Started for a command it listens to the network, but to that command alone; it says nothing, and ends with it."""
    code = (
        "import signal\nfrom manyfit.parallel.launch import Launch\nfrom manyfit.parallel.ray_cluster import Cluster\n"
        "before = signal.getsignal(signal.SIGTERM)\n"
        "with Cluster(Launch(ray=True)):\n"
        "    print(signal.getsignal(signal.SIGTERM) is before, flush=True)\n"
        "    input()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        family = psutil.Process(process.pid).children(recursive=True)
        (gcs,) = [one for one in family if _name(one) == "gcs_server"]
        (port,) = [c.laddr.port for c in gcs.net_connections() if c.status == "LISTEN"]
        stranger = f"from ray._raylet import GcsClient\nGcsClient('127.0.0.1:{port}').get_all_node_info()"
        asked = subprocess.run(
            [sys.executable, "-c", stranger], capture_output=True, text=True, timeout=60, check=False
        )
        said, errors = process.communicate("\n", 60)
    assert "AuthenticationError" in asked.stderr
    assert (process.returncode, said, errors) == (0, "", "")
    assert not psutil.wait_procs(family, timeout=60)[1]


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        (["hydra.launcher.address=ray://head:10001"], "address must be auto or HOST:PORT, but got ray://head:10001"),
        (["hydra.launcher.address=127.0.0.1:9"], "address must be of a cluster that answers, but got 127.0.0.1:9: .*"),
        (["hydra.launcher.cpus_per_worker=0"], "cpus_per_worker must be >= 1 or auto, but got 0."),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, given: list[str], answer: str) -> None:
    """Before there is a run; a plugin of somebody else's, whose launcher is called ray as well, changes nothing."""
    plugin = tmp_path / "plugins" / "hydra_plugins" / "zz_ray"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text(
        "from hydra.core.config_store import ConfigStore\n"
        "ConfigStore.instance().store(group='hydra/launcher', name='ray', node={'_target_': 'theirs'})\n"
    )
    done = command(
        tmp_path, "-m", "data=iris", "seed=1,2", "hydra/launcher=ray", *given, PYTHONPATH=str(plugin.parents[1])
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert line.startswith("error: hydra.launcher.")
    assert answer.removesuffix(".*") in line
    assert runs(tmp_path) == []


def test_a_single_run_is_refused(tmp_path: Path) -> None:
    """There is nothing to spread."""
    done = command(tmp_path, "data=iris", "hydra/launcher=ray")
    assert "hydra/launcher must be left out of a single run, but got ray. For a sweep, add -m." in done.stderr


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="fused where Ray is not installed, but got ray. pip install 'ray"):
        launch_of(OmegaConf.structured(RayConfig))


def test_ray_that_was_imported_before_asks_for_a_token_too() -> None:
    """Another library may have; Ray itself says that it does, and that it has one."""
    code = (
        "import ray\nfrom manyfit.parallel.ray_cluster import _prepare\n_prepare()\n"
        "from ray._private.authentication.authentication_utils import is_token_auth_enabled\n"
        "from ray._raylet import AuthenticationTokenLoader\n"
        "print(is_token_auth_enabled(), AuthenticationTokenLoader.instance().has_token())"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60, check=True
    )
    assert said.stdout == "True True\n"


@pytest.mark.parametrize(
    ("nodes", "gpu", "refusal"),
    [
        ([], False, "address must be of a cluster with a node that has CPUs, but got none"),
        ([{"CPU": 0.0}], False, "address must be of a cluster with a node that has CPUs, but got none"),
        ([{"CPU": 9.0}], True, "address must be of a cluster with a node that has a GPU and CPUs, but got none"),
        ([{"CPU": 2.0}, {"CPU": 4.0}], False, "cpus_per_worker must be <= 4, which a node has, but got 8."),
    ],
)
def test_a_cluster_without_room(
    nodes: list[dict[str, float]], gpu: bool, refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence says what there is too little of."""
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    cluster = object.__new__(ray_cluster.Cluster)
    cluster.launch = Launch(ray=True, address="head:6379", cpus_per_worker=8)
    with pytest.raises(ConfigError, match=f"hydra.launcher.{re.escape(refusal)}"):
        cluster.workers(gpu)


def test_modules_beside_the_command_stay_the_first() -> None:
    """Ray puts a folder of its own before theirs when it is imported."""
    told = "import sys; from manyfit.parallel.ray_cluster import _path_kept; first = sys.path[0]\n"
    told += "with _path_kept():\n    import ray\n"
    told += "assert sys.path[0] == first and any('ray' in entry for entry in sys.path[1:]), sys.path"
    subprocess.run([sys.executable, "-c", told], check=True)


def test_a_node_must_be_as_this_machine() -> None:
    """A folder that it lacks, or another version of what the bits depend on: one sentence, before it trains."""
    place = Place()
    assert place.enter() == ""
    assert "/not/there must be a folder of every node" in replace(place, folder="/not/there").enter()
    other = replace(place, versions={**place.versions, "torch": "1.0"})
    assert "torch must be 1.0 on every node, as here, but" in other.enter()
