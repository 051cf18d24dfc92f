"""A network that learns from images changed so that it errs: adversarial training, by a single step from a drawn start."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from burnish.runtime import draws
from burnish.terms import Preprocess

_STEP = 1.25  # times epsilon (arXiv:2001.03994, figure 3): with 2 the network learns to mislead this one step


class Adversary(nn.Module):
    """The module at points within epsilon of the images [b 3 s s] that it is given, where its loss is higher; logits [b k].

    One step of the sign of the slope from a drawn point, cut to epsilon (Wong, Rice and Kolter 2020, "Fast is better than free",
    arXiv:2001.03994). The label is the module's own answer: taking the true one would tell it by way of the change (label
    leaking, Kurakin et al. 2017, arXiv:1611.01236). Where no gradient is asked for it is the module itself. epsilon: of 255, in
    each value.
    """

    def __init__(self, module: nn.Module, preprocess: Preprocess, *, epsilon: float, several: bool, seed: int) -> None:
        super().__init__()
        self.module, self.several, self.seed = module, several, seed
        reach = epsilon / 255.0 / torch.tensor(preprocess.std).reshape(1, 3, 1, 1)
        self.register_buffer("reach", reach, persistent=False)
        self.calls = 0  # the address of what is drawn

    def forward(self, images: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.module(images)
        reach = self.get_buffer("reach").to(images)
        self.calls += 1
        drawn = draws(self.seed, "adversary", self.calls).uniform(-1.0, 1.0, tuple(images.shape)).astype(np.float32)
        start = reach * torch.from_numpy(drawn).to(images)
        asked = (images + start).detach().requires_grad_()
        logits = self.module(asked).float()
        (slope,) = torch.autograd.grad(self._loss(logits), asked)
        away = torch.clamp(start + _STEP * reach * slope.sign(), -reach, reach)
        return self.module((images + away).detach())

    def _loss(self, logits: Tensor) -> Tensor:
        """Of the answers themselves, summed."""
        if self.several:
            said = (logits.detach() >= 0.0).float()
            return F.binary_cross_entropy_with_logits(logits, said, reduction="sum")
        return F.cross_entropy(logits, logits.detach().argmax(1), reduction="sum")
