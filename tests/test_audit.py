"""The audit: what it must find, what it must not, and what `fit` does with it."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter
from PIL.PngImagePlugin import PngInfo

from burnish import api, cli, looking, watching
from burnish.data.audit import twins as twins_module
from burnish.data.audit.classes import class_findings
from burnish.data.audit.findings import in_words
from burnish.data.audit.labels import agreement, label_findings, strangeness, suspects, undoubted
from burnish.data.audit.quarantine import left_out_in_words, quarantined, read_quarantine
from burnish.data.audit.sameness import Sameness, sameness_findings
from burnish.data.audit.twins import Twins, find_twins, without_chains
from burnish.data.cache import read_pixels
from burnish.data.catalog import SPLIT_WORDS
from burnish.data.looks import look_at
from burnish.data.sources import open_source
from burnish.data.sources.assemble import Labelled, assemble
from burnish.data.split import make_splits, untorn
from burnish.errors import DataError, RunError
from burnish.runtime import Clock
from burnish.terms import Preprocess
from burnish.watching import Lines, say_what_begins
from conftest import write_shapes
from images import encoded, write_images

TINY = {"model": "random:test_resnet", "budget": None, "epochs": 1, "image_size": 64, "cache": "off"}


def picture(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """A picture with coarse shapes and fine detail, unlike those of other seeds."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    fine = Image.fromarray(rng.integers(0, 256, (height // 3, width // 3, 3), np.uint8)).resize((width, height))
    return Image.blend(coarse, fine.filter(ImageFilter.GaussianBlur(2)), 0.45)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    return Image.open(io.BytesIO(encoded(image, "JPEG", quality=quality))).convert("RGB")


def cropped(image: Image.Image) -> Image.Image:
    w, h = image.size
    return image.crop((round(0.04 * w), round(0.01 * h), round(0.99 * w), round(0.96 * h)))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "smaller": lambda image: image.resize((80, 60)),
    "larger and squeezed": lambda image: image.resize((200, 190)),
    "JPEG 40": lambda image: jpeg(image, 40),
    "cropped": cropped,
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "recoloured": lambda image: ImageEnhance.Color(ImageEnhance.Brightness(image).enhance(1.1)).enhance(0.85),
    "all of it": lambda image: jpeg(cropped(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)), 60),
}


def squares(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR)) for image in images])


def pairs_of(images: list[Image.Image]) -> set[tuple[int, int]]:
    found, _ = find_twins(squares(images), np.array([min(image.size) for image in images]))
    return set(zip(found.first.tolist(), found.second.tolist(), strict=True))


# ---- the same picture ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_the_same_picture_and_no_other_is(change):
    originals = [picture(seed) for seed in range(24)]
    assert pairs_of([*originals, *map(CHANGES[change], originals)]) == {(row, row + 24) for row in range(24)}


def test_pictures_that_merely_resemble_each_other_are_not_the_same():
    shared = picture(0)
    scenes = [Image.blend(shared, picture(seed), 0.5) for seed in range(1, 12)]
    colours = [ImageEnhance.Color(Image.merge("RGB", [picture(50).split()[place] for place in order])).enhance(2.0)
               for order in ((0, 1, 2), (2, 1, 0))]  # fmt: skip
    blank = [Image.new("RGB", (90, 90), (200, 200, 200 + row)) for row in range(4)]
    assert not pairs_of(scenes) and not pairs_of(colours) and not pairs_of(blank)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_images_are_no_trouble(count):
    images = squares([picture(row) for row in range(count)]) if count else np.zeros((0, 64, 64, 3), np.uint8)
    assert len(find_twins(images, np.full(count, 100))[0]) == 0


def test_what_is_found_depends_on_neither_blocks_nor_order(monkeypatch):
    images = [change(picture(seed)) for seed in range(12) for change in (lambda image: image, *CHANGES.values())]
    before = pairs_of(images)
    order = np.random.default_rng(1).permutation(len(images))
    shuffled = {tuple(sorted((int(order[a]), int(order[b])))) for a, b in pairs_of([images[row] for row in order])}
    assert shuffled == before and len(before) >= 12 * 20
    monkeypatch.setattr(twins_module, "_BLOCK", 7)
    monkeypatch.setattr(twins_module, "_PAIRS", 5)
    assert pairs_of(images) == before


def test_the_grey_of_small_squares_is_held_once_and_small():
    thumbs = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)
    thumbs[3] = thumbs[4] = 128
    grey, chroma, spread = twins_module._parts(thumbs)
    assert grey.element_size() == 2 and grey.shape == (20, 64, 64) and chroma.shape == (20, 2, 4, 4)
    assert (spread < 1e-3).nonzero()[0].tolist() == [3, 4]


