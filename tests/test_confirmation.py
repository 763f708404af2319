"""The best of a search against the default, on fresh seeds."""

import math

from conftest import Compose
from manyfit.config.schema import Config
from manyfit.statistics import Effect, effect
from manyfit.sweeps import confirmation
from swept import FakeSweep, at


def test_fresh_seeds_are_fresh() -> None:
    """Not one of those searched with, all different."""
    used = [0, 1, 1000, 1003]
    seeds = confirmation.fresh_seeds(used, 8)
    assert len(set(seeds)) == 8
    assert not set(seeds) & set(used)


def test_confirmation_in_words() -> None:
    """Better, worse, or cannot be told; a single pair has no interval; who won of several, and how that was judged."""

    def words(*interval: float, compared: int = 1, place: int = 0, lost: tuple[int, int] = (0, 0)) -> str:
        found, test = Effect(*interval, n=8), Effect(1.2, 0.4, 2, 8)  # type: ignore[misc]
        its = (compared, place, place, found, test, "accuracy/test", *lost)
        return confirmation.Confirmation(8, "loss/val", *its).words()

    assert words(0.031, 0.012, 0.05) == (
        "confirmed: best beats default by 0.031 [0.012, 0.05] in loss/val, with test accuracy 1.2 [0.4, 2.0] points "
        "higher, over 8 fresh seeds"
    )
    assert words(-0.031, -0.05, -0.012).startswith("refuted: default beats best by 0.031 [0.012, 0.05] in loss/val")
    assert words(0.01, -0.1, 0.12).startswith("not confirmed")
    for gain, said in ((0.2, "RMSE 0.2 [0.1, 0.3] lower"), (-0.2, "RMSE 0.2 [0.1, 0.3] higher")):
        assert confirmation._tested(Effect(gain, gain - 0.1, gain + 0.1, 8), "rmse/test") == said
    assert "interval unknown" in words(0.01, math.nan, math.nan)
    three = words(0.031, 0.012, 0.05, compared=3, place=2)
    assert three.startswith("confirmed: third best beats default by 0.031")
    assert three.endswith("over 8 fresh seeds; 3 settings were compared: intervals of 98.3%")
    assert words(0.03, 0.01, 0.05, lost=(2, 0)) == (
        "refuted: best failed or diverged on 2 of 8 fresh seeds, default on 0."
    )
    assert words(-0.03, -0.05, -0.01, lost=(0, 1)) == (
        "confirmed: default failed or diverged on 1 of 8 fresh seeds, best on 0."
    )


def test_the_best_of_three_is_chosen_on_the_fresh_seeds(composed: Compose) -> None:
    """Its gain has an interval that holds for all three at once; one that diverges for a seed comes after the rest."""
    default = composed("data=iris")
    ends = {1e-1: 0.5, 1e-2: 0.3, 1e-3: 0.4, default.optimizer.lr * 1.5: 0.1}

    def ended(config: Config) -> float:
        lost = config.optimizer.lr == 1.5 * default.optimizer.lr and config.seed == 1003
        return math.nan if lost else ends.get(config.optimizer.lr, 0.45) + 0.02 * math.sin(config.seed)

    rivals = {rank: at(default, lr, 0) for rank, lr in ((0, 1e-1), (2, 1e-2), (3, default.optimizer.lr * 1.5))}
    found = confirmation.confirm(
        FakeSweep(default, ended).train, rivals, at(default, 0.5, 0), 0, range(1000, 1008),
        lambda result: result.summary.best_loss_val, "loss/val",
    )  # fmt: skip
    assert (found.place, found.rank, found.wins, found.lost) == (1, 2, True, 0)  # the search's second was the default
    assert found.gain == effect([0.45 - 0.3] * 8, 1 - 0.05 / 3)
    assert [child.config.optimizer.lr for child in found.runs] == [1e-2] * 8
