"""Fewer images where a machine becomes slower after it was timed (P6): which, how many, told, and the same again after a death."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from burnish import api
from burnish.choose import survey
from burnish.choose.gathering import Done
from burnish.choose.part import Costs, Fewer
from burnish.data.looks import Dataset, look_at
from burnish.data.sample import Part, Taken
from burnish.data.sources import open_source
from burnish.data.split import make_splits
from burnish.run import job, probed
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


def asked(taken, done, *, elapsed, left, watcher=None):
    """What is still taken so many seconds after the costs were known, with so many left."""
    clock = SimpleNamespace(elapsed=lambda: elapsed, left=lambda: left, budget_seconds=elapsed + left)
    fewer = Fewer(
        costs=COSTS, trains=False, first_is_saved=False, clock=clock, watcher=watcher or Told(), since=0.0
    )  # fmt: skip
    return fewer(taken, done)


def test_a_machine_that_keeps_its_pace_takes_what_was_planned(whole):
    taken = Taken(whole, None, 0)
    assert asked(taken, Done(100, 100, 0), elapsed=2.0, left=4.5) is taken, "as long as planned, however little is left"
    assert asked(taken, Done(100, 100, 0), elapsed=1.0, left=4.5) is taken, "quicker"


@pytest.mark.parametrize(("left", "fitting"), [(20.0, None), (13.0, 152), (9.0, 100), (0.0, 100), (-5.0, 100)])
def test_of_a_slower_one_as_many_as_there_is_time_for(whole, left, fitting):
    """Twice as slow: 13 s are as good as 6.5 of those that were planned with; 4 are for the rest, 1.5 for 73 test images, and
    1 for 52 images to fit besides those that were looked at.
    """
    told, taken = Told(), Taken(whole, None, 0)
    found = asked(taken, Done(100, 100, 0), elapsed=4.0, left=left, watcher=told)
    if fitting is None:
        assert found is taken and not told.lines
        return
    assert abs(found.part.fitting - fitting) <= 3 and found.part.fitting >= 100, found.part
    assert set(found.dataset.catalog.paths) < set(whole.catalog.paths)
    gone = len(whole.catalog) - len(found.dataset.catalog)
    assert told.lines == [
        f"{gone} more images are left out: all takes 2.0 times as long as when this machine was timed"
    ]


def test_images_that_the_network_has_told_of_are_never_left_out(whole):
    found = asked(Taken(whole, None, 0), Done(200, 200, 0), elapsed=400.0, left=1.0)
    assert found.part.fitting == 200 and len(found.dataset.splits.fitting) >= 200


def test_decoded_test_images_stay_for_time_that_may_be_left_over(whole):
    test = len(whole.splits.test)
    found = asked(Taken(whole, None, 0), Done(100, 288, test), elapsed=600.0, left=5.0)
    assert found.part.test + found.part.more == test and found.spare == found.part.more
    assert set(found.dataset.splits.test) and len(found.dataset.splits.test) == test
    assert len(found.dataset.splits.fitting) < len(whole.splits.fitting)


def test_a_part_becomes_a_smaller_part_of_the_same_images(whole):
    part = Taken(whole, Part(250, 40, 20), 0)
    found = asked(part, Done(100, 100, 0), elapsed=8.0, left=1.0)
    assert set(found.dataset.catalog.paths) < set(part.dataset.catalog.paths)


@pytest.fixture
def slow_to_decode(monkeypatch):
    """A machine that is said to decode so slowly that 60 s are not enough for all of `many`."""
    real = survey.sample_views
    monkeypatch.setattr(survey, "sample_views", lambda *args, **options: (real(*args, **options)[0], 10.0))


@pytest.fixture
def slower_since(monkeypatch):
    """As if much time had passed since the machine was timed."""
    monkeypatch.setattr(
        probed, "Fewer", lambda **options: Fewer(**{**options, "since": options["since"] - 1000.0})
    )  # fmt: skip


def test_a_run_that_becomes_slower_leaves_more_out_and_counts_them(many, slow_to_decode, slower_since, tmp_path):
    told = Told()
    run = api.fit(many, out=tmp_path / "run", budget=60, watcher=told, **TINY)
    counts, lines = run.facts["counts"], (run.folder / "splits.csv").read_text().splitlines()
    assert any("more images are left out" in line for line in told.lines), told.lines
    assert counts["used"] + counts["skipped"] == 360 and counts["used"] == len(lines) - 1
    first = next(line for line in told.lines if "images are left out: the budget" in line)
    assert counts["skipped"] > int(first.split()[0])
    assert min(row["train"] for row in run.facts["class_counts"]) >= 5


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
