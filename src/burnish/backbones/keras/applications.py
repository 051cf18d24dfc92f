"""The networks of keras.applications: made by Keras itself, described without it; and how each wants its images."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burnish.backbones.keras.arrays import plain
from burnish.errors import ModelError, UnknownModel, nearest, shown
from burnish.terms import Preprocess

_EXTRA = "pip install 'burnish[keras]'"
_PASSING = re.compile(r"predictions|probs|logits|conv_preds|(conv2d|dense|(batch_|layer_)?normalization|re_lu)(_\d+)?")
_SIGNATURES = Path(__file__).with_name("signatures.json")  # written by scripts/index_keras


@dataclass(frozen=True)
class Mode:
    """How keras.applications prepares images of 0 to 255."""

    mean: tuple[float, ...]  # of RGB values 0 to 1
    std: tuple[float, ...]
    bgr: bool = False  # whether the network sees blue first


MODES = {
    "caffe": Mode((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3, bgr=True),
    "tf": Mode((0.5,) * 3, (0.5,) * 3),
    "torch": Mode((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": Mode((0.0,) * 3, (1 / 255,) * 3),  # 0 to 255, as they are
}


@dataclass(frozen=True)
class Application:
    """One network of keras.applications."""

    name: str  # "resnet50"
    attribute: str  # "ResNet50"
    mode: str
    size: int = 224


_TABLE = (
    ("ResNet50", "caffe", 224), ("ResNet101", "caffe", 224), ("ResNet152", "caffe", 224), ("ResNet50V2", "tf", 224),
    ("ResNet101V2", "tf", 224), ("ResNet152V2", "tf", 224), ("DenseNet121", "torch", 224), ("DenseNet169", "torch", 224),
    ("DenseNet201", "torch", 224), ("MobileNet", "tf", 224), ("MobileNetV2", "tf", 224), ("VGG16", "caffe", 224),
    ("VGG19", "caffe", 224), ("InceptionV3", "tf", 299), ("Xception", "tf", 299), ("EfficientNetB0", "none", 224),
    ("EfficientNetB1", "none", 240), ("EfficientNetB2", "none", 260), ("EfficientNetB3", "none", 300),
    ("EfficientNetB4", "none", 380), ("EfficientNetB5", "none", 456), ("EfficientNetB6", "none", 528),
    ("EfficientNetB7", "none", 600), ("EfficientNetV2B0", "none", 224), ("EfficientNetV2B1", "none", 240),
    ("EfficientNetV2B2", "none", 260), ("EfficientNetV2B3", "none", 300), ("EfficientNetV2S", "none", 384),
    ("EfficientNetV2M", "none", 480), ("EfficientNetV2L", "none", 480), ("MobileNetV3Small", "none", 224),
    ("MobileNetV3Large", "none", 224), ("ConvNeXtTiny", "none", 224), ("ConvNeXtSmall", "none", 224),
    ("ConvNeXtBase", "none", 224), ("ConvNeXtLarge", "none", 224), ("ConvNeXtXLarge", "none", 224),
    ("InceptionResNetV2", "tf", 299),
)  # fmt: skip
_TOP_WIDTHS = {"efficientnetb1": 1280, "efficientnetb2": 1408}  # whose layers have the same names
_NARROWEST, _WIDEST = 0.2, 2.0  # times the usual width: Keras has weights for 0.25 to 1.4
_UNBUILT = {"nasnetmobile", "nasnetlarge"}  # on its torch backend Keras refuses to make these
# A layer that tells how wide a MobileNet is, and its outputs at the usual width.
_SCALED = {"mobilenet": ("conv_pw_13", 1024), "mobilenetv2": ("block_16_project", 320)}
APPLICATIONS = {name.lower(): Application(name.lower(), name, mode, size) for name, mode, size in _TABLE}


def named(name: str) -> Application:
    """The application of that name, "resnet50" or "ResNet50"; UnknownModel with the nearest ones."""
    plainly = _plainly(name)
    if plainly in _UNBUILT:
        raise UnknownModel(
            f"keras:{shown(name)}: Keras builds this network with TensorFlow alone, so of its weights burnish makes none; "
            "save it whole:  model.save('model.keras')"
        )
    found = APPLICATIONS.get(plainly)
    if found is None:
        raise UnknownModel(
            f"burnish knows no network keras:{shown(name)} (of keras.applications, nearest: {nearest(plainly, APPLICATIONS)})"
        )
    return found


def _plainly(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def mode_named(name: str) -> Mode:
    """A way of preparing images: caffe, tf, torch, none, or that of an application, keras:resnet50."""
    if name in MODES:
        return MODES[name]
    if name.startswith("keras:"):
        if _plainly(name.removeprefix("keras:")) in _UNBUILT:
            return MODES["tf"]
        return MODES[named(name.removeprefix("keras:")).mode]
    raise UnknownModel(
        f"no preprocessing {shown(name)!r}; expected {', '.join(MODES)}, or that of a network such as keras:resnet50"
    )


def preprocess_for(mode: Mode, size: int) -> Preprocess:
    """The whole image, resized to a square, as Keras's own loaders do it."""
    return Preprocess(size=size, crop=1.0, interpolation="bilinear", mean=mode.mean, std=mode.std, fit="squash")


