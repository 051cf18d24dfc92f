"""How many test images are looked at is for the clock alone to say; what is shown of them keeps to it as well."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from burnish import api, imports, uncompiled
from burnish.backbones.changing.anatomy import macs_of
from burnish.backbones.zoo import load_backbone
from burnish.choose import answers, mirroring, proof, survey
from burnish.choose.ledger import Ledger
from burnish.choose.mirroring import told_of_mirroring
from burnish.choose.part import with_more
from burnish.choose.survey import images_per_second
from burnish.data.sample import Part, in_turn, is_late
from burnish.data.sources import open_source
from burnish.errors import RunError
from burnish.measure.cost import latency
from burnish.record.cases import Case, first_of_each
from burnish.run import insights, job
from burnish.runtime import Clock, Nobody
from conftest import write_shapes

TINY = {"model": "random:test_resnet", "method": "probe", "image_size": 64, "seed": 0}


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """120 images of each of three classes, the half of them for the test."""
    root = tmp_path_factory.mktemp("data") / "many"
    write_shapes(root, images=120)
    rows = [[str(path.relative_to(root)), path.parent.name, "train" if int(path.stem) < 60 else "test"]
            for path in sorted(root.rglob("*.png"))]  # fmt: skip
    with open(root / "many.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "split"], *rows])
    return root / "many.csv"


class Told:
    """A clock that is told how late it is, and grows by a second with each look at a part of the test images."""

    def __init__(self, budget_seconds, elapsed=0.0):
        self.budget_seconds, self.now = budget_seconds, elapsed

    def elapsed(self):
        return self.now

    def left(self):
        return self.budget_seconds - self.now


@pytest.fixture(scope="module")
def proven(many, tmp_path_factory):
    """put_to_test as a run of `many` calls it, to be called again with another clock; and the run."""
    asked = {}
    real = proof.put_to_test

    def noted(contenders, material, bench, **options):
        asked.update(contenders=contenders, material=material, bench=bench)
        return real(contenders, material, bench, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(job, "put_to_test", noted)
        run = api.fit(many, out=tmp_path_factory.mktemp("runs") / "proven", budget=None, **TINY)

    def again(clock, *, due=None, **options):
        material = asked["material"] if due is None else replace(asked["material"], due=due)
        bench = replace(asked["bench"], clock=clock)
        contenders = [replace(one, answers=None) for one in asked["contenders"]]
        return real(contenders, material, bench, by_clock=True, **options)

    return run, again


def slow(monkeypatch, clock, *, an_image):
    """Answers that take so many seconds an image, by that clock."""
    real = proof.answers_in

    def slower(classifier, preprocess, bench):
        answering = real(classifier, preprocess, bench)

        def answers(images):
            clock.now += an_image * len(images)
            yield from answering(images)

        return answers

    monkeypatch.setattr(proof, "answers_in", slower)


def test_without_a_budget_all_test_images_are_looked_at(proven):
    run, _ = proven
    assert run.facts["counts"]["test"] == 180 and run.facts["counts"]["skipped"] == 0


def test_a_proof_that_is_late_takes_half_of_what_was_planned_at_the_least(proven, monkeypatch):
    _, again = proven
    clock = Told(100.0, elapsed=500.0)
    slow(monkeypatch, clock, an_image=0.01)
    (tested,), material = again(clock)
    assert len(tested.right) == len(material.test.ids) == len(material.test_labels) == len(material.leaky) == 90
    assert material.untested == material.skipped == 90
    assert np.bincount(material.test_labels).tolist() == [30, 30, 30]  # an even part of each class
    (fewer,), _ = again(clock, due=60)
    assert len(fewer.right) == 30


def test_a_proof_ends_with_the_budget_and_takes_more_than_planned_where_it_is_early(proven, monkeypatch):
    _, again = proven
    for elapsed, an_image, due, expected in ((0.0, 0.01, 60, 180), (80.0, 0.2, 60, None), (70.0, 0.2, 180, None)):
        clock = Told(100.0, elapsed=elapsed)
        slow(monkeypatch, clock, an_image=an_image)
        (tested,), _ = again(clock, due=due)
        if expected is not None:
            assert len(tested.right) == expected
        else:
            assert due / 2 < len(tested.right) < 180 and 80.0 < clock.now <= 103.0
        monkeypatch.undo()


def test_which_images_are_looked_at_does_not_depend_on_their_answers(proven, monkeypatch):
    """P5: the same rows whatever the model says, and what it says of each is what it says of it among all."""
    _, again = proven
    (whole,), everything = again(Told(1e9))
    clock = Told(100.0, elapsed=500.0)
    slow(monkeypatch, clock, an_image=0.01)
    (part,), some = again(clock)
    rows = np.searchsorted(everything.test.ids, some.test.ids)
    assert (everything.test.ids[rows] == some.test.ids).all() and (np.diff(some.test.ids) > 0).all()
    np.testing.assert_allclose(part.probabilities, whole.probabilities[rows], rtol=1e-6, atol=1e-9)
    assert (part.right == whole.right[rows]).all()
    monkeypatch.setattr(proof, "right", lambda *args: np.zeros(len(args[0]), bool))
    _, wrong = again(clock)
    assert (wrong.test.ids == some.test.ids).all()


def test_a_proof_of_a_known_number_of_images_takes_those_that_come_first(proven, monkeypatch):
    _, again = proven
    clock = Told(100.0, elapsed=500.0)
    slow(monkeypatch, clock, an_image=0.01)
    (late,), some = again(clock)
    (known,), same = again(Told(1e9), known=90)
    assert (same.test.ids == some.test.ids).all() and (known.right == late.right).all()
    assert len(again(Told(1e9), known=1000)[1].test.ids) == 180


def late_at_the_proof(monkeypatch, seconds=1e4):
    """The clock jumps when the proof begins."""
    real = proof._parts

    def parts(*args, **options):
        monkeypatch.setattr(Clock, "elapsed", lambda self: time.monotonic() - self.started + seconds)
        return real(*args, **options)

    monkeypatch.setattr(proof, "_parts", parts)


def test_a_late_run_says_how_many_it_looked_at(many, monkeypatch, tmp_path):
    with monkeypatch.context() as patched:
        late_at_the_proof(patched)
        run = api.fit(many, out=tmp_path / "run", budget=300, **TINY)
    counts = run.facts["counts"]
    assert counts["test"] == 90 and counts["skipped"] == 90 and counts["used"] == counts["scanned"] == 270
    assert run.facts["scores"]["probe"]["accuracy"]["n"] == 90
    told = next(one for one in run.facts["decisions"] if one["what"] == "a part of the images")
    assert told["numbers"] == {"used": 270, "skipped": 90}
    assert told["why"].endswith("; the clock ended the proof at 90 of 180 test images")
    with open(run.folder / "predictions.csv", newline="") as file:
        answered = {row["path"] for row in csv.DictReader(file)}
    with open(run.folder / "splits.csv", newline="") as file:
        sides = {row["path"]: row["split"] for row in csv.DictReader(file)}
    assert answered == {path for path, side in sides.items() if side == "test"} and len(sides) == 270
    assert "90 more were left out" in (run.folder / "report.html").read_text()


def test_a_run_that_dies_after_a_late_proof_has_the_same_proof_again(many, monkeypatch, tmp_path):
    class Died(Exception):
        pass

    def die(*args, **options):
        raise Died

    with monkeypatch.context() as patched:
        late_at_the_proof(patched)
        patched.setattr(job, "facts_of", die)
        with pytest.raises(Died):
            api.fit(many, out=tmp_path / "run", budget=300, **TINY)
    again = api.fit(many, out=tmp_path / "run", budget=300, **TINY)
    assert again.facts["sittings"] == 2 and again.facts["counts"]["test"] == 90


def test_every_beginning_of_the_turn_is_even(many):
    catalog = open_source(many)
    entries = np.arange(len(catalog))[::2]
    turn = in_turn(catalog, entries, seed=3)
    assert sorted(turn) == list(range(len(entries)))
    for count in (3, 30, 100):
        of_each = np.bincount(catalog.labels[entries[turn[:count]]], minlength=3)
        assert of_each.max() - of_each.min() <= 1
    assert (in_turn(catalog, entries, seed=3) == turn).all() and (in_turn(catalog, entries, seed=4) != turn).any()


def test_every_image_of_a_rare_class_may_come_first(tmp_path):
    """A class of one is among the first half as often as not, and a common one has its half there."""
    named = ["common"] * 200 + [f"rare{number}" for number in range(100) for _ in range(3)]
    rows = [f"{number}.png,{name}" for number, name in enumerate(named)]
    for row in rows:
        (tmp_path / row.partition(",")[0]).write_bytes(b"")
    (tmp_path / "rare.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    catalog = open_source(tmp_path / "rare.csv")
    common = catalog.labels == catalog.classes.index("common")
    _, first_of_class = np.unique(catalog.labels, return_index=True)
    entries = np.union1d(np.flatnonzero(common), first_of_class)
    assert len(entries) == 300
    for seed in range(3):
        first = catalog.labels[entries[in_turn(catalog, entries, seed=seed)[:150]]]
        assert 35 <= (first != catalog.classes.index("common")).sum() <= 65, "of 100 classes of one"


def test_further_seeds_are_asked_about_the_same_test_images(many, monkeypatch, tmp_path):
    with monkeypatch.context() as patched:
        patched.setattr(proof, "_in_time", lambda *rest: False)
        run = api.fit(many, out=tmp_path / "run", budget=300, seeds=3, **TINY)
    assert run.facts["counts"]["test"] < 180
    sides = [(run.folder / "splits.csv").read_text()]
    for other in sorted((run.folder / "seeds").iterdir()):
        sides.append((other / "splits.csv").read_text())
        facts = json.loads((other / "result.json").read_text())
        assert facts["counts"]["test"] == run.facts["counts"]["test"]
    assert len(sides) == 3 and len(set(sides)) == 1


def test_beside_other_threads_the_libraries_are_imported_as_usual():
    code = """
