"""Images that change while they are read or between two runs, and images that are known again under another name."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from burnish import api
from burnish.data.cache import read_pixels
from burnish.data.file import is_hash
from burnish.data.looks import look_at, read_digests
from burnish.data.pixels import read_all
from burnish.data.sources import open_source
from burnish.data.store import PixelStore
from burnish.errors import NotARun, NotEnoughData, RunError
from burnish.record.folder import IMAGES, SPLITS, sides_in
from burnish.terms import Preprocess
from conftest import Told
from images import SMALL, read, write_images

TINY = {"model": "random:test_resnet", "image_size": 32, "budget": None, "method": "probe", "cache": "off"}
ONE_EPOCH = {
    "model": "random:test_resnet",
    "image_size": 32,
    "method": "probe",
    "budget": None,
    "epochs": 1,
    "cache": "off",
}


# ---- while they are read ---------------------------------------------------------------------------------------------


def test_a_file_that_changes_between_the_look_and_the_decode_is_named_and_not_kept(tmp_path):
    write_images(tmp_path / "data", {"a": 3, "b": 3})
    file = tmp_path / "data" / "a" / "000.png"
    catalog, store, before = open_source(tmp_path / "data"), PixelStore(tmp_path / "cache"), file.read_bytes()
    ids = np.arange(len(catalog))
    looks = look_at(catalog, ids, workers=1)
    Image.new("RGB", (4, 4), (0, 0, 255)).save(file)
    changed = read_pixels(catalog, ids, preprocess=SMALL, workers=1, store=store, looks=looks)
    assert [one.path for one in changed.named] == ["a/000.png"] and "changed while it was read" in changed.named[
        0
    ].reason
    assert 0 not in changed.ids and len(changed.ids) == 5
    file.write_bytes(before)
    again = read(catalog, store=store)
    assert not again.named
    assert np.array_equal(np.asarray(again.plain[:]), np.asarray(read(catalog).plain[:]))


def test_what_could_not_be_read_is_not_kept_under_its_place(tmp_path, monkeypatch):
    """Another file of another data set at that place would be given its pixels."""
    write_images(tmp_path / "one", {"a": 3, "b": 3})
    catalog, preprocess = open_source(tmp_path / "one"), Preprocess(size=32)
    ids = np.arange(len(catalog))
    looks = look_at(catalog, ids, workers=1)
    blind = type(looks)(
        ("unread 0", *looks.digests[1:]), looks.headers
    )  # as a disk that was away for a moment leaves it
    store = PixelStore(tmp_path / "cache")
    found = read_pixels(catalog, ids, preprocess=preprocess, workers=1, store=store, looks=blind)
    assert len(found.ids) == 5, "nor used: a run that is taken up would not know it again"
    assert [one.reason for one in found.named] == ["it could not be read when it was first looked at; run again"]
    write_images(tmp_path / "two", {"a": 3, "b": 3})
    first = sorted((tmp_path / "two" / "a").iterdir())[0]
    first.write_bytes(b"no image")
    other = open_source(tmp_path / "two")
    unread = look_at(other, ids, workers=1)
    unread = type(unread)(("unread 0", *unread.digests[1:]), unread.headers)
    found = read_pixels(other, ids, preprocess=preprocess, workers=1, store=store, looks=unread)
    assert len(found.ids) == 5 and found.named[0].path == "a/000.png"
    assert not is_hash("unread 17") and not is_hash("") and is_hash(looks.digests[0])


def test_what_was_not_read_at_the_first_look_is_named(images):
    catalog = open_source(images)
    digests = list(look_at(catalog, np.arange(len(catalog)), workers=1).digests)
    digests[2] = "unread 2"
    found = read_all(catalog, np.arange(len(catalog)), {}, {}, workers=1, digests=digests)
    assert [(one.path, one.reason) for one in found.named] == [
        (catalog.paths[2], "it could not be read when it was first looked at; run again")
    ]


# ---- between two runs ------------------------------------------------------------------------------------------------


def test_a_finished_run_is_not_handed_back_for_other_images(images, tmp_path):
    api.fit(images, out=tmp_path / "run", **TINY)
    assert len(read_digests(tmp_path / "run" / IMAGES)) == 36
    told = Told()
    assert api.fit(images, out=tmp_path / "run", watcher=told, **TINY) and "is finished" in told.lines[-1]
    for file in sorted(images.rglob("*.png")):
        Image.open(file).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(file)
    with pytest.raises(RunError, match=r"holds a finished run, and of 36 of its images .* 36 have changed"):
        api.fit(images, out=tmp_path / "run", **TINY)


def test_nor_for_other_arrays(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    pixels = rng.integers(0, 100, (40, 32, 32, 3), np.uint8)
    pixels[labels == 1, ..., 0] += 100
    first = api.fit((pixels, labels), out=tmp_path / "a", **TINY)
    assert api.fit((pixels, labels), out=tmp_path / "a", **TINY).facts == first.facts
    with pytest.raises(RunError, match="have changed"):
        api.fit((pixels[:, ::-1].copy(), labels), out=tmp_path / "a", **TINY)
    api.fit((255 - pixels, labels), out=tmp_path / "b", **TINY)
    with pytest.raises(NotEnoughData, match="no test image in common"):
        api.report_runs([tmp_path / "a", tmp_path / "b"], out=tmp_path / "runs.html")
    assert api.evaluate(tmp_path / "a", (255 - pixels, labels)).learnt == 0, "numbers alike are not images alike"
    assert api.evaluate(tmp_path / "a", (pixels, labels)).learnt > 20


def test_images_are_known_again_under_another_name(images, tmp_path):
    api.fit(images, out=tmp_path / "run", **TINY)
    sides = sides_in(tmp_path / "run" / SPLITS)
    images.rename(tmp_path / "moved")
    (tmp_path / "outer").mkdir()
    (tmp_path / "moved").rename(tmp_path / "outer" / "photos")
    table = tmp_path / "table.csv"
    files = sorted((tmp_path / "outer").rglob("*.png"))
    table.write_text("path,label\n" + "".join(f"{file.relative_to(tmp_path)},{file.parent.name}\n" for file in files))
    assert api.evaluate(tmp_path / "run", table).learnt == sum(side != "test" for side in sides.values())
    (tmp_path / "run" / IMAGES).unlink()  # a run of before
    assert api.evaluate(tmp_path / "run", table).learnt == 0
    assert api.evaluate(tmp_path / "run", tmp_path / "outer" / "photos").learnt > 0


def test_a_data_set_that_draws_anew_is_known_by_its_numbers(tmp_path):
    class Drawing:
        classes, targets = ["a", "b"], [at % 2 for at in range(40)]

        def __init__(self):
            self.rng = np.random.default_rng(0)

        def __len__(self):
            return 40

        def __getitem__(self, at):
            pixels = self.rng.integers(0, 100, (32, 32, 3), np.uint8)
            pixels[..., at % 2] += 100
            return pixels, at % 2

    first = api.fit(Drawing(), out=tmp_path / "run", **TINY)
    assert not (tmp_path / "run" / IMAGES).exists()
    assert api.fit(Drawing(), out=tmp_path / "run", **TINY).facts == first.facts
    assert api.evaluate(tmp_path / "run", Drawing()).learnt > 0


@pytest.mark.parametrize("text", ["", "path,sha256", "a,b\nc,d\n", None])
def test_hashes_that_were_cut_short_are_not_taken_for_none(text, shapes, tmp_path):
    if text is not None:
        (tmp_path / "images.csv").write_text(text)
        with pytest.raises(NotARun, match="is damaged"):
            read_digests(tmp_path / "images.csv")
        return
    assert read_digests(tmp_path / "images.csv") == {}
    api.fit(shapes, out=tmp_path / "run", **ONE_EPOCH)
    table = tmp_path / "run" / "images.csv"
    assert len(read_digests(table)) == 60
    table.write_bytes(table.read_bytes()[:-3])
    with pytest.raises(NotARun, match=r"images\.csv is damaged"):
        api.fit(shapes, out=tmp_path / "run", **ONE_EPOCH)
    (tmp_path / "run" / "images.csv").unlink()
    (tmp_path / "run" / "pictures.json").write_text('{"cases": 7}')
    with pytest.raises(NotARun, match="not as burnish writes it"):
        api.fit(shapes, out=tmp_path / "run", **ONE_EPOCH)
