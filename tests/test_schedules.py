"""Schedules against torch's own."""

import json

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from manyfit import schedules
from manyfit.schedules import Schedule

N = 120
PROGRESS = np.arange(N) / N
ALL = [
    schedules.constant(),
    schedules.linear(0.1),
    schedules.cosine(),
    schedules.warmup_cosine(),
    schedules.step(),
    schedules.exponential(),
    schedules.one_cycle(),
    schedules.plateau(),
    schedules.torch_schedule(lr_scheduler.CosineAnnealingWarmRestarts, {"T_0": 3}, "epoch", 12, 10),
]


def real(make, steps=N):
    """The lr of an optimizer with lr 0.2, divided by 0.2, before each of its steps."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.2)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"] / 0.2)
        optimizer.step()
        scheduler.step()
    return np.array(rates)


def warmup_then_cosine(optimizer):
    first = lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=24)
    then = lr_scheduler.CosineAnnealingLR(optimizer, T_max=96, eta_min=0.2 * 0.05)
    return lr_scheduler.SequentialLR(optimizer, [first, then], milestones=[24])


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # SequentialLR calls its own children in a deprecated way
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (schedules.constant(), lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
        (schedules.linear(0.3), lambda o: lr_scheduler.LinearLR(o, 1.0, 0.3, N)),
        (schedules.cosine(0.05), lambda o: lr_scheduler.CosineAnnealingLR(o, N, eta_min=0.2 * 0.05)),
        (schedules.warmup_cosine(0.2, final=0.05), warmup_then_cosine),
        (schedules.step(), lambda o: lr_scheduler.StepLR(o, N // 3, 0.1)),
        (schedules.step(0.3333333333), lambda o: lr_scheduler.StepLR(o, N // 3, 0.1)),
        (schedules.step(0.1, 0.5), lambda o: lr_scheduler.StepLR(o, N // 10, 0.5)),
        (schedules.exponential(0.02), lambda o: lr_scheduler.ExponentialLR(o, 0.02 ** (1 / N))),
    ],
)
def test_a_schedule_is_torchs(ours, theirs):
    """The factors are those by which torch's own class scales lr."""
    np.testing.assert_allclose(ours(PROGRESS), real(theirs), rtol=0, atol=1e-9)


def test_one_cycle_is_torchs_on_its_own_grid():
    """OneCycleLR ends at its last step; with one step more its grid is ours, and its defaults are ours."""
    pct = (0.3 * N + 1) / (N + 1)
    theirs = real(lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=N + 1, pct_start=pct, cycle_momentum=False))
    ours = schedules.one_cycle()(PROGRESS)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    assert ours.argmax() == 36
    assert ours.max() == 1


def test_plateau_is_torchs():
    """Observed losses lower the factor as ReduceLROnPlateau lowers lr."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=2, threshold=1e-2, min_lr=0.01, eps=0)
    ours = schedules.plateau(factor=0.3, patience=2, threshold=1e-2, minimum=0.01)
    for loss in [3.0, 2.0, 1.0, 0.999, 0.998, 0.997, 0.996, float("nan"), 1, 2, 0.5, *[1.0] * 12]:
        theirs.step(loss)
        ours.observe(loss)
        np.testing.assert_array_equal(ours(PROGRESS[:5]), np.full(5, optimizer.param_groups[0]["lr"]))
    assert ours(PROGRESS)[0] == 0.01


def test_plateau_resumes_exactly():
    """A new schedule given the state, by way of JSON, goes on as if it had seen it all."""
    losses = np.random.default_rng(0).normal(1, 0.1, 60)
    whole, half = schedules.plateau(patience=3, factor=0.7), schedules.plateau(patience=3, factor=0.7)
    for i, loss in enumerate(losses):
        whole.observe(loss)
        half.observe(loss)
        state = json.loads(json.dumps(half.state()))
        half = schedules.plateau(patience=3, factor=0.7)
        half.load_state(state)
        assert half(PROGRESS)[0] == whole(PROGRESS)[0], i
    assert whole(PROGRESS)[0] < 1


@pytest.mark.filterwarnings("ignore:To get the last learning rate")
@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (lr_scheduler.CosineAnnealingWarmRestarts, {"T_0": 4, "T_mult": 2}),
        (lr_scheduler.PolynomialLR, {"total_iters": 10, "power": 2.0}),
        (lr_scheduler.MultiStepLR, {"milestones": [3, 8], "gamma": 0.5}),
        (lr_scheduler.LinearLR, {}),
    ],
)
@pytest.mark.parametrize(("epochs", "steps_per_epoch"), [(12, 10), (7, 13), (1, 1), (120, 1)])
@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_torch_schedule_is_a_real_loop(cls, arguments, unit, epochs, steps_per_epoch):
    """Any class of torch gives, step by step, what it gives a real optimizer."""
    total = epochs * steps_per_epoch
    ours = schedules.torch_schedule(cls, arguments, unit, epochs, steps_per_epoch)(np.arange(total) / total)
    theirs = real(lambda o: cls(o, **arguments), total if unit == "step" else epochs)
    np.testing.assert_allclose(
        ours, theirs if unit == "step" else np.repeat(theirs, steps_per_epoch), rtol=0, atol=1e-9
    )


def test_torch_one_cycle_ends_with_training():
    """A class that refuses to be stepped beyond its end is not."""
    arguments = {"max_lr": 1.0, "total_steps": N, "cycle_momentum": False}
    factors = schedules.torch_schedule(lr_scheduler.OneCycleLR, arguments, "step", 12, 10)(PROGRESS)
    assert factors.max() == pytest.approx(1)
    assert factors[-1] == pytest.approx(4e-6)


@pytest.mark.parametrize("schedule", ALL)
def test_factors_do_not_depend_on_their_neighbours(schedule):
    """A step's factor is the same to the last bit whichever steps it is asked for with."""
    whole = schedule(PROGRESS)
    assert whole.shape == (N,)
    assert whole.dtype == np.float64
    np.testing.assert_array_equal(whole, np.concatenate([schedule(PROGRESS[i : i + 1]) for i in range(N)]))
    np.testing.assert_array_equal(whole[5:18], schedule(PROGRESS[5:18]))


