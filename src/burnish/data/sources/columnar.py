"""Parquet files, and the Arrow files that Hugging Face `datasets` saves: a row an image, its bytes in the row or its path.

pyarrow is imported here alone; it comes with burnish[data].
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from burnish.data.catalog import Catalog
from burnish.data.contents import Contents, Packed, Place, Spool
from burnish.data.file import MAX_BYTES
from burnish.data.sources.assemble import as_in_a_table, told_apart
from burnish.data.sources.folder import SPLIT_FOLDERS
from burnish.data.sources.table import COLUMNS, Values, from_rows, note_others
from burnish.errors import DataError, NotEnoughData, shown, some

_BYTES = (
    "bytes",
    "image",
    "img",
)  # columns that hold the image itself: binary, or Hugging Face's struct of bytes and path
_LABELS = ("label", "labels", "fine_label", "class", "target")  # the first that is there
_ROWS, _ROWS_OF_IMAGES = 256, 1  # read at a time; of one image kept once, each row is a copy
_BATCH_BYTES = 2**30  # that the rows read at a time may come to
_LONGEST_TEXT = 2**20  # bytes of a label, a path, a split or a group
_MAX_RATIO, _RATIO_FROM_BYTES = (
    100,
    64 * 2**20,
)  # images over the bytes of their files: more is one image again and again


def open_columnar(root: Path, files: list[Path]) -> Catalog:
    """The catalogue of the rows of Parquet or Arrow files; a split column, else the word a file's name begins with.

    Columns: path, or bytes, or image; label, text or whole numbers (named by the schema where it is Hugging Face's) or lists of
    them; and where wanted split and group. DataError when a file is damaged, columns are missing, or pyarrow is not installed.
    """
    _refuse_some_splits(root, files)
    pictures = _Pictures.of(files)
    others: dict[str, None] = {}
    rows = (row for file in files for row in _rows_of(root, file, pictures, others))
    first = next(rows, None)
    if first is None:
        raise NotEnoughData(f"{shown(str(root))} holds no rows. Expected an image and its label a row.")
    held = bool(pictures.places or pictures.absent)

    def all_rows() -> Iterator[tuple[int, Values]]:
        yield first
        yield from rows

    name = files[0] if len(files) == 1 else root / files[0].name
    kind = "parquet" if _is_parquet(files[0]) else "arrow"
    catalog = from_rows(name, all_rows(), source=kind, unit="row", contents=pictures.contents if held else None)
    return replace(catalog, unused=tuple(others))


def rows_of_images(file: Path) -> tuple[list[tuple[int, Values]], Contents | None]:
    """(row, its path) of each image in a Parquet or Arrow file, and what holds them where they are no files of those paths.

    No labels are asked for. DataError as for `open_columnar`.
    """
    pictures = _Pictures.of([file])
    rows = list(_rows_of(file, file, pictures, {}, labels=False))
    return rows, pictures.contents if pictures.places or pictures.absent else None


def is_saved_by_datasets(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote the folder."""
    return any(os.path.isfile(folder / name) for name in ("state.json", "dataset_dict.json"))


def files_saved_by_datasets(folder: Path) -> list[Path]:
    """The Arrow files of a saved data set, or of each split of one."""
    folders = [folder] if (folder / "state.json").is_file() else sorted(one for one in folder.iterdir() if one.is_dir())
    # What `map` and `filter` left there is no data: it holds images again, or places of images.
    return [file for one in folders for file in sorted(one.glob("*.arrow")) if not file.name.startswith("cache-")]


def required(folder: Path, files: list[Path]) -> list[Path]:
    """The files of a saved data set; DataError when there are none."""
    if not files:
        raise DataError(
            f"{shown(str(folder))} looks saved by datasets.save_to_disk and holds no .arrow file. Save it again."
        )
    return files


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files in a folder, in its folder data/, in its folders of splits, or else in the one folder that has some.

    DataError where several folders hold some: they are data sets of their own.
    """
    found = sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))
    if found:
        return found
    below = sorted(folder.glob("*/*.parquet"))
    holders = sorted({file.parent.name for file in below})
    if len(holders) > 1 and not all(name.lower() in SPLIT_FOLDERS for name in holders):
        listed = ", ".join(shown(name) for name in holders[:8])
        raise DataError(
            f"{shown(str(folder))} holds Parquet files in several folders ({listed}), each a data set of its own. "
            f"Give one: {shown(str(folder / holders[0]))}"
        )
    return below


@dataclass(frozen=True)
class _Pictures:
    """The images that rows hold: their bytes in a spool, `most` of them in all, and why a row has none."""

    most: int
    spool: Spool = field(default_factory=Spool)
    places: dict[str, Place] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, files: list[Path]) -> _Pictures:
        """Of files of which none is taken yet."""
        return cls(max(_RATIO_FROM_BYTES, _MAX_RATIO * sum(os.path.getsize(file) for file in files)))

    @property
    def contents(self) -> Packed:
        """What gives them."""
        return Packed(self.places, MAX_BYTES, self.absent)

    def take(self, file: Path, path: str, one: Any) -> None:
        """The image in that cell, an array of one, is `path` from now on."""
        large = one.nbytes > MAX_BYTES + _LONGEST_TEXT  # with its path
        held = None if large else one[0].as_py()
        data = held.get("bytes") if isinstance(held, dict) else held
        if large or (isinstance(data, bytes) and len(data) > MAX_BYTES):
            self.absent[path] = f"larger than {MAX_BYTES // 1_000_000} MB, the most that is read"
        elif isinstance(data, bytes):
            if self.spool.size + len(data) > self.most:
                raise DataError(
                    f"{shown(file.name)}: its images are over {_MAX_RATIO} times as large as its files, as one again and "
                    "again is. Give each image once."
                )
            self.places[path] = Place(self.spool, *self.spool.add(data))
        else:
            self.absent[path] = _why_absent(held)


def _rows_of(
    root: Path, file: Path, pictures: _Pictures, others: dict[str, None], *, labels: bool = True
) -> Iterator[tuple[int, Values]]:
    """(row, values) of one file; the images inside it are taken by `pictures`.

    others: takes some names of columns that are not used. labels: else the images alone are asked for.
    """
    schema, batches = _opened(file, pictures.most)
    columns = _columns(file, schema, labels=labels)
    note_others(others, [name for name in schema.names if name not in columns.values()])
    names = _class_names(schema, columns["label"]) if labels else []
    word = _split_word(root, file)
    below = file.relative_to(root).as_posix() if root != file else file.name
    wanted = list(dict.fromkeys(columns.values()))
    copies = "image" in columns and _inner(kind := schema.field(columns["image"]).type) is kind
    row = labelled = 0
    try:
        for batch in batches(wanted, _ROWS_OF_IMAGES if copies else _ROWS):
            for name, column in columns.items():
                if name != "image":
                    _refuse_long_texts(file, column, batch.column(column))
            cells = {name: batch.column(column).to_pylist() for name, column in columns.items() if name != "image"}
            held = batch.column(columns["image"]) if "image" in columns else None
            for at in range(batch.num_rows):
                row += 1
                values = {name: _value(file, row, name, cells[name][at], names) for name in cells if name in COLUMNS}
                values.setdefault("split", word)
                labelled += values.get("label", "") != ""
                if held is not None:
                    values["path"] = f"{below}#{row:06d}"
                    pictures.take(file, values["path"], _alone(held, at))
                yield row, values
        if labels and row and not labelled:
            raise DataError(
                f"{shown(file.name)}: none of its {row:,} rows has a label. Move the file away, or label it."
            )
    except DataError:
        raise
    except Exception as error:  # pyarrow's errors are many
        raise DataError(f"{shown(file.name)}: damaged after row {row} ({_said(error)}). Fetch it again.") from None


def _alone(column: Any, at: int) -> Any:
    """A cell as an array of one, out of the dictionary where the column has one: of that all would be counted, not this."""
    import pyarrow.types as types

    if not types.is_dictionary(column.type):
        return column.slice(at, 1)
    index = column.indices.slice(at, 1)
    return index if index.null_count else column.dictionary.slice(index[0].as_py(), 1)


def _why_absent(held: Any) -> str:
    """Why a row has no image's bytes."""
    path = held.get("path") if isinstance(held, dict) else None
    if isinstance(path, str) and path:
        return f"the row holds the path {shown(path)[:120]} and no image; embed the images, or list the files in a column path"
    return "the row holds no image"


def _refuse_some_splits(root: Path, files: list[Path]) -> None:
    """DataError when some of the files are of a split, by their names, and others of none that is known."""
    unknown = [file for file in files if not _split_word(root, file)]
    if unknown and len(unknown) < len(files):
        without = [file for file in unknown if "split" not in {name.strip().lower() for name in _opened(file)[0].names}]
        if without:
            raise DataError(
                f"{shown(without[0].name)} is of no split that is known, as other files there are. Move it away, or "
                "begin its name with train, val or test."
            )


def _refuse_long_texts(file: Path, name: str, column: Any) -> None:
    """DataError where a cell is no name and no path, by its length: one that is kept once would be made anew for each row."""
    import pyarrow.compute as pc
    import pyarrow.types as types

    while types.is_dictionary(column.type) or types.is_list(column.type) or types.is_large_list(column.type):
        column = column.dictionary if types.is_dictionary(column.type) else column.flatten()
    if types.is_string(column.type) or types.is_large_string(column.type):
        lengths = pc.call_function("binary_length", [column])
        longest = pc.call_function("min_max", [lengths])["max"].as_py() or 0
        if longest > _LONGEST_TEXT:
            raise DataError(
                f"{shown(file.name)}: its column {shown(name)} holds a text of {longest:,} bytes, expected at most "
                f"{_LONGEST_TEXT:,}. Shorten it."
            )


def _opened(file: Path, most: int = 0) -> tuple[Any, Any]:
    """(schema, (columns, rows) -> batches) of a Parquet or Arrow file; DataError where they unpack to over `most` bytes."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(f"{shown(file.name)} needs pyarrow to be read; run: pip install 'burnish[data]'") from None
    try:
        if _is_parquet(file):
            table = pq.ParquetFile(file)

            def of_parquet(wanted: list[str], rows: int) -> Iterator[Any]:
                _refuse_bombs(file, table.metadata, wanted, most)
                # A dictionary comes with each batch, however few its rows are.
                plain = [name for name in wanted if _inner(kind := table.schema_arrow.field(name).type) is kind]
                largest = _refuse_bombs(file, table.metadata, plain, most)
                for batch in table.iter_batches(max(1, min(rows, _BATCH_BYTES // max(1, largest))), columns=wanted):
                    batch.validate(full=True)
                    yield batch

            return table.schema_arrow, of_parquet
        source = pa.OSFile(str(file))  # mapped, a file that is cut short meanwhile ends the process
        try:
            stream = pa.ipc.open_stream(source)
            batches: Any = stream
        except pa.ArrowInvalid:
            stream = pa.ipc.open_file(source)
            batches = (stream.get_batch(index) for index in range(stream.num_record_batches))

        def of_arrow(wanted: list[str], rows: int) -> Iterator[Any]:
            for whole in batches:
                batch = whole.select(wanted)
                batch.validate(full=True)  # nobody else does, and what it points to is read
                for at in range(0, batch.num_rows, _ROWS):
                    yield batch.slice(at, _ROWS)

        return stream.schema, of_arrow
    except Exception as error:
        raise DataError(
            f"{shown(file.name)}: no sound Parquet or Arrow file ({_said(error)}). Fetch it again."
        ) from None


def _refuse_bombs(file: Path, metadata: Any, wanted: list[str], most: int) -> int:
    """The bytes of the largest piece of a column that is read; DataError where all of them are more than `most`."""
    pieces = [
        piece.total_uncompressed_size
        for group in map(metadata.row_group, range(metadata.num_row_groups))
        for piece in map(group.column, range(group.num_columns))
        if any(piece.path_in_schema == name or piece.path_in_schema.startswith(f"{name}.") for name in wanted)
    ]
    if sum(pieces) > most:
        raise DataError(
            f"{shown(file.name)}: unpacks to {sum(pieces):,} bytes, over {_MAX_RATIO} times as large as its files (a bomb), "
            "which is not read."
        )
    return max(pieces, default=0)


def _columns(file: Path, schema: Any, *, labels: bool) -> dict[str, str]:
    """Our name -> the file's column, for image (the bytes) or path; with labels label, and where it has them split and group."""
    import pyarrow.types as types

    by_name = {name.strip().lower(): name for name in schema.names}
    found = {}
    for name in _BYTES:
        kind = _inner(schema.field(by_name[name]).type) if name in by_name else None
        if kind is None:
            continue
        binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
        if binary or (types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
            found["image"] = by_name[name]
            break
    if "image" not in found and "path" in by_name:
        found["path"] = by_name["path"]
    label = next((name for name in _LABELS if name in by_name), None)
    if not found or (labels and label is None):
        raise DataError(
            f"{shown(file.name)} has the columns {some(schema.names, quote='')}; expected {'label, and ' if labels else ''}path "
            "or the images themselves as bytes or image. Rename them."
        )
    if labels and label is not None:
        found["label"] = by_name[label]
        found |= {name: by_name[name] for name in ("split", "group") if name in by_name}
    _refuse_other_kinds(file, schema, {name: column for name, column in found.items() if name != "image"})
    return found


def _inner(kind: Any) -> Any:
    """The type of the values of a column that has a dictionary of them; else its own."""
    import pyarrow.types as types

    return kind.value_type if types.is_dictionary(kind) else kind


def _refuse_other_kinds(file: Path, schema: Any, columns: dict[str, str]) -> None:
    """DataError where a column is of a type that is never a name: some of them cannot even be asked for a value."""
    import pyarrow.types as types

    tests = (
        types.is_string, types.is_large_string, types.is_string_view, types.is_integer, types.is_floating,
        types.is_boolean, types.is_null,
    )  # fmt: skip
    for name, column in columns.items():
        kind = _inner(schema.field(column).type)
        lists = (types.is_list, types.is_large_list, types.is_fixed_size_list) if name == "label" else ()
        inner = _inner(kind.value_type) if any(test(kind) for test in lists) else kind
        if not any(test(inner) for test in tests):
            raise DataError(
                f"{shown(file.name)}: its column {shown(column)} is of type {shown(str(kind))[:80]}, expected text or whole "
                "numbers. Convert the column to text."
            )


def _class_names(schema: Any, column: str) -> list[str]:
    """The names of a ClassLabel column, as Hugging Face keeps them in the schema; [] without them."""
    try:
        kept = json.loads((schema.metadata or {})[b"huggingface"])
        feature = kept["info"]["features"][column]
        inner = feature[0] if isinstance(feature, list) else feature.get("feature", feature)  # of a list of classes
        names = inner["names"]
        return told_apart(map(str, names)) if isinstance(names, list) else []
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, RecursionError):
        return []


def _value(file: Path, row: int, name: str, value: Any, names: list[str]) -> str | list[str]:
    """A value as the text of a cell, or a list of classes as texts."""
    if name == "label" and isinstance(value, list):
        return [_text(file, row, name, _no_flag(file, row, one), names) for one in value]
    return _text(file, row, name, value, names)


def _no_flag(file: Path, row: int, value: Any) -> Any:
    """The value of a list of labels; DataError for true and false, which stand for a class each there."""
    if isinstance(value, bool):
        raise DataError(
            f"{shown(file.name)}, row {row}: a label in the list is {value}, expected the names of classes."
        )
    return value


def _text(file: Path, row: int, name: str, value: Any, names: list[str]) -> str:
    """A value as the text of a cell; class numbers by their names."""
    if value is None:
        return ""
    value = as_in_a_table(value)
    if not isinstance(value, (str, int)):
        came = f"the {name} is {type(value).__name__}, expected text" + (
            " or a whole number" if name == "label" else ""
        )
        raise DataError(f"{shown(file.name)}, row {row}: {came}. Convert the column.")
    if name == "label" and names and isinstance(value, int):
        if not 0 <= value < len(names):
            raise DataError(
                f"{shown(file.name)}, row {row}: the class number {value}, and {len(names)} classes are named."
            )
        return names[value]
    return str(value) if name == "path" else str(value).strip()


def _split_word(root: Path, file: Path) -> str:
    """The split that a file's name begins with, or that its folder below `root` is called; "" for none."""
    first = re.split(r"[-_.]", file.name.lower(), maxsplit=1)[0]
    folder = file.parent.name.lower() if root in file.parent.parents else ""
    return SPLIT_FOLDERS.get(first) or SPLIT_FOLDERS.get(folder) or ""


def _is_parquet(file: Path) -> bool:
    try:
        with open(file, "rb") as stream:
            return stream.read(4) == b"PAR1"
    except OSError as error:
        raise DataError(f"{shown(str(file))} cannot be read: {error.strerror}. Check its permissions.") from None


def _said(error: Exception) -> str:
    return shown(" ".join(str(error).split()))[:120] or type(error).__name__
