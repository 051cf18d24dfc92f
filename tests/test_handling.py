"""What happens to files on their way: each as it says, by addressed numbers, from the file's own pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from burnish.data.handling import HANDLINGS, STATES, handled_views, whole
from burnish.data.pixels import view
from burnish.terms import Preprocess


def picture(width=300, height=200):
    """A red left half, a blue right one, a white line near the top, and noise over all."""
    pixels = np.zeros((height, width, 3))
    pixels[:, : width // 2, 0], pixels[:, width // 2 :, 2], pixels[height // 10] = 200, 200, 255
    noise = np.random.default_rng(0).normal(0, 12, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def after(name, figure, one=None, key="a", seed=0):
    made = HANDLINGS[name](one or picture(), key, figure, side=64, seed=seed)
    return Image.open(io.BytesIO(made)) if isinstance(made, bytes) else made


@pytest.mark.parametrize(("name", "figure"), STATES)
def test_a_handling_changes_what_the_network_sees_and_leaves_the_picture(name, figure):
    one, how = picture(), Preprocess(size=64)
    before = np.asarray(one).copy()
    views = handled_views(one, "a", how)
    assert views.shape == (len(STATES), 64, 64, 3) and (np.asarray(one) == before).all()
    assert (views[STATES.index((name, figure))] != view(one, how)).any()


@pytest.mark.parametrize("name", ["cropped", "framed", "letterboxed"])
def test_what_is_drawn_depends_on_seed_and_image_alone(name):
    figure = HANDLINGS[name].figures[-1]
    assert (np.asarray(after(name, figure)) == np.asarray(after(name, figure))).all()
    others = [after(name, figure, key=key, seed=seed) for key in "bcd" for seed in (0, 1)]
    assert any(one.tobytes() != after(name, figure).tobytes() for one in others)


def test_a_file_is_handled_at_its_own_size():
    assert after("saved_again", 20).size == (300, 200) and after("passed_on", 1).size == (270, 180)
    assert after("passed_on", 3).size == (219, 146)
    assert after("turned", 90).size == (200, 300) and after("turned", 180).size == (300, 200)
    assert after("cropped", 0.5).size == (150, 100) and after("framed", 0.5).size == (600, 400)
    assert after("letterboxed", 1.78).size == (300, 534)
    assert after("letterboxed", 1.78, picture(100, 400)).size == (225, 400)
    assert after("shrunk", 0.5).size == (48, 32) and after("shrunk", 0.5, picture(40, 20)).size == (40, 20)


def test_each_does_what_it_says():
    pixels = np.asarray(picture()).astype(int)
    assert (np.asarray(after("turned", 180)) == pixels[::-1, ::-1]).all()
    assert (np.asarray(after("turned", 90)) == np.rot90(pixels)).all()
    assert (np.asarray(after("mirrored", 1)) == pixels[:, ::-1]).all()
    for levels in (256, 16, 2):
        grey = np.asarray(after("greyscale", levels))
        assert (grey[..., :1] == grey).all() and 1 < len(np.unique(grey)) <= levels
    inside = np.asarray(after("letterboxed", 2.17))[(651 - 200) // 2 :][:200]
    assert (inside == pixels).all()


def test_more_of_it_loses_more():
    def away(name, figure):
        how = Preprocess(size=64)
        row = STATES.index((name, figure))
        return np.abs(handled_views(picture(), "a", how)[row].astype(int) - view(picture(), how)).mean()

    for name in ("saved_again", "passed_on", "shrunk", "framed"):
        found = [away(name, figure) for figure in HANDLINGS[name].figures]
        assert found == sorted(found), name


def test_a_large_file_is_made_smaller_first_and_turned_as_its_exif_says():
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    picture(2400, 1200).save(file, "JPEG", exif=exif)
    assert whole(file.getvalue(), "a", white=65535).size == (800, 1600)


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1)])
def test_the_smallest_and_longest_pictures_are_handled_too(size):
    assert handled_views(Image.new("RGB", size, "red"), "a", Preprocess(size=32)).shape[0] == len(STATES)
