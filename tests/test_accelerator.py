"""Promises of accelerators: every tensor is where it must be. On a device that is pretended; see `pretended`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pretended import pretended

import burnish
from burnish import api

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
    from burnish import job

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
