"""Best epoch and verdict on made curves of every kind."""

import math

import numpy as np
import pytest

from manyfit import curves
from manyfit.curves import Fit, best_epoch, smooth, summarise

BASELINE = 2.3
SEEDS = 200


def decay(epochs, constant, floor=0.0, start=2.3):
    """From start to floor, exponentially, in so many epochs."""
    return floor + (start - floor) * np.exp(-np.arange(epochs + 1) / constant)


def rising(epochs, by, after):
    """0 up to an epoch, then a line that reaches `by` at the end."""
    return by * np.maximum(np.arange(epochs + 1) - after, 0) / (epochs - after)


def spoiled(values, at, with_value):
    """A copy of the curve with another value from an epoch on."""
    return np.where(np.arange(len(values)) >= at, with_value, values)


MADE = {
    "early plateau": (decay(50, 3, 0.1), decay(50, 3, 0.3), Fit.GOOD),
    "perfect fit": (decay(50, 3, 0.0), decay(50, 3, 0.0), Fit.GOOD),
    "wide but steady gap": (decay(50, 3, 0.0), decay(50, 2, 0.8), Fit.GOOD),
    "rise within the tolerance": (decay(50, 3), decay(50, 3, 0.3) + rising(50, 0.02, 20), Fit.GOOD),
    "slow overfit": (decay(200, 12), decay(200, 8, 0.3) + rising(200, 0.1, 60), Fit.OVERFIT),
    "sharp overfit": (decay(40, 2), decay(40, 1, 0.4) + rising(40, 2.0, 3), Fit.OVERFIT),
    "overfit in 5 epochs": (
        np.array([2.3, 1.0, 0.5, 0.2, 0.1, 0.05]),
        np.array([2.3, 1.2, 1.1, 1.5, 2.0, 2.6]),
        Fit.OVERFIT,
    ),
    "memorised noise": (decay(60, 9), 2.35 + rising(60, 3.0, 0), Fit.OVERFIT),
    "overfit at the floor of train": (spoiled(decay(60, 4), 20, 0.0), 0.3 + rising(60, 0.3, 15), Fit.OVERFIT),
    "validation loss far beyond the baseline": (
        decay(60, 4),
        decay(60, 2, 0.3) + rising(60, 90.0, 15),
        Fit.OVERFIT,
    ),
    "nothing learned": (np.full(51, 2.3), np.full(51, 2.32), Fit.UNDERFIT),
    "hardly learned": (decay(50, 10, 2.25), decay(50, 10, 2.26), Fit.UNDERFIT),
    "worse than the baseline": (np.full(51, 5.0), np.full(51, 5.1), Fit.UNDERFIT),
    "slowly falling": (decay(50, 40), decay(50, 40, 0.1), Fit.UNFINISHED),
    "slowly falling, by little": (2.25 - rising(20, 0.15, 0), 2.3 - rising(20, 0.15, 0), Fit.UNFINISHED),
    "slowly falling, by little, for a few epochs": (
        2.25 - rising(5, 0.15, 0),
        2.3 - rising(5, 0.15, 0),
        Fit.UNFINISHED,
    ),
    "from far above the baseline, and over": (decay(20, 20 / 3, 1.9, 4.0), decay(20, 20 / 3, 1.9, 4.0), Fit.GOOD),
    "one good epoch": (np.array([2.3, 1.1]), np.array([2.3, 1.2]), Fit.UNFINISHED),
    "one useless epoch": (np.array([2.3, 2.3]), np.array([2.3, 2.3]), Fit.UNDERFIT),
    "untrained": (np.array([2.4]), np.array([2.4]), Fit.UNDERFIT),
    "second descent, back at the first best": (
        decay(90, 5),
        decay(90, 5, 0.3) + 0.5 * np.exp(-(((np.arange(91) - 40) / 10) ** 2)),
        Fit.GOOD,
    ),
    "second descent, to a new best": (
        decay(90, 5),
        decay(90, 5, 0.6) + 0.5 * np.exp(-(((np.arange(91) - 40) / 10) ** 2)) - rising(90, 0.3, 45),
        Fit.UNFINISHED,
    ),
    "late jump of both": (spoiled(decay(50, 4), 40, 0.9), spoiled(decay(50, 4, 0.2), 40, 1.0), Fit.GOOD),
    "NaN late": (spoiled(decay(50, 4), 30, np.nan), spoiled(decay(50, 4), 30, np.nan), Fit.DIVERGED),
    "NaN of val at the end": (decay(50, 4), spoiled(decay(50, 4), 50, np.nan), Fit.DIVERGED),
    "all NaN": (np.full(11, np.nan), np.full(11, np.nan), Fit.DIVERGED),
    "infinite": (spoiled(decay(50, 4), 30, np.inf), spoiled(decay(50, 4), 30, np.inf), Fit.DIVERGED),
    "huge": (2.3 * 1.5 ** np.arange(31), 2.3 * 1.5 ** np.arange(31), Fit.DIVERGED),
    "huge to the limit of float": (spoiled(decay(30, 4), 2, 1e308), spoiled(decay(30, 4), 2, 1e308), Fit.DIVERGED),
}


