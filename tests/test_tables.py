"""Tables of images: Parquet and Arrow files that lie or hold too much, labels that are missing, columns that are not used."""

from __future__ import annotations

import decimal
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from burnish import api
from burnish.data.catalog import Catalog
from burnish.data.contents import Spool
from burnish.data.sources import columnar, open_source
from burnish.errors import DataError
from conftest import Told
from images import encoded, noise, png, read, write_images


def parquet(file: Path, images: list[bytes], labels: list) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": pa.array(images, pa.binary()), "label": labels}), file)
    return file


# ---- Parquet and Arrow -----------------------------------------------------------------------------------------------


def arrow_file(file: Path, at: int, offset: int, *, stream: bool) -> Path:
    """12 images of 16 bytes each, where offset `at` points elsewhere."""
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"image": pa.array([b"0123456789ABCDEF"] * 12, pa.binary()), "label": ["aaa", "bbb", "ccc"] * 4})
    written = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(file), "wb") as sink, written(sink, table.schema) as writer:
        writer.write_table(table)
    right = [16 * place for place in range(13)]
    wrong = [offset if place == at else value for place, value in enumerate(right)]
    data = file.read_bytes()
    assert data.count(struct.pack("<13i", *right)) == 1
    file.write_bytes(data.replace(struct.pack("<13i", *right), struct.pack("<13i", *wrong)))
    return file


