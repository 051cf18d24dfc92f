"""Data as it comes from other tools, other systems and accidents: what must not be guessed, waited for, or taken for another."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from burnish import api
from burnish.choose import material
from burnish.choose.material import require_trainable
from burnish.data.audit.sameness import Sameness, sameness_findings
from burnish.data.audit.twins import Twins, find_twins
from burnish.data.cache import read_pixels
from burnish.data.catalog import Catalog, Splits
from burnish.data.file import MAX_BYTES, is_hash
from burnish.data.looks import look_at
from burnish.data.pixels import decode
from burnish.data.sources import open_source
from burnish.data.split import make_splits
from burnish.data.store import PixelStore
from burnish.errors import DataError, NotEnoughData, UnreadableImage
from burnish.recipe import Recipe
from burnish.ship.predictor import expand
from burnish.terms import Preprocess
from images import encoded, noise, write_images


def forbid(monkeypatch, place: Path | str) -> None:
    """What root never sees: the system does not tell what lies below a place."""
    real = os.stat

    def stat(path, *rest, **options):
        if isinstance(path, (str, os.PathLike)) and str(path).startswith(str(place)):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest, **options)

    monkeypatch.setattr(os, "stat", stat)


def test_a_place_that_one_may_not_look_at_is_told_as_such(tmp_path, monkeypatch):
    write_images(tmp_path / "secret", {"a": 3, "b": 3})
    forbid(monkeypatch, tmp_path / "secret")
    with pytest.raises(DataError, match=r"cannot be looked at: Permission denied\. Check"):
        open_source(tmp_path / "secret")


def test_a_folder_that_one_may_list_but_not_enter_is_told_as_such(tmp_path, monkeypatch):
    write_images(tmp_path / "secret", {"a": 3, "b": 3})
    forbid(monkeypatch, f"{tmp_path}/secret/.")
    with pytest.raises(DataError, match=r"cannot be listed: Permission denied\. Check"):
        open_source(tmp_path / "secret")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_name_that_no_file_can_have_is_not_there(tmp_path, name):
    with pytest.raises(DataError, match="There is no"):
        open_source(str(tmp_path / name))
    with pytest.raises(DataError, match="there is no"):
        expand([tmp_path / name])


def members(folder: Path, counts: dict[str, int]) -> list[tuple[str, bytes]]:
    write_images(folder, counts)
    return [(path.relative_to(folder).as_posix(), path.read_bytes()) for path in sorted(folder.rglob("*.png"))]


def tar_of(file: Path, entries: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(file, mode) as archive:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        for name, data in members(tmp_path / "old", {"x": 3, "y": 3}):
            archive.writestr(name, data)
    entries = [*members(tmp_path / "new", {"cat": 3, "dog": 3}), ("old.zip", inner.getvalue())]
    catalog = open_source(tar_of(tmp_path / "photos.tar", entries))
    assert catalog.classes == ("cat", "dog") and catalog.source.endswith("in a tar")
    assert open_source(_zip_of(tmp_path / "photos.zip", entries)).source.endswith("in a zip")


def _zip_of(file: Path, entries: list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return file


def test_an_archive_that_is_cut_short_during_a_run_ends_no_process(tmp_path):
    """A mapped file would end it with SIGBUS."""
    file = _zip_of(tmp_path / "a.zip", members(tmp_path / "new", {"cat": 3, "dog": 3}))
    catalog = open_source(file)
    assert catalog.image(0)
    os.truncate(file, 10)
    with pytest.raises(UnreadableImage):
        catalog.image(1)


def test_labels_of_packed_shards_are_read_whatever_the_case_of_their_suffix(tmp_path):
    entries = []
    for number in range(8):
        entries += [
            (f"{number:03d}.PNG", encoded(noise(seed=number), "PNG")),
            (f"{number:03d}.TXT", b"cat" if number % 2 else b"dog"),
        ]
    packed = open_source(tar_of(tmp_path / "a.tar.gz", entries, "w:gz"))
    plain = open_source(tar_of(tmp_path / "a.tar", entries))
    assert packed.classes == plain.classes == ("cat", "dog")
    assert packed.labels.tolist() == plain.labels.tolist()


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


def test_bytes_beyond_the_limit_are_refused_as_files_are():
    with pytest.raises(UnreadableImage, match="larger than 100 MB"):
        decode(bytes(MAX_BYTES + 1))


def test_many_small_classes_are_split_in_time_that_grows_with_them():
    """Each class once looked through all images: 4,000 × 5 took half a minute."""
    classes, each = 4000, 5
    paths = tuple(f"{c}/{n}.png" for c in range(classes) for n in range(each))
    labels = np.repeat(np.arange(classes), each)
    catalog = Catalog(
        Path("/x"), paths, labels, tuple(map(str, range(classes))), (None,) * len(paths), None, (), "folder"
    )
    splits = make_splits(catalog, seed=0)
    for rows in (splits.train, splits.val, splits.test):
        assert len(np.unique(labels[rows])) == classes


def test_a_run_file_that_is_a_pipe_is_not_waited_for(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes here")
    write_images(tmp_path, {"a": 3, "b": 3})
    os.mkfifo(tmp_path / "a" / "run.json")
    assert len(open_source(tmp_path)) == 6


def test_a_state_of_another_tool_beside_class_folders_is_no_data_set(tmp_path):
    write_images(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "state.json").write_text("{}")
    assert open_source(tmp_path).source == "folder"


def test_a_file_name_that_is_half_a_character_is_told_with_its_line(tmp_path):
    write_images(tmp_path, {"a": 3})
    lines = [json.dumps({"path": f"a/{number:03d}.png", "label": "a"}) for number in range(3)]
    (tmp_path / "list.jsonl").write_text("\n".join([*lines, json.dumps({"path": "\udce9.jpg", "label": "b"})]))
    with pytest.raises(DataError, match="line 4"):
        open_source(tmp_path / "list.jsonl")


def rows_of(count: int, label: object) -> dict[str, list]:
    return {"image": [encoded(noise(seed=number), "PNG") for number in range(count)], "label": [label] * count}


def test_unlabelled_parquet_files_and_unknown_splits_are_named(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    def written(name: str, rows: dict[str, list]) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        schema = pa.schema([("image", pa.binary()), ("label", pa.string())])
        pq.write_table(pa.table(rows, schema=schema), tmp_path / name)

    for folder in ("a", "b"):
        both = {key: [*first, *rows_of(4, "dog")[key]] for key, first in rows_of(4, "cat").items()}
        written(f"{folder}/train-0.parquet", both)
    written("a/test-0.parquet", rows_of(3, None))
    written("b/extra-0.parquet", rows_of(3, "cat"))
    with pytest.raises(DataError, match=r"test-0\.parquet: none of its 3 rows has a label"):
        open_source(tmp_path / "a")
    with pytest.raises(DataError, match=r"extra-0\.parquet is of no split"):
        open_source(tmp_path / "b")


def test_a_test_folder_that_is_a_copy_of_train_is_told_as_the_reason(tmp_path):
    write_images(tmp_path / "train", {"a": 6, "b": 6})
    write_images(tmp_path / "test", {"a": 6, "b": 6})
    with pytest.raises(NotEnoughData, match="12 of the training images are in test too, byte for byte"):
        api.fit(tmp_path, model="random:test_resnet", budget="none", epochs=1, out=tmp_path / "run", cache="off")


def test_a_test_split_without_any_class_is_refused_before_the_work():
    labels = np.array([[True, False], [False, True], [False, False], [False, False]])
    paths = tuple(f"{n}.png" for n in range(4))
    catalog = Catalog(Path("/x"), paths, labels, ("a", "b"), (None,) * 4, None, (), "csv")
    rows = np.array([0, 1]), np.array([], np.int64), np.array([2, 3])
    with pytest.raises(NotEnoughData, match="none of the test images has a class"):
        require_trainable(catalog, Splits(*rows, "given", ""))


def test_conflicts_among_very_many_copies_are_all_found(tmp_path):
    write_images(tmp_path, {"a": 40})
    for number in range(40):
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / f"{number:03d}.png").write_bytes((tmp_path / "a" / f"{number:03d}.png").read_bytes())
    catalog = open_source(tmp_path, for_training=False)
    pixels = read_pixels(catalog, np.arange(len(catalog)), preprocess=Preprocess(size=32), workers=1)
    found = [
        one for one in sameness_findings(catalog, Sameness.of(pixels, Twins.none())) if one.kind == "label_conflict"
    ]
    assert len(found) == 40
    assert all(sorted(Path(path).parent.name for path in one.paths) == ["a", "b"] for one in found)
    assert find_twins(pixels.thumbs, np.full(len(pixels.ids), 16))[0] is not None


@pytest.mark.parametrize(("asked", "side"), [("auto", 64), (96, 96), (500, 128)])
def test_training_crops_are_cut_from_images_as_large_as_is_asked_for(tmp_path, monkeypatch, asked, side):
    """Else 384 px were enlarged from 256; a reduced JPEG holds twice the network's own size, not more."""
    wanted = []
    monkeypatch.setattr(material, "stored_side", lambda catalog, pixels: wanted.append(pixels) or 64)
    monkeypatch.setattr(material, "_fitting_images", lambda *rest: pytest.fail("seen enough"))
    backbone = SimpleNamespace(preprocess=Preprocess(size=64, crop=1.0))
    bench = SimpleNamespace(backbone=backbone, recipe=Recipe(image_size=asked))
    write_images(tmp_path, {"a": 6, "b": 6})
    catalog = open_source(tmp_path)
    with pytest.raises(pytest.fail.Exception, match="seen enough"):
        material.gather(catalog, make_splits(catalog, seed=0), None, bench, Preprocess(size=64), trains=True)
    assert wanted == [side]
