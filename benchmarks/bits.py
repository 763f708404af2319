"""The bits of some 130 runs, of every option that conf/ has: to show that a change of the source changed none of them.

    python benchmarks/bits.py before.json          # in the commit before
    python benchmarks/bits.py after.json before.json

Curves but for seconds, best weights, test scores and verdicts, by a hash; they are of one machine and its libraries.
"""

import argparse
import hashlib
import json
import warnings
from pathlib import Path

from hydra import compose, initialize_config_dir

from manyfit.config.schema import Config, parse
from manyfit.training.fitting import fit
from manyfit.training.trained import Result

warnings.filterwarnings("ignore")
CONF = Path(__file__).parent.parent / "conf"
PROBES = "probes=[gradient_norm,dead_units,gradient_noise,update_angle,test_set]"
ACTIVATIONS = ("tanh", "sigmoid", "gelu", "silu", "prelu", "leaky_relu", "identity")


def options(group: str) -> list[str]:
    """Of a config group, without those that need a file or the network."""
    return sorted({path.stem for path in (CONF / group).glob("*.yaml")} - {"csv", "openml"})


def populations() -> dict[str, list[list[str]]]:
    """The overrides of the members of each."""
    seeds = [[f"seed={seed}"] for seed in range(3)]
    found: dict[str, list[list[str]]] = {}
    for name in options("optimizer"):
        alone = name == "lbfgs"
        given = ["data=digits", "epochs=3", "model.dropout=0.2", f"optimizer={name}"]
        found[name] = [[*given, *seed, *(["batch_size=full"] if alone else [])] for seed in seeds[: 1 if alone else 3]]
    for name in options("schedule"):
        found[f"schedule={name}"] = [["data=wine", "epochs=4", f"schedule={name}", *seed] for seed in seeds[:2]]
    for name in options("data"):
        given = [f"data={name}", "epochs=3", "optimizer.weight_decay=0.01"]
        found[f"data={name}"] = [[*given, *seed] for seed in seeds[:2]]
    for name in ACTIVATIONS:
        given = ["data=digits", "epochs=2", f"model.activation={name}"]
        found[name] = [[*given, f"optimizer.lr={lr}"] for lr in (0.001, 0.01)]
    for name in ("64-true", "bf16-mixed"):
        found[name] = [["data=digits", "epochs=2", f"trainer.precision={name}", *seed] for seed in seeds[:2]]
    given = ["data=digits", "epochs=12", "data.label_noise=0.3", "trainer.gradient_clip=0.5", "trainer.patience=2"]
    found["noise, clipping, patience"] = [[*given, "optimizer.lr=0.02", *seed] for seed in seeds]
    found["probes"] = [["data=digits", "epochs=3", "model.dropout=0.1", PROBES, *seed] for seed in seeds[:2]]
    found["forty"] = [["data=digits", "epochs=2", f"seed={seed}"] for seed in range(40)]
    found["full batch"] = [["data=wine", "epochs=5", "batch_size=full", "loss=cross_entropy", *seed] for seed in seeds]
    found["perceptron"] = [["data=digits", "epochs=3", "model=perceptron", *seed] for seed in seeds]
    return found


def config_of(overrides: list[str]) -> Config:
    """As the command composes it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides, return_hydra_config=True)
    return parse(cfg, cfg.hydra.runtime.choices)


def digest(result: Result) -> str:
    """Of everything that a run is trusted for."""
    known = hashlib.sha256()
    for name in sorted(set(result.metrics) - {"time/seconds"}):
        known.update(name.encode() + result.metrics[name].tobytes())
    assert result.weights is not None
    known.update(result.weights.numpy().tobytes())
    known.update(json.dumps([sorted(result.test.items()), str(result.summary.verdict)]).encode())
    return known.hexdigest()[:16]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("before", type=Path, nargs="?")
    args = parser.parse_args()
    found = {
        f"{name} {k}": digest(result)
        for name, jobs in populations().items()
        for k, result in enumerate(fit([config_of(job) for job in jobs]))
    }
    args.out.write_text(json.dumps(found, indent=1))
    before = json.loads(args.before.read_text()) if args.before else {}
    parted = [name for name, known in before.items() if found.get(name) != known]
    print(f"{len(found)} runs" + (f", {len(parted)} of {len(before)} are not as before" if before else ""), *parted)
    raise SystemExit(bool(parted))
