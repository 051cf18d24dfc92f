"""What of a long image the network sees: asked of the images, settled once, the same wherever the model is used."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from burnish import api
from burnish.backbones import zoo
from burnish.choose import asking, material
from burnish.choose.framing import Framing, framed, settle_framing
from burnish.choose.ledger import Ledger
from burnish.choose.material import Bench
from burnish.data.catalog import Splits
from burnish.data.looks import Dataset, look_at
from burnish.data.sources import open_source
from burnish.data.split import make_splits
from burnish.errors import RecipeError
from burnish.recipe import Recipe
from burnish.run.outset import backbone_for, framing_for
from burnish.runtime import Clock, Nobody
from burnish.ship.bundle import read_bundle
from burnish.train.around import pick_device

TINY = {"model": "random:test_resnet", "method": "probe", "image_size": 64}
COLOURS = {"red": 0, "green": 1, "blue": 2}


class Told(Nobody):
    """A watcher that keeps what is said, and which stages there were."""

    def __init__(self):
        self.lines, self.stages = [], []

    def say(self, text):
        self.lines.append(text)

    def stage(self, name, *, total=None, detail=""):
        self.stages.append(name)


def drawn(root, where, *, size=(160, 32), images=30):
    """Images of which only the ends are of the colour of their class, or only the middle, in stripes that squashing wipes out."""
    width, height = size
    for name, channel in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(images):
            pixels = np.random.default_rng([channel, number]).integers(0, 256, (height, width, 3), np.uint8)
            third = width // 3
            part = np.r_[0:third, width - third : width] if where == "ends" else np.r_[third : width - third]
            if where == "ends":
                pixels[:, part, channel] = 255
            else:
                pixels[:, part] = 255 * ((np.arange(len(part)) + number) // (channel + 1) % 2)[:, None]
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("framing") / "ends", "ends")


@pytest.fixture(scope="module")
def middle(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("framing") / "middle", "middle", size=(320, 32))


def benched(data, recipe, backbone, *, told=None, clock=None):
    """(the data set of a source or a catalogue, a bench)."""
    catalog = open_source(data) if not hasattr(data, "classes") else data
    looks = look_at(catalog, np.arange(len(catalog)), workers=2)
    splits = make_splits(catalog, seed=0, content=looks.digests)
    clock = clock or Clock.start(None, from_process_start=False)
    return Dataset(catalog, splits, looks), Bench(recipe, backbone, pick_device("cpu"), clock, told or Nobody())


def asked(data, *, told=None, budget=None, started=0.0, clock=None, **recipe):
    """(what `settle_framing` finds, the bench)."""
    if clock is None:
        clock = Clock.start(budget, from_process_start=False)
        clock = replace(clock, started=clock.started - started)
    backbone = zoo.load_backbone("random:test_resnet", image_size=64)
    dataset, bench = benched(data, Recipe(**{**TINY, **recipe}), backbone, told=told, clock=clock)
    return settle_framing(dataset, bench), bench


# ---- what is chosen ----------------------------------------------------------------------------------------------------


def test_where_the_ends_tell_the_classes_all_of_an_image_is_seen_and_the_package_keeps_that(ends, tmp_path):
    told = Told()
    result = api.fit(ends, out=tmp_path / "run", cache="off", budget="none", watcher=told, **TINY)
    first = result.facts["decisions"][0]
    assert first["what"] == "of a long image the network sees all of it, squashed to a square"
    assert first["numbers"]["whole"] < first["numbers"]["middle"] and first["numbers"]["n"] >= 64
    assert any(first["why"] in line for line in told.lines) and "framing" in told.stages
    assert read_bundle(tmp_path / "run").preprocess.fit == "squash"
    again = Recipe.from_toml((tmp_path / "run" / "recipe.toml").read_text())
    assert again.crop_mode == "squash", "settled, so that the same recipe does the same"
    images = sorted((ends / "green").glob("*.png"))[:10]
    answers = [one.label for one in result.predict(images)]
    assert answers.count("green") >= 9
    assert first["what"] in (tmp_path / "run" / "report.html").read_text()


def test_where_the_middle_tells_them_it_stays(middle, ends):
    found, bench = asked(middle)
    assert found.crop_mode == "center" and "its middle square" in found.decision.what
    assert framed(bench.backbone, found.crop_mode).preprocess == bench.backbone.preprocess
    other, _ = asked(ends)
    assert other.crop_mode == "squash"


@pytest.mark.parametrize("size", [(32, 32), (40, 30)])
def test_of_photographs_nothing_is_asked(size, tmp_path):
    told = Told()
    found, bench = asked(drawn(tmp_path / "data", "middle", size=size), told=told)
    assert found == Framing("center") and not told.stages and not told.lines
    assert framed(bench.backbone, "center") == bench.backbone


@pytest.mark.parametrize("mode", ["center", "squash"])
def test_what_the_recipe_says_is_not_asked(mode, ends):
    told = Told()
    found, bench = asked(ends, told=told, crop_mode=mode)
    assert found == Framing(mode) and not told.stages
    assert framed(bench.backbone, mode).preprocess.fit == {"center": "crop", "squash": "squash"}[mode]


def test_a_network_that_was_made_for_squashed_images_is_not_asked(ends, monkeypatch):
    real = zoo.load_backbone
    monkeypatch.setattr(zoo, "load_backbone", lambda *args, **options: framed(real(*args, **options), "squash"))
    told = Told()
    found, bench = asked(ends, told=told)
    assert found == Framing("squash") and not told.stages
    assert framed(bench.backbone, "center").preprocess.fit == "crop", "unless the recipe asks for the middle"


def test_a_word_that_is_none_of_them_is_refused():
    with pytest.raises(RecipeError, match=r'crop_mode is .*"auto", "center" or "squash"'):
        Recipe(crop_mode="pad")


# ---- where little can be asked ------------------------------------------------------------------------------------------


def test_without_time_to_ask_the_middle_stays_and_it_is_said(ends):
    told = Told()
    found, _ = asked(ends, told=told, budget=60.0, started=59.99)
    assert found == Framing("center")
    assert any("the network sees the middle square" in one and "--crop-mode squash" in one for one in told.lines)


@pytest.mark.parametrize(("budget", "mode"), [(30.0, "center"), (60.0, "squash"), (600.0, "squash")])
def test_images_are_asked_while_a_small_part_of_the_time_lasts_and_as_many_as_are_needed_longer(
    budget, mode, ends, monkeypatch
):
    """Of a network that takes 0.6 s for each batch, whatever its size: 2, 2, 4, 8, … images, twice each."""
    now, told = [0.0], Told()
    real = asking.outputs

    def slow(*args, **options):
        now[0] += 0.6
        return real(*args, **options)

    clock = SimpleNamespace(budget_seconds=budget, elapsed=lambda: now[0], left=lambda: budget - now[0])
    monkeypatch.setattr(asking, "outputs", slow)
    monkeypatch.setattr(asking, "least_seconds", lambda *_, **__: 0.0)
    found, _ = asked(ends, told=told, clock=clock)
    assert found.crop_mode == mode and now[0] >= 1.2
    assert now[0] <= 0.08 * budget or (
        now[0] <= 0.2 * budget and (found.decision is None or found.decision.numbers["n"] <= 64)
    )
    assert any("there is no time to ask" in one for one in told.lines) == (mode == "center")


def test_what_the_heads_will_take_is_kept_back(ends, monkeypatch):
    monkeypatch.setattr(asking, "least_seconds", lambda *_, **__: 1e6)
    assert asked(ends, budget=600.0)[0] == Framing("center")


def test_where_no_image_can_be_left_out_nothing_is_told_of_a_cross_validation(ends):
    """Each class is one group, as one patient or one film: there is time, and nothing to ask."""
    lines = ["path,label,group"]
    for path in sorted(ends.rglob("*.png")):
        lines.append(f"{path.relative_to(ends.parent)},{path.parent.name},{path.parent.name}")
    table = ends.parent / "grouped.csv"
    table.write_text("\n".join(lines))
    catalog = open_source(table)
    looks = look_at(catalog, np.arange(len(catalog)), workers=2)
    train, val, test = (np.arange(len(catalog))[part] for part in (np.s_[::2], np.s_[1::4], np.s_[3::4]))
    splits = Splits(train, val, test, "by hand", "")
    told = Told()
    _, bench = asked(ends, told=told)
    told.lines.clear()
    assert settle_framing(Dataset(catalog, splits, looks), bench) == Framing("center")
    assert len(told.lines) == 1 and "there are too few images to ask" in told.lines[0]


def test_pillow_speaks_again_afterwards(ends):
    before = logging.getLogger("PIL").level, list(warnings.filters)
    asked(ends)
    assert (logging.getLogger("PIL").level, list(warnings.filters)) == before


def test_files_that_cannot_be_read_are_passed_over_here(ends, tmp_path):
    root = drawn(tmp_path / "data", "ends")
    for number in range(0, 30, 3):
        path = root / "red" / f"{number}.png"
        path.write_bytes(path.read_bytes()[:60])
    found, _ = asked(root)
    assert found.crop_mode == "squash"


def test_classes_of_one_image_and_several_classes_an_image(ends):
    paths = sorted(ends.rglob("*.png"))
    lone, several = ["path,label,split"], ["path,label"]
    for at, path in enumerate(paths):
        name, word = path.relative_to(ends.parent), path.parent.name
        lone.append(
            f"{name},{word},{'test' if at % 5 == 0 else 'train'}" if at % 30 != 7 else f"{name},lone {at},train"
        )
        several.append(f"{name},{word + ('|odd' if at % 2 else '')}")
    (ends.parent / "lone.csv").write_text("\n".join(lone))
    (ends.parent / "several.csv").write_text("\n".join(several))
    found, _ = asked(ends.parent / "lone.csv")
    assert found.crop_mode == "squash" and found.decision.numbers["n"] == len(paths) - 18 - 3
    catalog = open_source(ends.parent / "several.csv")
    assert catalog.several
    assert asked(catalog)[0].crop_mode == "squash"


def test_weights_that_give_no_numbers_are_left_to_those_who_refuse_them(ends, monkeypatch):
    monkeypatch.setattr(asking, "outputs", lambda trunk, images, **_: np.full((len(images[0]), 8), np.nan, np.float32))
    told = Told()
    assert asked(ends, told=told)[0] == Framing("center") and not told.lines


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.array([0, 1, 2]), 0),  # one image each
        (np.array([0, 0, 5]), 0),  # one class is left
        (np.array([4, 4, 9, 9, 2]), 2),
        (np.array([[True, False], [True, False]]), 0),  # every image has the one, none the other
        (np.array([[True, False], [False, False]]), 1),
    ],
)
def test_what_can_be_compared(labels, classes):
    rows, told, found = asking._comparable(labels)
    assert found == classes and len(told) == len(rows)
    assert told.ndim == 2 or not classes or set(told.tolist()) == set(range(classes))


# ---- once, and everywhere -------------------------------------------------------------------------------------------------


def test_a_run_that_is_taken_up_does_not_ask_again(ends, tmp_path, monkeypatch):
    catalog = open_source(ends)
    looks = look_at(catalog, np.arange(len(catalog)), workers=2)
    splits = make_splits(catalog, seed=0, content=looks.digests)
    _, bench = asked(ends)
    ledger = Ledger(tmp_path, bench.clock, Nobody())
    first, told = framing_for(Dataset(catalog, splits, looks), bench, ledger)
    ledger.write()
    monkeypatch.setattr("burnish.run.outset.settle_framing", None)
    again, told_again = framing_for(Dataset(catalog, splits, looks), bench, Ledger(tmp_path, bench.clock, Nobody()))
    assert first.recipe.crop_mode == again.recipe.crop_mode == "squash" and told == told_again
    assert again.backbone.preprocess.fit == "squash"


def test_further_seeds_and_a_network_to_be_chosen_see_what_the_first_sees(ends, tmp_path, monkeypatch):
    modes = []
    monkeypatch.setattr(
        "burnish.run.outset.settle_framing",
        lambda dataset, bench: (modes.append(bench.recipe.crop_mode), Framing("squash"))[1],
    )
    result = api.fit(ends, out=tmp_path / "run", cache="off", budget=None, seeds=2, **TINY)
    assert modes == ["auto", "squash"], "the second is told, and asks nothing"
    again = Recipe.from_toml((tmp_path / "run" / "seeds" / "1" / "recipe.toml").read_text())
    assert again.crop_mode == "squash" and result.facts["recipe"]["crop_mode"] == "squash"
    assert backbone_for(Recipe(**TINY, crop_mode="squash")).preprocess.fit == "squash"
    assert backbone_for(Recipe(**TINY)).preprocess.fit == "crop"


def test_what_is_seen_squashed_is_learnt_squashed(ends, tmp_path, monkeypatch):
    """Views are cut from the squashed square itself; where the middle is seen, from the image as it is."""
    seen = []
    real = material.PixelViews
    monkeypatch.setattr(material, "PixelViews", lambda **parts: (seen.append(parts["aspects"]), real(**parts))[1])
    for mode in ("squash", "center"):
        api.fit(
            ends, out=tmp_path / mode, cache="off", budget="none", epochs=1, crop_mode=mode,
            **{**TINY, "method": "full"},
        )  # fmt: skip
    assert (seen[0] == 1.0).all() and (seen[-1] == 5.0).all()


def test_compare_asks_for_each_network_and_says_for_which(ends, tmp_path):
    facts = api.compare(
        ends, models=["random:test_resnet"], methods=["probe", "multiprobe"], out=tmp_path / "race", cache="off",
        budget="none", image_size=64,
    )  # fmt: skip
    assert any(one["what"].startswith("random:test_resnet: of a long image") for one in facts["decisions"])
    packages = sorted((tmp_path / "race" / "arms").iterdir())
    assert len(packages) == 2 and all(read_bundle(one).preprocess.fit == "squash" for one in packages)
