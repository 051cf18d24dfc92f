"""How a file's weights meet those of a network: which match under which prefix, and what to say of the others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from burnish.backbones.reading.parts import refuse_parts
from burnish.errors import BadWeights, shown

State = dict[str, Tensor]
SHARE = 0.95  # of the trunk's tensors that must match; below it the file is for another network
_DEEPEST = 4  # wrappers around a network
_COUNTER = "num_batches_tracked"
# Averaged weights before the last ones: they are what such scripts evaluate.
_PREFERRED = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model", "target_encoder", "state_dict", "model_state_dict",
    "model_state", "model", "net", "network", "weights", "params", "module", "teacher", "student", "backbone", "encoder",
)  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """How a file's tensors meet those of a network without its head."""

    state: State  # those that match, under the network's names
    expected: int  # tensors of the network, counters left out
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shapes: tuple[str, ...]  # "name has [..], expected [..]"
    kinds: tuple[str, ...]  # "name in int8": whole numbers where fractions should be, or the other way round
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


def fitted(
    state: State, expected: Mapping[str, Tensor], *, is_head: Callable[[str], bool], others: Sequence[State] = ()
) -> Fit:
    """The file's weights under the network's names, with the prefix that matches most; of equal ones an average's or teacher's.

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


def check_share(fit: Fit, expected: Mapping[str, Tensor], *, label: str, arch: str, advice: str) -> None:
    """BadWeights with counts and first examples when too little matches, or a number is not finite.

    So it is where a weight of the first of the `expected` layers is missing, or the kernel of the last: all features would be
    made of chance.
    """
    refuse_parts(fit.missing, fit.unexpected, label=label)
    broken = [name for name, one in fit.state.items() if one.is_floating_point() and not one.isfinite().all()]
    problems = []
    # One pools patches and norms after that, the other does not.
    norms = {"norm.weight", "fc_norm.weight"}
    swapped = bool(norms & set(fit.missing)) and bool(norms & set(fit.unexpected))
    deeper = len(fit.strangers) > (1.0 - SHARE) * fit.expected
    layer = next((name.rpartition(".")[0] for name in expected if name.endswith(".weight")), None)
    kernels = [name for name, one in expected.items() if name.endswith(".weight") and one.ndim > 1]
    blind = any(name.rpartition(".")[0] == layer or name in kernels[-1:] for name in fit.missing)
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
            f"{len(fit.kinds)} tensors hold another kind of number ({_first(fit.kinds)}): save them in float32, of a "
            "quantised network those that it was made of"
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


def preference(place: str) -> int:
    """How far down the list of the usual names a place of weights stands ("model_ema", "teacher.backbone."); 0 the first."""
    words = (*place.split("."), *re.split(r"[._]", place))
    return min((_PREFERRED.index(word) for word in words if word in _PREFERRED), default=len(_PREFERRED))


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
            kinds.append(f"{name} in {str(tensor.dtype).removeprefix('torch.')}")
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


def _worth(fit: Fit) -> tuple[int, int, int]:
    """Of a network and its average, a student and its teacher, all matches of both: then the usual names decide."""
    return fit.matched, -preference(fit.prefix), -len(fit.unexpected)


def _first(names: Sequence[str]) -> str:
    return ", ".join(shown(name[:120]) for name in names[:3]) + (", …" if len(names) > 3 else "")
