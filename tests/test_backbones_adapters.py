"""What the added layers compute, by hand: low-rank corrections, bottlenecks, prompts."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from burnish.backbones.changing import lowrank
from burnish.backbones.changing.adapters import Bottleneck, with_adapters, with_prompts
from burnish.backbones.changing.lowrank import LowRank, merged
from burnish.train.averaging import between


def drawn(module, seed=0):
    """The module with all its parameters drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return module.eval()


def given(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- low rank --------------------------------------------------------------------------------------------------------

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (3, 5, 6)),
    "linear without bias": (lambda: nn.Linear(6, 4, bias=False), (3, 6)),
    "convolution": (lambda: nn.Conv2d(6, 4, 3, padding=1, stride=2), (2, 6, 8, 8)),
    "grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2, bias=False), (2, 6, 8, 8)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6), (2, 6, 8, 8)),
    "circular": (lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"), (2, 6, 8, 8)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("rank", [1, 2, 50])
def test_a_low_rank_layer_is_its_layer_with_the_correction_in_the_weight(kind, rank):
    made, shape = LAYERS[kind]
    layer = drawn(made())
    found = LowRank(layer, rank, 16.0, torch.Generator().manual_seed(0)).eval()
    assert torch.equal(found(given(*shape)), layer(given(*shape))), "B is zero before the first step"
    drawn(found)
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        correction = 16.0 / rank * (found.low_up @ found.low_down)
        assert torch.linalg.matrix_rank(correction) <= rank
        twin.weight.copy_(found.frozen + correction.view_as(twin.weight))
        if layer.bias is not None:
            twin.bias.copy_(found.bias)
        torch.testing.assert_close(found(given(*shape)), twin(given(*shape)), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found(given(*shape)), layer(given(*shape)), atol=1e-2)


@pytest.mark.parametrize("kind", LAYERS)
def test_merging_gives_the_kind_of_layer_that_was_there(kind):
    made, shape = LAYERS[kind]
    layer = drawn(made())
    whole = nn.Sequential(drawn(LowRank(layer, 2, 4.0, torch.Generator())))
    plain = merged(whole)
    assert type(plain[0]) is type(layer)
    assert list(plain.state_dict()) == [f"0.{name}" for name in layer.state_dict()]
    assert isinstance(whole[0], LowRank)
    with torch.no_grad():
        torch.testing.assert_close(plain(given(*shape)), whole(given(*shape)), rtol=1e-4, atol=1e-4)
        drawn(whole, seed=5)
        assert not torch.allclose(plain(given(*shape)), whole(given(*shape))), "they share their weights"


def test_wise_weights_of_a_low_rank_correction_lie_on_the_line_between_the_models():
    rng = torch.Generator().manual_seed(0)
    layer = lowrank.LowRank(torch.nn.Linear(6, 5), 2, 4.0, rng)
    start = {f"trunk.l.{name}": value.detach().clone() for name, value in layer.named_parameters() if "low" in name}
    first = layer.weight.detach().clone()
    with torch.no_grad():
        layer.low_up.normal_(generator=rng)
        layer.low_down.add_(torch.randn(2, 6, generator=rng))
    end = {f"trunk.l.{name}": value.detach().clone() for name, value in layer.named_parameters() if "low" in name}
    last = layer.weight.detach().clone()
    from burnish.choose.tuning import Tuning

    half = Tuning._wise(type("Stub", (), {"start": start})(), end, 0.5)
    with torch.no_grad():
        layer.low_up.copy_(half["trunk.l.low_up"])
        layer.low_down.copy_(half["trunk.l.low_down"])
    assert torch.allclose(layer.weight, (first + last) / 2, atol=1e-6)
    assert not torch.allclose(between(start, end, 0.5)["trunk.l.low_down"], half["trunk.l.low_down"])


# ---- bottlenecks -----------------------------------------------------------------------------------------------------


class Doubling(nn.Module):
    """A block that is easy to follow."""

    def forward(self, x):
        return 2 * x + 1


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Doubling(), Doubling()

    def forward(self, x):
        return self.second(self.first(x)) - x


def by_hand(layer, x, channel):
    last = x.movedim(channel, -1)
    inner = F.gelu(last @ layer.down.weight.T + layer.down.bias)
    return (layer.scale * (inner @ layer.up.weight.T + layer.up.bias)).movedim(-1, channel)


@pytest.mark.parametrize(("shape", "channel"), [((2, 5, 4), 2), ((2, 4, 3, 3), 1), ((2, 3, 3, 4), 3)])
@pytest.mark.parametrize("form", ["post", "parallel"])
def test_a_bottleneck_acts_on_the_output_of_its_block_or_beside_it(form, shape, channel):
    change = {
        "kind": "adapters", "layers": ["first", "second"], "channels": [channel] * 2, "widths": [4, 4], "bottleneck": 3,
        "form": form,
    }  # fmt: skip
    module, x = with_adapters(Blocks(), change), given(*shape)
    with torch.no_grad():
        assert torch.equal(module(x), Blocks()(x)), "zero until it has learnt"
        one, two = drawn(module).get_submodule("adapters")
        assert isinstance(one, Bottleneck)
        middle = (2 * x + 1) + by_hand(one, x if form == "parallel" else 2 * x + 1, channel)
        out = 2 * middle + 1
        out = out + by_hand(two, middle if form == "parallel" else out, channel)
        torch.testing.assert_close(module(x), out - x)


def test_making_bottlenecks_moves_no_global_generator():
    before = torch.get_rng_state()
    change = {"kind": "adapters", "layers": ["first"], "channels": [2], "widths": [4], "bottleneck": 3, "form": "post"}
    with_adapters(Blocks(), change)
    assert torch.equal(before, torch.get_rng_state())


# ---- prompts ---------------------------------------------------------------------------------------------------------


class Mixing(nn.Module):
    """As attention: each token sees the mean of all."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.shape[1])
        return x + x.mean(1, keepdim=True)


def test_each_block_sees_its_own_prompts_and_none_of_the_ones_before():
    trunk = nn.Sequential(Mixing(), Mixing())
    change = {"kind": "prompts", "layers": ["0", "1"], "widths": [4, 4], "tokens": 3}
    module, x = drawn(with_prompts(trunk, change)), given(2, 5, 4)
    with torch.no_grad():
        found = module(x)
        for prompts in module.get_submodule("prompts"):
            longer = torch.cat([x, prompts.tokens.expand(2, -1, -1)], 1)
            x = x + longer.mean(1, keepdim=True)
    assert found.shape == (2, 5, 4)
    torch.testing.assert_close(found, x)
    assert [layer.seen for layer in trunk] == [[8], [8]]
