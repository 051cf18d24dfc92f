"""What befalls photographs: the table, its severities, its random numbers."""

import numpy as np
import pytest

from burnish.data.corruptions import CORRUPTIONS, SEVERITIES, corruption_named
from burnish.errors import NoSuchName, RecipeError


def photographs(side=64, count=3):
    """Coloured shapes on shaded ground: edges, even parts and all greys, as a photograph has them; uint8 [n s s 3]."""
    down, across = np.mgrid[0:side, 0:side] / side
    out = []
    for index in range(count):
        ground = np.stack([40 + 150 * across, 60 + 120 * down, 90 + 60 * across * down], 2)
        disk = np.hypot(down - 0.5, across - 0.4 - 0.1 * index) < 0.25
        ground[disk] = (220, 180 - 60 * index, 60)
        ground[(np.floor(across * 16) % 2 == 0) & (down > 0.75)] = (20, 30, 25)
        out.append(ground)
    return np.stack(out).astype(np.uint8)


def damage(one, clean, severity):
    """Root mean square of the change, over images and pixels."""
    changed = one(clean, range(len(clean)), severity=severity)
    return float(np.sqrt(((changed.astype(float) - clean) ** 2).mean()))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_keeps_shape_and_type_and_leaves_what_it_was_given(name):
    clean = photographs()
    before = clean.copy()
    for severity in SEVERITIES:
        changed = CORRUPTIONS[name](clean, range(3), severity=severity)
        assert changed.shape == clean.shape and changed.dtype == np.uint8
        assert (changed != clean).any()
    assert (clean == before).all()


@pytest.mark.parametrize("side", [64, 160])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_higher_severity_changes_more(name, side):
    clean = photographs(side, 6)
    found = [damage(CORRUPTIONS[name], clean, severity) for severity in (1, 3, 5)]
    assert found == sorted(found) and found[2] > 1.1 * found[0]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_depends_on_seed_and_image_and_not_on_the_batch(name):
    one, clean = CORRUPTIONS[name], photographs()
    together = one(clean, ["a", "b", "c"], severity=3)
    assert (one(clean[[1]], ["b"], severity=3)[0] == together[1]).all()
    assert (one(clean[::-1], ["c", "b", "a"], severity=3)[::-1] == together).all()


@pytest.mark.parametrize(
    "name", ["gaussian_noise", "glass_blur", "motion_blur", "snow", "fog", "elastic", "low_light", "occlusion"]
)
def test_another_seed_or_image_draws_other_numbers(name):
    one, clean = CORRUPTIONS[name], photographs(count=1)
    before = one(clean, [0], severity=3)
    assert (one(clean, [0], severity=3, seed=1) != before).any()
    assert (one(clean, [1], severity=3) != before).any()


@pytest.mark.parametrize(
    "name",
    ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "fog", "contrast", "rotation", "low_light"],
)
def test_a_severity_means_about_the_same_at_any_size(name):
    """The damage to the scene, seen at 64 px, of a photograph four times as wide: within a half of that at 64 px."""
    small, large = photographs(64, 8), photographs(256, 8)

    def seen(images):
        return images.reshape(len(images), 64, images.shape[1] // 64, 64, -1, 3).mean((2, 4))

    changed = CORRUPTIONS[name](large, range(8), severity=4)
    found = float(np.sqrt(((seen(changed) - seen(large)) ** 2).mean()))
    assert 0.5 < found / damage(CORRUPTIONS[name], small, 4) < 1.5


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_pixels_that_cannot_be_written_to_are_corrupted_too(name):
    clean = photographs(count=1)
    clean.flags.writeable = False
    assert CORRUPTIONS[name](clean, [0], severity=2).flags.writeable


def test_blurs_leave_an_even_image_as_it_is():
    even = np.full((1, 48, 48, 3), 117, np.uint8)
    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic", "pixelate", "rotation"):
        assert (CORRUPTIONS[name](even, [0], severity=5) == even).all(), name


@pytest.mark.parametrize("side", [16, 32, 37])
def test_a_small_image_is_blurred_at_every_severity(side):
    """At 32 px the mildest disk is narrower than a pixel: once it left every image as it was."""
    clean = photographs(side)
    found = [damage(CORRUPTIONS["defocus_blur"], clean, severity) for severity in SEVERITIES]
    assert found[0] > 0.5 and found == sorted(found)


def test_fog_has_rougher_clouds_at_higher_severities_as_the_papers_have():
    """On even grey the picture is the clouds; where their light is the same, at 3 and 4, they differ in that alone."""
    grey = np.full((8, 224, 224, 3), 128, np.uint8)
    found = []
    for severity in SEVERITIES:
        clouds = CORRUPTIONS["fog"](grey, range(8), severity=severity)[..., 0].astype(float)
        found.append(np.mean(np.abs(np.diff(clouds, axis=1)).mean((1, 2)) / clouds.std((1, 2))))
    assert found[0] < 0.02 and found[1] < found[2] < found[3] < found[4]


def test_snow_falls_and_glass_scatters():
    """Flakes are drawn out downwards, so that neighbours differ less there than sideways; glass leaves the mean as it is."""
    dark = np.full((4, 96, 96, 3), 20, np.uint8)
    for severity in SEVERITIES:
        snow = CORRUPTIONS["snow"](dark, range(4), severity=severity).astype(float)
        down, aside = (np.abs(np.diff(snow, axis=axis)).mean() for axis in (1, 2))
        assert 0 < down < aside and (snow >= 20).all() and (np.ptp(snow, axis=3) <= 1).all()
    clean = photographs(96)
    glass = CORRUPTIONS["glass_blur"](clean, range(3), severity=5)
    assert np.abs(glass.mean((1, 2)) - clean.mean((1, 2))).max() < 3


def test_brightness_keeps_the_hue_and_contrast_the_mean():
    clean = photographs(count=1)
    darker = (clean // 2).astype(np.uint8)
    brighter = CORRUPTIONS["brightness"](darker, [0], severity=1).astype(float)
    assert np.abs(brighter / brighter.max(3, keepdims=True) - darker / darker.max(3, keepdims=True)).max() < 0.02
    assert np.abs(CORRUPTIONS["contrast"](clean, [0], severity=5).mean((1, 2)) - clean.mean((1, 2))).max() < 0.5


@pytest.mark.parametrize("severity", [0, 6, 2.5])
def test_a_severity_out_of_range_is_refused_with_the_range(severity):
    with pytest.raises(
        RecipeError, match=rf"severity of a corruption is {severity}, expected 1 \(least\) to 5 \(worst\)"
    ):
        CORRUPTIONS["fog"](photographs(count=1), [0], severity=severity)


def test_an_unknown_corruption_is_told_with_the_nearest():
    with pytest.raises(NoSuchName, match=r"no corruption 'defocus' .nearest: defocus_blur"):
        corruption_named("defocus")


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_smallest_images_are_corrupted_too(name):
    tiny = photographs(16, 1)[:, :1, :1]
    for severity in SEVERITIES:
        assert CORRUPTIONS[name](tiny, [0], severity=severity).shape == (1, 1, 1, 3)
