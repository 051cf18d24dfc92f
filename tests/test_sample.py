"""A part of the images where the budget has no time for all: an even one, the same one again, and told."""

from __future__ import annotations

import json
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from burnish import api
from burnish.backbones.zoo import load_backbone
from burnish.choose import gathering, holdout, instalments, survey
from burnish.choose.part import Pace, most_within, part_for
from burnish.data import looks as looking
from burnish.data.cache import read_pixels
from burnish.data.looks import Dataset, look_at
from burnish.data.sample import Part, some_of, thinned
from burnish.data.sources import open_source
from burnish.data.split import make_splits
from burnish.data.store import PixelStore
from burnish.recipe import Recipe
from burnish.run import job
from burnish.run.race import frozen
from burnish.runtime import Nobody
from burnish.terms import Preprocess
from conftest import write_shapes

TINY = {"model": "random:test_resnet", "method": "probe", "image_size": 64}


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """120 images of each of three classes."""
    root = tmp_path_factory.mktemp("data") / "many"
    write_shapes(root, images=120)
    return root


@pytest.fixture
def slow_to_decode(monkeypatch):
    """A machine that decodes so slowly that 60 s are not enough for all of `many`."""
    real = survey.sample_views
    monkeypatch.setattr(survey, "sample_views", lambda *args, **options: (real(*args, **options)[0], 10.0))


def split(catalog, **options):
    looks = look_at(catalog, np.arange(len(catalog)), workers=2)
    return Dataset(catalog, make_splits(catalog, seed=0, content=looks.digests, **options), looks)


def of_classes(catalog, rows):
    return np.bincount(catalog.labels[rows], minlength=len(catalog.classes))


def test_a_part_is_even_and_a_smaller_one_lies_within_a_larger(many):
    whole = split(open_source(many))
    small, large = (thinned(whole, Part(count, 40), seed=0) for count in (120, 240))
    for catalog, splits, looks in (small, large):
        assert len(catalog) == len(looks.digests) == len(looks.headers)
        for word in ("train", "val", "test"):
            held, before = (
                of_classes(*one) for one in ((catalog, getattr(splits, word)), (whole[0], getattr(whole[1], word)))
            )
            assert np.abs(held / before - held.sum() / before.sum()).max() <= 1.5 / before.min(), (word, held)
    assert set(small[0].paths) < set(large[0].paths) < set(whole[0].paths)
    assert small[0].skipped == 360 - len(small[0])
    assert abs(len(small[1].train) + len(small[1].val) - 120) <= 3 and abs(len(small[1].test) - 40) <= 3


def test_every_image_stays_on_its_side(many):
    dataset = split(open_source(many))
    whole, splits, looks = dataset
    side = {whole.paths[row]: word for word in ("train", "val", "test") for row in getattr(splits, word)}
    left, fewer, seen = thinned(dataset, Part(100, 30), seed=3)
    for word in ("train", "val", "test"):
        assert {side[left.paths[row]] for row in getattr(fewer, word)} == {word}
    digest = dict(zip(whole.paths, looks.digests, strict=True))
    assert [digest[path] for path in left.paths] == list(seen.digests)


def test_rare_classes_keep_a_few_images_however_small_the_part(tmp_path):
    write_shapes(tmp_path / "data", images=12, classes=("rare",))
    write_shapes(tmp_path / "data", images=300, classes=("common",))
    whole = split(open_source(tmp_path / "data"))
    catalog, splits, _ = thinned(whole, Part(1, 1), seed=0)
    rare = catalog.classes.index("rare")
    before = of_classes(whole[0], whole[1].train)[rare]
    assert of_classes(catalog, splits.train)[rare] == min(5, before) > 0
    assert len(splits.test) == 1, "each test image is equally likely, of whatever class"


def test_a_part_of_the_test_images_has_the_classes_in_their_shares(tmp_path):
    """A few of each of many rare classes would count for half of the images, which they are not."""
    for number in range(12):
        write_shapes(tmp_path / "data", images=5, classes=(f"rare{number:02d}",))
    write_shapes(tmp_path / "data", images=600, classes=("common",))
    whole = split(open_source(tmp_path / "data"))
    common = whole[0].classes.index("common")
    before = of_classes(whole[0], whole[1].test)[common] / len(whole[1].test)
    catalog, splits, _ = thinned(whole, Part(100, 40), seed=0)
    assert len(splits.test) == 40
    assert abs(of_classes(catalog, splits.test)[common] / 40 - before) < 0.1


