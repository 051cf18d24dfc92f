"""What every method keeps besides what test_methods.py says: a budget, its bits after a death, and all of it on a DenseNet."""

import itertools
import time
from types import SimpleNamespace

import numpy as np
import pytest
import test_methods as contract
import torch
from test_methods import (  # what they say of their fixture `run` is said here of a small DenseNet
    test_each_method_moves_the_parameters_that_its_name_says,
    test_frozen_batchnorm_statistics_do_not_move_and_those_of_scratch_do,
    test_frozen_parameters_ask_for_no_gradient,
    test_it_saves_and_loads_to_the_same_logits,
    test_merging_gives_plain_layers_of_the_same_function,
    test_the_function_before_the_first_step_is_that_of_the_probe,
    test_what_may_move_moves_and_all_else_is_bit_identical,
)
from timm.models import _registry as registry
from timm.models.densenet import DenseNet

from burnish import api
from burnish.methods import linear
from burnish.methods.table import METHODS, method_named
from burnish.train import loop
from burnish.train.checkpoint import read_checkpoint, restore_training, training_state, write_checkpoint
from burnish.train.loop import Epoch, Step
from conftest import write_shapes

__all__ = [
    "test_each_method_moves_the_parameters_that_its_name_says",
    "test_frozen_batchnorm_statistics_do_not_move_and_those_of_scratch_do",
    "test_frozen_parameters_ask_for_no_gradient",
    "test_it_saves_and_loads_to_the_same_logits",
    "test_merging_gives_plain_layers_of_the_same_function",
    "test_the_function_before_the_first_step_is_that_of_the_probe",
    "test_what_may_move_moves_and_all_else_is_bit_identical",
]
DENSE = "small_densenet"


def small_densenet(*, num_classes, **_):
    """Two dense blocks of two layers each, 9,200 weights; timm has none below seven million."""
    return DenseNet(growth_rate=8, block_config=(2, 2), bn_size=2, num_classes=num_classes)


@pytest.fixture(scope="module", autouse=True)
def known():
    """timm knows it by that name."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(registry._model_entrypoints, DENSE, small_densenet)
        patched.setitem(registry._model_pretrained_cfgs, DENSE, registry._model_pretrained_cfgs["densenet121"])
        yield


@pytest.fixture(scope="module", params=[name for name in METHODS if contract.fits(name, DENSE)])
def run(request, known):
    return contract.run_of(DENSE, request.param)


# ---- a death ---------------------------------------------------------------------------------------------------------

# What tells within five steps.
SHOWN = {"gradual": "gradual:over=0.9", "lora": "lora:rank=2", "l2sp": "l2sp:pull=20"}
# On test_resnet the other methods are taken up after each step in test_methods.py, and so is prompt on test_vit3.
FAMILIES = {"test_resnet": ("norms", "bitfit"), DENSE: METHODS, "test_efficientnet": METHODS, "test_convnext": METHODS,
            "test_vit3": METHODS}  # fmt: skip
DEATHS = [
    pytest.param(network, SHOWN.get(name, name), marks=[pytest.mark.slow] if network == "test_vit3" else [])
    for network, names in FAMILIES.items()
    for name in names
    if METHODS[name].trains and contract.fits(name, network)
]


@pytest.mark.parametrize(("network", "name"), DEATHS)
def test_a_method_taken_up_on_any_family_comes_to_the_same_bits(network, name, tmp_path):
    """P7: of three steps an epoch the run dies as the first epoch was told, or after the fourth step."""
    backbone, method = contract.network_named(network), method_named(name)
    whole, events = contract.begun(method, backbone, steps=5)
    stood = [settled(whole)]
    told, saved = [], []
    for event in events:
        told += [event.train_loss] if isinstance(event, Epoch) else []
        if (whole.steps, type(event)) in ((3, Epoch), (4, Step)):
            (folder := tmp_path / str(whole.steps)).mkdir()
            write_checkpoint(folder, *training_state(whole))
            saved.append((folder, whole.steps, len(told)))
            stood.append(settled(whole))
    expected, moving = settled(whole), whole.tunable.moving()
    assert [steps for _, steps, _ in saved] == [3, 4]
    for one, other in itertools.pairwise([*stood, expected]):  # else nothing would be tested
        assert sum(not torch.equal(one[key], other[key]) for key in moving) > 0.4 * len(moving)
    for folder, steps, count in saved:
        torch.manual_seed(steps)  # another process's generator stands elsewhere
        second, events = contract.begun(method, backbone, steps=5)
        restore_training(second, *read_checkpoint(folder))
        assert second.steps == steps
        assert [event.train_loss for event in events if isinstance(event, Epoch)] == told[count:]
        found = settled(second)
        assert list(found) == list(expected)
        assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
        assert all(torch.equal(a, b) for a, b in zip(whole.average.values, second.average.values, strict=True))


def settled(training):
    """All that answers depend on: what moves, what does not, and what BatchNorm has seen."""
    state = training.tunable.classifier.state_dict()
    return {key: value.clone() for key, value in state.items() if not key.endswith("num_batches_tracked")}


# ---- a budget --------------------------------------------------------------------------------------------------------

BUDGET = 240.0  # seconds


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands but for what is said here, so that all is decided as on any machine: a look at it takes a
    millisecond, an iteration of the fit of a head one second, a training step five while the run is planned and ten
    thereafter, as on a machine that somebody else has begun to use.
    """
    clock = SimpleNamespace(now=1000.0, steps=0, fits=0)

    def monotonic():
        clock.now += 0.001
        return clock.now

    step, loss_of = loop.step, linear.loss_of

    def slow_step(module, optimiser, *rest):
        planned = optimiser.param_groups[0]["lr"] == 0.0
        clock.now += 5.0 if planned else 10.0
        clock.steps += not planned
        return step(module, optimiser, *rest)

    def slow_fit(*given):
        clock.now += 1.0
        clock.fits += 1
        return loss_of(*given)

    monkeypatch.setattr(time, "monotonic", monotonic)
    monkeypatch.setattr(loop, "step", slow_step)
    monkeypatch.setattr(linear, "loss_of", slow_fit)
    return clock


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    root = tmp_path_factory.mktemp("few") / "shapes"
    write_shapes(root, images=10)
    return root


@pytest.mark.parametrize("name", METHODS)
def test_a_budget_is_used_and_kept_to_and_gives_a_model(name, few, tmp_path, clock):
    """P6: the heads alone would take more than twice of it, and the steps that are planned a tenth more than all of it."""
    network, began = "test_vit3" if name == "prompt" else DENSE, clock.now
    run = api.fit(few, out=tmp_path / "run", model=f"random:{network}", method=name, image_size=32, budget=BUDGET)
    taken = clock.now - began
    assert run.facts["seconds"] <= taken <= BUDGET
    assert taken >= (0.8 if METHODS[name].trains else 0.5) * BUDGET
    assert clock.fits > 0 and bool(clock.steps) == METHODS[name].trains
    assert run.facts["kept"] == name
    assert np.isfinite(run.predict_proba([few / "red" / "000.png"])).all()
