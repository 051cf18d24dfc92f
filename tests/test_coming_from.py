"""The page for who comes from another tool: every call of burnish in its tables is made, a fit up to its first step."""

from __future__ import annotations

import re
import shlex
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import burnish as package
from burnish.errors import Interrupted
from burnish.runtime import Nobody
from conftest import burnish, write_shapes

PAGE = Path(__file__).parent.parent / "docs" / "coming_from.md"
SMALL = {"model": "random:test_resnet", "image_size": 32, "cache": "off"}
OURS = re.compile(r"burnish[ .]|result\.|found\.")
RUNS_ON = "burnish board RUN"  # until it is stopped


class Begun(KeyboardInterrupt):
    """The data was opened, the settings and the network taken: what follows is tested elsewhere."""


class UntilItBegins(Nobody):
    """Whoever looks on until a training begins."""

    def stage(self, name, *, total=None, detail=""):
        if name == "survey":
            raise Begun


def calls_of_the_page() -> list[str]:
    """The code in the last column of each table, but options alone and names of files."""
    rows = re.findall(r"^\|.*\| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    calls = [code for row in rows for code in re.findall(r"`([^`]+)`", row) if OURS.match(code) and code != RUNS_ON]
    return list(dict.fromkeys(calls))


class Table:
    """What pandas has that is asked for."""

    def __init__(self, **columns):
        self.columns, self._values = list(columns), columns

    def __getitem__(self, name):
        return self._values[name]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(a folder with all that the page's calls take: photos, a table, a run that is finished; its result; an evaluation)."""
    root = tmp_path_factory.mktemp("coming-from")
    write_shapes(root / "photos", images=12, classes=("cat", "dog"))
    files = sorted((root / "photos").rglob("*.png"))
    labels = [file.parent.name for file in files]
    rows = [f"photos/{label}/{file.name},{label}" for file, label in zip(files, labels, strict=True)]
    (root / "list.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(root)
        result = package.fit("photos/", method="probe", budget=None, **SMALL)
        found = result.evaluate("photos/")
        package.audit("photos/", model=None, out="audit")
    return root, result, found


@pytest.fixture
def names(place, monkeypatch):
    """What the page calls things by."""
    root, result, found = place
    monkeypatch.chdir(root)
    fit, compare, audit = package.fit, package.compare, package.audit
    until = UntilItBegins()
    monkeypatch.setattr(
        package, "fit", lambda data, **given: fit(data, **{**given, **SMALL}, watcher=until), raising=False
    )
    monkeypatch.setattr("burnish.bars.watcher_for", lambda clock, **given: nullcontext(until))
    monkeypatch.setattr(
        package, "compare", lambda data, **given: compare(
            data, models=[SMALL["model"]], image_size=32, epochs=1, budget=None, cache="off", **given
        ), raising=False,
    )  # fmt: skip
    monkeypatch.setattr(
        package, "audit", lambda data, out: audit(data, model=SMALL["model"], out=f"{out}-{len(list(root.glob('audit*')))}"),
        raising=False,
    )  # fmt: skip
    files = [root / "photos" / name / f"{number:03d}.png" for name in ("cat", "dog") for number in range(12)]
    table = Table(path=[str(file) for file in files], label=[file.parent.name for file in files])
    rng = np.random.default_rng(0)

    def arrays(each):
        pixels = rng.integers(0, 120, (2 * each, 32, 32, 3), np.uint8)
        pixels[:each, ..., 0] += 90
        return pixels, np.array(["cat"] * each + ["dog"] * each)[:, None]  # a column, as Keras has it

    (x_train, y_train), (x_test, y_test) = arrays(8), arrays(4)
    return {
        "burnish": package, "result": result, "found": found, "files": files, "image": files[0],
        "table": table, "x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test,
        "train": (x_train, y_train), "val": arrays(3), "test": (x_test, y_test),
    }  # fmt: skip


@pytest.mark.parametrize("call", calls_of_the_page())
def test_a_call_that_the_page_names_can_be_made(call, names, capsys, monkeypatch, tmp_path):
    if "to=" in call or "--to onnx" in call:
        pytest.importorskip("onnxruntime")
    if call.startswith("burnish.fit("):
        with pytest.raises(Begun):
            eval(call, names)
        return
    if not call.startswith("burnish "):
        assert eval(call, names) is not None
        return
    words = shlex.split(call.replace("--preprocess keras:resnet50", ""))[1:]  # which is of Keras's networks alone
    if words[0] == "fit":
        words += ["--model", SMALL["model"], "--image-size", "32", "--cache", "off", "--quiet"]
    if words[0] == "slim":
        words += ["--onnx", "off"]
    if words[0] in ("export", "slim"):
        words += ["--out", str(tmp_path / f"out{'.onnx' if words[-1] == 'onnx' else ''}")]
    code, out, err = burnish(*words, capsys=capsys)
    if words[0] == "fit":
        assert code == Interrupted.exit_code and "interrupted" in err
        return
    assert code == 0 and err == "", err
    assert out or "--csv" in words


def test_the_page_has_a_table_for_each_tool_and_is_no_longer_than_it_must_be():
    text = PAGE.read_text(encoding="utf-8")
    titles = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert titles == ["fastai", "timm", "HF Trainer and pipeline", "Keras", "AutoGluon", "Ultralytics"]
    assert len(text.splitlines()) <= 130 and len(calls_of_the_page()) > 40
