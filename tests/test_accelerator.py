"""Promises of accelerators: every tensor is where it must be. On a device that is pretended; see `pretended`."""

from __future__ import annotations

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from pretended import pretended

import burnish
from burnish import api
from burnish.backbones.changing import taps
from burnish.backbones.zoo import load_backbone
from burnish.choose.rates import Rates
from burnish.data.views import Augmentation
from burnish.errors import ModelError, RecipeError
from burnish.ship.predictor import Predictor
from burnish.terms import Preprocess
from burnish.train import around
from burnish.train.activations import _through
from burnish.train.around import accelerated, enough_memory, pick_device, settled_torch
from burnish.train.features import _gathered, outputs
from burnish.train.inputs import Ahead, PixelViews, batch_of

pytestmark = pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
SMALL = {"model": "random:test_resnet", "image_size": 32, "cache": "off", "device": "cuda"}


def test_the_pretended_device_refuses_what_a_real_one_does(monkeypatch):
    with pretended(monkeypatch) as device:
        layer = torch.nn.Linear(3, 2).to(device)
        assert next(layer.parameters()).device.type == "cuda"
        here, there = torch.ones(4, 3), torch.ones(4, 3, device=device)
        assert layer(there).device.type == "cuda"
        with pytest.raises(RuntimeError, match="same device"):
            layer(here)
        with pytest.raises(TypeError, match="cuda"):
            there.numpy()
        layer(there).sum().backward()
        assert layer.weight.grad is not None and layer.weight.grad.device.type == "cuda"
        np.testing.assert_array_equal(there.cpu().numpy(), np.ones((4, 3)))


def test_a_run_from_start_to_report(shapes, tmp_path, monkeypatch):
    with pretended(monkeypatch):
        run = api.fit(shapes, budget=None, epochs=2, method="full", out=tmp_path / "run", **SMALL)
    assert run.facts["kept"] == "full"


def test_a_finished_run_answers_there_as_on_the_processor(shapes, tmp_path, monkeypatch):
    run = api.fit(shapes, budget=None, epochs=1, method="full", out=tmp_path / "run", **{**SMALL, "device": "cpu"})
    images = [str(file) for file in sorted(shapes.glob("*/*.png"))]
    with pretended(monkeypatch):
        predictor = Predictor.open(run.folder, "cuda")
        there = predictor.predict(images, top=3)
        assert next(predictor._fast.parameters()).device.type == "cuda"
        scores = api.evaluate(run.folder, shapes, device="cuda").scores
        opened = pickle.loads(pickle.dumps(predictor))
    assert opened.device.type == "cpu"
    for answers in (run.predictor.predict(images, top=3), opened.predict(images, top=3)):
        assert [one.classes for one in answers] == [one.classes for one in there]
        np.testing.assert_allclose(
            [one.probabilities for one in answers], [one.probabilities for one in there], atol=1e-6
        )
    assert scores.accuracy == api.evaluate(run.folder, shapes).scores.accuracy


def test_a_device_that_is_not_there_is_a_sentence(shapes, tmp_path):
    run = api.fit(shapes, budget=None, method="probe", out=tmp_path / "run", **{**SMALL, "device": "cpu"})
    with pytest.raises(RecipeError, match="device 'cuda:9' cannot be used"):
        api.predict(run.folder, [next(shapes.glob("*/*.png"))], device="cuda:9")


VIT = {"model": "random:vit_tiny_patch16_224", "image_size": 32}


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"method": "scratch"}, {"method": "probe:head=knn"}, {"method": "top", "freeze": 3},
        {"method": "lora", **VIT}, {"method": "prompt", **VIT}, {"method": "full", "baselines": "all"},
        {"method": "full", "sam": 0.05, "mixup": 0.2, "cutmix": 1.0, "soup": "on", "dropout": 0.2, "balance": "loss"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values()))[:60],
)  # fmt: skip
def test_every_method_and_option(shapes, tmp_path, monkeypatch, settings):
    with pretended(monkeypatch):
        run = api.fit(shapes, budget=None, epochs=2, out=tmp_path / "run", **{**SMALL, **settings})
        image = next(shapes.glob("red/*.png"))
        before = run.predict_proba([image])
    np.testing.assert_allclose(burnish.open_run(tmp_path / "run").predict_proba([image]), before, atol=1e-6)