import sys, threading, burnish.imports as imports
done = threading.Event()
thread = threading.Thread(target=done.wait, daemon=True)
thread.start()
imports.load_libraries()
done.set()
assert "torch._dynamo" in sys.modules
"""
    python(code)


@pytest.mark.parametrize(
    ("test", "decoding", "budget", "more"),
    [(1000, 0.001, 1e6, 100), (150, 0.001, 1e6, 50), (1000, 0.1, 100.0, 20), (100, 0.001, 1e6, 0)],
)
def test_as_many_test_images_again_as_decoding_allows(test, decoding, budget, more):
    assert with_more(Part(50, 100), test, decoding, budget_seconds=budget) == Part(50, 100, more)


@pytest.mark.parametrize(("part", "late"), [(Part(707, 303), False), (Part(706, 303), True), (Part(707, 30), False)])
def test_where_few_images_a_class_take_longer_than_there_is_none_are_decoded_for_spare_time(part, late):
    """Of 101 classes: 5 to train on, 2 to validate on."""
    assert is_late(part, 101) == late


def test_pictures_are_as_many_as_there_is_time_for():
    cases = [Case(row, "mistake" if row < 24 else "unsure", 0) for row in range(36)]
    assert first_of_each(cases, most=36) == first_of_each(cases, most=99) == cases
    kept = first_of_each(cases, most=12)
    assert [case.row for case in kept] == [*range(8), *range(24, 28)]
    assert [case.row for case in first_of_each(cases, most=1)] == [0]
    assert [case.row for case in first_of_each(cases[24:], most=5)] == [*range(24, 29)]


@pytest.mark.parametrize(("left", "pictures"), [(1.0, 0), (1.51, 1), (3.0, 3), (1e3, None)])
def test_a_report_in_little_time_shows_fewer_pictures(many, monkeypatch, tmp_path, left, pictures):
    real = insights.pictures_of

    def late(tested, material, bench, sample, *, images_per_second):
        clock = Told(1000.0, elapsed=1000.0 - left)
        return real(tested, material, replace(bench, clock=clock), sample, images_per_second=12.0)

    monkeypatch.setattr(job, "pictures_of", late)
    run = api.fit(many, out=tmp_path / "run", budget=None, **TINY)
    found = json.loads((run.folder / "pictures.json").read_text())
    shown = [case for case in found.get("cases", []) if "thumbnail" in case]
    if pictures is None:
        assert len(shown) >= 12
    else:
        assert len(shown) == pictures and (len(found["cases"]) >= 12 if pictures else found["late"])
    for lang, words in (("en", "left no time for pictures of "), ("zh", "未生成图片；burnish explain")):
        page = api.report(run.folder, lang=lang).read_text()
        assert (words in page) == (found.get("without", 0) > 0)


@pytest.mark.parametrize(
    ("ticks", "budget", "rate"),
    [([0.0, 1.0, 1.0, 5.0, 5.0, 7.0], None, 8 / 2.0), ([0.0, 2.0, 2.0, 3.0], 125.0, 8 / 1.0)],
)
def test_the_rate_is_the_one_in_the_middle(monkeypatch, ticks, budget, rate):
    ticks = iter(ticks)
    monkeypatch.setattr(survey.time, "monotonic", lambda: next(ticks))
    monkeypatch.setattr(survey, "outputs", lambda *args, **options: None)
    backbone = load_backbone("random:test_resnet")
    bench = survey.Bench(None, backbone, torch.device("cpu"), Clock(0.0, budget), None)
    assert images_per_second(backbone.module, np.zeros((8, 64, 64, 3), np.uint8), bench, half=False) == rate


def test_the_fast_form_of_the_kept_model_is_made_once(many, monkeypatch, tmp_path):
    """For what is familiar, the proof and the nearest images; what it costs is measured on the bare classifier."""
    made = []
    real = answers.fold_for_inference

    def counted(module, *args, **options):
        made.append(type(module).__name__)
        return real(module, *args, **options)

    monkeypatch.setattr(answers, "fold_for_inference", counted)
    run = api.fit(many, out=tmp_path / "run", budget=None, **TINY)
    assert made == ["Both"] and run.facts["familiarity"] is not None
    assert json.loads((run.folder / "pictures.json").read_text())["looked_among"] > 0


def test_a_noted_number_counts_for_the_same_images_of_a_run_that_goes_on(tmp_path, monkeypatch):
    def ledger(resumed=True):
        found = Ledger(tmp_path, Clock(0.0, None), Nobody())
        found.resumed = resumed
        return found

    assert ledger().noted("tested", of="a") is None
    ledger().note("tested", 90, of="a")
    assert ledger().noted("tested", of="a") == 90
    assert ledger().noted("tested", of="b") is None and ledger(resumed=False).noted("tested", of="a") is None
    for damaged in ("", "[" * 100_000, "90", '{"count": true, "of": "a"}', '{"count": -1, "of": "a"}', '{"of": "a"}'):
        (tmp_path / "state" / "tested.json").write_text(damaged)
        assert ledger().noted("tested", of="a") is None
    monkeypatch.setattr("burnish.choose.ledger.write_whole", refused)
    ledger().note("tested", 80, of="a")  # a disk that refuses ends no run


def refused(*args):
    raise RunError("no space left")


def test_few_are_asked_about_mirroring_where_time_is_short():
    assert [mirroring.mirrored_at_most(50.0, budget) for budget in (None, 30.0, 120.0, 1e4)] == [500, 64, 120, 500]


def test_a_single_image_does_not_forbid_mirroring_and_what_is_said_is_so():
    plain, lost = np.ones(80, bool), np.arange(80)
    assert told_of_mirroring(plain, plain, None)[1].startswith("mirroring keeps the label: ")
    told = told_of_mirroring(plain, lost >= 1, None)
    assert told[0] and told[1].startswith(
        "mirroring is not shown to change the label: the probe is right on 98.8% of mirrored"
    )
    told = told_of_mirroring(plain, lost >= 8, None)
    assert not told[0] and told[1].startswith("mirroring changes the label: ")


def test_one_film_does_not_forbid_mirroring_but_signs_of_a_few_writers_do():
    plain, image = np.ones(80, bool), np.arange(80)
    assert told_of_mirroring(plain, image >= 4, image // 4)[0], "one of 20 films"
    assert not told_of_mirroring(plain, image % 20 >= 8, image // 20)[0], "two of five signs of each of four writers"


# ---- the start without torch's compiler ------------------------------------------------------------------------------


def python(code, *words):
    return subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True).stdout


def test_runs_and_their_reports_do_not_load_the_compiler(shapes, tmp_path):
    """Two to three seconds of each start, of each first model, of each training, and of each answer."""
    code = """
