"""Keras files whose configs ask for code, for sizes without measure, or for what is not there."""

from __future__ import annotations

import io
import json
import marshal
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hostile.kinds import SCALED_MEGABYTES, kind
from hostile.pickles import command_in, line_of


def layer(kind: str, name: str, *inputs: str, calls: int = 1, **options: Any) -> dict[str, Any]:
    more = {key: options.pop(key) for key in ("module", "registered_name") if key in options}
    nodes = [[[one, 0, 0, {}] for one in inputs]] * calls if inputs else []
    return {"class_name": kind, "name": name, "config": {"name": name, **options}, "inbound_nodes": nodes, **more}


def images_of_size(size: Any = 32, *, name: str = "images") -> dict[str, Any]:
    return layer("InputLayer", name, batch_shape=[None, size, size, 3])


def model_of(*layers: dict[str, Any], outputs: tuple[str, ...] = ()) -> dict[str, Any]:
    ends = outputs or (layers[-1]["name"],)
    config = {
        "name": "net",
        "layers": list(layers),
        "input_layers": [["images", 0, 0]],
        "output_layers": [[one, 0, 0] for one in ends],
    }
    return {"class_name": "Functional", "config": config}


def chained(*layers: dict[str, Any], size: Any = 32) -> dict[str, Any]:
    """Each layer takes what the one before it gives."""
    before = "images"
    for one in layers:
        one["inbound_nodes"] = [[[before, 0, 0, {}]]]
        before = one["name"]
    return model_of(images_of_size(size), *layers)


def conv(name: str = "conv", **options: Any) -> dict[str, Any]:
    return layer("Conv2D", name, **{"filters": 4, "kernel_size": [3, 3], **options})


def _arrays(fill: Callable[[Any], None] | None = None) -> bytes:
    import h5py

    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype(np.float32)
        file["layers/conv2d/vars/0"], file["layers/conv2d/vars/1"] = kernel, np.zeros(4, np.float32)
        if fill is not None:
            fill(file)
    return stream.getvalue()


def keras_file(folder: Path, config: Any, fill: Callable[[Any], None] | None = None) -> Path:
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    with zipfile.ZipFile(folder / "hostile.keras", "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.0.0"}')
        archive.writestr("config.json", text, zipfile.ZIP_DEFLATED if len(text) > 2**20 else zipfile.ZIP_STORED)
        archive.writestr("model.weights.h5", _arrays(fill))
    return folder / "hostile.keras"


def _lambda(folder: Path) -> dict[str, Any]:
    code = marshal.dumps(compile(f"open({str(folder / 'canary')!r}, 'w')", "canary", "eval"))
    import base64

    inner = {
        "class_name": "__lambda__",
        "config": {"code": base64.b64encode(code).decode(), "defaults": None, "closure": None},
    }
    return layer("Lambda", "payload", function=inner, module="keras.layers")


@kind("payload is a Lambda, which holds code")
def keras_with_a_lambda(folder):
    return keras_file(folder, chained(conv(), _lambda(folder)))


