"""From a request to images and what is asked of them. Nothing in it is taken for a path or an address."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from burnish.errors import RecipeError, shown
from burnish.ship.answering import Asked, shares
from burnish.ship.serve.limits import Limits
from burnish.ship.serve.refusal import Refusal

_QUESTIONS = ("top", "reject", "sets", "find")
_MULTIPART = "multipart/form-data"
# curl --data-binary says the last of itself: it is no form here, and what it is the decoder tells.
_RAW = ("", "application/octet-stream", "binary/octet-stream", "application/x-www-form-urlencoded")
_SEND = "send the image's bytes (curl --data-binary @x.jpg), or files (curl -F image=@x.jpg)"
_LONGEST_NAME, _MOST_FIELDS = 200, 8  # characters; parts that are no files


class Sent(NamedTuple):
    """An image as it was sent."""

    name: str  # safe to be shown, at most 200 characters
    content: bytes


def asked_of(query: Sequence[tuple[str, str]]) -> Asked:
    """What the query asks; Refusal 400 for what is no question, or is asked twice."""
    for name, _ in query:
        if name not in _QUESTIONS:
            raise Refusal(400, f"{name[:80]!r} is no question, expected one of {', '.join(_QUESTIONS)}")
    once = {name: value for name, value in query if name != "find"}
    if len(once) < sum(name != "find" for name, _ in query):
        raise Refusal(400, f"one of {', '.join(once)} is asked twice; ask once")
    try:
        find = shares([value for name, value in query if name == "find"])
    except RecipeError as error:
        raise Refusal(400, str(error)) from None
    return Asked(int(_number(once, "top", whole=True) or 1), _number(once, "reject"), _number(once, "sets"), find)


def _number(once: dict[str, str], name: str, *, whole: bool = False) -> float | None:
    """The number asked with that name, None where it is not; Refusal 400."""
    if name not in once:
        return None
    text = once[name][:80]
    wanted = "a whole number, 1 or more" if whole else "a share between 0 and 1, such as 0.95"
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        number = math.nan
    if not (number >= 1 if whole else 0.0 < number < 1.0):
        raise Refusal(400, f"{name} is {text!r}, expected {wanted}")
    return number


def kind_of(content_type: str, encoding: str) -> str | None:
    """The boundary of a multipart body, None of a body that is one image; Refusal 415 for another."""
    if encoding.strip().lower() not in ("", "identity"):
        raise Refusal(415, f"the body is encoded as {encoding[:40]!r}, expected it as it is; {_SEND}")
    kind, _, rest = content_type.partition(";")
    kind = kind.strip().lower()
    if kind == _MULTIPART:
        return rest
    if kind in _RAW or kind.startswith("image/"):
        return None
    raise Refusal(415, f"the body is of the type {kind[:80]!r}, expected an image or {_MULTIPART}; {_SEND}")


def raw_image(body: bytes) -> list[Sent]:
    """The one image that a body is; Refusal 400 where it is empty."""
    if not body:
        raise Refusal(400, f"the body is empty, expected an image; {_SEND}")
    return [Sent("image", body)]


def safe_name(name: bytes) -> str:
    """A file's name as it may be echoed: as text, its control and invisible characters escaped, not too long."""
    text = shown(name.decode("utf-8", "backslashreplace"))
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…"


class _Parts:
    """What a multipart parser tells, put together; RFC 7578."""

    def __init__(self, parse_options: object, limits: Limits) -> None:
        self.images: list[Sent] = []
        self.fields: list[str] = []
        self.whole = False
        self._options, self._limits = parse_options, limits
        self._begin()

    def _begin(self) -> None:
        self._header, self._value, self._disposition = b"", b"", b""
        self._name: bytes | None = None
        self._pieces: list[bytes] = []

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _headers_finished(self) -> None:
        _, options = self._options(self._disposition)  # type: ignore[operator]
        self._name = options.get(b"filename")
        if self._name is None:
            self.fields.append(safe_name(options.get(b"name", b"")))
        elif len(self.images) == self._limits.images:
            raise Refusal(
                413, f"there are more than {self._limits.images} images, the most of a request; send the rest in others"
            )
        if len(self.fields) > _MOST_FIELDS:
            raise Refusal(413, f"there are more than {_MOST_FIELDS} parts that are no files; {_SEND}")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name is not None:
            self._pieces.append(data[start:end])

    def _end(self) -> None:
        if self._name is not None:
            self.images.append(Sent(safe_name(self._name) or "image", b"".join(self._pieces)))

    def _finished(self) -> None:
        self.whole = True

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def callbacks(self) -> dict[str, object]:
        """Of python-multipart."""
        return {
            "on_part_begin": self._begin, "on_part_data": self._data, "on_part_end": self._end,
            "on_header_field": self._add_header, "on_header_value": self._add_value, "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished, "on_end": self._finished,
        }  # fmt: skip


def files_of(body: bytes, parameters: str, limits: Limits) -> list[Sent]:
    """The files of a multipart body, in order. Refusal 400 where it is cut off or none, 413 where there are too many."""
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    _, options = parse_options_header(f"{_MULTIPART};{parameters}")
    if not options.get(b"boundary"):
        raise Refusal(400, f"the type {_MULTIPART} names no boundary; let your client make it ({_SEND})")
    parts = _Parts(parse_options_header, limits)
    try:
        parser = MultipartParser(options[b"boundary"], parts.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Refusal(400, f"the body is not {_MULTIPART} ({shown(str(error)[:120])}); {_SEND}") from None
    if not parts.whole:
        raise Refusal(400, f"the body ends before its last boundary: it was cut off; {_SEND}")
    if not parts.images:
        told = f"the field {parts.fields[0]!r} holds text" if parts.fields else "there are no parts"
        raise Refusal(400, f"no file came ({told}), expected one or more: curl -F image=@x.jpg, with the @")
    return parts.images
