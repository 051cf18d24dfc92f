"""burnish as a scikit-learn estimator."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import log_loss
from sklearn.utils.validation import check_is_fitted

from burnish.errors import BurnishError
from burnish.sklearn import ImageClassifier

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
    with pytest.raises(ValueError, match="one class for each path"):
        ImageClassifier(**QUICK).fit(paths, labels[:-1])
    with pytest.raises(ValueError, match="divided by bars"):
        ImageClassifier(**QUICK).fit(paths[:6], ["a", "b", "a|b", "a", "b", "a"])
    with pytest.raises(BurnishError, match="expected at least two"):
        ImageClassifier(**QUICK).fit(paths[:5], ["a"] * 5)
    with pytest.raises(BurnishError, match="expected a list of image paths"):
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
