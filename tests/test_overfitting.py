"""Pictures: what they must show, not their pixels."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from manyfit import curves
from manyfit.plots import overfitting, style

EPOCHS = np.arange(41)


def picture(train: np.ndarray, val: np.ndarray, score: str = "accuracy") -> tuple[Figure, curves.Summary]:
    metrics = {"loss/train": train, "loss/val": val, f"{score}/train": 1 - train / 9, f"{score}/val": 1 - val / 9}
    if score == "rmse":
        metrics["r2/val"] = 1 - val
    summary = curves.summarise(train, val, 2.3)
    return overfitting.overfitting(metrics, summary, "a run"), summary


OVERFIT = (2.3 * np.exp(-EPOCHS / 8), 2.3 * np.exp(-EPOCHS / 8) + 0.02 * EPOCHS)


def texts(figure: Figure) -> str:
    return " ".join(t.get_text() for t in [*figure.texts, *(t for axes in figure.axes for t in axes.texts)])


def test_best_epoch_is_marked() -> None:
    """A ring stands on the validation curve at the best epoch, in both panels, and its value is written."""
    figure, summary = picture(*OVERFIT)
    for axes in figure.axes:
        (ring,) = [line for line in axes.lines if line.get_label() == "best"]
        assert ring.get_xdata()[0] == summary.best_epoch
    assert f"at epoch {summary.best_epoch}" in texts(figure)


def test_verdict_is_the_headline() -> None:
    """The verdict is what one reads first."""
    figure, summary = picture(*OVERFIT)
    assert f"Overfit from epoch {summary.onset}" in texts(figure)


@pytest.mark.parametrize(("lowest", "scale"), [(1.0, "linear"), (1e-4, "log")])
def test_log_scale_where_losses_span_decades(lowest: float, scale: str) -> None:
    """Only a loss over more than 1.5 decades is drawn on a log axis; accuracy never is."""
    train = np.geomspace(2.3, lowest, 41)
    figure, _ = picture(train, train * 1.1)
    assert [axes.get_yscale() for axes in figure.axes] == [scale, "linear"]


def test_same_curves_same_bytes() -> None:
    """The file is a function of the curves alone."""
    a, b = (style.png(picture(*OVERFIT)[0]) for _ in range(2))
    assert a == b
    assert a.startswith(b"\x89PNG")


@pytest.mark.parametrize("score", ["accuracy", "rmse"])
@pytest.mark.parametrize(
    "losses",
    [
        (np.array([2.3]), np.array([2.4])),
        (np.array([2.3, 1.0]), np.array([2.4, 1.2])),
        (np.array([2.3, 1.0, np.nan]), np.array([2.4, 1.2, np.inf])),
        (np.array([np.nan]), np.array([np.nan])),
        (np.zeros(4), np.zeros(4)),
    ],
    ids=["untrained", "one epoch", "diverged", "never finite", "zero"],
)
def test_odd_curves_are_drawn(losses: tuple[np.ndarray, np.ndarray], score: str) -> None:
    """One epoch, none, a NaN tail, nothing finite, all zero: a picture all the same."""
    assert len(style.png(picture(*losses, score=score)[0])) > 5000


def test_where_a_run_became_infinite_is_said_and_shown() -> None:
    """The headline names the last finite epoch; the names of the curves stand at their ends, not in the margin."""
    late = np.where(EPOCHS < 20, OVERFIT[0], np.nan)
    figure, _ = picture(late, late)
    assert "Diverged after epoch 19" in texts(figure)
    names = [t for t in figure.axes[0].texts if t.get_text() in ("train", "val")]
    assert len(names) == 2
    assert all(0.5 < t.get_position()[0] < 0.6 for t in names)


def test_names_of_curves_that_end_together_do_not_overlap() -> None:
    """They are pushed apart, in the order of the curves."""
    figure, _ = picture(OVERFIT[0], OVERFIT[0] + 1e-6)
    heights = {t.get_text(): t.get_position()[1] for t in figure.axes[0].texts}
    assert heights["val"] - heights["train"] >= style.APART - 1e-9


def test_the_baseline_is_in_the_picture_of_an_underfit() -> None:
    """Also when both losses lie far from it."""
    figure, _ = picture(np.full(9, 5.0), np.full(9, 5.1))
    low, high = figure.axes[0].get_ylim()
    assert low < 2.3 < high
    assert "baseline 2.3" in texts(figure)


def test_a_loss_of_zero_stays_inside_a_log_axis() -> None:
    """Curves are drawn beyond the axes' edge by half a line, never to minus infinity."""
    figure, _ = picture(np.where(EPOCHS < 20, 2.3 * 10.0 ** (-EPOCHS / 5), 0.0), OVERFIT[1])
    axes = figure.axes[0]
    assert axes.get_yscale() == "log"
    assert all(np.nanmin(line.get_ydata()) >= axes.get_ylim()[0] for line in axes.lines if len(line.get_xdata()) > 2)


def test_losses_at_the_limit_of_float_are_drawn() -> None:
    """Matplotlib would overflow on them."""
    assert style.png(picture(np.array([2.3, 1e308, 1e308]), np.array([2.3, 1e308, 1e308]))[0])


def test_a_long_title_is_cut() -> None:
    """It ends inside the picture."""
    figure = style.canvas("Good fit", "adam " * 60)
    assert all(t.get_window_extent().x1 < figure.bbox.x1 for t in figure.texts)


@pytest.mark.parametrize("more", [["auc"], ["auc", "ece", "mine"]])
def test_a_panel_for_each_further_metric(more: list[str]) -> None:
    """Below the usual two, with the best epoch and its value; what is to be had large has a linear axis."""
    train, val = OVERFIT
    metrics = {f"{name}/{split}": curve for name in ("loss", "accuracy", *more) for split, curve in
               (("train", train), ("val", val))}  # fmt: skip
    summary = curves.summarise(train, val, 2.3)
    figure = overfitting.overfitting(metrics, summary, "a run", more)
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.texts[0].get_text() for axes in shown] == ["loss", "accuracy", *more]
    for axes, name in zip(shown[2:], more, strict=True):
        (ring,) = [line for line in axes.lines if line.get_label() == "best"]
        assert ring.get_xdata()[0] == summary.best_epoch
        assert axes.get_yscale() == ("linear" if name == "auc" else "log")
    assert len(figure.axes) % 2 == 0


def test_a_metric_that_is_not_finite_has_a_panel() -> None:
    """Of a member that diverged."""
    val = np.where(EPOCHS < 5, 0.5, np.nan)
    metrics = {f"{n}/{s}": val for n in ("loss", "accuracy", "auc") for s in ("train", "val")}
    summary = curves.summarise(metrics["loss/train"], metrics["loss/val"], 2.3)
    assert style.png(overfitting.overfitting(metrics, summary, "a run", ["auc"])).startswith(b"\x89PNG")
