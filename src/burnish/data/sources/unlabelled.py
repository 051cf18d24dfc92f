"""Images that are to be named, so without labels: what a table lists, or an archive holds, of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from burnish.data.catalog import Named
from burnish.data.contents import Contents
from burnish.data.sources.archive import images_in
from burnish.data.sources.columnar import rows_of_images
from burnish.data.sources.header import KINDS as TABLES
from burnish.data.sources.table import listed, listed_in

_COLUMNAR = (".parquet", ".arrow")
_ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class Inside:
    """An image in an archive or table, read when it is called."""

    file: Path  # the archive or table
    path: str  # the image's in it
    contents: Contents

    def __call__(self) -> Path | bytes:
        """The bytes of a file; raises UnreadableImage."""
        return self.contents.image(self.path)

    def __str__(self) -> str:
        return f"{self.file}/{self.path}"


def lists(file: Path) -> bool:
    """Whether a file with that name lists images that lie beside it."""
    return file.name.lower().endswith(TABLES)


def holds(file: Path) -> bool:
    """Whether a file with that name holds images."""
    return is_archive(file) or file.name.lower().endswith(_COLUMNAR)


def is_archive(file: Path) -> bool:
    """Whether a file with that name is an archive."""
    return file.name.lower().endswith(_ARCHIVES)


def is_kept_by_datasets(file: Path) -> bool:
    """Whether `datasets` has kept a file with that name beside its own, where it holds the same images again."""
    return file.name.startswith("cache-") and file.suffix == ".arrow"


def images_of(file: Path) -> Iterator[Path | Inside | Named]:
    """The images of a table as it lists them, or of an archive in order of name; and what is no image there, with the reason.

    Paths in a table are relative to its folder and stay inside. DataError where the file is not what its name says;
    of an archive that is sound and holds none NotEnoughData.
    """
    if lists(file):
        yield from listed_in(file)
    elif file.name.lower().endswith(_COLUMNAR):
        rows, contents = rows_of_images(file)
        if contents is None:
            yield from listed(file, rows, unit="row")
        else:
            yield from (Inside(file, values["path"], contents) for _, values in rows)
    else:
        members, named, contents = images_in(file)
        yield from (Inside(file, member, contents) for member in sorted(members))
        yield from named
