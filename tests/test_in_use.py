"""A tuned model in programs of all kinds: pickled, in threads, in forked processes; and what it is asked to write over."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import burnish
from burnish import api, cli
from burnish.data.sources import open_source
from burnish.data.sources.python import open_python
from burnish.errors import DataError, RecipeError
from burnish.measure.ood import Familiarity
from burnish.record.folder import is_of_a_run
from conftest import fit_in_a_process, write_shapes

SETTINGS = {"model": "random:test_resnet", "image_size": 64, "budget": None, "cache": "off"}


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    """A run whose head sees all depths."""
    folder = tmp_path_factory.mktemp("used") / "run"
    api.fit(shapes, method="multiprobe", out=folder, **SETTINGS)
    return folder


@pytest.fixture(scope="module")
def files(shapes):
    return [str(path) for path in sorted(shapes.glob("*/*"))[:6]]


def test_what_has_predicted_can_be_pickled_whatever_its_head_sees(run, files):
    result = burnish.open_run(run)
    expected = result.predict_proba(files)
    kept = pickle.dumps(result)
    np.testing.assert_array_equal(pickle.loads(kept).predict_proba(files), expected)
    assert abs(len(kept) - len(pickle.dumps(burnish.open_run(run)))) < 200_000  # and not what is made of it


def test_the_first_answers_may_be_asked_for_by_many_threads_and_torch_stays_as_it_was(run, files):
    expected = burnish.open_run(run).predict_proba(files)
    for _ in range(3):
        result, found, before = burnish.open_run(run), [], torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:

            def ask(result=result, found=found):
                found.append(result.predict_proba(files))

            threads = [threading.Thread(target=ask) for _ in range(8)]
            for one in threads:
                one.start()
            for one in threads:
                one.join()
            assert torch.get_default_dtype() == torch.float64
        finally:
            torch.set_default_dtype(before)
        assert len(found) == 8
        for one in found:
            np.testing.assert_allclose(one, expected, atol=1e-6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_answers(run, files):
    code = (
        "import os, signal, sys, numpy as np, burnish\n"
        "result, files = burnish.open_run(sys.argv[1]), sys.argv[2:]\n"
        "if sys.argv[2] == 'warm': files = files[1:]; result.predict_proba(files)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    signal.alarm(60)\n"
        "    os._exit(0 if result.predict_proba(files).shape[0] == len(files) else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    for warm in ([], ["warm"]):
        done = subprocess.run([sys.executable, "-c", code, str(run), *warm, *files], timeout=120)
        assert done.returncode == 0


def test_an_open_file_and_a_files_bytes_are_one_image(run, files):
    result = burnish.open_run(run)
    (expected,) = result.predict([files[0]])
    with open(files[0], "rb") as file:
        (found,) = result.predict(file)
    (again,) = result.predict(np.fromfile(files[0], np.uint8))
    with open(files[0], "rb") as file:
        (inside,) = result.predict([file])
    assert found.probabilities == again.probabilities == inside.probabilities == expected.probabilities


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_an_array_with_its_channels_first_is_one_image(run, files, kind):
    result, array = burnish.open_run(run), np.array(Image.open(files[0]).convert("RGB"))
    expected = result.predict([files[0]])[0].probabilities
    for layout in (array, np.ascontiguousarray(array.transpose(2, 0, 1))):
        (found,) = result.predict(kind(layout))
        assert found.probabilities == expected
    assert len(result.predict(kind(np.stack([array, array, array])))) == 3
    assert len(result.predict(kind(np.zeros((5, 20, 20), np.uint8)))) == 5  # greys


# ---- what is there already -------------------------------------------------------------------------------------------


def left(code):
    with pytest.raises(SystemExit) as leaving:
        code()
    return leaving.value.code


def test_answers_are_not_written_over_images_nor_over_what_a_run_keeps(run, tmp_path, capsys):
    picture = tmp_path / "photo.png"
    Image.new("RGB", (40, 32), (200, 30, 30)).save(picture)
    before = picture.read_bytes()
    for words in (
        ["predict", str(run), str(picture), "--csv", str(picture)],
        ["predict", str(run), str(picture), "--csv", str(run / "predictions.csv")],
        ["predict", str(run), str(picture), "--csv", str(run / "package.json")],
        ["report", str(run), "--out", str(picture)],
        ["explain", str(run), str(picture), "--out", str(tmp_path)],
    ):
        assert left(lambda words=words: cli.main(words)) == 2
        assert "name another" in capsys.readouterr().err
    assert picture.read_bytes() == before and sorted(path.name for path in tmp_path.iterdir()) == ["photo.png"]
    table, page = tmp_path / "answers.csv", tmp_path / "page.html"
    for _ in range(2):  # and its own kind it does write over
        cli.main(["predict", str(run), str(picture), "--csv", str(table), "--top", "2000000"])
        cli.main(["report", str(run), "--out", str(page)])
    assert table.read_text().count("label") == 3  # as many as there are classes
    cli.main(["report", str(run)])


def test_a_file_is_of_a_run_by_name_and_place(run, tmp_path):
    assert (
        is_of_a_run(run / "splits.csv")
        and not is_of_a_run(tmp_path / "splits.csv")
        and not is_of_a_run(run / "mine.csv")
    )


def test_the_language_of_several_runs_is_not_passed_over(run, capsys):
    assert left(lambda: cli.main(["report", str(run), str(run), "--lang", "zh"])) == 2
    assert "--lang" in capsys.readouterr().err


def test_familiarity_without_a_number_is_refused():
    features = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    arrays = {
        "mean": np.zeros(4, np.float32), "axes": np.eye(4, dtype=np.float32), "centres": features[:3], "within": np.eye(4, dtype=np.float32),
        "overall": np.eye(4, dtype=np.float32), "limit": np.array([1.0], np.float32),
    }  # fmt: skip
    assert Familiarity.from_arrays(arrays, 4).limit == 1.0
    for name in ("limit", "doubt", "usual", "beside"):
        with pytest.raises(ValueError, match=name):
            Familiarity.from_arrays({**arrays, name: np.array([np.nan], np.float32)}, 4)


# ---- data of other tasks, and other libraries' words ------------------------------------------------------------------


@pytest.mark.parametrize(
    "folders", [("images", "masks"), ("JPEGImages", "SegmentationClass"), ("train2017", "val2017"), ("train2014",)]
)
def test_data_for_boxes_and_outlines_is_refused(folders, tmp_path):
    write_shapes(tmp_path, images=3, classes=folders)
    with pytest.raises(DataError, match=r"detection or segmentation|look like splits|is one class"):
        open_source(tmp_path)


def test_classes_may_be_called_mask_and_no_mask(tmp_path):
    write_shapes(tmp_path, images=3, classes=("mask", "no_mask"))
    assert open_source(tmp_path).classes == ("mask", "no_mask")


def test_columns_of_pandas_are_lists(files):
    class Column(list):
        iloc = None

        def tolist(self):
            return list(self)

        def __eq__(self, other):
            raise TypeError("the truth of a column is ambiguous")

    catalog = open_python((Column(files), Column(["a", "b"] * 3)))
    assert len(catalog.paths) == 6 and catalog.classes == ("a", "b")


def test_a_module_for_a_model_is_said_in_a_line(shapes):
    with pytest.raises(RecipeError) as error:
        burnish.fit(shapes, model=torchvision.models.resnet18())
    assert len(str(error.value)) < 400


def test_the_name_of_the_program_alone_shows_its_help_and_no_empty_complaint(capsys):
    assert left(lambda: cli.main([])) == 2
    told = capsys.readouterr()
    assert "Usage" in told.out + told.err and "burnish: " not in told.err


def test_who_stops_a_run_is_told_how_to_go_on(shapes, tmp_path):
    process = fit_in_a_process(shapes, "--method", "full", cwd=tmp_path)
    for line in process.stdout:
        if "tune" in line:
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and f"--out {os.path.join('runs', 'shapes-1')}" in told
