"""Where a run came from: code, machine, libraries."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

from manyfit.config import place


@functools.cache
def tags() -> dict[str, str]:
    """Git commit and whether the tree was dirty, processor, device, Python: as tags of a run."""
    import torch

    found = {"hardware": hardware(), "python": platform.python_version(), "torch": torch.__version__}
    commit = _git("rev-parse", "HEAD")
    if commit:
        found |= {"mlflow.source.git.commit": commit, "git.dirty": str(bool(_git("status", "--porcelain"))).lower()}
    return found


@functools.cache
def hardware() -> str:
    """The machine in words, such as `AMD EPYC, 2 cores` or `NVIDIA H200`."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{model}, {place.cores()} cores"


@functools.cache
def environment() -> str:
    """Every installed distribution as a line `name==version`: environment.txt."""
    lines = {f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions()}
    return "\n".join(sorted(lines, key=str.lower)) + "\n"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no git on this machine: the run has no such tags
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
