"""What is left on corrupted and attacked images: the shares, their intervals, how they are told."""

import csv
import io
import json
import re
from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image
from test_report_page import Page
from test_several import coloured

import burnish
from burnish import api, cli
from burnish.data.corruptions import CORRUPTIONS, SEVERITIES
from burnish.data.handling import HANDLINGS, STATES
from burnish.data.pixels import decode, view
from burnish.errors import NoSuchName, NotEnoughData, RecipeError
from burnish.labels import probabilities as softmaxed
from burnish.measure import attack
from burnish.measure.calibration import ece, gaps_of_bins
from burnish.measure.intervals import Interval, wilson
from burnish.measure.robustness import Subjects, Told, state_of
from burnish.measure.several import score_several
from burnish.measure.withstood import Controls, Corrupted, Robustness
from burnish.reports.chinese import CHINESE
from burnish.reports.chinese_robust import ROBUST
from burnish.reports.robust import control_sentence, csv_of, lines, page_of
from burnish.use import stressing
from images import write_images

QUICK = {"model": "random:test_resnet", "method": "probe", "budget": None, "image_size": 64, "seed": 0}


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    return burnish.fit(shapes, out=tmp_path_factory.mktemp("runs") / "shapes", cache="off", **QUICK)


@pytest.fixture(scope="module")
def found(run, shapes):
    return burnish.robustness(run.folder, shapes, attacked=True, epsilons=[0.5, 8], most=12, seed=3)


def corrupted(told: Robustness) -> Corrupted:
    """What was found on corrupted images, as was asked."""
    assert told.corrupted is not None
    return told.corrupted


