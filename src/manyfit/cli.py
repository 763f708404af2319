"""The command `manyfit`: train, begin a project, look at the runs, deliver what was held back, look after the store."""

import argparse
import contextlib
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from manyfit.config import place
from manyfit.parallel.signals import ENDING

if TYPE_CHECKING:
    from manyfit.tracking.doctor import Finding

ABOUT = """`manyfit run` trains networks: `manyfit run --help` says how. Its runs are in ./mlruns, or in the store that
MLFLOW_TRACKING_URI names."""

EXAMPLES = """examples:
  manyfit run optimizer=adam                         train an MLP on handwritten digits
  manyfit init mine                                  a folder to start from: a network of your own, and its test
  manyfit ui                                         http://127.0.0.1:5000 shows the runs of this folder
  MLFLOW_TRACKING_URI=sqlite:///other.db manyfit ui  those of another store
  manyfit predict 3f2a rows.csv > answers.csv        what a run says of new rows
  manyfit sync                                       after an outage: deliver what was held back
  manyfit doctor                                     is all well? --fix mends what is not
  manyfit clean                                      what takes room and is needed no more; asks before it is removed"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and obey; the exit code is 0 only if all is well."""
    place.require_posix()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["run"]:
        return _run(given[1:])  # what follows is Hydra's, --help too
    options = _parser().parse_args(given)
    try:
        return int(options.command(options))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        print(f"manyfit: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="manyfit", description=ABOUT, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    commands.add_parser("run", help="train: one run, a sweep, an experiment", add_help=False)
    init = commands.add_parser("init", help="begin a project: a folder with a network of your own, options and a test")
    init.add_argument("name", metavar="NAME", help="the new folder")
    init.set_defaults(command=_init)
    ui = commands.add_parser("ui", help="show the runs in a browser (MLflow's UI)")
    ui.add_argument("--port", type=int, default=5000)
    ui.add_argument("--host", default="127.0.0.1", help="default: this machine only")
    ui.add_argument("--yes", action="store_true", help="to another --host: whoever reaches it may change all runs")
    ui.set_defaults(command=_ui)
    predict = commands.add_parser("predict", help="what a run of your own table says of new rows, as CSV")
    predict.add_argument("run", metavar="RUN", help="the beginning of its id; of a sweep any run")
    predict.add_argument("file", metavar="FILE", type=Path, help="rows: .csv, .csv.gz or .parquet")
    predict.add_argument("--trusted", metavar="MODULE", default="", help="of the run's model, if it is to be imported")
    predict.set_defaults(command=_predict)
    sync = commands.add_parser("sync", help="deliver what an outage or a kill held back")
    sync.add_argument("--rejected", action="store_true", help="also what the store refused, into new runs")
    sync.set_defaults(command=_sync)
    doctor = commands.add_parser("doctor", help="look after the store and its runs: what is wrong")
    doctor.add_argument("--fix", action="store_true", help="mend it")
    doctor.add_argument("--study", metavar="NAME", help="of a search instead: hand back what dead processes had begun")
    doctor.add_argument("--storage", metavar="URL", help="of the study; left out: that of a search that names none")
    doctor.set_defaults(command=_doctor)
    clean = commands.add_parser("clean", help="make room: states of finished runs, Hydra's folders, deleted runs")
    clean.add_argument("--yes", action="store_true", help="without asking")
    clean.set_defaults(command=_clean)
    return parser


def _run(arguments: Sequence[str]) -> int:
    """As run.py, with the options and modules of the working directory first."""
    from manyfit import running

    sys.path.insert(0, str(Path.cwd()))
    return running.command(arguments, place.folders())


def _init(options: argparse.Namespace) -> int:
    from manyfit import project

    print(project.create(Path(options.name)))
    return 0


def _predict(options: argparse.Namespace) -> int:
    from manyfit.predicting import predict

    _root()
    sys.path.insert(0, str(Path.cwd()))  # a network of one's own
    predict(options.run, options.file, options.trusted).to_csv(sys.stdout, index=False)
    return 0


def _root() -> Path:
    """The folder we are in, if there are runs in it."""
    if "MLFLOW_TRACKING_URI" not in os.environ and not Path("mlruns").is_dir():
        raise ValueError(
            f"mlruns/ must be here, but {Path.cwd()} has none. Go to the folder where your runs were started."
        )
    return Path.cwd()


def _ui(options: argparse.Namespace) -> int:
    """Serve the UI until Ctrl-C; a remote server has its own."""
    from manyfit.config.secrets import mask
    from manyfit.tracking.journal import resolve_uri

    root = _root()
    uri = resolve_uri(None, root)
    if uri.startswith("http"):
        print(f"The runs are on a server, which has its own UI: {mask(uri)}")
        return 0
    if not 0 < options.port < 65536:
        raise ValueError(f"--port must be between 1 and 65535, but got {options.port}.")
    if not (_is_loopback(options.host) or options.yes or _agreed(options.host)):
        return 1
    if _taken(options.host, options.port):
        raise ValueError(
            f"--port must be free, but {options.port} is taken. "
            f"Try `manyfit ui --port {options.port + 1}`, or look whether the UI is already open there."
        )
    from manyfit.tracking.upkeep import make_store  # MLflow: seconds

    make_store(uri, root)
    asked: list[int] = []  # an exception in the midst of starting the server would leave it behind
    for number in (signal.SIGINT, *ENDING):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda number, _: asked.append(number))
    print(f"MLflow UI on {mask(uri)}: http://{options.host}:{options.port}   (Ctrl-C ends it)", flush=True)
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}
    command = _ui_command(uri, options.port, options.host, root)
    server = subprocess.Popen(command, env=environment, start_new_session=True)  # its workers are ended with it
    while server.poll() is None and not asked:
        time.sleep(0.1)
    _end(server)
    return 0 if asked else server.returncode


