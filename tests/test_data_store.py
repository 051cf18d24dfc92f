"""Promises of data.store and of reading through it: kept pixels are those decoding gives, and nothing kept can do harm."""

import errno
import hashlib
import io
import json
import os
import shutil
import struct
import time
from types import SimpleNamespace

import numpy as np
import pytest
from test_data_formats import photo

from burnish.data import cache, pixels, store
from burnish.data.cache import read_pixels
from burnish.data.catalog import Catalog
from burnish.data.pixels import decode, view
from burnish.data.store import Draft, PixelStore, blank
from burnish.errors import DataError, UnreadableImage
from burnish.terms import Preprocess
from images import noise

SMALL = Preprocess(size=32, crop=0.875, interpolation="bilinear")
SIDE = 48  # of the stored squares


@pytest.fixture
def decoded(monkeypatch):
    """The names of the image files that were decoded, in the order they were begun."""
    names, original = [], pixels.decode_aloud

    def counted(source, label, at_least):
        names.append(label)
        return original(source, label, at_least)

    monkeypatch.setattr(pixels, "decode_aloud", counted)
    return names


@pytest.fixture
def kept(tmp_path):
    return PixelStore(tmp_path / "kept")


def catalog_of(root, names):
    """A catalogue of one class of the files named."""
    count = len(names)
    return Catalog(root, tuple(names), np.zeros(count, np.int64), ("one",), (None,) * count, None, (), "folder")


def write_noise(root, numbers, *, prefix=""):
    """Noise images of different shapes; their names."""
    root.mkdir(exist_ok=True)
    names = [f"{prefix}{number:02d}.png" for number in numbers]
    for number, name in zip(numbers, names, strict=True):
        noise(40 + number, 36, seed=number).save(root / name)
    return names


def read(root, names, kept, *, preprocess=SMALL, side=SIDE, workers=2, **options):
    catalog = catalog_of(root, names)
    ids = np.arange(len(names))
    return read_pixels(catalog, ids, preprocess=preprocess, stored_side=side, workers=workers, store=kept, **options)


def assert_same(found, expected):
    """Bit for bit the same images, and all that is told of them."""
    assert found.ids.tolist() == expected.ids.tolist()
    assert np.array_equal(found.plain[:], expected.plain[:])
    assert (found.stored is None) == (expected.stored is None)
    if expected.stored is not None:
        assert np.array_equal(found.stored[:], expected.stored[:])
    assert found.aspects.dtype == expected.aspects.dtype
    assert found.aspects.tolist() == expected.aspects.tolist()
    assert found.named == expected.named
    assert found.content == expected.content


def files_of(kept):
    """What lies in the folder of a store, hidden files included."""
    return sorted(kept.folder.iterdir()) if kept.folder.is_dir() else []


def flip(path, at, *, bit=0x10):
    data = bytearray(path.read_bytes())
    data[at] ^= bit
    path.write_bytes(data)


# ---- what is kept is what decoding gives -----------------------------------------------------------------------------


def test_a_second_read_decodes_nothing_and_gives_the_same_bits(tmp_path, kept, decoded):
    names = write_noise(tmp_path / "set", range(8))
    plainly = read(tmp_path / "set", names, None)
    first = read(tmp_path / "set", names, kept)
    assert sorted(decoded) == sorted([*names, *names])
    decoded.clear()
    told = []
    second = read(tmp_path / "set", names, PixelStore(kept.folder), on_progress=told.append)
    assert decoded == []
    assert len(second.plain) == len(second.stored) == 8
    assert_same(first, plainly)
    assert_same(second, plainly)
    assert [path.suffix for path in files_of(kept)] == [".pixels"]


def test_rows_from_the_store_can_be_cut_as_an_array_can(tmp_path, kept):
    names = write_noise(tmp_path / "set", range(6))
    expected = np.stack([view(decode(tmp_path / "set" / name), SMALL) for name in names])
    read(tmp_path / "set", names, kept)
    rows = read(tmp_path / "set", names, kept).plain
    for cut in (slice(1, 4), np.array([5, 0, 0]), np.array([], np.int64), slice(None)):
        assert np.array_equal(rows[cut], expected[cut])
    rows[:][...] = 0  # a copy: what is kept cannot be changed through it
    assert np.array_equal(rows[:], expected)


