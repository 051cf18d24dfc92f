"""What is planned for a machine of given rates: sizes, passes, the freeze point and how many views are kept."""

import itertools
import math
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from torch import nn

from burnish import api
from burnish.choose import start
from burnish.choose.plan import VIEWS_AT_MOST, Plan, eased, plan, unhurried_epochs
from burnish.choose.survey import _Trunks, affordable_size
from burnish.errors import RecipeError
from burnish.methods.heads import HeadKind
from burnish.recipe import Recipe

IMAGES, BATCH, STAGES = 1412, 32, 9
SIZES = [128, 160, 192, 224]
# Two slow cores, EfficientNet-Lite0 at 128 px: seconds of a step and images a second below, by freeze point.
STEP = {0: 0.95, 5: 0.5, 7: 0.28}
LOWER = {5: 400.0, 7: 200.0}
RESERVE = 20.0


@dataclass
class Machine:
    """Rates as a machine would have them that keeps its speed."""

    sizes: list[int] | None
    saving_seconds: float = 0.3

    def whole(self, size):
        return 180.0 * (128 / size) ** 2

    def lower(self, size, freeze):
        return LOWER[freeze] * (128 / size) ** 2

    def keeping(self, size, freeze):
        return 1.0 / self.lower(size, freeze)

    def upper(self, size, freeze):
        return self.whole(size) if not freeze else 1.0 / (1.0 / self.whole(size) - 1.0 / self.lower(size, freeze))

    def steps(self, tunable, freeze, *, batch, sizes):
        return {size: STEP[freeze] * batch / BATCH * (size / 128) ** 2 for size in sizes}

    def reserve_seconds(self, material, size, freeze=0):
        return RESERVE


def planned(
    left: float, *, lowest: int = 0, moves_statistics: bool = False, asked: bool = True, budget: float = 600.0, **recipe
) -> Plan:
    """The plan for so many seconds of training, and what is kept back after them. lowest: freeze point the method allows.

    asked: whether the method was named.
    """

    def tunable_at(freeze):
        if lowest and freeze > lowest:
            raise RecipeError("nothing of what is moved lies so high")
        return SimpleNamespace(classifier=nn.Linear(1, 1), moves_statistics=moves_statistics, freeze=freeze)

    recipe = Recipe(**recipe)
    sizes = SIZES if recipe.image_size == "auto" else [recipe.image_size]
    material = SimpleNamespace(
        train_rows=np.arange(IMAGES),
        val_rows=np.arange(250),
        decoded_per_second=1e9,
        preprocess=SimpleNamespace(size=224),
    )
    backbone = SimpleNamespace(
        stages=[SimpleNamespace(name=f"blocks.{place}") for place in range(STAGES)],
        preprocess=SimpleNamespace(size=224),
        one_size=False,
    )
    clock = SimpleNamespace(left=lambda: left + RESERVE, budget_seconds=budget)
    bench = SimpleNamespace(recipe=recipe, clock=clock, backbone=backbone, asked=asked)
    return plan(tunable_at, material, bench, Machine(sizes))


def test_without_a_clock_the_length_follows_from_the_number_of_images():
    made = planned(math.inf)
    assert not made.timed and made.epochs == unhurried_epochs(IMAGES) == 84
    assert planned(math.inf, epochs=3).epochs == 3
    passes = [unhurried_epochs(images) for images in (10, 1000, 4000, 100_000, 1_000_000)]
    assert passes == [100, 100, 50, 10, 10]


@pytest.mark.parametrize(("left", "freeze"), [(1000, 0), (250, 0), (130, 5), (100, 5), (50, 7), (25, 7)])
def test_as_much_of_the_network_learns_as_gets_enough_passes(left, freeze):
    made = planned(left)
    assert made.freeze == freeze and made.steps > 0
    assert (made.views == 0) == (freeze == 0)
    if made.freeze != 7:  # the upper quarter takes what there is
        assert made.epochs >= 3.5


def test_where_nothing_gets_enough_what_gets_most_learns():
    made, whole = planned(40), planned(40, freeze=0)
    assert whole.freeze == 0 and whole.epochs < made.epochs < 3.5


@pytest.mark.parametrize("left", [25, 35, 60, 100, 170, 300, 600, 2000])
@pytest.mark.parametrize("freeze", [5, 7])
def test_as_many_views_are_kept_as_the_passes_make_use_of(left, freeze):
    made = planned(left, freeze=freeze, image_size=128)
    use = min(VIEWS_AT_MOST, max(1, round(made.epochs / 2)))
    assert 1 <= made.views <= use
    if made.timed:
        spent = made.steps * (made.step_seconds[128] + made.epoch_seconds / math.ceil(IMAGES / BATCH))
        spent += made.views * IMAGES / LOWER[freeze]
        assert 0.93 * left - 1.0 <= spent <= left, "making the views is counted, and only those that are made"
        assert made.views >= use - 1, "one more would leave fewer passes than it wants"


def test_more_time_never_means_fewer_passes_or_smaller_images_of_one_freeze_point():
    many = [planned(left, freeze=7) for left in range(20, 900, 7)]
    assert all(one.final_size <= other.final_size for one, other in itertools.pairwise(many))
    same = [planned(left, freeze=7, image_size=128) for left in range(20, 900, 7)]
    assert all(one.views <= other.views for one, other in itertools.pairwise(same))


