"""Promises of ship.bundle: what was trained is what is read, old or new and never torn, and nothing hostile gets in."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from burnish.backbones import zoo
from burnish.backbones.classifier import Classifier
from burnish.errors import BadWeights, NotARun, RunError
from burnish.ship import bundle as bundles
from burnish.ship.bundle import Bundle, read_bundle, write_bundle

torch.set_num_threads(1)

CLASSES = ("cat", "dog\u202egod", "Ünïcode <b>", "d\udc80")


def _bundle(seed: int = 0) -> Bundle:
    backbone = zoo.load_backbone("random:resnet10t", seed=seed)
    classifier = Classifier.over(backbone, classes=len(CLASSES))
    with torch.no_grad():
        classifier.head.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return Bundle.of(
        backbone, classifier, classes=CLASSES, method="probe", temperature=1.5, facts={"seconds": 1.25, "n": [1, 2]}
    )


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return _bundle()


@pytest.fixture(scope="module")
def second() -> Bundle:
    return _bundle(seed=1)


@pytest.fixture
def run(tmp_path, bundle) -> Path:
    write_bundle(tmp_path / "run", bundle)
    return tmp_path / "run"


def _package(run: Path) -> Path:
    return run / json.loads((run / "package.json").read_text())["current"]


def _same(first: Bundle, second: Bundle) -> bool:
    tensors = first.state.keys() == second.state.keys() and all(
        torch.equal(first.state[name], second.state[name]) for name in first.state
    )
    return tensors and replace(first, state={}) == replace(second, state={})


_OF_PYTHON = re.compile(r"not supported between|operand|object of type|NoneType|too large to convert|Error")


def _rewrite(run: Path, *, resign: bool = True, **changes) -> None:
    """Change entries of bundle.json as somebody hostile would: with the hash made to fit."""
    path = _package(run) / "bundle.json"
    values = json.loads(path.read_text()) | changes
    if resign:
        values["sha256"] = bundles._digest(values)
    path.write_text(json.dumps(values))


# ---- round trip ------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read_back(run, bundle):
    for folder in (run, _package(run)):
        assert _same(read_bundle(folder), bundle)
    assert sorted(path.name for path in run.iterdir()) == ["package.json", "packages"]
    assert sorted(path.name for path in _package(run).iterdir()) == ["bundle.json", "weights.safetensors"]


def test_the_classifier_read_back_gives_the_same_logits(run):
    backbone = zoo.load_backbone("random:resnet10t", seed=0)
    classifier = Classifier.over(backbone, classes=len(CLASSES))
    classifier.load_state_dict(dict(_bundle().state))
    images = torch.rand(2, 3, 64, 64)
    again = read_bundle(run).classifier()
    assert not again.training
    with torch.no_grad():
        assert torch.equal(again(images), classifier.eval()(images))


def test_a_package_copied_away_alone_can_be_used(run, tmp_path, bundle):
    shutil.copytree(_package(run), tmp_path / "elsewhere")
    assert _same(read_bundle(tmp_path / "elsewhere"), bundle)


def test_tensors_in_any_memory_layout_are_written(tmp_path, bundle):
    state = {
        name: tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for name, tensor in bundle.state.items()
    }
    state["head.weight"] = state["head.weight"].t().contiguous().t()
    write_bundle(tmp_path, replace(bundle, state=state))
    assert _same(read_bundle(tmp_path), bundle)


def test_nothing_but_plain_ascii_json_is_written(run):
    text = (_package(run) / "bundle.json").read_bytes()
    assert text.isascii() and b"\x1b" not in text
    assert json.loads(text)["members"].keys() == {"weights.safetensors"}


# ---- old or new, never torn ------------------------------------------------------------------------------------------


def test_a_second_package_replaces_the_first_and_the_first_is_removed(run, second):
    assert write_bundle(run, second) == run / "packages" / "0002"
    assert _same(read_bundle(run), second)
    assert [path.name for path in (run / "packages").iterdir()] == ["0002"]


@pytest.mark.parametrize("number", range(14))
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_any_call_leaves_the_old_package(run, bundle, second, monkeypatch, number, code):
    calls = 0

    def failing(real):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == number + 1:
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for module, name in [(os, "fsync"), (os, "rename"), (os, "replace"), (Path, "mkdir"), (os, "open")]:
            patch.setattr(module, name, failing(getattr(module, name)))
        try:
            write_bundle(run, second)
            failed = False
        except RunError as error:
            failed = True
            assert os.strerror(code) in str(error) and "--out" in str(error)
    assert failed == (number < 13)  # the last call is the removal of the old one: no harm when it fails
    found = read_bundle(run)
    assert _same(found, bundle) or _same(found, second)
    if not failed:
        assert _same(found, second)
    assert not [path for path in run.rglob("*") if path.name.endswith(".tmp")]
    write_bundle(run, second)  # and the next attempt works
    assert _same(read_bundle(run), second)


def test_a_process_killed_between_any_two_steps_leaves_a_readable_package(run, bundle, second, monkeypatch):
    """A kill leaves what was done so far, with no tidying: like the exception nobody catches."""

    class Killed(BaseException):
        pass

    for number in range(20):
        calls = 0

        def step(real, number=number):
            def call(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls == number + 1:
                    raise Killed
                return real(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in ("fsync", "rename", "replace"):
                patch.setattr(os, name, step(getattr(os, name)))
            try:
                write_bundle(run, second)
                break
            except Killed:
                pass
        assert any(_same(read_bundle(run), either) for either in (bundle, second))
    else:
        pytest.fail("never finished")
    assert _same(read_bundle(run), second)
    assert len(list((run / "packages").iterdir())) == 1


def test_an_unsound_bundle_is_not_written(run, bundle):
    broken = dict(bundle.state) | {"head.bias": torch.full((4,), float("nan"))}
    for wrong, sentence in [
        (replace(bundle, classes=("a", "a", "b", "c")), "'a' is named twice"),
        (replace(bundle, classes=("a", "", "b", "c")), "not all names"),
        (replace(bundle, classes=("a", "b")), r"head\.weight is \[4, 512\], expected \[2, 512\]"),
        (replace(bundle, temperature=0.0), "temperature"),
        (replace(bundle, facts={"x": float("nan")}), "facts"),
        (replace(bundle, facts={"x": Path("y")}), "facts"),
        (replace(bundle, state=broken), "NaN"),
        (replace(bundle, architecture={"library": "timm", "name": "os", "kwargs": {}}), "no architecture 'os'"),
    ]:
        with pytest.raises(RunError, match=sentence):
            write_bundle(run, wrong)
    assert _same(read_bundle(run), bundle)


# ---- damaged and hostile packages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [8, 100, -1, -1000, 0.5])
def test_a_changed_byte_in_the_weights_is_noticed(run, place):
    path = _package(run) / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[int(place * len(data)) if isinstance(place, float) else place] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(BadWeights, match=r"the content changed|header length|not a safetensors"):
        read_bundle(run)


def test_every_changed_byte_in_the_description_is_noticed(run, bundle):
    path = _package(run) / "bundle.json"
    data = path.read_bytes()
    for place in range(0, len(data), 29):
        changed = bytearray(data)
        changed[place] ^= 0x01
        path.write_bytes(changed)
        with contextlib.suppress(NotARun, BadWeights):
            assert _same(read_bundle(run), bundle)  # white space may change


def test_a_pickle_in_place_of_the_weights_is_never_opened(run, tmp_path):
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (canary,))

    data = pickle.dumps(Evil())
    (_package(run) / "weights.safetensors").write_bytes(data)
    _rewrite(run, members={"weights.safetensors": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}})
    with pytest.raises(BadWeights, match="pickle"):
        read_bundle(run)
    assert not canary.exists()


def test_a_huge_header_is_refused_without_its_memory(run):
    data = (2**40).to_bytes(8, "little") + b"{}" + b" " * 100
    (_package(run) / "weights.safetensors").write_bytes(data)
    _rewrite(run, members={"weights.safetensors": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}})
    with pytest.raises(BadWeights, match="header length"):
        read_bundle(run)


@pytest.mark.parametrize("name", ["weights.safetensors", "bundle.json"])
def test_a_missing_member_is_named(run, name):
    (_package(run) / name).unlink()
    with pytest.raises(NotARun, match=name):
        read_bundle(run)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": "zip"}, "format"),
        ({"version": 2}, "version 2"),
        ({"version": True}, "kind|version"),
        ({"members": {"../../etc/passwd": {"bytes": 1, "sha256": "0" * 64}}}, "expected only 'weights.safetensors'"),
        ({"members": {}}, "members"),
        ({"members": {"weights.safetensors": {"bytes": True, "sha256": "x"}}}, "size and SHA-256"),
        ({"classes": ["a", "a", "b", "c"]}, "named twice"),
        ({"classes": ["a", "", "b", "c"]}, "not all names"),
        ({"classes": ["a", 1, "b", "c"]}, "not all names"),
        ({"classes": ["a"]}, "expected"),
        ({"classes": "abcd"}, "kind"),
        ({"architecture": {"library": "timm", "name": "hf-hub:evil/model", "kwargs": {}}}, "no architecture"),
        ({"architecture": {"library": "os", "name": "system", "kwargs": {}}}, "library"),
        ({"architecture": {"library": "timm", "name": "resnet10t", "kwargs": {"checkpoint_path": "x"}}}, "options"),
        ({"head": {"kind": "pickle", "width": 512}}, "head of kind"),
        ({"head": {"kind": "linear", "width": 10**9}}, "with a width of 1 to"),
        ({"preprocess": {"size": 224}}, "Preprocess"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": True}, "kind"),
        ({"extra": 1}, "unknown: extra"),
    ],
)
def test_a_description_that_is_not_as_it_must_be_is_refused(run, changes, sentence):
    _rewrite(run, **changes)
    with pytest.raises((NotARun, BadWeights), match=sentence):
        read_bundle(run)


def test_preprocessing_that_cannot_be_is_refused(run):
    values = json.loads((_package(run) / "bundle.json").read_text())["preprocess"]
    changes = [
        {"size": 10**9},
        {"size": True},
        {"size": "9" * 4000},
        {"std": [0, 0, 0]},
        {"std": [[]]},
        {"mean": "abc"},
        {"mean": [0.5, 0.5, "x"]},
        {"interpolation": {}},
        {"crop": "x"},
        {"crop": True},
        {"crop": None},
        {"mean": 0.5},
        {"std": None},
        {"std": [0.1, True, 0.1]},
    ]
    for change in changes:
        _rewrite(run, preprocess=values | change)
        with pytest.raises(NotARun, match=r"bundle\.json: Preprocess: .* expected |three numbers") as problem:
            read_bundle(run)
        assert not _OF_PYTHON.search(str(problem.value))


def test_a_hash_that_is_none_is_escaped_where_it_is_told(run):
    _rewrite(
        run,
        members={
            "weights.safetensors": {
                "bytes": (_package(run) / "weights.safetensors").stat().st_size,
                "sha256": "\x1b[31m",
            }
        },
    )
    with pytest.raises(BadWeights, match=r"expected \\x1b\[31m…"):
        read_bundle(run)


@pytest.mark.parametrize("text", ["", "[]", '{"format": NaN}', '{"a":1,"a":2}', "{" * 50_000, "\x80"])
def test_json_that_is_not_plain_is_refused(run, text):
    (_package(run) / "bundle.json").write_text(text, encoding="latin-1")
    with pytest.raises(NotARun, match=r"bundle\.json"):
        read_bundle(run)


@pytest.mark.parametrize(
    "current",
    ["../elsewhere", "/etc", "packages/../../x", "packages/0001/..", "packages/0001\n", 1, None, "packages/9999"],
)
def test_a_pointer_leads_nowhere_but_to_a_package(run, current):
    (run / "package.json").write_text(json.dumps({"current": current}))
    with pytest.raises(NotARun, match=r"expected|missing"):
        read_bundle(run)
    (run / "package.json").write_text(" " * 10_000)
    with pytest.raises(NotARun, match="larger than"):
        read_bundle(run)


def test_weights_of_another_network_are_refused_with_examples(run):
    _rewrite(run, architecture={"library": "timm", "name": "resnet18", "kwargs": {}})
    with pytest.raises(BadWeights, match=r"do not fit resnet18: \d+ missing"):
        read_bundle(run).classifier()


def test_a_folder_that_is_no_run_says_so(tmp_path):
    with pytest.raises(NotARun, match="no such folder"):
        read_bundle(tmp_path / "none")
    with pytest.raises(NotARun, match="holds no package"):
        read_bundle(tmp_path)