@pytest.mark.slow
def test_a_run_that_died_goes_on(shapes, tmp_path, monkeypatch):
    from burnish.run import job

    class Died(Exception):
        pass

    def die(*_, **__):
        raise Died

    settings = {"budget": None, "epochs": 2, "method": "full", **SMALL}
    with pretended(monkeypatch):
        whole = api.fit(shapes, out=tmp_path / "whole", **settings)
        with monkeypatch.context() as death:
            death.setattr(job, "keep_tuned", die)
            with pytest.raises(Died):
                api.fit(shapes, out=tmp_path / "run", **settings)
        again = api.fit(shapes, out=tmp_path / "run", **settings)
    states = whole.predictor.bundle.state, again.predictor.bundle.state
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow
def test_a_race(shapes, tmp_path, monkeypatch):
    with pretended(monkeypatch):
        found = api.compare(
            shapes, models=["random:test_resnet", "random:test_vit"], methods=["probe", "full", "lora"], budget=None,
            epochs=1, out=tmp_path / "race", device="cuda", cache="off", image_size=32,
        )  # fmt: skip
    states = {row["name"]: row["state"] for row in found["rows"]}
    assert len(states) == 6 and not any(state.startswith("failed") for state in states.values()), states
    assert any(row["test"] for row in found["rows"])


@pytest.mark.slow
def test_an_audit_with_a_network(shapes, tmp_path, monkeypatch):
    with pretended(monkeypatch):
        found = api.audit(shapes, model="random:test_resnet", out=tmp_path / "audit", cache="off")
    assert found.facts["model"] == "test_resnet"