@pytest.mark.parametrize(("at", "offset"), [(5, 2**30), (12, 2**30), (5, -(2**30)), (5, 8)])
def test_an_arrow_file_whose_offsets_are_wrong_is_a_sentence(at, offset, tmp_path):
    """In a process of its own, which what lies beyond the file's end would take with it."""
    files = [arrow_file(tmp_path / f"{kind}.arrow", at, offset, stream=kind == "stream") for kind in ("stream", "file")]
    code = (
        "import sys\n"
        "from burnish.data.sources import open_source\n"
        "from burnish.errors import DataError\n"
        "for file in sys.argv[1:]:\n"
        "    try:\n"
        "        catalog = open_source(file)\n"
        "        print([len(catalog.image(row)) for row in range(12)])\n"
        "    except DataError as error:\n"
        "        print('refused:', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, files)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (done.returncode, done.stderr)
    told = done.stdout.splitlines()
    assert [line.partition(".arrow")[0] for line in told] == ["refused: stream", "refused: file"], told
    assert all("damaged after row 0" in line and line.endswith("Fetch it again.") for line in told)


def test_one_image_in_very_many_rows_of_a_parquet_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(columnar, "_RATIO_FROM_BYTES", 2**20, raising=False)
    large = encoded(noise(80, 80), "PNG")
    file = parquet(tmp_path / "t.parquet", [large] * 300, ["a", "b", "c"] * 100)
    assert 300 * len(large) > 2**20 and 300 * len(large) > 100 * file.stat().st_size
    with pytest.raises(
        DataError, match=r"t\.parquet: its images are over 100 times as large as its files, .* again and again"
    ):
        open_source(file)
    few = parquet(tmp_path / "few.parquet", [large] * 30, ["a", "b", "c"] * 10)
    assert len(open_source(few)) == 30


def test_a_value_of_a_parquet_file_beyond_the_limit_is_named_and_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(columnar, "MAX_BYTES", 1_000_000)
    held, add = [], Spool.add
    monkeypatch.setattr(Spool, "add", lambda self, data: held.append(len(data)) or add(self, data))
    images = [png(at) for at in range(8)]
    images[3] = encoded(noise(600, 600), "PNG")
    assert len(images[3]) > 1_000_000
    catalog = open_source(parquet(tmp_path / "t.parquet", images, ["a", "b"] * 4))
    assert max(held) <= 1_000_000
    found = read(catalog)
    assert [(one.path, one.reason) for one in found.named] == [
        ("t.parquet#000004", "larger than 1 MB, the most that is read")
    ]
    assert len(found.ids) == 7


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


# ---- labels that are missing among several ---------------------------------------------------------------------------


def open_listed(folder: Path, kind: str, labels: list) -> Catalog:
    """The catalogue of a table of that kind that lists an image for each label."""
    file = folder / f"t.{kind}"
    if kind == "parquet":
        parquet(file, [png(at) for at in range(len(labels))], labels)
    else:
        write_images(folder, {"x": len(labels)})
        paths = [f"x/{at:03d}.png" for at in range(len(labels))]
        rows = list(zip(paths, labels, strict=True))
        if kind == "jsonl":
            lines = [json.dumps({"path": path, "label": label}) for path, label in rows]
        else:
            lines = ["path,label", *(f"{path},{label}" for path, label in rows)]
        file.write_text("\n".join(lines))
    return open_source(file, for_training=False)


@pytest.mark.parametrize(
    ("kind", "missing", "sentence"),
    [
        ("csv", "", r"t\.csv, line 4: the label is empty"),
        ("jsonl", None, r"t\.jsonl, line 3: the label is empty"),
        ("jsonl", [None], r"t\.jsonl, line 3: a label in its list is empty"),
        ("jsonl", [""], r"t\.jsonl, line 3: a label in its list is empty"),
        ("jsonl", ["a", " "], r"t\.jsonl, line 3: a label in its list is empty"),
        ("parquet", None, r"t\.parquet, row 3: the label is empty"),
        ("parquet", [None], r"t\.parquet, row 3: a label in its list is empty"),
        ("parquet", ["a", None], r"t\.parquet, row 3: a label in its list is empty"),
    ],
)
def test_a_label_that_is_missing_among_several_is_refused_with_its_line(kind, missing, sentence, tmp_path):
    several = ["a|b", "b", missing, "a"] if kind == "csv" else [["a", "b"], ["b"], missing, ["a"]]
    with pytest.raises(DataError, match=sentence):
        open_listed(tmp_path, kind, several)


@pytest.mark.parametrize(("kind", "none"), [("csv", "|"), ("jsonl", []), ("parquet", [])])
def test_a_bar_and_an_empty_list_mean_none_of_the_classes(kind, none, tmp_path):
    several = ["a|b", "b", none, "a"] if kind == "csv" else [["a", "b"], ["b"], none, ["a"]]
    catalog = open_listed(tmp_path, kind, several)
    assert catalog.several and catalog.classes == ("a", "b")
    assert sorted(catalog.label(row) for row in range(4)) == ["", "a", "a|b", "b"]


# ---- columns that are not used ---------------------------------------------------------------------------------------


def lines_of(shapes: Path, folder: Path, kind: str) -> Path:
    """A table of the shapes with an author and a patient of each."""
    rows = [
        {"path": f"{file.parent.name}/{file.name}", "label": file.parent.name, "Patient ": "7", "author": "me"}
        for file in sorted(shapes.rglob("*.png"))
    ]
    if kind == "jsonl":
        text = "\n".join(map(json.dumps, rows))
    else:
        text = "\n".join(",".join(row) for row in [list(rows[0]), *(list(row.values()) for row in rows)])
    (folder / f"table.{kind}").write_text(text)
    return folder / f"table.{kind}"


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_columns_that_are_not_used_are_named(kind, images):
    file = lines_of(images, images, kind)
    assert {name.lower() for name in open_source(str(file)).unused} == {"patient", "author"}
    told = Told()
    api.fit(file, out=images.parent / "run", model="random:test_resnet", method="probe", budget=None, watcher=told)
    (said,) = [line for line in told.lines if line.startswith("not used, of the table's columns: ")]
    assert "author" in said and "stay on one side of a split" in said


def test_of_very_many_columns_some_are_named(tmp_path, images):
    row = {"path": "blue/000.png", "label": "blue", **{f"x{number}": "1" for number in range(1000)}}
    (images / "wide.jsonl").write_text(json.dumps(row))
    assert len(open_source(str(images / "wide.jsonl"), for_training=False).unused) == 10


@pytest.mark.parametrize("kind", ["timestamp[ns]", "date32[day]", "duration[ns]", "decimal128(3, 1)"])
def test_a_column_of_a_type_that_is_no_name_is_told_by_its_type(kind, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    kinds = [pa.timestamp("ns"), pa.date32(), pa.duration("ns"), pa.decimal128(3, 1)]
    wanted = next(one for one in kinds if str(one) == kind)
    # 1.5 µs, which no datetime of Python can hold
    labels = pa.array([1500 + number % 2 for number in range(8)]).cast(
        pa.int32() if kind == "date32[day]" else pa.int64()
    )
    cast = (
        pa.array([decimal.Decimal(number) for number in [1, 2] * 4], wanted)
        if kind.startswith("decimal")
        else labels.cast(wanted)
    )
    columns = {"image": pa.array([png(at) for at in range(8)], pa.binary()), "label": ["a", "b"] * 4}
    for column in ("label", "group"):
        pq.write_table(pa.table(columns | {column: cast}), tmp_path / "t.parquet")
        with pytest.raises(DataError) as error:
            open_source(tmp_path / "t.parquet")
        assert str(error.value) == (
            f"t.parquet: its column {column} is of type {kind}, expected text or whole numbers. Convert the column to text."
        )


@pytest.mark.parametrize("kind", ["dictionary", "view"])
def test_images_in_a_dictionary_or_a_view_are_read_each_as_large_as_it_is(kind, tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    images = [png(at) for at in range(8)]
    monkeypatch.setattr(columnar, "MAX_BYTES", max(map(len, images)))
    monkeypatch.setattr(columnar, "_LONGEST_TEXT", 64)  # so that all of them together are too large
    column = pa.array([*images, images[0], None], pa.binary())
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(pa.binary_view())
    pq.write_table(pa.table({"image": column, "label": ["a", "b"] * 5}), tmp_path / "t.parquet")
    catalog = open_source(tmp_path / "t.parquet")
    found = read(catalog)
    assert [(one.path, one.reason) for one in found.named] == [("t.parquet#000010", "the row holds no image")]
    assert len(found.ids) == 9


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_utf_16_without_its_mark_is_told_and_not_its_columns(kind, encoding, images):
    text = "path,label\n" if kind == "csv" else '{"path": "blue/000.png", "label": "a"}\n'
    (images / f"t.{kind}").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=rf"t\.{kind} is not UTF-8 \(byte [01]\)\. Save it as 'CSV UTF-8'"):
        open_source(images / f"t.{kind}")


def test_columns_of_a_parquet_file_that_are_not_used_are_named(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    images = [encoded(noise(seed=number), "PNG") for number in range(4)]
    columns = {"image": pa.array(images, pa.binary()), "label": ["a", "b"] * 2, "patient": [1, 2, 3, 4]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert open_source(str(tmp_path / "a.parquet"), for_training=False).unused == ("patient",)


@pytest.mark.parametrize("name", ["path", "label", "group"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_text_of_very_many_characters_is_refused_briefly_with_its_line(kind, name, tmp_path):
    write_images(tmp_path, {"a": 3, "b": 3})
    row = {"path": "a/000.png", "label": "a", "group": "g"} | {name: "x" * 100_000}
    text = json.dumps(row) if kind == "jsonl" else f"path,label,group\n{','.join(row.values())}\n"
    (tmp_path / f"list.{kind}").write_text(text)
    with pytest.raises(DataError, match=r"'x{40}…' has 100,000 characters, expected 4,096 at most") as told:
        open_source(tmp_path / f"list.{kind}")
    assert len(str(told.value)) < 250