@pytest.mark.parametrize("name", MADE)
def test_verdict(name):
    """Every kind of curve gets its verdict, and one sentence that begins with it."""
    train, val, verdict = MADE[name]
    summary = summarise(train, val, BASELINE)
    assert summary.verdict is verdict
    words = curves.sentence(summary)
    assert words.lower().startswith(str(verdict)[:7])
    assert words.endswith(".")
    assert "nan" not in words
    assert summary.onset == (summary.best_epoch if verdict is Fit.OVERFIT else None)


@pytest.mark.parametrize("scale", [2.0**-30, 1e-6, 1 / 3, 7.0, 1e6, 2.0**40])
@pytest.mark.parametrize("name", [name for name in MADE if "limit" not in name])
def test_verdict_does_not_depend_on_the_unit(name, scale):
    """All losses and the baseline times a constant: the same verdict, onset and severity."""
    train, val, verdict = MADE[name]
    here, there = summarise(train, val, BASELINE), summarise(scale * train, scale * val, scale * BASELINE)
    assert there.verdict is verdict
    assert there.onset == here.onset
    np.testing.assert_allclose(there.severity, here.severity, rtol=1e-9)


def verdicts(make):
    """How often each verdict comes out over the seeds, make(rng) -> (train, val)."""
    found = [summarise(*make(np.random.default_rng(seed)), BASELINE).verdict for seed in range(SEEDS)]
    return {verdict: found.count(verdict) / SEEDS for verdict in Fit}


@pytest.mark.parametrize("noise", [0.005, 0.03, 0.1])
@pytest.mark.parametrize("epochs", [20, 50, 200])
@pytest.mark.parametrize("tails", ["normal", "heavy"])
def test_a_noisy_plateau_is_not_overfit(epochs, noise, tails):
    """With white noise of up to 10%, normal or Student t with 3 degrees of freedom, in 98% of runs and more."""

    def make(rng):
        errors = rng.standard_normal(epochs + 1) if tails == "normal" else rng.standard_t(3, epochs + 1)
        return decay(epochs, epochs / 4), spoiled(decay(epochs, 1), 1, 0.5) * np.exp(noise * errors)

    assert verdicts(make)[Fit.OVERFIT] <= (0.02 if noise > 0.05 else 0.004)


@pytest.mark.parametrize("epochs", [5, 8, 12])
def test_a_short_noisy_plateau_is_seldom_overfit(epochs):
    """A few epochs with 3% of noise: no false alarm worth speaking of."""

    def make(rng):
        return decay(epochs, 2), spoiled(decay(epochs, 1), 1, 0.5) * (1 + 0.03 * rng.standard_normal(epochs + 1))

    assert verdicts(make)[Fit.OVERFIT] <= 0.01


