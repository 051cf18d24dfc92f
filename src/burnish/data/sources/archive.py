"""Class folders in a .zip or .tar archive, read in place (P8)."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from burnish.archives import OnDisk, Zip, entries_of_tar, is_tar, read_member, unpacked
from burnish.data.catalog import Catalog, Named
from burnish.data.contents import Contents, FileOnDisk, Packed, Place, Spool, Zipped
from burnish.data.file import MAX_BYTES
from burnish.data.sources.folder import SPLIT_FOLDERS, sorted_into_classes
from burnish.data.sources.scan import Scan, has_image_suffix, why_not_by_name, why_not_by_suffix
from burnish.errors import DataError, NotEnoughData, shown

MOST_MEMBERS = 5_000_000
_OFFICE = ("[Content_Types].xml", "mimetype")  # what .xlsx and .ods hold
_TAR = 512  # bytes of a tar's block


def open_zip(file: Path, *, for_training: bool) -> Catalog:
    """The catalogue of the class folders, or split folders, in a zip; one folder around all of them is passed over.

    Links, devices and names that climb out are named, and not followed. DataError when the archive is damaged or made to
    deceive, NotEnoughData when it holds no images.
    """
    aside: dict[str, str] = {}
    return _catalog(file, "zip", *_members_of_zip(file, aside), aside, for_training=for_training)


def open_tar(file: Path, places: dict[str, Place], aside: dict[str, str], *, for_training: bool) -> Catalog:
    """The same of a tar, packed or not, whose files' places are known."""
    return _catalog(file, "tar", places, Packed(places, MAX_BYTES), aside, for_training=for_training)


def _catalog(
    file: Path, kind: str, members: Iterable[str], contents: Contents, aside: dict[str, str], *, for_training: bool
) -> Catalog:
    found, named, top = _scanned(members)
    outside = len(named) + len(aside)
    named += [Named(name, reason) for name, reason in aside.items()]
    if not found.images:
        first = f" (first: {shown(named[0].path)}: {named[0].reason})" if named else ""
        more = f": {len(named)} other files{first}" if named else ""
        if any(one.path in _OFFICE for one in named):
            raise DataError(f"{shown(file.name)} is a document of an office program. Save the table as 'CSV UTF-8'.")
        raise NotEnoughData(
            f"{shown(file.name)} holds no images{more}. Expected an archive of one folder of images per class: "
            "cat/1.jpg, dog/1.jpg."
        )
    catalog = sorted_into_classes(file, found, for_training=for_training)
    named += [Named(top + one.path, one.reason) for one in catalog.named]
    return replace(
        catalog,
        paths=tuple(top + path for path in catalog.paths),
        named=tuple(sorted(named, key=lambda one: (one.path, one.reason))),
        source=f"{catalog.source} in a {kind}",
        contents=contents,
        counted=(catalog.counted or 0) + outside,
    )


def images_in(file: Path) -> tuple[list[str], list[Named], Contents]:
    """The images in a zip or tar, in whatever folders, and what is none.

    DataError where it is no archive, NotEnoughData where it has none.
    """
    aside: dict[str, str] = {}
    if is_packed_or_tar(file):
        places, aside = places_in_tar(file)
        members, contents = places.keys(), Packed(places, MAX_BYTES)
    elif is_zip(file):
        members, contents = _members_of_zip(file, aside)
    else:
        raise DataError(f"{shown(file.name)} is no archive that is read. Expected a .zip or .tar of images.")
    found, named, top = _scanned(members)
    if not found.images and not any(" is not read" in one.reason for one in named):
        raise NotEnoughData(f"{shown(file.name)} holds no images.")
    return [top + path for path in found.images], [*named, *(Named(*one) for one in aside.items())], contents


def is_zip(file: Path) -> bool:
    """Whether the file's content is a zip archive; also of one that begins with a program."""
    with _opened(file) as stream:
        if stream.read(4) in (b"PK\x03\x04", b"PK\x05\x06"):
            return True
        size = stream.seek(0, io.SEEK_END)
        stream.seek(max(0, size - 65_557))  # the end of a zip: 22 bytes and a comment
        return b"PK\x05\x06" in stream.read()


def is_packed_or_tar(file: Path) -> bool:
    """Whether the file's content is a tar archive, or packed as one may be."""
    with _opened(file) as stream:
        return is_tar(stream.read(_TAR))


def places_in_tar(file: Path, spool: Spool | None = None) -> tuple[dict[str, Place], dict[str, str]]:
    """Where each regular file of a tar stands, of a packed one in a temporary copy without a name; why others are not read.

    spool: what takes that copy, where those of several archives lie in one.
    """
    label, places, aside = shown(file.name), dict[str, Place](), dict[str, str]()
    with _opened(file) as raw:
        size = raw.seek(0, io.SEEK_END)
        raw.seek(0)
        stream = unpacked(raw, size, label, error=DataError)
        plain = stream is raw
        holder = FileOnDisk(file) if plain else spool or Spool()
        for tar, info in entries_of_tar(stream, label, error=DataError, aside=aside, most=MOST_MEMBERS, skips=plain):
            if isinstance(holder, FileOnDisk):
                places[info.name] = Place(holder, info.offset_data, info.size)
            elif _is_wanted(info.name) and info.size <= MAX_BYTES:
                places[info.name] = Place(holder, *holder.add(read_member(tar, info, label, error=DataError)))
            else:
                places[info.name] = Place(holder, 0, info.size)
    return places, aside


def _members_of_zip(file: Path, aside: dict[str, str]) -> tuple[Iterable[str], Contents]:
    held = OnDisk(_opened(file))  # closed with it
    if len(held) == 0:
        raise DataError(f"{shown(file.name)} is empty (0 bytes). Fetch it again.")
    archive = Zip(held, shown(file.name), error=DataError, aside=aside, most=MOST_MEMBERS)
    return archive.members, Zipped(archive, MAX_BYTES)


def _is_wanted(name: str) -> bool:
    return has_image_suffix(name) or name.lower().endswith((".cls", ".txt", ".json"))


def _opened(file: Path) -> io.BufferedReader:
    try:
        return open(file, "rb")
    except OSError as error:
        raise DataError(f"{shown(str(file))} cannot be read: {error.strerror}. Check its permissions.") from None


def _scanned(members: Iterable[str]) -> tuple[Scan, list[Named], str]:
    """What a folder with these files would be scanned as, the files that are none of it, and what stands around all."""
    images, named, folders = [], [], set()
    for member in members:
        parts = member.split("/")
        reason = next((why for part in parts if (why := why_not_by_name(part)) is not None), None)
        reason = reason or why_not_by_suffix(parts[-1])
        if reason is not None:
            named.append(Named(member.encode("utf-8", "backslashreplace").decode(), reason))
        else:
            images.append(member)
    top = _common_top(images)
    inside = [path.removeprefix(top) for path in images]
    for path in inside:
        parts = path.split("/")
        folders.update("/".join(parts[:level]) for level in range(1, len(parts)))
    return Scan(inside, sorted(folders), []), named, top


def _common_top(images: list[str]) -> str:
    """The folders that stand around every image and are neither a split nor a class, "" or with a slash at the end."""
    top = ""
    while images:
        first = images[0][len(top) :].partition("/")
        candidate = f"{top}{first[0]}/"
        if not first[1] or first[0].lower() in SPLIT_FOLDERS or not all(path.startswith(candidate) for path in images):
            break
        if not all("/" in path[len(candidate) :] for path in images):
            break
        top = candidate
    return top