def test_the_model_can_be_chosen_there(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr("burnish.run.outset.portfolio", lambda: ["random:test_resnet", "random:test_efficientnet"])
    with pretended(monkeypatch):
        run = api.fit(shapes, budget=None, epochs=1, method="probe", out=tmp_path / "run", **{**SMALL, "model": "auto"})
    assert run.facts["model"]["name"] in ("test_resnet", "test_efficientnet")


def test_a_card_that_cannot_add_is_not_taken_and_an_apple_gpu_only_by_name(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("there is one that can")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto").type == "cpu" and not accelerated()
    with pytest.raises(RecipeError, match="'cuda' cannot be used"):
        pick_device("cuda")


def test_float32_is_float32_within_a_run_and_what_was_set_comes_back():
    places = [
        (torch.backends.cudnn, "allow_tf32"), (torch.backends.cuda.matmul, "allow_tf32"),
        (torch.backends.cudnn, "benchmark"), (torch.backends.cudnn, "deterministic"),
    ]  # fmt: skip

    def told():
        return [getattr(place, name) for place, name in places]

    def set_all(values):
        for (place, name), value in zip(places, values, strict=True):
            setattr(place, name, value)

    before, other = told(), [True, True, True, False]
    try:
        set_all(other)
        with settled_torch():
            assert told() == [False, False, False, True]
        assert told() == other
    finally:
        set_all(before)


def test_float32_is_float32_also_where_a_notebook_has_set_it_by_its_newer_name():
    script = """
import torch
from burnish.train.around import settled_torch
torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "tf32"
with settled_torch():
    print(torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision)
print(torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision)
with settled_torch(cuda=False):
    print(torch.backends.cuda.matmul.fp32_precision)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "tf32" not in told[:2] and told[2:] == ["tf32", "tf32", "tf32"]


def test_tf32_stays_off_until_the_last_thread_that_asked_has_left_and_then_is_as_it_was():
    """Two threads with a predictor each on a card, the first of which is done before the second."""
    products = torch.backends.cuda.matmul
    before, products.allow_tf32 = products.allow_tf32, True
    first, second = settled_torch(), settled_torch()
    try:
        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
            one.submit(first.__enter__).result()
            other.submit(second.__enter__).result()
            one.submit(first.__exit__, None, None, None).result()
            assert not products.allow_tf32, "the second still computes"
            other.submit(second.__exit__, None, None, None).result()
        assert products.allow_tf32
    finally:
        products.allow_tf32 = before


@pytest.mark.parametrize("sizes", [[], [3], [16, 16, 16, 16, 16], [100, 1], [16] * 4 + [7]])
def test_batches_are_put_together_where_small_ones_do_not_fill_a_device(sizes):
    images = np.arange(sum(sizes))[:, None]
    parts = np.split(images, np.cumsum(sizes)[:-1]) if sizes else []
    found = list(_gathered(iter(parts), 64))
    assert all(len(one) >= 64 for one in found[:-1]) and all(len(one) < 64 + 100 for one in found)
    np.testing.assert_array_equal(np.concatenate(found) if found else images, images)


@pytest.mark.parametrize("cuts_there", [False, True])
def test_bytes_travel_and_colours_are_changed_there(monkeypatch, cuts_there):
    """What the processor makes of a batch is a part of what the network takes, and the batch is the same but for rounding."""
    stored, ids = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), np.uint8), np.arange(6)
    views = PixelViews(
        stored, ids, np.ones(6, np.float32), ids % 2, ids, tuple("abcdef"), Augmentation(32), Preprocess(size=32), seed=3,
        cuts_there=cuts_there,
    )  # fmt: skip
    here = batch_of(replace(views, cuts_there=False), ids, epoch=2, size=32)
    with pretended(monkeypatch) as device, Ahead(views, device, 2) as ahead:
        made = ahead._made(ids, 2, 32)
        images = made[0]
        assert images.dtype == torch.uint8 and images.shape[1] == (40 if cuts_there else 32)
        assert sum(one.nbytes for one in made[1:]) < 0.05 * here.nbytes
        assert all(one.device.type == "cpu" for one in made)
        there = ahead.get([ids], 0, epoch=2, size=32)
        assert there.device.type == "cuda" and there.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_allclose(there.cpu().numpy(), here.numpy(), atol=0.02 if cuts_there else 1e-5)


def test_a_run_has_its_views_cut_there(shapes, tmp_path, monkeypatch):
    """But where an operation of TrivialAugment, which is the processor's, comes between the two."""
    seen = []
    real = PixelViews.whole
    monkeypatch.setattr(PixelViews, "whole", lambda self, parts: (seen.append(self.cuts_there), real(self, parts))[1])
    settings = {"budget": None, "epochs": 1, "method": "full", **SMALL}
    with pretended(monkeypatch):
        api.fit(shapes, out=tmp_path / "there", **settings)
        assert seen and all(seen)
        seen.clear()
        api.fit(shapes, out=tmp_path / "trivial", augment="trivial", **settings)
        assert seen and not any(seen)
    seen.clear()
    api.fit(shapes, out=tmp_path / "here", **{**settings, "device": "cpu"})
    assert seen and not any(seen)


def test_threads_beside_an_accelerator_work_alone_and_those_of_a_processor_as_it_does(monkeypatch):
    stored, ids = np.zeros((4, 40, 40, 3), np.uint8), np.arange(4)
    views = PixelViews(
        stored, ids, np.ones(4, np.float32), ids % 2, ids, tuple("abcd"), Augmentation(32), Preprocess(size=32), seed=0
    )
    here = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for device, expected in ((torch.device("cpu"), 2), (torch.device("cuda"), 1)):
            with Ahead(views, device, 1) as ahead:
                assert ahead._pool is not None
                assert ahead._pool.submit(torch.get_num_threads).result() == expected
            assert torch.get_num_threads() == 2
            torch.set_num_threads(2)  # also of threads that are started later
    finally:
        torch.set_num_threads(here)


def test_a_step_is_timed_while_threads_make_its_batches(shapes, tmp_path, monkeypatch):
    real, seen = Rates._fed, []

    def fed(self, step, given, batch, size):
        seen.append((size, real(self, step, given, batch, size)))
        return seen[-1][1]

    monkeypatch.setattr(Rates, "_fed", fed)
    with pretended(monkeypatch):
        api.fit(shapes, budget=15, method="full", out=tmp_path / "run", workers=2, **SMALL)
    assert seen and all(seconds > 0 for _, seconds in seen)


def test_a_device_without_memory_is_not_taken_for_a_network_without_blocks(monkeypatch):
    """Nor is one without memory for training from scratch the end of a run."""
    backbone = load_backbone("random:test_resnet")

    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(taps, "with_taps", full)
    with pytest.raises(torch.OutOfMemoryError):
        taps.tapped(backbone, torch.rand(4, 3, 64, 64))


def test_a_batch_that_a_device_has_no_memory_for_goes_through_in_parts():
    seen = []

    class Small(torch.nn.Module):
        def forward(self, images):
            if len(images) > 3:
                raise torch.OutOfMemoryError("out of memory")
            seen.append(len(images))
            return images.mean((2, 3))

    images = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 3), np.uint8)
    how = {"preprocess": Preprocess(size=8), "device": torch.device("cpu")}
    found = outputs(Small(), [images[:8], images[8:]], **how)
    assert sum(seen) == 11 and max(seen) <= 3
    np.testing.assert_allclose(found, outputs(torch.nn.AdaptiveAvgPool2d(1), [images], **how)[:, :, 0, 0], atol=1e-6)

    class Never(torch.nn.Module):
        def forward(self, images):
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        outputs(Never(), [images], **how)


