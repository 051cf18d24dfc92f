"""burnish as a scikit-learn estimator."""

import pickle
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted
from test_result import copied_by_joblib

from burnish.errors import BurnishError
from burnish.recipe import Recipe
from burnish.sklearn import ImageClassifier
from burnish.watching import Lines
from images import write_images

QUICK = {"model": "random:test_resnet", "method": "probe", "budget": None}


@pytest.fixture(scope="module")
def data(shapes):
    paths = sorted(shapes.rglob("*.png"))
    return [str(path) for path in paths], [path.parent.name for path in paths]


@pytest.fixture(scope="module")
def fitted(data):
    return ImageClassifier(**QUICK).fit(*data)


def test_it_fits_predicts_and_scores(fitted, data):
    paths, labels = data
    assert fitted.score(paths, labels) > 0.8
    probabilities = fitted.predict_proba(paths)
    assert probabilities.shape == (60, 3)
    assert np.allclose(probabilities.sum(1), 1.0)
    assert (fitted.predict(paths) == fitted.classes_[probabilities.argmax(1)]).all()
    assert list(fitted.classes_) == ["blue", "green", "red"]


def test_labels_keep_their_type(data):
    paths, names = data
    numbers = np.array([{"blue": 10, "green": 2, "red": 7}[name] for name in names])
    fitted = ImageClassifier(**QUICK).fit(paths, numbers)
    assert set(fitted.predict(paths[:5])) <= {10, 2, 7}
    assert fitted.score(paths, numbers) > 0.8
    assert fitted.classes_.tolist() == [2, 7, 10]
    assert log_loss(numbers, fitted.predict_proba(paths)) < 1.0


def test_it_clones_and_sets_parameters_as_scikit_learn_asks():
    one = ImageClassifier(budget="3m", seed=4)
    assert clone(one).get_params() == one.get_params()
    assert one.set_params(seed=5).seed == 5
    assert "budget='3m'" in repr(one)


def test_unfitted_is_said_so(data):
    with pytest.raises(NotFittedError):
        ImageClassifier().predict(data[0])
    with pytest.raises(NotFittedError):
        ImageClassifier().predict_proba(data[0])
    with pytest.raises(NotFittedError):
        check_is_fitted(ImageClassifier())


def test_fit_returns_itself_and_changes_no_parameter(fitted):
    assert {name: getattr(fitted, name) for name in QUICK} == QUICK


def test_bad_input_is_an_error_not_a_guess(data):
    paths, labels = data
    with pytest.raises(ValueError, match="one class for each image"):
        ImageClassifier(**QUICK).fit(paths, labels[:-1])
    with pytest.raises(ValueError, match="divided by bars"):
        ImageClassifier(**QUICK).fit(paths[:6], ["a", "b", "a|b", "a", "b", "a"])
    with pytest.raises(BurnishError, match="expected at least two"):
        ImageClassifier(**QUICK).fit(paths[:5], ["a"] * 5)
    with pytest.raises(BurnishError, match="expected paths"):
        ImageClassifier(**QUICK).fit(np.zeros((4, 3)), [0, 1, 0, 1])
    with pytest.raises(BurnishError, match="X is empty"):
        ImageClassifier(**QUICK).fit([], [])
    with pytest.raises(BurnishError, match="budget"):
        ImageClassifier(budget="10x").fit(paths, labels)


@pytest.mark.parametrize(
    "name",
    [
        "check_no_attributes_set_in_init",
        "check_parameters_default_constructible",
        "check_get_params_invariance",
        "check_set_params",
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_estimator_tags_renamed",
        "check_valid_tag_types",
        "check_do_not_raise_errors_in_init_or_set_param",
    ],
)
def test_scikit_learns_own_checks_that_need_no_numbers(name):
    from sklearn.utils import estimator_checks

    check = getattr(estimator_checks, name, None)
    if check is None:
        pytest.skip(f"this scikit-learn has no {name}")
    check("ImageClassifier", ImageClassifier())


def test_scikit_learns_check_of_a_whole_estimator_passes():
    with pytest.warns(SkipTestWarning, match="requires input"):  # it has tables of numbers alone to try
        check_estimator(ImageClassifier())


@pytest.mark.parametrize(
    ("kept", "copied"), [(True, copied_by_joblib), (False, lambda one: pickle.loads(pickle.dumps(one)))],
    ids=["joblib, a folder", "pickle, a temporary folder"],
)  # fmt: skip
def test_an_estimator_can_be_pickled_after_it_predicted(kept, copied, shapes, tmp_path):
    paths = sorted(map(str, shapes.rglob("*.png")))
    out = str(tmp_path / "run") if kept else None
    fitted = ImageClassifier(model="random:test_resnet", method="probe", budget=None, out=out)
    fitted.fit(paths, [Path(path).parent.name for path in paths])
    before = fitted.predict_proba(paths[:7])
    again = copied(fitted)
    np.testing.assert_allclose(again.predict_proba(paths[:7]), before, atol=1e-6)
    assert (again.predict(paths) == fitted.predict(paths)).all()