def _is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host; a name may stand for several addresses."""
    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise ValueError(f"--host must be an address of this machine, but got {host!r} ({error}).") from None
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses)


def _agreed(host: str) -> bool:
    """Ask whether others may be let in; without a terminal there is nobody to ask."""
    means = f"whoever reaches this machine at {host} can read, change and delete all runs: there is no password"
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ValueError(f"--host must be 127.0.0.1 unless --yes is said, but got {host}: {means}.")
    return input(f"With --host {host}, {means}.\nGo on? [y/N] ").strip().lower() in ("y", "yes")


def _ui_command(uri: str, port: int, host: str, root: Path) -> list[str]:
    """The command line that serves MLflow's UI on a database store; `journal.artifacts` says where artifacts go."""
    from manyfit.tracking.journal import artifacts

    return [
        *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", host, "--port", str(port)),
        *("--default-artifact-root", artifacts(root), "--workers", "1"),
        *("--uvicorn-opts", "--log-level warning"),
    ]


def _end(server: "subprocess.Popen[bytes]") -> None:
    """Ask the server and its workers to go, then insist."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(server.pid, number)
            server.wait(timeout=10)


def _taken(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def _sync(options: argparse.Namespace) -> int:
    from manyfit.tracking.upkeep import sync

    report = sync(_root(), rejects=options.rejected)
    print(f"delivered {_counted(report.sessions, 'session')}, {_counted(report.runs, 'run')}")
    if report.living:
        print(f"left alone {_counted(report.living, 'session')} at work: what is running delivers itself")
    for reason in report.held:
        print(f"held back {reason}")
    if report.refused:
        print(f"refused: {report.refused} deliveries, kept in mlruns/rejected/; manyfit sync --rejected makes new runs")
    return 1 if report.held or report.refused else 0


def _counted(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"


def _doctor(options: argparse.Namespace) -> int:
    if options.storage and not options.study:
        raise ValueError(f"--storage must come with --study NAME, but got {options.storage} alone.")
    if options.study and options.fix:
        raise ValueError(f"--fix must not come with --study {options.study}, which hands back by itself.")
    if options.study:
        return _hand_back(options.study, options.storage)
    from manyfit.tracking.doctor import doctor

    findings = doctor(_root(), fix=options.fix, more=_searches())
    print("\n".join(findings))
    return 1 if any(finding.startswith("problem") for finding in findings) else 0


def _searches() -> Iterator["Finding"]:
    """What is wrong with the searches of this folder, if there were any."""
    if Path("mlruns/optuna.db").exists() or Path("mlruns/untold").exists():
        from manyfit.sweeps import upkeep  # Optuna: a second

        yield from upkeep.findings()


def _hand_back(study: str, storage: str | None) -> int:
    """Give the trials of processes that are gone to the next start, or to those that are at work."""
    from manyfit.sweeps.settings import Settings
    from manyfit.sweeps.study import quiet, reopened

    with quiet(), reopened(storage or Settings().storage, study, Path("mlruns/untold")) as ledger:
        back, running, done = ledger.hand_back(), len(ledger.elsewhere()), ledger.done()
    print(f"study {study}: {done} trials are done, {running} are being run")
    print(f"handed back: {back} that processes had begun which are gone")
    return 0


def _clean(options: argparse.Namespace) -> int:
    from manyfit.tracking.clean import kinds

    found = kinds(_root())
    for kind in found:
        print(f"{kind.size / 1e6:9.1f} MB  {kind.count} {kind.words}")
    if not any(kind.count for kind in found):
        return 0
    if not options.yes:
        if not sys.stdin.isatty():
            print("nothing is removed without a terminal to ask at; --yes does not ask")
            return 0
        if input("remove all of it for good? [y/N] ").strip().lower() not in ("y", "yes"):
            return 0
    for kind in found:
        kind.remove()
    print(f"removed {sum(kind.size for kind in found) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
