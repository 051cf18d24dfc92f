"""Promises of reading bit by bit: however images come, they are those that one reading gives."""

import errno
import os

import numpy as np
import pytest
from test_data_store import SIDE, SMALL, assert_same, catalog_of, write_noise

from burnish.data import cache, pixels, store
from burnish.data.cache import Reading, read_pixels
from burnish.data.store import PixelStore

COUNT = 12
ORDER = np.array([7, 2, 11, 0, 5, 9, 3, 1, 10, 8, 6, 4])


@pytest.fixture
def names(tmp_path):
    """Of twelve images, two of which cannot be read."""
    found = write_noise(tmp_path / "set", range(COUNT))
    for name in (found[2], found[9]):
        (tmp_path / "set" / name).write_bytes(b"no image")
    return found


@pytest.fixture(params=["memory", "file", "nowhere"])
def place(request, monkeypatch):
    """Where what is decoded is written to without a store."""
    if request.param != "memory":
        monkeypatch.setattr(cache, "IN_MEMORY_BYTES", 0)
    if request.param == "nowhere":
        monkeypatch.setattr(cache, "_draft", lambda *_: None)


def reading(root, names, kept=None):
    return Reading(
        catalog_of(root, names), np.arange(len(names)), preprocess=SMALL, stored_side=SIDE, workers=2, store=kept
    )


def at_once(root, names, ids, kept=None):
    return read_pixels(catalog_of(root, names), ids, preprocess=SMALL, stored_side=SIDE, workers=2, store=kept)


def test_pieces_are_what_one_reading_gives(tmp_path, names, place):
    bits = reading(tmp_path / "set", names)
    for places in np.split(ORDER, [3, 4, 9]):
        assert_same(bits.read(places), at_once(tmp_path / "set", names, places))
    assert_same(bits.kept(), at_once(tmp_path / "set", names, np.arange(COUNT)))


def test_what_was_not_asked_for_is_not_there(tmp_path, names, place):
    bits = reading(tmp_path / "set", names)
    bits.read(ORDER[:5])
    assert_same(bits.kept(), at_once(tmp_path / "set", names, np.sort(ORDER[:5])))


@pytest.mark.parametrize("before", [range(COUNT), range(5), [1, 4, 8], []])
def test_what_the_store_has_of_them_is_taken_from_there(tmp_path, names, before, monkeypatch):
    kept, decoded, original = PixelStore(tmp_path / "kept"), [], pixels.decode_aloud
    if len(before):
        at_once(tmp_path / "set", names, np.array(before), kept)
    monkeypatch.setattr(pixels, "decode_aloud", lambda *rest: decoded.append(rest[1]) or original(*rest))
    bits = reading(tmp_path / "set", names, kept)
    for places in np.split(ORDER, [3, 4, 9]):
        bits.read(places)
    found = bits.kept()
    bad = {names[2], names[9]}
    assert set(decoded) == {name for number, name in enumerate(names) if number not in before or name in bad}
    assert_same(found, at_once(tmp_path / "set", names, np.arange(COUNT)))
    decoded.clear()
    assert_same(at_once(tmp_path / "set", names, np.arange(COUNT), PixelStore(tmp_path / "kept")), found)
    assert set(decoded) == bad


def test_a_part_that_was_read_is_kept_for_the_next_time(tmp_path, names, monkeypatch):
    kept = PixelStore(tmp_path / "kept")
    bits = reading(tmp_path / "set", names, kept)
    bits.read(ORDER[:5])
    bits.kept()
    decoded, original = [], pixels.decode_aloud
    monkeypatch.setattr(pixels, "decode_aloud", lambda *rest: decoded.append(rest[1]) or original(*rest))
    at_once(tmp_path / "set", names, np.arange(COUNT), kept)
    assert len(decoded) == COUNT - 4, "all but the readable ones of five"


def test_a_disk_that_refuses_in_the_middle_costs_only_reading_again(tmp_path, names, monkeypatch):
    monkeypatch.setattr(cache, "IN_MEMORY_BYTES", 0)
    bits, full, original = reading(tmp_path / "set", names), [], os.pwrite

    def refused(*rest):
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*rest)

    monkeypatch.setattr(store.os, "pwrite", refused)
    bits.read(ORDER[:6])
    full.append(True)
    assert_same(bits.read(ORDER[6:]), at_once(tmp_path / "set", names, ORDER[6:]))
    assert_same(bits.kept(), at_once(tmp_path / "set", names, np.arange(COUNT)))


def test_an_image_that_can_be_read_now_and_could_not_then_is_read(tmp_path, names, monkeypatch):
    kept = PixelStore(tmp_path / "kept")
    with monkeypatch.context() as patch:
        patch.setattr(pixels, "decode_aloud", sometimes(names[4], pixels.decode_aloud))
        assert len(at_once(tmp_path / "set", names, np.arange(COUNT), kept).ids) == COUNT - 3
    bits = reading(tmp_path / "set", names, kept)
    for places in np.split(ORDER, [5]):
        bits.read(places)
    assert_same(bits.kept(), at_once(tmp_path / "set", names, np.arange(COUNT)))


def sometimes(name, decode):
    """A decoder that fails for one image."""

    def decoding(source, label, at_least):
        return decode(b"no image" if label == name else source, label, at_least)

    return decoding