@pytest.mark.parametrize("side", [None, SIDE])
def test_the_result_does_not_depend_on_the_number_of_workers(side, tmp_path, kept):
    names = write_noise(tmp_path / "set", range(6))
    expected = read(tmp_path / "set", names, None, side=side, workers=1)
    assert_same(read(tmp_path / "set", names, kept, side=side, workers=3), expected)


def test_one_added_image_is_the_only_one_decoded(tmp_path, kept, decoded):
    names = write_noise(tmp_path / "set", range(6))
    read(tmp_path / "set", names, kept)
    names = sorted([*names, *write_noise(tmp_path / "set", [50], prefix="0")])
    expected = read(tmp_path / "set", names, None)
    decoded.clear()
    assert_same(read(tmp_path / "set", names, kept), expected)
    assert decoded == ["050.png"]
    decoded.clear()
    assert_same(read(tmp_path / "set", names, kept), expected)
    assert decoded == []


def test_one_changed_image_is_the_only_one_decoded(tmp_path, kept, decoded):
    names = write_noise(tmp_path / "set", range(6))
    read(tmp_path / "set", names, kept)
    status = (tmp_path / "set" / names[2]).stat()
    noise(42, 36, seed=77).save(tmp_path / "set" / names[2])
    os.utime(
        tmp_path / "set" / names[2], ns=(status.st_atime_ns, status.st_mtime_ns)
    )  # the content tells, not the date
    expected = read(tmp_path / "set", names, None)
    decoded.clear()
    assert_same(read(tmp_path / "set", names, kept), expected)
    assert decoded == [names[2]]


def test_another_order_a_part_of_a_set_and_other_names_decode_nothing(tmp_path, kept, decoded):
    names = write_noise(tmp_path / "set", range(6))
    read(tmp_path / "set", names, kept)
    for number, name in enumerate(names):
        (tmp_path / "set" / name).rename(tmp_path / "set" / f"other-{5 - number}.png")
    names = [f"other-{number}.png" for number in range(6)]
    for some in (names, names[1:4], names[::-1]):
        expected = read(tmp_path / "set", some, None)
        decoded.clear()
        assert_same(read(tmp_path / "set", some, kept), expected)
        assert decoded == []


def test_two_files_of_the_same_content_each_have_their_row(tmp_path, kept, decoded):
    names = write_noise(tmp_path / "set", range(3))
    shutil.copy(tmp_path / "set" / names[0], tmp_path / "set" / "twin.png")
    names = [*names, "twin.png"]
    expected = read(tmp_path / "set", names, kept)
    decoded.clear()
    found = read(tmp_path / "set", names, kept)
    assert_same(found, expected)
    assert np.array_equal(found.plain[3], found.plain[0])
    assert decoded == []


def test_kept_files_of_other_images_are_not_read_through(tmp_path, kept, monkeypatch):
    others, ours = (write_noise(tmp_path / name, range(low, low + 4)) for name, low in (("others", 0), ("ours", 10)))
    read(tmp_path / "others", others, kept)
    real, checked = store.OnDisk.checksums, []

    def counted(self, places=None):
        checked.append(len(self) if places is None else len(places))
        return real(self, places)

    read(tmp_path / "ours", ours, kept)
    monkeypatch.setattr(store.OnDisk, "checksums", counted)
    read(tmp_path / "ours", ours[:1], kept)
    # Of the file that holds it, the row that is wanted in each of its renderings; no file of this one row is written.
    assert len(checked) == 4 and set(checked) == {1}


