"""Several classes an image, from the table to the package."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, jaccard_score, log_loss, roc_auc_score

from burnish import api
from burnish.choose.aim import balance_for
from burnish.choose.holdout import require_trainable
from burnish.data.audit.labels import suspects_of_several
from burnish.data.catalog import Catalog, Splits
from burnish.data.sources import open_source
from burnish.data.split import make_splits, read_splits, write_splits
from burnish.errors import DataError, NoSuchName, NotEnoughData, RecipeError
from burnish.labels import counts, cross_entropies, leading, probabilities, right
from burnish.measure.bootstrap import Ranking, paired_shares, resampled
from burnish.measure.calibration import ece, temperature
from burnish.measure.intervals import Interval
from burnish.measure.several import mean_average_precisions, rankings_of, score_several, thresholds_for
from burnish.measure.verdict import Verdict, judge_several
from burnish.methods import heads
from burnish.methods.heads import choose_head
from burnish.recipe import Recipe
from burnish.record.folder import read_pictures
from burnish.reports.runs import Compared
from burnish.screen import print_runs, print_verdict
from burnish.ship.bundle import read_bundle
from burnish.train.objective import Objective
from images import noise

TINY = {"model": "random:test_resnet", "budget": None, "epochs": 2, "image_size": 64}


def coloured(root: Path, count: int = 60) -> Path:
    """Images with any of red, green and blue in them, and a table that says which; some have none."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with open(root / "labels.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "label"])
        for number in range(count):
            has = rng.random(3) < 0.45
            pixels = rng.integers(0, 110, (40, 40, 3), np.uint8) + (90 * has).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"{number:03d}.png")
            names = [name for name, there in zip(("red", "green", "blue"), has, strict=True) if there]
            table.writerow([f"{number:03d}.png", "|".join(names) or "|"])
    return root / "labels.csv"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return coloured(tmp_path_factory.mktemp("several"))


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    return api.fit(table, out=tmp_path_factory.mktemp("runs") / "run", **TINY)


