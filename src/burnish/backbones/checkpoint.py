"""From what a training script saved to the weights of one network: unwrap, drop prefixes, say what matched."""

from __future__ import annotations

import re
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from burnish.backbones.parts import refuse_parts
from burnish.backbones.weights import MOST_TENSORS
from burnish.errors import BadWeights, shown

State = dict[str, Tensor]
SHARE = 0.95  # of the trunk's tensors that must match; below it the file is for another network
# Averaged weights before the last ones: they are what such scripts evaluate.
_PREFERRED = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model", "state_dict", "model_state_dict", "model_state",
    "model", "net", "network", "weights", "params", "module", "teacher", "student", "backbone", "encoder",
)  # fmt: skip
_WRAPPERS = {
    "module", "_orig_mod", "model", "backbone", "encoder", "net", "network", "trunk", "base_model", "feature_extractor",
    "student", "teacher", "visual", "0", "_model", "ema", "body", "resnet", "base", "timm_model", "_fsdp_wrapped_module",
}  # fmt: skip
# What torch.compile, FSDP and checkpointing put into the names of layers that they wrap; no layer is called so.
_INSIDE = re.compile(r"(?<=\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_FEWEST, _SMALLEST_SHARE = 20, 8  # tensors of a network among others, and the part of all that it has at least
_DEEPEST = 4
_LONGEST = 500  # characters of a tensor's name
_MOST_NODES = 100_000
_MOST_WRAPPERS = 5  # they lie two or three deep
_SMALL_BYTES = 2**26  # of tensors, below which nobody asks how they lie
_COUNTER = "num_batches_tracked"
_TIMMS_OWN = ("crop_pct", "gp")  # arguments by which timm's training script is known
_MOST_ENTRIES = 32  # of a list among such arguments


@dataclass(frozen=True)
class Fit:
    """How a file's tensors meet those of a network without its head."""

    state: State  # those that match, under the network's names
    expected: int  # tensors of the network, counters left out
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shapes: tuple[str, ...]  # "name has [..], expected [..]"
    kinds: tuple[str, ...]  # whole numbers where fractions should be, or the other way round
    prefix: str = ""  # taken off the file's names
    strangers: tuple[str, ...] = ()  # of the unexpected, those within parts that the network has: its layers are others

    @property
    def matched(self) -> int:
        """Tensors that fit, counters left out."""
        return sum(not name.endswith(_COUNTER) for name in self.state)

    @property
    def whole(self) -> bool:
        """Whether nothing is missing, too much, or of another shape."""
        return not (self.missing or self.unexpected or self.shapes or self.kinds)

    def clauses(self) -> list[str]:
        """What does not fit, one clause for each kind, with counts and examples."""
        found = []
        if self.missing:
            found.append(f"{len(self.missing)} of {self.expected} tensors are missing ({_first(self.missing)})")
        if self.unexpected:
            found.append(f"{len(self.unexpected)} are unexpected ({_first(self.unexpected)})")
        if self.shapes:
            found.append(f"{len(self.shapes)} have another shape ({_first(self.shapes)})")
        if self.kinds:
            found.append(f"{len(self.kinds)} hold another kind of number ({_first(self.kinds)})")
        return found


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
        words = one[0].split(".")
        rank = min((_PREFERRED.index(word) for word in words if word in _PREFERRED), default=len(_PREFERRED))
        # Some averages are of the parameters alone: without BatchNorm's statistics they are no network.
        bare = normed and not _has_statistics(one[1])
        return (bare, rank if one[0] else 0, -len(one[1]))

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

    named = {_INSIDE.sub("", name): name for name in state}
    if len(named) < len(state):  # some are there with and without
        named = {name: name for name in state}
    return {name: once(old, state[old]) for name, old in named.items()}, where


def fitted(
    state: State, expected: Mapping[str, Tensor], *, is_head: Callable[[str], bool], others: Sequence[State] = ()
) -> Fit:
    """The file's weights under the network's names, with whatever prefix matches most.

    expected: the network's state dict, which may be on the meta device. is_head: whether a name (prefix taken off) is of
    the classification head, which is left out. others: the same weights under other names, tried as well.
    """
    found = [
        _meet(candidate, expected, is_head, prefix)
        for candidate in (state, *others)
        for prefix in _prefixes(candidate, expected)
    ]
    best = max(found, key=_worth)
    if 2 * best.matched < best.expected:  # another network: an odd prefix that happens to match more would only confuse
        best = max((one for one in found if not one.prefix), key=_worth)
    return best


def check_share(fit: Fit, expected: Iterable[str], *, label: str, arch: str, advice: str) -> None:
    """BadWeights with counts and first examples when too little matches, or a number is not finite.

    So it is where a weight of the first of the `expected` layers is missing: all that comes after would be made of nothing.
    """
    refuse_parts(fit.missing, fit.unexpected, label=label)
    broken = [name for name, one in fit.state.items() if one.is_floating_point() and not one.isfinite().all()]
    problems = []
    # One pools patches and norms after that, the other does not.
    norms = {"norm.weight", "fc_norm.weight"}
    swapped = bool(norms & set(fit.missing)) and bool(norms & set(fit.unexpected))
    deeper = len(fit.strangers) > (1.0 - SHARE) * fit.expected
    layer = next((name.rpartition(".")[0] for name in expected if name.endswith(".weight")), None)
    blind = any(name.rpartition(".")[0] == layer for name in fit.missing)
    fits = fit.matched + len(fit.kinds) >= SHARE * fit.expected and not (fit.shapes or swapped or deeper or blind)
    if fits and (fit.kinds or broken):
        _refuse_numbers(fit, broken, label=label)
    if not fits:
        problems = [f"{fit.matched} of {fit.expected} tensors match, expected {SHARE:.0%}", *fit.clauses()]
    if broken:
        problems.append(f"{len(broken)} tensors with NaN or infinite values ({_first(broken)})")
    if problems:
        raise BadWeights(f"{label}: does not fit {arch}: {'; '.join(problems)}; {advice}")


def _refuse_numbers(fit: Fit, broken: list[str], *, label: str) -> None:
    """BadWeights for weights of the right network whose numbers are of no use."""
    found = []
    if fit.kinds:
        found.append(
            f"{len(fit.kinds)} tensors hold another kind of number ({_first(fit.kinds)}): save them in float32"
        )
    if broken:
        found.append(
            f"{len(broken)} tensors with NaN or infinite values ({_first(broken)}): take a state from before they came about"
        )
    raise BadWeights(f"{label}: {'; '.join(found)}")


def report(fit: Fit, where: str) -> str:
    """One clause on how it went: "320 of 320 tensors match (under state_dict, without module.)"."""
    notes = [f"under {shown(where)}"] if where else []
    notes += [f"without {shown(fit.prefix)}"] if fit.prefix else []
    text = f"{fit.matched} of {fit.expected} tensors match" + (f" ({', '.join(notes)})" if notes else "")
    if fit.missing:
        text += f"; {len(fit.missing)} are missing and stay random ({_first(fit.missing)})"
    if fit.unexpected:
        text += f"; {len(fit.unexpected)} are left unused ({_first(fit.unexpected)})"
    return text


def without_prefix(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Those below the prefix, under the rest of their names."""
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


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
        words = re.split(r"[._]", prefix)
        rank = min((_PREFERRED.index(word) for word in words if word in _PREFERRED), default=len(_PREFERRED))
        return -counts[prefix], rank, places[prefix]

    return [(one, without_prefix(state, one)) for one in sorted(counts, key=order) if counts[one] >= least]


def numbers_in(tensors: Iterable[Tensor]) -> int:
    """How many numbers the tensors hold together; those that share theirs count once."""
    return sum({_place(one): one.numel() for one in tensors if one.numel()}.values())


def with_colour(fit: Fit, states: Sequence[State], expected: Mapping[str, Tensor]) -> tuple[Fit, list[str]]:
    """A first convolution made for grey or RGBA images, adapted to RGB, and a clause that says so.

    Grey: the same kernel on each colour, a third of it, so that an image whose colours are equal gives what it gave.
    RGBA: the kernel of the fourth channel is left out.
    """
    clashes = [one.partition(" has ")[0] for one in fit.shapes]
    if len(clashes) != 1:
        return fit, []
    name = clashes[0]
    wanted = expected[name]
    held = [one for state in states for one in (state.get(fit.prefix + name), state.get(name)) if one is not None]
    found = held[0] if held else None
    if found is None or found.ndim != 4 or wanted.ndim != 4 or wanted.shape[1] != 3 or found.shape[1] not in (1, 4):
        return fit, []
    if (found.shape[0], *found.shape[2:]) != (wanted.shape[0], *wanted.shape[2:]):
        return fit, []
    grey = found.shape[1] == 1
    kernel = found.expand(-1, 3, -1, -1) / 3 if grey else found[:, :3]
    clause = "its first layer was made for grey images" if grey else "its first layer was made for RGBA images"
    return replace(fit, state={**fit.state, name: kernel.clone()}, shapes=()), [f"{clause} and is adapted to RGB"]


def _prefixes(state: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Beginnings of the file's names that leave names of the network."""
    found = dict.fromkeys([""])  # in the file's order, so that of two equal encoders it is the first in every process
    for name in state:
        parts = name.split(".")
        for cut in range(1, min(len(parts), _DEEPEST + 2)):
            if ".".join(parts[cut:]) in expected:
                found[".".join(parts[:cut]) + "."] = None
    return sorted(found, key=len)[:64]


def _meet(state: State, expected: Mapping[str, Tensor], is_head: Callable[[str], bool], prefix: str) -> Fit:
    """The names below one prefix against the network's; what lies beside the prefix is not of the trunk."""
    inside: State = without_prefix(state, prefix)
    outside = [name for name in state if prefix and not name.startswith(prefix)]
    mine = {name: tensor for name, tensor in inside.items() if name in expected or not is_head(name)}
    matching, shapes, kinds = {}, [], []
    for name, wanted in expected.items():
        if name not in mine:
            continue
        tensor = mine[name]
        unlike = tensor.shape != wanted.shape or tensor.is_floating_point() != wanted.is_floating_point()
        # A counter plays no part; averages and halves of all entries make a number of it
        if unlike and name.endswith(_COUNTER):
            continue
        if tensor.shape != wanted.shape:
            shapes.append(f"{name} has {list(tensor.shape)}, expected {list(wanted.shape)}")
        elif tensor.is_floating_point() != wanted.is_floating_point():
            kinds.append(name)
        else:
            matching[name] = tensor
    counted = [name for name in expected if not name.endswith(_COUNTER)]
    missing = [name for name in counted if name not in mine]
    strangers = [*(name for name in mine if name not in expected), *(name for name in outside if not is_head(name))]
    unexpected = [name for name in strangers if not name.endswith(_COUNTER)]
    parts = {name.partition(".")[0] for name in expected}
    own = [name for name in unexpected if name in mine and name.partition(".")[0] in parts]
    return Fit(
        matching, len(counted), tuple(missing), tuple(unexpected), tuple(shapes), tuple(kinds), prefix, tuple(own)
    )


def _worth(fit: Fit) -> tuple[int, int]:
    return fit.matched, -len(fit.unexpected)


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
        raise BadWeights(f"{label}: {shown(name)} is not a plain tensor (sparse, quantised or without values)")
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


def _first(names: Sequence[str]) -> str:
    return ", ".join(shown(name[:120]) for name in names[:3]) + (", …" if len(names) > 3 else "")
