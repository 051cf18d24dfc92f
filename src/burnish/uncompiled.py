"""torch's classes without the marks that keep its compiler off, for which it would be loaded: two seconds of every run (LOG.md).

burnish compiles nothing. Who does, with what is marked so, has the compiler loaded already and goes on without a mark.
"""

from __future__ import annotations

from inspect import unwrap

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LBFGS(torch.optim.LBFGS):
    """As torch's."""

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)


class AdamW(torch.optim.AdamW):
    """As torch's, for weights that are no longer to be differentiated through a step."""

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


class DispatchMode(TorchDispatchMode):
    """As torch's."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
