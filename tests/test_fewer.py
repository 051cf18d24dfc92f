"""Fewer images where a machine becomes slower after it was timed (P6): which, how many, told, and the same again after a death."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from burnish import api
from burnish.choose import features, instalments, probing, survey
from burnish.choose.features import Seen
from burnish.choose.part import Costs, Done, Pace, settled_part
from burnish.data.looks import Dataset, look_at
from burnish.data.sample import Part, Taken, is_late
from burnish.data.sources import open_source
from burnish.data.split import make_splits
from burnish.run import job
from conftest import Told, write_shapes

TINY = {"model": "random:test_resnet", "method": "probe", "image_size": 64}
# Heads take next to nothing, an image to fit 0.02 s, a test image as long.
COSTS = Costs(
    decoding=0.01,
    comparing=0.0,
    flop=1e-15,
    classes=3,
    last=8,
    all=8,
    flat=None,
    proves=True,
    seeing=0.01,
    scoring=0.01,
)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """120 images of each of three classes."""
    root = tmp_path_factory.mktemp("data") / "many"
    write_shapes(root, images=120)
    return root


@pytest.fixture(scope="module")
def whole(many):
    catalog = open_source(many)
    looks = look_at(catalog, np.arange(len(catalog)), workers=1)
    return Dataset(catalog, make_splits(catalog, seed=0, content=looks.digests), looks)


class Clock:
    """Says what it is told to."""

    def __init__(self, budget_seconds):
        self.now, self.budget_seconds = 0.0, budget_seconds

    def elapsed(self):
        return self.now

    def left(self):
        return self.budget_seconds - self.now


def pace_after(*took, budget=1000.0, thins=True):
    """The pace after things that each were to take and took so many seconds."""
    clock = Clock(budget)
    pace = Pace(replace(COSTS, training=math.inf), clock, thins=thins)
    for planned, seconds in took:
        clock.now += seconds
        pace.took(planned)
    return pace


def leaving(pace, seconds):
    """So many seconds are left of the budget."""
    pace.clock.budget_seconds = pace.clock.now + seconds
    return pace


def test_the_pace_is_that_of_the_last_tenth_of_the_budget():
    assert pace_after().slower == 1.0, "nothing is known yet"
    assert pace_after((10.0, 10.0), (10.0, 40.0), budget=100.0).slower == 4.0
    assert pace_after((10.0, 40.0), (10.0, 10.0), budget=100.0).slower == 1.0, "what made it slow has ended"
    assert pace_after((4.0, 4.0), (4.0, 8.0), budget=100.0).slower == 1.5, "what was begun before the last tenth counts"


def test_what_comes_after_the_heads_takes_as_much_longer_as_all_of_late():
    assert pace_after((2.0, 2.2)).tail_seconds == 0.0
    assert pace_after((2.0, 6.0)).tail_seconds == 8.0


def test_a_machine_that_keeps_its_pace_takes_what_was_planned(whole):
    taken = Taken(whole, None, 0)
    pace = leaving(pace_after((2.0, 2.2)), 0.1)
    assert pace.to_fit(taken, Done(280, 0, False)) == len(whole.splits.fitting), "however little is left"
    done = Done(len(whole.splits.fitting), len(whole.splits.test), True)
    assert pace.settled(taken, done) is taken


@pytest.mark.parametrize(("left", "fitting"), [(20.0, None), (13.0, 152), (9.0, 100), (0.0, 100), (-5.0, 100)])
def test_of_a_slower_one_as_many_as_there_is_time_for(whole, left, fitting):
    """Twice as slow: 13 s are as good as 6.5 of those that were planned with; 4 are for the rest, 1.5 for 73 test images, and
    1 for 52 images to fit besides those that were looked at.
    """
    taken, pace = Taken(whole, None, 0), leaving(pace_after((2.0, 4.0)), left)
    pace._round = 100.0  # seconds: one is enough
    looked = pace.to_fit(taken, Done(100, 0, True))
    assert abs(looked - (fitting or len(whole.splits.fitting))) <= 3 and looked >= 100
    found = pace.settled(taken, Done(looked, len(whole.splits.test), True))
    assert (found is taken) == (fitting is None)
    assert fitting is None or set(found.dataset.catalog.paths) < set(whole.catalog.paths)
    assert len(found.dataset.splits.fitting) == looked


def test_images_come_in_rounds_that_are_smaller_on_a_slower_machine(whole):
    taken = Taken(whole, None, 0)
    planned, slow = (pace_after((2.0, seconds), budget=60.0) for seconds in (2.0, 4.0))
    assert planned.to_fit(taken, Done(16, 0, False)) == 16 + 112, "2.4 s of 0.02 s each, in sixteens"
    assert slow.to_fit(taken, Done(16, 0, False)) == 16 + 48
    assert planned.to_fit(taken, Done(144, 0, False)) == len(whole.splits.fitting), "and what would be half a round"


def test_nothing_is_left_out_before_its_turn_comes(whole):
    """A machine that was slow for a while takes all, where a slow one would have ended."""
    taken, pace = Taken(whole, None, 0), leaving(pace_after((2.0, 10.0)), 18.0)
    assert pace.to_fit(taken, Done(100, 0, True)) == 100, "18 s are 3.6 at that pace"
    pace = leaving(pace_after((2.0, 10.0), (0.1, 200.0), (101.0, 101.0)), 18.0)
    assert pace.to_fit(taken, Done(100, 0, True)) == len(whole.splits.fitting)


def test_where_none_may_be_left_out_all_are_taken(whole):
    taken, pace = Taken(whole, None, 0), leaving(pace_after((2.0, 40.0), thins=False), -5.0)
    pace._round = 100.0
    assert pace.to_fit(taken, Done(100, 0, True)) == len(whole.splits.fitting)
    assert pace.to_test(taken, Done(100, 0, True)) == len(whole.splits.test)


def test_without_a_budget_nothing_depends_on_the_clock(whole):
    taken, pace = Taken(whole, None, 0), pace_after((2.0, 2000.0))
    pace.clock.budget_seconds = None
    assert pace.to_fit(taken, Done(0, 0, False)) == len(whole.splits.fitting)
    assert pace.to_test(taken, Done(0, 0, False)) == len(whole.splits.test)
    assert not pace.first_is_due(taken, Done(100, 0, False))
    assert pace.settled(taken, Done(len(whole.splits.fitting), len(whole.splits.test), False)) is taken


def test_a_few_of_each_class_are_taken_even_where_there_is_no_time(whole):
    taken, pace = Taken(whole, None, 0), leaving(pace_after((2.0, 400.0)), 50.0)
    order = taken.order
    assert (order.first, order.least) == (12, 21)
    assert pace.to_fit(taken, Done(0, 0, False)) >= order.first
    assert pace.to_fit(taken, Done(16, 0, False)) == order.least
    assert pace.to_fit(taken, Done(order.least, 0, False)) == order.least


def test_what_a_first_model_needs_is_enough_where_more_would_take_over_a_twentieth_of_the_budget(whole):
    """Nine more images take 36 s at that pace, of 450: 1,000 classes were 98 s late by theirs, in a budget of a minute."""
    taken, pace = Taken(whole, None, 0), leaving(pace_after((2.0, 400.0)), 50.0)
    assert pace.to_fit(taken, Done(12, 0, True)) == taken.order.first
    found = pace.settled(taken, Done(12, 20, True))
    assert found.part.few and set(found.order.fitting) == set(taken.order.fitting[:12])
    assert len(found.dataset.splits.train) == 9 and len(found.dataset.splits.val) == 3


@pytest.mark.parametrize(("classes", "few"), [(10, False), (5000, True)])
def test_of_many_classes_the_plan_takes_no_more_than_a_first_model_needs(classes, few):
    """20 s are left of 60: 35,000 images would take 350 s, 20,000 of them 200; 70 take less than a twentieth of the budget."""
    clock, costs = Clock(60.0), replace(COSTS, classes=classes, decoding=0.005, seeing=0.005)
    clock.now = 40.0 if classes > 10 else 60.0
    part = settled_part(clock, costs, 100 * classes, 1000)
    assert is_late(part, classes) and part.few == few


@pytest.mark.parametrize(("left", "taps", "asked"), [(4.0, "auto", False), (6.0, "auto", True), (4.0, "on", True)])
def test_heads_on_all_depths_are_left_out_where_a_run_would_end_far_too_late_for_them(left, taps, asked, monkeypatch):
    """They and those on the last layer are planned to take 10 s."""
    told, deep = Told(), SimpleNamespace(changes=({},), plain="the last layer")
    surveyed = SimpleNamespace(backbone=deep, costs=SimpleNamespace(both_heads=lambda images: 10.0))
    bench = SimpleNamespace(deep=False, recipe=SimpleNamespace(taps=taps), watcher=told)
    monkeypatch.setattr(probing, "settle_where", lambda backbone, *rest: (backbone, "asked"))
    found = probing._with_depths(surveyed, np.zeros((3, 2)), None, bench, seconds_left=left)
    assert found == ((deep, "asked") if asked else ("the last layer", None))
    assert any("heads on all depths" in line for line in told.lines) != asked


@pytest.mark.parametrize(
    ("left", "rate", "heads", "seconds"),
    [
        (300.0, 100.0, 1.0, 300.0 - 20.6),  # all of what a proof on all of 1,500 images leaves
        (20.0, 100.0, 1.0, 3.0),  # where that is less than nothing, 15 % of what is left
        (20.0, 50.0, 1.0, 20.0 - 20.6),  # or what a proof on half of them leaves, which is made in any case
        (20.0, 100.0, 6.0, 6.0),  # as much as the quickest ones take
        (20.0, 100.0, 8.0, 20.0 - 12.9),
    ],
)
def test_test_images_give_way_to_heads(left, rate, heads, seconds):
    """Of signs in 30 s a slow moment's rate once left heads on all depths out: 90.8 instead of 98.4 % (LOG.md)."""
    material = SimpleNamespace(due=1500, catalog=SimpleNamespace(classes=range(10)), several=False)
    surveyed = SimpleNamespace(costs=SimpleNamespace(both_heads=lambda images: heads))
    bench = SimpleNamespace(clock=SimpleNamespace(budget_seconds=60.0, left=lambda: left + 1.0))
    seen = Seen(np.zeros((3, 2), np.float32), (), rate)
    found = probing._for_heads(material, seen, surveyed, bench, tail_seconds=1.0)
    assert found == pytest.approx(seconds, abs=0.1)


