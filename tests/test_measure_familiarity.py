"""What is familiar to a model: distances taken in pieces, and told by numbers alone."""

import pickle

import numpy as np
import pytest

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
    asked, real = [], ood.eigh
    monkeypatch.setattr(ood, "eigh", lambda *given: asked.append(1) or real(*given))
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
