"""Confidences of held-out images: what they can show is said, and is the same after it was written down."""

import json

import numpy as np
import pytest

from burnish.errors import RecipeError
from burnish.measure.held_out import HeldOut, sets


def held_with(confidence):
    count = len(confidence)
    return HeldOut(confidence, np.arange(count) % 10 > 0, confidence)


def written(held):
    return HeldOut.from_json(json.loads(json.dumps(held.to_json())), classes=3)


@pytest.mark.parametrize(
    "confidence",
    [
        np.random.default_rng(0).uniform(0.3, 1.0, 2000),
        1.0 - np.random.default_rng(1).uniform(0.0, 3e-7, 500),
        np.array([1.0, 1.0 - 2.0**-53, 1.0 - 2.0**-24, 0.5, 0.3, 0.0]),
        np.nextafter([0.8506242, 0.9127555, 0.9350724], 0.0),
    ],
    ids=["drawn", "all but sure", "ends", "just below seven digits"],
)
def test_no_image_falls_below_the_threshold_that_its_own_confidence_became(confidence):
    again = written(held_with(confidence))
    assert (again.confidence <= confidence).all() and (confidence - again.confidence < 2e-7).all()


def test_what_was_answered_before_the_package_was_written_is_answered_after():
    rng = np.random.default_rng(3)
    held = HeldOut.of(rng.dirichlet([8.0, 0.5, 0.5], 600), np.zeros(600, np.int64))
    for wanted in (0.8, 0.9, 0.95):
        own, kept = held.threshold(wanted), written(held).threshold(wanted)
        assert own is not None and kept is not None and own - 2e-7 < kept <= own


def test_a_package_that_is_read_and_written_again_keeps_its_confidences():
    once = written(held_with(np.random.default_rng(0).uniform(0.0, 1.0, 500)))
    assert np.array_equal(written(once).confidence, once.confidence)


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


def drawn(chances: np.ndarray, confidence: np.ndarray, rng: np.random.Generator) -> HeldOut:
    """Held-out images that are right with these chances."""
    right = rng.random(len(chances)) < chances
    return HeldOut(confidence, right, np.where(right, confidence, 1 - confidence))


@pytest.mark.parametrize(("n", "chance", "wanted"), [(100, 0.93, 0.95), (1000, 0.93, 0.95), (300, 0.986, 0.99)])
def test_of_a_confidence_that_says_nothing_no_threshold_is_found_by_looking_long_enough(n, chance, wanted):
    """All answers are less often right than wanted, whatever the confidence."""
    rng = np.random.default_rng(0)
    shown = [drawn(np.full(n, chance), rng.random(n), rng).threshold(wanted) is not None for _ in range(300)]
    assert np.mean(shown) < 0.1


@pytest.mark.parametrize(("n", "wanted"), [(100, 0.9), (100, 0.95), (1000, 0.95), (1000, 0.99)])
def test_what_is_answered_is_on_average_at_least_as_right_as_was_asked_for(n, wanted):
    rng = np.random.default_rng(1)
    answered, many = [], rng.beta(3.8, 0.2, 100_000)  # confidences that are what comes true, 0.95 on average
    for _ in range(200):
        confidence = rng.beta(3.8, 0.2, n)
        threshold = drawn(confidence, confidence, rng).threshold(wanted)
        if threshold is not None:
            answered.append(many[many >= threshold].mean())
    assert len(answered) > 100 and np.mean(answered) >= wanted


def test_a_few_hundred_images_that_are_all_right_show_99_of_100_and_one_wrong_one_of_many_does_not_end_it():
    sure = np.linspace(0.999, 0.9, 230)
    assert HeldOut(sure, np.ones(230, bool), sure).threshold(0.99) == sure[-1]
    assert HeldOut(sure[:229], np.ones(229, bool), sure[:229]).threshold(0.99) is None
    many = np.linspace(0.999, 0.9, 3000)
    assert HeldOut(many, np.arange(3000) != 5, many).threshold(0.99) == many[-1]