@pytest.mark.parametrize(
    "y",
    [
        [1.0, 2.0, np.nan] * 4,
        np.array(["a", "b", np.nan] * 4, object),
        ["a", "b", None] * 4,
        ["a", "b", ""] * 4,
        [b"a", b"b", b"c"] * 4,
        np.array(["a", "b", "\ud800"] * 4, object),
        ["é", unicodedata.normalize("NFD", "é"), "b"] * 4,
    ],
    ids=["NaN", "NaN among names", "None", "empty", "bytes", "half a character", "two forms"],
)
def test_labels_that_are_no_classes_are_a_value_error_before_anything_runs(y, tmp_path, monkeypatch):
    monkeypatch.setattr("burnish.api.fit_catalog", lambda *_, **__: pytest.fail("it ran"))
    write_images(tmp_path, {"x": 12})
    with pytest.raises(ValueError, match=r"y holds .*, expected class names|y writes the class .* in two ways"):
        ImageClassifier(model="random:test_resnet").fit(sorted((tmp_path / "x").iterdir()), y)


def test_labels_that_are_classes_are_taken_as_they_are_written(tmp_path, monkeypatch):
    given = []

    class Enough(Exception):
        pass

    def fit(catalog, *_, **__):
        given.append(catalog)
        raise Enough

    monkeypatch.setattr("burnish.api.fit_catalog", fit)
    write_images(tmp_path, {"x": 12})
    decomposed = unicodedata.normalize("NFD", "é")
    for y, classes in (
        (["a", decomposed] * 6, ("a", "é")),
        ([2.0, 1.0] * 6, ("1.0", "2.0")),
        ([True, False] * 6, ("False", "True")),
    ):
        with pytest.raises(Enough):
            ImageClassifier(model="random:test_resnet").fit(sorted((tmp_path / "x").iterdir()), y)
        assert given[-1].classes == classes


def test_the_estimator_is_found_without_an_import_of_its_own():
    code = "import burnish; print(burnish.sklearn.ImageClassifier(budget='1m'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "ImageClassifier(budget='1m')", done.stderr


# ---- images in memory, and all settings -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arrays(data):
    return np.stack([np.asarray(Image.open(path).convert("RGB").resize((32, 32))) for path in data[0]]), data[1]


def test_images_in_memory_are_learnt_from_as_their_bytes_are_however_they_are_given(arrays):
    images, labels = arrays
    quick = {**QUICK, "image_size": 32, "cache": "off"}
    told = ImageClassifier(**quick).fit(images, labels).predict_proba(images)
    pictures = [Image.fromarray(one) for one in images]
    floats = torch.from_numpy(images / np.float32(255)).permute(0, 3, 1, 2)
    for given in (pictures, floats, list(images)):
        fitted = ImageClassifier(**quick).fit(given, labels)
        assert np.array_equal(fitted.predict_proba(given), told)
    greys = images.mean(3).astype(np.uint8)
    assert len(fitted.predict(greys[:3])) == 3  # not one in colour


def test_every_setting_of_fit_is_a_parameter_of_the_estimator():
    names = {name.removesuffix("_seconds") for name in vars(Recipe())} | {
        "out",
        "cache",
        "workers",
        "strict",
        "watcher",
    }
    assert set(ImageClassifier().get_params()) == names
    one = ImageClassifier(method="lora:rank=2", epochs=3, mixup=0.2, image_size=96, workers=1, watcher=Lines())
    again = clone(one)
    assert again.get_params() | {"watcher": None} == one.get_params() | {"watcher": None}
    assert "epochs=3" in repr(again) and "dropout" not in repr(again)
    with pytest.raises(TypeError, match=r"no setting 'lr' \(here it is learning_rate\)"):
        ImageClassifier(lr=1e-3)
    with pytest.raises(BurnishError, match="epochs"):
        ImageClassifier(**{**QUICK, "epochs": -1}).fit([np.zeros((8, 8), np.uint8)] * 4, [0, 1, 0, 1])


def test_all_settings_that_there_are_none_of_are_named_at_once_with_the_nearest():
    with pytest.raises(TypeError) as error:
        ImageClassifier(epoch=3, lr=1e-3, budget_seconds=60)  # pyright: ignore
    sentence = str(error.value)
    assert (
        "no setting 'epoch' (nearest: epochs" in sentence and "no setting 'lr' (here it is learning_rate)" in sentence
    )
    assert "no setting 'budget_seconds' (nearest: budget" in sentence


def test_settings_are_searched_over_and_images_go_through_a_pipeline(arrays):
    images, labels = arrays
    quick = ImageClassifier(model="random:test_resnet", budget=None, image_size=32, cache="off", epochs=1)
    search = GridSearchCV(quick, {"method": ["probe", "probe:head=knn"]}, cv=2).fit(images, labels)
    assert search.best_score_ > 0.6 and search.best_params_["method"].startswith("probe")
    smaller = make_pipeline(FunctionTransformer(lambda X: X[:, ::2, ::2]), clone(quick).set_params(method="probe"))
    assert cross_val_score(smaller, images, labels, cv=2).mean() > 0.6


def test_one_image_or_rows_of_pixels_are_told_how_to_be_given(fitted):
    with pytest.raises(ValueError, match=r"X has shape \(32, 32, 3\), as one image has.*X\[None\]"):
        fitted.predict(np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(BurnishError, match=r"X has shape \(20, 64\).*X.reshape\(len\(X\), height, width\)"):
        ImageClassifier(**QUICK).fit(np.zeros((20, 64)), [0, 1] * 10)


def test_the_report_tells_the_call_that_does_it_again(fitted):
    page = fitted.result_.report.read_text(encoding="utf-8")
    assert "ImageClassifier(budget=None" in page and ".fit(X, y)" in page and "burnish fit &" not in page
