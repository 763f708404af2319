"""Members of one population that have other data: other folds, sizes, splits, labels."""

import numpy as np
import pytest
import torch

from conftest import Compose, assert_same_bits
from manyfit.training.fitting import fit
from manyfit.training.gathered import Sets
from manyfit.training.grouping import grouped
from manyfit.training.prepared import Preparation

DIFFER = (
    ["data.folds=5", "data.fold=0"],
    ["data.folds=5", "data.fold=3"],
    ["data.train_size=50"],
    ["data.train_size=77", "batch_size=full"],
    ["data.label_noise=0.2"],
    ["data.label_noise=0.2", "data.split_seed=3"],
    ["data.val_fraction=0.3", "optimizer=sgd", "batch_size=7"],
)


@pytest.mark.parametrize("source", ["breast_cancer", "diabetes"])
def test_the_same_bits_as_alone(composed: Compose, source: str) -> None:
    """Whatever data the others have: curves, weights, test scores, metrics of all splits."""
    metric = {"breast_cancer": "auc", "diabetes": "mae"}[source]
    usual = [f"data={source}", "epochs=3", f"metrics=[{metric}]", "model.hidden=[8]", "model.dropout=0.2"]
    preparation = Preparation()
    jobs = [preparation.job(composed(*usual, f"seed={seed}", *own)) for seed in (0, 1) for own in DIFFER]
    assert [group.numbers for group in grouped(dict(enumerate(jobs)))] == [list(range(len(jobs)))]
    for job, result in zip(jobs, fit(jobs), strict=True):
        (alone,) = fit([job])
        assert_same_bits(alone, result)


def test_stopped_early_in_company(composed: Compose) -> None:
    """Who is left goes on with its own data."""
    preparation = Preparation()
    jobs = [
        preparation.job(composed("data=wine", "epochs=30", "data.folds=3", f"data.fold={k}", "trainer.patience=1", lr))
        for k, lr in enumerate(("optimizer.lr=0.3", "optimizer.lr=0.003", "optimizer.lr=0.1"))
    ]
    results = fit(jobs)
    assert len({len(result.metrics["loss/val"]) for result in results}) > 1
    for job, result in zip(jobs, results, strict=True):
        assert_same_bits(fit([job])[0], result)


def test_probes_are_of_one_data_set(composed: Compose) -> None:
    """They look at the same examples in all members: then other data are another population."""
    preparation = Preparation()
    jobs = [
        preparation.job(composed("data=wine", "probes=[gradient_norm]", "data.folds=3", f"data.fold={k}"))
        for k in (0, 1, 0)
    ]
    assert sorted(group.numbers for group in grouped(dict(enumerate(jobs)))) == [[0, 2], [1]]


def test_places(composed: Compose) -> None:
    """Row r of a member's data set has its target at `targets + r`."""
    preparation = Preparation()
    jobs = [preparation.job(composed("data=iris", *own)) for own in (*DIFFER[:3], *DIFFER[4:5], *DIFFER[4:5], [])]
    jobs[4] = preparation.job(composed("data=iris", *DIFFER[4], "seed=5"))
    gathered = Sets(jobs, torch.float64).training()
    order, which = gathered.all()
    for k, job in enumerate(jobs):
        rows = order[which[k]][: gathered.counts[k]]
        assert len(rows) == len(job.data.x_train)
        assert torch.equal(gathered.x[rows], job.data.x_train.double())
        assert torch.equal(gathered.y[rows + gathered.targets[k]], job.y_train())
    assert len(np.unique(gathered.firsts)) == 4
