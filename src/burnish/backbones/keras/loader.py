"""From a Keras file, or the name of a network of keras.applications, to a backbone."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from typing import Any

import torch

from burnish.archives import Zip
from burnish.backbones.keras import applications, graph, network
from burnish.backbones.keras.arrays import Arrays, stacked
from burnish.backbones.keras.configs import Node, Parsed, parsed
from burnish.backbones.keras.options import OLD_HARD_SIGMOID
from burnish.backbones.keras.trunk import fitted, shared, size_of, without_head
from burnish.backbones.reading.opened import Opened
from burnish.backbones.spec import Backbone
from burnish.backbones.stages import stages_of, steps_of
from burnish.disk import MAX_JSON_BYTES
from burnish.errors import BadWeights, RecipeError, UnknownModel, shown
from burnish.terms import Preprocess

LIBRARY = graph.LIBRARY
_MOST_CONFIG_BYTES = MAX_JSON_BYTES  # position embeddings may stand in it as text
_METADATA = "metadata.json"
_MOST_OBJECTS, _USUAL_PIXELS = 500_000, 224


def load(found: Opened, arch: str | None, preprocess: str | None, image_size: int | None, *, source: str) -> Backbone:
    """The headless network in a .keras or .h5 file.

    arch: keras:resnet50 and so on, for files of weights alone whose layers do not tell. preprocess: how its images were
    prepared, which no Keras file says: keras:resnet50, caffe, tf, torch or none. RecipeError when it is not given.
    """
    if preprocess is None:
        raise RecipeError(
            f"{found.label}: a Keras file does not say how its images were prepared, and a wrong guess ruins every answer; "
            "say it with --preprocess: keras:resnet50 (or another network of keras.applications), caffe, tf, torch, "
            "or none for pixels of 0 to 255"
        )
    mode = applications.mode_named(preprocess)
    config, arrays, version = _parts(found)
    notes, alone = [], config is None
    if alone:
        config, arrays, notes = _of_weights_alone(arrays, arch, image_size, found.label)
    elif arch is not None:
        raise RecipeError(f"{found.label}: holds its own network, so there is nothing for --arch to say; leave it out")
    whole = parsed(config, found.label)
    if version.startswith(("1.", "2.")):
        _with_old_hard_sigmoid(whole)
    trunk, heads = without_head(whole, found.label)
    if not trunk:
        raise BadWeights(f"{found.label}: has no layers between its images and its output")
    native = size_of(trunk, whole, found.label) or image_size or _USUAL_PIXELS
    trunk, told = fitted(trunk, whole, native)
    name, size = f"keras_{_plain_name(config, found)}", image_size or native
    blank, kwargs, pooled = _pooled(name, _described(trunk, whole, native, bgr=mode.bgr))
    blank, kwargs = _at_size(name, blank, kwargs, size, found.label)
    if next(blank.parameters(), None) is None:
        below = f" below its classifier, the layer {', '.join(map(shown, heads))}," if heads else ""
        raise BadWeights(
            f"{found.label}: no layer{below} has weights, so there is no network to tune; expected one with convolutions, "
            "dense layers or the like. Give another file."
        )
    weighted = [node for node in trunk if node.name in blank.parts]
    called = _called([node.own_name for node in weighted], arrays.layer_names()) if alone else {}
    filled = _found(blank, trunk, arrays, called)  # before weights are made for what the file lacks
    module = _drawn(blank)
    matched = _fill(module, filled, whole)
    notes += [f"{matched} of {matched} arrays match", *told, *shared(weighted)]
    notes += [f"its head, the layer {', '.join(map(shown, heads))}, is left out"] if heads else []
    notes += [pooled] if pooled else []
    chosen = applications.preprocess_for(mode, size)
    backbone = _assembled(name, module, kwargs, chosen, source=source, sha256=found.sha256)
    return replace(backbone, notes=tuple(notes))


def application(name: str, image_size: int | None, seed: int) -> Backbone:
    """A network of keras.applications with random weights."""
    one = applications.named(name)
    size = image_size or one.size
    whole = parsed(applications.config_of(one, size), f"keras:{one.name}")
    trunk, _ = without_head(whole, f"keras:{one.name}")
    mode = applications.MODES[one.mode]
    blank, kwargs, _ = _pooled(f"keras_{one.name}", _described(trunk, whole, size, bgr=mode.bgr))
    module = _drawn(blank, seed)
    chosen = applications.preprocess_for(mode, size)
    return _assembled(f"keras_{one.name}", module, kwargs, chosen, source="random", sha256="")


def pooling(backbone: Backbone, pool: str) -> Backbone:
    """The same weights with the mean ("avg") or the largest ("max") over what is left of space."""
    kwargs = backbone.architecture["kwargs"]
    last = kwargs["nodes"][-1]
    kinds = {"avg": f"GlobalAveragePooling{last['kind'][-2:]}", "max": f"GlobalMaxPooling{last['kind'][-2:]}"}
    if pool not in kinds or last["kind"] not in kinds.values():
        where = (
            "" if last["kind"] in kinds.values() else f"; {backbone.name} ends with {last['kind']}, not with a pooling"
        )
        raise RecipeError(f"pool is {shown(pool)!r}, expected avg or max{where}")
    kwargs = {**kwargs, "nodes": [*kwargs["nodes"][:-1], {**last, "kind": kinds[pool]}]}
    module = _drawn(graph.blank(backbone.name, kwargs))
    module.load_state_dict(backbone.module.state_dict())
    return replace(backbone, module=module, architecture={**backbone.architecture, "kwargs": kwargs})


# ---- reading ---------------------------------------------------------------------------------------------------------


def _of_weights_alone(
    arrays: Arrays, arch: str | None, image_size: int | None, label: str
) -> tuple[dict[str, Any], Arrays, list[str]]:
    """The config of the network of keras.applications that the weights are of, its arrays, and notes on how that was told."""
    arrays, place = arrays.of_the_network()
    application = _application(arrays, arch, label)
    scale, size = applications.scale_of(application, arrays.widths), image_size or application.size
    config = applications.config_of(application, size, layers=arrays.layer_names(), scale=scale)
    if application.name.startswith("efficientnetb") and arrays.hold(applications.MODES["torch"].mean):
        config = applications.with_imagenet_scale(config)
    notes = [f"keras:{application.name}" + (", told by its layers' names" if arch is None else "")]
    if scale != 1.0:
        notes.append(f"{scale:g} times as wide as usual (alpha)")
    if place:
        notes.append(f"of the file, what lies under {shown(place)}; the layers around that network are left out")
    return config, arrays, notes


def _with_old_hard_sigmoid(whole: Parsed) -> None:
    """0.2 x + 0.5, as Keras 2 has it, in place of x / 6 + 0.5."""
    for node in whole.nodes:
        if node.options.get("activation") == "hard_sigmoid":
            node.options["activation"] = OLD_HARD_SIGMOID


def _parts(found: Opened) -> tuple[Any, Arrays, str]:
    """(config or None, arrays, version of Keras or "") of the file."""
    if found.kind == "h5":
        arrays = Arrays(found.data, found.label, packed=found.packed)
        text = arrays.config
        config = None if text is None else _json(text.encode("utf-8", "replace"), found.label)
        return config, arrays, arrays.version
    archive = Zip(found.data, found.label, packed=found.packed)
    config = _json(archive.read("config.json", at_most=_MOST_CONFIG_BYTES), found.label)
    about = {}
    if _METADATA in archive.members:
        about = _json(archive.read(_METADATA, at_most=_MOST_CONFIG_BYTES), found.label)
    version = str(about.get("keras_version", ""))
    inside = f"{found.label} (model.weights.h5)"
    return config, Arrays(archive.read("model.weights.h5"), inside, packed=found.packed), version


def _json(data: bytes, label: str) -> Any:
    if len(data) > _MOST_CONFIG_BYTES:
        raise BadWeights(f"{label}: its config has {len(data):,} bytes, expected at most {_MOST_CONFIG_BYTES:,}")
    if data.count(b"{") > _MOST_OBJECTS:
        raise BadWeights(f"{label}: its config has more than {_MOST_OBJECTS:,} entries")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadWeights(f"{label}: its config is no JSON ({shown(str(error))[:80]})") from None
    if not isinstance(values, dict):
        raise BadWeights(f"{label}: its config is no JSON object")
    return values


def _application(arrays: Arrays, arch: str | None, label: str) -> applications.Application:
    """The network that a file of weights alone is for."""
    if arch is not None:
        if not arch.startswith("keras:"):
            raise UnknownModel(
                f"{label}: --arch is {shown(arch)!r}, expected a network of Keras such as keras:resnet50"
            )
        return applications.named(arch.removeprefix("keras:"))
    names = arrays.layer_names()
    found = applications.recognised(names, widths=arrays.widths)
    if found is None:
        which = f"its layers ({stacked(names)}) are those of none that burnish knows" if names else "no names of layers"
        raise UnknownModel(
            f"{label}: holds weights without a network, and {which}; say "
            "--arch keras:resnet50 or the like, or save the whole model with model.save('model.keras')"
        )
    return found


def _called(own: list[str], names: list[str]) -> dict[str, str]:
    """What a file of weights alone calls the layers, where it numbers them otherwise; {} where names agree.

    Keras 2 began with conv2d_1, and goes on counting for the second model of a session. As in Keras's own loader the order
    then decides; here the words must agree as well.
    """
    if set(own) <= set(names) or [_unnumbered(name) for name in own] != [
        _unnumbered(name) for name in names[: len(own)]
    ]:
        return {}
    return dict(zip(own, names, strict=False))


def _unnumbered(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def _found(
    blank: network.KerasNet, trunk: list[Node], arrays: Arrays, called: dict[str, str]
) -> dict[str, torch.Tensor]:
    """The file's arrays as the module holds them, by their names in its state dict. called: other names of layers there."""
    state, found = blank.state_dict(), {}
    by_name = {node.name: node for node in trunk}
    for name, part in blank.parts.items():
        node = by_name[name]
        own, outer = called.get(node.own_name, node.own_name), called.get(node.own_name, node.outer)
        for place, variable in enumerate(part.variables):
            target = f"{part.place}.{variable.target}"
            array = arrays.find(own, outer, node.modern, variable, place, len(part.variables))
            found[target] = variable.to_torch(torch.from_numpy(array.copy()), state[target])
    return found


