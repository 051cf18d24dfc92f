"""A time-planned run kept on its deadline: it ends, late or not, and its steps fit what is left of the clock (P6)."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest

from burnish import api
from burnish.choose import ledger as ledgers
from burnish.choose import pace as pacing
from burnish.choose.ledger import Ledger
from burnish.choose.pace import Pace
from burnish.choose.tuning import Tuning
from burnish.run import trained
from burnish.runtime import Clock, Nobody
from burnish.train import loop
from burnish.train.loop import Schedule, Step

NOW = 1000.0
TWO_SIZES = Schedule(batch=12, sizes=((0.0, 64), (0.6, 128)))


@pytest.fixture
def stopped(monkeypatch):
    """The clock stands."""
    monkeypatch.setattr(pacing, "time", SimpleNamespace(monotonic=lambda: NOW))


def paced(*, left, most=10**6, schedule=TWO_SIZES, seconds=None, between=0.0, epoch_steps=1):
    """A pace with so many seconds left until its deadline."""
    step_seconds = {64: 1.0, 128: 3.0} if seconds is None else seconds
    return Pace(
        schedule, until=NOW + left, most=most, step_seconds=step_seconds, epoch_seconds=between, epoch_steps=epoch_steps
    )


def standing(*, steps=0, total=100, progress=0.0):
    """What the pace looks at of a training."""
    return SimpleNamespace(steps=steps, total=total, progress=progress)


# ---- a run that is late ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("due", [True, False], ids=["at a save", "because it is late"])
def test_a_run_whose_deadline_is_long_past_makes_no_step_after_its_total(due, shapes, tmp_path, monkeypatch):
    """The total was once raised after the last step, whose epoch was not told yet: the run went on, learning nothing."""
    real, made, kept = Tuning.pace, [], []

    def long_past(tuning):
        pace = real(tuning)
        pace.until = time.monotonic() - 1000.0
        kept.append(pace)
        return pace

    step = loop.step

    def counted(module, optimiser, *rest):
        if optimiser.param_groups[0]["lr"] > 0:  # not the steps made only for timing
            made.append(1)
        return step(module, optimiser, *rest)

    monkeypatch.setattr(Tuning, "pace", long_past)
    monkeypatch.setattr(Ledger, "due", lambda self: due)
    monkeypatch.setattr(Ledger, "affords_a_save", lambda self: True)
    monkeypatch.setattr(loop, "step", counted)
    run = api.fit(
        shapes, out=tmp_path / "run", model="random:test_resnet", method="full", budget=300, epochs=12, image_size=64,
        batch_size=12, precision="float32",
    )  # fmt: skip
    history = [json.loads(line) for line in (run.folder / "history.jsonl").read_text().splitlines()]
    steps = -(-run.facts["counts"]["train"] // 12)  # of an epoch
    assert kept[0].most == 12 * steps, "the plan has room for the steps that are not to be made"
    assert history[-1]["steps"] == len(made) == 2  # after the first the total is set to one more, and that is the last
    assert [row["progress"] for row in history] == [1.0]
    assert run.facts["kept"] == "full"


def test_a_run_in_time_makes_all_its_steps(shapes, tmp_path, monkeypatch):
    """The other side of the test above: there it is the deadline that ends the run, nothing else."""
    monkeypatch.setattr(Ledger, "due", lambda self: True)
    run = api.fit(
        shapes, out=tmp_path / "run", model="random:test_resnet", method="full", budget=300, epochs=3, image_size=64,
        batch_size=12, precision="float32",
    )  # fmt: skip
    history = [json.loads(line) for line in (run.folder / "history.jsonl").read_text().splitlines()]
    steps = -(-run.facts["counts"]["train"] // 12)
    assert [row["steps"] for row in history] == [steps, 2 * steps, 3 * steps]


# ---- how many steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [-1e6, -1.0, 0.0, 1e-9, 0.5])
@pytest.mark.parametrize("steps", [0, 1, 57, 99])
def test_the_total_is_never_less_than_one_step_more(left, steps, stopped):
    training = standing(steps=steps, total=100, progress=steps / 100)
    assert paced(left=left).total(training) == steps + 1


def test_the_total_never_passes_what_the_plan_allows(stopped):
    pace = paced(left=1e9, most=120)
    assert pace.total(standing(steps=10, progress=0.1)) == 120
    assert pace.total(standing(steps=119, progress=0.99)) == 120


@pytest.mark.parametrize("left", [4.0, 10.0, 31.7, 500.0])
def test_with_the_total_that_is_given_the_run_ends_on_its_deadline(left, stopped):
    pace = paced(left=left, between=2.0, epoch_steps=4)
    training = standing(steps=7, progress=0.5)
    training.total = pace.total(training)
    mean = pace.seconds_ahead(training) / (training.total - training.steps)
    assert -mean < pace.seconds_late(training) <= 1e-9, "late, or one more step would have fitted"


def test_seconds_late_count_from_now(stopped):
    pace = paced(left=10.0, schedule=Schedule(12, ((0.0, 64),)), seconds={64: 2.0})
    assert pace.seconds_ahead(standing(steps=90, total=100, progress=0.9)) == pytest.approx(20.0)
    assert pace.seconds_late(standing(steps=90, total=100, progress=0.9)) == pytest.approx(10.0)
    assert pace.seconds_late(standing(steps=97, total=100, progress=0.97)) == pytest.approx(-4.0)


# ---- what a step takes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("progress", "mean"),
    [(0.0, 0.6 * 1.0 + 0.4 * 3.0), (0.3, (0.3 * 1.0 + 0.4 * 3.0) / 0.7), (0.6, 3.0), (0.9, 3.0)],
)
def test_the_sizes_weigh_as_much_as_they_are_still_ahead(progress, mean):
    assert paced(left=0.0)._mean_step(progress) == pytest.approx(mean)


def test_a_step_bears_its_share_of_the_work_between_epochs():
    pace = paced(left=0.0, between=6.0, epoch_steps=4)
    assert pace._mean_step(0.7) == pytest.approx(3.0 + 6.0 / 4)
    pace.saw_between(128, 99.0)
    assert pace._mean_step(0.7) == pytest.approx(3.0 + 6.0 / 4), "the first at a size decodes its images"
    pace.saw_between(128, 10.0)
    assert pace._mean_step(0.7) == pytest.approx(3.0 + (6.0 / 4 + 10.0 / 4) / 2)


def test_a_size_never_seen_counts_as_the_slowest_known():
    assert paced(left=0.0, seconds={64: 2.0})._mean_step(0.0) == pytest.approx(2.0)
    three = Schedule(12, ((0.0, 64), (0.5, 96), (0.75, 128)))
    assert paced(left=0.0, schedule=three, seconds={64: 1.0, 128: 4.0})._mean_step(0.5) == pytest.approx(4.0)


def test_at_the_very_end_a_mean_is_still_a_number():
    assert 0.0 < paced(left=0.0)._mean_step(1.0) < 10.0


def test_steps_are_averaged_with_the_plan_and_late_ones_move_the_mean_by_a_twentieth():
    pace = paced(left=0.0)
    pace.saw_step(64, 60.0)
    assert (pace.step_seconds[64], pace.slowness) == (1.0, 1.0), "the first makes buffers and chooses kernels"
    pace.saw_step(64, 2.0)
    assert pace.step_seconds[64] == pytest.approx(1.5)
    pace.saw_step(64, 6.0)
    assert pace.step_seconds[64] == pytest.approx((1.0 + 2.0 + 6.0) / 3)
    for _ in range(100):
        pace.saw_step(64, 3.0)
    pace.saw_step(64, 11.0)
    assert pace.step_seconds[64] == pytest.approx(3.0 + 0.05 * 8.0, rel=0.01)
    assert pace.step_seconds[128] == 3.0
    pace.saw_step(160, 7.0)
    assert pace.step_seconds[160] == 7.0


@pytest.mark.parametrize("reserve", [30.0, 80.0])
@pytest.mark.parametrize(
    "step, stall, place", [(0.12, 20, 10), (0.12, 60, 150), (0.5, 20, 2), (0.5, 60, 30), (2.0, 120, 5)]
)
def test_a_step_during_which_the_machine_stood_still_does_not_end_the_run(step, stall, place, reserve, monkeypatch):
    now = [NOW]
    monkeypatch.setattr("burnish.choose.pace.time.monotonic", lambda: now[0])
    pace = Pace(
        Schedule(32, ((0.0, 128),)), until=NOW + 400.0, most=10**6, step_seconds={128: step}, epoch_seconds=0.0,
        epoch_steps=13, reserve_seconds=reserve,
    )  # fmt: skip
    training = standing(steps=0, total=int(400.0 / step), progress=0.0)
    while training.steps < training.total:
        taken = step + stall if training.steps == place else step
        now[0] += taken
        pace.saw_step(128, taken)
        training.steps += 1
        if training.steps % 5 == 0 or pace.is_off(training, 3.0):
            training.total = pace.total(training)
        training.progress = training.steps / training.total
    assert NOW + 370.0 <= now[0] <= NOW + 401.0


def test_a_slow_stretch_early_on_does_not_end_the_run(stopped):
    """Ten steps of 132 take twice as long, and 35 s were kept back for what follows: most steps are still to be made."""
    pace = Pace(
        Schedule(32, ((0.0, 128),)), until=NOW + 45, most=10**6, step_seconds={128: 0.4}, epoch_seconds=0.5,
        epoch_steps=13, reserve_seconds=35.0,
    )  # fmt: skip
    for number in range(23):
        pace.saw_step(128, 0.4 if number < 13 else 0.8)
    pace.saw_between(128, 4.0)  # of the first validation, which decodes
    assert pace.total(standing(steps=23, total=132, progress=0.17)) > 23 + 45


def test_on_a_machine_grown_slow_more_is_kept_back_for_what_follows(stopped):
    one = Schedule(12, ((0.0, 64),))
    pace = Pace(
        one, until=NOW + 100, most=10**6, step_seconds={64: 1.0}, epoch_seconds=0.0, epoch_steps=1, reserve_seconds=40.0
    )
    assert (pace.slowness, pace.deadline) == (1.0, NOW + 100)
    pace.saw_step(64, 9.0)  # the first tells nothing
    pace.saw_step(64, 2.0)
    assert pace.slowness == pytest.approx(1.5)
    assert pace.deadline == pytest.approx(NOW + 85), "by three quarters of that, as the proof can be cut"
    assert pace.total(standing(steps=10, progress=0.1)) == 10 + int(85 / 1.5)
    for _ in range(100):
        pace.saw_step(64, 0.5)
    assert pace.slowness == pytest.approx(0.5, abs=0.01)
    assert pace.deadline == pytest.approx(NOW + 110, abs=0.5), "half of what it gained is believed"
    for _ in range(200):
        pace.saw_step(64, 0.01)
    assert pace.deadline == NOW + 110, "and a quarter given back at most"


def test_a_size_that_was_never_timed_but_scaled_gives_nothing_back(stopped):
    two = Schedule(12, ((0.0, 64), (0.6, 128)))
    pace = Pace(
        two,
        until=NOW + 100,
        most=10**6,
        step_seconds={64: 1.0, 128: 4.0},
        epoch_seconds=0.0,
        epoch_steps=1,
        reserve_seconds=40.0,
    )
    for _ in range(200):
        pace.saw_step(128, 2.0)
    assert pace.slowness == pytest.approx(0.5, abs=1e-4)
    assert pace.deadline == NOW + 100


def saves_of_a_run(tmp_path, monkeypatch, *, off):
    """(begin, end) of each save, 0.3 s, of a run of 100 s that is off its plan after every step, by so many seconds."""
    clock, spans = SimpleNamespace(now=NOW), []
    monkeypatch.setattr(ledgers, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(trained, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def slow_write(*_):
        spans.append((clock.now, clock.now + 0.3))
        clock.now += 0.3

    def events():
        for _ in range(400):
            clock.now += 0.25
            yield Step(size=64, images=32, seconds=0.25)

    monkeypatch.setattr(ledgers, "write_checkpoint", slow_write)
    pace = SimpleNamespace(is_off=lambda _, seconds: off > seconds, total=lambda _: 400, saw_step=lambda *_: None)
    tuning = SimpleNamespace(
        material=None,
        bench=SimpleNamespace(clock=Clock(NOW, 120.0), recipe=SimpleNamespace(method="full")),
        divide=lambda: None,
        pace=lambda: pace,
        events=events,
        state=lambda: ({}, {}),
        diverged=None,
        training=SimpleNamespace(steps=0, total=400),
    )
    journal, folder = SimpleNamespace(begin=lambda _: None, rows=[]), SimpleNamespace(require_held=lambda: None)
    ledger = Ledger(tmp_path, tuning.bench.clock, Nobody())
    trained.train(
        tuning, SimpleNamespace(val_right=np.ones(4)), SimpleNamespace(folder=folder, ledger=ledger, journal=journal)
    )
    return spans


def test_plans_made_anew_do_not_save_more_than_a_fiftieth_of_the_time(tmp_path, monkeypatch):
    """On a busy machine a run is off its plan after nearly every step; each time its state was saved, 8 % of the time."""
    in_between = saves_of_a_run(tmp_path, monkeypatch, off=1.5)[:-1]  # the last is made at the end in any case
    assert len(in_between) >= 6, "as many as are allowed"
    # But for one of them: what a save costs is known after the first.
    assert all(0.3 * number <= (began - NOW) / 50 for number, (began, _) in enumerate(in_between))


def test_a_run_that_is_far_off_gets_another_plan_whatever_saving_costs(tmp_path, monkeypatch):
    """A large network's save takes seconds: a run that has become slow after one would be late all the same."""
    assert len(saves_of_a_run(tmp_path, monkeypatch, off=4.0)) == 401