@pytest.mark.parametrize("noise", [0.005, 0.03])
@pytest.mark.parametrize("epochs", [5, 20, 50])
def test_a_noisy_plateau_is_not_unfinished(epochs, noise):
    """Whose whole fall was small, after which it stays."""

    def make(rng):
        val = (1.8 + 0.5 * np.exp(-8 * np.arange(epochs + 1) / epochs)) * np.exp(
            noise * rng.standard_normal(epochs + 1)
        )
        return 0.97 * val, val

    assert verdicts(make)[Fit.UNFINISHED] <= 0.03


@pytest.mark.parametrize("start", [2.3, 2.5, 3.0, 4.0, 6.0])
@pytest.mark.parametrize("epochs", [10, 20, 50])
def test_a_small_fall_is_unfinished_as_long_as_it_has_not_slowed_down(epochs, start):
    """From wherever it came: a line is, an exponential whose second half brought next to nothing is not."""
    steps = np.arange(epochs + 1) / epochs
    slowed, line = 1.9 + (start - 1.9) * np.exp(-6 * steps), np.where(steps == 0, start, 2.2 - 0.3 * steps)
    assert summarise(slowed, slowed, BASELINE).verdict is Fit.GOOD
    assert summarise(line, line, BASELINE).verdict is Fit.UNFINISHED