def test_conflicts_among_very_many_copies_are_all_found(tmp_path):
    write_images(tmp_path, {"a": 40})
    for number in range(40):
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / f"{number:03d}.png").write_bytes((tmp_path / "a" / f"{number:03d}.png").read_bytes())
    catalog = open_source(tmp_path, for_training=False)
    pixels = read_pixels(catalog, np.arange(len(catalog)), preprocess=Preprocess(size=32), workers=1)
    found = [
        one for one in sameness_findings(catalog, Sameness.of(pixels, Twins.none())) if one.kind == "label_conflict"
    ]
    assert len(found) == 40
    assert all(sorted(Path(path).parent.name for path in one.paths) == ["a", "b"] for one in found)
    assert find_twins(pixels.thumbs, np.full(len(pixels.ids), 16))[0] is not None


def test_one_more_kind_is_one():
    kinds = ("leak", "label_conflict", "unreadable", "label_error", "class_gap", "blank")
    assert in_words(dict.fromkeys(kinds, 1)).endswith(" and 2 more kinds")
    assert in_words(dict.fromkeys(kinds[:5], 1)).endswith(" and 1 more kind")
    assert "more" not in in_words(dict.fromkeys(kinds[:4], 1))


# ---- splits ----------------------------------------------------------------------------------------------------------


def tied_groups(root: Path, ties: list[tuple[int, int, float]]):
    """(catalogue of 12 groups of four images, its sameness): so like is an image of one group to one of another."""
    write_images(root, {"a": 24, "b": 24})
    lines = [f"{label}/{number:03d}.png,{label},g{number // 2:02d}" for label in "ab" for number in range(24)]
    (root / "list.csv").write_text("\n".join(["path,label,group", *lines]))
    catalog = open_source(root / "list.csv")
    pixels = read_pixels(catalog, np.arange(len(catalog)), preprocess=Preprocess(size=32), workers=1)
    row = {group: rows[0] for group in catalog.groups for rows in [np.flatnonzero(np.array(catalog.groups) == group)]}
    pairs = sorted((row[f"g{one:02d}"], row[f"g{other:02d}"], likeness) for one, other, likeness in ties)
    first, second, likeness = (np.array(column) for column in zip(*pairs, strict=True))
    return catalog, Sameness.of(pixels, Twins(first, second, likeness.astype(np.float32), np.zeros(len(ties), bool)))


def test_groups_that_share_pictures_by_the_chain_are_not_made_one_that_leaves_nothing_to_prove(tmp_path):
    catalog, same = tied_groups(tmp_path, [(one, one + 1, 0.99 if one == 4 else 0.95) for one in range(11)])
    splits = make_splits(catalog, seed=0)
    after, moved = untorn(catalog, splits, same.together(catalog))
    assert same.parted(catalog) == 12
    assert set(np.array(catalog.groups)[moved]) <= {"g04", "g05"}, "those that are all but equal stay on one side"
    assert len(after.test) and len(after.val)
    together = same.together(catalog)
    assert together[same.twins.first[4]] == together[same.twins.second[4]]
    assert len(np.unique(together)) == len(catalog) - 1


def test_two_groups_that_share_a_picture_are_on_one_side(tmp_path):
    catalog, same = tied_groups(tmp_path, [(0, 7, 0.95)])
    together = same.together(catalog)
    assert same.parted(catalog) == 0
    assert together[same.twins.first[0]] == together[same.twins.second[0]]


def test_groups_that_are_all_but_equal_by_the_chain_are_parted_too(tmp_path):
    catalog, same = tied_groups(tmp_path, [(one, one + 1, 0.999) for one in range(11)])
    assert same.parted(catalog) == 12
    assert same.together(catalog).tolist() == list(range(len(catalog)))


