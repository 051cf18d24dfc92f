"""What a run gives: its result is copied, pickled and shown, and the package shows its names."""

from __future__ import annotations

import copy
import io
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pytest

import burnish
from burnish import api
from burnish.backbones import zoo
from burnish.backbones.changing import taps
from burnish.choose.ledger import probes_from
from burnish.errors import NotARun, UnknownModel

TINY = {"model": "random:test_resnet", "image_size": 32, "budget": None, "method": "probe", "cache": "off"}


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    return api.fit(shapes, out=tmp_path_factory.mktemp("around") / "run", **TINY)


# ---- copies ----------------------------------------------------------------------------------------------------------


def test_a_result_can_be_pickled_after_it_predicted(run, shapes):
    image = shapes / "red" / "000.png"
    first = run.predict([image])[0]
    again = pickle.loads(pickle.dumps(run))
    assert again.predict([image])[0].probabilities == pytest.approx(first.probabilities, abs=1e-6)


def copied_by_joblib(one):
    file = io.BytesIO()
    joblib.dump(one, file)
    file.seek(0)
    return joblib.load(file)


@pytest.mark.parametrize(
    "copied", [lambda one: pickle.loads(pickle.dumps(one)), copied_by_joblib, copy.deepcopy],
    ids=["pickle", "joblib", "deepcopy"],
)  # fmt: skip
@pytest.mark.parametrize("size", [(40, 32), (64, 64)])
def test_a_copy_of_a_result_that_has_predicted_gives_the_same_answers(copied, size, run):
    images = list(np.random.default_rng(0).integers(0, 256, (20, *size, 3), np.uint8))
    before = run.predict_proba(images)
    again = copied(run)
    np.testing.assert_allclose(again.predict_proba(images), before, atol=1e-6)
    np.testing.assert_array_equal(run.predict_proba(images), before)  # the one that was copied as well
    assert again.facts == run.facts and again.classes == run.classes


@pytest.mark.slow
def test_another_process_predicts_with_a_pickled_result(run, shapes, tmp_path):
    image = str(shapes / "red" / "000.png")
    wanted = run.predict_proba([image])[0]
    (tmp_path / "result.pickle").write_bytes(pickle.dumps(run))
    code = "import pickle, json, sys; one = pickle.load(open(sys.argv[1], 'rb')); "
    code += "print(json.dumps(one.predict_proba([sys.argv[2]])[0].tolist()))"
    words = [sys.executable, "-c", code, str(tmp_path / "result.pickle"), image]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == pytest.approx(wanted.tolist(), abs=1e-6)


# ---- what is shown ---------------------------------------------------------------------------------------------------


def test_what_is_shown_of_a_result_is_short_and_safe(run, shapes):
    from dataclasses import replace

    assert len(repr(run)) < 400 and run.verdict.sentence() in repr(run)
    assert len(repr(run.evaluate(shapes))) < 200 and "accuracy" in repr(run.evaluate(shapes))
    odd = replace(run, facts={**run.facts, "kept": "<b>"})
    assert "<b>" not in odd._repr_html_() and "&lt;b&gt;" in odd._repr_html_()


def test_answers_and_audits_are_shown_in_a_line_each(run, shapes):
    files = sorted(shapes.rglob("*.png"))[:2]
    sure, other = run.predict(files, top=2, sets=0.5)
    assert repr(sure).startswith(f"Prediction({files[0]}: {sure.classes[0]} ") and f"set: {sure.set[0]}" in repr(sure)
    assert len(repr([sure, other])) < 150 + 2 * len(str(files[0])) and "None" not in repr(sure)
    assert "declined, unsure: 40.0 %" in repr(replace(sure, declined="unsure: 40.0 %"))
    broken = run.predict([b"nothing", files[0]])[0]
    assert str(broken.problem) in repr(broken)
    assert "\x1b" not in repr(replace(sure, path="a\x1b[31m", classes=("\x1b", "b")))
    found = burnish.audit(shapes, model=None)
    assert repr(found).startswith("Audit(60 images: ") and len(repr(found)) < 200


def test_a_call_that_is_interrupted_tells_how_it_goes_on(shapes, tmp_path):
    class Impatient(burnish.Lines):
        def say(self, text):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        burnish.fit(shapes, out=tmp_path / "run", watcher=Impatient(), **TINY)
    assert stopped.value.__notes__ == [
        f"burnish: the same call with out={str(tmp_path / 'run')!r} goes on where this one stopped"
    ]
    assert burnish.fit(shapes, out=tmp_path / "run", **TINY).classes


@pytest.mark.parametrize("change", [{"value": "x"}, {"low": None}, {"n": "many"}, {"value": [1]}])
def test_a_verdict_that_was_changed_by_hand_is_a_sentence_where_the_run_is_shown(change, run):
    verdict = run.facts["verdict"]
    odd = replace(run, facts={**run.facts, "verdict": {**verdict, "probe": {**verdict["probe"], **change}}})
    for show in (repr, type(run)._repr_html_):
        with pytest.raises(NotARun, match=r"is not as burnish writes it \(an entry is of another kind") as problem:
            show(odd)
        assert "Error" not in str(problem.value)
    with pytest.raises(NotARun, match="'kept' is missing or unknown"):
        repr(replace(run, facts={key: value for key, value in run.facts.items() if key != "kept"}))


def test_a_folder_with_markup_in_its_name_is_shown_as_text(run):
    odd = replace(run, folder=Path("runs/<b>bold</b>&co"))
    assert "<b>" not in odd._repr_html_() and "&lt;b&gt;bold" in odd._repr_html_() and "&amp;co" in odd._repr_html_()


def test_what_is_shown_holds_no_control_characters(run):
    odd = replace(run, folder=Path("runs/a\x1b[31mred\nnext"), facts={**run.facts, "kept": "a\x1b[0m"})
    for text in (repr(odd), odd._repr_html_()):
        assert "\x1b" not in text and "\n" not in text


@pytest.mark.parametrize("pyramid", [[-1], ["x"], [1.5], 3])
def test_a_state_that_tells_of_impossible_taps_is_a_sentence(pyramid):
    change = {"kind": taps.KIND, "layers": ["layer1"], "channels": [1], "pyramid": pyramid}
    with pytest.raises(UnknownModel, match="entries that are missing, unknown or wrong: pyramid"):
        probes_from({"deep": {"changes": [change]}}, {}, zoo.load_backbone("random:test_resnet"))


# ---- the package -----------------------------------------------------------------------------------------------------


def test_the_names_of_the_package_are_what_it_is_for():
    assert {"fit", "predict", "open_run", "Result", "Lines"} <= set(dir(burnish))
    assert not {"gc", "sys", "importlib", "own_process"} & set(dir(burnish))


def test_the_package_shows_its_public_names_and_no_others():
    assert sorted(dir(burnish)) == sorted([*burnish.__all__, "__version__", "sklearn"])
    assert all(getattr(burnish, name) is not None for name in dir(burnish))
