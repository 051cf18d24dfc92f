"""The backbone in a file of weights: what it is, which architecture, which of its tensors match."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from burnish.backbones import cifar, file_images, heads, segmenting, timmed
from burnish.backbones.architectures import built, refuse_few
from burnish.backbones.assembly import assembled
from burnish.backbones.keras import loader as keras
from burnish.backbones.names import checked_name
from burnish.backbones.reading import arrays, authors, checkpoint, maps, matching, opened, pickles, recognise, weights
from burnish.backbones.reading.parts import refuse_corrections
from burnish.backbones.spec import Backbone
from burnish.backbones.torchvision import networks as torchvisions
from burnish.backbones.torchvision.names import Options, translated
from burnish.backbones.transformers import clip, openclip
from burnish.backbones.transformers import configs as transformers_configs
from burnish.backbones.transformers import names as transformers_names
from burnish.errors import BadWeights, NoKerasModel, UnknownModel, shown

_Foreign = tuple[matching.State, Options]  # weights under timm's names, and options the network then needs
_ADVICE = "name the right architecture:  --arch NAME  (see: burnish models)"


def from_file(
    said: str | None, path: Path, config: dict[str, Any] | None, image_size: int | None, preprocess: str | None
) -> Backbone:
    """The network in a file. config: what a hub says of it; None: what lies beside the file."""
    found = opened.open_file(path)
    if config is not None:
        found = replace(found, config=config)
    if not found.config:
        beside = opened.config_beside(path / openclip.CONFIG if path.is_dir() else path, openclip.CONFIG)
        found = replace(found, config=openclip.told_by(beside))
    if found.kind in ("keras", "h5"):
        return keras.load(found, said, preprocess, image_size, source=f"file {path}")
    if preprocess is not None:
        raise NoKerasModel(
            "--preprocess is for Keras files; a PyTorch model's comes with its architecture or config.json"
        )
    read = _read(found)
    found = read.found  # lets the bytes go: with those of a file of 343 MB loading took 1,033, without them 706
    name = said or _name_told(found, said, read.metadata)
    return _filled(read, name, image_size, source=f"file {path}")


@dataclass(frozen=True)
class _Read:
    """The weights in a file, and what it says beside them."""

    found: opened.Opened  # without the bytes, which would lie beside the tensors to the end
    state: matching.State
    where: str  # the weights lay in it
    metadata: dict[str, str]
    imagenets: bool  # whether a plain transformer told by its tensors saw images less ImageNet's mean
    table: heads.Table | None  # whose fixed table of places a transformer has
    unknown: str  # what it says its architecture is, where burnish knows none of that name


def _is_known(word: str) -> bool:
    """Whether it is the name of an architecture."""
    return timmed.is_known(word) or torchvisions.is_known(word) or cifar.is_known(word)


def _read(found: opened.Opened) -> _Read:
    """The weights of an opened file, other than Keras's; BadWeights."""
    saved, metadata, unknown = found.held, dict[str, str](), ""
    if found.held is not None:
        state, where = checkpoint.weights_in(found.held, found.label)
    elif found.kind == "torch":
        saved = pickles.read_torch(found.data, found.label, packed=found.packed)
        state, where = checkpoint.weights_in(saved, found.label)
        # The older form packs nothing.
        if found.data[:2] != b"PK" and checkpoint.numbers_in(state.values()) > len(found.data):
            raise BadWeights(f"{found.label}: claims more numbers than it holds; damaged, or made to deceive")
        told = checkpoint.told_in(saved, is_known=_is_known)
        metadata = {"architecture": told} if told is not None else {}
        found = replace(found, config=found.config or checkpoint.config_told_in(saved))
    elif found.kind == "npz":
        state, where = checkpoint.weights_in(arrays.read_npz(found.data, found.label, packed=found.packed), found.label)
    else:
        state, where = checkpoint.weights_in(weights.tensors_of(found.data, found.label), found.label)
        said = weights.metadata_of(found.data)
        metadata = {key: value for key, value in said.items() if _is_known(value)}
        unknown = "" if "architecture" in metadata else said.get("architecture", "")
    refuse_corrections(state, label=found.label)
    checkpoint.refuse_caffes(saved, state, found.label)
    table = heads.table_in(saved, state)  # of self-taught networks
    imagenets = table is not None or checkpoint.sees_imagenet_colours(saved, where, found.name)
    return _Read(replace(found, data=b"", held=None), state, where, metadata, imagenets, table, unknown)