@pytest.mark.parametrize("epochs", [20, 50, 200])
def test_noise_does_not_hide_overfitting(epochs):
    """A rise by two thirds under 3% of noise is found in 98% of runs, near where it begins."""
    val = decay(epochs, epochs / 20, 0.3) + rising(epochs, 0.2, epochs // 4)

    def make(rng):
        return decay(epochs, epochs / 10), val * (1 + 0.03 * rng.standard_normal(epochs + 1))

    assert verdicts(make)[Fit.OVERFIT] >= 0.98
    onsets = [summarise(*make(np.random.default_rng(seed)), BASELINE).onset for seed in range(20)]
    assert abs(np.median([o for o in onsets if o is not None]) / epochs - 0.25) < 0.1


def test_a_rise_that_is_nothing_beside_the_baseline_is_not_overfit():
    """Losses that span decades: from 1e-6 to 1e-5 is ten times as much, of a baseline of 1."""
    t = np.arange(61)
    val = 10.0 ** np.where(t < 30, -t / 5, -6 + (t - 30) / 30)
    assert summarise(10.0 ** (-t / 5), val, 1.0).verdict is Fit.GOOD
    assert summarise(10.0 ** (-t / 5), val, 1e-5).verdict is Fit.OVERFIT


def test_one_bad_last_epoch_is_not_overfit():
    """A spike at the very end of a long run is no trend, and one in the middle neither."""
    train, val, _ = MADE["early plateau"]
    for epoch in (25, 50):
        spike = val.copy()
        spike[epoch] *= 3
        assert summarise(train, spike, BASELINE).verdict is Fit.GOOD


def test_an_unsteady_run_is_told_so():
    """Both losses jumped: not overfitting, but worth a word."""
    train, val, _ = MADE["late jump of both"]
    assert "unsteady" in curves.sentence(summarise(train, val, BASELINE))
    assert "unsteady" not in curves.sentence(summarise(*MADE["early plateau"][:2], BASELINE))


def test_worse_than_guessing_is_not_hardly_better():
    """A training loss above the baseline's is no better than guessing."""
    assert "5, no better than the 2.3 of guessing" in curves.sentence(
        summarise(*MADE["worse than the baseline"][:2], 2.3)
    )
    assert "2.28, hardly below the 2.3 of" in curves.sentence(summarise(np.full(9, 2.28), np.full(9, 2.3), 2.3))


def test_the_overfitting_sentence():
    """The whole sentence once, as a newcomer reads it."""
    train, val, _ = MADE["overfit in 5 epochs"]
    words = curves.sentence(summarise(train, val, BASELINE))
    assert (
        words == "Overfits from epoch 2: validation loss rose 96% above its best while training loss went on falling."
    )


def test_smooth_by_hand():
    """Weights 1, 2, 1; at the ends 2, 1."""
    np.testing.assert_allclose(smooth(np.array([3.0, 0.0, 6.0, 9.0])), [2.0, 2.25, 5.25, 8.0])
    np.testing.assert_array_equal(smooth(np.array([7.0])), [7.0])


def test_smooth_leaves_out_what_is_not_finite():
    """NaN and infinity become NaN and do not spread."""
    given = np.array([3.0, np.nan, 4.0, 2.0, np.inf, 1.0])
    np.testing.assert_allclose(smooth(given), [3.0, np.nan, 10 / 3, 8 / 3, np.nan, 1.0])
    assert np.isfinite(smooth(np.full(3, 1e308))).all()


def test_smooth_is_local_to_the_bit():
    """Rows apart or together, a window or the whole: the same bits. Training keeps the best weights by this."""
    values = np.random.default_rng(0).lognormal(size=(5, 40))
    values[2, 7] = np.nan
    whole = smooth(values)
    np.testing.assert_array_equal(whole, np.stack([smooth(row) for row in values]))
    for epoch in range(1, 39):
        np.testing.assert_array_equal(whole[:, epoch], smooth(values[:, epoch - 1 : epoch + 2])[:, -2])
    np.testing.assert_array_equal(whole[:, -1], smooth(values[:, -2:])[:, -1])


def test_a_flat_curve_stays_flat():
    """No rounding: its best epoch is the first."""
    for value in np.random.default_rng(0).lognormal(size=50):
        np.testing.assert_array_equal(smooth(np.full(9, value)), np.full(9, value))


def test_smooth_leaves_its_argument_alone():
    """No writing into the caller's array."""
    values = np.array([1.0, np.nan, 3.0])
    smooth(values)
    np.testing.assert_array_equal(values, [1.0, np.nan, 3.0])


@pytest.mark.parametrize(
    ("loss_val", "epoch"),
    [
        ([3.0, 2.0, 1.0, 2.0, 3.0], 2),
        ([1.0, 2.0, 3.0], 0),  # the untrained network counts
        ([1.0, 1.0, 1.0], 0),  # the first of ties
        ([9.0, 5.0, 5.0, 0.9, 5.0, 5.0, 2.0, 2.0, 2.0], 7),  # one lucky epoch is not the best
        ([np.nan, np.inf, 4.0, np.nan], 2),
        ([np.nan, np.inf], None),
    ],
)
def test_best_epoch(loss_val, epoch):
    """The lowest smoothed validation loss, the first of ties; None when none is finite."""
    assert best_epoch(np.array(loss_val)) == epoch


def test_summary_by_hand():
    """Gap, best gap and severity of a small run."""
    summary = summarise(np.array([4.0, 1.0, 0.5, 0.2, 0.1]), np.array([4.0, 2.0, 1.5, 2.0, 3.0]), 4.0)
    assert summary.best_epoch == summary.onset == 2
    assert summary.best_loss_val == 1.5
    assert summary.best_gap == 1.0
    assert summary.gap == pytest.approx(2.9)
    assert summary.severity == pytest.approx((8 / 3) / 1.75 - 1)
    assert (summary.epochs, summary.last_epoch, summary.loss_train, summary.loss_val) == (4, 4, 0.1, 3.0)


def test_summary_of_a_run_that_diverged():
    """What there is up to the last finite epoch; nothing at all when no epoch is finite."""
    late = summarise(np.array([2.0, 1.0, np.nan]), np.array([2.0, 1.5, np.nan]), 2.0)
    assert (late.last_epoch, late.gap, late.best_epoch) == (1, 0.5, 1)
    assert "after epoch 1" in curves.sentence(late)
    never = summarise(np.full(3, np.nan), np.full(3, np.nan), 2.0)
    assert never.best_epoch is None
    assert never.last_epoch is None
    assert never.severity == 0
    assert all(map(math.isnan, (never.best_loss_val, never.gap, never.best_gap)))


def test_a_short_steep_descent_is_unfinished() -> None:
    """Digits after five epochs: every epoch falls by a fifth or more, so nothing is good yet."""
    val = np.array([2.32, 1.65, 0.61, 0.301, 0.212, 0.170])
    assert curves.summarise(val * 0.95, val, 2.3).verdict is curves.Fit.UNFINISHED