@settings(max_examples=60, deadline=None)
@given(
    ties=st.lists(st.integers(0, 24), min_size=40, max_size=40),
    words=st.lists(st.sampled_from(["train", "test"]), min_size=40, max_size=40),
    grouped=st.booleans(),
    given_test=st.booleans(),
)
def test_untorn_moves_nothing_into_test_and_leaves_no_tie_torn_that_it_may_mend(ties, words, grouped, given_test):
    rows = [
        Labelled(
            f"{row:02d}.png", "ab"[row % 2], words[row] if given_test else None, f"g{row % 13}" if grouped else None
        )
        for row in range(40)
    ]
    catalog = assemble(Path("/nowhere"), rows, [], source="csv")
    numbers = np.array([ties[int(path[:2])] for path in catalog.paths])
    before = make_splits(catalog, seed=0)
    after, moved = untorn(catalog, before, numbers)
    side = {word: set(getattr(after, word).tolist()) for word in SPLIT_WORDS}
    assert side["test"] <= set(before.test.tolist())
    if given_test and "test" in words:
        assert side["test"] == set(before.test.tolist())
    movable = [row for row in range(40) if not (given_test and "test" in words and catalog.splits[row] == "test")]
    where = {row: word for word in SPLIT_WORDS for row in side[word]}
    for keys in (numbers.tolist(), list(catalog.groups or numbers.tolist())):
        assert len({(keys[row], where[row]) for row in movable}) == len({keys[row] for row in movable})
    assert set(moved.tolist()) == {row for row in range(40) if row not in set(getattr(before, where[row]).tolist())}


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_suspects_are_those_of_confident_learning_written_plainly():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    probabilities = rng.dirichlet(np.full(4, 0.5), 300)
    known = rng.random(300) < 0.8
    probabilities[known] = 0.1 * probabilities[known] + 0.9 * np.eye(4)[labels[known]]
    wrong, margin = suspects(labels, probabilities)
    assert wrong.any()
    usual = [probabilities[labels == j, j].mean() for j in range(4)]
    elsewhere = [probabilities[labels != j, j].mean() for j in range(4)]
    for row in range(300):
        claiming = [j for j in range(4) if probabilities[row, j] >= usual[j]]
        best = max(claiming, key=lambda j: probabilities[row, j], default=None)
        expected = best is not None and best != labels[row] and probabilities[row].argmax() != labels[row]
        assert bool(wrong[row]) == (expected and probabilities[row, labels[row]] <= elsewhere[labels[row]])
        others = max(probabilities[row, j] for j in range(4) if j != labels[row])
        assert margin[row] == pytest.approx(others - probabilities[row, labels[row]])