def test_other_preprocessing_is_another_entry(tmp_path, kept, decoded):
    names = write_noise(tmp_path / "set", range(4))
    ways = [
        {"preprocess": SMALL, "side": SIDE},
        {"preprocess": SMALL, "side": None},
        {"preprocess": SMALL, "side": SIDE + 1},
        {"preprocess": Preprocess(size=32, crop=1.0, interpolation="bilinear"), "side": SIDE},
        {"preprocess": Preprocess(size=32, crop=0.875, interpolation="bicubic"), "side": SIDE},
        {"preprocess": Preprocess(size=32, crop=0.875, interpolation="bilinear", fit="squash"), "side": SIDE},
    ]
    for number, way in enumerate(ways, start=1):
        decoded.clear()
        first = read(tmp_path / "set", names, kept, **way)
        assert sorted(decoded) == names, way
        assert len(files_of(kept)) == number
        assert_same(first, read(tmp_path / "set", names, None, **way))
    decoded.clear()
    for way in ways:
        found = read(tmp_path / "set", names, kept, **way)
        assert decoded == []
        assert_same(found, read(tmp_path / "set", names, None, **way))
        decoded.clear()


def test_pixels_of_another_decoder_are_not_used(tmp_path, kept, decoded, monkeypatch):
    names = write_noise(tmp_path / "set", range(3))
    read(tmp_path / "set", names, kept)
    decoded.clear()
    monkeypatch.setattr(cache, "DECODER", pixels.DECODER + 1)
    read(tmp_path / "set", names, kept)
    assert sorted(decoded) == names
    decoded.clear()
    monkeypatch.setattr(cache.PIL, "__version__", "0.1")
    read(tmp_path / "set", names, kept)
    assert sorted(decoded) == names


def test_unreadable_images_have_the_same_reasons_again_and_the_others_are_not_decoded(tmp_path, kept, decoded):
    root = tmp_path / "set"
    names = write_noise(root, range(6))
    (root / names[1]).write_bytes(b"")
    (root / names[4]).write_bytes((root / names[3]).read_bytes()[:300])
    (root / names[5]).unlink()
    expected = read(root, names, None)
    assert [named.path for named in expected.named] == [names[1], names[4], names[5]]
    assert len({named.reason for named in expected.named}) == 3
    assert expected.ids.tolist() == [0, 2, 3]
    assert_same(read(root, names, kept), expected)
    for _ in range(2):
        decoded.clear()
        assert_same(read(root, names, kept), expected)
        assert not {names[0], names[2], names[3]} & set(decoded)


def test_an_image_that_has_become_readable_is_read(tmp_path, kept):
    root = tmp_path / "set"
    names = write_noise(root, range(4))
    whole = (root / names[1]).read_bytes()
    (root / names[1]).write_bytes(b"")
    assert read(root, names, kept).ids.tolist() == [0, 2, 3]
    (root / names[1]).write_bytes(whole)
    assert_same(read(root, names, kept), read(root, names, None))


def test_a_set_without_a_single_readable_image_is_no_crash(tmp_path, kept):
    root = tmp_path / "set"
    names = write_noise(root, range(2))
    for name in names:
        (root / name).write_bytes(b"")
    for _ in range(2):
        found = read(root, names, kept)
        assert len(found.ids) == len(found.plain[:]) == 0
        assert [named.path for named in found.named] == names


def test_no_image_at_all_is_no_crash(tmp_path, kept):
    for _ in range(2):
        assert read(tmp_path, [], kept).plain[:].shape == (0, 32, 32, 3)


