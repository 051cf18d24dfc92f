"""Small bottlenecks between frozen blocks learn, and the head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from burnish.backbones.changing.adapters import ADAPTERS, FORMS
from burnish.backbones.changing.blocks import blocks_above, blocks_of
from burnish.backbones.changing.changes import changed
from burnish.backbones.fast.graphs import channel_of, passed
from burnish.backbones.layers import freeze as freeze_layers
from burnish.backbones.spec import Backbone
from burnish.errors import ModelError, RecipeError, shown
from burnish.methods.base import (
    Head,
    Tunable,
    assembled,
    attends,
    by_decay,
    frozen_stages,
    head_groups,
    peak_of,
    torch_draws,
)
from burnish.recipe import Recipe

_TIMES = 5.0  # the rate of full tuning on transformers: 1e-3, that of arXiv:2406.06820
_TIMES_CNN = 2.0


@dataclass(frozen=True)
class Adapter:
    """Freeze the backbone; learn a bottleneck with a nonlinearity after (or beside) each block, and a head.

    form "post": y + s · up(gelu(down(y))) on the block's output with a learnt scale s a channel (Adapter+, Steitz & Roth
    2024, arXiv:2406.06820); "parallel": the same from the block's input (AdaptFormer, Chen et al. 2022, arXiv:2205.13535),
    where input and output have one shape. In convolutional networks the same acts on the channels of each place.
    The adapters stay in the saved model: what is not linear cannot be merged.
    """

    bottleneck: int = 16
    form: str = "post"
    name: str = "adapter"
    summary: str = "bottlenecks between the blocks, and the head"
    when: str = "transformers on few images"
    paper: str = "Steitz & Roth 2024, arXiv:2406.06820"
    trains: bool = True

    def prepare(self, backbone: Backbone, head: Head, recipe: Recipe) -> Tunable:
        """The adapters and the head; before the first step the function is bit-equal to the probe's."""
        if self.form not in FORMS or not 1 <= self.bottleneck <= 4096:
            raise RecipeError(
                f"adapter has form {shown(repr(self.form))} and bottleneck {self.bottleneck}, "
                f"expected {' or '.join(FORMS)} and 1 to 4096"
            )
        freeze, classifier = frozen_stages(recipe, backbone), assembled(backbone, head)
        change = self._change(backbone, freeze)
        freeze_layers(classifier.trunk)
        try:
            classifier.trunk = changed(classifier.trunk, [change])
        except ModelError as error:
            raise RecipeError(f"{backbone.name} does not take adapters ({error}); choose full, lora or norms") from None
        names = [f"trunk.{name}" for name, _ in classifier.trunk.named_parameters() if name.startswith(f"{ADAPTERS}.")]
        with torch.no_grad():
            for name, layer in classifier.trunk.get_submodule(ADAPTERS).named_modules():
                if isinstance(layer, nn.Linear) and name.endswith("down"):
                    rng = torch_draws(recipe.seed, "adapter", name)
                    layer.weight.normal_(0.0, 0.01, generator=rng)  # Houlsby et al. 2019, arXiv:1902.00751
                    layer.bias.zero_()
        groups = (*by_decay("adapters", names, classifier), *head_groups(classifier))
        peak = peak_of(recipe, backbone.module, _TIMES if attends(backbone.module) else _TIMES_CNN)
        return Tunable(classifier, replace(backbone, changes=(*backbone.changes, change)), groups, peak, freeze)

    def _change(self, backbone: Backbone, freeze: int) -> dict[str, Any]:
        plain, example = (backbone.plain or backbone).module, backbone.blank()
        blocks = blocks_above(backbone, freeze)
        ends = passed(plain, blocks, example)
        shapes = {name: given for name, (_, given) in ends.items() if given is not None and len(given) in (3, 4)}
        fits = {name for name in shapes if self.form != "parallel" or ends[name][0] == shapes[name]}
        blocks = [name for name in blocks if name in fits]
        if not blocks:
            found = blocks_of(plain)
            raise RecipeError(
                f"adapter of form {self.form} fits no block of {backbone.name} that may learn "
                f"({'its blocks: ' + ', '.join(found[:8]) if found else 'it has no repeated blocks'}); "
                "choose full, lora or norms"
            )
        channels = [channel_of(shapes[name]) for name in blocks]
        widths = [shapes[name][at] for name, at in zip(blocks, channels, strict=True)]
        bottleneck, form = self.bottleneck, self.form
        return {
            "kind": ADAPTERS, "layers": blocks, "channels": channels, "widths": widths, "bottleneck": bottleneck, "form": form,
        }  # fmt: skip
