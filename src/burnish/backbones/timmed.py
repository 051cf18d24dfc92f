"""timm's architectures: built, described, grouped into stages. The only importer of timm."""

from __future__ import annotations

import math
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import timm
import torch
from timm.data.config import resolve_data_config
from timm.layers.attention import Attention as Attention  # each layer sees all tokens: qkv, q_norm, k_norm, scale
from timm.models import get_pretrained_cfg
from timm.models._manipulate import group_with_matcher
from torch import Tensor, nn

from burnish.backbones.reading import maps
from burnish.backbones.stages import by_layer
from burnish.errors import BadWeights, RecipeError, UnknownModel, nearest, shown
from burnish.terms import Preprocess

LIBRARY = "timm"
VERSION = timm.__version__
POOLS = ("avg", "max", "avgmax", "catavgmax", "token", "map", "fast")
# Tables of relative positions grow with the fourth power of the image's side: of BEiT at 1,600 px they take 9.6 GB.
_RELATIVE, _MOST_RELATIVE = ("beit", "vit_relpos", "vit_srelpos"), 1024
_MOST_PIXELS = 2048  # a side: twice what `fit` trains at
_MOST_TABLES = 2**28  # numbers of tables that no file holds: two gigabytes of places
_MOST_TOLD = 1024  # pixels a side that a config.json may ask for by itself: time and memory grow with their square
_MOST_TOLD_SHIFT = 10.0  # of mean and std in a config.json, for values of 0 to 1
# What a stored architecture may pass to timm, and what each value may be.
_OPTIONS = {
    "img_size": lambda value: type(value) is int and 16 <= value <= _MOST_PIXELS,
    "bn_eps": lambda value: type(value) is float and 0 < value < 1,
    "act_layer": lambda value: value in ("gelu", "gelu_tanh"),
    "pad_type": lambda value: value == "same",  # as TensorFlow pads
    "global_pool": lambda value: value in POOLS,
    "num_heads": lambda value: type(value) is int and 1 <= value <= 64,
    "in_chans": lambda value: value == 3,
    "stem": lambda value: value == "small",  # ours, see `_small_stem`
    "top": lambda value: value == "none",  # ours, see `_without_top`
    "output_stride": lambda value: type(value) is int and value in (8, 16),  # dilated beyond
}


@dataclass(frozen=True)
class Published:
    """Weights that timm knows of."""

    name: str  # with the tag
    repository: str  # on the Hugging Face hub, "" for none
    licence: str


def names() -> list[str]:
    """All architectures."""
    return timm.list_models()


def published_names() -> list[str]:
    """All names with pretrained weights, with their tags."""
    return timm.list_models(pretrained=True)


def published(name: str) -> Published | None:
    """The weights of that name, those of its default tag where it has none; None when timm has no such weights."""
    cfg = get_pretrained_cfg(name)
    if cfg is None or not cfg.hf_hub_id:
        return None
    full = name if "." in name or not cfg.tag else f"{name}.{cfg.tag}"
    return Published(full, cfg.hf_hub_id, cfg.license or "unknown")


def licence_of(name: str) -> str:
    """Of the weights that timm has under that name."""
    cfg = get_pretrained_cfg(name)
    return (cfg.license if cfg is not None else None) or "unknown"


def is_known(name: str) -> bool:
    """Whether timm's tables hold this name, and its tag where it has one."""
    arch, dot, tag = name.partition(".")
    if (dot and not tag) or ":" in name or "/" in name or arch not in timm.list_models():
        return False
    try:
        return not tag or get_pretrained_cfg(name, allow_unregistered=False) is not None
    except RuntimeError:
        return False


def has_fixed_size(name: str) -> bool:
    """Whether the network is built for one image size (most transformers)."""
    cfg = get_pretrained_cfg(name)
    return cfg is not None and bool(cfg.fixed_input_size)


def head_prefixes(name: str) -> tuple[str, ...]:
    """Beginnings of the names of the classification head's weights, as timm's table has them."""
    cfg = get_pretrained_cfg(name)
    heads = (cfg.classifier if cfg is not None else None) or ()
    return tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))


def architecture(name: str, image_size: int | None, **options: Any) -> dict[str, Any]:
    """The plain description of a headless network; image_size counts only where the network has one size."""
    kwargs = {**options, **({"img_size": image_size} if image_size is not None and has_fixed_size(name) else {})}
    return {"library": LIBRARY, "name": name.partition(".")[0], "kwargs": kwargs}


def check(name: Any, kwargs: Any) -> None:
    """UnknownModel unless these select an architecture and its options from the tables."""
    if not isinstance(name, str) or name not in timm.list_models():
        close = nearest(str(name)[:80], timm.list_models())
        raise UnknownModel(f"no architecture {shown(str(name))[:80]!r} in timm {VERSION} (nearest: {close})")
    if not isinstance(kwargs, dict) or not set(kwargs) <= set(_OPTIONS):
        raise UnknownModel(f"the architecture has options other than {', '.join(sorted(_OPTIONS))}")
    for key, value in kwargs.items():
        if not _OPTIONS[key](value):
            limits = f", expected 16 to {_MOST_PIXELS} pixels" if key == "img_size" else ""
            raise UnknownModel(f"the architecture's {key} is {shown(repr(value))[:80]}{limits}")
    if name.startswith(_RELATIVE) and kwargs.get("img_size", 0) > _MOST_RELATIVE:
        raise UnknownModel(f"{name} has a table of all pairs of patches, which is read up to {_MOST_RELATIVE} pixels")


