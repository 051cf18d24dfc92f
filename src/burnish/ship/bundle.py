"""The package: a trained classifier with everything that must travel with it, on disk (P2, P8, P9, P10).

    RUN/package.json                            the pointer: {"current": "packages/0001"}
    RUN/packages/0001/bundle.json               names of the classes, preprocessing, hashes, facts
    RUN/packages/0001/weights.safetensors       "trunk.*", "head.*" and "familiarity.*"

A version is written by `disk.write_version`, old or new but never torn. A package folder can be copied away alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from burnish.backbones import zoo
from burnish.backbones.classifier import Classifier
from burnish.backbones.head import FORMS, LINEAR, is_form
from burnish.backbones.head import made as made_head
from burnish.backbones.reading import weights
from burnish.backbones.spec import Backbone
from burnish.data.sources.scan import holds_images
from burnish.disk import read_plain_json, write_version
from burnish.errors import BadWeights, ModelError, NotARun, RecipeError, RunError, shown, spoilt
from burnish.measure.held_out import HeldOut
from burnish.measure.ood import Familiarity
from burnish.record.folder import no_run
from burnish.ship.slim_weights import FULL, HALF, packed, stored_as, unpacked
from burnish.terms import Preprocess

FORMAT, FORMAT_VERSION = "burnish-package", 1
WEIGHTS, FACTS, POINTER, VERSIONS = "weights.safetensors", "bundle.json", "package.json", "packages"
_CURRENT = re.compile(rf"{VERSIONS}/\d{{4,9}}")
_MAX_POINTER_BYTES = 4096
_MOST_WIDTH = 2**20  # features of a head
_MOST_SIDE = 2048  # pixels
_FAMILIAR = "familiarity."  # what tensors of that kind are called
_TEXTS = ("method", "base_model", "base_sha256", "licence", "burnish_version", "created")


@dataclass(frozen=True)
class Bundle:
    """A classifier ready to be used: `classifier()` gives the module, the rest is what it means."""

    architecture: dict[str, Any]  # from zoo.architecture_for_bundle
    classes: tuple[str, ...]  # names, in the order of the logits
    preprocess: Preprocess
    state: Mapping[str, Tensor]  # "trunk.*", "head.weight" [k d], "head.bias" [k]
    width: int  # d, of the features
    method: str
    base_model: str
    base_sha256: str  # of the pretrained weights file, "" for random weights
    licence: str  # of the pretrained weights
    head: str = LINEAR  # its form, as `backbones.head` has them
    temperature: float = 1.0  # probabilities are softmax(logits / temperature), or of several classes their sigmoids
    # [k], where an image may have several: from which probability one is said
    thresholds: tuple[float, ...] | None = None
    held_out: HeldOut | None = None  # for declining and for sets of classes
    familiarity: Familiarity | None = None  # for telling images unlike those trained on
    burnish_version: str = ""
    created: str = ""  # ISO 8601, UTC
    facts: dict[str, Any] = field(default_factory=dict)  # anything else worth keeping, plain JSON values
    stored: str = FULL  # how the weights lie on the disk, as `slim_weights` has it; `state` is float32 in any case

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        classifier: Classifier,
        *,
        classes: tuple[str, ...],
        method: str,
        preprocess: Preprocess | None = None,
        temperature: float = 1.0,
        thresholds: tuple[float, ...] | None = None,
        held_out: HeldOut | None = None,
        familiarity: Familiarity | None = None,
        facts: dict[str, Any] | None = None,
    ) -> Bundle:
        """The package of a classifier trained from `backbone`; weights are copied. preprocess None: the backbone's."""
        state = {name: tensor.detach().cpu().clone() for name, tensor in classifier.state_dict().items()}
        return cls(
            architecture=zoo.architecture_for_bundle(backbone),
            classes=tuple(classes),
            preprocess=preprocess or backbone.preprocess,
            state=state,
            width=backbone.width,
            method=method,
            head=classifier.form,
            base_model=backbone.name,
            base_sha256=backbone.sha256,
            licence=backbone.licence,
            temperature=temperature,
            thresholds=thresholds,
            held_out=held_out,
            familiarity=familiarity,
            burnish_version=_own_version(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            facts=facts or {},
        )

    @property
    def several(self) -> bool:
        """Whether an image may have any number of the classes."""
        return self.thresholds is not None

    def classifier(self) -> Classifier:
        """The module, in eval mode on the CPU; BadWeights when the weights do not fit the architecture exactly."""
        held = sum(one.numel() for one in self.state.values())
        zoo.refuse_few(self.architecture, held, "the package", times=20)  # some of it may be cut off
        trunk = zoo.rebuild(self.architecture, width=self.width, size=self.preprocess.size)
        classifier = Classifier(trunk, self.width, len(self.classes), head=self.head)
        expected = classifier.state_dict()
        missing, unexpected = sorted(expected.keys() - self.state.keys()), sorted(self.state.keys() - expected.keys())
        shapes = [name for name in expected if name in self.state and not _alike(expected[name], self.state[name])]
        if missing or unexpected or shapes:
            examples = ", ".join(shown(name[:120]) for name in (missing + unexpected + shapes)[:3])
            raise BadWeights(
                f"the package's weights do not fit {self.architecture['name']}: {len(missing)} missing, "
                f"{len(unexpected)} unexpected, {len(shapes)} of another shape or kind ({examples}); "
                "the package is damaged, make it again with burnish fit"
            )
        classifier.load_state_dict(dict(self.state), strict=True)
        return classifier.eval()


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_bundle(folder: Path, bundle: Bundle) -> Path:
    """Make `bundle` the package of the run folder; returns the folder of this version.

    Durable on return. RunError when the bundle is not sound or the disk refuses; the package before it stays then.
    """
    folder = Path(folder)
    if problems := _problems(bundle):
        raise RunError(f"{shown(str(folder))}: the package would not be sound: {'; '.join(problems)}")
    state = packed({name: one.detach().cpu().contiguous().clone() for name, one in bundle.state.items()}, bundle.stored)
    if bundle.familiarity is not None:
        known = {_FAMILIAR + name: torch.from_numpy(one.copy()) for name, one in bundle.familiarity.arrays().items()}
        axes = {name: known.pop(name) for name in [f"{_FAMILIAR}axes"]}  # the rest is small, and its range is wide
        state |= known | packed(axes, FULL if bundle.stored == FULL else HALF)
    data = safetensors.torch.save(state)
    facts = _facts(bundle, data)
    try:
        return write_version(folder, {WEIGHTS: data, FACTS: facts}, versions=VERSIONS, pointer=POINTER)
    except OSError as error:
        raise RunError(
            f"{shown(str(folder))}: the package could not be written ({error.strerror or error}); "
            "the one before it, if any, is as it was; free some space or choose another folder with --out"
        ) from error


def _facts(bundle: Bundle, data: bytes) -> bytes:
    """The bytes of bundle.json; its last entry is the hash of the rest."""
    values = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "members": {WEIGHTS: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}},
        "architecture": bundle.architecture,
        "head": {"kind": bundle.head, "width": bundle.width},
        "classes": list(bundle.classes),
        "preprocess": bundle.preprocess.to_json(),
        "temperature": bundle.temperature,
        **({} if bundle.thresholds is None else {"thresholds": list(bundle.thresholds)}),
        **({} if bundle.held_out is None else {"held_out": bundle.held_out.to_json()}),
        **{name: getattr(bundle, name) for name in _TEXTS},
        "facts": bundle.facts,
    }
    values["sha256"] = _digest(values)
    return json.dumps(values, indent=1, allow_nan=False).encode() + b"\n"


