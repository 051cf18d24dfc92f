import numpy as np
import pytest
import torch

from burnish.data.views import Augmentation, augmented, coloured, cropped, cut, normalised, windows
from burnish.errors import RecipeError
from burnish.terms import Preprocess

PLAIN = Preprocess(size=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def images(count=6, side=24):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


def views(rows, *, seed=0, epoch=1, how=None, preprocess=PLAIN, aspects=None):
    stored = images()
    aspects = np.ones(len(stored), np.float32) if aspects is None else aspects
    rows = np.asarray(rows)
    return augmented(
        stored[rows],
        aspects[rows],
        rows,
        seed=seed,
        epoch=epoch,
        how=how or Augmentation(size=16),
        preprocess=preprocess,
    )


def test_a_view_depends_on_seed_epoch_and_id_alone():
    together, alone = views([0, 1, 2, 3]), views([2])
    assert torch.equal(together[2], alone[0])
    assert torch.equal(views([3, 2])[1], alone[0])


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 2}])
def test_another_seed_or_epoch_gives_another_view(change):
    assert not torch.equal(views([0]), views([0], **change))


def test_no_global_generator_is_read_or_moved():
    torch.manual_seed(1)
    np.random.seed(1)
    before, first = (torch.get_rng_state(), np.random.get_state()[1].copy()), views([0, 1])
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    torch.manual_seed(2)
    assert torch.equal(first, views([0, 1]))


def test_without_flip_nothing_is_mirrored():
    stored = np.zeros((1, 32, 32, 3), np.uint8)
    stored[:, :, 16:] = 255  # dark left, bright right
    for epoch in range(40):
        how = Augmentation(size=16, jitter=0.0, flip=False)
        view = augmented(
            stored, np.ones(1, np.float32), np.zeros(1, int), seed=0, epoch=epoch, how=how, preprocess=PLAIN
        )[0, 0]
        assert view[:, 0].mean() <= view[:, -1].mean()


def test_with_flip_about_half_are_mirrored():
    stored = np.zeros((1, 32, 32, 3), np.uint8)
    stored[:, :, 16:] = 255
    how = Augmentation(size=16, min_area=0.9, jitter=0.0, flip=True)
    mirrored = 0
    for epoch in range(200):
        view = augmented(
            stored, np.ones(1, np.float32), np.zeros(1, int), seed=0, epoch=epoch, how=how, preprocess=PLAIN
        )[0, 0]
        mirrored += bool(view[:, 0].mean() > view[:, -1].mean())
    assert 70 < mirrored < 130


def test_the_whole_image_without_colour_change_is_the_resized_image():
    how = Augmentation(size=24, min_area=0.999999, ratio=1.0000001, jitter=0.0)
    view = views([1], how=how)
    expected = torch.from_numpy(images()[1]).permute(2, 0, 1).float() / 255
    assert (view[0] - expected).abs().max() < 2 / 255


def test_normalisation_is_that_of_the_preprocess():
    pixels = images(2, 16)
    preprocess = Preprocess(size=16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    found = normalised(pixels, preprocess)
    expected = (
        torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 255
        - torch.tensor([0.1, 0.2, 0.3]).double()[:, None, None]
    )
    expected /= torch.tensor([0.5, 0.6, 0.7]).double()[:, None, None]
    assert (found - expected).abs().max() < 1e-6
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("aspect", [0.01, 0.3, 1.0, 3.0, 100.0])
def test_crops_of_any_aspect_have_the_right_shape_and_range(aspect):
    found = views([0, 1, 2], aspects=np.full(6, aspect, np.float32))
    assert found.shape == (3, 3, 16, 16)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize(
    "wrong",
    [{"crop": 0.004}, {"crop": 1e-300}, {"mean": (1e7, 0.0, 0.0)}, {"std": (1e-8, 1.0, 1.0)}, {"size": True},
     {"mean": (float("nan"),) * 3}],
)  # fmt: skip
def test_preprocessing_that_no_image_survives_is_refused(wrong):
    with pytest.raises(RecipeError, match="Preprocess: "):
        Preprocess(**wrong)


@pytest.mark.parametrize("side, size", [(64, 16), (64, 48), (40, 56), (33, 20), (8, 8)])
@pytest.mark.parametrize("flip", [False, True])
def test_a_device_that_cuts_by_itself_cuts_the_same_views(side, size, flip):
    """But for the rounding of what the processor computes in whole numbers."""
    stored = np.random.default_rng(1).integers(0, 256, (24, side, side, 3), np.uint8)
    ids, how = np.arange(24), Augmentation(size=size, flip=flip)
    aspects = np.random.default_rng(2).uniform(0.3, 3.0, 24).astype(np.float32)
    asked = {"seed": 3, "epoch": 2, "how": how}
    here = cropped(stored, aspects, ids, **asked)
    there = cut(torch.from_numpy(stored), windows(aspects, ids, side=side, **asked))
    torch.testing.assert_close(there.pixels, here.pixels.float(), atol=1.6, rtol=0.0)
    assert (there.pixels - here.pixels).abs().mean() < 0.5
    assert torch.equal(there.matrices, here.matrices) and torch.equal(there.offsets, here.offsets)
    torch.testing.assert_close(coloured(there, PLAIN), coloured(here, PLAIN), atol=0.01, rtol=0.0)


def test_a_device_cuts_the_ends_of_thin_images_and_single_pixels():
    stored, ids = np.full((2, 3, 3, 3), 200, np.uint8), np.arange(2)
    asked = {"seed": 0, "epoch": 1, "how": Augmentation(size=5, min_area=0.01, jitter=0.0)}
    found = cut(torch.from_numpy(stored), windows(np.array([20.0, 0.05], np.float32), ids, side=3, **asked))
    torch.testing.assert_close(found.pixels, torch.full((2, 5, 5, 3), 200.0))
