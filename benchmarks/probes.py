"""What probes cost: an epoch with them over an epoch without, digits 64-64-10, batch 32, in a population of 16.

    python benchmarks/probes.py [--repeats 7]

Arms alternate in one process; an epoch includes its evaluation. The first epoch of each arm is its warm-up and not
counted. Ratios are of one repeat's arms, and their median is reported.
"""

import argparse
import statistics
import warnings
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir

from manyfit.config import schema
from manyfit.training.fitting import fit
from manyfit.training.probes import PROBES

warnings.filterwarnings("ignore")
CONF = str(Path(__file__).parent.parent / "conf")
COMMON = ("data=digits", "model.hidden=[64]", "batch_size=32", "trainer=cpu")
MEMBERS = 16


def milliseconds(probes: str, epochs: int) -> float:
    """Median time of an epoch."""
    configs = []
    with initialize_config_dir(CONF, version_base="1.3"):
        for seed in range(MEMBERS):
            overrides = [*COMMON, f"epochs={epochs + 1}", f"seed={seed}", f"probes=[{probes}]"]
            cfg = compose("config", overrides, return_hydra_config=True)
            configs.append(schema.parse(cfg, cfg.hydra.runtime.choices))
    clock = fit(configs)[0].metrics["time/seconds"]
    return float(np.median(np.diff(clock)[1:]) * 1e3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()
    arms = {"none": "", **{name: name for name in PROBES}, "all": ",".join(PROBES)}
    rows = [{arm: milliseconds(probes, args.epochs) for arm, probes in arms.items()} for _ in range(args.repeats)]
    print("| probes | ms / epoch | on / off |")
    print("|---|---|---|")
    for arm in arms:
        ratio = statistics.median(row[arm] / row["none"] for row in rows)
        print(f"| {arm} | {statistics.median(row[arm] for row in rows):.1f} | {ratio:.2f} |")
