"""Promises of backbones.layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from burnish.backbones.layers import find, freeze, replace
from burnish.errors import NoSuchName

torch.set_num_threads(1)


@pytest.fixture
def net():
    block = nn.Sequential()
    block.add_module("attn", nn.Linear(2, 2))
    block.add_module("norm", nn.BatchNorm1d(2))
    return nn.Sequential(nn.Linear(3, 2), block)


def test_a_shell_pattern_finds_layers_in_order(net):
    assert [name for name, _ in find(net, "*")] == ["0", "1", "1.attn", "1.norm"]
    assert find(net, "*.attn") == [("1.attn", net[1].attn)]


def test_a_pattern_that_finds_nothing_names_the_nearest(net):
    with pytest.raises(NoSuchName, match=r"no layer matches '\*\.atn' \(nearest: 1\.attn"):
        find(net, "*.atn")


def test_replace_puts_the_new_layer_where_the_old_one_was(net):
    new = nn.Linear(2, 2, bias=False)
    replace(net, "1.attn", new)
    replace(net, "0", nn.Identity())
    assert net[1].attn is new and isinstance(net[0], nn.Identity)
    with pytest.raises(NoSuchName, match=r"no layer '1\.att' \(nearest: 1\.attn"):
        replace(net, "1.att", new)
    with pytest.raises(NoSuchName):
        replace(net, "", new)


def test_a_frozen_module_neither_learns_nor_moves_its_statistics(net):
    freeze(net)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net(torch.rand(4, 3))
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