@pytest.mark.parametrize("schedule", ALL)
def test_factors_are_usable_on_the_whole_interval(schedule):
    """Finite, not negative, defined at 1 and for no steps at all."""
    factors = schedule(np.linspace(0, 1, 1001))
    assert np.isfinite(factors).all()
    assert (factors >= 0).all()
    assert schedule(np.empty(0)).shape == (0,)


@pytest.mark.parametrize("schedule", [s for s in ALL if s is not ALL[7]])
def test_most_schedules_have_no_memory(schedule):
    """But for plateau, what is observed changes nothing and there is no state."""
    before = schedule(PROGRESS)
    schedule.observe(float("nan"))
    assert schedule.state() == {}
    schedule.load_state({})
    np.testing.assert_array_equal(schedule(PROGRESS), before)


def test_no_warmup_is_plain_cosine():
    """warmup=0 divides by nothing."""
    np.testing.assert_array_equal(schedules.warmup_cosine(0)(PROGRESS), schedules.cosine()(PROGRESS))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.warmup_cosine(warmup=2.0), r"schedule\.warmup must be in \[0, 1\), but got 2\.0\."),
        (lambda: schedules.warmup_cosine(start=-1), r"schedule\.start must be in \[0, 1\], but got -1\."),
        (lambda: schedules.linear(final=-0.1), r"schedule\.final must be in \[0, inf\), but got -0\.1\."),
        (lambda: schedules.cosine(final=float("inf")), r"schedule\.final must be in \[0, inf\), but got inf\."),
        (lambda: schedules.cosine(final=float("nan")), r"schedule\.final must be a number"),
        (lambda: schedules.cosine(final="low"), r"schedule\.final must be a number in \[0, inf\), but got 'low'\."),
        (lambda: schedules.exponential(final=0), r"schedule\.final must be in \(0, inf\), but got 0\."),
        (lambda: schedules.step(every=0), r"schedule\.every must be in \(0, 1\], but got 0\."),
        (lambda: schedules.step(gamma=True), r"schedule\.gamma must be a number"),
        (lambda: schedules.one_cycle(peak=1), r"schedule\.peak must be in \(0, 1\), but got 1\."),
        (lambda: schedules.plateau(factor=1), r"schedule\.factor must be in \(0, 1\), but got 1\."),
        (
            lambda: schedules.plateau(patience=-1),
            r"schedule\.patience must be a whole number of epochs >= 0, but got -1\.",
        ),
        (lambda: schedules.plateau(patience=2.5), r"schedule\.patience must be a whole number"),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    """What must hold, then what was got, under the full key."""
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("cls", "arguments", "unit", "message"),
    [
        (
            lr_scheduler.StepLR,
            {"step_siz": 3},
            "epoch",
            r"schedule\.step_siz must be an argument of StepLR; it has step_size, gamma\.",
        ),
        (lr_scheduler.StepLR, {}, "epoch", r"schedule\.step_size must be given: StepLR needs it\."),
        (lr_scheduler.StepLR, {"step_size": 3}, "batch", r"schedule\.unit must be epoch or step, but got 'batch'\."),
        (lr_scheduler.LambdaLR, {"lr_lambda": "x"}, "epoch", r"schedule must be buildable: LambdaLR says: "),
        (
            lr_scheduler.OneCycleLR,
            {"max_lr": 1.0, "total_steps": 9},
            "epoch",
            r"OneCycleLR says: .*schedule.cycle_momentum=false",
        ),
        (lr_scheduler.CosineAnnealingLR, {"T_max": 5, "eta_min": -1.0}, "epoch", r"schedule must give factors >= 0"),
        (lr_scheduler.ReduceLROnPlateau, {}, "epoch", r"Use schedule=plateau\."),
    ],
)
def test_torchs_classes_are_refused_with_the_reason(cls, arguments, unit, message):
    """A wrong argument is named under its full key, with the choices."""
    with pytest.raises(ValueError, match=message):
        schedules.torch_schedule(cls, arguments, unit, 10, 3)


def test_every_source_is_annotated():
    """The allow-list of config.build goes by the return annotation."""
    for name in ["constant", "linear", "cosine", "warmup_cosine", "step", "exponential", "one_cycle", "plateau"]:
        assert getattr(schedules, name).__annotations__["return"] is Schedule
