"""How the network in a file wants its images: as the file or its config.json says, else as its library prepares them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from burnish.backbones import cifar, timmed
from burnish.backbones.reading import matching, opened
from burnish.backbones.torchvision import images as torchvision_images
from burnish.backbones.torchvision import networks as torchvisions
from burnish.terms import Preprocess

# Beginnings of the names of a classification head, where no table tells.
HEADS = ("fc.", "head.fc.", "classifier.", "head.", "heads.", "linear.", "last_linear.", "head_dist.",
          "head.classifier.4.", "head.fc2.", "head.classifier.linear.", "classif.", "AuxLogits.", "aux_head.",
          "distillation_classifier.", "cls_classifier.", "pooler.", "prototypes.", "projection_head.")  # fmt: skip
# Torchvision's names of networks whose tensors it names otherwise, and of which it prepares images otherwise than the others.
_TORCHVISIONS = {
    "efficientnetv2_s": "efficientnet_v2_s", "efficientnetv2_m": "efficientnet_v2_m", "efficientnetv2_l": "efficientnet_v2_l",
    "swin_tiny_patch4_window7_224": "swin_t", "swin_small_patch4_window7_224": "swin_s",
    "swin_base_patch4_window7_224": "swin_b", "vit_base_patch16_224": "vit_b_16", "vit_base_patch32_224": "vit_b_32",
    "vit_large_patch16_224": "vit_l_16", "vit_large_patch32_224": "vit_l_32", "vit_huge_patch14_224": "vit_h_14",
}  # fmt: skip
_IMAGENET = Preprocess()  # as torchvision prepares images


@dataclass(frozen=True)
class Prepared:
    """What is known of a file's network before its weights are put in."""

    preprocess: Preprocess
    heads: tuple[str, ...]  # beginnings of the names of its classification head
    description: dict[str, Any]  # of its architecture, built for this size of images where it is for one alone
    notes: tuple[str, ...] = ()


def prepared(
    name: str,
    description: dict[str, Any],
    found: opened.Opened,
    states: Sequence[matching.State],
    *,
    translated: bool,
    of_authors: bool,
    image_size: int | None,
    imagenets: bool,
) -> Prepared:
    """Images and architecture of the network called `name`.

    states: its weights, of which position embeddings may tell the size. translated: whether another library's names stand behind
    them. of_authors: whether those are its authors', as whom timm prepares images. imagenets: whether a plain transformer of
    which nothing else tells saw images less ImageNet's mean.
    """
    if description["library"] == cifar.LIBRARY:
        return Prepared(timmed.told_by(found.config, cifar.PREPROCESS, image_size, name), cifar.HEADS, description)
    if description["library"] == torchvisions.LIBRARY:
        usual = torchvision_images.preprocess_of(name, found.sha256) or _IMAGENET
        preprocess = timmed.told_by(found.config, usual, image_size, name)
        description = torchvisions.described(name, preprocess.size)
        torchvisions.check(description["name"], description["kwargs"])
        return Prepared(preprocess, torchvisions.head_prefixes(name), description)
    if "stem" in description["kwargs"]:
        note = "its first layer 3 × 3 with stride 1 and no pooling after it, as for images of 32 pixels"
        usual = timmed.told_by(found.config, cifar.PREPROCESS, image_size, name)
        return Prepared(usual, (*timmed.head_prefixes(name), *HEADS), description, (note,))
    notes: tuple[str, ...] = ()
    of_torchvision = None if of_authors else _torchvision_images(name, found, translated)
    preprocess = of_torchvision or timmed.preprocess_of(name, found.config, image_size)
    untold = not found.config and (of_authors or not translated) and name.startswith("vit_")
    if untold and imagenets and preprocess.mean == (0.5, 0.5, 0.5):
        preprocess = replace(preprocess, crop=0.875, mean=_IMAGENET.mean, std=_IMAGENET.std)
        notes = ("its images as DINO, DeiT and MAE prepare them",)
    preprocess = replace(preprocess, size=image_size or preprocess.size)
    if timmed.has_fixed_size(name):
        tells = image_size is not None or _tells_size(found.config)
        sides = [] if tells else [side for one in states if (side := size_of(one)) is not None]
        if sides and preprocess.size / 4 <= sides[0] <= 4 * preprocess.size:
            preprocess = replace(preprocess, size=sides[0])
        description["kwargs"]["img_size"] = preprocess.size
    return Prepared(preprocess, (*timmed.head_prefixes(name), *HEADS), description, notes)


def _torchvision_images(name: str, found: opened.Opened, translated: bool) -> Preprocess | None:
    """How torchvision prepares images, where the file is most likely its own: under its names, or a bare .pth of a family
    whose names timm shares, of which nothing says where it is from."""
    if found.config or "." in name or not (translated or found.kind == "torch"):
        return None
    own = torchvision_images.preprocess_of(_TORCHVISIONS.get(name, name) if translated else name, found.sha256)
    port = f"{name}.tv_in1k"
    if own is not None:
        return own
    if timmed.is_known(port):
        return timmed.preprocess_of(port, {}, None)
    if not translated:
        return None
    plain = timmed.preprocess_of(name, {}, None)
    return replace(plain, mean=_IMAGENET.mean, std=_IMAGENET.std, crop=_IMAGENET.crop, interpolation="bilinear")


def _tells_size(config: dict[str, Any]) -> bool:
    """Whether a config.json, or a script's arguments, say of which size the images are."""
    images = config.get("pretrained_cfg")
    return "input_size" in images if isinstance(images, dict) else bool(config)


def size_of(state: matching.State) -> int | None:
    """Pixels a side that a plain transformer's position embeddings are for; None where they do not tell.

    They do not where its patches are cut from another network's maps, or overlap: kernels of an odd width, as a Hiera's.
    """
    places, patches = state.get("pos_embed"), state.get("patch_embed.proj.weight")
    if (
        places is None
        or patches is None
        or places.ndim != 3
        or patches.ndim != 4
        or patches.shape[2] != patches.shape[3]
        or patches.shape[2] % 2
        or any(key.startswith("patch_embed.backbone.") for key in state)
    ):
        return None
    extra = sum(
        state[key].shape[1] for key in ("cls_token", "dist_token", "reg_token") if key in state and state[key].ndim == 3
    )
    for count in (places.shape[1] - extra, places.shape[1]):  # with a place for each of those tokens, or none
        side = math.isqrt(max(0, count))
        if side and side * side == count:
            return side * patches.shape[3]
    return None


def in_words(preprocess: Preprocess) -> str:
    mean = ", ".join(f"{value:.3g}" for value in preprocess.mean)
    return f"{preprocess.size} px, crop {preprocess.crop:g}, {preprocess.interpolation}, mean {mean}"
