"""The model card of a folder for the hub: Markdown with YAML before it, in which no name is markup (P10)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from burnish.backbones import timmed
from burnish.data.pixels import DRAFT_MARGIN as _MARGIN
from burnish.data.pixels import enough
from burnish.errors import shown
from burnish.ship.bundle import Bundle

_MARKUP = re.compile(r"[]!#$&()*+.:<=>@\\[^_`{|}~-]")
# Words that the hub has for licences; others are "other", with their name.
_LICENCES = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "apple-ascl", "apple-amlr", "gemma",
}  # fmt: skip
_MOST_CLASSES = 200  # that a card names
_TAGS = ("image-classification", "timm", "transformers", "burnish")


@dataclass(frozen=True)
class Record:
    """What the record of a run says of its model."""

    sentences: tuple[str, ...] = ()  # how good it is, with numbers; Markdown
    source: str = ""  # where the pretrained weights came from, as `Backbone.source` has it


NOTHING = Record()


def card_of(bundle: Bundle, record: Record) -> str:
    """The text of README.md."""
    return (
        "\n\n".join(
            [
                _front(bundle, record),
                f"# {escaped(str(bundle.architecture['name']))} for {len(bundle.classes):,} classes",
                f"Made with burnish {escaped(bundle.burnish_version)} (method {escaped(bundle.method)}) from "
                f"{escaped(bundle.base_model)}, whose licence is {escaped(bundle.licence)}.",
                "## How good it is",
                *(record.sentences or ["No test of this model is on record beside it."]),
                "## Classes",
                _classes(bundle),
                "## Images",
                _images(bundle),
                "## Use",
                _use(bundle),
            ]
        )
        + "\n"
    )


def escaped(text: str) -> str:
    """A name as Markdown shows it, whatever is in it."""
    return _MARKUP.sub(r"\\\g<0>", shown(text.encode("utf-8", "backslashreplace").decode()))


def _front(bundle: Bundle, record: Record) -> str:
    """The YAML that the hub reads; each value is a JSON string, which YAML reads as such."""
    values: dict[str, Any] = {"library_name": "timm", "pipeline_tag": "image-classification"}
    licence = re.sub(r"[^a-z0-9.-]+", "-", bundle.licence.lower()).strip("-")
    if licence in _LICENCES:
        values["license"] = licence
    elif licence not in ("", "unknown"):
        values |= {"license": "other", "license_name": licence}
    if base := _base(bundle, record.source):
        values["base_model"] = base
    lines = [f"{key}: {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(["---", *lines, "tags:", *(f"- {one}" for one in _TAGS), "---"])


def _base(bundle: Bundle, source: str) -> str:
    """The repository on the hub of the pretrained weights; "" where they came from elsewhere, or nobody knows."""
    if source.startswith("hf-hub:"):
        return source.removeprefix("hf-hub:").partition("@")[0]
    published = timmed.published(bundle.base_model) if source == "hub" and timmed.is_known(bundle.base_model) else None
    return "" if published is None else published.repository


def _classes(bundle: Bundle) -> str:
    cuts = bundle.thresholds or (None,) * len(bundle.classes)
    rows = [
        f"- {escaped(name)}" + ("" if cut is None else f", said from a probability of {cut:.3f} on")
        for name, cut in list(zip(bundle.classes, cuts, strict=True))[:_MOST_CLASSES]
    ]
    left = len(bundle.classes) - len(rows)
    several = ["An image may have any number of them.", ""] if bundle.several else []
    return "\n".join([*several, *rows, *([f"- and {left:,} more, in config.json"] if left else [])])


def _images(bundle: Bundle) -> str:
    how = bundle.preprocess
    side = enough(how).side
    cut = f"the short side resized to {side} pixels, {how.size} × {how.size} cut from the middle"
    if how.fit == "squash":
        cut = f"the whole image resized to {side} × {side} pixels"
    return (
        f"RGB, {cut} ({how.interpolation}), less the mean and divided by the deviation in config.json. It was trained on images "
        "turned upright by their EXIF, transparent ones over white, and JPEGs with sides of "
        f"{2 * _MARGIN * side:,} pixels and more decoded in part, as below: who opens such files otherwise gets other answers."
    )


def _use(bundle: Bundle) -> str:
    answers, side = "sigmoid()" if bundle.several else "softmax(1)", _MARGIN * enough(bundle.preprocess).side
    return f"""With [timm](https://github.com/huggingface/pytorch-image-models); of a folder on this machine `local-dir:FOLDER`:

```python
import timm
import torch
from PIL import Image, ImageOps

model = timm.create_model("hf-hub:OWNER/NAME", pretrained=True).eval()
prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = Image.open("photo.jpg")
image.draft(None, ({side}, {side}))  # a large JPEG in part
image = ImageOps.exif_transpose(image).convert("RGB")
with torch.no_grad():
    probabilities = model(prepare(image).unsqueeze(0)).{answers}[0]
print(model.pretrained_cfg["label_names"][int(probabilities.argmax())], float(probabilities.max()))
```

With [transformers](https://github.com/huggingface/transformers); of a folder on this machine its path:

```python
from transformers import pipeline

print(pipeline("image-classification", model="OWNER/NAME")("photo.jpg"))
```

With burnish, to tune it further on images of your own:

```sh
burnish fit photos/ --model hf-hub:OWNER/NAME
```

The temperature is in the classifier's weights. When to decline, sets of classes and what is unlike the training images are not in
these files."""