def _fill(module: network.KerasNet, filled: dict[str, torch.Tensor], whole: Parsed) -> int:
    """Put the file's arrays, and the graph's constants, into the module; how many arrays there were."""
    state, constants = module.state_dict(), {}
    for path in state:
        owner = path.rpartition(".value")[0].rpartition(".")[2] if path.endswith(".value") else ""
        for name, tensor in whole.constants.items():
            if owner and network.plain_name(name) == owner:
                constants[path] = tensor
    module.load_state_dict({**state, **filled, **constants})
    return len(filled)


# ---- the network -----------------------------------------------------------------------------------------------------


def _at_size(
    name: str, blank: network.KerasNet, kwargs: dict[str, Any], size: int, label: str
) -> tuple[network.KerasNet, dict[str, Any]]:
    """The same network, and its description, for images of that size."""
    native = kwargs["size"]
    if size == native:
        return blank, kwargs
    if not graph.takes_size(blank, name, kwargs, size):
        raise RecipeError(f"{label}: this network takes images of {native} pixels only, not {size}")
    kwargs = {**kwargs, "size": size}
    return graph.blank(name, kwargs), kwargs


def _described(trunk: list[Node], whole: Parsed, size: int, *, bgr: bool) -> dict[str, Any]:
    """What `graph` makes the module from."""
    used = {name for node in trunk for name in node.inputs}
    constants = {name: list(one.shape) for name, one in whole.constants.items() if name in used}
    return {"nodes": [node.plain() for node in trunk], "constants": constants, "size": size, "bgr": bgr}


