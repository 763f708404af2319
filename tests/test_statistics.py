"""The one interval, against scipy's and by its coverage."""

import numpy as np
import pytest
from scipy import stats

from manyfit.statistics import ANY, POSITIVE, SHARE, Effect, Limits, effect, interval, limits_of


def test_effect_is_the_wider_of_bootstrap_and_student() -> None:
    """Of many skewed values it is BCa's on one side; values that are all the same are a point, one has none."""
    values = np.random.default_rng(1).exponential(1, 40)
    found = effect(values)
    bca = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=20000, rng=np.random.default_rng(3))
    student = stats.ttest_1samp(values, 0).confidence_interval()
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(min(student.low, bca.confidence_interval.low), abs=0.03)
    assert found.high == pytest.approx(max(student.high, bca.confidence_interval.high), abs=0.03)
    assert effect([2.0] * 8) == Effect(2.0, 2.0, 2.0, 8)
    assert np.isnan(effect([2.0]).low)
    assert effect([1.0, np.nan, 1.0, np.inf]).n == 2


def test_folds_overlap() -> None:
    """Nadeau and Bengio's variance, by hand: of five folds with a quarter as many examples to test as to train."""
    values = np.array([0.9, 0.95, 0.85, 0.92, 0.88])
    found = effect(values, overlap=0.25)
    reach = stats.t.ppf(0.975, 4) * np.sqrt((1 / 5 + 0.25) * values.var(ddof=1))
    assert (found.low, found.high) == pytest.approx((values.mean() - reach, values.mean() + reach))
    assert np.isnan(effect([0.9], overlap=0.25).low)
    assert effect(values, overlap=0.25, limits=SHARE).high < 1


def test_the_interval_of_folds_covers_the_expected_score() -> None:
    """Of the error of a least-squares line, cross-validated: the plain interval of the same five values misses it."""
    draw, n, folds = np.random.default_rng(0), 40, 5
    covered = {0.0: 0, 0.25: 0}
    for _ in range(400):
        x, noise = draw.normal(size=(n, 6)), draw.normal(size=n)
        errors = []
        for fold in range(folds):
            test = np.arange(n) % folds == fold
            weights = np.linalg.lstsq(x[~test], noise[~test], rcond=None)[0]
            errors.append(np.mean((noise[test] - x[test] @ weights) ** 2))
        expected = 1 + 6 / (32 - 6 - 1)  # of noise alone, for 32 training rows of 6 Gaussian inputs
        for overlap in covered:
            mean, reach = np.mean(errors), stats.t.ppf(0.975, 4) * np.std(errors, ddof=1)
            reach *= np.sqrt(1 / 5 + overlap)
            covered[overlap] += abs(mean - expected) < reach
    assert covered[0.25] / 400 > 0.95
    assert covered[0.0] < covered[0.25]


def test_the_interval_of_eight_values_covers_the_mean() -> None:
    """In 95% of the cases and more; the bootstrap's alone does in 88%."""
    draw = np.random.default_rng(2)
    found = [effect(draw.normal(size=8)) for _ in range(300)]
    assert np.mean([e.low <= 0 <= e.high for e in found]) >= 0.93


@pytest.mark.parametrize(("limits", "draw"), [(POSITIVE, "exponential"), (SHARE, "uniform")])
def test_intervals_stay_within_limits_and_cover_the_mean(limits: Limits, draw: str) -> None:
    """Few values of a skewed loss have no interval below 0, and it still holds the mean."""
    rng = np.random.default_rng(4)
    mean = {"exponential": 1.0, "uniform": 0.5}[draw]
    values = getattr(rng, draw)(size=(8, 300))
    low, high = interval(values, limits=limits)
    assert limits[0] < low.min()
    assert high.max() < limits[1]
    assert np.mean((low <= mean) & (mean <= high)) >= 0.91
    assert ((low <= values.mean(0)) & (values.mean(0) <= high)).all()


def test_many_intervals_at_once_are_those_of_each() -> None:
    """Over the first axis, as a curve has them."""
    values = np.random.default_rng(5).exponential(1, (6, 4))
    low, high = interval(values, limits=POSITIVE)
    for i in range(4):
        found = effect(values[:, i], limits=POSITIVE)
        assert (found.low, found.high) == pytest.approx((low[i], high[i]))


def test_a_value_beyond_its_limits_is_taken_as_it_is() -> None:
    """A loss of a user's own may be negative."""
    assert effect([-1.0, 1.0, 2.0], limits=POSITIVE) == effect([-1.0, 1.0, 2.0])
    assert effect([0.0, 0.0, 0.0], limits=POSITIVE) == Effect(0, 0, 0, 3)
    assert effect([1.0, 1.0], limits=SHARE) == Effect(1, 1, 1, 2)


@pytest.mark.parametrize(
    ("metric", "limits"),
    [
        ("best loss/val", POSITIVE),
        ("loss/train_running", POSITIVE),
        ("rmse/test", POSITIVE),
        ("last accuracy/val", SHARE),
        ("test_set/accuracy", SHARE),
        ("loss/gap", ANY),
        ("r2/val", ANY),
        ("update_angle", ANY),
    ],
)
def test_limits_by_the_name_of_a_metric(metric: str, limits: Limits) -> None:
    """Losses are positive, accuracies shares; a gap may be anything."""
    assert limits_of(metric) == limits


def test_an_effect_in_words() -> None:
    """With other digits; where there is no interval or no value it says so, and prints no inf or nan."""
    assert f"{Effect(0.12, 0.1, 0.14, 8)}" == str(Effect(0.12, 0.1, 0.14, 8)) == "0.12 [0.1, 0.14]"
    assert f"{-effect([1.0, 2.0, 3.0]):.0f}" == "-2 [-4, 0]"
    assert str(effect([1.0])) == "1 [interval unknown]"
    assert str(effect([np.nan])) == "no value"
