"""Augmented views of stored images, as network inputs; every draw has an address (P7)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from burnish.data.trivial import trivial
from burnish.runtime import draws
from burnish.terms import Preprocess

# Rec. 601 luma weights: what "grey" means when saturation changes.
_LUMA = (0.299, 0.587, 0.114)
# Pixels in one row of a matrix product: rows of three numbers take 2.3 to 3.6 times as long (128, 224 px)
_TOGETHER = 8


@dataclass(frozen=True)
class Augmentation:
    """How a training view differs from the image it is cut from."""

    size: int  # pixels, side of the view
    # Fraction of the area kept at least. The 0.08 of ImageNet training from scratch (arXiv:1409.4842) needs hundreds of
    # epochs; BiT's fine-tuning rule (arXiv:1912.11370) keeps at least 0.64 x the aspect crop.
    min_area: float = 0.35
    ratio: float = 4 / 3  # aspect of the crop is drawn between 1/ratio and ratio, log-uniform
    flip: bool = False
    jitter: float = 0.2  # brightness, contrast and saturation are each scaled by 1 ± jitter
    trivial: bool = False  # one operation of TrivialAugment besides
    centred: bool = False  # the crop lies in the middle instead of anywhere


@dataclass(frozen=True)
class _View:
    """What was drawn for one image: the crop as fractions of the image, and the colour transform."""

    left: float
    top: float
    width: float
    height: float
    mirrored: bool
    matrix: np.ndarray  # [3 3], acts on values 0 to 1
    offset: float  # fraction of the image's mean grey that contrast adds


def augmented(
    stored: np.ndarray,
    aspects: np.ndarray,
    ids: np.ndarray,
    *,
    seed: int,
    epoch: int,
    how: Augmentation,
    preprocess: Preprocess,
) -> torch.Tensor:
    """Network inputs [b 3 s s], channels last, float32, for the images `ids` of one epoch.

    stored: uint8 [b S S 3], whole images squashed to squares; aspects: width / height of the originals [b]; ids [b].
    The same (seed, epoch, id) gives the same view whatever the batch.
    """
    return coloured(cropped(stored, aspects, ids, seed=seed, epoch=epoch, how=how), preprocess)


@dataclass(frozen=True)
class Crops:
    """Views before their colours change: a quarter of the bytes, to be sent to where the arithmetic is done."""

    pixels: torch.Tensor  # uint8 [b s s 3], or float32, 0 to 255
    matrices: torch.Tensor  # float32 [b 3 3], act on values 0 to 1
    offsets: torch.Tensor  # float32 [b 1 1], fractions of an image's mean grey that contrast adds


def cropped(
    stored: np.ndarray, aspects: np.ndarray, ids: np.ndarray, *, seed: int, epoch: int, how: Augmentation
) -> Crops:
    """The first half of `augmented`: what is drawn, cut and resized."""
    pixels = torch.empty(len(ids), how.size, how.size, 3, dtype=torch.uint8)
    matrices = np.empty((len(ids), 3, 3), np.float32)
    offsets = np.empty((len(ids), 1, 1), np.float32)
    for row, index in enumerate(ids):
        view = _draw(draws(seed, "view", epoch, int(index)), aspect=float(aspects[row]), how=how)
        left, top, right, bottom = _box(view, stored.shape[1])
        crop = torch.from_numpy(stored[row])[top:bottom, left:right].permute(2, 0, 1).unsqueeze(0)
        out = F.interpolate(crop, size=(how.size, how.size), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
        if how.trivial:
            changed = trivial(out.permute(2, 0, 1).round().to(torch.uint8), draws(seed, "trivial", epoch, int(index)))
            out = changed.permute(1, 2, 0)
        pixels[row] = out.flip(1) if view.mirrored else out
        matrices[row], offsets[row] = view.matrix, view.offset
    return Crops(pixels, torch.from_numpy(matrices), torch.from_numpy(offsets))


@dataclass(frozen=True)
class Windows:
    """What `cropped` draws, for a device that cuts by itself: where each row and column of a view lies in the stored image."""

    centres: (
        torch.Tensor
    )  # float32 [b 2 s], of rows and of columns, stored pixels; columns of a mirrored view run backwards
    spans: torch.Tensor  # float32 [b 2 1], stored pixels from one row or column to the next, at least 1
    borders: torch.Tensor  # int16 [b 2 2 1], first row and column of the crop, and the first after it
    matrices: torch.Tensor  # as in `Crops`
    offsets: torch.Tensor


def windows(aspects: np.ndarray, ids: np.ndarray, *, side: int, seed: int, epoch: int, how: Augmentation) -> Windows:
    """The draws of `cropped` for stored images of side x side pixels, without an operation of TrivialAugment."""
    views = [_draw(draws(seed, "view", epoch, int(index)), aspect=float(aspects[row]), how=how)
             for row, index in enumerate(ids)]  # fmt: skip
    boxes = np.array([_box(view, side) for view in views], np.int16).reshape(-1, 2, 2)  # first, end; x, y
    borders = boxes[:, :, ::-1].transpose(0, 2, 1)  # [b 2 2], rows and columns; first, end
    steps = (borders[..., 1:] - borders[..., :1]) / np.float32(how.size)
    centres = borders[..., :1] + steps * (np.arange(how.size, dtype=np.float32) + 0.5)
    mirrored = np.array([view.mirrored for view in views], bool)
    centres[mirrored, 1] = centres[mirrored, 1, ::-1]
    return Windows(
        torch.from_numpy(centres.astype(np.float32)),
        torch.from_numpy(np.maximum(steps, 1.0).astype(np.float32)),
        torch.from_numpy(np.ascontiguousarray(borders)[..., None]),
        torch.from_numpy(np.array([view.matrix for view in views], np.float32)),
        torch.from_numpy(np.array([view.offset for view in views], np.float32).reshape(-1, 1, 1)),
    )


def cut(stored: torch.Tensor, found: Windows) -> Crops:
    """The views of stored images, uint8 [b S S 3], where both lie: `cropped` but for rounding, as two matrix products.

    A pixel is the mean of those around its place, weighed by a triangle as wide as two steps (`antialias` of torch).
    """
    count, side = stored.shape[:2]
    size = found.centres.shape[-1]
    places = torch.arange(side, device=stored.device)
    far = (places + 0.5 - found.centres[..., None]).abs_().div_(found.spans[..., None])  # [b 2 s S]
    inside = (places >= found.borders[:, :, 0, :, None]) & (places < found.borders[:, :, 1, :, None])  # [b 2 1 S]
    weights = far.neg_().add_(1.0).clamp_(min=0.0).mul_(inside)
    rows, columns = weights.div_(weights.sum(-1, keepdim=True)).unbind(1)
    planes = stored.permute(0, 1, 3, 2).float().reshape(count, side, 3 * side)
    tall = torch.bmm(rows, planes).reshape(count, size * 3, side)
    pixels = torch.bmm(tall, columns.transpose(1, 2)).reshape(count, size, 3, size)
    return Crops(pixels.permute(0, 1, 3, 2), found.matrices, found.offsets)


def coloured(crops: Crops, preprocess: Preprocess) -> torch.Tensor:
    """The second half: colour change and normalisation as one matrix product an image, on the crops' device."""
    pixels, place = crops.pixels, crops.pixels.device
    batch, side = pixels.shape[0], pixels.shape[1]
    mean, std, luma = (_there(values, place) for values in (preprocess.mean, preprocess.std, _LUMA))
    many = math.gcd(side * side, _TOGETHER)
    flat = pixels.reshape(batch, side * side // many, many * 3).float()
    sums = flat.sum(1).reshape(batch, many, 3).sum(1, keepdim=True)  # [b 1 3], exact up to 256 x 256 pixels
    shift = (crops.offsets * (sums / (side * side) @ luma.reshape(3, 1)) / 255.0 - mean) / std  # [b 1 3]
    each = torch.zeros(batch, many, 3, many, 3, device=place)
    own = torch.arange(many, device=place)
    each[:, own, :, own] = crops.matrices.transpose(1, 2) / (255.0 * std)
    out = torch.baddbmm(shift.repeat(1, 1, many), flat, each.reshape(batch, many * 3, many * 3))
    return out.reshape(batch, side, side, 3).permute(0, 3, 1, 2)


@cache
def _there(values: tuple[float, ...], place: torch.device) -> torch.Tensor:
    """A constant on a device: sent anew for each batch it would have the processor wait for all that is under way there."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=place)


def normalised(pixels: np.ndarray | torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
    """Network inputs [b 3 s s], channels last, float32, of plain uint8 images [b s s 3]; where those are."""
    tensor = torch.as_tensor(pixels)
    scale = _there(tuple(1.0 / (255.0 * s) for s in preprocess.std), tensor.device)
    shift = _there(tuple(-m / s for m, s in zip(preprocess.mean, preprocess.std, strict=True)), tensor.device)
    return torch.addcmul(shift, tensor.float(), scale).permute(0, 3, 1, 2)


def _draw(rng: np.random.Generator, *, aspect: float, how: Augmentation) -> _View:
    """One random resized crop (of the true, not the squashed, image), mirror and colour change."""
    for _ in range(10):
        area = rng.uniform(how.min_area, 1.0)
        ratio = math.exp(rng.uniform(-1.0, 1.0) * math.log(how.ratio))
        width, height = math.sqrt(area * ratio / aspect), math.sqrt(area * aspect / ratio)
        if width <= 1.0 and height <= 1.0:
            break
    else:  # a long, thin image: the largest square in it
        width, height = min(1.0, 1.0 / aspect), min(1.0, aspect)
    left, top = rng.uniform(0.0, 1.0 - width), rng.uniform(0.0, 1.0 - height)
    if how.centred:
        left, top = (1.0 - width) / 2, (1.0 - height) / 2
    mirrored = bool(rng.random() < 0.5) and how.flip
    brightness, contrast, saturation = 1.0 + how.jitter * rng.uniform(-1.0, 1.0, 3)
    matrix = brightness * contrast * (saturation * np.eye(3) + (1.0 - saturation) * np.outer(np.ones(3), _LUMA))
    return _View(left, top, width, height, mirrored, matrix, brightness * (1.0 - contrast))


def _box(view: _View, side: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the crop in an image of side x side pixels, at least one pixel each way."""
    left, top = int(view.left * side), int(view.top * side)
    right = max(left + 1, round((view.left + view.width) * side))
    bottom = max(top + 1, round((view.top + view.height) * side))
    return left, top, right, bottom
