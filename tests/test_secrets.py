"""Passwords: what is taken for one, how text is shown without it, and that none gets to disk or screen."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, command
from manyfit.config.secrets import held_by, mask

CANARY = "Kanarienvogel"
ADDRESS = f"postgresql://me:{CANARY}@127.0.0.1:1/db"
SMALL = ["data=iris", "epochs=2", "model.hidden=[4]"]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://me:secret@host:1/x", "https://***@host:1/x"),
        ("postgresql+psycopg2://me:p@ss@host/db failed", "postgresql+psycopg2://***@host/db failed"),
        ("postgresql://me:pa/ss@host/db", "postgresql://***@host/db"),
        ("at https://token@a and http://b:c@d", "at https://***@a and http://***@d"),
        ("none of that name in /tmp/https:/me:secret@host", "none of that name in /tmp/https:/***@host"),
        ("cannot parse 'me:secret@host/db'", "cannot parse '***@host/db'"),
        ("postgresql://host/db?user=me&password=secret&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("failed: token=abc pw=x", "failed: token=*** pw=***"),
        ("me@example.org, sqlite:////tmp/a@b", "me@example.org, sqlite:////tmp/a@b"),
        ("postgresql://me@host:5432/db, http://host:5000/x", "postgresql://me@host:5432/db, http://host:5000/x"),
        ("adam lr=0.003 at 12:30, a@b", "adam lr=0.003 at 12:30, a@b"),
    ],
)
def test_mask(text: str, masked: str) -> None:
    """Password and token in an address become ***, and nothing else changes."""
    assert mask(text) == masked


CALLED = ["pw", "pass", "data.token", "data.access_key", "data.auth_token"]


@pytest.mark.parametrize(
    ("tree", "keys"),
    [
        ({"a": {"b": ["x", {"c": "x://u:p@h"}]}, "d": "postgresql://h/d?password=p"}, ["a.b.c", "d"]),
        ({"db_password": "p", "a": {"password": None}}, ["db_password"]),
        ({"pw": "p", "pass": "p", "data": {"token": "t", "access_key": "k", "auth_token": "t"}}, CALLED),
        ({"tokens": 3, "compass": 1, "data": {"bypass": "x", "key": "y"}, "passes": 2}, []),
        ({"a": "${oc.env:STORE}", "b": "postgresql://u:${oc.env:PW}@h/d"}, []),
        ({"a": "${oc.env:STORE,postgresql://u:p@h/d}"}, ["a"]),
        ({"a": "sqlite:///mlruns/optuna.db", "b": "http://localhost:5000", "c": "postgresql://me@host/db"}, []),
    ],
)
def test_held_by(tree: dict[str, Any], keys: list[str]) -> None:
    """Passwords are found under any key and in lists; what stays in the environment is none."""
    assert list(held_by(tree)) == keys


def _command(
    folder: Path, *arguments: str, run: Path = ROOT / "run.py", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    done = command(folder, *arguments, run=run, seconds=400, **environment)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.encode(), done.stderr.encode())


def _leaks(folder: Path, done: subprocess.CompletedProcess[bytes]) -> list[str]:
    """Where the canary can be read, byte for byte."""
    written = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    said = {"stdout": done.stdout, "stderr": done.stderr}
    return [where for where, content in (written | said).items() if CANARY.encode() in content]


@pytest.mark.parametrize(
    "arguments",
    [
        [f"tracking.uri={ADDRESS}"],
        ["tracking=server", f"tracking.uri='https://{CANARY}@host'", "-m", "seed=1,2"],
        ["sweep=lr", f"sweep.storage={ADDRESS}"],
        ["-m", "hydra/launcher=basic", f"tracking.uri='postgresql://host/db?password={CANARY}',null"],
        ["data=csv", f"data.path={ADDRESS}", "data.target=y"],
        ["data=openml", f"data.name_or_id={ADDRESS}"],
        [f"name={ADDRESS}"],
        [f"trakcing.uri={ADDRESS}"],
        [f"+password={CANARY}"],
        [f"+model.layers=[1,{{at:'{ADDRESS}'}}]"],
        [f"++hydra.job.env_set.STORE={ADDRESS}"],
        [f"optimizer={ADDRESS}"],
        [ADDRESS],
        [f"tracking.uri='{ADDRESS}"],
        ["--cfg", "job", f"tracking.uri={ADDRESS}"],
    ],
    ids=lambda arguments: " ".join(arguments).replace(CANARY, "..."),
)
def test_a_password_on_the_command_line(tmp_path: Path, arguments: list[str]) -> None:
    """It is refused wherever it stands, before anything is written, and not repeated on the screen."""
    done = _command(tmp_path, *arguments)
    assert done.returncode == 1
    assert b"must hold no password" in done.stderr
    assert b"Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
    assert not _leaks(tmp_path, done)


@pytest.mark.parametrize("added", [False, True], ids=["conf", "--config-dir"])
@pytest.mark.parametrize(
    "arguments",
    [["tracking=mine"], ["-m", "tracking=mine,off"], ["-m", "tracking=off", "data=iris,mine"]],
    ids=" ".join,
)
def test_a_password_in_a_file(tmp_path: Path, arguments: list[str], added: bool) -> None:
    """A file of the user's own that holds one is refused, also where a sweep comes to it, and never copied."""
    home, work = tmp_path / "home", tmp_path / "work"
    shutil.copytree(ROOT / "conf", home / "conf")
    shutil.copy(ROOT / "run.py", home)
    files = home / ("more" if added else "conf")
    for group in ("tracking", "data"):
        (files / group).mkdir(parents=True, exist_ok=True)
    (files / "tracking/mine.yaml").write_text(f"kind: server\nuri: {ADDRESS}\n")
    (files / "data/mine.yaml").write_text(f"_target_: manyfit.data.sources.iris\nargs: [{ADDRESS}]\n")
    work.mkdir()
    done = _command(work, *arguments, *([f"--config-dir={files}"] if added else []), run=home / "run.py")
    assert done.returncode == 1
    assert b"must hold no password" in done.stderr
    assert not _leaks(work, done)


