"""P6: the last step ends when the time is up, whatever steps take; the rate is zero there and nowhere before."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest

from burnish import cli
from burnish.choose import pace as pacing
from burnish.choose.pace import Pace
from burnish.recipe import Recipe, parse_budget
from burnish.runtime import Clock, Stopwatch, address, draws, process_age_seconds
from burnish.train.loop import Schedule, learning_rate_factor


def simulate(monkeypatch, seconds, *, guess, until, sizes=((0.0, 128),), most=10**6, between=0.0, save_every=5.0):
    """Steps made, time used, and the learning-rate factors, when step i takes seconds(i) and the plan is revised on time."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(pacing.time, "monotonic", lambda: clock.now)
    schedule = Schedule(32, sizes)
    pace = Pace(
        schedule,
        until=clock.now + until,
        most=most,
        step_seconds={size: guess for _, size in sizes},
        epoch_seconds=0.0,
        epoch_steps=20,
    )
    run = SimpleNamespace(total=min(most, max(1, int(until / guess))), steps=0, progress=0.0)
    saved, factors = clock.now, []
    while run.steps < run.total:
        size = schedule.size_at(run.progress)
        share = (1.0 - run.progress) / (run.total - run.steps)
        factors.append(learning_rate_factor(run.progress + share / 2))
        clock.now += seconds(run.steps, size)
        run.steps, run.progress = run.steps + 1, run.progress + share
        pace.saw_step(size, seconds(run.steps - 1, size))
        if run.steps % 20 == 0 and between:
            clock.now += between
            pace.saw_between(size, between)
        if run.steps < run.total and (clock.now - saved > save_every or pace.seconds_late(run) > 1.0):
            run.total, saved = pace.total(run), clock.now
        assert run.steps < 100_000
    return run.steps, clock.now - 1000.0, factors


@pytest.mark.parametrize("guess", [0.2, 0.5, 1.5])
@pytest.mark.parametrize("between", [0.0, 2.0])
@pytest.mark.parametrize(
    "seconds",
    [
        lambda step, size: 0.5,
        lambda step, size: 0.3 + 0.4 * (step % 2),
        lambda step, size: 0.4 if step < 60 else 0.8,  # the machine gets busy half way
        lambda step, size: 5.0 if step == 30 else 0.5,  # one hiccup
    ],
)
def test_the_last_step_ends_at_the_deadline_whatever_steps_take(seconds, between, guess, monkeypatch):
    _, used, factors = simulate(monkeypatch, seconds, guess=guess, until=100.0, between=between)
    assert 97.0 <= used <= 102.0
    assert factors[-1] < 0.02 * max(factors)
    assert min(factors[:-1]) > 0.0


def test_growing_images_do_not_miss_the_deadline(monkeypatch):
    seconds = lambda step, size: {128: 0.3, 224: 0.9}[size]  # noqa: E731
    _, used, _ = simulate(monkeypatch, seconds, guess=0.5, until=100.0, sizes=((0.0, 128), (0.6, 224)))
    assert 96.0 <= used <= 103.0


def test_planned_epochs_are_cut_only_when_the_clock_forbids_them(monkeypatch):
    assert simulate(monkeypatch, lambda step, size: 0.1, guess=0.1, until=100.0, most=50)[0] == 50
    steps, used, _ = simulate(monkeypatch, lambda step, size: 1.0, guess=0.1, until=20.0, most=150)
    assert used <= 21.5 and steps < 25


def test_the_rate_rises_then_falls_to_exactly_zero():
    values = [learning_rate_factor(progress) for progress in np.linspace(0, 1, 1001)]
    peak = int(np.argmax(values))
    assert 80 <= peak <= 120
    assert values == sorted(values[: peak + 1]) + sorted(values[peak + 1 :], reverse=True)
    assert values[-1] == 0.0
    assert all(value > 0 for value in values[1:-1])


def test_the_command_line_counts_from_the_start_of_the_process():
    age = process_age_seconds()
    assert age > 0.1
    assert abs(Clock.start(60.0, from_process_start=True).elapsed() - age) < 1.0


def test_stage_seconds_add_up_to_the_elapsed_time():
    from burnish.runtime import Nobody

    clock = Clock.start(None, from_process_start=False)
    watch = Stopwatch(Nobody(), clock)
    for name in ("a", "b", "a"):
        watch.stage(name)
    seconds = watch.so_far()
    assert set(seconds) == {"start", "a", "b"}
    assert abs(sum(seconds.values()) - clock.elapsed()) < 0.1


def test_an_address_depends_on_every_part_and_on_nothing_else():
    others = {
        address(2, "view", 2, 3),
        address(1, "order", 2, 3),
        address(1, "view", 3, 3),
        address(1, "view", 23),
        address(1, "view", 2, 3),
    }
    assert len(others) == 5


def test_addresses_and_what_is_drawn_by_them_are_the_same_on_every_machine():
    """Runs are taken up, and splits and orders drawn again, on other machines and by later versions (P7)."""
    assert address(1, "view", 2, 3) == 0xA3C0A0382ABEC6A491A7671C971095A6
    assert address(7, "ü", "order") == 0x7B441B1CAF14759AB59C7D2D3C6BE74B
    assert draws(0, "x").integers(1 << 30, size=3).tolist() == [173788646, 836768986, 4389510]
    assert draws(0, "x").permutation(8).tolist() == [7, 2, 3, 5, 4, 6, 0, 1]
    rng = draws(1, "order", 2)
    assert (rng.random(), rng.uniform(-1.0, 1.0)) == (0.9934068102435141, -0.7255015810360148)


def test_command_line_and_python_have_the_same_defaults():
    parameters = inspect.signature(cli.fit).parameters
    default = Recipe()
    for name, value in (
        (field, getattr(default, field)) for field in Recipe.__dataclass_fields__ if field != "budget_seconds"
    ):
        assert parameters[name].default == value, name
    from burnish import api

    budgets = [parse_budget(inspect.signature(verb).parameters["budget"].default) for verb in (cli.fit, api.fit)]
    assert budgets[0] == budgets[1] == default.budget_seconds
