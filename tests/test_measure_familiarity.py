"""What is familiar to a model: distances taken in pieces, and told by numbers alone."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from burnish.choose.familiar import frozen_familiarity
from burnish.labels import numbered
from burnish.measure import ood
from burnish.measure.ood import Familiarity


def test_distances_from_classes_are_taken_in_pieces(monkeypatch):
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(120, 40)).astype(np.float32), np.arange(120) % 6
    made = Familiarity.of(features, labels).limited_by(features[:30])
    answers = np.full((120, 6), 1 / 6)
    whole = made.strangeness(features, answers)
    monkeypatch.setattr(ood, "_NUMBERS_AT_ONCE", 7 * len(made.centres))
    assert np.allclose(made.strangeness(features, answers), whole, rtol=1e-12, atol=1e-9)
    assert len(made.strangeness(features[:0], answers[:0])) == 0


@pytest.mark.parametrize("name", ["mean", "within", "centres"])
def test_what_is_familiar_is_told_by_numbers(name):
    rng = np.random.default_rng(0)
    arrays = Familiarity.of(rng.normal(size=(60, 8)).astype(np.float32), np.arange(60) % 3).arrays()
    assert Familiarity.from_arrays(arrays, 8).centres.shape == (3, 8)
    arrays[name] = arrays[name] * np.float32("nan")
    with pytest.raises(ValueError, match=f"{name} with NaN"):
        Familiarity.from_arrays(arrays, 8)


def test_what_is_the_same_for_every_image_is_made_once_and_is_not_in_a_pickle(monkeypatch):
    rng = np.random.default_rng(0)
    features, answers = rng.normal(size=(60, 40)).astype(np.float32), np.full((60, 3), 1 / 3)
    made = Familiarity.of(features, np.arange(60) % 3).limited_by(features)
    before = len(pickle.dumps(made))
    asked, real = [], ood._eigen
    monkeypatch.setattr(ood, "_eigen", lambda *given: asked.append(1) or real(*given))
    one_by_one = [made.strangeness(features[at : at + 1], answers[:1]) for at in range(5)]
    assert len(asked) == 1 and np.allclose(np.concatenate(one_by_one), made.strangeness(features, answers)[:5])
    assert len(pickle.dumps(made)) == before
    again = pickle.loads(pickle.dumps(made))
    assert np.array_equal(again.strangeness(features, answers), made.strangeness(features, answers))


def test_what_is_familiar_has_the_same_limits_before_and_after_it_is_kept():
    """A run that died reads it back; it and the package's user then name the same strangers as a run that did not."""
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(120, 40)).astype(np.float32), np.arange(120) % 6
    made = Familiarity.of(features, labels).limited_by(features[:30], rng.random(30))
    kept = Familiarity.from_arrays(made.arrays(), 40)
    for name in ("limit", "doubt", "usual", "beside"):
        assert getattr(made, name) == getattr(kept, name), name


def of_patients(patients: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(features, classes, patients) of 8 images each, alike within a patient."""
    patient, kind = np.repeat(np.arange(patients), 8), rng.integers(3, size=8 * patients)
    features = rng.normal(size=(patients, 32))[patient] + 0.5 * rng.normal(size=(len(patient), 32))
    features[:, :3] += 4 * np.eye(3)[kind]
    return features.astype(np.float32), kind, patient


def test_new_patients_are_no_stranger_than_promised_where_the_validation_images_are_few():
    strange = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        features, kind, patient = of_patients(24, rng)
        val = np.arange(len(kind)) < 16  # two patients, and fewer than 20 images
        held_in = SimpleNamespace(
            labels=kind,
            val_rows=np.flatnonzero(val),
            train_rows=np.flatnonzero(~val),
            tied=lambda rows, patient=patient: numbered(patient[rows].tolist()),
            sets=lambda rows, patient=patient: numbered(patient[rows].tolist()),
        )
        found = frozen_familiarity(features, np.zeros((16, 3), np.float32), held_in)
        new = of_patients(40, rng)[0]
        strange.append(found.strange(new, np.full((len(new), 3), 1 / 3)).mean())
    assert np.mean(strange) < 0.1, "where 5 % is meant"


def test_of_too_few_patients_no_limit_is_set():
    features, kind, patient = of_patients(10, np.random.default_rng(0))
    material = SimpleNamespace(
        labels=kind,
        val_rows=np.arange(0),
        train_rows=np.arange(80),
        tied=lambda rows: numbered(patient[rows].tolist()),
        sets=lambda rows: numbered(patient[rows].tolist()),
    )
    assert frozen_familiarity(features, np.zeros((0, 3), np.float32), material) is None