def _drawn(blank: network.KerasNet, seed: int = 0) -> network.KerasNet:
    """The module with random weights; no global generator moves."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return graph.drawn(blank)


def _pooled(name: str, kwargs: dict[str, Any]) -> tuple[network.KerasNet, dict[str, Any], str]:
    """(the network without weights, with the mean over what is left of space; its description; a clause that says so)."""
    blank = graph.blank(name, kwargs)
    rank = len(blank.gives)
    if rank == 2:
        return blank, kwargs, ""
    kind = "GlobalAveragePooling2D" if rank == 4 else "GlobalAveragePooling1D"
    last = kwargs["nodes"][-1]["name"]
    node = {"name": "burnish_pool", "kind": kind, "options": {}, "inputs": [last]}
    kwargs = {**kwargs, "nodes": [*kwargs["nodes"], node]}
    return graph.blank(name, kwargs), kwargs, "its maps are averaged to features"


def _plain_name(config: Any, found: Opened) -> str:
    inner = config.get("config") if isinstance(config, dict) else None
    told = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(told, str) or re.fullmatch(r"(functional|sequential|model)(_\d+)?", told):
        told = os.path.basename(found.where or found.label).partition(".")[0]
    return re.sub(r"[^\w\-]", "_", told)[:80] or "model"


def _assembled(
    name: str, module: network.KerasNet, kwargs: dict[str, Any], preprocess: Preprocess, *, source: str, sha256: str
) -> Backbone:
    example = torch.zeros(1, 3, preprocess.size, preprocess.size)
    steps, width = steps_of(module, example)
    one_size = not graph.takes_size(module, name, kwargs, kwargs["size"] + 32)
    if one_size:
        kwargs = {**kwargs, "img_size": kwargs["size"]}
    stages = graph.named_stages(stages_of(module, graph.groups_of(module, list(module.state_dict())), steps))
    description = {"library": graph.LIBRARY, "name": name, "kwargs": kwargs}
    return Backbone(name, module, width, stages, preprocess, "unknown", sha256, source, description, one_size)
