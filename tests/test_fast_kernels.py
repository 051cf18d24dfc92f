"""Operations computed otherwise for a while; gradients that oneDNN computes past the end of its memory."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from burnish.backbones.fast.kernels import replaced, sound_strides
from burnish.train.objective import Objective, backward

CHECKED = "libc_malloc_debug.so.0"  # glibc's: with it memory that is spoilt ends the process soon


@pytest.fixture
def asked(monkeypatch):
    """Strides of the convolutions whose gradients torch's own kernel was asked for, within `sound_strides`."""
    from burnish.backbones.fast import kernels

    found, own = [], kernels._of_pixels_seen

    def watched(kernel):
        def told(*given):
            found.append((tuple(given[4]), tuple(given[2].shape)))
            return kernel(*given)

        return own(told)

    monkeypatch.setattr(kernels, "_of_pixels_seen", watched)
    return found


def gradients(images, weight, bias, stride, groups, **how):
    given = [one.detach().clone().requires_grad_() for one in (images, weight, bias)]
    out = F.conv2d(*given, stride, groups=groups, **how)
    return torch.autograd.grad(out, given, torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out))


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("side", [7, 8, 13])
def test_gradients_of_strided_pointwise_convolutions_are_those_of_float64(asked, side, last):
    generator = torch.Generator().manual_seed(side)
    for channels, stride, groups in itertools.product((3, 15, 16), ((2, 2), (3, 3), (2, 1), (1, 2)), (1, 3)):
        inputs = channels - channels % groups
        images = torch.randn(2, inputs, side, side, generator=generator)
        weight, bias = torch.randn(6, inputs // groups, 1, 1, generator=generator), torch.randn(6, generator=generator)
        exact = gradients(images.double(), weight.double(), bias.double(), stride, groups)
        asked.clear()
        with sound_strides():
            if last:
                images = images.contiguous(memory_format=torch.channels_last)
            found = gradients(images, weight, bias, stride, groups)
        assert len(asked) == 1 and (asked[0][0] == (1, 1)) is (inputs // groups < 16)
        for one, other in zip(found, exact, strict=True):
            assert torch.allclose(one.double(), other, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "how"),
    [((4, 3, 3, 3), {}), ((4, 3, 1, 1), {"padding": 1}), ((4, 16, 1, 1), {}), ((3, 1, 1, 1), {"groups": 3})],
)
def test_other_convolutions_keep_their_stride(asked, shape, how):
    groups = how.pop("groups", 1)
    images = torch.randn(2, shape[1] * groups, 8, 8)
    expected = gradients(images, torch.ones(shape), torch.ones(shape[0]), (2, 2), groups, **how)
    with sound_strides():
        found = gradients(images, torch.ones(shape), torch.ones(shape[0]), (2, 2), groups, **how)
    assert asked[0][0] == ((1, 1) if groups == 3 else (2, 2))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, expected, strict=True))


def test_only_what_learns_is_computed(asked):
    weight = torch.randn(4, 3, 1, 1)
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    with sound_strides():
        F.conv2d(images, weight, None, 2).sum().backward()
    assert asked == [((2, 2), (4, 3, 1, 1))]  # nothing is wrong with gradients of images alone
    with sound_strides():
        F.conv2d(images.detach(), weight.requires_grad_(), None, 2).sum().backward()
    assert asked[1:] == [((1, 1), (4, 3, 1, 1))] and weight.grad is not None


def test_an_operation_is_torchs_again_afterwards_and_after_an_error():
    calls = []

    def made(own):
        return lambda *given, **how: calls.append(1) or own(*given, **how)

    ones = torch.ones(3)
    for _ in range(2):
        with replaced("relu", made):
            assert torch.equal(torch.relu(ones), ones)
    with pytest.raises(ZeroDivisionError), replaced("relu", made):
        raise ZeroDivisionError
    torch.relu(ones)
    assert len(calls) == 2


def test_what_this_torch_does_not_have_is_not_replaced():
    with replaced("no_such_operation", lambda own: own):
        assert torch.relu(torch.ones(1)) == 1


def test_steps_of_training_take_them(asked):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1, 2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    optimiser = torch.optim.AdamW(module.parameters(), 1e-3)
    backward(module, optimiser, torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), Objective(), 0)
    assert asked == [((1, 1), (4, 3, 1, 1))]


NETWORK = """
import torch
from burnish.backbones.classifier import Classifier
from burnish.backbones.zoo import load_backbone
from burnish.train.objective import Objective, backward
from burnish.train.parts import parts_for_training

torch.set_num_threads(1)
backbone = load_backbone("random:mobileone_s0", image_size=96)
net = Classifier(backbone.module, backbone.width, 3).eval().to(memory_format=torch.channels_last)
images = torch.rand(2, 3, 96, 96).contiguous(memory_format=torch.channels_last)
if FOLDED:
    net = parts_for_training(net, backbone, 0, images, half=False).trained
optimiser = torch.optim.AdamW(net.parameters(), 1e-6)
for step in range(3):
    backward(net, optimiser, images, torch.tensor([0, 2]), Objective(), step)
print("whole")
"""


@pytest.mark.parametrize("folded", [False, True], ids=["as it is", "folded"])
def test_mobileone_trains_without_spoiling_memory(folded):
    environment = {**os.environ, "MALLOC_CHECK_": "3"}
    if any(
        (Path(place) / CHECKED).exists()
        for place in ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/usr/lib64")
    ):
        environment["LD_PRELOAD"] = CHECKED
    code = NETWORK.replace("FOLDED", str(folded))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout.split()) == (0, ["whole"]), done.stderr[-500:]
