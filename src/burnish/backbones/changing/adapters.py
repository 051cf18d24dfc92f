"""Small layers put between the blocks of a frozen trunk: bottleneck adapters, and prompts for transformers.

Both travel with the package as changes of the architecture: a nonlinear layer cannot be merged into its neighbours.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from burnish.backbones.fast.graphs import graphed

ADAPTERS, PROMPTS = "adapters", "prompts"
FORMS = ("post", "parallel")


class Bottleneck(nn.Module):
    """scale · up(gelu(down(x))) over the channels; zero until it has learnt, as `up` starts at zero."""

    def __init__(self, width: int, bottleneck: int, channel: int) -> None:
        super().__init__()
        self.channel = channel
        self.down, self.act, self.up = nn.Linear(width, bottleneck), nn.GELU(), nn.Linear(bottleneck, width)
        self.scale = nn.Parameter(torch.ones(width))
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, given: Tensor) -> Tensor:
        last = given.movedim(self.channel, -1)
        return (self.scale * self.up(self.act(self.down(last)))).movedim(-1, self.channel)


class Prompt(nn.Module):
    """Tokens [b n c] with learnt ones after them."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(tokens, width))

    def forward(self, given: Tensor) -> Tensor:
        return torch.cat([given, self.tokens.expand(given.shape[0], -1, -1)], 1)


def with_adapters(trunk: nn.Module, change: dict[str, Any]) -> fx.GraphModule:
    """The trunk with a bottleneck at each of the layers: on its output ("post") or beside it ("parallel").

    post: y + f(y) (Adapter+, Steitz & Roth 2024, arXiv:2406.06820); parallel: y + f(x) (AdaptFormer, Chen et al. 2022,
    arXiv:2205.13535).
    """
    module, steps = graphed(trunk, change["layers"])
    with torch.random.fork_rng(devices=[]):  # what is drawn here is drawn again by the method, or read from a package
        made = [
            Bottleneck(width, change["bottleneck"], channel)
            for width, channel in zip(change["widths"], change["channels"], strict=True)
        ]
    module.add_module(ADAPTERS, nn.ModuleList(made))
    for index, node in enumerate(steps.values()):
        with module.graph.inserting_after(node):
            source = node if change["form"] == "post" else node.args[0]
            added = module.graph.call_module(f"{ADAPTERS}.{index}", (source,))
        with module.graph.inserting_after(added):
            total = module.graph.call_function(operator.add, (node, added))
        node.replace_all_uses_with(total, delete_user_cb=lambda user, kept=(total, added): user not in kept)
    module.recompile()
    return module


def with_prompts(trunk: nn.Module, change: dict[str, Any]) -> fx.GraphModule:
    """The trunk with learnt tokens beside those of each block, taken away after it.

    VPT-deep (Jia et al. 2022, arXiv:2203.12119): each block sees its own prompts, those of the block before are dropped.
    Where they stand does not matter to attention.
    """
    count = change["tokens"]
    module, steps = graphed(trunk, change["layers"])
    module.add_module(PROMPTS, nn.ModuleList(Prompt(width, count) for width in change["widths"]))
    for index, node in enumerate(steps.values()):
        with module.graph.inserting_before(node):
            longer = module.graph.call_module(f"{PROMPTS}.{index}", (node.args[0],))
        node.args = (longer, *node.args[1:])
        with module.graph.inserting_after(node):
            shorter = module.graph.call_function(operator.getitem, (node, (slice(None), slice(None, -count))))
        node.replace_all_uses_with(shorter, delete_user_cb=lambda user, kept=shorter: user is not kept)
    module.recompile()
    return module