# Arguments of timm's that change nothing of a network without its head, in use, or that its tensors tell.
_WITHOUT_EFFECT = {
    "num_classes", "in_chans", "img_size", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "drop_rate",
    "head_drop_rate", "drop_path_rate", "attn_drop_rate", "proj_drop_rate", "pos_drop_rate", "patch_drop_rate", "drop_block_rate",
    "dynamic_img_size", "strict_img_size", "bn_momentum", "fc_norm", "use_fc_norm", "distillation", "class_token", "init_values",
    "mlp_ratio", "reg_tokens", "qkv_bias", "embed_dim", "depth",
}  # fmt: skip


def _put_in(kwargs: dict[str, Any], found: opened.Opened) -> None:
    """What timm's config.json, or its script's arguments, build a network with; BadWeights for what burnish does not build."""
    args = found.config.get("model_args")
    if not isinstance(args, dict):
        return
    for key, value in args.items():
        # The usual; and features of maps, which a head cannot see.
        if value is None or (key == "global_pool" and value == ""):
            continue
        if (key == "global_pool" and isinstance(value, str) and value in timmed.POOLS) or key == "bn_eps":
            kwargs[key] = value
        elif key not in _WITHOUT_EFFECT:
            raise BadWeights(
                f"{found.label}: its config.json, or the arguments kept in it, builds the network with "
                f"{shown(f'{key}={value}'[:80])}, which burnish does not"
            )


def _name_told(found: opened.Opened, said: str | None, metadata: dict[str, str]) -> str | None:
    """The architecture that the config.json or the file itself speaks of."""
    config = found.config
    arch = config.get("architecture", metadata.get("architecture"))
    tag = (config.get("pretrained_cfg") or {}).get("tag") if isinstance(config.get("pretrained_cfg"), dict) else None
    if isinstance(arch, str) and isinstance(tag, str) and timmed.is_known(f"{arch}.{tag}"):
        return f"{arch}.{tag}"
    return arch if isinstance(arch, str) else None


@dataclass(frozen=True)
class _Told:
    """Whose network a file of weights is, and the weights under each of the names they can be read by."""

    found: opened.Opened  # its config.json as far as it speaks of this network
    name: str
    description: dict[str, Any]
    bare: list[matching.State]  # less the prefixes of what may wrap a network; at least one
    foreign: _Foreign | None
    notes: tuple[str, ...]  # how it was told
    of_authors: bool = False  # whether it has the names that its authors' files have: of images, timm tells
    heads: int | None = None  # of its attentions, where a config.json of transformers says it

    @property
    def others(self) -> list[matching.State]:
        """The weights under timm's names, where they had another library's."""
        return [] if self.foreign is None else [self.foreign[0]]


