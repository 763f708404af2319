"""Every command that README and docs/ show is run, with an epoch or two trials where it says more."""

import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import CONF, ROOT, command

PAGES = ["README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
ELSEWHERE = {  # what shows that it runs
    "resume=": "test_resume.py",
    "experiment=": "test_claims.py",
    "trainer=ddp": "test_ddp.py, test_gpu.py",
    "workers=auto": "test_workers.py",
    "launcher.address=": "test_ray.py",
    "sweep.storage=": "test_machines.py, test_storage.py",
}
COMMANDS = ("python run.py", "manyfit run")
MODULES = {
    "mynets.py": """
from torch import nn
class Net(nn.Sequential):
    def __init__(self, in_features, out_features, width=16):
        super().__init__(nn.Linear(in_features, width), nn.ReLU(), nn.Linear(width, out_features))
""",
    "mychecks.py": """
def top2(probabilities, targets):
    return (probabilities.topk(2).indices == targets[:, None]).any(1).float().mean()

def norm(network, x, y):
    return {name: weight.norm() for name, weight in network.named_parameters() if weight.ndim > 1}
""",
    "mine.py": """
from lightnings import Automatic as Net
from lightnings import Tensors as Data
""",
    "run.py": f"""
import sys
from pathlib import Path
from manyfit import running
if __name__ == "__main__":  # which workers import
    sys.exit(running.command(sys.argv[1:], [Path({str(CONF)!r})]))
""",
}


def shown() -> list[str]:
    """The commands of all pages, once each."""
    found: dict[str, None] = {}
    for page in PAGES:
        for line in (ROOT / page).read_text().splitlines():
            if line.startswith(COMMANDS) and not any(one in line for one in (*ELSEWHERE, "...")):
                found[line.partition("  #")[0].strip()] = None
    return list(found)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the commands speak of."""
    for name, content in MODULES.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "lightnings.py").write_text((ROOT / "tests" / "lightnings.py").read_text())
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"age": rng.normal(40, 9, 120), "city": rng.choice(["Oslo", "Bodø"], 120), "id": range(120)})
    table["price"], table["bought"] = table.age * 2.5, np.where(table.age > 40, "yes", "no")
    table["grade"] = rng.integers(1, 7, 120)
    table.to_csv(tmp_path / "my.csv", index=False)
    table.to_csv(tmp_path / "shop.csv", index=False)
    np.savez(tmp_path / "mine.npz", x=rng.normal(size=(60, 2, 7)), y=np.arange(60) % 3)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(40):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)).save(
                tmp_path / "pets" / name / f"{i}.png"
            )
    return tmp_path


def test_there_are_commands() -> None:
    """That they are found at all, on every page that is about something to bring."""
    assert len(shown()) > 25
    for page in ("data", "network", "measure", "lightning"):
        text = (ROOT / "docs" / f"{page}.md").read_text()
        assert any(line in text for line in shown())


@pytest.mark.slow
@pytest.mark.parametrize("line", shown())
def test_a_command(folder: Path, line: str) -> None:
    """It ends well."""
    arguments = shlex.split(line.removeprefix("python run.py").removeprefix("manyfit run"))
    few = ["epochs=1", "tracking=off"]
    few += ["data.train_size=200"] if "mnist1d" in line else []
    if "sweep=" in line or "optuna_study" in line:
        few += ["sweep.n_trials=2", "sweep.seeds=1", "sweep.confirm_seeds=2"]
    done = command(folder, *arguments, *few, run=folder / "run.py")
    assert done.returncode == 0, done.stderr
