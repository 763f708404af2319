"""Losses against closed forms and torch."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import Compose
from manyfit.config.errors import ConfigError
from manyfit.losses import BCE, MSE, Balanced, CrossEntropy, Huber, Loss, auto, correct
from manyfit.training.fitting import fit
from manyfit.training.prepared import prepare


def test_losses_are_torchs() -> None:
    """Per example, for members that differ."""
    z, y = torch.randn(3, 7, 4), torch.randint(0, 4, (3, 7))
    for k in range(3):
        torch.testing.assert_close(CrossEntropy().per_example(z, y)[k], F.cross_entropy(z[k], y[k], reduction="none"))
    t = torch.randn(3, 7)
    torch.testing.assert_close(MSE().per_example(z[..., :1], t), (z[..., 0] - t) ** 2)
    expected = F.huber_loss(z[..., 0], t, reduction="none", delta=0.3)
    torch.testing.assert_close(Huber(0.3).per_example(z[..., :1], t), expected)


def test_empirical_loss_by_hand() -> None:
    """BCE at p = 0.1 where the truth is 1: -log 0.1."""
    logit = torch.logit(torch.tensor(0.1)).view(1, 1, 1)
    assert BCE().per_example(logit, torch.ones(1, 1)).item() == pytest.approx(-math.log(0.1), rel=1e-6)


def test_baseline_is_the_best_constant() -> None:
    """Cross-entropy: the entropy of the class frequencies; squared error: the variance."""
    y = torch.tensor([0] * 3 + [1] * 1)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert CrossEntropy().baseline(y, 2) == pytest.approx(entropy, rel=1e-6)
    assert BCE().baseline(y, 2) == pytest.approx(entropy, rel=1e-6)
    t = torch.randn(50)
    assert MSE().baseline(t, 0) == pytest.approx(t.var(correction=0).item(), rel=1e-5)


def test_auto_follows_the_task() -> None:
    """Two classes: bce; more: cross-entropy; numbers: squared error."""
    assert isinstance(auto("classification", 2), BCE)
    assert isinstance(auto("classification", 3), CrossEntropy)
    assert isinstance(auto("regression", 0), MSE)


def test_refused() -> None:
    """A loss says what it cannot do."""
    with pytest.raises(ValueError, match="bce needs 2 classes, but got 10"):
        BCE().width(10)
    with pytest.raises(ValueError, match=r"loss.delta must be > 0, but got 0"):
        Huber(0.0)


def test_correct() -> None:
    """A single logit decides at 0, several by the largest."""
    assert correct(torch.tensor([[[1.0], [-1.0]]]), torch.tensor([[1, 1]])).tolist() == [[True, False]]
    assert correct(torch.tensor([[[1.0, 2], [3, 2]]]), torch.tensor([[1, 1]])).tolist() == [[True, False]]


@pytest.mark.parametrize(
    "loss",
    [CrossEntropy(), BCE(), MSE(), Huber(0.3), CrossEntropy(0.2), BCE(0.2)],
    ids=lambda loss: type(loss).__name__,
)
def test_gradient_is_autograds(loss: Loss) -> None:
    """with_gradient gives the loss per example and its derivative, also where a sigmoid saturates."""
    width = 4 if isinstance(loss, CrossEntropy) else 1
    z = (torch.randn(3, 7, width, dtype=torch.float64) * 20).requires_grad_()
    y = torch.randn(3, 7).double() if loss.task == "regression" else torch.randint(0, max(width, 2), (3, 7))
    losses = loss.per_example(z, y)
    ours, gradient = loss.with_gradient(z.detach(), y)
    torch.testing.assert_close(ours, losses.detach())
    if isinstance(loss, BCE) and loss.label_smoothing == 0:
        losses = F.binary_cross_entropy_with_logits(z[..., 0], y.double(), reduction="none")
        torch.testing.assert_close(ours, losses.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(losses.sum(), z)[0])


def test_balanced_is_torchs_weighted() -> None:
    """Each class by n / (classes n_c); the gradient, too; the best constant takes all for equally probable."""
    z, y = torch.randn(2, 30, 3, dtype=torch.float64), torch.tensor([0] * 20 + [1] * 8 + [2] * 2).expand(2, -1)
    loss = Balanced(CrossEntropy(), [20, 8, 2])
    weights = torch.tensor([30 / 60, 30 / 24, 30 / 6], dtype=torch.float64)
    for k in range(2):
        expected = F.cross_entropy(z[k], y[k], weights, reduction="none")
        torch.testing.assert_close(loss.per_example(z, y)[k], expected)
    losses, gradient = loss.with_gradient(z, y)
    torch.testing.assert_close(gradient, Loss.with_gradient(loss, z, y)[1])
    torch.testing.assert_close(losses, loss.per_example(z, y))
    assert loss.baseline(y[0], 3) == pytest.approx(math.log(3))
    two = Balanced(BCE(), [20, 10])
    logit, one = torch.randn(1, 5, 1), torch.tensor([[0, 0, 1, 0, 1]])
    torch.testing.assert_close(two.with_gradient(logit, one)[1], Loss.with_gradient(two, logit, one)[1])


def test_balanced_finds_the_rare_class(composed: Compose, tmp_path: Path) -> None:
    """Of one in ten the usual loss finds fewer than the balanced one does."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(900, 2)), np.zeros(900, int)
    y[:90], x[:90, 0] = 1, x[:90, 0] + 1.2
    np.savez(tmp_path / "rare.npz", x=x, y=y)
    given = ["data=arrays", f"data.path={tmp_path}/rare.npz", "epochs=20", "metrics=[recall]"]
    usual, balanced = (fit([composed(*given, loss)])[0] for loss in ("loss=auto", "loss=balanced"))
    assert balanced.test["recall/test"] > usual.test["recall/test"] + 0.1
    assert balanced.engine == usual.engine == "native"
    with pytest.raises(ConfigError, match="balanced is for classification, but got a regression task"):
        prepare(composed("data=diabetes", "loss=balanced"))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.7])
def test_label_smoothing_is_torchs(share: float) -> None:
    """Of several classes; of two, cross-entropy with spread targets. Beside the best constant no loss is smaller."""
    z, y = torch.randn(2, 30, 5, dtype=torch.float64), torch.randint(0, 5, (2, 30))
    want = F.cross_entropy(z[0], y[0], reduction="none", label_smoothing=share)
    torch.testing.assert_close(CrossEntropy(share).per_example(z, y)[0], want)
    two, soft = y.clamp(max=1), y.clamp(max=1).double() * (1 - share) + share / 2
    want = F.binary_cross_entropy_with_logits(z[..., 0], soft, reduction="none")
    torch.testing.assert_close(BCE(share).per_example(z[..., :1], two), want)
    for loss, targets, classes in ((CrossEntropy(share), y[0], 5), (BCE(share), two[0], 2)):
        best = loss.constant(targets)
        least = loss.baseline(targets, classes)
        for step in torch.eye(len(best)) * 0.05:
            for moved in (best + step, best - step):
                there = moved.expand(1, len(targets), -1)
                assert float(loss.per_example(there, targets[None]).mean()) >= least - 1e-6


def test_label_smoothing_in_range() -> None:
    """A share; and nothing of numbers."""
    with pytest.raises(ValueError, match="loss.label_smoothing must be in .0, 1., but got 1"):
        CrossEntropy(1.0)
    with pytest.raises(ValueError, match="loss.label_smoothing must be 0 in a regression, but got 0.1"):
        auto("regression", 0, 0.1)