def _filled(read: _Read, name: str | None, image_size: int | None, *, source: str) -> Backbone:
    """The network with these weights; its architecture as named, else as names and shapes of the tensors tell."""
    found, bare = read.found, checkpoint.unwrapped(read.state)
    openclip.refuse_others(bare, found.label)
    trunk = openclip.trunk(bare)
    state = read.state if trunk is None else trunk
    beside = list(state)
    state, told, prefix = _told_within(found, state, name)
    told = told if trunk is None else _as_openclip_saw(told)
    if (of_maps := segmenting.made(beside, told.description, found.label, named=name is not None)) is not None:
        told = replace(told, description=of_maps.description, notes=(*told.notes, of_maps.note))
    description, clauses = heads.counted(told.name, told.description, read.table)
    told = replace(told, description=description, notes=(*told.notes, *clauses))
    imagenets = read.imagenets or checkpoint.is_of_two(prefix)
    ready = file_images.prepared(
        told.name,
        told.description,
        told.found,
        [*told.others, *(told.bare if told.foreign is None else [])],
        translated=told.foreign is not None,
        of_authors=told.of_authors,
        image_size=image_size,
        imagenets=imagenets and bool(told.notes),
    )
    if ready.description["library"] == timmed.LIBRARY:
        _put_in(ready.description["kwargs"], told.found)
        timmed.check(ready.description["name"], ready.description["kwargs"])
    refuse_few(ready.description, checkpoint.numbers_in(state.values()), found.label)
    module, description, fit, adapted = _loaded(state, told, ready)
    notes = [*told.notes, *ready.notes, matching.report(fit, read.where), *adapted]
    if read.unknown:
        notes.append(f"says that it is {shown(read.unknown)[:80]!r}, which is not known here: told by its tensors")
    if "top" in description["kwargs"]:
        notes.append(
            "its features are the mean of its last map: of what its architecture has after that, the file holds nothing"
        )
    if not told.found.config:
        notes.append(f"taken to have seen images of {file_images.in_words(ready.preprocess)}")
    backbone = assembled(told.name, module, ready.preprocess, description, source=source, sha256=found.sha256)
    licence = backbone.licence if "." in told.name else str(told.found.config.get("license") or "unknown")[:80]
    return replace(backbone, notes=tuple(notes), licence=licence)


def _as_openclip_saw(told: _Told) -> _Told:
    """A network of timm's that is OpenCLIP's image half, with images as those are prepared."""
    images = openclip.images_of(told.name, told.found.config)
    how = (
        "as its config says"
        if "pretrained_cfg" in told.found.config
        else "as OpenCLIP prepares those of its own weights"
    )
    note = f"OpenCLIP's image half, its images {how}"
    found = replace(told.found, config={**told.found.config, "pretrained_cfg": images})
    return replace(told, found=found, notes=(note, *told.notes))


def _told_within(found: opened.Opened, state: matching.State, name: str | None) -> tuple[matching.State, _Told, str]:
    """(weights, whose network they are, ""): of all the file's, or where those tell none, of those under one beginning.

    So lie a backbone among other layers, an encoder before its decoder, a network beside its average.
    """
    try:
        return state, _told(found, state, name), ""
    except UnknownModel:
        # Of transformers' models the config.json tells; one that knows words too saw other colours than its architecture.
        if name is not None or "model_type" in found.config or any(one.endswith("logit_scale") for one in state):
            raise
        for prefix, inner in checkpoint.networks_within(state):
            with suppress(UnknownModel):
                told, beside = _told(found, inner, None), len(state) - len(inner)
                note = f"of the file, what lies under {shown(prefix)}; {beside} tensors beside that are left unused"
                return inner, replace(told, notes=(*told.notes, note)), prefix
        raise


def _told(found: opened.Opened, state: matching.State, name: str | None) -> _Told:
    """Whose network it is: as it is named, else as its tensors tell. BadWeights, UnknownModel."""
    named, notes = found.config.get("architecture"), []
    if name and isinstance(named, str) and named.partition(".")[0] != name.partition(".")[0]:
        raise BadWeights(
            f"{found.label}: you say {shown(name)}, the config.json beside it says {shown(named)}; "
            "name that one, or move the file away from the config.json"
        )
    bare = checkpoint.unwrapped(state)
    foreign = next((names for one in bare if (names := translated(one)) is not None), None)
    of_authors = next((own for one in bare if (own := authors.translated(one)) is not None), None)
    foreign = of_authors or foreign
    of_transformers = next((told for one in bare if (told := transformers_names.translated(one)) is not None), None)
    heads = None
    said = bool(found.config) or name is not None
    if of_transformers is not None:  # whose config.json speaks of its own classes
        read = transformers_configs.read(
            *of_transformers,
            config=found.config,
            preprocessor=found.images,
            named=name is not None,
            label=found.label,
        )
        foreign, name, heads = (read.weights, read.options), name or read.name, read.heads
        images = {**read.images, **(openclip.told_of_images(found.config) if of_transformers[1] == "clip" else {})}
        found = replace(found, config={"model_type": found.config.get("model_type"), "pretrained_cfg": images})
        half = f"CLIP's image half{'' if said or name is None else clip.activation_taken(name)}"
        notes.append(half if of_transformers[1] == "clip" else "named as transformers names its layers")
    if name is None:
        name, description, note = _recognised(found, bare, foreign)
        notes.append(note)
    else:
        name = name if cifar.is_known(name) or torchvisions.is_known(name) else checked_name(name)
        description = _described(name, bare, foreign)
    return _Told(found, name, description, bare, foreign, tuple(notes), of_authors is not None, heads)