@pytest.mark.slow
def test_a_password_in_the_environment(tmp_path: Path) -> None:
    """What `${oc.env:...}` stands for is used, but written nowhere, though errors tell of its silence."""
    search = ["sweep=lr", "sweep.n_trials=2", "sweep.confirm_seeds=0"]
    launched = [[], ["-m", "seed=1,2"], search, ["-m", "hydra/launcher=basic", "seed=1,2"]]
    for number, arguments in enumerate(launched):
        (tmp_path / str(number)).mkdir()
        launched[number] = [*arguments, *SMALL, "tracking=server", "tracking.uri=${oc.env:MY_STORE}"]
    with ThreadPoolExecutor() as threads:
        ends = list(threads.map(lambda i: _command(tmp_path / str(i), *launched[i], MY_STORE=ADDRESS), range(4)))
    for done in ends:
        assert b"held back" in done.stdout, done.stderr
        assert not _leaks(tmp_path, done)


def test_a_name_that_the_environment_gives(tmp_path: Path) -> None:
    """It is shown, and stored as the experiment's, without the password in it."""
    done = _command(tmp_path, *SMALL, "name=${oc.env:MY_NAME}", MY_NAME=ADDRESS)
    assert done.returncode == 0, done.stderr
    assert b"postgresql://***@127.0.0.1:1/db" in done.stdout
    assert not _leaks(tmp_path, done)


@pytest.mark.slow
def test_a_study_that_cannot_be_reached(tmp_path: Path) -> None:
    """The error about a study's storage shows no password either."""
    done = _command(tmp_path, "sweep=lr", *SMALL, "tracking=off", "sweep.storage=${oc.env:MY_STORE}", MY_STORE=ADDRESS)
    assert b"sweep.storage must be a database that can be used, but got ${oc.env:MY_STORE}." in done.stderr
    assert not _leaks(tmp_path, done)


HIDDEN = {
    "a number": ["optimizer.lr=${oc.env:IT}"],
    "a count": ["epochs=${oc.env:IT}"],
    "a choice": ["trainer.accelerator=${oc.env:IT}"],
    "an argument": ["model.dropout=${oc.env:IT}"],
    "an argument in a list": ["model.hidden=[8,'${oc.env:IT}']"],
    "of torch's own": ["optimizer.eps=${oc.env:IT}"],
    "one that is none": ["++loss.what=${oc.env:IT}"],
    "a part of one": ["trainer.accelerator='my-${oc.env:IT}-own'"],
    "a target": ["model._target_=${oc.env:IT}"],
    "a module's target": ["model._target_=torch.nn.${oc.env:IT}"],
    "a class deep down": ["++model.inner._target_=${oc.env:IT}"],
    "a file": ["data=csv", "data.path=${oc.env:IT}", "data.target=y"],
    "a file's folder": ["data=csv", "data.path='/${oc.env:IT}/x.csv'", "data.target=y"],
    "a column": ["data=csv", "data.path=t.csv", "data.target=${oc.env:IT}"],
    "columns": ["data=csv", "data.path=t.csv", "data.target=a", "data.drop=['${oc.env:IT}']"],
    "a metric": ["metrics=['${oc.env:IT}']"],
    "a probe": ["probes=['mine.${oc.env:IT}']"],
    "weights": ["model.weights=${oc.env:IT}"],
    "a store": ["tracking=server", "tracking.uri=${oc.env:IT}"],
    "one made of others": ["optimizer.lr='${oc.decode:${oc.env:IT}}'"],
    "a name of others": ["optimizer.lr='${oc.env:${oc.env:IT}}'"],
    "a key of others": ["optimizer.lr='${${oc.env:IT}}'"],
    "a grid": ["-m", "seed=1,2", "optimizer.lr=${oc.env:IT}"],
    "swept over": ["-m", "optimizer.lr=0.1,${oc.env:IT}"],
    "an objective": ["-m", "seed=1,2", "sweep.objective.metric=${oc.env:IT}"],
    "a claim": ["-m", "seed=1,2", "claim=${oc.env:IT}"],
    "a search": ["sweep=lr", "sweep.n_trials=${oc.env:IT}"],
    "a search's data": ["sweep=lr", "data=csv", "data.path=${oc.env:IT}", "data.target=y"],
    "a sampler": ["sweep=lr", "sampler._target_=${oc.env:IT}"],
    "a sampler's own": ["sweep=lr", "++sampler.n_startup_trials=${oc.env:IT}"],
}


@pytest.mark.parametrize("case", HIDDEN)
def test_what_an_interpolation_stands_for_is_not_told(tmp_path: Path, case: str) -> None:
    """Whichever key it is of and whoever refuses it: the refusal shows it as written."""
    (tmp_path / "t.csv").write_text("a,b\n1,2\n2,3\n")
    done = _command(tmp_path, *SMALL, *HIDDEN[case], IT=CANARY)
    assert done.returncode == 1, done.stdout
    _, error, refusal = done.stderr.partition(b"error: ")
    assert error
    assert b" must " in refusal
    assert CANARY.encode() not in refusal
