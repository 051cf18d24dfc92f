"""From what a training script saved to the weights of one network: find them, unwrap them, read what is told beside them."""

from __future__ import annotations

import re
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from burnish.backbones.reading.matching import State, preference, without_prefix
from burnish.backbones.reading.parts import folded
from burnish.backbones.reading.weights import MOST_TENSORS
from burnish.errors import BadWeights, shown

_WRAPPERS = {
    "module", "_orig_mod", "model", "backbone", "encoder", "net", "network", "trunk", "base_model", "feature_extractor",
    "student", "teacher", "visual", "0", "_model", "ema", "body", "resnet", "base", "timm_model", "_fsdp_wrapped_module",
}  # fmt: skip
# What torch.compile, FSDP and checkpointing put into the names of layers that they wrap; no layer is called so.
_INSIDE = re.compile(r"(?<=\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# timm's features_only=True calls stages.0 stages_0, and features.conv0 features_conv0.
_FLAT = re.compile(
    r"(^|\.)(stem|stages|layers|features|blocks|body)_(?=(\d+|conv\d?|norm\d|denseblock\d|transition\d)\.)"
)
_FEWEST, _SMALLEST_SHARE = 16, 8  # tensors of a network among others, and the part of all that it has at least
_DEEPEST = 4
_LONGEST = 500  # characters of a tensor's name
_MOST_NODES = 100_000
_MOST_WRAPPERS = 5  # they lie two or three deep
_SMALL_BYTES = 2**26  # of tensors, below which nobody asks how they lie
_TIMMS_OWN = ("crop_pct", "gp")  # arguments by which timm's training script is known
_MOST_ENTRIES = 32  # of a list among such arguments


def weights_in(saved: Any, label: str) -> tuple[State, str]:
    """The weights among what a script saved, and where they lay ("state_dict", "" for the whole).

    Of several sets the averaged ones come first, then the usual names, then the largest. BadWeights when there is none.
    """
    found = list(_states(saved, ""))
    if not found:
        what = f"holds {_summary(saved)}"
        raise BadWeights(
            f"{label}: {what} and no weights by name; expected a state dict, or one under a name such as state_dict"
        )

    normed = any(_has_statistics(state) for _, state in found)

    def order(one: tuple[str, State]) -> tuple[bool, int, int]:
        # Some averages are of the parameters alone: without BatchNorm's statistics they are no network.
        bare = normed and not _has_statistics(one[1])
        return (bare, preference(one[0]) if one[0] else 0, -len(one[1]))

    most = max(len(state) for _, state in found)
    where, state = min((one for one in found if 2 * len(one[1]) >= most), key=order)
    if len(state) > MOST_TENSORS:
        raise BadWeights(f"{label}: has {len(state):,} tensors, expected at most {MOST_TENSORS:,}")
    long = next((name for name in state if len(name) > _LONGEST), None)
    if long is not None:
        raise BadWeights(f"{label}: has a tensor whose name has {len(long):,} characters, expected at most {_LONGEST}")
    _refuse_overlaps(state, label)
    plain: dict[Any, Tensor] = {}  # tensors that share their numbers go on doing so

    def once(name: str, tensor: Tensor) -> Tensor:
        key = _place(tensor) if _is_plain(tensor) and tensor.numel() else name
        if key not in plain:
            plain[key] = _plain(name, tensor, label)
        return plain[key]

    named = {_FLAT.sub(r"\1\2.", _INSIDE.sub("", name)): name for name in state}
    if len(named) < len(state):  # some are there with and without
        named = {name: name for name in state}
    return folded({name: once(old, state[old]) for name, old in named.items()}), where


def unwrapped(state: State) -> list[State]:
    """The weights as they are, then without what wrappers put before all, or nearly all, names ("module.", "backbone.")."""
    found = [state]
    while len(found) <= _MOST_WRAPPERS:
        counts = Counter(name.partition(".")[0] for name in state if "." in name)
        word, count = counts.most_common(1)[0] if counts else ("", 0)
        # A head of a few tensors may lie beside the backbone, one of fastai's has a dozen.
        beside = len(state) - count
        if not (
            word in _WRAPPERS and (not beside or (count > 8 and beside <= 8) or (count > 4 * beside and beside <= 16))
        ):
            break
        state = without_prefix(state, f"{word}.")
        found.append(state)
    return found


def networks_within(state: State) -> list[tuple[str, State]]:
    """("encoder.", the tensors below that) for every beginning that many names share: a network may lie there among others.

    Large ones first; of equal ones (student and teacher, a network and its average) averages and teachers, as everywhere,
    then the file's order.
    """
    counts: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for cut in range(1, min(len(parts), _DEEPEST + 1)):
            counts[".".join(parts[:cut]) + "."] += 1
    least = max(_FEWEST, len(state) // _SMALLEST_SHARE)
    places = {prefix: place for place, prefix in enumerate(counts)}

    def order(prefix: str) -> tuple[int, int, int]:
        return -counts[prefix], preference(prefix), places[prefix]

    return [(one, without_prefix(state, one)) for one in sorted(counts, key=order) if counts[one] >= least]


def numbers_in(tensors: Iterable[Tensor]) -> int:
    """How many numbers the tensors hold together; those that share theirs count once."""
    return sum({_place(one): one.numel() for one in tensors if one.numel()}.values())


def _states(saved: Any, path: str, depth: int = 0, seen: set[int] | None = None) -> Iterator[tuple[str, State]]:
    """All dictionaries of named tensors within, each once."""
    seen = seen if seen is not None else set()
    if not isinstance(saved, Mapping) or depth > _DEEPEST or id(saved) in seen or len(seen) > _MOST_NODES:
        return
    seen.add(id(saved))
    tensors = {key: value for key, value in saved.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if len(tensors) > 1 or (tensors and any("." in key for key in tensors)):
        yield path, dict(tensors)
    for key, value in saved.items():
        if isinstance(key, str) and isinstance(value, Mapping):
            yield from _states(value, f"{path}.{key}" if path else key, depth + 1, seen)


def _has_statistics(state: State) -> bool:
    """Whether some BatchNorm's statistics are among the weights."""
    return any(name.endswith("running_mean") for name in state)


def _place(tensor: Tensor) -> tuple[object, ...]:
    """What tensors have in common that share all their numbers."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _refuse_overlaps(state: State, label: str) -> None:
    """BadWeights where views of a few numbers are to become far more numbers of their own."""
    plain = [one for one in state.values() if _is_plain(one) and not _claims_more(one)]  # others are refused by name
    held = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in plain}
    if (claimed := 4 * numbers_in(plain)) > 8 * sum(held.values()) + _SMALL_BYTES:
        raise BadWeights(f"{label}: its tensors lie over each other and claim {claimed:,} bytes; it is made to harm")


def _is_plain(tensor: Tensor) -> bool:
    """Whether it holds whole or real numbers, all of them, in memory."""
    dense = tensor.layout is torch.strided and not tensor.is_quantized
    return dense and tensor.device.type == "cpu" and not tensor.is_complex()


def _claims_more(tensor: Tensor) -> bool:
    """Whether it claims more numbers than there are behind it."""
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def _plain(name: str, tensor: Tensor, label: str) -> Tensor:
    """A dense tensor of whole or real numbers in float32 or int64; BadWeights for anything else."""
    if not _is_plain(tensor):
        raise BadWeights(f"{label}: {shown(name)} is not a plain tensor (sparse, complex, quantised or without values)")
    if tensor.is_floating_point() and tensor.element_size() < 2:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise BadWeights(
            f"{label}: {shown(name)} is in {kind}, which counts in steps that are told elsewhere; bring the weights to float32 "
            "with the library that wrote them, and save them again"
        )
    if _claims_more(tensor):
        raise BadWeights(f"{label}: {shown(name)} claims {list(tensor.shape)} numbers, the file holds fewer")
    plain = tensor.detach()
    return plain.float() if plain.is_floating_point() else plain


def told_in(saved: Any, *, is_known: Callable[[str], bool]) -> str | None:
    """The first known architecture that a training script kept beside the weights, itself or among its arguments."""
    if not isinstance(saved, Mapping):
        return None
    kept = _arguments(saved)
    for value in (saved.get("arch"), kept.get("model"), kept.get("arch")):
        if isinstance(value, str) and 0 < len(value) < 100 and is_known(value):
            return value
    return None


def config_told_in(saved: Any) -> dict[str, Any]:
    """What timm's training script kept of how its network is built and sees images, in the words of timm's config.json.

    {} for the file of another script. What it says is not believed here: whoever obeys it looks at it.
    """
    kept = _arguments(saved) if isinstance(saved, Mapping) else {}
    if not isinstance(kept.get("model"), str) or not any(word in kept for word in _TIMMS_OWN):
        return {}
    own, pool = kept.get("model_kwargs"), _plain_setting(kept.get("gp"))
    own = own if isinstance(own, Mapping) else {}
    made = {name[:80]: _plain_setting(value) for name, value in own.items() if isinstance(name, str)}
    if pool is not None:
        made["global_pool"] = "avg" if pool == "fast" else pool  # the same, otherwise computed
    if kept.get("bn_eps") is not None:
        made["bn_eps"] = _plain_setting(kept["bn_eps"])
    return {"pretrained_cfg": _images_told(kept), "model_args": made}


_CAFFES = re.compile(r"""\bstyle['"]?\s*[=:]\s*['"]caffe['"]""")
# How DINO, DeiT, MAE and their like call their plain transformers in their arguments, and begin the names of their files.
_SELF_TAUGHT = re.compile(r"(mae_|dino_|deit_)?(vit|deit)_(tiny|small|base|large|huge)(_patch\d+)?")
_OF_THEIRS = re.compile(r"(dino|deit|mae|ibot|moco|msn|data2vec|esvit|simmim)(v\d)?[^a-z]", re.IGNORECASE)


def sees_imagenet_colours(saved: Any, where: str, file: str) -> bool:
    """Whether a plain transformer is most likely of those that learnt on images less ImageNet's mean, not 0.5 as Google's.

    Told by a teacher or student (DINO), by the architecture among the arguments, or by how the file's name begins.
    """
    kept = _arguments(saved) if isinstance(saved, Mapping) else {}
    asked = [kept.get("arch"), kept.get("model")]
    named = any(isinstance(one, str) and len(one) < 100 and _SELF_TAUGHT.fullmatch(one) for one in asked)
    return named or is_of_two(where.partition(".")[0]) or _OF_THEIRS.match(file) is not None


def refuse_caffes(saved: Any, state: State, label: str) -> None:
    """BadWeights for a ResNet in Caffe's style: its tensors have the names and shapes of the usual one.

    OpenMMLab's settings tell of it; or that its BatchNorms have scales that were learnt, and no statistics at all: those of
    Caffe's networks are multiplied into the scales.
    """
    meta = saved.get("meta") if isinstance(saved, Mapping) else None
    told = [meta.get("cfg"), meta.get("config")] if isinstance(meta, Mapping) else []
    kinds = ("weight", "running_mean", "running_var")
    places = [name.removesuffix("bn1.running_mean") for name in state if name.endswith("layer1.0.bn1.running_mean")]
    norms = [state.get(f"{place}bn3.{kind}") for place in places for kind in kinds if f"{place}conv3.weight" in state]
    bare = [one for one in norms if one is not None]
    means = [one for name, one in state.items() if name.endswith("running_mean")]
    without = len(bare) >= len(kinds) and not any(bool(one.any()) for one in means)
    if any(isinstance(one, str) and _CAFFES.search(one) for one in told):
        how = "its settings say style='caffe'"
    elif without and bool((bare[0] != bare[0][0]).any()) and bool((bare[2] == bare[2][0]).all()):
        how = "its BatchNorms have no statistics, as those of ResNets that were Caffe's"
    else:
        return
    raise BadWeights(
        f"{label}: {how}: its blocks halve their maps in the first convolution, not the second, and "
        "its images are blue first, which no network here computes; take the weights in style='pytorch'"
    )


def is_moco_v3s(saved: Any, names: Iterable[str]) -> bool:
    """Whether MoCo v3 (Chen et al. 2021, arXiv:2104.02057) wrote it: two encoders, or vit_small told beside the weights.

    Its small transformer has twelve heads of attention where all others' has six; no tensor tells.
    """
    told = saved.get("arch") if isinstance(saved, Mapping) else None
    words = {word for name in names for word in name.split(".")[:3]}
    return told == "vit_small" or {"base_encoder", "momentum_encoder"} <= words


def is_of_two(place: str) -> bool:
    """Whether it is called a teacher or a student of self-taught networks: "teacher", "student_backbone."."""
    return not {"teacher", "student"}.isdisjoint(re.split(r"[._]", place))


def _images_told(kept: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of images among timm's arguments, read as timm's resolve_data_config reads them."""
    words = ("mean", "std", "crop_pct", "crop_mode", "input_size", "interpolation")
    images = {word: value for word in words if (value := _plain_setting(kept.get(word)))}
    side = kept.get("img_size")
    if type(side) is int and "input_size" not in images:
        images["input_size"] = (3, side, side)
    if images.get("interpolation") == "random":  # by chance in training alone
        del images["interpolation"]
    for word in ("mean", "std"):
        if isinstance(images.get(word), list) and len(images[word]) == 1:  # one for all colours
            images[word] = images[word] * 3
    return images


def _plain_setting(value: Any) -> Any:
    """A word, a number or a short list of them as it is; for anything else, its type's name in brackets."""
    if isinstance(value, (list, tuple)) and len(value) <= _MOST_ENTRIES:
        return [one if _is_word(one) else f"<{type(one).__name__}>" for one in value]
    return value if value is None or _is_word(value) else f"<{type(value).__name__}>"


def _is_word(value: Any) -> bool:
    """Whether it is a number or a short text."""
    return type(value) in (bool, int, float) or (type(value) is str and len(value) <= _LONGEST)


def _arguments(saved: Mapping[Any, Any]) -> Mapping[str, Any]:
    """The arguments that a training script kept beside the weights."""
    args = saved.get("args", saved.get("hyper_parameters"))
    return args if isinstance(args, Mapping) else vars(args) if isinstance(args, Namespace) else {}


def _summary(saved: Any) -> str:
    if isinstance(saved, Mapping):
        plain = (key if isinstance(key, (str, int, float)) else type(key).__name__ for key in list(saved)[:4])
        keys = [shown(str(key)[:40]) for key in plain]
        return f"a dictionary with {', '.join(keys) or 'nothing'}"
    return f"a {type(saved).__name__}"
