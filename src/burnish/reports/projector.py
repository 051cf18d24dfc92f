"""Features for TensorBoard's embedding projector: plain files that its reader finds beside the event files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from burnish.disk import plain_disk_errors, write_whole
from burnish.errors import shown
from burnish.measure.ood import principal

_CONFIG, _TENSORS, _LABELS, _SPRITE = "projector_config.pbtxt", "features.tsv", "labels.tsv", "thumbnails.png"
_SIDE = 32  # pixels of a thumbnail


def write_projector(folder: Path, features: np.ndarray, labels: Sequence[str], pixels: np.ndarray) -> None:
    """Features [n d] with a name and a thumbnail (uint8 [n s s 3]) each, in their first principal directions."""
    with plain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    centred = (features - features.mean(0)).astype(np.float64)
    rows = centred @ principal(centred)  # as many as the projector needs: it does its own reduction, in the browser
    write_whole(folder / _TENSORS, "".join("\t".join(f"{value:.5g}" for value in row) + "\n" for row in rows))
    write_whole(folder / _LABELS, "".join(shown(label).replace("\t", " ") + "\n" for label in labels))
    across = math.ceil(math.sqrt(len(pixels)))
    sheet = Image.new("RGB", (across * _SIDE, across * _SIDE))
    for at, one in enumerate(pixels):
        sheet.paste(Image.fromarray(one).resize((_SIDE, _SIDE)), (at % across * _SIDE, at // across * _SIDE))
    with plain_disk_errors(folder):
        sheet.save(folder / _SPRITE)
    write_whole(
        folder / _CONFIG,
        f'embeddings {{\n  tensor_name: "validation features"\n  tensor_path: "{_TENSORS}"\n  metadata_path: "{_LABELS}"\n'
        f'  sprite {{ image_path: "{_SPRITE}" single_image_dim: {_SIDE} single_image_dim: {_SIDE} }}\n}}\n',
    )