def test_decoded_test_images_stay_for_time_that_may_be_left_over(whole):
    test, pace = len(whole.splits.test), leaving(pace_after((6.0, 600.0)), 5.0)
    found = pace.settled(Taken(whole, None, 0), Done(100, test, True))
    assert found.part.test + found.part.more == test and found.spare == found.part.more
    assert len(found.dataset.splits.test) == test and len(found.dataset.splits.fitting) == 100


def test_test_images_are_no_more_than_there_is_time_to_look_at(whole):
    """3 s at a fourth of the pace are none, but some are looked at whatever they take."""
    taken, pace = Taken(whole, None, 0), leaving(pace_after((6.0, 24.0)), 3.0)
    count = pace.to_test(taken, Done(100, 0, True))
    assert 0 < count <= len(whole.splits.test)
    assert pace.to_test(taken, Done(100, len(whole.splits.test), True)) == len(whole.splits.test)


def test_a_part_becomes_a_smaller_part_of_the_same_images(whole):
    part, pace = Taken(whole, Part(250, 40, 20), 0), leaving(pace_after((2.0, 8.0)), 1.0)
    looked = pace.to_fit(part, Done(100, 0, True))
    found = pace.settled(part, Done(looked, 40, True))
    assert looked == 100 and set(found.dataset.catalog.paths) < set(part.dataset.catalog.paths)


