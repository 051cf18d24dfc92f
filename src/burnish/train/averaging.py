"""Averages of weights: the exponential moving average, and the line between two models."""

from __future__ import annotations

import torch

from burnish.methods.base import Tunable

State = dict[str, torch.Tensor]


class Average:
    """An exponential moving average of all that moves (Polyak & Juditsky 1992).

    The decay warms up as (1 + t) / (10 + t), so that short runs average over their last tenth, and stops at `most`.
    """

    def __init__(self, tunable: Tunable, *, most: float = 0.999) -> None:
        moving = tunable.moving()
        self.names = list(moving)
        self.values = [value.detach().clone() for value in moving.values()]
        self.most, self.steps = most, 0

    def follow(self, tunable: Tunable) -> None:
        """Take in the parameters as they are now."""
        self.steps += 1
        decay = min(self.most, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(self.values, list(tunable.moving().values()), 1.0 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def state(self) -> State:
        """A copy of the averaged parameters by name."""
        return {name: value.clone() for name, value in zip(self.names, self.values, strict=True)}


def between(start: State, end: State, share: float) -> State:
    """(1 - share) · start + share · end, for the names in `end` (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903)."""
    return {name: torch.lerp(start[name], value, share) for name, value in end.items()}