def listed(folder: Path, labels: list[str], *, column: str = "label") -> Path:
    """A CSV of so many images with these labels."""
    for number in range(len(labels)):
        noise(4, 4, seed=number).save(folder / f"{number}.png")
    lines = [f"path,{column}", *(f'{number}.png,"{label}"' for number, label in enumerate(labels))]
    (folder / "t.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder / "t.csv"


# ---- sources ---------------------------------------------------------------------------------------------------------


def test_bars_divide_where_a_part_is_found_in_another_label(tmp_path):
    catalog = open_source(listed(tmp_path, ["a|b", "b", "a", "c|a", "|", "a|a"] * 3), for_training=False)
    assert catalog.classes == ("a", "b", "c") and catalog.several
    assert catalog.labels.dtype == bool and catalog.labels.shape == (18, 3)
    told = {Path(path).stem: catalog.label(row) for row, path in enumerate(catalog.paths)}
    assert [told[str(number)] for number in range(6)] == ["a|b", "b", "a", "a|c", "", "a"]


def test_a_bar_in_a_name_of_its_own_stays_a_name(tmp_path):
    catalog = open_source(listed(tmp_path, ["pipe|tube", "rod", "bar"] * 3), for_training=False)
    assert catalog.classes == ("bar", "pipe|tube", "rod") and not catalog.several


def test_the_column_may_be_called_labels(tmp_path):
    assert open_source(listed(tmp_path, ["a|b", "b"] * 3, column="Labels"), for_training=False).several


def test_an_empty_label_is_refused_unless_a_bar_says_none(tmp_path):
    for others in ("a", "a|b"):
        with pytest.raises(DataError, match=r"t\.csv, line 3: the label is empty"):
            open_source(listed(tmp_path, [others, "", "b"]), for_training=False)
    catalog = open_source(listed(tmp_path, ["a|b", "|", "b"]), for_training=False)
    assert catalog.several and sorted(catalog.labels.sum(1)) == [0, 1, 2]


def test_json_lists_name_several_and_keep_bars(tmp_path):
    rows = [["a|x", "b"], [], ["b"], "b"]
    for number in range(len(rows)):
        noise(4, 4, seed=number).save(tmp_path / f"{number}.png")
    text = "\n".join(json.dumps({"path": f"{at}.png", "labels": row}) for at, row in enumerate(rows))
    (tmp_path / "t.jsonl").write_text(text)
    catalog = open_source(tmp_path / "t.jsonl", for_training=False)
    assert catalog.classes == ("a|x", "b")
    assert sorted(catalog.label(row) for row in range(4)) == ["", "a|x|b", "b", "b"]


@pytest.mark.parametrize("label", ["null", '""', "[null]", '[""]', '["a", " "]'])
def test_json_labels_that_are_missing_are_not_taken_for_none_of_the_classes(label, tmp_path):
    (tmp_path / "t.jsonl").write_text(
        f'{{"path": "0.png", "label": ["a", "b"]}}\n{{"path": "1.png", "label": {label}}}\n'
    )
    with pytest.raises(DataError, match="line 2: "):
        open_source(tmp_path / "t.jsonl", for_training=False)


def test_json_lists_of_something_else_are_refused(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"path": "0.png", "label": ["a", {"b": 1}]}\n')
    with pytest.raises(DataError, match="line 1: the label is an object, expected text"):
        open_source(tmp_path / "t.jsonl", for_training=False)


def test_parquet_lists_of_numbers_are_named_by_the_schema(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    for number in range(3):
        noise(4, 4, seed=number).save(tmp_path / f"{number}.png")
    features = {"labels": {"feature": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "_type": "Sequence"}}
    table = pa.table({"path": ["0.png", "1.png", "2.png"], "labels": [[0, 1], [], [1]]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "t.parquet")
    catalog = open_source(tmp_path / "t.parquet", for_training=False)
    assert catalog.classes == ("cat", "dog")
    assert sorted(catalog.label(row) for row in range(3)) == ["", "cat|dog", "dog"]


@pytest.mark.parametrize(
    "labels",
    [[["a", "b"], ["b"], []], [("a", "b"), {"b"}, frozenset()], ["a|b", "b", "|"]],
    ids=["lists", "sets", "text"],
)
def test_python_labels_may_be_several(labels):
    catalog = open_source((np.zeros((3, 8, 8, 3), np.uint8), labels), for_training=False)
    assert sorted(catalog.label(row) for row in range(3)) == ["", "a|b", "b"]


def test_a_table_of_zeros_and_ones_is_several_unless_each_row_has_one():
    images = np.zeros((3, 8, 8, 3), np.uint8)
    two = open_source((images, torch.tensor([[1, 1], [0, 1], [0, 0]])), for_training=False)
    assert two.several and sorted(two.label(row) for row in range(3)) == ["", "0|1", "1"]
    one = open_source((images, np.array([[1, 0], [0, 1], [1, 0]])), for_training=False)
    assert not one.several and sorted(one.label(row) for row in range(3)) == ["0", "0", "1"]
    with pytest.raises(DataError, match="other numbers than 0 and 1"):
        open_source((images, np.array([[1, 2], [0, 1], [1, 0]])), for_training=False)


def test_numbers_to_be_predicted_are_still_refused(tmp_path):
    table = listed(tmp_path, [f"{number / 7:.3f}" for number in range(12)])
    with pytest.raises(DataError, match="does not fit numbers"):
        open_source(table)


# ---- splits ----------------------------------------------------------------------------------------------------------


def test_every_class_is_in_every_drawn_split_and_the_file_reads_back(table, tmp_path):
    catalog = open_source(table)
    splits = make_splits(catalog, seed=3)
    for rows in (splits.train, splits.val, splits.test):
        assert (counts(catalog.labels[rows], 3) > 0).all()
    write_splits(tmp_path / "s.csv", catalog, splits)
    assert read_splits(tmp_path / "s.csv", catalog).sha256 == splits.sha256
    assert set(np.concatenate([splits.train, splits.val, splits.test])) == set(range(len(catalog)))


def test_a_class_with_too_few_images_is_named(tmp_path):
    with pytest.raises(NotEnoughData, match=r"class 'a' has 2, 'rare' has 1; expected two classes of at least 3"):
        open_source(listed(tmp_path, ["a|b", "a", "b", "b", "b|rare"]))


def test_a_test_split_without_any_class_is_refused_before_the_work():
    labels = np.array([[True, False], [False, True], [False, False], [False, False]])
    paths = tuple(f"{n}.png" for n in range(4))
    catalog = Catalog(Path("/x"), paths, labels, ("a", "b"), (None,) * 4, None, (), "csv")
    rows = np.array([0, 1]), np.array([], np.int64), np.array([2, 3])
    with pytest.raises(NotEnoughData, match="none of the test images has a class"):
        require_trainable(catalog, Splits(*rows, "given", ""))


def test_the_leading_class_of_an_image_is_its_rarest():
    labels = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0], [1, 0, 1], [1, 1, 0]], bool)
    assert leading(labels).tolist() == [1, 0, 2, 3, 2, 1]