# ---- images that were drawn by groups -----------------------------------------------------------------------------------


def of_patients(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(probabilities [n 2], labels, groups) of 10 to 30 images of each patient, some of whom are harder than others."""
    sizes = rng.integers(10, 31, count)
    groups = np.repeat(np.arange(count), sizes)
    labels = rng.integers(0, 2, len(groups))
    sure = 2.0 + rng.normal(0.0, 1.5, count)[groups] + rng.normal(0.0, 1.0, len(groups))
    second = 1.0 / (1.0 + np.exp(-(2 * labels - 1) * sure))
    return np.stack([1.0 - second, second], 1), labels, groups


def test_what_is_promised_of_30_groups_of_alike_images_holds_for_images_of_new_groups():
    rng = np.random.default_rng(0)
    chances, labels, _ = of_patients(5000, rng)
    found: dict[bool, list[tuple[float, float, float]]] = {True: [], False: []}
    for _ in range(150):
        held, truth, groups = of_patients(30, rng)
        for by in found:
            known = HeldOut.of(held, truth, groups if by else None)
            covered = sets(chances, known.cut(0.95))[np.arange(len(labels)), labels].mean()
            sought, least = known.threshold_finding(1, 0.9), known.threshold(0.9)
            answered = chances.max(1) >= (1.0 if least is None else least)
            right = (chances.argmax(1) == labels)[answered].mean() if answered.any() else 1.0
            found[by].append((covered, (chances[labels == 1, 1] >= sought).mean(), right))
    covered, sought, right = np.array(found[True]).T
    assert covered.mean() >= 0.95 and sought.mean() >= 0.9 and (right < 0.9).mean() < 0.1
    covered, sought, right = np.array(found[False]).T  # which is why images are not counted
    assert covered.mean() < 0.95 and (right < 0.9).mean() > 0.2


def test_images_that_are_each_a_group_of_their_own_are_as_those_without_groups():
    chances = np.random.default_rng(2).dirichlet([8.0, 0.5, 0.5], 400)
    labels = np.random.default_rng(3).integers(0, 2, 400) * (np.arange(400) % 9 == 0)
    plain, alone = HeldOut.of(chances, labels), HeldOut.of(chances, labels, np.arange(400))
    for one in (0.7, 0.8, 0.9, 0.95):
        assert plain.threshold(one) == alone.threshold(one) and plain.cut(one) == alone.cut(one)
        assert plain.threshold_finding(0, one) == alone.threshold_finding(0, one)


def test_too_few_groups_are_said_whatever_the_number_of_their_images():
    sure = np.linspace(0.999, 0.9, 600)
    known = HeldOut(sure, np.ones(600, bool), sure, np.zeros(600, np.int64), np.arange(600) % 30)
    with pytest.raises(
        RecipeError, match=r"600 held-out images \(30 groups\).*can show 92\.6% at the most.*more groups"
    ):
        known.rejecting(0.95)
    with pytest.raises(RecipeError, match=r"600 held-out images of cat \(30 groups\).*96\.7% at the most.*more groups"):
        known.finding(0, 0.99, "cat")
    assert known.rejecting(0.926) and known.finding(0, 0.967, "cat")


def test_groups_are_kept_as_numbers_and_packages_without_them_open():
    chances = np.random.default_rng(2).dirichlet([8.0, 0.5, 0.5], 40)
    held = HeldOut.of(chances, np.zeros(40, np.int64), np.arange(40) // 4 + 7)
    assert held.to_json()["groups"] == (np.arange(40) // 4).tolist()
    assert np.array_equal(written(held).groups, held.groups)
    plain = HeldOut.of(chances, np.zeros(40, np.int64))
    assert "groups" not in plain.to_json() and not len(written(plain).groups)
    for wrong in ([0] * 39, [-1] * 40, [0.5] * 40, [40] * 40, "no"):
        with pytest.raises(ValueError, match="held_out"):
            HeldOut.from_json({**held.to_json(), "groups": wrong}, classes=3)
