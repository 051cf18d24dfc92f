"""What the frozen network tells about a run's images, and the plain views that it is shown."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from burnish.choose.material import Bench, Material
from burnish.choose.survey import Surveyed
from burnish.data.cache import Pixels, Rows, gone, read_pixels
from burnish.data.catalog import Catalog
from burnish.errors import ModelError, shown
from burnish.granted import cores
from burnish.terms import Preprocess
from burnish.train.features import batched, outputs, takes_half

_COPIED_AT_ONCE = 1024  # rows of features


@dataclass(frozen=True, eq=False)
class Seen:
    """What the frozen trunk has told of some images already."""

    features: np.ndarray  # float32 [n d]
    digests: tuple[str, ...]  # [n], of their files
    images_per_second: float  # in float32, as for scores


def fitting_features(material: Material, surveyed: Surveyed, bench: Bench, seen: Seen | None) -> Seen:
    """Features of all train and val images; those `seen` before are not made again."""
    fitting, catalog = material.fitting, material.catalog
    digests = tuple(fitting.looks.digests)
    if seen is not None and digests == seen.digests:
        return seen
    place = {} if seen is None else {digest: row for row, digest in enumerate(seen.digests)}
    new = np.flatnonzero([digest not in place for digest in digests])
    if seen is not None and not len(new):
        return Seen(seen.features[[place[digest] for digest in digests]], digests, seen.images_per_second)
    bench.watcher.stage(f"features, {material.preprocess.size} px", total=len(new))
    told, rate = features_of(fitting.at(fitting.ids[new]), catalog, surveyed, bench)
    if seen is None:
        return Seen(told, digests, rate)
    known = np.setdiff1d(np.arange(len(digests)), new)
    features = np.empty((len(digests), told.shape[1]), told.dtype)
    features[new] = told
    for rows in np.array_split(known, len(known) // _COPIED_AT_ONCE + 1):
        features[rows] = seen.features[[place[digests[row]] for row in rows]]
    return Seen(features, digests, rate if len(new) > len(known) else seen.images_per_second)


def features_of(pixels: Pixels, catalog: Catalog, surveyed: Surveyed, bench: Bench) -> tuple[np.ndarray, float]:
    """Features float32 [n d] of these images, and the images per second the trunk sees in float32."""
    began = time.monotonic()
    features = outputs(
        surveyed.trunk,
        batched(pixels.plain),
        preprocess=surveyed.preprocess,
        device=bench.device,
        half=takes_half(bench.recipe.precision, bench.device),
        on_progress=bench.watcher.advance,
    )
    rate = len(pixels.ids) / max(1e-9, time.monotonic() - began)
    refuse_unreal(features, pixels.ids, catalog, bench)
    return features, rate * surveyed.scored_share


def refuse_unreal(features: np.ndarray, ids: np.ndarray, catalog: Catalog, bench: Bench) -> None:
    """ModelError naming the first image whose features are not finite numbers; ids: the images', [n]."""
    bad = np.flatnonzero(~np.isfinite(features).all(1))
    if len(bad):
        path = catalog.paths[ids[bad[0]]]
        raise ModelError(
            f"{bench.backbone.name} gives features that are not numbers for {len(bad)} of {len(features)} images "
            f"(first: {shown(path)}); its weights are damaged or do not fit its preprocessing: choose another model"
        )


def plain_at(material: Material, ids: np.ndarray, preprocess: Preprocess, bench: Bench) -> Rows:
    """Plain views of some catalogue entries at another size, from the files: what `predict` would see (P1).

    Of the bytes that the run began with: UnreadableImage for a file that changed since.
    """
    held = material.test if np.isin(ids, material.test.ids).all() else material.fitting
    found = read_pixels(
        material.catalog, ids, preprocess=preprocess, workers=cores(), store=bench.store, looks=held.at(ids).looks
    )
    if found.named:
        raise gone(found.named[0].path, found.named[0].reason)
    return found.plain