@pytest.mark.parametrize("left", [50, 100])
def test_what_is_asked_for_or_cannot_be_divided_is_not_decided_anew(left):
    assert planned(left, freeze=0).freeze == 0
    assert planned(left, freeze=5).freeze == 5
    assert planned(left, moves_statistics=True).freeze == 0
    assert planned(left, lowest=1).freeze == 0, "a method that moves nothing so high up"


def test_without_a_budget_nothing_depends_on_rates():
    made = planned(math.inf, epochs=3, freeze=7)
    assert (made.epochs, made.views, made.timed, made.step_seconds) == (3.0, 2, False, {})
    assert made.final_size == 224


def test_a_length_that_was_asked_for_is_not_passed():
    made = planned(5000, epochs=4)
    assert (made.epochs, made.freeze, made.timed) == (4.0, 0, False)
    assert planned(60, epochs=4).timed


@pytest.mark.parametrize("left", [-5, 0, 8])
def test_where_less_than_half_a_pass_fits_nothing_is_trained(left):
    made = planned(left)
    assert made.steps == 0 and "the probe is kept" in made.reason


@pytest.mark.parametrize("left", [15, 20, 25])
def test_a_method_that_was_chosen_is_not_trained_for_so_short_that_it_never_helped(left):
    """An epoch of the upper quarter takes 12 s, and what it sees 4."""
    made = planned(left, asked=False)
    assert made.steps == 0 and "too few to be worth it: the probe is kept" in made.reason
    assert 0.5 <= planned(left).epochs < 2.0, "a named one is"
    assert planned(left, asked=False, budget=120.0).steps > 0, "and one whose time nothing else would use"
    assert planned(left, asked=False, epochs=1).steps > 0, "and so is one whose length was"
    assert planned(60, asked=False).epochs >= 2.0


def test_of_many_images_less_than_two_epochs_are_enough(monkeypatch):
    monkeypatch.setattr(f"{__name__}.IMAGES", 12_800)
    made = planned(300, asked=False, freeze=0, budget=6000.0)
    assert 200 <= made.steps < 2 * 400
    assert not planned(150, asked=False, freeze=0, budget=6000.0).steps


@pytest.mark.parametrize(("epochs", "some"), [(1, True), (8, False)])
def test_the_first_head_of_a_short_run_is_fitted_to_a_part_of_every_class(epochs, some, shapes, tmp_path, monkeypatch):
    """Images of each class are among it, however few it is to have."""
    fits, first = [], []
    real, fitted = start.needs_linear, HeadKind.fitted

    def noting(how, features, labels, **options):
        fits.append(labels)
        return fitted(how, features, labels, **options)

    monkeypatch.setattr(start, "_IMAGES", 3)
    monkeypatch.setattr(HeadKind, "fitted", noting)
    monkeypatch.setattr(start, "needs_linear", lambda head: (first.append(fits[-1]), real(head))[1])
    api.fit(shapes, model="random:test_resnet", method="full", epochs=epochs, budget=None, out=tmp_path / "run")
    (labels,) = first
    counts = np.bincount(labels, minlength=3)
    assert counts.tolist() == [8, 8, 8] if some else counts.sum() > 24


@pytest.mark.parametrize(
    ("seconds", "train", "size"),
    [
        (600, 3000, 224),  # time for everything
        (120, 420, 224),
        (40, 420, 224),  # six epochs at the smallest size fit beside the full-size probe, at 160 images/s
        (30, 20_000, 128),  # neither fits: the smallest
    ],
)
def test_the_probes_size_follows_the_clock(seconds, train, size):
    found = affordable_size(224, 160.0, trained=50.0, seconds_left=seconds, images=2 * train, train=train)
    assert found == size or (seconds == 40 and found in (160, 192, 224))
    assert (
        affordable_size(224, 160.0, trained=50.0, seconds_left=seconds, images=2 * train, train=train, one_size=True)
        == 224
    )


@pytest.mark.parametrize(
    ("scored", "rate", "half", "trains"),
    [
        (160.7, 389.5, True, 51.9),
        (24.4, 81.3, True, 21.9),
        (19.8, 60.0, True, 14.6),
        (31.3, 31.3, False, 9.3),
        (32.1, 79.5, False, 9.4),
    ],
)
def test_what_training_takes_is_guessed_but_for_small_networks_in_float32(scored, rate, half, trains):
    """Of rows of docs/speed.md: EfficientNet-Lite0, ResNet-50 and ViT-S with AMX, ResNet-50 in float32 and with features in 8 bits.
    EfficientNet-Lite0 in float32 trains up to twice as long."""
    trunks = _Trunks(exact=nn.Identity(), trunk=nn.Identity(), scored=scored, rate=rate, half=half)
    assert 1 / 1.6 < trunks.trained / trains < 1.6


def test_a_long_run_has_a_lower_rate_than_a_short_one():
    assert eased(1e-3, 100) == 1e-3 and eased(1e-3, 14) == pytest.approx(1.4e-4) and eased(1e-3, 0) > 0.0
    assert 2e-4 < eased(1e-3, 700) < 4e-4
    assert eased(1e-3, 10**9) == pytest.approx(1e-4)
