"""Where somebody types, as in a notebook: what a call tells meanwhile, what its result looks like, what a mistake looks like."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import burnish
from burnish import api
from burnish.errors import BurnishError, RecipeError
from burnish.measure.scores import score
from conftest import Told, write_shapes

TINY = {"model": "random:test_resnet", "image_size": 32, "budget": None, "method": "probe", "cache": "off"}


@pytest.fixture
def prompt(monkeypatch):
    """As at Python's prompt, at IPython's, and in a notebook's kernel."""
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)


@pytest.fixture(scope="module")
def told(shapes, tmp_path_factory):
    """(the result of a fit at a prompt, what it printed)."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(said):
        patched.setattr(sys, "ps1", ">>> ", raising=False)
        result = api.fit(shapes, out=tmp_path_factory.mktemp("at-a-prompt") / "run", **TINY)
    return result, said.getvalue()


@pytest.fixture(scope="module")
def run(told):
    return told[0]


# ---- meanwhile -------------------------------------------------------------------------------------------------------


def test_at_a_prompt_a_fit_tells_what_it_is_at(told):
    lines = told[1].splitlines()
    assert any("probe saved at" in line for line in lines) and all(" s  " in line for line in lines)


def test_in_a_script_a_call_is_silent(run, shapes, capsys):
    run.evaluate(shapes)
    burnish.audit(shapes, model=None, cache="off")
    assert capsys.readouterr() == ("", "")


def test_at_a_prompt_whoever_is_given_watches_and_nobody_else(run, shapes, prompt, capsys):
    watcher = Told()
    burnish.audit(shapes, model=None, cache="off", watcher=watcher)
    burnish.evaluate(run, shapes, watcher=None)
    assert capsys.readouterr().out == ""
    burnish.evaluate(run, shapes)
    assert "evaluate: 60 images" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [True, "lines", burnish.Lines])
def test_what_is_no_watcher_is_a_sentence(wrong, run, shapes):
    with pytest.raises(RecipeError, match=r"^watcher is .*, expected burnish\.Lines\(\), which prints lines"):
        burnish.evaluate(run, shapes, watcher=wrong)


def test_pythons_own_prompt_is_one_and_a_script_is_none():
    code = "import burnish.watching as own\nprint('watches:', type(own.settled_watcher('auto')).__name__)\n"
    typed = subprocess.run([sys.executable, "-q", "-i"], input=code, capture_output=True, text=True, timeout=120)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "watches: Lines" in typed.stdout and "watches: Nobody" in run.stdout


def test_at_a_prompt_the_first_call_says_that_it_loads_pytorch(monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.delitem(sys.modules, "torch")
        burnish._say_what_is_waited_for()  # in a script
        assert capsys.readouterr().out == ""
        patched.setattr(sys, "ps1", ">>> ", raising=False)
        burnish._say_what_is_waited_for()
        assert capsys.readouterr().out == "burnish: loading PyTorch\n"
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    burnish._say_what_is_waited_for()  # it is there
    assert capsys.readouterr().out == ""


def test_a_notebook_without_widgets_is_not_told_that_bars_need_them(tmp_path):
    (tmp_path / "IPython.py").write_text("def get_ipython():\n    return None\n")
    (tmp_path / "ipykernel").mkdir()
    for name in ("__init__", "zmqshell"):
        (tmp_path / "ipykernel" / f"{name}.py").touch()
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}

    def said(code):
        begun = f"import IPython, ipykernel.zmqshell, warnings; {code}"
        return subprocess.run(
            [sys.executable, "-c", begun], capture_output=True, text=True, env=environment, timeout=120
        ).stderr

    if "IProgress not found" not in said("import tqdm.auto"):
        pytest.skip("the widgets are installed")
    quietly = "import burnish.imports as own; own._load_bars_quietly(); import tqdm.auto"
    assert said(quietly) == ""
    assert "mine" in said(f"{quietly}; warnings.warn('mine')")


# ---- results ---------------------------------------------------------------------------------------------------------


def test_a_result_stands_for_its_folder_and_tells_its_scores(run, shapes):
    assert os.fspath(run) == str(run.folder)
    assert burnish.open_run(run).facts == run.facts
    assert run.accuracy.value == run.scores["accuracy"]["value"] and run.accuracy.n == run.facts["counts"]["test"]
    assert run.history == [] and str(run.verdict) == run.verdict.sentence()
    assert repr(run.verdict) == f"Verdict(probe only: {run.verdict.sentence()})"
    assert burnish.evaluate(run, shapes).accuracy.n == 60


def test_features_are_what_the_head_sees(run, shapes):
    files = sorted(shapes.rglob("*.png"))[:20]
    found = run.features(files)
    bundle = run.predictor.bundle
    head = bundle.classifier().head
    assert found.shape == (20, bundle.width) and found.dtype == np.float32
    weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
    logits = found @ weight.T + bias
    assert (logits.argmax(1) == run.predict_proba(files).argmax(1)).all()
    assert run.features([]).shape == (0, bundle.width)
    with pytest.raises(burnish.BurnishError, match=r"^image in memory: |^array: |^<bytes>: "):
        run.features([files[0], b"nothing"])


def test_what_was_taken_for_what_is_told_the_surest_mistakes_first(run, shapes, tmp_path):
    for name, files in {"red": "blue", "green": "green", "blue": "blue"}.items():
        (tmp_path / name).mkdir()
        for file in sorted((shapes / files).glob("*.png"))[:4]:
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    found = run.evaluate(tmp_path)
    wrong = found.mistakes()
    assert all(label != answer.label for label, answer in wrong)
    assert [answer.probability for _, answer in wrong] == sorted((one.probability for _, one in wrong), reverse=True)
    assert sum(images for *_, images in found.confused()) == len(wrong) == 12 - round(12 * found.accuracy.value)
    confusion, classes = found.scores.confusion, run.classes
    for label, answer, images in found.confused():
        assert confusion[classes.index(label), classes.index(answer)] == images
    assert ("red", "blue") in {(label, answer) for label, answer, _ in found.confused()}


def test_what_a_notebook_shows_is_escaped_and_holds_no_scripts(run, shapes, tmp_path):
    write_shapes(tmp_path / "odd", images=4, classes=("<script>alert(1)", "b\x1b[31m&"))
    (tmp_path / "odd" / "<script>alert(1)" / "<img src=x onerror=y>.png").write_bytes(b"no image")
    found = burnish.audit(tmp_path / "odd", model=None, cache="off")
    page = found._repr_html_()
    assert "Files that are no images" in page and "&lt;img src=x" in page
    evaluation = run.evaluate(shapes)
    named = replace(evaluation, labels=("<script>alert(1)",) * 60)
    for text in (page, named._repr_html_()):
        assert "<script" not in text and "<img src=x" not in text and "\x1b" not in text and "\n" not in text
    assert "&lt;script&gt;" in named._repr_html_() and "recall" in named._repr_html_()


def test_an_audit_in_a_notebook_shows_the_pictures(shapes, tmp_path):
    write_shapes(tmp_path / "data", images=4, classes=("a", "b"))
    (tmp_path / "data" / "b" / "again.png").write_bytes((tmp_path / "data" / "b" / "000.png").read_bytes())
    page = burnish.audit(tmp_path / "data", model=None, cache="off")._repr_html_()
    assert "Files with the same bytes" in page and '<img src="data:image/' in page and "again.png" in page


def test_scores_are_shown_in_a_line():
    rng = np.random.default_rng(0)
    found = score(rng.dirichlet(np.ones(100), 500), rng.integers(0, 100, 500), [f"class {n}" for n in range(100)])
    assert len(repr(found)) < 160 and repr(found).startswith("Scores(500 images of 100 classes: accuracy ")


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_a_mistake_in_a_notebook_is_the_users_line_and_the_sentence(tmp_path, monkeypatch):
    monkeypatch.delenv("BURNISH_DEBUG", raising=False)
    for verb in (burnish.fit, burnish.audit):  # the second is wrapped
        with pytest.raises(BurnishError) as caught:
            verb(tmp_path / "nothing")
        *lines, last = caught.value._render_traceback_()
        assert last == f"DataError: {caught.value}"
        assert len(lines) == 1 and lines[0].endswith(': verb(tmp_path / "nothing")')
    monkeypatch.setenv("BURNISH_DEBUG", "1")
    assert any("open_source" in line for line in caught.value._render_traceback_())


@pytest.mark.parametrize(("word", "here"), [("train", "fit"), ("load_learner", "open_run"), ("validate", "evaluate")])
def test_who_calls_a_verb_as_other_tools_do_is_told_what_it_is_here(word, here):
    code = f"import burnish\ntry:\n    burnish.{word}\nexcept AttributeError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == f"module 'burnish' has no attribute {word!r}; here it is burnish.{here}"


def test_a_result_tells_where_it_has_what_others_call_otherwise(run):
    for word, here in {
        "export": r"burnish\.export\(result",
        "model": "classifier",
        "embed": r"features\(images\)",
    }.items():
        with pytest.raises(AttributeError, match=rf"^a Result has no '{word}'; here: .*{here}"):
            getattr(run, word)
    with pytest.raises(AttributeError, match=r"^a Result has no 'nonsense'$"):
        run.nonsense  # noqa: B018
    assert not hasattr(run, "_ipython_display_")


def test_the_words_for_the_parts_of_the_data_and_for_callbacks_are_known():
    for word, here in {
        "validation_data": "train, val and test",
        "callbacks": "watcher",
        "num_classes": "of the data",
    }.items():
        with pytest.raises(RecipeError, match=rf"no setting '{word}' \(.*{here}"):
            burnish.fit("photos", **{word: 1})