def test_frozen_stages_take_in_parts_what_a_device_has_no_memory_for():
    def small(images):
        if len(images) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return images.mean((2, 3))

    images = torch.rand(11, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    given = _through(small, images, torch.device("cpu"), half=False)
    torch.testing.assert_close(given, images.mean((2, 3)))
    with pytest.raises(torch.OutOfMemoryError):
        _through(lambda images: small(torch.zeros(4)), images, torch.device("cpu"), half=False)


def test_a_card_without_memory_for_a_context_is_a_card(monkeypatch):
    for error, found in ((RuntimeError("CUDA error: out of memory"), True), (RuntimeError("no kernel image"), False)):

        def trying(device, error=error):
            raise error

        monkeypatch.setattr(around, "_try", trying)
        assert around._computes(torch.device("cuda")) == found


class Counted:
    """Inputs that remember what was made of them, and in which epoch."""

    labels = np.zeros(20, np.int64)

    def __init__(self):
        self.made = []

    def __len__(self):
        return 20

    def parts(self, rows, *, epoch, size):
        self.made.append((epoch, tuple(rows), size))
        return (torch.from_numpy(rows * 1000 + epoch),)

    def whole(self, parts):
        return parts[0]


def test_the_next_epochs_first_batches_are_made_while_the_last_ones_are_trained_on():
    inputs, first, second = Counted(), np.split(np.arange(20), 5), np.split(np.arange(20)[::-1].copy(), 5)
    with Ahead(inputs, torch.device("cpu"), 1) as ahead:
        for place in range(5):
            views = ahead.get(first, place, epoch=1, size=32, following=second[:2] if place == 4 else [])
            assert views.tolist() == (first[place] * 1000 + 1).tolist()
        for key in [key for key in ahead._waiting if key[0] == 2]:
            ahead._waiting[key].result()
        assert [made for made in inputs.made if made[0] == 2] == [(2, tuple(rows), 32) for rows in second[:2]]
        assert ahead.get(second, 0, epoch=2, size=32).tolist() == (second[0] * 1000 + 2).tolist()
    with Ahead(inputs, torch.device("cpu"), 1) as ahead:  # and nothing is taken that was made at another size
        ahead.get(first, 4, epoch=1, size=32, following=second[:2])
        assert ahead.get(second, 0, epoch=2, size=64).tolist() == (second[0] * 1000 + 2).tolist()
    assert (2, tuple(second[0]), 64) in inputs.made


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("x"), RuntimeError("CUDA error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x"),
])  # fmt: skip
def test_what_a_device_has_no_memory_for_is_said_in_a_sentence(error):
    with pytest.raises(ModelError, match="needs more memory than the device has"), enough_memory("resnet"):
        raise error
    with pytest.raises(RuntimeError, match="mat1"), enough_memory("resnet"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied; out of memory of what was meant")


@pytest.mark.parametrize("asks", [lambda: torch.empty(2**55), lambda: np.empty(2**55)], ids=["torch", "numpy"])
def test_what_this_machine_has_no_memory_for_is_said_in_a_sentence(asks):
    with pytest.raises(ModelError, match="needs more memory than this machine gives"), enough_memory("resnet"):
        asks()


def test_what_onednn_has_no_memory_for_is_said_in_a_sentence():
    with pytest.raises(ModelError, match="needs more memory than this machine gives"), enough_memory("resnet"):
        raise RuntimeError("could not create a primitive")
    with pytest.raises(RuntimeError, match="descriptor"), enough_memory("resnet"):
        raise RuntimeError("could not create a primitive descriptor for a convolution")