@pytest.mark.parametrize("part", [None, Part(250, 40, 20), Part(60, 40)])
def test_a_beginning_of_the_order_is_a_smaller_part(whole, part):
    taken = Taken(whole, part, 0)
    assert sorted(taken.order.fitting) == sorted(
        np.flatnonzero(np.isin(whole.catalog.paths, paths_of(taken, "fitting")))
    )
    assert sorted(taken.order.test) == sorted(np.flatnonzero(np.isin(whole.catalog.paths, paths_of(taken, "test"))))
    for count in (taken.order.least, 40, 60):
        smaller = Taken(whole, Part(count, 30), 0)
        assert set(smaller.order.fitting) == set(taken.order.fitting[:count])
        assert set(smaller.order.test) == set(taken.order.test[:30])
    train = np.intersect1d(taken.order.fitting[: taken.order.first], whole.splits.train)
    assert np.bincount(whole.catalog.labels[train]).tolist() == [3, 3, 3]


def paths_of(taken, name):
    dataset = taken.dataset
    return [dataset.catalog.paths[entry] for entry in getattr(dataset.splits, name)]


def test_a_first_model_is_due_when_one_more_round_would_make_it_late(whole):
    """A round of 2.4 s and a second for saving, 1.4 times that: it is due half a minute after the beginning."""
    taken, done = Taken(whole, None, 0), Done(16, 0, False)
    for now, due in ((25.0, False), (26.0, True)):
        pace = pace_after((now, now), budget=60.0)
        assert pace.first_is_due(taken, done) == due
    assert pace_after((12.5, 25.0), budget=60.0).first_is_due(taken, done), "slower"