import sys
from burnish import api
for model, method in (("test_resnet", "probe"), ("test_resnet", "full"), ("test_vit", "lora"), ("test_vit", "full")):
    run = api.fit(
        sys.argv[1], out=f"{sys.argv[2]}/{model}-{method}", model=f"random:{model}", method=method, image_size=64, budget=None,
        epochs=1,
    )
    api.predict(run.folder, [])
    assert {"torch", "timm", "torchvision"} <= set(sys.modules)
    assert "torch._dynamo" not in sys.modules, (model, method)
    assert run.facts["cost"]["macs"] > 0
"""
    python(code, str(shapes), str(tmp_path))


def test_optimisers_without_marks_for_the_compiler_take_the_very_steps_of_torchs():
    given = [torch.randn(5, 3, generator=torch.Generator().manual_seed(at)) for at in range(4)]

    def trained(kind, **options):
        weight, bias = given[0].clone().requires_grad_(), given[1].clone().requires_grad_()
        optimiser = kind([{"params": [weight]}, {"params": [bias], "weight_decay": 0.3}], lr=0.01, **options)
        for number in range(4):
            optimiser.zero_grad(set_to_none=True)
            ((weight * given[2] + bias) ** 2).sum().backward()
            optimiser.step()
            if number == 1:  # saved, and taken up
                state = optimiser.state_dict()
                optimiser = kind([{"params": [weight]}, {"params": [bias], "weight_decay": 0.3}], lr=0.01, **options)
                optimiser.load_state_dict(state)
        return weight, bias

    for fused in (False, True):
        ours, theirs = (trained(kind, fused=fused) for kind in (uncompiled.AdamW, torch.optim.AdamW))
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
        assert all(one.requires_grad and not torch.equal(one, at) for one, at in zip(ours, given, strict=False))
    assert torch.is_grad_enabled()


def test_a_hook_that_a_user_puts_on_all_optimisers_sees_ours():
    seen = []
    from torch.optim.optimizer import register_optimizer_step_post_hook

    handle = register_optimizer_step_post_hook(lambda optimiser, args, kwargs: seen.append(type(optimiser)))
    try:
        weight = torch.ones(2, requires_grad=True)
        optimiser = uncompiled.AdamW([weight], lr=0.1)
        weight.sum().backward()
        optimiser.step()
    finally:
        handle.remove()
    assert seen == [uncompiled.AdamW]


def test_what_stood_in_for_the_compiler_loads_it_when_called():
    code = """
