"""Finding one of two classes: the thresholds keep their promise, the curves are those of scikit-learn."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, precision_score, roc_auc_score, roc_curve
from test_report_page import HOSTILE, Page, facts_of

from burnish import cli
from burnish.backbones import zoo
from burnish.backbones.classifier import Classifier
from burnish.errors import NoSuchName, RecipeError
from burnish.measure.finding import finding
from burnish.measure.held_out import HeldOut
from burnish.reports.page import render
from burnish.ship.answering import Asked
from burnish.ship.bundle import Bundle, write_bundle
from burnish.ship.predictor import Predictor


def answers(n, *, share=0.1, seed=0):
    """Probabilities [n 2] and labels; the second class is rare."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < share).astype(np.int64)
    chance = 1.0 / (1.0 + np.exp(2.0 - rng.normal(2.5 * labels)))
    return np.column_stack([1.0 - chance, chance]), labels


def package(folder, held, classes=("sound", "crack")):
    backbone = zoo.load_backbone("random:cifar_resnet20")
    trained = Classifier.over(backbone, len(classes))
    write_bundle(folder, Bundle.of(backbone, trained, classes=classes, method="probe", held_out=held))
    return folder


# ---- thresholds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [0.8, 0.9, 0.95])
def test_a_threshold_finds_the_share_that_was_asked_on_average(wanted):
    found = []
    for seed in range(300):
        held, known = answers(400, seed=2 * seed)
        new, truth = answers(400, seed=2 * seed + 1)
        threshold = HeldOut.of(held, known).threshold_finding(1, wanted)
        assert threshold is not None
        found.append((new[truth == 1, 1] >= threshold).mean())
    assert wanted - 0.01 < np.mean(found) < wanted + 0.03  # 40 images a draw: a rank is up to 0.025 too careful


def test_the_likelier_class_finds_fewer_of_a_rare_one_than_its_threshold_does():
    chances, labels = answers(3000)
    told = finding(chances[:1500], labels[:1500], sought=1, held_out=HeldOut.of(chances[1500:], labels[1500:]))
    at = next(one for one in told["points"] if one["wanted"] == 0.9)
    assert told["likeliest"]["sensitivity"]["value"] < 0.75 < 0.85 < at["test"]["sensitivity"]["value"]
    assert at["test"]["specificity"]["value"] < told["likeliest"]["specificity"]["value"]


def test_too_few_held_out_images_of_a_class_are_said_with_what_they_can_show():
    chances, labels = answers(60, share=0.2, seed=4)
    held, count = HeldOut.of(chances, labels), int((labels == 1).sum())
    assert 2 < count < 19 and held.threshold_finding(1, 0.95) is None
    with pytest.raises(RecipeError, match=f"find crack=0.95: the {count} held-out images of crack") as said:
        held.finding(1, 0.95, "crack")
    most = float(str(said.value).partition("can show ")[2].partition("%")[0]) / 100
    assert held.finding(1, most, "crack") == chances[labels == 1, 1].min()


def test_the_threshold_that_a_package_keeps_finds_the_images_that_set_it():
    chances, labels = answers(500)
    held = HeldOut.of(chances, labels)
    again = HeldOut.from_json(json.loads(json.dumps(held.to_json())), classes=2)
    for wanted in (0.5, 0.8, 0.9, 0.97):
        own, kept = held.threshold_finding(1, wanted), again.threshold_finding(1, wanted)
        assert own is not None and kept is not None and own - 2e-7 < kept <= own


# ---- what is told ----------------------------------------------------------------------------------------------------


def test_areas_and_shares_are_those_of_scikit_learn():
    chances, labels = answers(800)
    told = finding(chances, labels, sought=1)
    assert told["auroc"]["value"] == pytest.approx(roc_auc_score(labels, chances[:, 1]))
    assert told["average_precision"]["value"] == pytest.approx(average_precision_score(labels, chances[:, 1]))
    assert told["likeliest"]["precision"]["value"] == pytest.approx(precision_score(labels, chances.argmax(1)))
    assert json.loads(json.dumps(told)) == told


def test_the_curve_of_few_among_many_has_all_its_corners():
    chances, labels = answers(20_000, share=0.002)
    curve = np.array(finding(chances, labels, sought=1)["roc"])
    alarms, found, _ = roc_curve(labels, chances[:, 1])
    assert len(curve) < 400 and (np.diff(curve, axis=0) >= 0).all() and curve[-1].tolist() == [1.0, 1.0]
    corners = {(round(x, 9), round(y, 9)) for x, y in zip(alarms, found, strict=True)}
    assert corners <= {(round(x, 9), round(y, 9)) for x, y in curve.tolist()} | {(0.0, 0.0)}


@pytest.mark.parametrize("label", [0, 1])
def test_test_images_of_one_class_alone_make_no_curve_and_no_error(label):
    chances, _ = answers(30)
    told = finding(chances, np.full(30, label), sought=1, held_out=HeldOut.of(chances, np.full(30, label)))
    assert told["auroc"] is None and "roc" not in told and json.loads(json.dumps(told, allow_nan=False)) == told


