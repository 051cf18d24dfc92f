"""Learnt tokens beside those of the image, in each block of a frozen transformer, and the head."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from burnish.backbones.changing.adapters import PROMPTS
from burnish.backbones.changing.blocks import blocks_above
from burnish.backbones.changing.changes import changed
from burnish.backbones.fast.graphs import passed
from burnish.backbones.layers import freeze as freeze_layers
from burnish.backbones.spec import Backbone
from burnish.errors import ModelError, RecipeError
from burnish.methods.base import (
    Group,
    Head,
    Tunable,
    assembled,
    attends,
    frozen_stages,
    head_groups,
    peak_of,
    torch_draws,
)
from burnish.recipe import Recipe

_TIMES = 25.0  # the rate of full tuning: 5e-3; VPT searches AdamW-like rates far above those of weights


@dataclass(frozen=True)
class Prompt:
    """VPT-deep: freeze the transformer; learn some tokens for each block, and a head.

    Jia et al. 2022, arXiv:2203.12119. tokens: for each block. They are drawn as there (uniform, Xavier by patch size and
    width), so the function before the first step is close to the probe's but not equal to it.
    """

    tokens: int = 10
    name: str = "prompt"
    summary: str = "learnt tokens in each block of a transformer, and the head"
    when: str = "vision transformers on few images"
    paper: str = "Jia et al. 2022, arXiv:2203.12119"
    trains: bool = True

    def prepare(self, backbone: Backbone, head: Head, recipe: Recipe) -> Tunable:
        """The prompts and the head. RecipeError where the network is no transformer with one length of tokens."""
        if not 1 <= self.tokens <= 4096:
            raise RecipeError(f"prompt has {self.tokens} tokens, expected 1 to 4096")
        freeze, classifier = frozen_stages(recipe, backbone), assembled(backbone, head)
        plain, example = (backbone.plain or backbone).module, backbone.blank()
        blocks = blocks_above(backbone, freeze)
        given = passed(plain, blocks, example)
        ends = [given.get(name, (None, None)) for name in blocks]
        tokens = all(taken == gives and taken is not None and len(taken) == 3 for taken, gives in ends)
        if not blocks or not attends(plain) or not tokens:  # CaiT's last blocks take patches and give the class token
            raise RecipeError(
                f"{backbone.name} has no blocks that take any number of tokens, as a vision transformer has "
                "(vit_small_patch16_224, deit_tiny_patch16_224); choose full, lora or norms for it"
            )
        widths = [shape[2] for name in blocks if (shape := given[name][1]) is not None]
        change = {"kind": PROMPTS, "layers": blocks, "widths": widths, "tokens": self.tokens}
        freeze_layers(classifier.trunk)
        try:
            classifier.trunk = changed(classifier.trunk, [change])
            classifier.trunk(example.cpu())  # as `assembled` is
        except (ModelError, RuntimeError) as error:
            raise RecipeError(
                f"{backbone.name} does not take prompts ({str(error)[:160]}); choose lora or norms"
            ) from None
        names = [name for name, _ in classifier.named_parameters() if name.startswith(f"trunk.{PROMPTS}.")]
        parameters = dict(classifier.named_parameters())
        patch = 3 * 16 * 16  # of the usual patches, as in the paper's own initialisation
        with torch.no_grad():
            for name in names:
                bound = math.sqrt(6.0 / (patch + parameters[name].shape[1]))
                parameters[name].uniform_(-bound, bound, generator=torch_draws(recipe.seed, "prompt", name))
        groups = (Group("prompts", tuple(names), 1.0, False), *head_groups(classifier, rate=0.2))
        changes = (*backbone.changes, change)
        return Tunable(classifier, replace(backbone, changes=changes), groups, peak_of(recipe, plain, _TIMES), freeze)
