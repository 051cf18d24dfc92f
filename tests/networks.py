"""Networks of other libraries as after training, and what they see."""

from __future__ import annotations

import torch


def settled(network):
    """In eval mode, its statistics as after training."""
    draws = torch.Generator().manual_seed(7)
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=draws) + 0.5)
        elif name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=draws) * 0.1)
    return network.eval()


def images(size=32):
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def seen(module, given):
    with torch.no_grad():
        return module(given)