# ---- nothing kept can do harm ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rendering", ["plain", "stored"])
def test_a_flipped_byte_is_noticed_and_that_image_alone_is_decoded_again(rendering, tmp_path, kept, decoded):
    names = write_noise(tmp_path / "set", range(6))
    expected = read(tmp_path / "set", names, None)
    read(tmp_path / "set", names, kept)
    row = getattr(expected, rendering)[3].tobytes()
    (file,) = files_of(kept)
    flip(file, file.read_bytes().index(row) + len(row) // 2)
    decoded.clear()
    assert_same(read(tmp_path / "set", names, kept), expected)
    assert set(decoded) == {names[3]}
    decoded.clear()
    assert_same(read(tmp_path / "set", names, kept), expected)
    assert decoded == [], "what was decoded again is kept again"


def test_every_byte_of_the_table_may_be_damaged(tmp_path, kept):
    names = write_noise(tmp_path / "set", range(3))
    expected = read(tmp_path / "set", names, None, side=None)
    read(tmp_path / "set", names, kept, side=None)
    (file,) = files_of(kept)
    sound = file.read_bytes()
    length = int.from_bytes(sound[16:24], "little")
    for at in [*range(24), *range(24, 24 + length, 5)]:
        for path in files_of(kept):
            path.unlink()
        file.write_bytes(sound)
        flip(file, at, bit=1)  # one digit becomes another
        found = read(tmp_path / "set", names, kept, side=None)
        where = f"byte {at}, {sound[24 : 24 + length][max(0, at - 44) : at - 14]}"
        assert np.array_equal(found.plain[:], expected.plain[:]), where
        assert found.aspects.tolist() == expected.aspects.tolist(), where


def head_and(text):
    """A kept file whose table is this text."""
    return store._MAGIC + len(text).to_bytes(8, "little") + text + bytes(1_000_000)


FOREIGN = {
    "empty": b"",
    "text": b"hello",
    "magic alone": store._MAGIC,
    "a table beyond the end": store._MAGIC + (2**62).to_bytes(8, "little"),
    "a table of zeros": head_and(bytes(100)),
    "a list": head_and(b"[1, 2]"),
    "a number": head_and(b"7"),
    "no rows": head_and(b'{"sides": {}, "digests": [], "sizes": [], "crc": {}}'),
    "nested deep": head_and(b"[" * 200_000),
    "a huge side": head_and(
        b'{"sides": {"plain": 4294967296}, "digests": ["a"], "sizes": [[1, 1]], "crc": {"plain": [0]}}'
    ),
    "a side that is huge beyond all": head_and(
        b'{"sides": {"plain": 1' + b"0" * 40 + b'}, "digests": ["a"], "sizes": [[1, 1]], "crc": {"plain": [0]}}'
    ),
    "a negative side": head_and(
        b'{"sides": {"plain": -8}, "digests": ["a"], "sizes": [[1, 1]], "crc": {"plain": [0]}}'
    ),
    "sizes beyond int32": head_and(
        b'{"sides": {"plain": 8}, "digests": ["a"], "sizes": [[1' + b"0" * 30 + b', 1]], "crc": {"plain": [0]}}'
    ),
    "digests that are lists": head_and(
        b'{"sides": {"plain": 8}, "digests": [["a"]], "sizes": [[1, 1]], "crc": {"plain": [0]}}'
    ),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_foreign_file_in_the_folder_is_harmless(content, tmp_path, kept):
    names = write_noise(tmp_path / "set", range(3))
    expected = read(tmp_path / "set", names, None)
    read(tmp_path / "set", names, kept)
    (file,) = files_of(kept)
    settings = file.name.partition("-")[0]
    file.unlink()
    (kept.folder / f"{settings}-{'0' * 20}.pixels").write_bytes(content)
    assert_same(read(tmp_path / "set", names, kept), expected)


FORGED = {
    "no checksum": lambda table: table["crc"].update(plain=[]),
    "a checksum too few": lambda table: table["crc"]["plain"].pop(),
    "checksums of no rendering": lambda table: table["crc"].clear(),
    "checksums by name": lambda table: table["crc"].update(plain={"0": 0}),
    "checksums in lists": lambda table: table["crc"].update(plain=[[one] for one in table["crc"]["plain"]]),
    "a size too few": lambda table: table["sizes"].pop(),
    "sizes beyond int32": lambda table: table.update(sizes=[[10**30, 1]] * len(table["sizes"])),
    "a side that is huge": lambda table: table["sides"].update(plain=2**32),
    "a side that is infinite": lambda table: table["sides"].update(plain=float("inf")),
    "a negative side": lambda table: table["sides"].update(plain=-8),
    "no side": lambda table: table["sides"].clear(),
    "lists in lists": lambda table: table.update(more=json.loads("[" * 500 + "]" * 500)),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
def test_a_kept_file_whose_table_is_forged_and_whose_hash_fits_is_harmless(forge, tmp_path, kept):
    names = write_noise(tmp_path / "set", range(3))
    expected = read(tmp_path / "set", names, None, side=None)
    read(tmp_path / "set", names, kept, side=None)
    (file,) = files_of(kept)
    data, head = file.read_bytes(), store._HEAD_BYTES
    length = int.from_bytes(data[16:24], "little")
    table = json.loads(data[head : head + length])
    forge(table)
    text = json.dumps(table).encode()
    forged = store._MAGIC + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + text
    file.write_bytes(forged + data[len(forged) :])
    found = read(tmp_path / "set", names, kept, side=None)
    assert np.array_equal(found.plain[:], expected.plain[:])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_a_file_cut_short_is_harmless(share, tmp_path, kept):
    names = write_noise(tmp_path / "set", range(5))
    expected = read(tmp_path / "set", names, None)
    read(tmp_path / "set", names, kept)
    (file,) = files_of(kept)
    os.truncate(file, int(share * file.stat().st_size))
    assert_same(read(tmp_path / "set", names, kept), expected)
    assert_same(read(tmp_path / "set", names, kept), expected)


def test_a_folder_by_the_name_of_a_kept_file_is_harmless(tmp_path, kept):
    names = write_noise(tmp_path / "set", range(3))
    expected = read(tmp_path / "set", names, None)
    read(tmp_path / "set", names, kept)
    (file,) = files_of(kept)
    file.unlink()
    file.mkdir()
    assert_same(read(tmp_path / "set", names, kept), expected)


def test_a_kept_file_of_other_settings_under_this_name_is_not_taken(tmp_path, kept):
    names = write_noise(tmp_path / "set", range(3))
    read(tmp_path / "set", names, kept)
    (file,) = files_of(kept)
    other = Preprocess(size=40, crop=0.875, interpolation="bilinear")
    read(tmp_path / "set", names, kept, preprocess=other)
    (second,) = set(files_of(kept)) - {file}
    shutil.copy(second, file)
    assert_same(read(tmp_path / "set", names, kept), read(tmp_path / "set", names, None))


# ---- room ------------------------------------------------------------------------------------------------------------


def entry_bytes(tmp_path):
    """The size of a kept file of four images."""
    names = write_noise(tmp_path / "sample", range(90, 94))
    sample = PixelStore(tmp_path / "sample-kept")
    read(tmp_path / "sample", names, sample)
    (file,) = files_of(sample)
    return file.stat().st_size


def test_the_limit_holds_and_the_files_used_longest_ago_go_first(tmp_path):
    size = entry_bytes(tmp_path)
    kept = PixelStore(tmp_path / "kept", limit_bytes=int(2.5 * size))
    sets = [write_noise(tmp_path / "set", range(start, start + 4)) for start in (0, 10, 20)]
    files = []
    for age, names in zip((300, 200), sets[:2], strict=True):
        read(tmp_path / "set", names, kept)
        (file,) = set(files_of(kept)) - set(files)
        os.utime(file, (time.time() - age,) * 2)
        files.append(file)
    read(tmp_path / "set", sets[0], kept)  # the older one is used again
    os.utime(files[1], (time.time() - 200,) * 2)
    read(tmp_path / "set", sets[2], kept, preprocess=Preprocess(size=32, crop=0.8, interpolation="bilinear"))
    left = files_of(kept)
    assert files[0] in left
    assert files[1] not in left
    assert len(left) == 2
    assert sum(file.stat().st_size for file in left) <= kept.limit_bytes


def test_a_file_that_gave_no_image_does_not_count_as_used(tmp_path, kept):
    sets = [write_noise(tmp_path / "set", range(start, start + 4)) for start in (0, 10)]
    read(tmp_path / "set", sets[0], kept)
    (unused,) = files_of(kept)
    read(tmp_path / "set", sets[1], kept)
    os.utime(unused, (long_ago := time.time() - 1000,) * 2)
    read(tmp_path / "set", sets[1], kept)
    assert unused.stat().st_mtime == pytest.approx(long_ago, abs=1.0)


@pytest.mark.parametrize("in_memory_bytes", [0, 2**26], ids=["in a file", "in memory"])
@pytest.mark.parametrize("share", [0.5, 0.95, 0.999])
def test_a_set_larger_than_the_limit_is_not_kept_and_costs_no_other_its_place(
    share, in_memory_bytes, tmp_path, monkeypatch
):
    monkeypatch.setattr(cache, "IN_MEMORY_BYTES", in_memory_bytes)
    four = write_noise(tmp_path / "set", range(4))
    many = write_noise(tmp_path / "set", range(10, 40))
    read(tmp_path / "set", many, sample := PixelStore(tmp_path / "sample"))
    size = files_of(sample)[0].stat().st_size
    kept = PixelStore(tmp_path / "kept", limit_bytes=int(share * size))
    read(tmp_path / "set", four, kept)
    before = files_of(kept)
    assert len(before) == 1
    assert_same(read(tmp_path / "set", many, kept), read(tmp_path / "set", many, None))
    assert files_of(kept) == before


def test_a_damaged_file_is_replaced_where_there_is_no_room_for_two(tmp_path, decoded):
    size = entry_bytes(tmp_path)
    kept = PixelStore(tmp_path / "kept", limit_bytes=int(1.5 * size))
    names = write_noise(tmp_path / "set", range(4))
    expected = read(tmp_path / "set", names, None)
    read(tmp_path / "set", names, kept)
    row = expected.plain[2].tobytes()
    (file,) = files_of(kept)
    flip(file, file.read_bytes().index(row))
    assert_same(read(tmp_path / "set", names, kept), expected)
    decoded.clear()
    assert_same(read(tmp_path / "set", names, kept), expected)
    assert decoded == []


def test_a_file_that_is_removed_while_its_rows_are_held_stays_readable(tmp_path, kept):
    names = write_noise(tmp_path / "set", range(4))
    expected = read(tmp_path / "set", names, None)
    read(tmp_path / "set", names, kept)
    found = read(tmp_path / "set", names, kept)
    for file in files_of(kept):
        file.unlink()
    assert_same(found, expected)


def test_files_of_others_in_the_cache_are_let_alone(tmp_path):
    foreign = tmp_path / "my-sensor-dump.pixels"
    foreign.write_bytes(bytes(50_000))
    own = tmp_path / f"{'0' * 20}-{'1' * 20}.pixels"
    own.write_bytes(struct.pack("<16s", b"burnish pixels 1"))
    assert PixelStore(tmp_path, limit_bytes=1000)._make_room(990, instead_of=tmp_path / "new.pixels")
    assert foreign.exists() and not own.exists()


# ---- a disk or a system that refuses ---------------------------------------------------------------------------------


def refusing(number):
    def refused(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return refused


@pytest.mark.parametrize("in_memory_bytes", [0, 2**26], ids=["in a file", "in memory"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["posix_fallocate", "link", "replace", "fsync", "pwrite", "utime"])
def test_a_refusing_disk_costs_only_the_keeping(call, number, in_memory_bytes, tmp_path, kept, monkeypatch):
    monkeypatch.setattr(cache, "IN_MEMORY_BYTES", in_memory_bytes)
    names = write_noise(tmp_path / "set", range(4))
    expected = read(tmp_path / "set", names, None)
    with monkeypatch.context() as patched:
        patched.setattr(os, call, refusing(number))
        for _ in range(2):
            assert_same(read(tmp_path / "set", names, kept), expected)
        assert all(path.suffix == ".pixels" and path.name[0] != "." for path in files_of(kept))
    assert_same(read(tmp_path / "set", names, kept), expected)
    assert [path.name[0] != "." for path in files_of(kept)] == [True]


def test_a_folder_that_cannot_be_written_to_costs_only_the_keeping(tmp_path, kept, decoded, monkeypatch):
    names = write_noise(tmp_path / "set", range(4))
    expected = read(tmp_path / "set", names, kept)
    more = [*names, *write_noise(tmp_path / "set", [9])]
    opened, temporary = os.open, store.tempfile.mkstemp

    def read_only(path, flags, *args, **kwargs):
        if str(path).startswith(str(kept.folder)) and flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EACCES, "Permission denied")
        return opened(path, flags, *args, **kwargs)

    def no_temporary(*args, dir=None, **kwargs):
        if str(dir) == str(kept.folder):
            raise OSError(errno.EACCES, "Permission denied")
        return temporary(*args, dir=dir, **kwargs)

    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(os, "utime", refusing(errno.EACCES))
    monkeypatch.setattr(store.tempfile, "mkstemp", no_temporary)
    before = files_of(kept)
    decoded.clear()
    assert_same(read(tmp_path / "set", names, kept), expected)
    assert decoded == [], "what can be read is used, though its date cannot be set"
    assert_same(read(tmp_path / "set", more, kept), read(tmp_path / "set", more, None))
    assert files_of(kept) == before


def test_a_system_without_unnamed_files_gives_the_same_pixels(tmp_path, kept, monkeypatch):
    names = write_noise(tmp_path / "set", range(4))
    expected = read(tmp_path / "set", names, None)
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    for _ in range(2):
        assert_same(read(tmp_path / "set", names, kept), expected)
    assert all(path.suffix == ".pixels" and path.name[0] != "." for path in files_of(kept))
    assert len(files_of(kept)) == 1, "and keeps them"


@pytest.mark.parametrize("kind", ["below a file", "a name too long", "a dangling link"])
def test_a_folder_that_cannot_be_made_costs_only_the_keeping(kind, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "at all")
    places = {"below a file": "file/below", "a name too long": "x" * 300, "a dangling link": "link"}
    kept = PixelStore(tmp_path / places[kind])
    names = write_noise(tmp_path / "set", range(3))
    expected = read(tmp_path / "set", names, None)
    for _ in range(2):
        assert_same(read(tmp_path / "set", names, kept), expected)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_is_not_there_is_made_for_its_owner_alone(tmp_path):
    kept = PixelStore(tmp_path / "not" / "yet")
    names = write_noise(tmp_path / "set", range(3))
    read(tmp_path / "set", names, kept)
    assert len(files_of(kept)) == 1
    assert kept.folder.stat().st_mode & 0o077 == 0


def test_without_a_store_large_sets_go_to_a_file_or_are_decoded_when_asked(tmp_path, monkeypatch, decoded):
    names = write_noise(tmp_path / "set", range(5))
    (tmp_path / "set" / names[1]).write_bytes(b"")
    expected = read(tmp_path / "set", names, None)
    monkeypatch.setattr(cache, "IN_MEMORY_BYTES", 0)
    assert_same(read(tmp_path / "set", names, None), expected)
    monkeypatch.setattr(os, "posix_fallocate", refusing(errno.ENOSPC))
    again = read(tmp_path / "set", names, None)
    decoded.clear()
    assert_same(again, expected)
    assert len(decoded) == 8, "each of four images for each of two renderings"
    (tmp_path / "set" / names[2]).unlink()
    with pytest.raises(UnreadableImage, match="it could be read at the start of the run and cannot now"):
        again.plain[:]


def test_a_draft_that_is_not_kept_leaves_no_file(tmp_path):
    draft = Draft(tmp_path, 4, {"plain": 16})
    draft.rows["plain"][2] = np.full((16, 16, 3), 7, np.uint8)
    assert [bool((row == 7).all()) for row in draft.rows["plain"][:]] == [False, False, True, False]
    assert list(tmp_path.iterdir()) == []
    number = draft.descriptor.number
    os.fstat(number)
    del draft
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_what_a_reader_opens_is_closed_again(tmp_path, kept):
    names = write_noise(tmp_path / "set", range(3))
    read(tmp_path / "set", names, kept)

    def opened():
        links = (os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if is_open(number))
        return [link for link in links if str(kept.folder) in link]

    def is_open(number):
        return os.path.lexists(f"/proc/self/fd/{number}")

    for _ in range(3):
        found = read(tmp_path / "set", names, kept)
        del found
    assert opened() == []


def test_a_blank_array_is_zero_and_writable_in_memory_or_in_a_file(monkeypatch):
    for most in (0, 2**20):
        monkeypatch.setattr(store, "IN_MEMORY_BYTES", most)
        array = blank((3, 5, 2), np.float16)
        assert (array.shape, array.dtype) == ((3, 5, 2), np.float16)
        assert isinstance(array, np.memmap) == (most == 0)
        assert not array.any()
        array[1] = 2.5
        assert array.sum() == 25.0
    monkeypatch.setattr(store, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(os, "posix_fallocate", refusing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        blank((3, 5, 2))


# ---- large JPEGs are decoded in part ---------------------------------------------------------------------------------


def test_the_view_of_a_large_jpeg_is_the_predictors_bit_for_bit(tmp_path, monkeypatch):
    """P1: a run measures what its package will see, stored squares or not."""
    from burnish.ship import predictor

    preprocess = Preprocess(size=96)
    names = ["wide.jpg", "high.jpg"]
    for name, size in zip(names, ((1600, 1200), (1500, 2400)), strict=True):
        photo(*size).save(tmp_path / name, quality=92)
    seen = []

    def outputs(module, batches, **options):
        seen.extend(batches)
        return np.zeros((len(batches[0]), 2), np.float32)

    monkeypatch.setattr(predictor, "outputs", outputs)
    monkeypatch.setattr(predictor.Predictor, "_module", lambda self, batch: None)
    package = predictor.Predictor(
        SimpleNamespace(
            base_model="a",
            preprocess=preprocess,
            classes=("a", "b"),
            temperature=1.0,
            several=False,
            thresholds=None,
            familiarity=None,
        )
    )
    files = [tmp_path / name for name in names]
    package.probabilities(files)
    package.probabilities([file.read_bytes() for file in files])
    for side in (None, 110, 300):
        plain = read(tmp_path, names, None, preprocess=preprocess, side=side).plain[:]
        for batch in seen:
            assert np.array_equal(plain, batch), f"stored squares of {side} px"
    assert len(seen) == 2


def test_the_content_told_is_that_of_the_files(tmp_path):
    names = write_noise(tmp_path / "set", range(3))
    before = read(tmp_path / "set", names, None).content
    assert read(tmp_path / "set", names, None, side=None).content == before
    buffer = io.BytesIO()
    noise(40, 36, seed=5).save(buffer, "PNG")
    (tmp_path / "set" / names[0]).write_bytes(buffer.getvalue())
    assert read(tmp_path / "set", names, None).content != before


@pytest.mark.parametrize("harm", ["cut short", "written over"])
@pytest.mark.parametrize("sitting", ["that wrote it", "that found it"])
def test_a_kept_file_that_is_changed_while_it_is_used_is_said_and_not_read(harm, sitting, tmp_path, kept):
    names = write_noise(tmp_path / "images", range(6))
    found = read(tmp_path / "images", names, kept)
    if sitting == "that found it":
        found = read(tmp_path / "images", names, kept)
    (file,) = kept.folder.glob("*.pixels")
    before = file.stat()
    if harm == "cut short":
        os.truncate(file, 4096)
    else:
        with open(file, "r+b") as stream:
            stream.seek(4096)
            stream.write(bytes(before.st_size - 4096))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    for rows in (found.plain, found.stored):
        with pytest.raises(DataError, match=r"changed or cut short while they were in use\. Say the same again"):
            rows[np.array([3, 1])]
    assert_same(read(tmp_path / "images", names, kept), read(tmp_path / "images", names, None))
