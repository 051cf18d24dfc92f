"""A tuned model as a folder that timm and Hugging Face transformers open as it is, ready to be uploaded to the hub.

model.safetensors    the weights under timm's own names, the classifier among them
config.json          architecture, classes, preparation, as timm and transformers' timm wrapper read them
README.md            the model card
burnish.json         what an export tells beside its file, and the SHA-256 of the other files
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from burnish.backbones import timmed
from burnish.backbones.changing import adapters, surgery, taps
from burnish.backbones.head import COSINE, LINEAR, NEIGHBOURS
from burnish.backbones.keras import graph as keras
from burnish.backbones.reading.weights import sha256_of
from burnish.disk import plain_disk_errors, read_plain_json, write_bytes_whole
from burnish.errors import RecipeError, RunError, brief, shown
from burnish.record.made import made_whole
from burnish.ship.bundle import Bundle
from burnish.ship.card import NOTHING, Record, card_of
from burnish.ship.exported import PREPARED, WORDS, meaning, noise, require_equal, require_input
from burnish.terms import Preprocess

SUFFIX = "-hub"  # of the folder's name, behind the run's
WEIGHTS, CONFIG, CARD, TOLD = "model.safetensors", "config.json", "README.md", "burnish.json"
_MEMBERS = (WEIGHTS, CONFIG, CARD)
# What a network may have that no plain one of timm's has, and the settings of `fit` that give one without.
_PLAIN_HEAD = "--method full, lora or probe, and --head linear"
_CHANGED = {
    taps.KIND: ("a head on all depths of the network", "--method full, lora or probe"),
    adapters.ADAPTERS: ("adapters", "--method lora or full"),
    adapters.PROMPTS: ("prompts", "--method lora or full"),
    surgery.DROP: ("layers taken out", "neither --depth nor --remove"),
    surgery.INSERT: ("layers put in", "no --insert"),
}


def export_hub(bundle: Bundle, path: Path, *, input: str = PREPARED, record: Record = NOTHING) -> Path:
    """Write the model as the folder `path`, for timm ("local-dir:", "hf-hub:") and transformers; returns `path`.

    The logits are burnish's divided by the temperature, so that their softmax (of several classes an image their sigmoids) are
    burnish's probabilities. record: what the run's record says of it, for the model card. An earlier export that nobody has
    changed is replaced in one step. RecipeError when the place or the input is none, or the network is no plain one of timm's;
    RunError when timm makes other probabilities of the folder, or the disk refuses. Nothing is written then.
    """
    require_input(input)
    if input != PREPARED:
        raise RecipeError(
            f"input is {shown(input)}, but timm and transformers prepare images themselves, as config.json says; leave it out"
        )
    _require_plain(bundle)
    path = path if path.name not in ("", "..") else path.resolve()
    _require_place(path)
    _, prepared, expected = noise(bundle)
    files = _files(bundle, record)
    with made_whole(path, replaces=lambda: _require_ours(path)) as draft, plain_disk_errors(path):
        for name, data in files.items():
            write_bytes_whole(draft / name, data)
        require_equal("timm", _answers(draft, prepared, bundle), expected)
    return path


def _require_plain(bundle: Bundle) -> None:
    """RecipeError, with what to do instead, unless the model is a network of timm's with a linear classifier."""
    library, changes = bundle.architecture["library"], bundle.architecture.get("changes", [])
    anywhere = "write it with --to onnx or --to pt2"
    if library != timmed.LIBRARY:
        own = ", or with --to keras" if library == keras.LIBRARY else ""
        raise RecipeError(
            f"{shown(bundle.base_model)} is a network that timm has not, and a hub folder holds one of timm's; {anywhere}{own}"
        )
    what, instead = next((_CHANGED[one["kind"]] for one in changes), ("", ""))
    if not what and "stem" in bundle.architecture["kwargs"]:
        what, instead = "a first layer for images of 32 pixels", "another network"
    if not what and bundle.head != LINEAR:
        by = {COSINE: "by cosine", NEIGHBOURS: "of nearest neighbours"}
        what = f"a head {by.get(bundle.head.partition(':')[0], f'with a hidden layer ({bundle.head})')}"
        instead = _PLAIN_HEAD
    if what:
        raise RecipeError(
            f"the model has {what}, which no plain network of timm's has, and a hub folder holds one; {anywhere}, or fit again "
            f"with {instead}"
        )


def _require_place(path: Path) -> None:
    """RecipeError where the folder cannot lie there, or is there and is not just what an earlier export wrote."""
    if path.suffix in (".onnx", ".keras", ".h5", ".pt2", ".xml"):
        raise RecipeError(f"{shown(str(path))}: expected the name of a folder, not of a file")
    if not path.parent.is_dir():
        raise RecipeError(
            f"{shown(str(path))}: there is no folder {shown(str(path.parent))}; make it, or name another place"
        )
    if not os.path.lexists(path):
        return
    if not path.is_dir() or path.is_symlink():
        raise RecipeError(f"{shown(str(path))} is there and is no folder; name another one")
    if os.path.samefile(path, os.curdir):  # which would be another one afterwards
        raise RecipeError(f"{shown(str(path))} is the folder that this was started in; name one in it")
    _require_ours(path)


def _require_ours(path: Path) -> None:
    """RecipeError where what lies in the folder is not just what an earlier export wrote."""
    if any(path.iterdir()) and (other := _not_ours(path)):
        raise RecipeError(
            f"{shown(str(path))} is there, and {shown(other)} in it is not as an earlier export wrote it; name another folder, "
            "or remove this one yourself"
        )