@kind("payload is a Lambda, which holds code")
def h5_with_a_lambda(folder):
    import h5py

    with h5py.File(folder / "hostile.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(chained(conv(), _lambda(folder)))
    return folder / "hostile.h5"


@kind("payload calls 'os.system'")
def keras_with_a_function_of_the_system(folder):
    return keras_file(folder, chained(conv(), layer("TFOpLambda", "payload", function="os.system")))


@kind("registered class payload>Layer")
def keras_with_a_registered_class(folder):
    return keras_file(folder, chained(conv(), layer("Layer", "own", registered_name="payload>Layer")))


@kind("class system of the module os")
def keras_with_a_class_of_os(folder):
    return keras_file(folder, chained(conv(), layer("system", "own", module="os", command=command_in(folder))))


@kind("class eval of the module builtins")
def keras_with_eval_as_the_model(folder):
    model = {"module": "builtins", "class_name": "eval", "config": line_of(folder)}
    return keras_file(folder, model)


@kind("class Payload, whose code is not in the file")
def keras_with_a_model_of_its_own_class(folder):
    return keras_file(folder, {**chained(conv()), "class_name": "Payload"})


@kind("class get_file, which is not read")
def keras_with_a_utility_of_keras_as_a_layer(folder):
    return keras_file(
        folder, chained(conv(), layer("get_file", "own", module="keras.utils", origin="http://127.0.0.1/x"))
    )


@kind("own is of the class TorchModuleWrapper, which is not read")
def keras_with_a_torch_module(folder):
    return keras_file(
        folder, chained(conv(), layer("TorchModuleWrapper", "own", module="keras.layers", torch_module="gAI="))
    )


@kind("conv: activation is .*payload")
def keras_with_a_function_as_an_activation(folder):
    own = {"class_name": "function", "module": "payload_module", "config": "payload", "registered_name": "payload"}
    return keras_file(folder, chained(conv(activation=own)))


@kind("conv has the option .*which is not plain")
def keras_with_an_object_as_an_option(folder):
    own = {"class_name": "system", "module": "os", "config": {"command": command_in(folder)}}
    return keras_file(folder, chained(conv(filters=own)))


@kind("is no JSON")
def keras_with_a_config_nested_a_hundred_thousand_deep(folder):
    return keras_file(folder, b'{"config":' * 100_000 + b"1" + b"}" * 100_000)


@kind("a bomb|config.json has")
def keras_with_a_config_of_seventy_megabytes(folder):
    return keras_file(folder, b'{"config": "' + b"a" * (70 * 2**20) + b'"}')


@kind("units is '1000000000'")
def keras_with_a_billion_units(folder):
    return keras_file(
        folder, chained(layer("Flatten", "flat"), layer("Dense", "dense", units=10**9), layer("ReLU", "last"))
    )


@kind("", megabytes=SCALED_MEGABYTES)
def keras_with_millions_of_weights_that_the_file_lacks(folder):
    wide = conv("wide", filters=3200, kernel_size=2)
    return keras_file(folder, chained(conv("first", filters=3200, kernel_size=1), wide))


@kind("wide|shape|invalid|reshape")
def keras_with_a_reshape_to_a_trillion(folder):
    return keras_file(folder, chained(conv(), layer("Reshape", "wide", target_shape=[2**20, 2**20, 1])))


@kind("gives a tensor of [0-9,]+ numbers")
def keras_with_padding_upon_padding(folder):
    pads = [layer("ZeroPadding2D", f"pad{number}", padding=[[512, 512], [512, 512]]) for number in range(40)]
    return keras_file(folder, chained(conv(), *pads))


@kind("gives a tensor of [0-9,]+ numbers")
def keras_that_enlarges_and_enlarges(folder):
    return keras_file(
        folder, chained(conv(), *[layer("UpSampling2D", f"up{number}", size=[64, 64]) for number in range(4)])
    )


@kind("", megabytes=SCALED_MEGABYTES)
def keras_that_enlarges_without_measure(folder):
    wide = layer("UpSampling2D", "up", size=[64, 64])
    return keras_file(folder, chained(conv(kernel_size=1), wide, layer("UpSampling2D", "more", size=[2, 2])),
                  lambda file: put_in_place(file, "layers/conv2d/vars/0", np.zeros((1, 1, 3, 4), np.float32)))  # fmt: skip


def put_in_place(file: Any, name: str, data: Any) -> None:
    del file[name]
    file[name] = data


@kind("expected 1 to 4096|pixels")
def keras_for_images_of_a_billion_pixels(folder):
    return keras_file(folder, chained(conv(), size=10**9))


@kind("expected 1 to 4096|pixels")
def keras_for_images_of_more_pixels_than_there_are_numbers(folder):
    return keras_file(folder, chained(conv(), size=10**30))


@kind("expected 1 to 4096|pixels")
def keras_for_images_of_negative_size(folder):
    return keras_file(folder, chained(conv(), size=-32))


@kind("take what none of them gives")
def keras_with_a_cycle_of_layers(folder):
    return keras_file(folder, model_of(images_of_size(), layer("Add", "a", "images", "b"), layer("ReLU", "b", "a")))


@kind("1 inputs and 2 outputs")
def keras_with_two_outputs(folder):
    return keras_file(
        folder, model_of(images_of_size(), layer("ReLU", "a", "images"), layer("ReLU", "b", "a"), outputs=("a", "b"))
    )


@kind("has too many layers")
def keras_with_models_that_each_call_the_next_a_hundred_times(folder):
    inner: dict[str, Any] = {"class_name": "Sequential", "config": {"name": "m", "layers": [layer("InputLayer", "i")]}}
    for number in range(4):
        inner |= {"name": f"m{number}", "inbound_nodes": [[["images", 0, 0, {}]]] * 100}
        inner = model_of(images_of_size(), inner, layer("Add", "sum", *[f"m{number}"] * 2))
    return keras_file(folder, inner)


@kind("two layers called a")
def keras_with_two_layers_of_one_name(folder):
    return keras_file(folder, model_of(images_of_size(), layer("ReLU", "a", "images"), layer("ReLU", "a", "images")))


@kind("has a layer called")
def keras_with_a_layer_called_like_a_terminal_command(folder):
    return keras_file(folder, chained(conv("\x1b]0;owned\x07\n")))


@kind("too deep")
def keras_with_models_in_models(folder):
    inner: dict[str, Any] = layer("ReLU", "last")
    for number in range(50):
        inner = {"class_name": "Sequential", "name": f"m{number}", "config": {"name": f"m{number}", "layers": [inner]}}
    return keras_file(folder, inner)


@kind("input|dense|layer")
def keras_whose_classifier_takes_nothing(folder):
    dense = layer("Dense", "dense", units=5)
    dense["inbound_nodes"] = [[]]
    return keras_file(folder, model_of(images_of_size(), conv() | {"inbound_nodes": [[["images", 0, 0, {}]]]}, dense))


@kind("no layers|nothing|layer")
def keras_of_a_classifier_alone(folder):
    return keras_file(
        folder,
        {
            "class_name": "Sequential",
            "config": {"name": "net", "layers": [images_of_size(), layer("Dense", "dense", units=5)]},
        },
    )


@kind("has no layers|config is not one")
def keras_of_no_layers(folder):
    return keras_file(folder, {"class_name": "Sequential", "config": {"name": "net", "layers": []}})


@kind("config is not one|config is no|has no layers")
def keras_whose_config_is_numbers(folder):
    return keras_file(folder, {"class_name": "Functional", "config": 7})


@kind("", seconds=4.0)
def keras_of_many_layers_from_the_last_to_the_first(folder):
    layers = [layer("ReLU", f"a{number}", f"a{number - 1}" if number else "images") for number in range(500)]
    last = layer("Conv2D", "missing", "a499", filters=1, kernel_size=9)
    return keras_file(folder, model_of(last, *layers[::-1], images_of_size(), outputs=("missing",)))


@kind("", megabytes=SCALED_MEGABYTES)
def keras_with_a_config_of_millions_of_objects(folder):
    padding = {"noise": random.Random(0).randbytes(80_000).hex()}
    text = b'{"config": [' + b"{}," * (2 * 2**20) + b'{}], "more": ' + json.dumps(padding).encode() + b"}"
    return keras_file(folder, text)


@kind("missing|has no kernel")
def keras_without_the_weights_of_a_layer(folder):
    return keras_file(folder, chained(conv(), conv("missing")))


@kind("NaN or infinite")
def keras_with_infinite_weights(folder):
    return keras_file(
        folder, chained(conv()), lambda file: put_in_place(file, "layers/conv2d/vars/1", np.full(4, np.inf, np.float32))
    )