import sys, torch
from burnish import api
api
import torchvision.ops, timm
ops = sys.modules["torchvision.ops.roi_align"]
assert "torch._dynamo" not in sys.modules
assert ops.is_compile_supported("cpu") in (True, False)
from burnish.imports import _disable
assert _disable(lambda x: x + 1)(1) == 2 and _disable(None, True, reason=None)(lambda x: x + 1)(1) == 2
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)).tolist() == [2.0, 2.0]
assert torch._dynamo.utils.is_compile_supported is not ops.is_compile_supported
"""
    python(code)


def test_a_library_that_asks_more_of_the_compiler_is_imported_as_usual():
    code = """
import sys, burnish.imports as imports
real = imports._stand_in
import contextlib
@contextlib.contextmanager
def poorer():
    with real():
        del sys.modules["torch._dynamo.utils"].is_compile_supported
        yield
imports._stand_in = poorer
imports.load_libraries()
import torchvision, timm, torch
assert "torch._dynamo" in sys.modules and torch._dynamo.utils.is_compile_supported("cpu") in (True, False)
assert torchvision.ops.roi_align(torch.rand(1, 3, 8, 8), [torch.tensor([[0.0, 0, 4, 4]])], 2).shape == (1, 3, 2, 2)
"""
    python(code)


def test_libraries_that_are_there_are_left_alone():
    imports.load_libraries()
    before = {name: module for name, module in sys.modules.items() if name.startswith(("timm", "torchvision"))}
    imports.load_libraries()
    assert all(sys.modules[name] is module for name, module in before.items())


@pytest.mark.parametrize("name", ["resnet18", "test_vit", "test_efficientnet", "test_convnext", "densenet121"])
def test_multiply_adds_are_those_of_torchs_own_counter(name):
    import copy

    from torch.utils.flop_counter import FlopCounterMode

    backbone = load_backbone(f"random:{name}")
    size = backbone.preprocess.size
    example = torch.zeros(1, 3, size, size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(backbone.module).to("meta")(example.to("meta"))
    assert macs_of(backbone.module, example) == counter.get_total_flops() // 2 > 0


def test_speed_is_not_measured_where_a_network_is_too_slow_for_what_is_left():
    calls = []
    assert latency(lambda: (calls.append(1), time.sleep(0.02)), left=0.1) is None and len(calls) == 1
    found = latency(lambda: calls.append(1), seconds=0.0, left=5.0)
    assert found is not None and found.runs == 5 and len(calls) == 8


def test_a_run_whose_clock_is_nearly_out_leaves_what_takes_longer(shapes, tmp_path, monkeypatch):
    """Of a large network, shuffling its weights and timing it on a processor."""
    monkeypatch.setattr(insights, "_SHUFFLED", 1.0)
    monkeypatch.setattr(insights, "_FOLDING", 1e9)
    run = api.fit(shapes, out=tmp_path / "run", budget=20, cache="off", **TINY)
    pictures = json.loads((run.folder / "pictures.json").read_text())
    assert pictures["sanity"] is None and any(case["heat"] for case in pictures["cases"])
    assert run.facts["cost"]["late"] and "latency" not in run.facts["cost"]