def _loaded(
    state: matching.State, told: _Told, ready: file_images.Prepared
) -> tuple[nn.Module, dict[str, Any], matching.Fit, list[str]]:
    """(the network with the weights in it, its description, how they fit, clauses on what was done to make them fit)."""
    description, label = ready.description, told.found.label
    module, notes = built(description), list[str]()
    if not transformers_configs.matches_heads(module, told.heads):
        raise UnknownModel(
            f"{label}: its config.json speaks of {told.heads} heads of attention, {told.name} has others"
        )
    if _means_patches([*told.bare, *told.others], module, description):
        means = {**description, "kwargs": {**description["kwargs"], "global_pool": "avg"}}
        with suppress(UnknownModel):  # it has no such form: then the file is another network's, which is said below
            module, description = built(means), means
            notes = ["its features are the mean of its patches, as its fc_norm tells"]
    expected, others = module.state_dict(), [*told.bare[1:], *told.others]

    def is_head(key: str) -> bool:
        return key.startswith(ready.heads)

    fit = matching.fitted(state, expected, is_head=is_head, others=others)
    if not fit.whole and description["library"] == timmed.LIBRARY:
        # Perhaps another image size, or an older layout: timm's own conversion for this architecture may help.
        more = [timmed.converted(module, base) for base in (*told.bare, *told.others)]
        fit = matching.fitted(state, expected, is_head=is_head, others=[*others, *more])
    fit, adapted = matching.with_colour(fit, [*told.others, *told.bare], expected)
    matching.check_share(fit, expected, label=label, arch=told.name, advice=_ADVICE)
    module.load_state_dict(fit.state, strict=False)
    return module, description, fit, [*notes, *adapted]


def _means_patches(states: list[matching.State], module: nn.Module, description: dict[str, Any]) -> bool:
    """Whether a transformer's weights are of its form that takes the mean of the patches and norms that, not its usual one."""
    norms = {"norm.weight", "fc_norm.weight"}
    told = next((found for one in states if (found := norms & one.keys())), set())
    usual = norms & module.state_dict().keys()
    return (usual, told) == ({"norm.weight"}, {"fc_norm.weight"}) and "global_pool" not in description["kwargs"]


