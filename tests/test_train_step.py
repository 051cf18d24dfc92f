"""One step of training: what it leaves of statistics, what it does without numbers, and the loss that is told of it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from burnish.train.objective import PIXELS_AT_ONCE, Objective, _pieces, step


def with_statistics():
    """(a small network whose BatchNorm learns its statistics, plain gradient descent)."""
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=rng)
    return model.train(), torch.optim.SGD(model.parameters(), lr=0.1)


def rows(count=12):
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(1)), torch.arange(count) % 3


def test_after_a_step_of_sam_statistics_are_those_of_a_plain_step():
    (plain, first), (sharp, second) = with_statistics(), with_statistics()
    step(plain, first, *rows(), Objective(), 0)
    step(sharp, second, *rows(), Objective(sam=0.5), 0)
    assert sharp[1].num_batches_tracked == 1
    for own, other in zip(sharp.buffers(), plain.buffers(), strict=True):
        assert torch.equal(own, other)
    assert not torch.equal(sharp[0].weight, plain[0].weight)  # but the weights are not


@pytest.mark.parametrize("objective", [Objective(), Objective(sam=0.5)], ids=["plain", "sam"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_step_that_gives_no_numbers_leaves_all_as_it_was(value, objective):
    model, optimiser = with_statistics()
    step(model, optimiser, *rows(), objective, 0)
    before = {key: one.clone() for key, one in model.state_dict().items()}
    images, labels = rows()
    images[0] = value
    assert not np.isfinite(step(model, optimiser, images, labels, objective, 1))
    for key, one in model.state_dict().items():
        assert torch.equal(one, before[key]), key


def test_kept_tokens_take_as_many_pieces_as_images_of_as_many_numbers():
    module = nn.Linear(2, 2)
    for images in (8, 24, 64):
        views, tokens = torch.empty(images, 3, 224, 224), torch.empty(images, 196, 768)
        assert views.numel() == tokens.numel()
        assert _pieces(module, tokens) == _pieces(module, views) == -(-images * 224**2 // PIXELS_AT_ONCE)


@pytest.mark.parametrize("sam", [0.0, 0.05])
def test_the_loss_that_is_told_of_several_labels_is_the_mean_over_classes_as_that_of_validation_is(sam):
    """And a step is as it was: its gradient is that of the sum over classes."""
    model, _ = with_statistics()
    model.eval()
    images, labels = rows()[0], (torch.arange(36).reshape(12, 3) % 5 == 0)
    expected = F.binary_cross_entropy_with_logits(model(images), labels.float())
    weights = model[3].weight.clone()
    (gradient,) = torch.autograd.grad(3 * expected, [model[3].weight])
    told = step(model, torch.optim.SGD([model[3].weight], lr=1e-3), images, labels, Objective(sam=sam), 0)
    assert told == pytest.approx(expected.item(), rel=1e-6)
    if not sam:
        shortened = gradient / max(1.0, gradient.norm().item())
        torch.testing.assert_close(model[3].weight.detach(), weights - 1e-3 * shortened, rtol=0, atol=1e-6)