def _not_ours(folder: Path) -> str:
    """The first file of a folder that an earlier export did not write, or not so; "" where all are its own."""
    try:
        told = read_plain_json(folder / TOLD).get("sha256", {})
    except (OSError, ValueError):
        return next(iter(sorted(one.name for one in folder.iterdir())))
    for one in sorted(folder.iterdir()):
        known = one.name == TOLD or (one.name in _MEMBERS and isinstance(told, dict) and one.name in told)
        if not known or one.is_symlink() or not one.is_file():
            return one.name
        if one.name != TOLD and sha256_of(one) != told[one.name]:
            return one.name
    return ""


# ---- what is in the folder -------------------------------------------------------------------------------------------


def _files(bundle: Bundle, record: Record) -> dict[str, bytes]:
    """The content of each file, by its name."""
    weights, config = _network(bundle)
    files = {
        WEIGHTS: safetensors.torch.save(weights, metadata={"format": "pt"}),
        CONFIG: _as_json(config),
        CARD: card_of(bundle, record).encode(),
    }
    answers = "sigmoids" if bundle.several else "softmax"
    told = {
        **meaning(bundle, WORDS[PREPARED]),
        "output": f"logits [n k], whose {answers} are the probabilities",
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    return {**files, TOLD: _as_json(told)}


def _as_json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


def _network(bundle: Bundle) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(the weights under timm's names, the content of config.json); RecipeError where timm's classifier has another form."""
    name, kwargs = bundle.architecture["name"], bundle.architecture["kwargs"]
    module, known = timmed.with_classifier(name, kwargs, len(bundle.classes))
    wanted = module.state_dict()
    state = {key.removeprefix("trunk."): one for key, one in bundle.state.items() if key.startswith("trunk.")}
    # Distilled networks have two, whose answers are averaged; a norm within one begins as the identity.
    classifiers = [known["classifier"]] if isinstance(known["classifier"], str) else known["classifier"] or []
    for place in classifiers:
        for part in ("weight", "bias"):
            state[f"{place}.{part}"] = bundle.state[f"head.{part}"] / bundle.temperature
    beside = tuple(f"{parent}." for place in classifiers if (parent := place.rpartition(".")[0]))
    state |= {key: one for key, one in wanted.items() if key not in state and key.startswith(beside)}
    if (
        not classifiers
        or state.keys() != wanted.keys()
        or any(state[key].numel() != wanted[key].numel() for key in wanted)
    ):
        raise _other_form(bundle)
    # A classifier may be a convolution of 1 × 1.
    weights = {key: state[key].detach().reshape(one.shape).contiguous().clone() for key, one in wanted.items()}
    return weights, _config(bundle, known)


def _config(bundle: Bundle, known: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json."""
    preprocess, kwargs = bundle.preprocess, bundle.architecture["kwargs"]
    return {
        "architecture": bundle.architecture["name"],
        "num_classes": len(bundle.classes),
        "label_names": list(bundle.classes),
        **({"model_args": kwargs} if kwargs else {}),
        "pretrained_cfg": {
            "tag": "burnish",
            "custom_load": False,
            "input_size": [3, preprocess.size, preprocess.size],
            "fixed_input_size": bool(known["fixed_input_size"]),
            "interpolation": preprocess.interpolation,
            "crop_pct": _crop_pct(preprocess),
            "crop_mode": "squash" if preprocess.fit == "squash" else "center",
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "num_classes": len(bundle.classes),
            "pool_size": None,
            "first_conv": known["first_conv"],
            "classifier": known["classifier"],
            **({} if bundle.licence == "unknown" else {"license": bundle.licence}),
        },
        # Of transformers, which takes the softmax or the sigmoids by it.
        "model_type": "timm_wrapper",
        "problem_type": "multi_label_classification" if bundle.several else "single_label_classification",
    }


def _crop_pct(preprocess: Preprocess) -> float:
    """timm's word for the crop: it resizes the short side to floor(size / crop_pct) pixels, burnish to round(size / crop)."""
    if preprocess.fit == "squash":
        return 1.0
    side = round(preprocess.size / preprocess.crop)
    if math.floor(preprocess.size / preprocess.crop) == side:
        return preprocess.crop
    return preprocess.size / (side + 0.25)  # which both bring to that side


# ---- what timm makes of it -------------------------------------------------------------------------------------------


def _answers(folder: Path, prepared: np.ndarray, bundle: Bundle) -> np.ndarray:
    """The probabilities [n k] that timm gives with the folder; RunError where it does not open or run it."""
    try:
        with torch.no_grad():
            logits = timmed.opened(folder)(torch.from_numpy(prepared))
            return (logits.sigmoid() if bundle.several else logits.softmax(1)).numpy()
    except Exception as error:  # whatever a network's constructor or loader says
        raise RunError(
            f"timm does not open what was written of {shown(bundle.base_model)} ({brief(error)}); nothing is left of it; write "
            "it with --to onnx or --to pt2"
        ) from error


def _other_form(bundle: Bundle) -> RecipeError:
    return RecipeError(
        f"timm's {shown(str(bundle.architecture['name']))} has no plain linear classifier on these features, so that no folder "
        "of its format can hold this model; write it with --to onnx or --to pt2"
    )