def test_whole_groups_widen_what_is_said_of_sensitivity():
    chances, labels = answers(400, share=0.5)
    groups = np.arange(400) // 40
    chances = np.where((groups % 3 == 0)[:, None], chances[:, ::-1], chances)  # wrong by whole groups
    alone, together = (finding(chances, labels, sought=1, groups=one)["likeliest"] for one in (None, groups))
    widths = [one["sensitivity"]["high"] - one["sensitivity"]["low"] for one in (alone, together)]
    assert widths[1] > 1.5 * widths[0]


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_page_shows_what_finding_costs_and_escapes_the_name(lang):
    page = Page(render(facts_of(2, names=("sound", HOSTILE[0])), lang=lang))
    text = page.text()
    assert ("Sensitivity" if lang == "en" else "灵敏度") in text and "predict --find" in text
    assert not render(facts_of(3), lang=lang).count("predict --find")


# ---- predict ---------------------------------------------------------------------------------------------------------


def test_a_class_to_be_found_is_the_answer_from_its_threshold_on():
    rng = np.random.default_rng(0)
    chances = rng.dirichlet([1.0, 1.0, 0.3], 2000)
    labels = np.array([rng.choice(3, p=row) for row in chances])
    bundle = Bundle(
        {}, ("a", "b", "rare"), None, {}, 1, "probe", "x", "", "unknown", held_out=HeldOut.of(chances, labels)
    )  # type: ignore[arg-type]
    told = Asked(top=3, find={"rare": 0.9}).settled(bundle)
    (least,) = told.found_from.values()
    for row in rng.dirichlet([1.0, 1.0, 0.3], 200):
        one = told.prediction("x", row, strange=None)
        assert (one.label == "rare") == (row[2] >= least)
        assert one.label == "rare" or row[:2].max() == one.probability
        assert sorted(one.classes) == ["a", "b", "rare"] and sum(one.probabilities) == pytest.approx(1.0)


def test_predict_finds_from_python_and_from_the_command_line(tmp_path, capsys):
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    wide = np.column_stack([1.0 - labels * 1e-6, labels * 1e-6])  # a crack is told from 1e-6 on
    run = package(tmp_path / "run", HeldOut.of(wide, labels))
    image = rng.integers(0, 256, (40, 40, 3), np.uint8)
    predictor = Predictor.open(run)
    (plain,) = predictor.predict([image], top=2)
    (found,) = predictor.predict([image], top=2, find={"crack": 0.9})
    assert found.label == "crack" and set(found.classes) == set(plain.classes)
    chances = dict(zip(plain.classes, plain.probabilities, strict=True))
    assert found.probability == pytest.approx(chances["crack"])
    file = tmp_path / "x.png"
    Image.fromarray(image).save(file)
    cli.main(["predict", str(run), str(file), "--find", "crack=0.9"])
    assert "\tcrack " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        (Asked(find={"crak": 0.9}), NoSuchName, r"no class 'crak' \(nearest: crack"),
        (Asked(find={"crack": 2.0}), RecipeError, "find is 2.0, expected the share"),
        (Asked(find={"crack": 0.9}, reject=0.9), RecipeError, "reject and find exclude each other"),
        (Asked(find="crack=0.9"), RecipeError, r"find is 'crack=0.9', expected .*as \{\"crack\": 0.95\}"),
        (Asked(find={"crack": "0.9"}), RecipeError, "find is '0.9', expected the share"),
        (Asked(reject="0.9"), RecipeError, "reject is '0.9', expected the accuracy"),
        (Asked(sets=True), RecipeError, "sets is True, expected how often"),
        *((Asked(top=top), RecipeError, f"top is {top!r}, expected how many") for top in (0, -1, "3", 1.5, True)),
    ],
)
def test_what_cannot_be_asked_is_said(tmp_path, asked, error, said):
    chances, labels = answers(400)
    predictor = Predictor.open(package(tmp_path / "run", HeldOut.of(chances, labels)))
    with pytest.raises(error, match=said):
        predictor.stream([], asked=asked)


def test_a_package_that_does_not_know_the_classes_of_its_held_out_images_says_so(tmp_path):
    chances, labels = answers(400)
    held = HeldOut.of(chances, labels)
    older = HeldOut(held.confidence, held.right, held.own)
    predictor = Predictor.open(package(tmp_path / "run", older))
    with pytest.raises(
        RecipeError, match="find cannot be had: the package holds no held-out images with their classes"
    ):
        predictor.predict([], find={"crack": 0.9})


@pytest.mark.parametrize("find", ["crack", "=0.9", "crack=much", "crack="])
def test_a_share_that_is_none_is_a_sentence(tmp_path, capsys, find):
    with pytest.raises(SystemExit) as left:
        cli.main(["predict", str(tmp_path), "x.png", "--find", find])
    assert left.value.code == 2 and "expected a class and the share of it" in capsys.readouterr().err