def chances(n=200, k=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    logits = rng.standard_normal((n, k))
    logits[np.arange(n), labels] += 1.5
    return softmaxed(logits, several=False), labels


def test_what_a_model_withstood_is_shown_in_a_line(found):
    assert len(repr(found)) < 250 and "undamaged" in repr(found) and "attacked within 8 of 255" in repr(found)


# ---- measure ---------------------------------------------------------------------------------------------------------


def test_the_calibration_error_is_that_of_calibration_and_so_are_its_parts():
    rows, labels = chances()
    assert np.abs(gaps_of_bins(rows, labels).mean(0)).sum() == pytest.approx(ece(rows, labels), abs=1e-12)
    truth = np.random.default_rng(1).random((50, 3)) < 0.4
    several = np.random.default_rng(2).random((50, 3))
    assert np.abs(gaps_of_bins(several, truth).mean(0)).sum() == pytest.approx(ece(several, truth), abs=1e-12)
    state = state_of([Told.of(rows, labels)], Subjects(labels, None))
    assert state.ece.value == pytest.approx(ece(rows, labels), abs=1e-6)
    assert state.ece.low < state.ece.value < state.ece.high and state.ece.n == 200


def test_one_state_has_the_exact_interval_and_is_paired_image_by_image():
    rows, labels = chances()
    worse, _ = chances(seed=0)
    worse[:40] = np.roll(worse[:40], 1, axis=1)
    clean, after = Told.of(rows, labels), Told.of(worse, labels)
    state = state_of([after], Subjects(labels, None), clean=clean)
    hits = worse.argmax(1) == labels
    assert state.score == wilson(int(hits.sum()), 200)
    assert state.drop is not None and state.drop.n == 200
    assert state.drop.only_first == ((rows.argmax(1) == labels) & ~hits).sum()
    assert state.drop.difference == pytest.approx(hits.mean() - clean.right.mean())


def test_a_mean_over_states_is_of_as_many_images_as_one_of_them():
    """Eighty states of 200 images are no 16,000 images: alike in all states, they are as sure as one."""
    rows, labels = chances()
    one = Told.of(rows, labels)
    single, many = (state_of([one] * times, Subjects(labels, None), clean=one) for times in (1, 80))
    assert many.score.value == pytest.approx(single.score.value)
    wide = [state.score.high - state.score.low for state in (single, many)]
    assert wide[1] == pytest.approx(wide[0], rel=0.1)
    assert many.drop is not None and many.drop.difference == 0.0 and many.drop.p == 1.0


def test_groups_make_intervals_wider():
    rows, labels = chances()
    groups = np.arange(200) // 20
    rows[:100] = np.roll(rows[:100], 1, axis=1)
    alone, together = (state_of([Told.of(rows, labels)], Subjects(labels, one)) for one in (None, groups))
    assert together.score.high - together.score.low > 1.5 * (alone.score.high - alone.score.low)


def test_with_several_classes_the_score_is_the_mean_average_precision():
    rng = np.random.default_rng(0)
    truth = rng.random((80, 3)) < 0.4
    rows = np.clip(0.5 * truth + rng.random((80, 3)) * 0.5, 0, 1)
    worse = rng.random((80, 3))
    clean = Told.of(rows, truth)
    state = state_of([Told.of(worse, truth)], Subjects(truth, None), clean=clean)
    expected = score_several(worse, truth, ["a", "b", "c"]).mean_average_precision
    assert state.score.value == pytest.approx(expected.value, abs=1e-6)
    assert state.drop is not None and state.drop.high < 0


def test_what_is_declined_is_what_is_unsure_or_strange():
    rows, labels = chances()
    strange = np.arange(200) % 2 == 0
    state = state_of([Told.of(rows, labels, strange)], Subjects(labels, None), threshold=0.6)
    answered = (rows.max(1) >= 0.6) & ~strange
    assert state.unfamiliar == wilson(100, 200) and state.answered == wilson(int(answered.sum()), 200)
    right = (rows.argmax(1) == labels) & answered
    assert state.right_of_answered == wilson(int(right.sum()), int(answered.sum()))
    none = state_of([Told.of(rows, labels, strange)] * 2, Subjects(labels, None), threshold=1.1)
    assert none.right_of_answered is not None and none.right_of_answered.n == 0


@pytest.mark.parametrize(
    ("flat", "far", "by_less", "passed"),
    [
        (0, (0, 20), 0, True),
        (30, (0, 20), 0, False),
        (0, (10, 20), 0, False),
        (0, (0, 20), 20, False),
        (0, (3, 3), 0, False),
    ],
)
def test_an_attack_that_gradients_do_not_lead_says_so(flat, far, by_less, passed):
    controls = Controls(wilson(flat, 100), wilson(*far), by_less)
    assert controls.passed is passed
    assert control_sentence(controls).startswith(
        "Controls of the attack passed" if passed else "Careful, gradients may be"
    )
    assert f"{flat} of 100 images have no slope, {far[0]} of {far[1]} withstand 32/255" in control_sentence(controls)


class Trembling(torch.nn.Module):
    """A network that sees each image through noise which is drawn in each call."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images + 0.05 * torch.randn_like(images))


def test_a_network_that_draws_noise_in_each_call_does_not_pass_the_controls(run, shapes, monkeypatch):
    monkeypatch.setattr(stressing, "Target", lambda network, *given: attack.Target(Trembling(network), *given))
    part = burnish.robustness(run.folder, shapes, corrupted=False, attacked=True, epsilons=[32], most=2).attacked
    assert part.controls.wavering == 2 and not part.controls.passed
    assert "2 of 2 are answered otherwise when asked again (slopes are means of 8)" in control_sentence(part.controls)
    assert part.controls.to_json()["wavering"] == 2


# ---- a run -----------------------------------------------------------------------------------------------------------


def test_every_corruption_has_its_share_of_the_same_images_as_predict_gives_it(run, shapes, found):
    assert set(found.corrupted.states) == {(name, severity) for name in CORRUPTIONS for severity in SEVERITIES}
    assert {one.score.n for one in found.corrupted.states.values()} == {12} and found.corrupted.of == 60
    catalog = api.opened(shapes, None)
    images = corrupted(burnish.robustness(run.folder, shapes, most=60, seed=3))
    plain = np.stack([view(decode(catalog.image(row)), run.predictor.bundle.preprocess) for row in range(60)])
    fog = CORRUPTIONS["fog"](plain, catalog.paths, severity=2, seed=3)
    answers = run.predictor.of_pixels(fog)[0].argmax(1)
    truth = [run.classes.index(catalog.label(row)) for row in range(60)]
    assert images.states["fog", 2].score.value == np.mean(answers == truth)
    lowest = min(one.score.value for one in images.states.values())
    assert images.states[images.worst].score.value == lowest
    assert images.mean.score.value == pytest.approx(np.mean([one.score.value for one in images.states.values()]))


def test_what_is_told_of_handled_files_is_what_predict_says_of_such_files(run, shapes, tmp_path):
    """P1: from the file on, through the one decoder."""
    files = burnish.robustness(run.folder, shapes, most=60).files
    assert files is not None and set(files.states) == set(STATES)
    catalog = api.opened(shapes, None)
    for figure, save in ((20, {"quality": 20, "subsampling": "4:2:0"}), (50, {"quality": 50, "subsampling": "4:2:0"})):
        right = []
        for row in range(60):
            Image.open(catalog.image(row)).convert("RGB").save(tmp_path / "again.jpg", "JPEG", **save)
            right.append(api.predict(run.folder, [tmp_path / "again.jpg"])[0].label == catalog.label(row))
        assert files.states["saved_again", figure].score.value == np.mean(right)
    told = json.dumps(burnish.robustness(run.folder, shapes, most=3).to_json()["files"], allow_nan=False)
    assert set(json.loads(told)["kinds"]) == set(HANDLINGS)


def test_views_of_handled_files_are_held_a_few_images_at_a_time(run, shapes, monkeypatch):
    whole = burnish.robustness(run.folder, shapes, most=10).files
    monkeypatch.setattr(stressing, "_MOST_BYTES", 1)
    one = burnish.robustness(run.folder, shapes, most=10).files
    assert one is not None and whole is not None and (one.examples == whole.examples).all()
    assert {key: told.score for key, told in one.states.items()} == {
        key: told.score for key, told in whole.states.items()
    }


def test_a_part_is_an_even_one_and_the_same_call_gives_the_same_numbers(run, shapes, found):
    again = burnish.robustness(run.folder, shapes, attacked=True, epsilons=[8, 0.5, 8], most=12, seed=3)
    told = [json.dumps(one.to_json(), allow_nan=False, sort_keys=True) for one in (found, again)]
    without = [re.sub(r'"seconds": [\d.e-]+', "", one) for one in told]
    assert without[0] == without[1]


def test_time_ends_at_a_batch_where_it_is_not_said_how_many(run, shapes, monkeypatch):
    monkeypatch.setattr(stressing, "SECONDS", 0.0)
    part = corrupted(burnish.robustness(run.folder, shapes))
    assert part.clean.score.n == 16 and part.of == 60
    assert "an even part, 16 of 60 (--most N takes more)" in "\n".join(lines(burnish.robustness(run.folder, shapes)))


def test_the_images_of_an_attack_fool_the_packaged_model_too(run, found):
    row = found.attacked.rows[-1]
    assert (row.epsilon, row.whole) == (8.0, True) and not found.attacked.rows[0].whole
    assert row.apgd.score.value < found.attacked.clean.score.value == found.corrupted.clean.score.value
    assert row.all.score.value <= min(row.noise.score.value, row.fgsm.score.value, row.apgd.score.value)
    clean, struck = found.attacked.example
    assert 0 < np.abs(struck.astype(int) - clean).max() <= 8
    assert found.attacked.controls.far.n == 12 and found.attacked.controls.passed


def test_of_large_squares_too_some_images_are_tried_at_what_none_withstands(run, shapes, monkeypatch):
    """They are attacked one at a time: of the first alone it was asked, which tells nothing."""
    monkeypatch.setattr(attack, "_PIXELS_AT_ONCE", 64 * 64)
    part = burnish.robustness(run.folder, shapes, corrupted=False, attacked=True, epsilons=[8], most=12).attacked
    assert part is not None and part.controls.far is not None and part.controls.far.n == 8


def test_what_is_told_fits_the_terminal_and_the_table_holds_every_state(found):
    assert max(map(len, lines(found))) <= 80
    rows = list(csv.DictReader(io.StringIO(csv_of(found))))
    damaged, files = len(CORRUPTIONS) * (len(SEVERITIES) + 1), len(STATES) + len(HANDLINGS)
    assert len(rows) == 1 + damaged + 1 + files + 1 + 2 * 4
    turned = [row for row in rows if row["kind"] == "file" and row["name"] == "turned"]
    assert [row["figure"] for row in turned] == ["90", "180", "270", "mean"] and not any(
        row["severity"] for row in turned
    )
    fog = next(row for row in rows if (row["name"], row["severity"]) == ("fog", "5"))
    state = found.corrupted.states["fog", 5]
    assert float(fog["score"]) == state.score.value and float(fog["drop_low"]) == state.drop.low
    assert (fog["score_n"], fog["unfamiliar"]) == ("12", "")


def test_the_page_stands_alone_and_shows_every_severity(found):
    page = page_of(found)
    assert page.count("data:image/png;base64,") == 1 + len(CORRUPTIONS) * len(SEVERITIES) + len(STATES) + 3
    assert "The files of the same images, handled otherwise" in page and 'alt="turned, 180"' in page
    assert "<script" not in page and not re.search(r'(?:src|href)="(?!data:)', page)
    assert "fog, severity 3" in page and "what was added" in page and "each value changed by at most 8" in page


def test_the_page_is_told_in_chinese_too(run, shapes, found, tmp_path, capsys):
    page = page_of(found, "zh")
    assert '<html lang="zh-Hans">' in page and "稳健吗？" in page and "玻璃模糊" in page and "重新保存" in page
    words = Page(page).text().rsplit("}", 1)[-1].replace(str(shapes), "")  # without the style
    assert not re.search(r"\b(the|and|images|severity|undamaged|of)\b", words), words[:2000]
    code, _, err = say("evaluate", run.folder, shapes, "--corrupted", "--lang", "zh", capsys=capsys)
    assert code == 2 and "--lang is of the page; say --page FILE with it" in " ".join(err.split())
    with pytest.raises(RecipeError, match="lang is 'de', expected en or zh"):
        burnish.robustness(run.folder, "not looked at", page=tmp_path / "a.html", lang="de")


def test_every_word_of_the_page_is_translated_and_none_else():
    source = files("burnish.reports")
    words = set(re.findall(r'_\("([^"]+)"', (source / "robust.html").read_text(encoding="utf-8")))
    words |= set(re.findall(r'say\(\s*"([^"_]+)"', (source / "robust.py").read_text(encoding="utf-8")))
    for one in (*CORRUPTIONS.values(), *HANDLINGS.values()):
        words |= {one.name.replace("_", " "), one.means}
    assert words - CHINESE.keys() == ROBUST.keys()
    for english, chinese in ROBUST.items():
        found = [set(re.findall(r"%\((\w+)\)s", text)) for text in (english, chinese)]
        assert found[0] == found[1], english


def test_several_classes_an_image_are_corrupted_and_attacked(tmp_path):
    table = coloured(tmp_path / "images", 30)
    several = burnish.fit(table, out=tmp_path / "run", cache="off", **QUICK)
    told = burnish.robustness(several.folder, table, attacked=True, epsilons=[4], most=20)
    assert told.score == "mAP" and 0 < corrupted(told).mean.score.value <= 1
    assert told.attacked is not None and told.attacked.rows[0].apgd.score.value <= told.attacked.clean.score.value
    assert told.attacked.controls.far is None and max(map(len, lines(told))) <= 80
    page_of(told)
    with pytest.raises(RecipeError, match="reject cannot be had: the model tells several classes"):
        burnish.robustness(several.folder, table, reject=0.9)


def test_a_file_that_cannot_be_read_is_named_and_none_is_an_error(run, tmp_path):
    for name in ("red", "blue"):
        (tmp_path / "bad" / name).mkdir(parents=True)
        (tmp_path / "bad" / name / "one.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(NotEnoughData, match="none of its 2 images could be read"):
        burnish.robustness(run.folder, tmp_path / "bad")


# ---- what may be asked -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"corrupted": False}, "nothing is asked: corrupted and attacked are both False"),
        (
            {"attacked": True, "epsilons": [0]},
            "epsilon is 0, expected by how much of 255 each value may change, above 0",
        ),
        ({"attacked": True, "epsilons": [float("nan")]}, "epsilon is nan"),
        ({"attacked": True, "epsilons": []}, "epsilon is empty"),
        ({"most": 0}, "most is 0, expected how many images to ask about, 1 or more"),
        ({"corrupted": False, "attacked": True, "reject": 0.9}, "reject is of corrupted images"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_looked_at(run, asked, says):
    with pytest.raises(RecipeError, match=re.escape(says)):
        burnish.robustness(run.folder, "nowhere", **asked)


@pytest.mark.parametrize(
    ("name", "says"), [("nowhere/a.csv", "has no folder"), (".", "is a folder"), ("-", "name a file")]
)
def test_where_nothing_can_be_written_is_told_before_minutes_of_work(run, name, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind in ("table", "page"):
        with pytest.raises(RecipeError, match=says):
            burnish.robustness(run.folder, "not looked at", **{kind: name})


def test_an_unknown_class_is_told_as_evaluate_tells_it(run, tmp_path):
    write_images(tmp_path / "other", {"purple": 2, "blue": 2})
    with pytest.raises(NoSuchName, match="purple"):
        burnish.robustness(run.folder, tmp_path / "other")


def say(*words, capsys):
    code = 0
    try:
        cli.main([str(word) for word in words])
    except SystemExit as left:
        code = left.code
    told = capsys.readouterr()
    return code, told.out, told.err


def test_evaluate_tells_what_damage_leaves_and_writes_what_it_is_asked_to(run, shapes, tmp_path, capsys):
    table, page = tmp_path / "a.csv", tmp_path / "a.html"
    code, out, err = say("evaluate", run.folder, shapes, "--corrupted", "--attacked", "--epsilon", "4", "--most", "6",
                         "--csv", table, "--page", page, "--quiet", capsys=capsys)  # fmt: skip
    assert code == 0, err
    assert "accuracy on corrupted images: an even part, 6 of 60" in out and "Controls of the attack" in out
    assert max(map(len, out.replace(str(tmp_path), "").splitlines())) <= 80
    assert table.read_text().startswith("kind,name,severity") and page.read_text().startswith("<!doctype html")
    code, out, err = say(
        "evaluate", run.folder, shapes, "--corrupted", "--most", "6", "--json", "--quiet", capsys=capsys
    )
    assert code == 0 and json.loads(out)["robustness"]["corrupted"]["images"] == 6
    assert json.loads(out)["robustness"]["attacked"] is None
    (tmp_path / "notes.csv").write_text("mine")
    code, _, err = say("evaluate", run.folder, shapes, "--corrupted", "--csv", tmp_path / "notes.csv", capsys=capsys)
    assert code == 2 and "is there and is another file" in err and (tmp_path / "notes.csv").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--most", "5"], "--most is of damaged images; say --corrupted or --attacked with it"),
        (["--corrupted", "--epsilon", "2"], "--epsilon is of attacked images; say --attacked with it"),
        (["--attacked", "--reject", "0.9"], "--reject is of corrupted images here; say --corrupted with it"),
        (["--attacked", "--epsilon", "-1"], "epsilon is -1, expected by how much of 255"),
    ],
)
def test_options_that_say_how_need_what(run, shapes, words, says, capsys):
    code, _, err = say("evaluate", run.folder, shapes, *words, capsys=capsys)
    assert code == 2 and says in " ".join(err.split())


def test_an_interval_of_nothing_is_shown_as_none():
    assert Interval(float("nan"), 0.0, 1.0, 0).to_json()["value"] is None
