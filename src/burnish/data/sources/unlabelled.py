"""Images that are to be named, so without labels: what a table lists, or an archive holds, of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from burnish.data.catalog import Named
from burnish.data.contents import Contents
from burnish.data.sources.archive import images_in
from burnish.data.sources.columnar import open_columnar
from burnish.data.sources.header import KINDS as TABLES
from burnish.data.sources.table import listed_in

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


def is_several(file: Path) -> bool:
    """Whether a file with that name holds or lists images and is none itself."""
    return file.name.lower().endswith((*TABLES, *_COLUMNAR, *_ARCHIVES))


def images_of(file: Path) -> Iterator[Path | Inside | Named]:
    """The images of a table as it lists them, or of an archive in order of name; and what is no image there, with the reason.

    Paths in a table are relative to its folder and stay inside. DataError where the file is not what its name says, or
    holds none; of a Parquet or Arrow file also where it has no labels.
    """
    name = file.name.lower()
    if name.endswith(TABLES):
        yield from listed_in(file)
    elif name.endswith(_COLUMNAR):
        catalog = open_columnar(file, [file])
        for path in catalog.paths:
            yield (
                Path(os.path.join(catalog.root, path))
                if catalog.contents is None
                else Inside(file, path, catalog.contents)
            )
        yield from catalog.named
    else:
        members, named, contents = images_in(file)
        yield from (Inside(file, member, contents) for member in sorted(members))
        yield from named