def test_after_a_costly_save_the_next_waits_for_fifty_times_as_long(tmp_path, monkeypatch):
    """A large network's first save used up what the run so far allows: the next is not put off until all has been made up for."""
    clock = SimpleNamespace(now=NOW)
    monkeypatch.setattr(ledgers, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def slow_write(*_):
        clock.now += 4.0

    monkeypatch.setattr(ledgers, "write_checkpoint", slow_write)
    ledger = Ledger(tmp_path, Clock(NOW, None), Nobody())
    clock.now += 20.0
    assert ledger.due()
    ledger.write()
    clock.now += 199.0
    assert not ledger.due() and not ledger.affords_a_save()
    clock.now += 1.5
    assert ledger.due() and ledger.affords_a_save()


def test_a_slow_start_strikes_steps_off_and_gives_them_back(stopped):
    """Thirteen steps took 1.5 times as long as planned, as a machine does that others use, and then as long as planned."""
    pace = Pace(
        Schedule(32, ((0.0, 128),)), until=NOW + 40, most=10**6, step_seconds={128: 0.55}, epoch_seconds=0.5,
        epoch_steps=13, reserve_seconds=41.0,
    )  # fmt: skip
    training = standing(total=59)
    passed = 0.0

    def goes_on(count, seconds):
        nonlocal passed
        for _ in range(count):
            training.steps += 1
            passed += seconds
            pace.until -= seconds  # the clock of these tests stands
            training.progress = training.steps / training.total
            pace.saw_step(128, seconds)
            if pace.is_off(training, 1.0) and training.steps < training.total:
                training.total = pace.total(training)

    goes_on(13, 0.825)
    assert 26 < training.total < 59, "more than a second pass is still made"
    low = training.total
    goes_on(low - 14, 0.55)
    assert training.total > low
    assert not pace.is_off(training, 1.0)


def test_sizes_not_seen_yet_are_expected_to_be_as_much_slower(stopped):
    pace = paced(left=1e9)
    before = pace.seconds_ahead(standing(steps=0, total=100))
    for _ in range(200):
        pace.saw_step(64, 2.0)
    assert pace.seconds_ahead(standing(steps=0, total=100)) == pytest.approx(2 * before, rel=1e-4)


def test_a_size_that_nobody_timed_says_nothing_of_the_machine(stopped):
    pace = paced(left=100.0, seconds={})
    pace.saw_step(64, 5.0)
    assert (pace.slowness, pace.deadline) == (1.0, NOW + 100)