def _digest(values: dict[str, Any]) -> str:
    """SHA-256 of the entries other than "sha256", however they are laid out."""
    rest = {key: value for key, value in values.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_bundle(folder: Path) -> Bundle:
    """The package of a run folder, or the one in a package folder itself.

    Hashes are checked before anything is used. NotARun when there is no package or its description is damaged,
    BadWeights when the weights are; both say what was found.
    """
    folder = Path(folder)
    while True:
        package = package_folder(folder)
        try:
            return _read(package)
        except (NotARun, BadWeights, FileNotFoundError) as error:
            # A run that goes on may have made a better package meanwhile, and taken this one away.
            if package_folder(folder) != package:
                continue
            if isinstance(error, FileNotFoundError):
                raise NotARun(f"{shown(str(package))}: {WEIGHTS} is missing; copy the whole folder again") from None
            raise


def _read(package: Path) -> Bundle:
    """The package in this very folder."""
    values = _checked_facts(package)
    member = values["members"][WEIGHTS]
    path = package / WEIGHTS
    if not path.is_file():
        raise NotARun(f"{shown(str(package))}: {WEIGHTS} is missing; copy the whole folder again")
    if path.stat().st_size != member["bytes"]:
        size = path.stat().st_size
        raise BadWeights(f"{shown(str(path))}: {size:,} bytes, expected {member['bytes']:,}; copy the file again")
    tensors = weights.read_safetensors(path, sha256=member["sha256"])
    bundle = replace(_bundle(values, package, unpacked(tensors)), stored=stored_as(tensors))
    if problems := _problems(bundle):
        raise BadWeights(f"{shown(str(package))}: the package is not sound: {'; '.join(problems)}")
    return bundle


def package_folder(folder: Path) -> Path:
    """Where bundle.json lies: the folder itself, or the version that its pointer names."""
    if (folder / FACTS).is_file():
        return folder
    pointer = folder / POINTER
    if not pointer.is_file():
        if not folder.exists():
            raise no_run(folder)
        swapped = ", but images, which are said after the run" if holds_images(folder) else ""
        raise no_run(folder, f"holds no package ({POINTER} or {FACTS}){swapped}")
    try:
        current = read_plain_json(pointer, max_bytes=_MAX_POINTER_BYTES).get("current")
    except (OSError, ValueError) as error:
        raise NotARun(f"{shown(str(pointer))}: {error}; expected the file that burnish fit wrote") from None
    if not isinstance(current, str) or not _CURRENT.fullmatch(current):
        found = shown(repr(current)[:80])
        raise NotARun(f"{shown(str(pointer))}: points to {found}, expected {VERSIONS}/0001 or the like")
    if not (folder / current / FACTS).is_file():
        raise NotARun(f"{shown(str(folder))}: {current}/{FACTS} is missing; copy the whole run folder again")
    return folder / current


def _checked_facts(package: Path) -> dict[str, Any]:
    """The values in bundle.json, their kinds checked; NotARun when any is not as it must be."""
    try:
        values = read_plain_json(package / FACTS)
        _check_facts(values)
    except (OSError, ValueError, RecursionError) as error:
        raise NotARun(f"{shown(str(package / FACTS))}: {spoilt(error)}; the package is damaged, or not one") from None
    return values


def _check_facts(values: dict[str, Any]) -> None:
    """ValueError, one clause, unless these are the entries of a package of this version, unchanged."""
    if values.get("format") != FORMAT:
        raise ValueError(f'"format" is {values.get("format")!r}, expected "{FORMAT}"')
    if values.get("version") != FORMAT_VERSION:
        found = values.get("version")
        raise ValueError(f"is of format version {found!r}, this burnish reads {FORMAT_VERSION}; update burnish")
    kinds = {
        "format": str, "version": int, "members": dict, "architecture": dict, "head": dict, "classes": list,
        "preprocess": dict, "temperature": (int, float), **dict.fromkeys(_TEXTS, str), "facts": dict, "sha256": str,
    }  # fmt: skip
    optional = {"thresholds": list, "held_out": dict}  # the first with several classes an image, the second with one
    kinds |= {key: kind for key, kind in optional.items() if key in values}
    if set(values) != set(kinds):
        raise ValueError(f"entries missing or unknown: {', '.join(sorted(set(values) ^ set(kinds)))}")
    wrong = [key for key, kind in kinds.items() if not isinstance(values[key], kind) or isinstance(values[key], bool)]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: not of the expected kind")
    if _digest(values) != values["sha256"]:
        raise ValueError("the content changed after it was written (SHA-256 differs)")
    if set(values["members"]) != {WEIGHTS}:
        raise ValueError(f"names the members {sorted(values['members'])!r}, expected only {WEIGHTS!r}")
    member = values["members"][WEIGHTS]
    kinds = {"bytes": int, "sha256": str}
    if not isinstance(member, dict) or {key: type(value) for key, value in member.items()} != kinds:
        raise ValueError(f"does not say size and SHA-256 of {WEIGHTS}")
    width = values["head"].get("width")
    if not is_form(values["head"].get("kind")) or type(width) is not int or not 0 < width <= _MOST_WIDTH:
        raise ValueError(
            f"has a head of kind {values['head'].get('kind')!r}, expected {FORMS}, with a width of 1 to {_MOST_WIDTH:,}"
        )


def _bundle(values: dict[str, Any], package: Path, state: dict[str, Tensor]) -> Bundle:
    try:
        preprocess = _preprocess(values["preprocess"])
        held_out = (
            HeldOut.from_json(values["held_out"], classes=len(values["classes"])) if "held_out" in values else None
        )
        known = {name.removeprefix(_FAMILIAR): one.numpy() for name, one in state.items() if name.startswith(_FAMILIAR)}
        familiarity = Familiarity.from_arrays(known, values["head"]["width"]) if known else None
        temperature = float(values["temperature"])
    except (RecipeError, TypeError, ValueError, OverflowError) as error:
        raise NotARun(f"{shown(str(package / FACTS))}: {spoilt(error)}; the package is damaged, or not one") from None
    return Bundle(
        architecture=values["architecture"],
        classes=tuple(values["classes"]),
        preprocess=preprocess,
        state={name: one for name, one in state.items() if not name.startswith(_FAMILIAR)},
        held_out=held_out,
        familiarity=familiarity,
        width=values["head"]["width"],
        head=values["head"]["kind"],
        temperature=temperature,
        thresholds=tuple(values["thresholds"]) if "thresholds" in values else None,
        facts=values["facts"],
        **{name: values[name] for name in _TEXTS},
    )


def _preprocess(values: dict[str, Any]) -> Preprocess:
    """The stored preprocessing; RecipeError or ValueError when an entry is of another kind or cannot be."""
    preprocess = Preprocess.from_json(values)
    numbers = (preprocess.crop, *preprocess.mean, *preprocess.std)
    if type(preprocess.size) is not int or not all(type(number) in (int, float) for number in numbers):
        raise ValueError("preprocess: size, crop, mean and std must be numbers")
    if preprocess.size > _MOST_SIDE:
        raise ValueError(
            f"preprocess: images of {str(preprocess.size)[:20]} pixels a side, expected at most {_MOST_SIDE:,}"
        )
    return preprocess


def _problems(bundle: Bundle) -> list[str]:
    """What is wrong with a bundle, one clause each; used before it is written and after it is read."""
    problems = []
    try:
        zoo.check_architecture(bundle.architecture)
    except ModelError as error:
        problems.append(str(error))
    names = bundle.classes
    if not names or not all(isinstance(name, str) and name for name in names):
        problems.append("the classes are not all names")
    elif len(set(names)) != len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        problems.append(f"the class {shown(twice[:120])!r} is named twice")
    if not (math.isfinite(bundle.temperature) and bundle.temperature > 0):
        problems.append(f"the temperature is {bundle.temperature!r}, expected a number above 0")
    if bundle.thresholds is not None:
        cuts = [one for one in bundle.thresholds if type(one) in (int, float) and 0.0 <= one <= 1.0]
        if len(cuts) != len(names):
            problems.append(f"{len(bundle.thresholds)} thresholds, expected {len(names)} numbers of 0 to 1")
    try:
        with torch.device("meta"):  # only the shapes matter
            head = made_head(bundle.head, bundle.width, max(1, len(names))).state_dict()
    except RecipeError as error:
        problems.append(str(error))
        head = {}
    for name, wanted in head.items():
        found = list(bundle.state[f"head.{name}"].shape) if f"head.{name}" in bundle.state else None
        if found != list(wanted.shape):
            problems.append(f"head.{name} is {found}, expected {list(wanted.shape)} for {len(names)} classes")
    if strangers := [name for name in bundle.state if not name.startswith(("trunk.", "head."))]:
        problems.append(f"tensors that are neither trunk nor head: {', '.join(map(shown, strangers[:3]))}")
    if broken := [name for name, tensor in bundle.state.items() if not _all_finite(tensor)]:
        problems.append(f"{len(broken)} tensors with NaN or infinite values ({shown(broken[0])}, …)")
    try:
        json.dumps([bundle.facts, bundle.architecture], allow_nan=False)
    except (TypeError, ValueError) as error:
        problems.append(f"facts are not plain JSON ({error})")
    return problems


def _alike(wanted: torch.Tensor, found: torch.Tensor) -> bool:
    return wanted.shape == found.shape and wanted.dtype == found.dtype


def _all_finite(tensor: torch.Tensor) -> bool:
    """As what it is computed with: float32."""
    return bool(torch.isfinite(tensor.float() if tensor.is_floating_point() else tensor).all())


def _own_version() -> str:
    try:
        return metadata.version("burnish")
    except metadata.PackageNotFoundError:
        return "unknown"