# ---- scores ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answers():
    """(probabilities [n k], labels [n k], thresholds [k]) with equal scores among them."""
    rng = np.random.default_rng(5)
    labels = rng.random((300, 7)) < np.linspace(0.05, 0.6, 7)
    chances = np.clip(0.5 * labels + 0.25 + 0.35 * rng.standard_normal(labels.shape), 0.01, 0.99).round(2)
    return chances, labels, np.linspace(0.3, 0.6, 7)


def test_scores_equal_scikit_learn(answers):
    chances, labels, cut = answers
    found = score_several(chances, labels, [f"c{at}" for at in range(7)], cut)
    assert len(repr(found)) < 130 and repr(found).startswith(f"SeveralScores({len(labels)} images of 7 classes: mAP ")
    said = chances >= cut
    close = {"rel": 0, "abs": 1e-9}
    assert found.mean_average_precision.value == pytest.approx(
        average_precision_score(labels, chances, average="macro"), **close
    )
    assert found.auroc.value == pytest.approx(roc_auc_score(labels, chances, average="macro"), **close)
    assert found.micro_f1.value == pytest.approx(f1_score(labels, said, average="micro"), abs=1e-7)
    assert found.macro_f1.value == pytest.approx(f1_score(labels, said, average="macro"), abs=1e-7)
    similar = jaccard_score(labels, said, average="samples", zero_division=1)
    assert found.accuracy.value == pytest.approx(similar, **close)
    assert found.exact.value == (labels == said).all(1).mean()
    losses = [log_loss(labels[:, at], chances[:, at]) for at in range(7)]
    assert found.log_loss == pytest.approx(np.mean(losses), rel=1e-9)
    for at, one in enumerate(found.per_class):
        assert one.average_precision == pytest.approx(average_precision_score(labels[:, at], chances[:, at]), **close)
        assert one.f1 == pytest.approx(f1_score(labels[:, at], said[:, at]), **close)


def test_intervals_hold_the_score_and_are_drawn_from_images(answers):
    chances, labels, cut = answers
    found = score_several(chances, labels, [f"c{at}" for at in range(7)], cut)
    for name in ("mean_average_precision", "accuracy", "micro_f1", "macro_f1", "auroc"):
        one = getattr(found, name)
        assert one.low < one.value < one.high and one.high - one.low < 0.2, name


def test_weights_are_the_same_as_drawing_images_anew(answers):
    chances, labels, _ = answers
    seen = []

    def one_class(weights):
        seen.append(weights)
        return {"ap": Ranking(chances[:, 2], labels[:, 2]).average_precision(weights)}

    found = resampled(one_class, len(labels), times=20)["ap"]
    weights = np.concatenate(seen).astype(int)
    assert (weights.sum(1) == len(labels)).all()
    for row in range(20):
        drawn = np.repeat(np.arange(len(labels)), weights[row])
        assert found[row] == pytest.approx(average_precision_score(labels[drawn, 2], chances[drawn, 2]), abs=1e-9)


def test_a_bootstrap_interval_of_a_mean_covers_it_about_95_times_of_100():
    rng, inside, runs, n = np.random.default_rng(11), 0, 400, 150
    for _ in range(runs):
        values = rng.beta(2, 1, n)
        low, high = np.quantile(resampled(lambda w, v=values: {"m": w @ v / n}, n, times=400)["m"], [0.025, 0.975])
        inside += low <= 2 / 3 <= high
    assert 0.92 <= inside / runs <= 0.98


