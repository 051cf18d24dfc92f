"""Whether an image shows anything, judged by its own pixels: in a small square fine lines and textures are gone."""

from __future__ import annotations

import numpy as np
from PIL import Image

_GRID = 64  # pixels each way, picked and not averaged: of a usual image they tell enough
_PLAIN = 4.0  # standard deviation of grey, of 255, from which nothing more is asked
_STEPS = 16  # of the standard deviation, so that it fits a byte


def contrast(image: Image.Image) -> np.ndarray:
    """uint8 [1 1 3]: how far its greys spread, how far the farthest lies from the middle one; 255 where that is plenty."""
    grid = (min(image.width, _GRID), min(image.height, _GRID))
    if np.asarray(image.resize(grid, Image.Resampling.NEAREST)).std((0, 1)).max() >= _PLAIN:
        return np.full((1, 1, 3), 255, np.uint8)
    counts = np.array(image.histogram()).reshape(-1, 256)  # of each colour
    greys, share = np.arange(256), counts / counts.sum(1, keepdims=True)
    mean = share @ greys
    spread = np.sqrt((share * (greys - mean[:, None]) ** 2).sum(1)).max()
    middle = (share.cumsum(1) >= 0.5).argmax(1)
    there = counts > 0
    farthest = np.maximum(middle - there.argmax(1), 255 - there[:, ::-1].argmax(1) - middle).max()
    return np.array([[[min(255, round(spread * _STEPS)), farthest, 0]]], np.uint8)


def spread_of(kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(standard deviation of grey, distance of the farthest grey) [n], of 255, of what `contrast` told of n images."""
    return kept[:, 0, 0, 0] / np.float32(_STEPS), kept[:, 0, 0, 1].astype(int)
