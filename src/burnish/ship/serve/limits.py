"""How much a service takes of whoever reaches it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from burnish.errors import RecipeError

_HELD_BODIES = 8  # so many bodies of the largest size are held at a time


@dataclass(frozen=True)
class Limits:
    """The most that is taken, each at least 1. RecipeError names those that are not.

    A photograph of a telephone has 2 to 12 MB and 12 to 50 million pixels; what decoding takes is bounded by `pixels`, what is
    held of bodies by 8 times `bytes`, what waits for the network by `waiting` times the size of one prepared image (150 kB at
    224 pixels).
    """

    bytes: int = 32_000_000  # of a request's body
    images: int = 32  # of a request
    pixels: int = 50_000_000  # of an image, told by its header before it is decoded
    seconds: float = 60.0  # in which a request's body must have come; its headers in a third of that
    waiting: int = 64  # images that are decoded, wait or are computed; beyond them 503 is answered
    connections: int = 100  # at a time; of one address, other than this machine's own, half as many

    def __post_init__(self) -> None:
        wrong = [one.name for one in fields(self) if not getattr(self, one.name) >= 1]
        if wrong:
            told = ", ".join(f"{name} is {getattr(self, name)!r}" for name in wrong)
            raise RecipeError(f"limits of the service: {told}; expected 1 or more")
        if self.waiting < self.images:  # a request of that many images would never find room
            raise RecipeError(
                f"limits of the service: {self.images} images a request find no room among {self.waiting} that may wait; "
                "let more wait, or fewer come at a time"
            )

    @property
    def held_bytes(self) -> int:
        """Bytes of all bodies that are held at a time."""
        return _HELD_BODIES * self.bytes

    @property
    def of_one_address(self) -> int:
        """Connections that one address may have, so that others find some too."""
        return max(1, self.connections // 2)

    @property
    def header_seconds(self) -> float:
        """In which a request's headers must have come."""
        return self.seconds / 3
