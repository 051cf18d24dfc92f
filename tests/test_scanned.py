"""scanned = used + named (P4), by the source's own count of what it went through: one that is lost on the way shows."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from burnish import api
from burnish.data.audit.quarantine import quarantined
from burnish.data.catalog import Catalog, Named
from burnish.data.sample import only
from burnish.data.sources import open_source, with_named, without
from images import png, write_images

TINY = {"model": "random:test_resnet", "image_size": 32, "budget": None, "method": "probe", "cache": "off"}


def photos(root: Path) -> Path:
    """Six images, and five files and folders that are none of the data."""
    write_images(root, {"a": 3, "b": 3})
    (root / "empty").mkdir()
    for name in (".hidden", "notes.txt", "a/list.csv", "beside.png"):
        (root / name).write_bytes(png(0))
    return root


def zipped(root: Path) -> Path:
    target = root.with_suffix(".zip")
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(photos(root).rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(root))
    return target


def sharded(root: Path) -> Path:
    """Four images, one without a label and one label without an image."""
    root.mkdir()
    members = [("e.png", png(9)), ("f.cls", b"1")]
    for at, key in enumerate("abcd"):
        members += [(f"{key}.png", png(at)), (f"{key}.cls", str(at % 2).encode())]
    with tarfile.open(root / "train-0.tar", "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    (root / "train-1.tar").symlink_to("/dev/zero")
    return root


def listed(root: Path) -> Path:
    """Six rows, one again, one that is no file."""
    rows = [f"{name}/00{at}.png,{name}" for name in "ab" for at in range(3)]
    photos(root).joinpath("list.csv").write_text("\n".join(["path,label", *rows, rows[0], "a/9.png,a"]))
    return root / "list.csv"


def given(root: Path) -> tuple[list[str], list[str]]:
    """Eight paths, two of them again."""
    names = [f"{name}/00{at}.png" for name in "ab" for at in range(3)] + ["a/000.png", "./b/../b/002.png"]
    photos(root)
    return [os.path.join(root, name) for name in names], [name.removeprefix("./")[0] for name in names]


SOURCES = {photos: 11, zipped: 10, sharded: 7, listed: 8, given: 8}


@pytest.mark.parametrize("source", SOURCES, ids=lambda one: one.__name__)
def test_whatever_a_source_goes_through_is_used_or_named(source: Callable[[Path], object], tmp_path):
    catalog = open_source(source(tmp_path / "data"), for_training=False)
    assert len(catalog) + len(catalog.named) == catalog.scanned == SOURCES[source]


def test_paths_that_are_given_again_are_named(tmp_path):
    catalog = open_source(given(tmp_path / "data"), for_training=False)
    assert [(one.path, one.reason) for one in catalog.named] == [
        ("a/000.png", "given again, first as item 0 (item 6)"),
        ("b/002.png", "given again, first as item 5 (item 7)"),
    ]


def test_what_is_set_aside_or_left_out_later_is_scanned_once(tmp_path):
    def balanced(catalog: Catalog) -> bool:
        return catalog.scanned == len(catalog) + len(catalog.named)

    catalog = open_source(photos(tmp_path / "data"))
    less = without(catalog, [Named("a/000.png", "truncated")])
    more = with_named(catalog, [Named("other.tar", "not a regular file")])
    (tmp_path / "list.csv").write_text("path\nb/000.png\n")
    assert balanced(less) and less.scanned == 11 and balanced(more) and more.scanned == 12
    assert balanced(quarantined(less, tmp_path / "list.csv"))
    assert balanced(only(less, np.arange(3))) and only(less, np.arange(3)).scanned == 9


def test_a_file_that_is_lost_on_the_way_shows_in_the_report(tmp_path):
    catalog = open_source(write_images(tmp_path / "data", {"a": 12, "b": 12}))
    assert catalog.counted == 24
    for lost in (0, 1):
        counts = api.fit(replace(catalog, counted=24 + lost), out=tmp_path / str(lost), **TINY).facts["counts"]
        assert counts["scanned"] - counts["used"] - counts["named"] == lost