def test_thresholds_are_the_best_for_f1_and_rare_classes_share_one(answers):
    chances, labels, _ = answers
    labels = labels.copy()
    labels[:, 0] = False
    labels[:4, 0] = True
    found = thresholds_for(chances, labels)
    for at in range(1, 7):
        reached = f1_score(labels[:, at], chances[:, at] >= found[at])
        best = max(
            f1_score(labels[:, at], chances[:, at] >= cut, zero_division=0) for cut in np.linspace(0.005, 1, 200)
        )
        assert reached == pytest.approx(best, abs=1e-12)
    every = max(f1_score(labels.ravel(), chances.ravel() >= cut) for cut in np.linspace(0.005, 1, 200))
    assert f1_score(labels.ravel(), chances.ravel() >= found[0]) == pytest.approx(every, abs=1e-12)
    assert (thresholds_for(np.zeros((0, 3)), np.zeros((0, 3), bool)) == 0.5).all()


def test_the_verdict_needs_a_difference_that_chance_does_not_explain(answers):
    chances, labels, _ = answers
    rng = np.random.default_rng(0)
    worse = np.clip(chances + 0.6 * rng.standard_normal(chances.shape), 0, 1)
    assert judge_several(labels, worse, chances, seconds=1.0).word == "better"
    assert judge_several(labels, chances, worse, seconds=1.0).word == "worse"
    same = judge_several(labels, chances, chances, seconds=1.0)
    assert same.word == "not proven" and same.paired is not None and same.paired.p == 1.0
    alone = judge_several(labels, chances, None, seconds=1.0)
    assert alone.word == "probe only" and alone.sentence().startswith("The frozen probe was kept: mAP ")
    assert Verdict.from_json(json.loads(json.dumps(same.to_json()))) == same


def test_paired_shares_of_yes_and_no_are_mcnemar_and_of_fractions_a_bootstrap():
    rng = np.random.default_rng(2)
    first = rng.random(200) < 0.7
    second = first | (rng.random(200) < 0.5)
    assert paired_shares(first, second).only_first == 0
    soft = paired_shares(first.astype(float), second.astype(float))
    assert soft.only_first is None and soft.difference == pytest.approx((second.mean() - first.mean()), abs=1e-12)
    assert soft.low <= soft.difference <= soft.high and soft.p < 0.05


def test_nothing_to_score_is_said():
    with pytest.raises(NotEnoughData, match="none of the images has any of the classes"):
        score_several(np.full((3, 2), 0.5), np.zeros((3, 2), bool), ["a", "b"])


# ---- heads, loss, calibration ------------------------------------------------------------------------------------------


def test_a_head_is_fitted_one_class_against_the_rest():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((300, 20)).astype(np.float32)
    labels = features[:, :4] + 0.3 * rng.standard_normal((300, 4)) > np.array([-0.5, 0.0, 0.5, 1.0])
    choice = choose_head(features, labels, classes=4, seed=0, seconds_left=lambda: float("inf"))
    assert choice.how.kind == "logistic" and choice.right.dtype == np.float64
    assert choice.accuracy > 0.7 and choice.probabilities is not None
    assert mean_average_precisions(rankings_of(choice.probabilities, labels), np.ones((1, 300), np.float32))[0] > 0.9
    assert ece(choice.probabilities, labels) < 0.08
    asked, real = [], heads.logistic_path
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(heads, "logistic_path", lambda *args: (asked.append(args[3]), real(*args))[1])
        late = choose_head(features, labels, classes=4, seed=0, seconds_left=lambda: 0.0)
        late.refit(np.arange(100))
    assert late.accuracy > 0.6  # the clock leaves a head all the same
    assert set(asked[1:]) == {(late.how.strength,)}, "the refits are by the short path too"


def test_the_loss_is_the_binary_cross_entropy_and_smoothing_moves_the_goal():
    logits, truth = torch.tensor([[2.0, -1.0], [0.5, 0.0]]), torch.tensor([[True, False], [False, False]])
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth.float(), reduction="sum")
    assert Objective().loss(logits, truth).item() == pytest.approx(plain.item())
    goal = truth.float() * 0.9 + 0.05
    smooth = torch.nn.functional.binary_cross_entropy_with_logits(logits, goal, reduction="sum")
    assert Objective(label_smoothing=0.1).loss(logits, truth).item() == pytest.approx(smooth.item())