def scale_of(application: Application, widths: Callable[[str], set[int]]) -> float:
    """How wide weights of a network are, as a multiple of the usual: `alpha` of a MobileNet, 1 for all else.

    widths: how many outputs the arrays of a layer have.
    """
    layer, usual = _SCALED.get(application.name, ("", 1))
    found = widths(layer) if layer else set()
    scale = max(found, default=usual) / usual
    return scale if _NARROWEST <= scale <= _WIDEST else 1.0  # another network's; its arrays are refused by their shapes


def config_of(
    application: Application, size: int, *, layers: Iterable[str] | None = None, scale: float = 1.0
) -> dict[str, Any]:
    """The config that Keras gives the network, for images of that size.

    layers: those that have weights, where not all may; VGG's hidden layers are left out when they are not among them, and
    ConvNeXt's last normalisation has the name that they have for it, where it has no classifier after it. scale: of the widths.
    ModelError when Keras is not installed. Every global random generator is left as it was.
    """
    top, last = True, {"vgg": "fc1", "con": "head_layernorm"}.get(application.name[:3])
    if layers is not None and last is not None:
        top = any(name.endswith(last) for name in layers)
    with generators_untouched():
        applications = keras_module().applications
        make: Callable[..., Any] = getattr(applications, application.attribute)
        try:
            without = {} if top or last == "fc1" else {"pooling": "avg"}  # as it was trained: the mean, then that layer
            scaled = {} if scale == 1.0 else {"alpha": scale}
            model = make(weights=None, include_top=top, input_shape=(size, size, 3), **without, **scaled)
            return _as_if_first(json.loads(model.to_json()))
        except ValueError as error:
            raise UnknownModel(f"keras:{application.name} for {size} px: {shown(str(error))[:160]}") from None


def _as_if_first(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the names that its layers have in a process whose first network it is.

    Keras numbers layers without a name of their own by class, through all networks that a process makes: conv2d, conv2d_1.
    """
    numbers: dict[str, dict[str, int]] = {}  # by stem: the layers' names, and their numbers
    for layer in config["config"]["layers"]:
        name = layer["config"]["name"]
        stem, _, number = name.rpartition("_") if re.search(r"_\d+$", name) else (name, "", "0")
        if stem.replace("_", "") == layer["class_name"].lower():
            numbers.setdefault(stem, {})[name] = int(number)
    first = {
        name: stem if number == min(own.values()) else f"{stem}_{number - min(own.values())}"
        for stem, own in numbers.items()
        for name, number in own.items()
    }

    def named_so(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: named_so(one) for key, one in value.items()}
        if isinstance(value, list):
            return [named_so(one) for one in value]
        return first.get(value, value) if isinstance(value, str) else value

    return named_so(config)


def keras_module() -> Any:
    """Keras, on its torch backend unless the process has begun with another; ModelError when it is not installed."""
    if "keras" not in sys.modules:
        os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        import keras
    except ImportError:
        raise ModelError(f"this needs Keras; run: {_EXTRA}") from None
    return keras


def with_imagenet_scale(config: dict[str, Any]) -> dict[str, Any]:
    """The config of an EfficientNet as its ImageNet weights need it: as variances they hold what are deviations.

    Keras mends that by a Rescaling after its Normalization, but only where it makes the network with those weights itself; a
    file of weights alone has the same layers either way.
    """
    layers = config["config"]["layers"]
    place = next(at for at, layer in enumerate(layers) if layer["class_name"] == "Normalization")
    before, scaling = layers[place]["name"], "imagenet_scale"

    def fed(value: Any, was: str, now: str) -> Any:
        """An entry of calls, in which a layer takes the place of another as what is called on."""
        if isinstance(value, dict):
            return {key: fed(one, was, now) for key, one in value.items()}
        if not isinstance(value, list):
            return value
        return [now, *value[1:]] if value[:1] == [was] else [fed(one, was, now) for one in value]

    made = {
        "class_name": "Rescaling",
        "name": scaling,
        "config": {"name": scaling, "scale": [one**-0.5 for one in MODES["torch"].std], "offset": 0.0},
        "inbound_nodes": fed(layers[place]["inbound_nodes"], layers[place - 1]["name"], before),
    }
    after = [{**layer, "inbound_nodes": fed(layer["inbound_nodes"], before, scaling)} for layer in layers[place + 1 :]]
    return {**config, "config": {**config["config"], "layers": [*layers[: place + 1], made, *after]}}


@contextmanager
def generators_untouched() -> Iterator[None]:
    """Keras draws seeds and weights from the global generators: they are put back (P7)."""
    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


def signature(layer_names: Iterable[str]) -> str:
    """16 hexadecimal digits that stand for the names of layers with weights; not the classifier's, nor numbered ones."""
    return hashlib.sha256("\n".join(_telling(layer_names)).encode()).hexdigest()[:16]


def _telling(layer_names: Iterable[str]) -> list[str]:
    return sorted({plain(name) for name in layer_names if not _PASSING.fullmatch(plain(name))})


@cache
def _signatures() -> dict[str, str]:
    return json.loads(_SIGNATURES.read_bytes())


def recognised(layer_names: Iterable[str], *, widths: Callable[[str], set[int]]) -> Application | None:
    """The application whose layers have these names; None when there is none.

    widths: how many outputs the arrays of a layer have, where networks have the same names.
    """
    names = list(layer_names)
    if len(_telling(names)) <= 4:  # InceptionV3's layers have numbers alone
        return None
    key = signature(names)
    known = [name for name, keys in _signatures().items() if key in keys]
    if len(known) > 1:
        known = [name for name in known if _TOP_WIDTHS[name] in widths("top_conv")]
    return APPLICATIONS[known[0]] if known else None
