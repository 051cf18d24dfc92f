"""Keras's attention layers as torch modules.

Each function takes the options of a layer and the shapes of its inputs, query and value (and key); Unfit where they do not
go together.
"""

from __future__ import annotations

from collections.abc import Sequence

from burnish.backbones.keras.modules import (
    AdditiveScores,
    DotScores,
    KerasAttention,
    OnPlaces,
    Shape,
    WeightedMean,
)
from burnish.backbones.keras.options import Made, Options, Unfit, Variable, channels, whole

_MOST_NUMBERS = 2**26  # of an image: what additive attention has of each query with each key, a quarter of a gigabyte


def multi_head(options: Options, shapes: list[Shape]) -> Made:
    """Over tokens, or all places of maps."""
    rank = _rank(shapes, 3, 4)
    axes = options["attention_axes"]
    if axes not in (None, list(range(1, rank - 1))) or options["output_shape"] not in (None, []):
        raise Unfit("attention is read over all tokens or places, without output_shape, only")
    heads, key = whole(options["num_heads"], "num_heads", 1, 4096), whole(options["key_dim"], "key_dim")
    value = key if options["value_dim"] is None else whole(options["value_dim"], "value_dim")
    return _made(options, shapes, (heads, heads), key, value)


def grouped(options: Options, shapes: list[Shape]) -> Made:
    """Several heads of the query to one of key and value (Ainslie et al. 2023, arXiv:2305.13245)."""
    _rank(shapes, 3)
    heads, fewer = (whole(options[name], name, 1, 4096) for name in ("num_query_heads", "num_key_value_heads"))
    if heads % fewer or options["sliding_window"] is not None:
        raise Unfit("grouped attention is read over all tokens, with heads that its groups divide, only")
    depth = whole(options["head_dim"], "head_dim")
    return _made(options, shapes, (heads, fewer), depth, depth)


def _made(options: Options, shapes: list[Shape], heads: tuple[int, int], key: int, value: int) -> Made:
    """heads: of the query; of key and value. key, value: channels of a head."""
    if options.get("use_gate"):
        raise Unfit("attention is read without gates only")
    bias, many, few = bool(options["use_bias"]), *heads
    widths = (channels(shapes[0]), channels(shapes[1]), channels(shapes[-1]))
    layer = KerasAttention(widths, heads, key, value, widths[0], bias)
    inner = "inner." if len(shapes[0]) == 4 else ""
    variables: list[Variable] = []
    for name, width, count, depth in (
        ("query", widths[0], many, key), ("key", widths[2], few, key), ("value", widths[1], few, value),
    ):  # fmt: skip
        place, shape, flat = f"{name}_dense/vars", (width, count, depth), (width, count * depth)
        variables.append(Variable(f"{name}/kernel", f"{place}/0", f"{inner}{name}.weight", shape, flat, (1, 0)))
        if bias:
            variables.append(Variable(f"{name}/bias", f"{place}/1", f"{inner}{name}.bias", (count, depth)))
    shape, flat, place = (many, value, widths[0]), (many * value, widths[0]), "output_dense/vars"
    variables.append(Variable("attention_output/kernel", f"{place}/0", f"{inner}proj.weight", shape, flat, (1, 0)))
    if bias:
        variables.append(Variable("attention_output/bias", f"{place}/1", f"{inner}proj.bias", (widths[0],)))
    return Made(OnPlaces(layer) if inner else layer, tuple(variables))


def plain(options: Options, shapes: list[Shape]) -> Made:
    """Of one head, without projections (Luong et al. 2015, arXiv:1508.04025)."""
    _rank(shapes, 3)
    if options["score_mode"] != "dot":
        raise Unfit("Attention is read with the score_mode dot only")
    scaled = bool(options["use_scale"])
    variables = (Variable("scale", "vars/0", "scores.scale", ()),) if scaled else ()
    return Made(WeightedMean(DotScores(scaled=scaled)), variables)


def additive(options: Options, shapes: list[Shape]) -> Made:
    """Scores are sums of tanh(query + key) (Bahdanau et al. 2014, arXiv:1409.0473)."""
    _rank(shapes, 3)
    width, scaled = shapes[0][-1], bool(options["use_scale"])
    numbers = shapes[0][1] * shapes[-1][1] * width
    if numbers > _MOST_NUMBERS:
        raise Unfit(f"keeps {numbers:,} numbers an image, expected at most {_MOST_NUMBERS:,}")
    variables = (Variable("scale", "vars/0", "scores.scale", (width,)),) if scaled else ()
    return Made(WeightedMean(AdditiveScores(width, scaled=scaled)), variables)


def _rank(shapes: Sequence[Shape], *allowed: int) -> int:
    """The rank that all of query, value and key have."""
    ranks = {len(shape) for shape in shapes}
    if len(shapes) not in (2, 3) or len(ranks) != 1 or not ranks <= set(allowed):
        raise Unfit(
            f"attention is read on query and value (and key), all of rank {' or '.join(map(str, allowed))}, only"
        )
    return ranks.pop()