def rare(separation: float, *, wrong: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(given labels, true ones, probabilities) of 970 sound parts and 30 defects; so many of the sound are labelled as defects.

    Probabilities are those of a model that knows how both are spread, and the share of wrong labels.
    """
    rng = np.random.default_rng(0)
    true = np.repeat([0, 1], [970, 30])
    shown = rng.normal(size=1000) + separation * true
    given = np.where(np.arange(1000) < wrong, 1, true)
    lifted = 30 * np.exp(separation * (shown - separation / 2))  # how much likelier a defect looks so than a sound part
    defect = (lifted + wrong) / (lifted + 970)
    return given, true, np.stack([1 - defect, defect], 1)


def test_images_of_a_rare_class_that_is_badly_recognised_are_not_called_wrongly_labelled():
    given, _, probabilities = rare(2.0, wrong=0)
    missed = (probabilities.argmax(1) != given)[given == 1].mean()
    assert 0.4 < missed < 1.0 and not suspects(given, probabilities)[0][given == 1].any()


def test_wrong_labels_in_a_rare_class_that_is_well_recognised_are_found():
    given, true, probabilities = rare(6.0, wrong=12)
    wrong, _ = suspects(given, probabilities)
    assert wrong[given != true].sum() >= 8 and wrong[given == true].sum() <= 1


def graded(share_wrong: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(given labels, true ones, probabilities) of 1,000 images of five grades that a model tells apart half of the time.

    Probabilities are those of a model that knows how the grades are spread, and the share of wrong labels.
    """
    rng = np.random.default_rng(0)
    true = rng.integers(0, 5, 1000)
    shown = true + rng.normal(size=1000)
    likelihood = np.exp(-0.5 * (shown[:, None] - np.arange(5)) ** 2)
    sound = likelihood / likelihood.sum(1, keepdims=True)
    given = np.where(rng.random(1000) < share_wrong, (true + rng.integers(1, 5, 1000)) % 5, true)
    return given, true, (1 - share_wrong) * sound + share_wrong * (1 - sound) / 4


def test_sound_labels_of_grades_that_are_hard_to_tell_apart_are_not_called_wrong():
    given, _, probabilities = graded(0.0)
    assert 0.4 < (probabilities.argmax(1) == given).mean() < 0.6
    assert suspects(given, probabilities)[0].mean() < 0.12


def test_labels_of_another_grade_are_found_where_grades_are_hard_to_tell_apart():
    given, true, probabilities = graded(0.1)
    wrong, _ = suspects(given, probabilities)
    assert wrong[given != true].mean() > 0.6 and (given != true)[wrong].mean() > 0.4


def guesses(knowing: float):
    """(catalogue of 300 images of three classes, probabilities [300 3] that are right for that share, and else surely wrong)."""
    labels = np.arange(300) % 3
    images = [Labelled(f"{number}.png", "abc"[label], None, None) for number, label in enumerate(labels)]
    catalog = assemble(Path("/nowhere"), images, [], source="csv")
    rng, labels = np.random.default_rng(0), catalog.labels
    likeliest = np.where(rng.random(300) < knowing, labels, (labels + rng.integers(1, 3, 300)) % 3)
    return catalog, np.where(np.arange(3) == likeliest[:, None], 0.9, 0.05)


def test_no_label_is_doubted_by_models_that_hardly_tell_the_classes_apart():
    catalog, probabilities = guesses(0.45)
    assert suspects(catalog.labels, probabilities)[0].sum() > 100, "what they say tells of them, not of the labels"
    assert not list(label_findings(catalog, np.arange(300), probabilities))
    assert "hardly told apart (kappa 0." in undoubted(catalog, np.arange(300), probabilities)


def test_labels_are_doubted_by_models_that_tell_the_classes_apart():
    catalog, probabilities = guesses(0.9)
    assert undoubted(catalog, np.arange(300), probabilities) == ""
    assert 10 < len(list(label_findings(catalog, np.arange(300), probabilities))) < 50


def test_agreement_is_cohens_kappa():
    from sklearn.metrics import cohen_kappa_score

    catalog, probabilities = guesses(0.6)
    expected = cohen_kappa_score(catalog.labels, probabilities.argmax(1))
    assert agreement(catalog.labels, probabilities) == pytest.approx(expected)
    assert agreement(np.zeros(4, int), np.ones((4, 1))) == 1.0


def test_a_class_without_images_claims_none_and_one_class_has_no_suspects():
    probabilities = np.array([[0.2, 0.1, 0.7]] * 4 + [[0.1, 0.8, 0.1]] * 4)
    assert not suspects(np.array([0] * 4 + [1] * 4), probabilities)[0].any()
    assert not suspects(np.zeros(5, int), np.ones((5, 1)))[0].any()


def test_what_lies_far_from_all_others_is_strange():
    features = np.random.default_rng(0).normal(0, 1, (200, 16)) + 8.0 * np.eye(16)[np.arange(200) % 4]
    features[7] = -30.0 * np.eye(16)[9]
    score = strangeness(features)
    assert score.argmax() == 7 and score[7] > 6 and np.median(score) < 1
    assert not strangeness(features[:10]).any()


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("cat", "Cat", True),
        ("a", "a\u200b", True),
        ("red fox", "red_fox", True),
        ("cat", "cats", False),
        ("1", "01", True),
        ("1", "10", False),
    ],
)
def test_classes_that_may_be_one_are_told(one, other, alike, images):
    catalog = replace(open_source(images), classes=(one, "green", other))
    found = [finding for finding in class_findings(catalog, None) if finding.kind == "twin_class"]
    assert bool(found) == alike
    if alike:
        assert ("how a number" if one == "1" else "differ in case, blanks") in found[0].evidence


