"""Each option of `fit` acts, is recorded, and survives a death."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_methods import a_head

from burnish import api
from burnish.backbones import zoo
from burnish.backbones.zoo import load_backbone
from burnish.choose.aim import augmentation_of
from burnish.choose.plan import settled
from burnish.data.views import augmented
from burnish.disk import cache_folder
from burnish.errors import RecipeError, RunError
from burnish.methods.norms import Norms
from burnish.methods.table import method_named
from burnish.recipe import Recipe
from burnish.run import planned as planned_stage
from burnish.run.outset import store_of
from burnish.runtime import Nobody
from burnish.terms import Preprocess
from conftest import write_shapes

TINY = {
    "model": "random:test_resnet",
    "budget": None,
    "epochs": 2,
    "image_size": 64,
    "method": "full",
    "batch_size": 12,
}
ACTS = {
    "augment": "trivial", "mixup": 0.4, "cutmix": 1.0, "sam": 0.05, "dropout": 0.5, "drop_path": 0.3, "balance": "sampling",
    "label_smoothing": 0.0, "weight_decay": 0.5, "stage_decay": 0.5, "freeze": 2, "flip": "off", "learning_rate": 1e-4,
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(shapes, tmp_path_factory):
    return api.fit(shapes, out=tmp_path_factory.mktemp("options") / "run", flip="on", balance="none", **TINY)


def losses(run):
    return [row["train_loss"] for row in run.facts["history"]]


@pytest.mark.parametrize("name", ACTS)
def test_an_option_changes_the_training_and_is_in_the_recipe(name, plain, shapes, tmp_path):
    settings = {"flip": "on", "balance": "none", **TINY, name: ACTS[name]}
    run = api.fit(shapes, out=tmp_path / "run", **settings)
    assert run.facts["recipe"][name] == ACTS[name]
    # The weight decay of one step is 1e-3 of the weights, so it shows in the second epoch's loss.
    assert losses(run) != losses(plain)


@pytest.mark.parametrize("aspect", [0.5, 1.0, 1.5])
def test_with_augment_none_every_epoch_sees_the_middle_of_each_image_unchanged(aspect):
    how = augmentation_of(Recipe(augment="none"), size=32, flip=False)
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    image = np.stack(
        [np.broadcast_to(ramp, (64, 64)), np.broadcast_to(ramp[:, None], (64, 64)), np.full((64, 64), 7)], 2
    )
    preprocess = Preprocess(size=32, crop=1.0, interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3)

    def view(epoch):
        return augmented(
            image[None].astype(np.uint8), np.array([aspect], np.float32), np.array([5]),
            seed=0, epoch=epoch, how=how, preprocess=preprocess,
        )[0]  # fmt: skip

    first = view(1)
    assert all(torch.equal(first, view(epoch)) for epoch in (2, 3))
    middle = first.mean((1, 2)) * 255  # a pixel of the ramp is 4 levels, and crops are cut at whole pixels
    assert torch.allclose(middle, torch.tensor([127.5, 127.5, 7.0]), atol=4.0)


@pytest.mark.parametrize(("asked", "mirrored"), [("auto", False), ("on", True)])
def test_without_augmentation_an_image_is_mirrored_only_where_that_was_asked_for(asked, mirrored):
    how = augmentation_of(Recipe(augment="none", flip=asked), size=32, flip=True)
    assert how.flip == mirrored
    assert augmentation_of(Recipe(flip=asked), size=32, flip=True).flip  # where there is some, as the probe found


def test_without_an_average_the_last_weights_are_looked_at(plain, shapes, tmp_path):
    run = api.fit(shapes, out=tmp_path / "run", **{**TINY, "average": "none"})
    assert "tuned (last)" in candidates(run) and "tuned (EMA)" not in candidates(run)
    assert {"tuned (EMA)", "tuned (last)"} <= set(candidates(plain))


def candidates(run):
    return next(one["numbers"]["candidates"] for one in run.facts["decisions"] if "candidates" in one["numbers"])


class Dies(Nobody):
    """An onlooker under whom the process dies as the given epoch is told."""

    def __init__(self, epoch):
        self.epoch = epoch

    def say(self, text):
        if text.startswith(f"epoch {self.epoch} "):
            raise KeyboardInterrupt


def test_a_soup_is_a_candidate_and_the_same_after_a_death(shapes, tmp_path, monkeypatch):
    from burnish.choose.ledger import Ledger

    monkeypatch.setattr(Ledger, "due", lambda self: True)
    settings = {**TINY, "soup": "on", "epochs": 4}
    whole = api.fit(shapes, out=tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        api.fit(shapes, out=tmp_path / "killed", watcher=Dies(4), **settings)
    taken_up = api.fit(shapes, out=tmp_path / "killed", **settings)
    assert taken_up.facts["sittings"] == 2
    soups = [name for name in candidates(whole) if name.startswith("soup of ")]
    assert len(soups) == 1
    assert candidates(taken_up) == candidates(whole)


def test_the_name_of_a_method_keeps_its_options(shapes, tmp_path):
    run = api.fit(shapes, out=tmp_path / "run", **{**TINY, "method": "lora:rank=2"})
    assert run.facts["kept"] == run.facts["recipe"]["method"] == run.predictor.bundle.method == "lora:rank=2"


def test_the_record_of_a_run_from_scratch_says_that_it_is_computed_in_float32(tmp_path, monkeypatch):
    """BatchNorm learns its statistics there, and does so in float32, whatever was asked for. The run ends with its plan."""
    recipes = []

    def until_here(*given, **how):
        recipes.append(settled(*given, **how))
        raise RecipeError("enough")

    monkeypatch.setattr(planned_stage, "settled", until_here)
    write_shapes(tmp_path / "shapes", images=8)
    with pytest.raises(RecipeError, match=r"enough"):
        api.fit(
            tmp_path / "shapes", out=tmp_path / "run", model="random:test_resnet", method="scratch", image_size=32, epochs=1,
            budget=None, taps="off", precision="bfloat16",
        )  # fmt: skip
    assert [recipe.precision for recipe in recipes] == ["float32"]


def test_a_gradual_run_whose_first_stage_would_begin_at_its_end_is_refused():
    backbone = zoo.load_backbone("random:test_resnet", image_size=32)
    with pytest.raises(RecipeError, match=r"over is 1\.0, expected"):
        method_named("gradual:over=1").prepare(backbone, a_head(backbone), Recipe())
    tunable = method_named("gradual:over=0.99").prepare(backbone, a_head(backbone), Recipe())
    assert max(group.starts for group in tunable.groups) == pytest.approx(0.99)


def test_methods_say_what_they_cannot_train_of_networks_without_norms():
    from burnish.methods.base import blank_tunable

    backbone = load_backbone("random:nf_resnet26", image_size=64)
    with pytest.raises(RecipeError, match="norms would train nothing"):
        blank_tunable(Norms(), backbone, Recipe(), classes=3)
    with pytest.raises(RecipeError, match="gain of its own"):
        blank_tunable(method_named("lora"), backbone, Recipe(), classes=3)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"method": "prompt"}, "has no blocks that take any number of tokens"),
        ({"method": "top:stage=nosuch"}, "has no stage 'nosuch'"),
        ({"method": "lora:where=nothing*"}, "matches 'nothing\\*'"),
        ({"freeze": 99}, "freeze is 99, but"),
        ({"model": "random:vgg11", "taps": "on", "method": "auto"}, "heads are to see all depths, but"),
        ({"model": "random:densenet121", "drop_path": 0.2}, "no residual branches"),
        ({"method": "multiprobe", "taps": "off"}, "looks at all depths of the network, and taps are off"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_decoded_and_leaves_nothing(
    settings, sentence, shapes, tmp_path, monkeypatch
):
    from burnish.choose import gathering

    monkeypatch.setattr(gathering, "Reading", None)
    with pytest.raises(RecipeError, match=sentence):
        api.fit(shapes, out=tmp_path / "run", **{**TINY, **settings})
    assert not (tmp_path / "run").exists()


def test_without_a_home_nothing_is_kept_and_nothing_fails(monkeypatch):
    monkeypatch.delenv("BURNISH_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert store_of("auto") is None
    with pytest.raises(RunError, match="BURNISH_CACHE"):
        cache_folder()