def test_a_temperature_never_makes_the_likelihood_worse():
    rng = np.random.default_rng(1)
    labels = rng.random((200, 3)) < 0.4
    logits = 6.0 * (labels + 0.5 * rng.standard_normal(labels.shape) - 0.5)
    t = temperature(logits, labels)
    assert t != 1.0
    assert cross_entropies(logits / t, labels).mean() < cross_entropies(logits, labels).mean()
    assert (probabilities(logits, several=True) <= 1).all()


def test_how_right_an_answer_is_is_what_it_shares():
    labels = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 1]], bool)
    scores = np.array([[1.0, -1, -1], [-1, -1, -1], [1, 1, -1], [1, -1, -1]])
    assert right(scores, labels).tolist() == [0.5, 1.0, 0.5, 0.0]


def test_balance_that_needs_one_class_an_image_is_refused():
    labels = np.ones((4, 2), bool)
    assert balance_for(Recipe(), labels, classes=2) == "none"
    with pytest.raises(RecipeError, match="balance is sampling, which needs one class an image"):
        balance_for(Recipe(balance="sampling"), labels, classes=2)


def test_such_a_balance_is_refused_before_an_image_is_read(table, tmp_path):
    with pytest.raises(RecipeError, match="balance is loss, which needs one class an image"):
        api.fit(table, out=tmp_path / "run", **TINY, balance="loss")
    assert not (tmp_path / "run").exists()


def test_planted_label_errors_of_several_classes_are_found():
    rng = np.random.default_rng(4)
    truth = rng.random((600, 5)) < 0.3
    chances = np.clip(0.75 * truth + 0.125 + 0.08 * rng.standard_normal(truth.shape), 0.01, 0.99)
    flips = rng.random(truth.shape) < 0.05
    wrong = suspects_of_several(truth ^ flips, chances)
    assert (wrong & flips).sum() > 0.6 * flips.sum()  # a class claims what is at least as sure as its own on average
    assert (wrong & flips).sum() > 0.9 * wrong.sum()
    assert not suspects_of_several(truth, chances).any()


# ---- the whole way -----------------------------------------------------------------------------------------------------


def test_a_run_ends_with_map_thresholds_and_a_report(run):
    facts = run.facts
    assert facts["task"] == "several classes an image"
    assert run.verdict.score == "mAP" and "mAP" in run.verdict.sentence()
    kept = facts["scores"][facts["kept_role"]]
    assert kept["mean_average_precision"]["value"] > 0.8 and "confusion" not in kept
    assert len(read_bundle(run.folder).thresholds or ()) == 3
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "Mean average precision" in page and "Threshold" in page and "What is taken for what" not in page


def test_the_worst_images_of_several_classes_are_shown_with_the_class_they_are_about(tmp_path):
    table = coloured(tmp_path)
    lines = table.read_text(encoding="utf-8").splitlines()
    wrong = [
        f"{line.split(',')[0]},{'blue' if number % 8 else 'red|blue'}" if number % 4 == 0 else line
        for number, line in enumerate(lines)
    ]
    table.write_text("\n".join([lines[0], *wrong[1:]]), encoding="utf-8")
    run = api.fit(table, out=tmp_path / "run", **TINY)
    cases = read_pictures(run.folder)["cases"]
    assert cases and all(one["kind"] == "mistake" and one["thumbnail"] for one in cases)
    for one in cases:
        differ = set(one["label"].split(", ")) ^ set(one["predicted"].split(", "))
        assert one["about"] in run.classes and differ and one["confidence"] >= 0.5
    assert [one["path"] for one in cases] == [one["path"] for one in run.facts["mistakes"]]
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "furthest off in" in page and "data:image/jpeg" in page


def test_predictions_name_all_classes_over_their_thresholds(run, table, tmp_path):
    rows = list(csv.DictReader(open(table, encoding="utf-8")))[:20]
    found = run.predict([table.parent / row["path"] for row in rows], top=3)
    thresholds = dict(zip(run.classes, read_bundle(run.folder).thresholds or (), strict=True))
    for one in found:
        chances = dict(zip(one.classes, one.probabilities, strict=True))
        assert set(one.labels or ()) == {name for name, chance in chances.items() if chance >= thresholds[name]}
        assert one.label == "|".join(one.labels or ())
    agree = [set(one.labels or ()) == set(row["label"].split("|")) - {""} for one, row in zip(found, rows, strict=True)]
    assert np.mean(agree) > 0.6
    api.write_predictions(tmp_path / "p.csv", run.predictor, [str(table.parent / "000.png")])
    (line,) = csv.DictReader(open(tmp_path / "p.csv", encoding="utf-8"))
    assert list(line) == ["path", "labels", "label", "probability", "problem"] and line["labels"] == found[0].label