@pytest.fixture
def slow_to_decode(monkeypatch):
    """A machine that is said to decode so slowly that 60 s are not enough for all of `many`."""
    real = survey.sample_views
    monkeypatch.setattr(survey, "sample_views", lambda *args, **options: (real(*args, **options)[0], 10.0))


@pytest.fixture
def slower_since(monkeypatch):
    """As if much time had passed since the machine was timed."""
    monkeypatch.setattr(Pace, "slower", 1000.0)


def test_a_run_that_becomes_slower_leaves_more_out_and_counts_them(many, slow_to_decode, slower_since, tmp_path):
    told = Told()
    run = api.fit(many, out=tmp_path / "run", budget=60, watcher=told, **TINY)
    counts, lines = run.facts["counts"], (run.folder / "splits.csv").read_text().splitlines()
    assert any("more images are left out" in line for line in told.lines), told.lines
    assert counts["used"] + counts["skipped"] == 360 and counts["used"] == len(lines) - 1
    first = next(line for line in told.lines if "images are left out: the budget" in line)
    assert counts["skipped"] > int(first.split()[0])
    assert min(row["train"] for row in run.facts["class_counts"]) >= 3


def test_what_was_looked_at_before_it_became_slower_is_what_the_run_takes(many, slow_to_decode, monkeypatch, tmp_path):
    """Rounds of sixteen images, and the machine is slow after three of them: no feature is made in vain, or twice."""
    asked = []

    def seen(pixels, *rest, found=instalments.features_of):
        asked.append(len(pixels.ids))
        return found(pixels, *rest)

    monkeypatch.setattr(Pace, "slower", property(lambda pace: 1.0 if len(pace._marks) < 4 else 1000.0))
    monkeypatch.setattr(instalments, "features_of", seen)
    monkeypatch.setattr(features, "features_of", lambda *_: pytest.fail("features were made again"))
    run = api.fit(many, out=tmp_path / "run", budget=60, **TINY)
    counts = run.facts["counts"]
    assert len(asked) == 3 and sum(asked) == counts["train"] + counts["val"] == 48


def test_a_death_after_that_goes_on_with_the_same_images(many, slow_to_decode, slower_since, monkeypatch, tmp_path):
    class Died(Exception):
        pass

    def die(*args):
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(job, "choose", die)
        with pytest.raises(Died):
            api.fit(many, out=tmp_path / "run", budget=60, **TINY)
    splits = (tmp_path / "run" / "splits.csv").read_text()
    monkeypatch.setattr(survey, "sample_views", None)  # nothing is timed again
    again = api.fit(many, out=tmp_path / "run", budget=60, **TINY)
    assert again.facts["sittings"] == 2
    assert (tmp_path / "run" / "splits.csv").read_text() == splits
    assert json.loads((tmp_path / "run" / "result.json").read_text())["counts"]["skipped"] > 0


def test_the_other_models_of_a_race_see_what_the_first_had_time_for(many, monkeypatch, tmp_path):
    real = survey.sample_views
    monkeypatch.setattr(survey, "sample_views", lambda *args, **options: (real(*args, **options)[0], 30.0))
    monkeypatch.setattr(Pace, "slower", property(lambda pace: 1.0 if len(pace._marks) < 3 else 1000.0))
    models = ["random:test_resnet", "random:test_efficientnet"]
    facts = api.compare(many, models=models, methods=["probe"], out=tmp_path / "race", budget=60, image_size=64)
    assert facts["counts"]["train"] + facts["counts"]["val"] == 32 and sum(facts["counts"].values()) == 360
    files = [path.read_text() for path in sorted((tmp_path / "race" / "models").glob("*/splits.csv"))]
    assert len(files) == 2 and files[0] == files[1]
