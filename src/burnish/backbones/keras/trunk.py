"""The part of a Keras network that makes the features, and the images that it is made for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from burnish.backbones.keras import network
from burnish.backbones.keras.configs import NO_CHANNELS, ONE_END, Node, Parsed
from burnish.backbones.keras.layers import WITHOUT_EFFECT
from burnish.errors import BadWeights, shown

_MOST_PIXELS = 4096
_OF_A_HEAD = (None, "linear", "softmax", "sigmoid")  # activations; a last layer with another one gives features
_BEFORE_RESIZING = (*WITHOUT_EFFECT, "Rescaling", "Normalization", "Dropout")  # each pixel by itself
_LIKE_OUTPUTS = ("Activation", "Softmax", "Dropout", "op:Divide")
_MEANS = ("Average", "Add")  # of what several heads say, or one does behind several dropouts


# ---- without its classifier ------------------------------------------------------------------------------------------


def without_head(whole: Parsed, label: str) -> tuple[list[Node], list[str]]:
    """(the nodes that make the features, in order; the names of the classifier's layers, none without one).

    BadWeights where there are several outputs, and no features that all of them are made of.
    """
    by_name = {node.name: node for node in whole.nodes}
    ends = [_end(output, by_name) for output in whole.outputs]
    if len({output for output, _ in ends}) != 1:
        raise BadWeights(f"{label}: has 1 inputs and {len(ends)} outputs, {ONE_END}")
    wanted, stack = set(), [ends[0][0]]
    while stack:
        name = stack.pop()
        if name in by_name and name not in wanted:
            wanted.add(name)
            stack += by_name[name].inputs
    heads = dict.fromkeys(by_name[head].own_name for _, some in ends for head in some)
    trunk = [node for node in whole.nodes if node.name in wanted]
    for node in trunk:
        if node.quantised:
            raise BadWeights(
                f"{label}: its layer {shown(node.own_name)} is quantised ({node.quantised}); save the model before that"
            )
    return trunk, list(heads)


def _end(output: str, by_name: dict[str, Node], *, joined: bool = False) -> tuple[str, list[str]]:
    """(the node whose output a classifier takes, the classifier's nodes); the output itself where there is none.

    joined: whether it is one of several whose mean is taken.
    """
    node = by_name.get(output)
    chances = node is not None and _gives_chances(node)
    while node is not None and node.kind in _LIKE_OUTPUTS and len(node.inputs) == 1:
        if node.options.get("activation") not in _OF_A_HEAD:
            break
        node = by_name.get(node.inputs[0])
        chances = chances or (node is not None and _gives_chances(node))
    if node is not None and node.kind in _MEANS and not joined:
        ends = [_end(one, by_name, joined=True) for one in node.inputs]
        if all(heads for _, heads in ends) and len({below for below, _ in ends}) == 1:
            return ends[0][0], [head for _, heads in ends for head in heads]
    if node is None or node.kind != "Dense" or node.options.get("activation") not in _OF_A_HEAD:
        node = _classifying(node, by_name, pooled=chances)
    if node is None:
        return output, []
    below = node.inputs[0]
    while below in by_name and by_name[below].kind == "Dropout":  # our own stands before the head
        below = by_name[below].inputs[0]
    return below, [node.name]


def _gives_chances(node: Node) -> bool:
    """Whether it makes probabilities of its inputs."""
    return node.kind == "Softmax" or node.options.get("activation") in ("softmax", "sigmoid")


def _classifying(node: Node | None, by_name: dict[str, Node], *, pooled: bool) -> Node | None:
    """The 1 × 1 convolution that is the classifier: on a single pixel (MobileNet V1 and V3) or, with probabilities after it,
    under a pooling (SqueezeNet, Network in Network); None without one.
    """
    while node is not None and node.kind in ("Reshape", "Flatten", *(("GlobalAveragePooling2D",) if pooled else ())):
        node = by_name.get(node.inputs[0])
        if node is not None and node.kind == "Conv2D" and node.options.get("kernel_size", 1) in (1, [1, 1]):
            return node
    return None


def shared(weighted: list[Node]) -> list[str]:
    """A note on layers that the network calls several times. weighted: the nodes that have weights."""
    calls = Counter((node.outer, node.modern, node.own_name) for node in weighted)
    names = [shown(own) for (_, _, own), times in calls.items() if times > 1]
    if not names:
        return []
    return [f"called several times, and tuned apart for each call: {', '.join(names[:4])}" + ", …" * (len(names) > 4)]


# ---- its images ------------------------------------------------------------------------------------------------------


def fitted(trunk: list[Node], whole: Parsed, size: int) -> tuple[list[Node], list[str]]:
    """The nodes behind what makes of square colour images those that the network takes, and notes on it.

    size: of the images; without effect where the network takes square ones in colour, or resizes them itself.
    """
    notes, (height, width, channels) = [], (whole.image or [None, None, None])
    if channels in (1, NO_CHANNELS):
        keeps = {"axis": -1, **({"keepdims": True} if channels == 1 else {})}
        trunk = _behind(Node("burnish_grey", "op:Mean", keeps, [network.INPUT]), trunk)
        notes.append("made for grey images: it is given the mean of the three colours")
    if height and width and height != width and _resized(trunk) is None:
        trunk = _behind(Node("burnish_oblong", "Resizing", {"height": height, "width": width}, [network.INPUT]), trunk)
        notes.append(f"made for images of {height} × {width} pixels: squares of {size} are squeezed to that")
    return trunk, notes


def _behind(first: Node, trunk: list[Node]) -> list[Node]:
    """The same nodes, given what the first gives in place of the images."""
    behind = [
        replace(node, inputs=[first.name if one == network.INPUT else one for one in node.inputs]) for node in trunk
    ]
    return [first, *behind]


def size_of(trunk: list[Node], whole: Parsed, label: str) -> int | None:
    """Pixels a side of the images that the network was made for, the longer one; None where any will do."""
    resized = _resized(trunk)
    if resized is not None:
        return resized
    height, width, channels = whole.image or [None, None, None]
    if not all(one is None or 1 <= one <= _MOST_PIXELS for one in (height, width)):
        raise BadWeights(f"{label}: takes images of {height} × {width} pixels, expected 1 to {_MOST_PIXELS}")
    if channels not in (None, NO_CHANNELS, 1, 3):
        raise BadWeights(f"{label}: takes images of {channels} channels, expected 3 (RGB) or 1 (grey)")
    return max(height or 0, width or 0) or None


def _resized(trunk: list[Node]) -> int | None:
    """Pixels a side to which the network resizes its images itself, as a first step: what is given at that size is the same.

    None where the images as they are go elsewhere too.
    """
    given, first = {network.INPUT}, []
    for node in trunk:  # in the order in which they run
        if given.isdisjoint(node.inputs):
            continue
        if node.kind in _BEFORE_RESIZING:
            given.add(node.name)
        else:
            first.append(node)
    sides = [one.options.get(side) for one in first for side in ("height", "width")]
    if len(first) != 1 or first[0].kind != "Resizing" or trunk[-1].name in given:
        return None
    found = [one for one in sides if type(one) is int and 1 <= one <= _MOST_PIXELS]
    return max(found) if len(found) == 2 else None