def build(name: str, kwargs: dict[str, Any], *, drop_path: float = 0.0) -> nn.Module:
    """The headless module in eval mode, its weights drawn from the global generator."""
    options = {**kwargs, **({"drop_path_rate": drop_path} if drop_path else {})}
    small, bare = options.pop("stem", None) is not None, options.pop("top", None) is not None
    options |= {"mlp_ratio": 1 / 4096} if is_cut_small(name, kwargs) else {}  # of layers that are taken away again
    try:
        module = timm.create_model(name, pretrained=False, num_classes=0, **options)
        module = _small_stem(module) if small else module
        return _uncached((_without_top(module) if bare else module).eval())
    except (AssertionError, ValueError, RuntimeError, TypeError) as error:
        size = f" for images of {kwargs['img_size']} pixels" if "img_size" in kwargs else ""
        raise UnknownModel(f"{name}: cannot be built{size} ({shown(str(error))[:160]})") from None


def is_cut_small(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether most numbers of the architecture lie above its last map, and it is to be built without: a VGG's convolutions."""
    return "top" in kwargs and name.startswith("vgg")


def with_classifier(name: str, kwargs: dict[str, Any], classes: int) -> tuple[nn.Module, dict[str, Any]]:
    """(the network with timm's own classifier for so many classes, in eval mode, weights at random; what timm says of its kind).

    The latter as a config.json has it: `classifier` and `first_conv`, which are names of layers, and `fixed_input_size`. The
    global generators are left as they were. UnknownModel where timm cannot build it.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            module = timm.create_model(name, pretrained=False, num_classes=classes, **kwargs).eval()
        except (AssertionError, ValueError, RuntimeError, TypeError) as error:
            raise UnknownModel(
                f"{name}: timm cannot build it with a classifier of its own ({shown(str(error))[:160]})"
            ) from None
    told: Any = module.pretrained_cfg
    return module, {key: told.get(key) for key in ("classifier", "first_conv", "fixed_input_size")}


def opened(folder: Path) -> nn.Module:
    """The network of a folder of config.json and model.safetensors as timm opens it, in eval mode; raises what timm does."""
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def _small_stem(module: nn.Module) -> nn.Module:
    """The ResNet with the first layer that images of 32 pixels get: 3 × 3 with stride 1, and no pooling after it."""
    first = getattr(module, "conv1", None)
    if not isinstance(first, nn.Conv2d) or first.kernel_size != (7, 7) or not hasattr(module, "maxpool"):
        raise ValueError("it has no first layer of 7 × 7 that could be one of 3 × 3")
    module.conv1 = nn.Conv2d(first.in_channels, first.out_channels, 3, 1, 1, bias=False)
    module.maxpool = nn.Identity()
    return module


def _without_top(module: nn.Module) -> nn.Module:
    """The network up to its last map, of which the mean is left: without the layers that a classifier alone was given."""
    for place in maps.LAYERS:
        outside, _, name = place.rpartition(".")
        with suppress(AttributeError):  # each architecture has some of them
            holder = module.get_submodule(outside)
            if isinstance(getattr(holder, name), nn.Module):
                setattr(holder, name, nn.Identity())
    return module


def _biases(layer: Any, device: torch.device) -> Tensor:
    """Attention biases, looked up anew in each pass."""
    return layer.attention_biases[:, layer.attention_bias_idxs]


def _uncached(module: nn.Module) -> nn.Module:
    """The module, whose attention biases learn and are those that were loaded.

    LeViT and its like keep them from one forward pass in eval mode, as burnish trains, to all later ones.
    """
    for layer in module.modules():
        if hasattr(layer, "attention_bias_cache"):
            vars(layer)["get_attention_biases"] = MethodType(_biases, layer)
    return module


def numbers_of(name: str, kwargs: dict[str, Any]) -> int | None:
    """How many numbers the headless module would hold where it is for larger images than its own: no memory is taken.

    None where it is not (the index of architectures has the number), or the module cannot be built. UnknownModel where it would
    make giant tables.
    """
    cfg = get_pretrained_cfg(name)
    if cfg is not None and kwargs.get("img_size", 0) <= cfg.input_size[-1]:
        return None
    try:
        with torch.device("meta"):
            if torch.empty(0).device.type != "meta":  # somebody has put other functions in torch's place
                return None
            module = timm.create_model(name, pretrained=False, num_classes=0, **kwargs)
    except Exception:  # whatever a foreign constructor says to these options; `build` says it again
        return None
    tables = sum(one.numel() for one in module.buffers())
    if tables > _MOST_TABLES:
        raise UnknownModel(f"{name}: for images of {kwargs['img_size']} pixels its tables would have {tables:,} places")
    return sum(one.numel() for one in module.state_dict().values())


def preprocess_of(name: str, config: dict[str, Any], image_size: int | None) -> Preprocess:
    """timm's data settings for a name; those of a config.json beside the file take precedence."""
    cfg = get_pretrained_cfg(name)
    return _preprocess(
        name, resolve_data_config({}, pretrained_cfg=cfg.to_dict() if cfg is not None else {}), config, image_size
    )


def told_by(config: dict[str, Any], usual: Preprocess, image_size: int | None, name: str) -> Preprocess:
    """The usual settings of a network that timm does not know, but for what a config.json beside its file says."""
    values = {
        "input_size": (3, usual.size, usual.size),
        "crop_mode": "squash" if usual.fit == "squash" else "center",
        "crop_pct": usual.crop,
        "interpolation": usual.interpolation,
        "mean": usual.mean,
        "std": usual.std,
    }
    return _preprocess(name, values, config, image_size)


def _preprocess(name: str, values: dict[str, Any], config: dict[str, Any], image_size: int | None) -> Preprocess:
    usual, stored = values["input_size"][1], config.get("pretrained_cfg", config)
    if isinstance(stored, dict):
        values |= {key: stored[key] for key in values if stored.get(key) is not None}
    try:
        if values["crop_mode"] not in ("center", "squash"):
            raise RecipeError(f"crop_mode is {_said(values['crop_mode'])}, expected center or squash")
        if not isinstance(values["input_size"], (list, tuple)):
            raise RecipeError(
                f"input_size is {_said(values['input_size'])}, expected three whole numbers: [3, 224, 224]"
            )
        if not math.isfinite(float(values["crop_pct"])):
            raise RecipeError(f"crop_pct is {_said(values['crop_pct'])}, expected a number of 0 to 1")
        channels, height, width = values["input_size"]
        if (channels, height) != (3, width):
            raise UnknownModel(f"{name}: expects images of another shape than square RGB, which burnish cannot give it")
        if image_size is None and height > (most := max(_MOST_TOLD, 2 * usual)):
            raise RecipeError(f"images of {height} pixels, expected at most {most}")
        if max(map(abs, (*_three(values["mean"]), *_three(values["std"])))) > _MOST_TOLD_SHIFT:
            raise RecipeError(
                "mean and std are those of pixels of 0 to 255, expected those of 0 to 1: divide them by 255"
            )
        return Preprocess(
            size=image_size or height,
            crop=min(1.0, float(values["crop_pct"])),  # three volo models say 1.15, which would pad
            interpolation=values["interpolation"],
            mean=_three(values["mean"]),
            std=_three(values["std"]),
            fit="squash" if values["crop_mode"] == "squash" else "crop",
        )
    except (RecipeError, TypeError, ValueError, OverflowError) as error:
        where = f"{name}: the config.json beside the file, or the arguments kept in it" if config else name
        raise BadWeights(f"{shown(where)}: its image settings cannot be used ({shown(str(error))[:160]})") from None


def _said(value: object) -> str:
    """A setting as it stands in a file, short."""
    return repr(value if isinstance(value, (str, int, float)) else type(value).__name__)[:60]


def converted(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights after timm's own conversion for this architecture; as they are where there is none or it fails.

    It brings older layouts to today's names, and position embeddings to another number of patches.
    """
    convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        with torch.no_grad():
            made = convert(dict(state), module)
        # A kernel for patches of another size is another network's: resampled, it would pass for this one's.
        resampled = [name for name in made if name.endswith(".weight") and _resampled(state.get(name), made[name])]
        return {**made, **{name: state[name] for name in resampled}}
    except Exception:  # made for files it knows; this is another one, and the plain comparison says so better
        return state


def _resampled(before: Tensor | None, after: Tensor) -> bool:
    """Whether a kernel came out with another number of pixels."""
    return before is not None and before.ndim == after.ndim == 4 and before.shape[2:] != after.shape[2:]


def groups_of(module: nn.Module, names: list[str]) -> list[list[str]]:
    """timm's coarse layer groups, by name; one a top-level layer where timm has none."""
    try:
        matcher = module.group_matcher(coarse=True)  # type: ignore[operator]
        grouped = group_with_matcher(((name, name) for name in names), matcher)
        groups = [list(members) for _, members in sorted(grouped.items())]
    except (AttributeError, AssertionError, NotImplementedError, TypeError):
        groups = by_layer(names)
    if Counter(name for group in groups for name in group) != Counter(names):
        return [names]
    return groups


def told_widths(module: nn.Module, width: int, kwargs: dict[str, Any]) -> set[int]:
    """What timm says the features' width is; this width where the options change it."""
    if not {"global_pool", "top"}.isdisjoint(kwargs):
        return {width}
    return {getattr(module, attribute, width) for attribute in ("head_hidden_size", "num_features")}


def _three(values: Any) -> tuple[float, ...]:
    if isinstance(values, str):
        raise ValueError(f"mean and std must be numbers, not {values!r}")
    numbers = tuple(float(value) for value in values)
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError("mean and std must be finite")
    return numbers