# ---- the verb --------------------------------------------------------------------------------------------------------


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """Two classes with given splits and one fault of each kind."""
    root, seed = tmp_path / "data", 0
    for word, count in (("train", 14), ("val", 4), ("test", 8)):
        for name in ("a", "b"):
            (root / word / name).mkdir(parents=True)
            for number in range(count):
                seed += 1
                picture(seed).save(root / word / name / f"{number:02d}.png")
    train, test = root / "train", root / "test"
    shutil.copy(test / "a" / "00.png", train / "a" / "leak.png")
    CHANGES["all of it"](Image.open(test / "b" / "01.png")).save(train / "b" / "twin.jpg")
    shutil.copy(train / "a" / "03.png", train / "b" / "conflict.png")
    shutil.copy(train / "a" / "04.png", train / "a" / "again.png")
    (train / "a" / "cut.png").write_bytes((train / "a" / "05.png").read_bytes()[:2000])
    (train / "a" / "empty.jpg").write_bytes(b"")
    (train / "a" / "page.png").write_bytes(b"<html>")
    picture(900).save(train / "a" / "really.jpg", "PNG")
    picture(901).convert("CMYK").save(train / "a" / "print.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(902).save(train / "b" / "turned.jpg", exif=exif)
    Image.new("RGB", (90, 90), "white").save(train / "b" / "blank.png")
    picture(903, 24, 24).save(train / "b" / "tiny.png")
    picture(904, 900, 90).save(train / "b" / "long.png")
    picture(905).save(train / "b" / "moves.gif", save_all=True, append_images=[picture(906)])
    return root


EXPECTED = {
    "leak": {"test/a/00.png", "train/a/leak.png", "test/b/01.png", "train/b/twin.jpg"},
    "label_conflict": {"train/a/03.png", "train/b/conflict.png"},
    "exact_duplicate": {"test/a/00.png", "train/a/leak.png", "train/a/03.png", "train/b/conflict.png", "train/a/04.png", "train/a/again.png"},
    "near_duplicate": {"test/b/01.png", "train/b/twin.jpg"},
    "truncated": {"train/a/cut.png"},
    "unreadable": {"train/a/empty.jpg"},
    "not_an_image": {"train/a/page.png"},
    "wrong_suffix": {"train/a/really.jpg"},
    "odd_mode": {"train/a/print.jpg"},
    "exif_rotated": {"train/b/turned.jpg"},
    "blank": {"train/b/blank.png"},
    "tiny": {"train/b/tiny.png"},
    "extreme_aspect": {"train/b/long.png"},
    "animated": {"train/b/moves.gif"},
    "thin_class": set(),
}  # fmt: skip


def listing(root: Path) -> list[tuple[str, int, int]]:
    return [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(root.rglob("*"))]


def test_every_fault_is_found_under_its_name_and_nothing_is_touched(faulty, tmp_path):
    before = listing(faulty)
    found = api.audit(faulty, model=None, cache="off", out=tmp_path / "out")
    assert listing(faulty) == before
    got = {kind: {path for one in found.of(kind) for path in one.paths} for kind in found.facts["found"]}
    assert got == {kind: paths for kind, paths in EXPECTED.items() if paths}
    counts = found.facts["counts"]
    assert counts["scanned"] == counts["used"] + counts["named"] == len([p for p in faulty.rglob("*") if p.is_file()])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"audit.html", "audit.csv", "result.json"}


def test_a_clean_set_has_no_findings(tmp_path):
    for number in range(40):
        folder = tmp_path / "data" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / f"{number}.png")
    assert not api.audit(tmp_path / "data", model=None, cache="off").findings


def test_features_tell_labels_that_are_wrong(shapes, tmp_path):
    shutil.copytree(shapes, tmp_path / "data")
    moved = sorted((tmp_path / "data" / "red").iterdir())[:2]
    for file in moved:
        file.rename(tmp_path / "data" / "blue" / f"x{file.name}")
    found = api.audit(tmp_path / "data", model="random:test_resnet", cache="off")
    assert {path for one in found.of("label_error") for path in one.paths} >= {f"blue/x{file.name}" for file in moved}


