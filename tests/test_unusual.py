"""Layouts, files and settings that are seldom met: read right, or refused in a sentence that says what to do."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import burnish
from burnish.backbones import lowrank
from burnish.backbones.zoo import load_backbone
from burnish.data.sources import open_source
from burnish.errors import BadWeights, DataError, NotEnoughData, RecipeError, UnreadableImage, cell
from burnish.measure.held_out import HeldOut
from burnish.methods.norms import Norms
from burnish.methods.table import method_named
from burnish.recipe import Recipe
from burnish.ship.predictor import listed, opened
from burnish.terms import Preprocess
from burnish.train.averaging import between
from tests.images import write_images

# ---- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [("fold1", "fold2", "fold3"), ("2019", "2020"), ("site_a1", "site_a2"), ("Site 1", "Site 2")]
)
def test_folders_of_folds_and_years_are_not_taken_for_classes(tmp_path, names):
    for name in names:
        write_images(tmp_path / name, {"cat": 3, "dog": 3})
    if names[0] == "site_a1":  # a name that may be a class's
        assert set(open_source(tmp_path).classes) == set(names)
        return
    with pytest.raises(DataError, match=r"each with the same folders.*cat/ and dog/.*path,label,group"):
        open_source(tmp_path)


def test_classes_that_are_divided_alike_stay_classes(tmp_path):
    for name in ("cat", "dog"):
        write_images(tmp_path / name, {"indoor": 3, "outdoor": 3})
    assert open_source(tmp_path).classes == ("cat", "dog")


def test_a_folder_around_the_class_folders_is_named(tmp_path):
    write_images(tmp_path / "dataset", {"cat": 3, "dog": 3})
    with pytest.raises(NotEnoughData, match=r"one class 'dataset'.*Is it .*dataset that you mean\?"):
        open_source(tmp_path)


def test_numbers_are_no_formulas():
    assert [cell(text) for text in ("-1", "+1", "-0.5", "+1/0.png", "=1+1", "-1+cmd")] == [
        "-1", "+1", "-0.5", "'+1/0.png", "'=1+1", "'-1+cmd",
    ]  # fmt: skip


# ---- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [{"crop": 0.004}, {"crop": 1e-300}, {"mean": (1e7, 0.0, 0.0)}, {"std": (1e-8, 1.0, 1.0)}, {"size": True},
     {"mean": (float("nan"),) * 3}],
)  # fmt: skip
def test_preprocessing_that_no_image_survives_is_refused(wrong):
    with pytest.raises(RecipeError, match="Preprocess: "):
        Preprocess(**wrong)


@pytest.mark.parametrize(
    "told",
    [{"crop_pct": 0.004}, {"mean": [1e7, 0, 0]}, {"mean": [123.675, 116.28, 103.53], "std": [58.4, 57.1, 57.4]},
     {"input_size": [3, True, True]}],
)  # fmt: skip
def test_a_config_beside_the_weights_cannot_ask_for_it_either(tmp_path, told):
    from burnish.backbones.architectures import built
    from burnish.backbones.timmed import architecture

    torch.save(built(architecture("test_resnet", None)).state_dict(), tmp_path / "m.pth")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_resnet", "pretrained_cfg": told}))
    with pytest.raises(BadWeights, match="image settings cannot be used"):
        load_backbone(str(tmp_path / "m.pth"))


def test_an_array_has_its_channels_last_and_a_tensor_first():
    image = np.zeros((3, 8, 8), np.uint8)
    assert (len(listed(image)), len(listed(torch.from_numpy(image)))) == (3, 1)
    assert len(listed(np.zeros((5, 3, 8, 8), np.uint8))) == 5


def test_images_in_memory_are_read_and_anything_else_is_unreadable():
    file = io.BytesIO()
    Image.new("RGB", (4, 6)).save(file, "PNG")
    for one in (file, bytearray(file.getvalue()), memoryview(file.getvalue())):
        assert opened(one).size == (4, 6) and len(listed(one)) == 1
    for wrong in (None, 3, 2.5):
        with pytest.raises(UnreadableImage, match="expected a path"):
            opened(wrong)


# ---- networks --------------------------------------------------------------------------------------------------------


def test_the_size_that_a_transformers_places_are_for_is_its_own(tmp_path):
    import timm

    torch.manual_seed(0)
    made = timm.create_model("test_vit", num_classes=5, img_size=192).eval()
    torch.save(made.state_dict(), tmp_path / "vit192.pth")
    backbone = load_backbone(str(tmp_path / "vit192.pth"))
    assert backbone.preprocess.size == 192
    views = torch.randn(1, 3, 192, 192)
    with torch.no_grad():
        own = made.forward_head(made.forward_features(views), pre_logits=True)
        assert torch.equal(backbone.module.eval()(views), own)
    assert load_backbone(str(tmp_path / "vit192.pth"), image_size=160).preprocess.size == 160


@pytest.mark.parametrize(
    ("name", "arch"), [("swin_t", "swin_tiny"), ("regnet_x_400mf", "regnetx_004"), ("regnet_y_400mf", "regnety_004")]
)
def test_torchvisions_swin_and_regnet_are_recognised_and_give_the_same_features(tmp_path, name, arch):
    import torchvision

    torch.manual_seed(0)
    made = getattr(torchvision.models, name)(weights=None).eval()
    for layer in made.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    torch.save(made.state_dict(), tmp_path / "m.pth")
    backbone = load_backbone(str(tmp_path / "m.pth"))
    assert backbone.name.startswith(arch)
    setattr(made, "head" if name == "swin_t" else "fc", torch.nn.Identity())
    views = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(backbone.module.eval()(views), made(views))


def test_a_series_of_stages_is_divided_where_timm_does_not_say_how():
    assert [stage.name for stage in load_backbone("random:poolformer_s12", image_size=64).stages] == [
        "stem", "stages.0", "stages.1", "stages.2", "stages.3",
    ]  # fmt: skip


def test_methods_say_what_they_cannot_train_of_networks_without_norms():
    from burnish.methods.base import blank_tunable

    backbone = load_backbone("random:nf_resnet26", image_size=64)
    with pytest.raises(RecipeError, match="norms would train nothing"):
        blank_tunable(Norms(), backbone, Recipe(), classes=3)
    with pytest.raises(RecipeError, match="gain of its own"):
        blank_tunable(method_named("lora"), backbone, Recipe(), classes=3)


# ---- what is said ----------------------------------------------------------------------------------------------------


def test_wise_weights_of_a_low_rank_correction_lie_on_the_line_between_the_models():
    rng = torch.Generator().manual_seed(0)
    layer = lowrank.LowRank(torch.nn.Linear(6, 5), 2, 4.0, rng)
    start = {f"trunk.l.{name}": value.detach().clone() for name, value in layer.named_parameters() if "low" in name}
    first = layer.weight.detach().clone()
    with torch.no_grad():
        layer.low_up.normal_(generator=rng)
        layer.low_down.add_(torch.randn(2, 6, generator=rng))
    end = {f"trunk.l.{name}": value.detach().clone() for name, value in layer.named_parameters() if "low" in name}
    last = layer.weight.detach().clone()
    from burnish.choose.tuning import Tuning

    half = Tuning._wise(type("Stub", (), {"start": start})(), end, 0.5)
    with torch.no_grad():
        layer.low_up.copy_(half["trunk.l.low_up"])
        layer.low_down.copy_(half["trunk.l.low_down"])
    assert torch.allclose(layer.weight, (first + last) / 2, atol=1e-6)
    assert not torch.allclose(between(start, end, 0.5)["trunk.l.low_down"], half["trunk.l.low_down"])


@pytest.mark.parametrize(("n", "wrong"), [(8, 0), (98, 0), (200, 3)])
def test_what_held_out_images_can_show_is_said_so_that_it_can_be_asked_for(n, wrong):
    right = np.arange(n) >= wrong  # the least sure are wrong
    confidence = np.linspace(0.5, 0.99, n)
    known = HeldOut(confidence, right, np.where(right, confidence, 1 - confidence))
    with pytest.raises(RecipeError) as said:
        known.rejecting(0.9999)
    most = float(str(said.value).partition("can show ")[2].partition("%")[0]) / 100
    known.rejecting(most)
    with pytest.raises(RecipeError):
        known.rejecting(min(0.9999, most + 0.0011))


@pytest.mark.parametrize(
    "setting", [{"model": "random:test_vit"}, {"method": "lora"}, {"seeds": 3}, {"search": True}, {"budget_seconds": 9}]
)
def test_settings_that_a_comparison_has_no_use_for_are_refused(tmp_path, setting):
    with pytest.raises(RecipeError, match=f"{next(iter(setting))} is no setting of this call"):
        burnish.compare(tmp_path, **setting)


def test_seconds_under_another_name_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="say budget"):
        burnish.fit(tmp_path, budget_seconds=60)
