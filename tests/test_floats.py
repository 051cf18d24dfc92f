"""Images of floats: from 0 to 1 they are the bytes that ToTensor made them of; in other units they are refused, all together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import to_tensor

import burnish
from burnish.data.pixels import decode
from burnish.data.sources import open_source
from burnish.errors import DataError, UnreadableImage
from burnish.ship.predictor import opened
from images import read

LABELS = [0, 1] * 6
BYTES = np.random.default_rng(0).integers(0, 256, (12, 10, 14, 3), np.uint8)
UNIT = torch.stack([to_tensor(one) for one in BYTES])  # float32 [12 3 10 14]


class Set:
    targets = LABELS

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, at):
        return self.images[at], LABELS[at]


@pytest.mark.parametrize(
    "images",
    [UNIT, UNIT.numpy(), UNIT.double(), UNIT.permute(0, 2, 3, 1), list(UNIT), Set(UNIT)],
    ids=["tensor", "array", "float64", "channels last", "list", "data set"],
)
def test_what_to_tensor_gives_is_learnt_from_as_the_images_it_was_made_of(images):
    catalog = open_source(images if isinstance(images, Set) else (images, LABELS))
    for at, path in enumerate(catalog.paths):
        assert np.array_equal(np.asarray(decode(catalog.image(at))), BYTES[int(path)])
    assert len(read(catalog).ids) == 12


def test_all_256_values_come_back_from_every_kind_of_float():
    greys = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for kind in (np.float16, np.float32, np.float64):
        assert np.array_equal(np.asarray(opened((greys / 255).astype(kind)))[:, :, 0], greys)
    assert np.array_equal(np.asarray(opened(to_tensor(greys)))[:, :, 0], greys)


WHOLE = [lambda images: (images, LABELS), lambda images: (list(images), LABELS), Set]


@pytest.mark.parametrize("given", WHOLE, ids=["tensor", "list", "data set"])
@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (
            (UNIT - 0.5) / 0.25,
            r"Image \d+ is float32 from [-0-9.]+ to [0-9.]+, expected floats from 0 to 1.*before Normalize",
        ),
        (UNIT * 255, r"Image \d+ is float32 from [0-9.]+ to [0-9.]+, expected floats from 0 to 1.*image / 255"),
    ],
    ids=["normalised", "0 to 255"],
)
def test_floats_in_other_units_end_a_run_even_where_some_images_lie_from_0_to_1(given, images, sentence, tmp_path):
    images = torch.cat([UNIT[:2], images[2:]])
    with pytest.raises(DataError, match=sentence):
        burnish.audit(given(images), model=None)


@pytest.mark.parametrize("given", WHOLE[:2], ids=["tensor", "list"])
def test_a_set_of_the_floats_0_and_1_alone_is_not_guessed_at(given):
    with pytest.raises(DataError, match=r"the floats 0 and 1 alone.*two darkest greys.*uint8"):
        open_source(given((UNIT > 0.5).float()))


def test_an_image_that_holds_nan_is_named_and_the_others_of_a_data_set_are_used():
    images = UNIT.clone()
    images[3, 0, 0, 0] = float("nan")
    found = read(open_source(Set(images)))
    assert len(found.ids) == 11 and "NaN" in found.named[0].reason
    with pytest.raises(DataError, match=r"Image 3 holds what is no number \(NaN"):
        open_source((images, LABELS))


def test_floats_are_asked_about_as_they_are_learnt_from(shapes, tmp_path):
    quick = {"model": "random:test_resnet", "method": "probe", "budget": None, "image_size": 32, "cache": "off"}
    run = burnish.fit((UNIT, LABELS), out=tmp_path / "run", **quick)
    for images in (UNIT, UNIT.numpy(), list(UNIT), Set(UNIT)):
        assert np.array_equal(run.predict_proba(images), run.predict_proba(BYTES))
    assert run.predict(UNIT[0])[0].probabilities == run.predict(BYTES[0])[0].probabilities
    assert run.predict((UNIT[0] > 0.5).float())[0].problem is None  # a drawing among others
    with pytest.raises(DataError, match="before Normalize"):
        run.predict(UNIT - 0.5)
    assert "before Normalize" in str(run.predict(UNIT[0] - 0.5)[0].problem)
    with pytest.raises(UnreadableImage, match="image / 255"):
        run.predict_proba([UNIT[0] * 255])
