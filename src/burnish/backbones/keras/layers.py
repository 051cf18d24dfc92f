"""Keras layers as torch modules of the same function: the table of what a Keras file may hold (P8).

Nothing of Keras runs. Between layers, tensors of rank 4 are kept [b c h w] whatever Keras says of channels_last; those of
rank 3 [b tokens c] and rank 2 [b c] lie as in Keras.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from burnish.backbones.keras import attention, convolutions, moves, norms
from burnish.backbones.keras.modules import Call, DropPath, PoolSame, PositionLookup, Shape, Softmax
from burnish.backbones.keras.options import (
    Kind,
    Made,
    Options,
    Unfit,
    Variable,
    activation,
    channels_last,
    pair,
    real,
    single,
    whole,
)

# ---- how each is made ------------------------------------------------------------------------------------------------


def _embedding(options: Options, shapes: list[Shape]) -> Made:
    count, width = whole(options["input_dim"], "input_dim"), whole(options["output_dim"], "output_dim")
    return Made(PositionLookup(count, width), (Variable("embeddings", "vars/0", "weight", (count, width)),))


def _prelu(options: Options, shapes: list[Shape]) -> Made:
    shape = single(shapes, 4)
    if options["shared_axes"] != [1, 2]:
        raise Unfit("PReLU is read with one slope a channel (shared_axes [1, 2]) only")
    return Made(nn.PReLU(shape[1]), (Variable("alpha", "vars/0", "weight", (1, 1, shape[1])),))


def _pool(largest: bool) -> Callable[[Options, list[Shape]], Made]:
    def make(options: Options, shapes: list[Shape]) -> Made:
        channels_last(options)
        single(shapes, 4)
        size = pair(options["pool_size"], "pool_size")
        stride = size if options["strides"] is None else pair(options["strides"], "strides")
        if options["padding"] == "same" and max(*size, *stride) > 1:
            return Made(PoolSame(size, stride, largest=largest))
        return Made(nn.MaxPool2d(size, stride) if largest else nn.AvgPool2d(size, stride))

    return make


def _global_pool(largest: bool, *ranks: int) -> Callable[[Options, list[Shape]], Made]:
    def make(options: Options, shapes: list[Shape]) -> Made:
        channels_last(options)
        rank, keeps = len(single(shapes, *ranks)), bool(options["keepdims"])
        axes = (2, 3) if rank == 4 else (1,)
        if largest:
            return Made(Call(lambda x: x.amax(axes, keepdim=keeps), "largest"))
        return Made(Call(lambda x: x.mean(axes, keepdim=keeps), "mean"))

    return make


def _padding(options: Options, shapes: list[Shape]) -> Made:
    channels_last(options)
    single(shapes, 4)
    (top, bottom), (left, right) = _sides(options["padding"], "padding")
    return Made(nn.ZeroPad2d((left, right, top, bottom)))


def _cropping(options: Options, shapes: list[Shape]) -> Made:
    channels_last(options)
    single(shapes, 4)
    (top, bottom), (left, right) = _sides(options["cropping"], "cropping")
    return Made(nn.ZeroPad2d((-left, -right, -top, -bottom)))


def _sides(value: Any, name: str) -> tuple[tuple[int, int], tuple[int, int]]:
    if type(value) is int:
        value = [value, value]
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise Unfit(f"{name} is {str(value)[:60]!r}, expected pairs of whole numbers")
    return pair(value[0], name, low=0), pair(value[1], name, low=0)


def _upsampling(options: Options, shapes: list[Shape]) -> Made:
    channels_last(options)
    single(shapes, 4)
    if options["interpolation"] not in ("nearest", "bilinear"):
        raise Unfit("upsampling is read with interpolation nearest or bilinear only")
    size = pair(options["size"], "size", high=64)
    return Made(nn.Upsample(scale_factor=size, mode=options["interpolation"]))


# Of layers: what does nothing but in training.
WITHOUT_EFFECT = (
    "GaussianNoise", "GaussianDropout", "AlphaDropout", "ActivityRegularization", "Identity", "AugMix", "CutMix", "MixUp",
    "RandAugment", "RandomBrightness", "RandomColorJitter", "RandomContrast", "RandomElasticTransform", "RandomErasing",
    "RandomFlip", "RandomGaussianBlur", "RandomGrayscale", "RandomHeight", "RandomHue", "RandomInvert", "RandomPerspective",
    "RandomPosterization", "RandomRotation", "RandomSaturation", "RandomSharpness", "RandomShear", "RandomTranslation",
    "RandomWidth", "RandomZoom",
)  # fmt: skip
DROPPING = ("Dropout", "SpatialDropout2D", "StochasticDepth")


def _nothing(options: Options, shapes: list[Shape]) -> Made:
    return Made(nn.Identity())


def _dropout(options: Options, shapes: list[Shape]) -> Made:
    return Made(nn.Dropout(min(max(real(options["rate"], "rate"), 0.0), 0.99)))


def _stochastic_depth(options: Options, shapes: list[Shape]) -> Made:
    return Made(DropPath(min(max(real(options["drop_path_rate"], "drop_path_rate"), 0.0), 0.99)))


def _softmax(options: Options, shapes: list[Shape]) -> Made:
    rank, axis = len(single(shapes, 2, 3, 4)), options["axis"]
    if type(axis) is not int or not -rank < axis < rank or axis == 0:
        raise Unfit(f"softmax over the axis {str(axis)[:40]}, expected one besides the batch")
    return Made(Softmax(moves.ours(axis, rank)))


def _relu(options: Options, shapes: list[Shape]) -> Made:
    top, slope, threshold = options["max_value"], options["negative_slope"] or 0.0, options["threshold"] or 0.0
    if threshold:
        raise Unfit("ReLU is read without a threshold only")
    if top is None:
        return Made(nn.LeakyReLU(real(slope, "negative_slope")) if slope else nn.ReLU())
    if slope:
        raise Unfit("ReLU is read with a top or a slope, not both")
    if real(top, "max_value") <= 0:
        raise Unfit("ReLU is read with a top above 0 only")
    return Made(nn.ReLU6() if top == 6 else nn.Hardtanh(0.0, real(top, "max_value")))


def _act(options: Options, shapes: list[Shape]) -> Made:
    return Made(activation(options["activation"]) or nn.Identity())


def _resizing(options: Options, shapes: list[Shape]) -> Made:
    channels_last(options)
    shape, size = tuple(single(shapes, 4)[2:]), _height_and_width(options)
    if shape == size:
        return Made(nn.Identity())
    cuts = options["crop_to_aspect_ratio"] or options["pad_to_aspect_ratio"]
    mode = {"bilinear": "bilinear", "nearest": "nearest-exact"}.get(str(options["interpolation"]))
    if mode is None or (cuts and shape[0] * size[1] != shape[1] * size[0]):
        raise Unfit(
            f"resizes maps of {shape[0]} × {shape[1]} to {size[0]} × {size[1]}; that is read as bilinear or nearest, and without "
            "cutting and padding, only"
        )
    smooth = mode == "bilinear" and bool(options["antialias"])
    return Made(Call(lambda x: nn.functional.interpolate(x, size, mode=mode, antialias=smooth), f"to {size}"))


def _height_and_width(options: Options) -> tuple[int, int]:
    return whole(options["height"], "height", 1, 4096), whole(options["width"], "width", 1, 4096)


def _middle(options: Options, shapes: list[Shape]) -> Made:
    """The middle of a map; of one that is smaller, Keras resizes a part."""
    channels_last(options)
    shape, size = tuple(single(shapes, 4)[2:]), _height_and_width(options)
    top, left = (more // 2 for more in (shape[0] - size[0], shape[1] - size[1]))
    if top < 0 or left < 0:
        raise Unfit(f"cuts {size[0]} × {size[1]} out of {shape[0]} × {shape[1]}; give larger images (--image-size)")
    return Made(nn.ZeroPad2d((-left, left + size[1] - shape[1], -top, top + size[0] - shape[0])))


def _random_crop(options: Options, shapes: list[Shape]) -> Made:
    shape, size = tuple(single(shapes, 4)[2:]), _height_and_width(options)
    if shape != size:  # in use, Keras 2 cuts out the middle and resizes it, Keras 3 does nothing
        raise Unfit(f"cuts {size[0]} × {size[1]} out of {shape[0]} × {shape[1]} at random; save the model without it")
    return Made(nn.Identity())


_CONV = {
    "kernel_size": 1, "strides": [1, 1], "padding": "valid", "data_format": None, "dilation_rate": [1, 1],
    "activation": None, "use_bias": True,
}  # fmt: skip
_NORM = {"axis": -1, "epsilon": 1e-3, "center": True, "scale": True}
_POOL = {"pool_size": [2, 2], "strides": None, "padding": "valid", "data_format": None}
_GLOBAL = {"data_format": None, "keepdims": False}

KINDS: dict[str, Kind] = {
    "Conv2D": Kind(convolutions.conv, {**_CONV, "filters": None, "groups": 1}),
    "DepthwiseConv2D": Kind(convolutions.depthwise, {**_CONV, "depth_multiplier": 1}),
    "SeparableConv2D": Kind(convolutions.separable, {**_CONV, "filters": None, "depth_multiplier": 1}),
    "Conv2DTranspose": Kind(convolutions.transposed, {**_CONV, "filters": None, "output_padding": None}),
    "Conv1D": Kind(convolutions.conv_1d, {**_CONV, "strides": 1, "dilation_rate": 1, "filters": None, "groups": 1}),
    "Dense": Kind(convolutions.dense, {"units": None, "activation": None, "use_bias": True}),
    "BatchNormalization": Kind(norms.batch_norm, {**_NORM, "momentum": 0.99}),
    "LayerNormalization": Kind(norms.layer_norm, {**_NORM, "rms_scaling": False}),
    "RMSNormalization": Kind(norms.rms_norm, {"axis": -1, "epsilon": 1e-6}),
    "GroupNormalization": Kind(norms.group_norm, {**_NORM, "groups": 32}),
    "Normalization": Kind(norms.normalization, {"axis": -1, "mean": None, "variance": None, "invert": False}),
    "Rescaling": Kind(norms.rescaling, {"scale": 1.0, "offset": 0.0}),
    "UnitNormalization": Kind(norms.unit_length, {"axis": -1}),
    "MultiHeadAttention": Kind(
        attention.multi_head,
        {"num_heads": None, "key_dim": None, "value_dim": None, "use_bias": True, "output_shape": None,
         "attention_axes": None, "use_gate": False},
    ),
    "GroupQueryAttention": Kind(
        attention.grouped,
        {"head_dim": None, "num_query_heads": None, "num_key_value_heads": None, "use_bias": True, "use_gate": False,
         "sliding_window": None},
    ),
    "Attention": Kind(attention.plain, {"use_scale": False, "score_mode": "dot"}),
    "AdditiveAttention": Kind(attention.additive, {"use_scale": True}),
    "Embedding": Kind(_embedding, {"input_dim": None, "output_dim": None}),
    "Activation": Kind(_act, {"activation": None}),
    "ReLU": Kind(_relu, {"max_value": None, "negative_slope": 0.0, "threshold": 0.0}),
    "LeakyReLU": Kind(lambda options, _: Made(nn.LeakyReLU(real(options["negative_slope"], "negative_slope"))),
                      {"negative_slope": 0.3}),
    "ELU": Kind(lambda options, _: Made(nn.ELU(real(options["alpha"], "alpha"))), {"alpha": 1.0}),
    "PReLU": Kind(_prelu, {"shared_axes": None}),
    "Softmax": Kind(_softmax, {"axis": -1}),
    "MaxPooling2D": Kind(_pool(True), _POOL),
    "AveragePooling2D": Kind(_pool(False), _POOL),
    "GlobalAveragePooling2D": Kind(_global_pool(False, 4), _GLOBAL),
    "GlobalMaxPooling2D": Kind(_global_pool(True, 4), _GLOBAL),
    "GlobalAveragePooling1D": Kind(_global_pool(False, 3), _GLOBAL),
    "GlobalMaxPooling1D": Kind(_global_pool(True, 3), _GLOBAL),
    "ZeroPadding2D": Kind(_padding, {"padding": [1, 1], "data_format": None}),
    "Cropping2D": Kind(_cropping, {"cropping": [[0, 0], [0, 0]], "data_format": None}),
    "UpSampling2D": Kind(_upsampling, {"size": [2, 2], "data_format": None, "interpolation": "nearest"}),
    "Flatten": Kind(moves.flatten, {"data_format": None}),
    "Reshape": Kind(moves.reshape, {"target_shape": None}),
    "Permute": Kind(moves.permute, {"dims": None}),
    "Add": Kind(moves.merge(torch.add, "sum")),
    "Subtract": Kind(moves.merge(torch.sub, "difference")),
    "Multiply": Kind(moves.merge(torch.mul, "product")),
    "Maximum": Kind(moves.merge(torch.maximum, "larger")),
    "Minimum": Kind(moves.merge(torch.minimum, "smaller")),
    "Average": Kind(moves.average),
    "Concatenate": Kind(moves.concatenate, {"axis": -1}),
    "Dropout": Kind(_dropout, {"rate": 0.0}),
    "SpatialDropout2D": Kind(_dropout, {"rate": 0.0, "data_format": None}),
    "Resizing": Kind(
        _resizing,
        {"height": None, "width": None, "data_format": None, "interpolation": "bilinear", "crop_to_aspect_ratio": False,
         "pad_to_aspect_ratio": False, "fill_mode": "constant", "fill_value": 0.0, "antialias": False},
    ),
    "CenterCrop": Kind(_middle, {"height": None, "width": None, "data_format": None}),
    "RandomCrop": Kind(_random_crop, {"height": None, "width": None, "data_format": None}),
    **dict.fromkeys(WITHOUT_EFFECT, Kind(_nothing)),
    "op:Divide": Kind(moves.merge(torch.div, "quotient")),
    "op:Mean": Kind(moves.op_reduced(Tensor.mean, "mean"), {"axis": None, "keepdims": False}),
    "op:Sum": Kind(moves.op_reduced(Tensor.sum, "sum"), {"axis": None, "keepdims": False}),
    "op:Max": Kind(moves.op_reduced(Tensor.amax, "largest"), {"axis": None, "keepdims": False}),
    "op:Normalize": Kind(moves.op_normalize, {"axis": -1, "order": 2, "epsilon": None}),
    "op:Pad": Kind(moves.op_pad, {"pad_width": None, "mode": "constant", "constant_values": None}),
    "op:ExpandDims": Kind(moves.op_expand_dims, {"axis": None}),
    "op:Squeeze": Kind(moves.op_squeeze, {"axis": None}),
    "op:Transpose": Kind(moves.op_transpose, {"axes": None}),
    "op:Reshape": Kind(moves.op_reshape, {"newshape": None}),
    "op:BGR": Kind(moves.op_bgr),
    "op:GetItem": Kind(moves.op_get_item, {"key": None}),
    "op:Stack": Kind(moves.op_stack, {"axis": 0}),
    # of the modules of keras.applications, not of keras.layers
    "LayerScale": Kind(norms.layer_scale, {"init_values": None, "projection_dim": None}),
    "StochasticDepth": Kind(_stochastic_depth, {"drop_path_rate": 0.0}),
    "CustomScaleLayer": Kind(moves.scaled_sum, {"scale": 1.0}),
}  # fmt: skip