def burnish(*words: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    try:
        cli.main([str(word) for word in words])
        code = 0
    except SystemExit as left:
        code = int(left.code or 0)
    return (code, *capsys.readouterr())


def test_the_command_line_prints_80_columns_and_leaves_as_told(faulty, tmp_path, capsys):
    code, out, _ = burnish("audit", faulty, "--model", "none", "--quiet", "--cache", "off", capsys=capsys)
    assert code == 0 and "Test or validation images that are also in train" in out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert burnish("audit", faulty, "--model", "none", "--quiet", "--strict", "--cache", "off", capsys=capsys)[0] == 1
    code, out, _ = burnish("audit", faulty, "--model", "none", "--json", "--cache", "off", capsys=capsys)
    assert json.loads(out)["found"]["leak"] == 2
    assert burnish("audit", tmp_path / "nothing", capsys=capsys)[0] == 2


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("written", [0, 1, 2])
def test_an_audit_that_was_stopped_while_it_wrote_is_done_anew_by_the_same_call(
    images, tmp_path, monkeypatch, written, again
):
    asked, out = {"model": None, "cache": "off", "out": tmp_path / "out"}, tmp_path / "out"
    if again:
        api.audit(images, **asked)
        (images / "red/000.png").unlink()
    wrote = []

    def stopped(path, text, real=looking.write_whole):
        if len(wrote) == written:
            raise KeyboardInterrupt
        wrote.append(path)
        real(path, text)

    with monkeypatch.context() as patched:
        patched.setattr(looking, "write_whole", stopped)
        with pytest.raises(KeyboardInterrupt):
            api.audit(images, **asked)
    api.audit(images, **asked)
    assert {path.name for path in out.iterdir()} == {"audit.html", "audit.csv", "result.json"}


def test_reading_that_lasts_is_said(images, monkeypatch, capsys):
    def slowly(*words, real=looking.opened, **settings):
        time.sleep(0.5)
        return real(*words, **settings)

    monkeypatch.setattr(watching, "_SLOW_SECONDS", 0.1)
    monkeypatch.setattr(looking, "opened", slowly)
    words = ("audit", images, "--model", "none", "--cache", "off")
    assert f"reading {images}" in burnish(*words, capsys=capsys)[1]
    assert "reading" not in burnish(*words, "--quiet", capsys=capsys)[1]


def test_the_list_leaves_out_what_it_proposes(faulty, tmp_path):
    api.audit(faulty, model=None, cache="off", out=tmp_path / "out")
    proposed = read_quarantine(tmp_path / "out" / "audit.csv")
    assert {"train/b/conflict.png", "train/b/blank.png", "train/a/again.png"} <= set(proposed)
    assert "train/a/04.png" in proposed or "train/a/again.png" in proposed
    left = api.audit(faulty, model=None, cache="off", quarantine=tmp_path / "out" / "audit.csv")
    assert not left.of("label_conflict") and not left.of("blank") and not left.of("exact_duplicate")


def test_a_list_that_was_edited_is_not_overwritten(faulty, tmp_path):
    for _ in range(2):
        api.audit(faulty, model=None, cache="off", out=tmp_path / "out")
    table = tmp_path / "out" / "audit.csv"
    chosen = table.read_text().replace("yes", "no")
    table.write_text(chosen)
    with pytest.raises(RunError, match="was edited since"):
        api.audit(faulty, model=None, cache="off", out=tmp_path / "out")
    assert table.read_text() == chosen
    table.unlink()
    api.audit(faulty, model=None, cache="off", out=tmp_path / "out")
    assert "yes" in table.read_text()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name\nx\n", "expected path"),
        ("path\nnot/there.png\n", "1 are not in the data"),
        (b"path\n\xff\n", "cannot be read"),
    ],
)
def test_a_list_that_is_none_is_a_sentence(text, sentence, faulty, tmp_path):
    (tmp_path / "list.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=sentence):
        api.audit(faulty, model=None, cache="off", quarantine=tmp_path / "list.csv")


def test_a_run_says_how_many_images_a_list_leaves_out_and_where_it_marks_none(tmp_path):
    write_images(tmp_path / "data", {"a": 4, "b": 4})
    listed = tmp_path / "audit.csv"
    for word, said in (("yes", "1 left out by audit.csv"), ("no", "audit.csv marks none of them to be left out")):
        listed.write_text(f"path,exclude\na/000.png,{word}\n")
        assert left_out_in_words(quarantined(open_source(tmp_path / "data"), listed), listed) == said
    heard = io.StringIO()
    with redirect_stdout(heard):
        say_what_begins(
            8, 2, tmp_path, Clock.start(None, from_process_start=False), quiet=False, to_stderr=False, besides=said
        )
    assert f"8 images of 2 classes ({said}), into" in heard.getvalue()


def test_lines_of_a_list_that_name_nothing_are_named_with_the_reason(tmp_path):
    write_images(tmp_path / "data", {"a": 4, "b": 4})
    listed = tmp_path / "list.csv"
    listed.write_text("path,reason\na/000.png,blurred\nb/001.png,dark\na/gone.png,dark\n")
    left = quarantined(open_source(tmp_path / "data"), listed)
    assert len(left) == 6 and not {"a/000.png", "b/001.png"} & set(left.paths)
    assert {one.path: one.reason for one in left.named} == {
        "a/000.png": "left out by list.csv: blurred",
        "a/gone.png": "listed in list.csv, and not in the data",
        "b/001.png": "left out by list.csv: dark",
    }


def test_an_edited_audit_is_kept_where_nobody_can_say_what_was_written(shapes, tmp_path):
    api.audit(shapes, model="none", out=tmp_path / "audit")
    (tmp_path / "audit" / "result.json").write_text('{"table_sha2')
    table = tmp_path / "audit" / "audit.csv"
    table.write_text(table.read_text() + "mine\n")
    with pytest.raises(RunError, match="was edited since its audit"):
        api.audit(shapes, model="none", out=tmp_path / "audit")
    assert table.read_text().endswith("mine\n")


class Elements(HTMLParser):
    """The tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)


HOSTILE = (
    "<script>alert(1)<",
    '"><img src=x onerror=y>',
    "{{ 7 * 7 }}",
    "=cmd|x",
    "a\nb",
    "&amp;",
    "\u202eabc",
    "'; DROP",
    "-rf",
    "%s%n",
)


def test_hostile_names_are_text_on_the_page_and_in_the_list(tmp_path):
    names = [name.replace("/", "") for name in HOSTILE]
    for number, name in enumerate(names):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for copy in range(2):
            picture(number).save(folder / f"{copy}{name}.png")
    found = api.audit(tmp_path / "data", model=None, cache="off", out=tmp_path / "out")
    assert len(found.of("exact_duplicate")) == len(names)
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    elements = Elements()
    elements.feed(page)
    assert "script" not in elements.tags and elements.tags.count("img") == 2 * len(names)
    assert "white-space: nowrap" in page  # a level, a number and their headings are not broken within a word
    assert "{{ 7 * 7 }}" in page and "http:" not in page and "https:" not in page
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "audit.csv").read_text(encoding="utf-8"))))
    assert not any(value.startswith(("=", "+", "-", "@")) for row in rows for value in row.values())
    assert len(read_quarantine(tmp_path / "out" / "audit.csv")) >= len(names)


# ---- the gate of fit -------------------------------------------------------------------------------------------------


def test_fit_on_faulty_data_ends_with_an_honest_model_that_says_what_was_found(faulty, tmp_path):
    before = listing(faulty)
    run = api.fit(faulty, out=tmp_path / "run", method="full", **TINY)
    assert listing(faulty) == before
    facts = run.facts
    assert facts["counts"]["scanned"] == facts["counts"]["used"] + facts["counts"]["named"]
    reasons = {one["path"]: one["reason"] for one in facts["named"]}
    assert reasons["train/a/leak.png"].startswith("the same bytes as test/a/00.png, which is in test")
    assert facts["counts"]["test"] == 16
    assert facts["findings"]["found"]["leak"] == 2 and facts["leaky"]["images"] == 1
    assert facts["leaky"]["accuracy_without"]["n"] == 15
    assert "What the audit found" in run.report.read_text(encoding="utf-8")
    assert (run.folder / "audit.csv").read_text(encoding="utf-8").startswith("kind,level,path,exclude")


def test_fit_with_strict_stops_and_names_the_list(faulty, tmp_path, capsys):
    words = [
        "fit",
        faulty,
        "--strict",
        "--model",
        "random:test_resnet",
        "--budget",
        "none",
        "--epochs",
        "1",
        "--out",
        tmp_path / "run",
    ]
    code, _, err = burnish(*words, "--quiet", "--cache", "off", capsys=capsys)
    assert code == 2 and "--strict stops there" in err and "audit.csv" in err
    assert (tmp_path / "run" / "audit.csv").is_file()


@pytest.mark.parametrize("spots", [12, 5])
def test_a_camera_that_does_not_move_takes_different_pictures(spots, tmp_path, capsys):
    """Pieces under one camera were one picture: 38 of 44 stood in train, and two were left to test with."""
    rng = np.random.default_rng(5)
    part = np.asarray(picture(3).resize((160, 160))).astype(float)
    for number in range(44):
        name = "spot" if number < spots else "none"
        (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        pixels = part * rng.uniform(0.9, 1.1) + rng.normal(0, 4, part.shape)
        if name == "spot":
            row, column = rng.integers(30, 120, 2)
            pixels[row : row + 8, column : column + 8] = 10
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "data" / name / f"{number}.png")
    found = api.audit(tmp_path / "data", model=None, cache="off", watcher=Lines())
    assert not found.of("near_duplicate") and not found.of("label_conflict")
    assert re.search(r"\d\d images look as if they were one picture", capsys.readouterr().out)
    catalog = open_source(tmp_path / "data")
    pixels = read_pixels(catalog, np.arange(44), preprocess=Preprocess(size=64, crop=1.0, fit="squash"), workers=2)
    assert len(find_twins(pixels.thumbs, np.full(44, 160))[0]) > 30, "they do look so"


def test_a_few_frames_of_one_scene_are_one_picture_all_the_same():
    """Eight of forty with one label, and one with another: a wrong label, not another scene."""
    first, second = np.arange(7), np.arange(1, 8)
    twins = Twins(first, second, np.full(7, 0.95, np.float32), np.zeros(7, bool))
    labels = np.zeros(40, np.int64)
    labels[3] = 1
    kept, doubted = without_chains(twins, 40, labels)
    assert len(kept) == 7 and doubted == 0
    labels[3:6] = 1
    kept, doubted = without_chains(twins, 40, labels)
    assert len(kept) == 0 and doubted == 8


def test_drawn_splits_keep_the_same_pictures_on_one_side(tmp_path):
    for number in range(30):
        for name in ("a", "b"):
            folder = tmp_path / "data" / name
            folder.mkdir(parents=True, exist_ok=True)
            image = picture(number + 100 * (name == "b"))
            image.save(folder / f"{number}.png")
            if number % 3 == 0:
                CHANGES["cropped"](image).save(folder / f"{number}_twin.png")
                shutil.copy(folder / f"{number}.png", folder / f"{number}_copy.png")
    run = api.fit(tmp_path / "data", out=tmp_path / "run", method="probe", **TINY)
    rows = list(csv.DictReader(open(run.folder / "splits.csv", encoding="utf-8")))
    sides: dict[str, set[str]] = {}
    for row in rows:
        sides.setdefault(row["path"].split("_")[0].removesuffix(".png"), set()).add(row["split"])
    assert all(len(words) == 1 for words in sides.values())
    assert (
        run.facts["counts"]["test"] >= 4 and run.facts["leaky"] is None and "leak" not in run.facts["findings"]["found"]
    )


def test_a_list_of_which_most_is_not_there_is_refused(faulty, tmp_path):
    some = sorted(str(path.relative_to(faulty)) for path in faulty.rglob("*.png"))[:4]
    listed = tmp_path / "list.csv"
    listed.write_text("path\n" + "\n".join([some[0], *(str(faulty / path) for path in some[1:])]) + "\n")
    with pytest.raises(DataError, match="lists 4 images, of which 3 are not in the data"):
        api.audit(faulty, model=None, cache="off", quarantine=listed)


def test_a_word_in_the_list_that_is_neither_yes_nor_no_is_refused(tmp_path):
    listed = tmp_path / "list.csv"
    listed.write_text("path,exclude\na/1.png,no\na/2.png,x\n")
    with pytest.raises(DataError, match=r"line 3: exclude is 'x'\. Expected yes or no"):
        read_quarantine(listed)


@pytest.mark.parametrize("link", [None, "/dev/zero"])
def test_a_list_that_is_no_plain_file_is_not_waited_for(link, tmp_path):
    listed = tmp_path / "list.csv"
    os.mkfifo(listed) if link is None else listed.symlink_to(link)
    with pytest.raises(DataError, match=r"list\.csv cannot be read as a list of images: is not a plain file"):
        read_quarantine(listed)


def test_unreadable_test_images_are_named_where_a_twin_moves_another_out_of_test(tmp_path):
    """Splits follow from the files' content, so pictures are written until they fall as this needs it."""
    data, fractions = tmp_path / "data", {"val_fraction": 0.2, "test_fraction": 0.3}
    write_shapes(data, images=20)
    first, twin, bad = (data / "red" / f"{at:03d}.png" for at in (0, 1, 2))

    def side(path):
        catalog = open_source(data)
        content = look_at(catalog, np.arange(len(catalog)), workers=1).digests
        splits = make_splits(catalog, content=content, seed=0, **fractions)
        row = catalog.paths.index(path.relative_to(data).as_posix())
        return next(word for word in SPLIT_WORDS if row in getattr(splits, word))

    def write(picture, path, wanted):
        for at in range(200):
            info = PngInfo()
            info.add_text("number", str(at))
            picture.save(path, pnginfo=info)
            if side(path) == wanted:
                return
        pytest.fail(f"{path} never falls into {wanted}")

    image = Image.open(first)
    image.load()
    write(image, first, "train")
    write(image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC), twin, "test")
    for at in range(200):
        bad.write_bytes(b"\x89PNG\r\n\x1a\n damaged %d" % at)
        if side(bad) == "test":
            break
    assert (side(first), side(twin), side(bad)) == ("train", "test", "test")
    run = api.fit(data, out=tmp_path / "run", method="probe", **TINY, **fractions)
    facts = run.facts
    sides = {row["path"]: row["split"] for row in csv.DictReader(open(run.folder / "splits.csv", encoding="utf-8"))}
    assert sides["red/001.png"] in ("train", "val") and "red/002.png" not in sides
    assert [one["path"] for one in facts["named"]] == ["red/002.png"]
    assert facts["counts"]["scanned"] == 60 == facts["counts"]["used"] + facts["counts"]["named"]


def test_a_path_in_the_list_keeps_its_spaces(tmp_path):
    listed = tmp_path / "list.csv"
    listed.write_text("path,reason\n a/1.png, blurred \n")
    assert read_quarantine(listed) == {" a/1.png": "blurred"}


def kinds(counts):
    images = [Labelled(f"{name}/{at}.png", name) for name, count in counts.items() for at in range(count)]
    return {one.kind: one.subject for one in class_findings(assemble(Path("/data"), images, [], source="folder"), None)}


def test_of_two_classes_the_rare_one_is_what_is_looked_for_and_no_stray_folder():
    assert set(kinds({"ok": 1470, "defect": 30})) == {"imbalance"}
    assert kinds({"cat": 600, "dog": 600, "misplaced": 12})["stray_folder"] == "misplaced"
