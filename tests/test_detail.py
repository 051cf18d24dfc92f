"""How fine an image the network sees: as it was made for, as the command says, or finer where that clearly tells more."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import test_framing
from PIL import Image
from test_framing import Told

from burnish import api
from burnish.backbones import zoo
from burnish.choose import asking
from burnish.choose.detail import Detail, settle_detail
from burnish.choose.ledger import Ledger
from burnish.recipe import Recipe
from burnish.run.outset import detail_for
from burnish.runtime import Nobody
from burnish.ship.bundle import read_bundle

TINY = {"model": "random:test_resnet", "method": "probe"}
OWN = 160  # pixels, of that network


def drawn(root, what, *, side=400, images=24):
    """Squares of grey: with "stripes" of one pixel that lie as the class does, or of the "colour" of their class."""
    for number in range(3 * images):
        kind, rng = number % 3, np.random.default_rng(number)
        pixels = rng.integers(100, 156, (side, side, 3), np.uint8)
        if what == "stripes":
            rows, columns = np.indices((side, side)) % 2
            pixels[(rows, columns, rows ^ columns)[kind].astype(bool)] -= 60
        else:
            pixels[..., kind] = 255
        folder = root / "abc"[kind]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def spotted(root, *, side=400, spot=10, images=24):
    """Squares of grey noise with a small square of stripes that lie as the class does, anywhere in the middle."""
    for number in range(3 * images):
        kind, rng = number % 3, np.random.default_rng(number)
        pixels = rng.integers(100, 156, (side, side, 3), np.uint8)
        rows, columns = np.indices((spot, spot)) % 2
        top, left = rng.integers(side // 4, 3 * side // 4 - spot, 2)
        pixels[top : top + spot, left : left + spot] = 255 * (rows, columns, rows ^ columns)[kind][..., None]
        folder = root / "abc"[kind]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("detail") / "stripes", "stripes")


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("detail") / "colours", "colour")


def benched(data, *, told=None, clock=None, **recipe):
    recipe = Recipe(**{**TINY, **recipe})
    return test_framing.benched(data, recipe, zoo.load_backbone(recipe.model), told=told, clock=clock)


def test_where_only_finer_images_tell_the_classes_they_are_seen_finer_and_the_package_keeps_that(stripes, tmp_path):
    told = Told()
    result = api.fit(stripes, out=tmp_path / "run", cache="off", budget=None, watcher=told, **TINY)
    first = result.facts["decisions"][0]
    assert first["what"] == "images are seen at 320 px" and "detail" in told.stages
    assert first["numbers"]["finer"] < first["numbers"]["own"] and first["why"] in " ".join(told.lines)
    assert read_bundle(tmp_path / "run").preprocess.size == 320
    assert [one.label for one in result.predict(sorted((stripes / "c").glob("*.png"))[:8])].count("c") >= 6
    assert first["what"] in (tmp_path / "run" / "report.html").read_text()


def test_where_finer_images_tell_no_more_the_networks_own_size_stays(colours):
    told = Told()
    found = settle_detail(*benched(colours, told=told))
    assert found.size == OWN and found.decision is not None and "images are seen at 160 px" in told.lines[0]


def test_what_is_small_in_an_image_is_found_by_heads_on_all_depths(tmp_path):
    """In the means of the last layer it is lost; the maxima of the maps before it have it."""
    found = settle_detail(*benched(spotted(tmp_path / "data")))
    assert found.size == 320 and found.decision is not None
    last = settle_detail(*benched(tmp_path / "data", taps="off"))
    assert last.size == OWN and last.decision is not None
    assert found.decision.numbers["finer"] < 0.5 * last.decision.numbers["finer"]


@pytest.mark.parametrize(("side", "asked"), [(200, False), (230, False), (280, True)])
def test_images_that_are_hardly_larger_are_not_asked(side, asked, tmp_path):
    told = Told()
    found = settle_detail(*benched(drawn(tmp_path / "data", "colour", side=side, images=8), told=told))
    assert found.size == OWN and bool(told.stages) == asked


@pytest.mark.parametrize("recipe", [{"image_size": 96}, {"model": "random:test_vit"}])
def test_a_size_that_is_named_and_a_network_of_one_size_stay(recipe, stripes):
    told = Told()
    dataset, bench = benched(stripes, told=told, **recipe)
    assert settle_detail(dataset, bench) == Detail(bench.backbone.preprocess.size) and not told.stages


@pytest.mark.parametrize(("seconds", "size"), [(0.001, 320), (0.5, 160)])
def test_finer_images_are_asked_where_there_is_time_to_see_all_of_them(seconds, size, stripes, monkeypatch):
    """Of a network that takes so long for an image of 160 px, and as much longer as others have more pixels."""
    now, told, real = [0.0], Told(), asking.outputs

    def slow(module, images, **options):
        now[0] += seconds * len(images[0]) * (images[0].shape[1] / OWN) ** 2
        return real(module, images, **options)

    clock = SimpleNamespace(budget_seconds=60.0, elapsed=lambda: now[0], left=lambda: 60.0 - now[0])
    monkeypatch.setattr(asking, "outputs", slow)
    monkeypatch.setattr(asking, "least_seconds", lambda *_, **__: 0.0)
    assert settle_detail(*benched(stripes, told=told, clock=clock)).size == size
    assert any("there is no time to see all at" in line and "--image-size" in line for line in told.lines) == (
        size == OWN
    )
    assert now[0] <= (0.2 * 60 if size > OWN else 40)


def test_where_the_finest_would_take_too_long_the_next_is_asked(stripes, monkeypatch):
    now, real, sizes = [0.0], asking.outputs, []

    def slow(module, images, **options):  # 0.2 s for an image of 160 px, 0.32 for one of 224, 0.8 for one of 320
        sizes.append(images[0].shape[1])
        now[0] += 0.2 * len(images[0]) * (images[0].shape[1] / OWN) ** 2
        return real(module, images, **options)

    clock = SimpleNamespace(budget_seconds=120.0, elapsed=lambda: now[0], left=lambda: 120.0 - now[0])
    monkeypatch.setattr(asking, "outputs", slow)
    monkeypatch.setattr(asking, "least_seconds", lambda *_, **__: 0.0)
    settle_detail(*benched(stripes, clock=clock))
    assert 1 == sizes.index(320) < sizes.index(224) and 320 not in sizes[sizes.index(224) :]


def test_weights_that_give_no_numbers_are_left_to_those_who_refuse_them(stripes, monkeypatch):
    monkeypatch.setattr(asking, "outputs", lambda trunk, images, **_: np.full((len(images[0]), 8), np.nan, np.float32))
    told = Told()
    assert settle_detail(*benched(stripes, told=told)) == Detail(OWN) and not told.lines


def test_a_run_that_is_taken_up_does_not_ask_again(stripes, tmp_path, monkeypatch):
    dataset, bench = benched(stripes)
    ledger = Ledger(tmp_path, bench.clock, Nobody())
    first, told = detail_for(dataset, bench, ledger)
    ledger.write()
    monkeypatch.setattr("burnish.run.outset.settle_detail", None)
    again, told_again = detail_for(dataset, bench, Ledger(tmp_path, bench.clock, Nobody()))
    assert first.backbone.preprocess == again.backbone.preprocess and told == told_again
    assert again.backbone.preprocess.size == 320 and first.fine and again.fine


def test_compare_says_for_which_network_images_are_seen_finer(stripes, tmp_path):
    facts = api.compare(
        stripes, models=["random:test_resnet"], methods=["probe"], out=tmp_path / "race", cache="off", budget="none"
    )
    assert any(one["what"] == "random:test_resnet: images are seen at 320 px" for one in facts["decisions"])
    assert [read_bundle(one).preprocess.size for one in (tmp_path / "race" / "arms").iterdir()] == [320]


@pytest.mark.parametrize("size", [64, 224])
def test_frozen_heads_see_images_of_the_size_that_is_asked_for(size, colours, tmp_path):
    result = api.fit(colours, out=tmp_path / "run", cache="off", budget=None, image_size=size, **TINY)
    assert read_bundle(tmp_path / "run").preprocess.size == size
    assert not any("without effect" in one["what"] for one in result.facts["decisions"])


def test_what_is_trained_on_finer_images_is_trained_at_a_finer_size(stripes, tmp_path):
    settings = {**TINY, "method": "full", "epochs": 1}
    api.fit(stripes, out=tmp_path / "run", cache="off", budget=None, **settings)
    assert OWN < read_bundle(tmp_path / "run").preprocess.size <= 320