def _recognised(
    found: opened.Opened, bare: list[matching.State], foreign: _Foreign | None
) -> tuple[str, dict[str, Any], str]:
    """(name, description, how it was told) from the tensors; UnknownModel where they fit no known architecture."""
    names: list[str] = []
    for candidate in ([foreign[0]] if foreign is not None else []) + bare:
        shapes = _shapes_of(candidate)
        small = cifar.recognised(shapes)
        if small is not None:
            return small["name"], small, f"{small['name']}, told by names and shapes"
        if (of_torchvision := torchvisions.recognised(shapes)) is not None:
            return of_torchvision, torchvisions.described(of_torchvision), f"{of_torchvision}, told by names and shapes"
        if foreign is not None and "stem" in foreign[1]:
            shapes |= {name: (*shape[:2], 7, 7) for name, shape in shapes.items() if name == "conv1.weight"}
        names = recognise.recognised_without_head(shapes, file_images.HEADS)
        if not names and "fc_norm.weight" in shapes:  # the form that norms the mean of its patches (`_means_patches`)
            usual = {key.replace("fc_norm.", "norm."): shape for key, shape in shapes.items()}
            names = recognise.recognised_without_head(usual, file_images.HEADS)
        if not names and (coloured := _in_colour(shapes)) is not None:
            names = recognise.recognised_without_head(coloured, file_images.HEADS)
        if names:
            break
    names = names or maps.recognised([_shapes_of(one) for one in ([foreign[0]] if foreign is not None else []) + bare])
    if not names and isinstance(kind := found.config.get("model_type"), str):
        raise UnknownModel(f"{found.label}: {_of_transformers(kind, len(bare[0]))}")
    if not names:
        raise UnknownModel(
            f"{found.label}: neither the file nor a config.json beside it says its architecture, and its {len(bare[0])} tensors "
            f"({', '.join(shown(key[:60]) for key in list(bare[0])[:2])}, …) fit none that burnish knows; "
            "say it with --arch, a timm name such as resnet50 (see: burnish models), or as NAME=FILE"
        )
    # Torchvision's names of tensors tell by themselves.
    called = _called(found.name, names) if foreign is None else None
    name = called or names[0]
    twins = [one for one in names if one != name][:3] if foreign is None else []
    others = f" (the same tensors: {', '.join(twins)}; if it is one of them, say --arch)" if twins else ""
    how = "names and shapes" + (", and by the name of the file" if called else "")
    return name, _described(name, bare, foreign), f"{name}, told by {how}{others}"


_FIRST = re.compile(r"(^|\.)(conv_stem|stem|patch_embed|conv1|features\.0)\.")  # how first layers are called


def _in_colour(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]] | None:
    """The same for images in colour, where the first convolution is for grey or RGBA ones (`with_colour` adapts it).

    Files of safetensors have no order, and depthwise convolutions have one channel too: None where more than one may be it.
    """
    odd = [name for name, shape in shapes.items() if len(shape) == 4 and shape[1] in (1, 4)]
    found = odd if len(odd) == 1 else [name for name in odd if _FIRST.search(name)]
    if len(found) != 1:
        return None
    outside, _, *kernel = shapes[found[0]]
    return {**shapes, found[0]: (outside, 3, *kernel)}


def _of_transformers(kind: str, count: int) -> str:
    """Why a model of transformers, as its config.json calls it, is not read."""
    if kind in transformers_names.KINDS:
        return (
            f"the config.json beside it says that it is a {kind} of transformers, but its {count} tensors fit none of timm's: "
            "it is of a size or a form of its own, or some are missing; a timm name may be said with --arch"
        )
    return (
        f"the config.json beside it says that it is a {shown(kind[:60])} of transformers, which is not read; "
        f"of those {transformers_names.READ} are, and all that timm's wrapper saved"
    )


def _called(file: str, names: list[str]) -> str | None:
    """The longest of these names that a file's name begins with; None where it begins with none."""
    told = file.lower()
    begun = [name for name in names if re.match(rf"{re.escape(name)}(?![a-z0-9])", told)]
    return max(begun, key=len, default=None)


def _described(name: str, bare: list[matching.State], foreign: _Foreign | None) -> dict[str, Any]:
    """The plain description of the architecture of that name, with the options that the file's tensors ask for."""
    if cifar.is_known(name):
        found = cifar.recognised({key: tuple(tensor.shape) for key, tensor in bare[-1].items()})
        return found if found is not None and found["name"] == name else cifar.described(name)
    if torchvisions.is_known(name):
        return torchvisions.described(name)
    options = dict(foreign[1]) if foreign is not None else {}
    within = (inner for _, inner in checkpoint.networks_within(bare[0]))
    if name.partition(".")[0] in maps.recognised(map(_shapes_of, (*bare, *within))):
        options |= maps.TOP
    return timmed.architecture(name, None, **options)


def _shapes_of(state: matching.State) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
