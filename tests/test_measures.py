"""Metrics by name, against scikit-learn; functions of one's own; curves of all members."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn import metrics as theirs
from torch import Tensor

from conftest import Compose
from manyfit.config.errors import ConfigError
from manyfit.measures import OF_CLASSES, OF_VALUES, measure
from manyfit.training.fitting import fit
from manyfit.training.prepared import prepare


def top2(probabilities: Tensor, classes: Tensor) -> Tensor:
    """A measure of one's own."""
    return (probabilities.topk(2).indices == classes[:, None]).any(1).double().mean()


def as_many(probabilities: Tensor, classes: Tensor) -> Tensor:  # noqa: ARG001  # a measure is given both
    return probabilities


def broken(probabilities: Tensor, classes: Tensor) -> Tensor:  # noqa: ARG001  # likewise
    raise IndexError("a mistake of the user's")


def ece(p: np.ndarray, y: np.ndarray) -> float:
    """Guo et al. 2017, eq. 3."""
    sure, right = p.max(1), p.argmax(1) == y
    bins = np.minimum((sure * 15).astype(int), 14)
    return float(sum(abs((right - sure)[bins == b].sum()) for b in range(15)) / len(y))


REFERENCES = {
    "auc": lambda p, y: theirs.roc_auc_score(y, p, multi_class="ovr"),
    "f1": lambda p, y: theirs.f1_score(y, p.argmax(1), average="macro"),
    "precision": lambda p, y: theirs.precision_score(y, p.argmax(1), average="macro"),
    "recall": lambda p, y: theirs.recall_score(y, p.argmax(1), average="macro"),
    "balanced_accuracy": lambda p, y: theirs.balanced_accuracy_score(y, p.argmax(1)),
    "mcc": lambda p, y: theirs.matthews_corrcoef(y, p.argmax(1)),
    "ece": ece,
    "mae": lambda p, y: theirs.mean_absolute_error(y, p),
    "mape": lambda p, y: theirs.mean_absolute_percentage_error(y, p),
    "spearman": lambda p, y: spearmanr(p, y).statistic,
}


@pytest.mark.parametrize("name", [*OF_CLASSES, *OF_VALUES])
def test_names_mean_what_scikit_learn_means(name: str) -> None:
    rng = np.random.default_rng(0)
    if name in OF_CLASSES:
        y = rng.integers(0, 4, 300)
        p = rng.dirichlet(np.ones(4), 300).astype(np.float32)
        p[np.arange(300), y] += 0.3
        p /= p.sum(1, keepdims=True)
        got = measure(name, "classification", 4)(torch.from_numpy(p), torch.from_numpy(y))
    else:
        y = rng.normal(5, 2, 300).astype(np.float32)
        p = (y + rng.normal(0, 1, 300)).astype(np.float32)
        got = measure(name, "regression", 0)(torch.from_numpy(p), torch.from_numpy(y))
    assert float(got) == pytest.approx(REFERENCES[name](p, y), rel=1e-5)


@pytest.mark.parametrize("engine", ["native", "batched"])
def test_curves_of_all_members(composed: Compose, engine: str) -> None:
    """Of train and val at every epoch, of test with the best weights; the losses are those without."""
    given = ["data=digits", "epochs=3", f"trainer.engine={engine}"]
    asked = ["metrics=[auc,test_measures.top2,balanced_accuracy]"]
    configs = [[*given, f"seed={seed}"] for seed in range(2)]
    for found, plain in zip(
        fit([composed(*one, *asked) for one in configs]), fit([composed(*one) for one in configs]), strict=True
    ):
        for name in ("auc", "top2", "balanced_accuracy"):
            for split in ("train", "val"):
                curve = found.metrics[f"{name}/{split}"]
                assert len(curve) == 4
                assert 0 <= curve[0] < curve[-1] <= 1
            assert 0.5 < found.test[f"{name}/test"] <= 1
        assert np.array_equal(found.metrics["loss/val"], plain.metrics["loss/val"])
        assert found.test["accuracy/test"] == plain.test["accuracy/test"]
        data = prepare(found.config).data
        with torch.no_grad():
            p = found.predictor(data.x_test * data.x_std + data.x_mean)  # type: ignore[misc]
        assert found.test["auc/test"] == pytest.approx(REFERENCES["auc"](p.numpy(), data.y_test.numpy()), abs=1e-4)


def test_at_the_best_epoch_alone(composed: Compose) -> None:
    """In a regression in the target's units."""
    (found,) = fit([composed("data=diabetes", "epochs=3", "metrics=[mae]", "metrics_at=best")])
    assert not [name for name in found.metrics if name.startswith("mae")]
    assert 20 < found.test["mae/test"] < 200


def test_a_member_that_diverged(composed: Compose) -> None:
    """Has no metrics from then on."""
    (found,) = fit([composed("data=digits", "epochs=3", "optimizer=sgd", "optimizer.lr=1e30", "metrics=[auc,ece]")])
    assert np.isfinite(found.metrics["auc/val"][0])
    assert np.isnan(found.metrics["auc/val"][-1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[mae]", "metrics must hold one of auc, .*, but got 'mae', which is for the other task"),
        ("[aucc]", "metrics must hold one of auc, .* or a function of yours by its dotted name, but got 'aucc'"),
        ("[test_measures.none]", "metrics must hold .*, but got 'test_measures.none'"),
        ("[test_measures.Tensor]", "metrics must hold functions, but got .*, which is none"),
        ("[os.getcwd]", "metrics must be of a module"),
        ("[test_measures.as_many]", r"as_many must make one number of outputs \(\d+, 10\) and targets .* but made \("),
        ("[test_measures.broken]", "broken must take outputs .*, but says: a mistake of the user's"),
        ("[auc,mine.auc]", "metrics and probes must have names of their own, but got 'auc' besides another"),
        ("[mine.loss]", "metrics and probes must have names of their own, but got 'loss' besides another"),
    ],
)
def test_refused(composed: Compose, given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(composed("data=digits", f"metrics={given}"))
