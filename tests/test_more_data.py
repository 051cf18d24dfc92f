"""Whether more images would help, where images come in groups: patients, films, sites."""

from types import SimpleNamespace

import numpy as np

from burnish.choose.more_data import learning_curve
from burnish.labels import numbered

CLASSES, WIDTH = 4, 24


def of_patients(patients: int, rng: np.random.Generator, centres: np.ndarray, images: int = 10):
    """(features, classes, patients): a patient has one class, and his images are alike."""
    patient = np.repeat(np.arange(patients), images)
    kind = patient % CLASSES
    own = rng.normal(size=(patients, WIDTH))[patient]
    return centres[kind] + 0.63 * own + 0.77 * rng.normal(size=(len(patient), WIDTH)), kind, patient


def nearest_mean(features: np.ndarray, kind: np.ndarray) -> SimpleNamespace:
    """A head that says the class whose mean is nearest."""
    means = np.stack(
        [features[kind == k].mean(0) if (kind == k).any() else np.full(WIDTH, 1e3) for k in range(CLASSES)]
    )
    return SimpleNamespace(logits=lambda asked: 2 * asked @ means.T - (means**2).sum(1))


def told(seed: int, *, train: int, val: int, by_patient: bool = True):
    """(what the curve tells, how right a head of twice as many patients is on many new ones)."""
    rng = np.random.default_rng(seed)
    centres = 0.45 * rng.normal(size=(CLASSES, WIDTH))
    features, kind, patient = of_patients(train + val, rng, centres)
    is_val = patient >= train
    material = SimpleNamespace(
        labels=kind,
        train_rows=np.flatnonzero(~is_val),
        val_rows=np.flatnonzero(is_val),
        sets=lambda rows: numbered(patient[rows].tolist()) if by_patient else np.arange(len(rows)),
    )
    whole = nearest_mean(features[~is_val], kind[~is_val]).logits(features[is_val]).argmax(1) == kind[is_val]
    curve = learning_curve(
        features, material, lambda rows: nearest_mean(features[rows], kind[rows]), whole, seed=0, seconds_left=None
    )
    new, truth, _ = of_patients(400, rng, centres)
    later = [nearest_mean(*of_patients(2 * train, rng, centres)[:2]).logits(new).argmax(1) for _ in range(3)]
    return curve, float(np.mean([one == truth for one in later]))


def test_the_range_of_what_more_images_would_do_counts_patients_and_not_their_images():
    held = []
    for seed in range(40):
        curve, truth = told(seed, train=20, val=10)
        held.append(curve["ahead"][0]["low"] <= truth <= curve["ahead"][0]["high"])
    assert np.mean(held) > 0.8, "by image it holds the truth two times of three"


def test_of_a_few_patients_nothing_is_told():
    assert told(0, train=20, val=5)[0] is None
    assert told(0, train=20, val=5, by_patient=False)[0] is not None