def test_evaluate_gives_the_scores_of_the_run(run, table):
    rows = {row["path"]: row for row in csv.DictReader(open(run.folder / "splits.csv", encoding="utf-8"))}
    labelled = list(csv.DictReader(open(table, encoding="utf-8")))
    other = table.parent / "test.csv"
    lines = [f"{row['path']},{row['label']}" for row in labelled if rows[row["path"]]["split"] == "test"]
    other.write_text("path,label\n" + "\n".join(lines), encoding="utf-8")
    found = run.evaluate(other).scores.to_json()
    told = run.facts["scores"][run.facts["kept_role"]]
    assert found["mean_average_precision"]["value"] == pytest.approx(told["mean_average_precision"]["value"], abs=1e-6)
    assert found["exact"] == told["exact"]


def test_bars_are_understood_in_a_table_in_which_no_class_comes_twice(run, table):
    a, b, c = run.classes[:3]
    other = table.parent / "two.csv"
    other.write_text(f"path,label\n000.png,{a}|{b}\n001.png,{c}\n", encoding="utf-8")
    assert run.evaluate(other).scores.n == 2
    other.write_text(f"path,label\n000.png,{a}|nothing\n001.png,{c}\n", encoding="utf-8")
    with pytest.raises(NoSuchName, match=re.escape(f"a class '{a}|nothing' that the model does not know")):
        run.evaluate(other)


def test_images_of_one_class_are_scored_by_a_model_of_several_but_not_the_other_way(run, table, shapes, tmp_path):
    assert run.evaluate(shapes).scores.n == 60
    single = api.fit(shapes, out=tmp_path / "single", **{**TINY, "method": "probe"})
    with pytest.raises(DataError, match="has several classes an image, and the model was trained to tell one"):
        single.evaluate(table)


def test_a_package_with_thresholds_for_other_classes_is_refused(run, tmp_path):
    from dataclasses import replace

    from burnish.errors import RunError
    from burnish.ship.bundle import write_bundle

    bundle = replace(read_bundle(run.folder), thresholds=(0.5, 2.0, 0.1))
    with pytest.raises(RunError, match="thresholds, expected 3 numbers of 0 to 1"):
        write_bundle(tmp_path / "p", bundle)


def test_compare_and_audit_take_several_classes(table, tmp_path):
    facts = api.compare(
        table, models=["random:test_resnet"], methods=["probe", "multiprobe"], budget="60s", out=tmp_path / "c"
    )
    assert facts["rows"][0]["test"]["value"] > 0.3 and facts["rows"][1]["difference"]["only_first"] is None
    found = api.audit(table, model="random:test_resnet")
    assert found.facts["counts"]["classes"] == 3


def test_the_interval_and_p_of_a_difference_say_the_same():
    rng = np.random.default_rng(0)
    for _ in range(60):
        first = np.where(rng.random(40) < 0.9, 1.0, rng.choice([0, 0.5], 40))
        second = np.where(rng.random(40) < 0.82, 1.0, rng.choice([0, 0.5, 0.67], 40))
        found = paired_shares(first, second)
        assert (found.low > 0 or found.high < 0) == (found.p < 0.05) or abs(found.p - 0.05) < 0.002


def test_whatever_is_told_of_the_jaccard_index_beside_map_is_called_so(run, table, tmp_path, capsys):
    second = api.fit(table, out=tmp_path / "second", **TINY, method="probe", seed=4, against=str(run.folder))
    print_verdict(second)
    told = " ".join(capsys.readouterr().out.split())
    assert re.search(r"over the earlier run [^:]*, classes right by image \(Jaccard\): [+−-]?\d", told)
    found = Compared("a", "probe", "x", Interval(0.7, 0.6, 0.8, 20), None, None, 1.0, None, several=True)
    print_runs([found], 20, Path("page.html"))
    assert "classes right by image (Jaccard)" in " ".join(capsys.readouterr().out.split())
    print_runs([replace(found, several=False)], 20, Path("page.html"))
    assert "Jaccard" not in capsys.readouterr().out
