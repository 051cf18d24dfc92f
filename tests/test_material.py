"""What is gathered for a run: how fast its images are decoded, at which size, and that they are still the same."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from burnish.backbones import zoo
from burnish.choose import gathering
from burnish.choose.features import plain_at
from burnish.choose.gathering import _Reader, gather
from burnish.choose.material import Bench
from burnish.data.looks import Dataset, look_at
from burnish.data.sample import Taken
from burnish.data.sources import open_source
from burnish.data.split import make_splits
from burnish.data.store import PixelStore
from burnish.errors import UnreadableImage
from burnish.recipe import Recipe
from burnish.runtime import Clock, Nobody
from burnish.terms import Preprocess
from burnish.train.around import pick_device
from images import write_images


def bench_for(store=None, **recipe):
    backbone = zoo.load_backbone("random:test_resnet", image_size=32)
    return Bench(
        Recipe(model="random:test_resnet", **recipe),
        backbone,
        pick_device("cpu"),
        Clock.start(None, from_process_start=False),
        Nobody(),
        store=store,
    )


def gathered(data, bench):
    """(material, looks) of a folder."""
    catalog = open_source(data)
    looks = look_at(catalog, np.arange(len(catalog)), workers=1)
    found, *_ = gather(
        Taken(Dataset(catalog, make_splits(catalog, seed=0), looks), None, 0),
        bench,
        bench.backbone.preprocess,
        trains=False,
        decoded_per_second=7.0,
    )
    return found, looks


def test_kept_pixels_say_nothing_of_how_fast_images_are_decoded(images, tmp_path):
    bench = bench_for(PixelStore(tmp_path / "kept"))
    assert gathered(images, bench)[0].decoded_per_second > 7.0, "all were decoded"
    assert gathered(images, bench)[0].decoded_per_second == 7.0, "none were: as the survey timed it"


def test_a_reader_without_a_survey_tells_its_own_rate(images):
    catalog = open_source(images)
    looks = look_at(catalog, np.arange(len(catalog)), workers=1)
    dataset, reader = (
        Dataset(catalog, make_splits(catalog, seed=0), looks),
        _Reader(bench_for(), Preprocess(size=32), None),
    )
    assert len(reader.read(dataset, np.arange(6), None).ids) == 6 and reader.rate > 0.0


def test_an_image_that_changed_is_not_taken_at_another_size(images):
    bench = bench_for()
    material, _ = gathered(images, bench)
    ids = material.fitting.ids[:3]
    before = plain_at(material, ids, Preprocess(size=48), bench)[:]
    assert before.shape == (3, 48, 48, 3)
    Image.new("RGB", (40, 32)).save(images / material.catalog.paths[ids[1]])
    with pytest.raises(UnreadableImage, match=r"cannot now .*it changed"):
        plain_at(material, ids, Preprocess(size=48), bench)
    assert len(plain_at(material, material.test.ids, Preprocess(size=48), bench)) == len(material.test.ids)


@pytest.mark.parametrize(("asked", "side"), [("auto", 64), (96, 192), (150, 224), (500, 500)])
def test_training_crops_are_cut_from_images_as_large_as_is_asked_for(tmp_path, monkeypatch, asked, side):
    """Of small ones twice as many pixels: a crop shows a part of the image."""
    wanted = []
    monkeypatch.setattr(gathering, "stored_side", lambda catalog, pixels: wanted.append(pixels) or 64)
    monkeypatch.setattr(gathering, "_read", lambda *rest: pytest.fail("seen enough"))
    size = 64 if asked == "auto" else asked
    backbone = SimpleNamespace(preprocess=Preprocess(size=size, crop=1.0))
    bench = SimpleNamespace(backbone=backbone, recipe=Recipe(image_size=asked))
    write_images(tmp_path, {"a": 6, "b": 6})
    catalog = open_source(tmp_path)
    looks = look_at(catalog, np.arange(len(catalog)), workers=1)
    taken = Taken(Dataset(catalog, make_splits(catalog, seed=0), looks), None, 0)
    with pytest.raises(pytest.fail.Exception, match="seen enough"):
        gathering.gather(taken, bench, Preprocess(size=64), trains=True)
    assert wanted == [side]