def test_no_part_changes_nothing(many):
    whole = split(open_source(many))
    assert thinned(whole, None, seed=0) == whole
    assert some_of(whole[0], 360, seed=0) is whole[0]


def test_images_with_several_classes_and_of_none_can_be_drawn(tmp_path):
    write_shapes(tmp_path / "data", images=60, classes=("a", "b"))
    rows = [
        f"data/{name}/{number:03d}.png,{label}" for name, label in (("a", "x"), ("b", "x|y")) for number in range(60)
    ]
    (tmp_path / "several.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    catalog = open_source(tmp_path / "several.csv")
    fewer = some_of(catalog, 40, seed=0)
    assert len(fewer) == 40 and fewer.several and fewer.labels.sum(0).min() >= 8


def test_of_a_table_that_names_its_splits_an_even_part_of_each_is_drawn(tmp_path):
    """On a slow disk not all files can be looked at; this was a KeyError for whoever gives test images."""
    write_shapes(tmp_path / "data", images=100, classes=("a", "b"))
    words = ["train"] * 30 + ["val"] * 10 + ["test"] * 60
    rows = [f"data/{name}/{at:03d}.png,{name},{word}" for name in "ab" for at, word in enumerate(words)]
    (tmp_path / "given.csv").write_text("path,label,split\n" + "\n".join(rows) + "\n")
    catalog = open_source(tmp_path / "given.csv")
    fewer = some_of(catalog, 100, seed=0)
    held = {word: sum(one == word for one in fewer.splits) for word in ("train", "val", "test")}
    assert held["test"] == 60 and 28 <= held["train"] <= 32 and 8 <= held["val"] <= 12
    assert fewer.skipped == 100 and fewer.classes == catalog.classes
    assert sum(word == "test" for word in some_of(catalog, 20, seed=0).splits) == 30, "so few would prove nothing"
    drawn = [some_of(catalog, 100, seed=seed).paths for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_run_of_a_folder_with_splits_that_cannot_be_looked_at_in_time_goes_on(tmp_path, monkeypatch):
    for word, images in (("train", 30), ("test", 25)):
        write_shapes(tmp_path / "data" / word, images=images, classes=("a", "b"))
    monkeypatch.setattr(holdout, "_looked_at_in_time", lambda catalog, budget: 80)
    result = api.fit(tmp_path / "data", out=tmp_path / "run", cache="off", budget="1m", **TINY)
    counts = result.facts["counts"]
    assert counts["skipped"] == 30 and counts["test"] == 36, counts


@pytest.mark.parametrize("seconds", [-5.0, 0.0, 1.0, 10.0, 1e9])
def test_the_part_is_the_largest_that_fits(seconds):
    def fitted(n):
        return 0.01 * n

    part = part_for(1000, 500, seconds, fitted, 0.005, training=0.0) or Part(1000, 500)
    assert 1 <= part.fitting <= 1000 and 100 <= part.test <= 500
    spent = fitted(part.fitting) + 0.005 * part.test
    assert spent <= max(seconds, fitted(1) + 0.5 + 1e-9)
    if seconds > 2 and part.fitting < 1000:
        assert spent + 0.01 > seconds


@pytest.mark.parametrize(("seconds", "part"), [(9.4, Part(935, 500)), (9.7, None)])
def test_all_images_are_taken_where_there_is_time_for_nearly_all(seconds, part):
    """How long they take is guessed from a few of them: a run was 4 s early with 30 of 2,062 left out."""
    assert part_for(1000, 500, seconds, lambda n: 0.01 * n, 0.0001, training=0.0) == part


@pytest.mark.parametrize(("training", "tests"), [(0.0, 1000), (18.9, 1000), (19.1, 2900), (math.inf, 2900)])
def test_test_images_get_what_fitting_leaves_and_training_has_no_use_for(training, tests):
    """Of hand signs in 30 s 400 of 1,562 were tested so that half an epoch could be made, which lost 16 points (LOG.md)."""
    assert part_for(100, 5000, 30.0, lambda n: 0.01 * n, 0.01, training=training) == Part(100, tests)


def test_a_run_that_has_no_time_for_all_images_says_which_it_used(many, slow_to_decode, tmp_path):
    run = api.fit(many, out=tmp_path / "run", budget=60, **TINY)
    counts = run.facts["counts"]
    assert counts["skipped"] > 0 and counts["used"] + counts["skipped"] == 360
    assert counts["used"] == counts["train"] + counts["val"] + counts["test"] == counts["scanned"]
    assert min(row["train"] for row in run.facts["class_counts"]) >= 8
    told = next(one for one in run.facts["decisions"] if one["what"] == "a part of the images")
    assert told["numbers"] == {"used": counts["used"], "skipped": counts["skipped"]}
    assert f"{counts['skipped']} more were left out" in (tmp_path / "run" / "report.html").read_text()
    assert len((tmp_path / "run" / "splits.csv").read_text().splitlines()) == counts["used"] + 1


@pytest.mark.parametrize(("budget", "late"), [(8, True), (60, False)])
def test_a_budget_too_short_for_a_few_images_a_class_is_said_beforehand(budget, late, many, slow_to_decode, tmp_path):
    heard = Listening()
    api.fit(many, out=tmp_path / "run", budget=budget, watcher=heard, **TINY)
    said = [at for at, line in enumerate(heard.said) if "the run will end late" in line]
    assert len(said) == late and all(at < heard.said.index("probe: None") for at in said)


def test_without_a_budget_all_images_are_used(many, slow_to_decode, tmp_path):
    run = api.fit(many, out=tmp_path / "run", budget=None, **TINY)
    assert run.facts["counts"]["skipped"] == 0 and run.facts["counts"]["used"] == 360


def test_more_files_than_can_be_looked_at_in_time_are_a_part(many, monkeypatch, tmp_path):
    monkeypatch.setattr(holdout, "_looked_at_in_time", lambda catalog, budget: 150)
    run = api.fit(many, out=tmp_path / "run", budget=300, **TINY)
    assert run.facts["counts"]["used"] == 150 and run.facts["counts"]["skipped"] == 210


def test_several_trainings_look_at_images_for_the_time_of_one(monkeypatch, images):
    asked = []
    monkeypatch.setattr(
        holdout, "_looked_at_in_time", lambda catalog, seconds: (asked.append(seconds), len(catalog))[1]
    )
    for count in (1, 5):
        holdout.first_splits(open_source(images), Recipe(budget_seconds=100.0, seeds=count), Nobody())
    holdout.first_splits(open_source(images), Recipe(budget_seconds=None, seeds=5), Nobody())
    assert asked == [100.0, 20.0, None]


def test_a_run_taken_up_again_goes_on_with_the_same_part(many, slow_to_decode, monkeypatch, tmp_path):
    class Died(Exception):
        pass

    def die(*args):
        raise Died

    whole = api.fit(many, out=tmp_path / "whole", budget=60, **TINY)
    with monkeypatch.context() as patch:
        patch.setattr(job, "choose", die)
        with pytest.raises(Died):
            api.fit(many, out=tmp_path / "run", budget=60, **TINY)
    monkeypatch.setattr(survey, "sample_views", None)  # nothing is timed again
    monkeypatch.setattr(holdout, "_looked_at_in_time", None)
    splits = (tmp_path / "run" / "splits.csv").read_text()
    again = api.fit(many, out=tmp_path / "run", budget=60, **TINY)
    assert again.facts["sittings"] == 2
    assert (tmp_path / "run" / "splits.csv").read_text() == splits
    assert again.facts["counts"]["used"] == len(splits.splitlines()) - 1
    assert json.loads((tmp_path / "run" / "result.json").read_text())["counts"]["skipped"] > 0
    assert whole.facts["counts"]["skipped"] > 0


def test_other_seeds_train_on_the_same_part(many, slow_to_decode, tmp_path):
    run = api.fit(many, out=tmp_path / "run", budget=60, seeds=2, **TINY)
    assert run.facts["counts"]["skipped"] > 0 and len(run.facts["seeds"]["runs"]) == 2
    first = (run.folder / "splits.csv").read_text()
    (other,) = (run.folder / "seeds").iterdir()
    assert (other / "splits.csv").read_text() == first
    assert json.loads((other / "result.json").read_text())["counts"] == run.facts["counts"]


def test_all_models_of_a_race_see_the_same_part(many, slow_to_decode, tmp_path):
    models = ["random:test_resnet", "random:test_efficientnet"]
    facts = api.compare(many, models=models, methods=["probe"], out=tmp_path / "race", budget=60, image_size=64)
    assert facts["counts"]["skipped"] > 0 and sum(facts["counts"].values()) == 360
    assert [one["what"] for one in facts["decisions"]].count("a part of the images") == 1
    files = [path.read_text() for path in sorted((tmp_path / "race" / "models").glob("*/splits.csv"))]
    assert len(files) == 2 and files[0] == files[1]
    assert sum(row["test"] is not None for row in facts["rows"]) == 2


def test_a_race_that_died_between_two_models_goes_on_with_the_same_part(many, slow_to_decode, monkeypatch, tmp_path):
    class Died(BaseException):
        pass

    asked = {
        "models": ["random:test_resnet", "random:test_efficientnet"], "methods": ["probe"], "out": tmp_path / "race",
        "budget": 60, "image_size": 64,
    }  # fmt: skip
    real, seen = frozen.look, []

    def once(*args, **options):
        if seen:
            raise Died
        seen.append(options["thins"])
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(frozen, "look", once)
        with pytest.raises(Died):
            api.compare(many, **asked)
    (first,) = (tmp_path / "race" / "models").glob("01-*/splits.csv")
    before = first.read_text()
    facts = api.compare(many, **asked)
    (second,) = (tmp_path / "race" / "models").glob("02-*/splits.csv")
    assert seen == [True] and first.read_text() == before == second.read_text()
    assert facts["counts"]["skipped"] == 360 - (len(before.splitlines()) - 1) > 0


def test_large_photographs_do_not_stretch_the_first_look(many):
    catalog = open_source(many)
    preprocess, rows = Preprocess(size=64), np.arange(len(catalog))
    few, rate = survey.sample_views(catalog, rows, preprocess, seconds=0.0)
    all_of_them, _ = survey.sample_views(catalog, rows, preprocess)
    assert len(few) == 12 < len(all_of_them) == 32 and rate > 0
    assert (few == all_of_them[:12]).all()
    fewer, _ = survey.sample_views(catalog, rows, preprocess, seconds=0.0, utmost=0.0)
    assert len(fewer) == 4 and (fewer == few[:4]).all(), "12 of 80 megapixels took 63 s of 30"


@pytest.mark.parametrize(
    ("naps", "budget", "taps", "slow"),
    [((0.2, 0.2), 1.0, "auto", True), ((0.2, 0.0), 1.0, "auto", False), ((0.2, 0.2), None, "auto", False),
     ((0.2, 0.2), 1.0, "on", False)],
)  # fmt: skip
def test_of_a_network_far_too_slow_for_the_budget_not_all_depths_are_looked_at(naps, budget, taps, slow):
    """A large transformer was looked at for over 330 s, of 30: two passes tell it; the first one may be slow in any network."""
    left = list(naps)
    bench = SimpleNamespace(
        clock=SimpleNamespace(budget_seconds=budget), deep=False, recipe=SimpleNamespace(taps=taps),
        device=torch.device("cpu"), backbone=SimpleNamespace(module=lambda images: time.sleep(left.pop(0))),
    )  # fmt: skip
    assert survey._is_far_too_slow(bench, torch.zeros(2, 3, 4, 4)) == slow


def test_the_most_that_fits_is_found_and_none_where_one_is_too_many():
    assert [most_within(seconds, 100, lambda n: 0.5 + 0.1 * n) for seconds in (-1.0, 0.55, 0.65, 5.5, 1e9)] == [
        0,
        0,
        1,
        50,
        100,
    ]


class Listening(Nobody):
    """Notes what a run says and which stages it enters."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)

    def stage(self, name, *, total=None, detail=""):
        self.said.append(f"{name}: {total}")


@pytest.fixture
def early(monkeypatch):
    """A machine on which 40 images can be seen until a first model is due."""
    monkeypatch.setattr(Pace, "to_fit", lambda _, taken, done: min(done.looked + 40, len(taken.order.fitting)))
    monkeypatch.setattr(Pace, "first_is_due", lambda *_: True)


def test_a_model_is_there_in_time_where_all_images_take_longer_and_what_follows_is_the_same(
    many, tmp_path, monkeypatch, early
):
    (many / "red" / "bad.png").write_bytes(b"no image")
    hears, runs = [Listening(), Listening()], []
    try:
        runs.append(api.fit(many, out=tmp_path / "part", budget=None, cache="off", watcher=hears[0], **TINY))
        monkeypatch.undo()
        monkeypatch.setattr(instalments, "_NEAR", -1.0)
        runs.append(api.fit(many, out=tmp_path / "whole", budget=None, cache="off", watcher=hears[1], **TINY))
    finally:
        (many / "red" / "bad.png").unlink()
    for heard in hears:
        assert "images, 64 px: 287" in heard.said and not any(line.startswith("features") for line in heard.said)
        assert sum(line.startswith("a first model is saved") for line in heard.said) == 1
    assert "images, 64 px: 247" in hears[0].said, "what is done after the first model is told again"
    part, whole = (run.facts for run in runs)
    assert part["first_model_seconds"] > 0 and whole["first_model_seconds"] > 0
    assert part["counts"] == whole["counts"] and part["scores"] == whole["scores"]


def test_pixels_that_are_kept_in_pieces_are_read_from_there_and_nothing_is_written_again(many, tmp_path, monkeypatch):
    catalog, splits, _ = split(open_source(many))
    ids = np.sort(np.concatenate([splits.train, splits.val]))
    store, preprocess = PixelStore(tmp_path / "cache"), load_backbone("random:test_resnet").preprocess

    def read(wanted, store):
        return read_pixels(catalog, wanted, preprocess=preprocess, stored_side=96, workers=2, store=store)

    read(ids[::3], store), read(np.setdiff1d(ids, ids[::3]), store)
    kept = sorted(path.name for path in (tmp_path / "cache").iterdir())
    expected = read(ids, None)
    monkeypatch.setattr("burnish.data.cache.read_all", lambda *_, **__: pytest.fail("an image was decoded again"))
    for rows in (ids, ids[5:50], ids[::7]):
        found, same = read(rows, store), expected.at(rows)
        assert found.content == same.content and (found.aspects == same.aspects).all()
        for name in ("plain", "stored", "thumbs"):
            np.testing.assert_array_equal(getattr(found, name)[:], getattr(same, name)[:])
            np.testing.assert_array_equal(getattr(found, name)[np.array([3, 1])], getattr(same, name)[np.array([3, 1])])
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == kept


def test_a_strict_run_saves_nothing_before_the_audit(many, tmp_path, early, monkeypatch):
    monkeypatch.setattr(instalments, "_NEAR", -1.0)
    heard, audited = Listening(), []
    found = gathering.audited
    monkeypatch.setattr(gathering, "audited", lambda *rest: audited.append(len(heard.said)) or found(*rest))
    api.fit(many, out=tmp_path / "run", budget=None, cache="off", strict=True, watcher=heard, **TINY)
    saved = [place for place, line in enumerate(heard.said) if line.startswith("a first model is saved")]
    assert len(saved) == 1 and saved[0] >= audited[0]


@pytest.mark.parametrize("soon", [0.0, 1e9])
def test_files_are_looked_at_alike_by_one_thread_and_by_several(many, monkeypatch, soon):
    catalog = open_source(many)
    ids = np.arange(len(catalog))[::-1]
    expected = look_at(catalog, ids, workers=1)
    monkeypatch.setattr(looking, "_SOON", soon)
    monkeypatch.setattr(looking, "_BLOCKS", 2)
    found = look_at(catalog, ids, workers=3)
    assert found.digests == expected.digests and (found.headers == expected.headers).all()
    assert len(set(found.digests)) == len(ids) and (found.headers["width"] > 0).all()


def test_what_a_file_takes_is_timed_both_ways_where_it_is_slow(many, monkeypatch):
    catalog, asked = open_source(many), []
    monkeypatch.setattr(looking, "_look", lambda catalog, index: (asked.append(index), time.sleep(0.01)))
    alone, together = (looking.seconds_a_file(catalog, np.arange(32), workers=workers) for workers in (1, 8))
    assert alone >= 0.01 > together > 0.001
    assert sorted(asked[16:]) == list(range(32))  # the first sixteen asked are of the first time


# ---- how much of an image is seen -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "fit", "seen"),
    [(100, 100, "crop", 0.25), (400, 100, "crop", 0.0625), (400, 100, "squash", 1.0)],
)
def test_how_much_of_an_image_the_network_sees(width, height, fit, seen):
    headers = np.zeros(3, looking.HEADER)
    headers["width"], headers["height"] = [width, width, 0], [height, height, 0]  # of the last nothing is known
    assert looking.share_seen(headers, Preprocess(crop=0.5, fit=fit)) == pytest.approx(seen)
    assert looking.share_seen(headers[2:], Preprocess()) == 1.0
