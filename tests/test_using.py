"""A finished run in use: what may be given for images, what a folder's left-out files say, whose folder is whose."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import burnish
from burnish import api, cli, disk
from burnish.data.catalog import Named
from burnish.data.sources.scan import LINK_OUT, Scan
from burnish.errors import DataError, NotARun, RunError, UnreadableImage
from burnish.record.folder import RunFolder
from burnish.ship.bundle import package_folder
from burnish.ship.images import NotRead, expand, listed, opened
from burnish.ship.predictor import Predictor
from burnish.train.features import BATCH
from burnish.use import evaluating
from conftest import write_shapes
from images import noise, quarters

QUICK = {"model": "random:test_resnet", "method": "probe", "budget": None, "image_size": 64, "seed": 0}


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    return burnish.fit(shapes, out=tmp_path_factory.mktemp("runs") / "shapes", cache="off", **QUICK)


# ---- what is written -------------------------------------------------------------------------------------------------


def test_answers_replace_a_file_whole_or_not_at_all(run, shapes, tmp_path, monkeypatch):
    files, table = [str(file) for file in sorted(shapes.rglob("*.png"))], tmp_path / "a.csv"
    burnish.api.write_predictions(table, run.predictor, files)
    before = table.read_bytes()
    assert len(before.splitlines()) == 1 + len(files)
    real, seen = Predictor.pixels, []

    def failing(self, images):
        seen.append(table.read_bytes() == before)
        if len(seen) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, images)

    with monkeypatch.context() as patched:
        patched.setattr(Predictor, "pixels", failing)
        with pytest.raises(RunError, match=r"a\.csv: the disk is full; name another file"):
            burnish.api.write_predictions(table, run.predictor, files)
    assert seen == [True, True] and table.read_bytes() == before and list(tmp_path.iterdir()) == [table]
    (tmp_path / "link.csv").symlink_to(table)
    burnish.api.write_predictions(tmp_path / "link.csv", run.predictor, files[:1])
    assert (tmp_path / "link.csv").is_symlink() and len(table.read_bytes().splitlines()) == 2
    burnish.api.write_predictions(Path(os.devnull), run.predictor, files[:1])
    assert Path(os.devnull).is_char_device()
    table.chmod(0o640)
    burnish.api.write_predictions(table, run.predictor, files[:1])
    assert table.stat().st_mode & 0o777 == 0o640
    mask = os.umask(0o077)
    try:
        burnish.api.write_predictions(tmp_path / "own.csv", run.predictor, files[:1])
    finally:
        os.umask(mask)
    assert (tmp_path / "own.csv").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="there is no /dev/stdout")
def test_answers_go_to_whatever_the_output_is(run, shapes, tmp_path):
    command = [sys.executable, "-m", "burnish", "predict", str(run.folder), str(shapes / "red"), "--csv", "/dev/stdout"]
    piped = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert piped.startswith("path,label,probability,problem")
    with open(tmp_path / "out.txt", "w") as file:
        subprocess.run(command, stdout=file, check=True)
    assert "path,label,probability,problem" in (tmp_path / "out.txt").read_text()
    assert [one.name for one in tmp_path.iterdir()] == ["out.txt"]


# ---- what may be given for images --------------------------------------------------------------------------------------


def test_one_image_alone_is_a_list_of_one(run, shapes, tmp_path, monkeypatch):
    file = shapes / "red" / "000.png"
    (expected,) = run.predict([file])
    pixels = np.asarray(Image.open(file))
    monkeypatch.chdir(tmp_path)  # a path is not gone through letter by letter
    for image in (str(file), file, file.read_bytes(), pixels, Image.open(file)):
        (found,) = run.predict(image)
        assert (found.label, found.probability) == (expected.label, expected.probability)
        assert run.predict_proba(image).shape == (1, 3)
    (grey,) = run.predict(pixels[..., 0])
    assert grey.problem is None
    assert len(run.predict(np.stack([pixels, pixels]))) == 2
    assert len(list(burnish.api.predict_stream(run.folder, str(file)))) == 1


def test_an_array_of_three_planes_is_one_image_unless_it_is_too_small():
    image, small = np.zeros((3, 8, 8), np.uint8), np.zeros((3, 2, 2), np.uint8)
    assert (len(listed(image)), len(listed(torch.from_numpy(image)))) == (1, 1)
    assert (len(listed(small)), len(listed(torch.from_numpy(small)))) == (3, 1)
    assert len(listed(np.zeros((5, 3, 8, 8), np.uint8))) == 5


@pytest.mark.parametrize(
    ("shape", "kind", "count"),
    [
        ((3, 28, 28), np.asarray, 1),
        ((5, 28, 28), np.asarray, 5),
        ((28, 28, 3), np.asarray, 1),
        ((28, 28, 4), np.asarray, 1),
        ((3, 28, 28), torch.from_numpy, 1),
        ((4, 28, 28), torch.from_numpy, 1),
        ((28, 28, 3), torch.from_numpy, 1),
        ((2, 3, 28, 28), torch.from_numpy, 2),
    ],
)
def test_an_array_is_as_many_images_as_its_shape_says(shape, kind, count, run):
    images = kind(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    found = run.predict(images)
    assert len(found) == count and all(one.problem is None for one in found)
    assert run.predict_proba(images).shape == (count, 3)


def test_what_is_no_array_has_a_problem_and_the_others_have_answers(run):
    good = noise(28, 28)
    odd = [
        torch.zeros(3, 8, 8, dtype=torch.bfloat16),
        torch.zeros(3, 8, 8, dtype=torch.uint8).to_sparse(),
        torch.zeros(3, 8, 8, dtype=torch.uint8, device="meta"),
        [[[1, 2, 3]], [[1]]],
    ]
    found = run.predict([good, *odd, good])
    assert [one.problem is None for one in found] == [True, False, False, False, False, True]
    assert all(one.problem and len(one.problem) < 200 and not one.classes for one in found[1:-1])
    assert found[0].label == found[-1].label == run.predict([good])[0].label


def test_images_in_memory_are_read_and_anything_else_is_unreadable():
    file = io.BytesIO()
    Image.new("RGB", (4, 6)).save(file, "PNG")
    for one in (file, bytearray(file.getvalue()), memoryview(file.getvalue())):
        assert opened(one).size == (4, 6) and len(listed(one)) == 1
    for wrong in (None, 3, 2.5):
        with pytest.raises(UnreadableImage, match="expected a path"):
            opened(wrong)


def test_probabilities_of_more_than_a_batch_are_those_of_each(run, shapes, monkeypatch):
    files = sorted(shapes.rglob("*.png"))[: 2 * BATCH + 1]
    real, most = Predictor.pixels, []
    monkeypatch.setattr(Predictor, "pixels", lambda self, images: most.append(len(images)) or real(self, images))
    whole = run.predict_proba(files)
    assert max(most) == BATCH and whole.shape == (len(files), 3)
    assert np.allclose(whole, np.concatenate([run.predict_proba([file]) for file in files]), atol=1e-6)
    assert run.predict_proba([]).shape == (0, 3)


def test_what_a_folder_holds_and_is_not_looked_at_is_told(run, shapes, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes((shapes / "red" / "000.png").read_bytes())
    (folder / "b.png").symlink_to(tmp_path / "nothing.png")
    (folder / "notes.txt").write_text("not for looking at")
    (folder / ".hidden.png").write_text("")
    good, bad = run.predict([folder])
    assert good.problem is None
    assert bad.path.endswith("b.png") and "not followed" in bad.problem
    command = [
        sys.executable,
        "-m",
        "burnish",
        "predict",
        str(run.folder),
        str(folder),
        "--csv",
        str(tmp_path / "x.csv"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "not followed" in (tmp_path / "x.csv").read_text()
    command = [
        sys.executable,
        "-m",
        "burnish",
        "explain",
        str(run.folder),
        str(folder),
        "--out",
        str(tmp_path / "maps"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "not followed" in done.stdout + done.stderr
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "c.png").symlink_to(tmp_path / "nothing.png")
    (only,) = expand([tmp_path / "links"])
    assert isinstance(only, NotRead)
    with pytest.raises(UnreadableImage, match="not followed"):
        only()


# ---- Pillow images are read as their files are -------------------------------------------------------------------------


def saved(image, path, **how):
    image.save(path, **how)
    return path


def files_of(folder):
    """Files of kinds that Pillow opens in unlike modes."""
    upright = quarters()
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = np.linspace(0, 65535, 48 * 40).reshape(40, 48).astype(np.uint16)
    yield saved(upright, folder / "turned.jpg", exif=turned, quality=95)
    yield saved(upright, folder / "turned.png", exif=turned)
    yield saved(Image.fromarray((deep / 65535).astype(np.float32)), folder / "float.tiff")
    yield saved(Image.fromarray(deep), folder / "deep.png")
    yield saved(Image.fromarray(deep.astype(np.int32)), folder / "int.tiff")
    yield saved(upright.convert("CMYK"), folder / "cmyk.tiff")
    yield saved(upright.convert("LAB"), folder / "lab.tiff")
    yield saved(upright.convert("P"), folder / "palette.png")
    clear = upright.convert("RGBA")
    clear.putalpha(90)
    yield saved(clear, folder / "alpha.png")
    yield saved(clear.convert("LA"), folder / "grey-alpha.png")


def test_an_opened_image_is_read_as_its_file_is(tmp_path):
    for file in files_of(tmp_path):
        expected = np.asarray(opened(file))
        with Image.open(file) as image:
            found = np.asarray(opened(image))
        assert found.shape == expected.shape, file.name
        assert np.array_equal(found, expected), file.name


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "YCbCr", "HSV", "I", "1"])
def test_modes_that_no_file_has_are_no_crash(mode):
    # An alpha of 255, so that what lies below shows.
    source = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode, "RGB" if mode not in ("I", "1") else "L")
    image = (
        quarters().convert(source).convert(mode)
        if mode != "PA"
        else quarters().convert("RGBA").quantize().convert("PA")
    )
    assert opened(image).size == quarters().size


def test_a_truncated_image_opened_before_is_one_problem_not_the_end(run, shapes, tmp_path):
    whole = (shapes / "red" / "000.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    good, bad = run.predict([shapes / "red" / "000.png", Image.open(tmp_path / "cut.png")])
    assert good.problem is None and bad.problem


def test_a_data_set_with_a_truncated_image_names_it_and_goes_on(tmp_path):
    write_shapes(tmp_path / "data", images=6)
    cut = tmp_path / "data" / "red" / "000.png"
    cut.write_bytes(cut.read_bytes()[:200])
    files = sorted((tmp_path / "data").rglob("*.png"))

    class Set:
        def __len__(self):
            return len(files)

        def __getitem__(self, row):
            return Image.open(files[row]), files[row].parent.name

    found = burnish.fit(Set(), out=tmp_path / "run", cache="off", **QUICK)
    (named,) = found.facts["named"]
    assert "cannot be read" in named["reason"]


def test_images_that_the_run_learnt_from_are_counted_when_it_is_evaluated_on_them(run, shapes, tmp_path, capsys):
    found = burnish.evaluate(run.folder, shapes)
    counts = run.facts["counts"]
    assert found.learnt == counts["train"] + counts["val"] > 0
    cli.main(["evaluate", str(run.folder), str(shapes), "--quiet"])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"careful: {found.learnt} of these images are, by content or path, images that the run learnt from" in shown
    write_shapes(tmp_path / "new" / "photos", images=4)
    (tmp_path / "new" / "photos").rename(tmp_path / "more")
    for file in list((tmp_path / "more").rglob("*.png")):
        file.rename(file.with_name(f"new-{file.name}"))
    assert burnish.evaluate(run.folder, tmp_path / "more").learnt > 0, "the same images under another name"
    for file in (tmp_path / "more").rglob("*.png"):
        Image.open(file).point(lambda value: value ^ 1).save(file)
    assert burnish.evaluate(run.folder, tmp_path / "more").learnt == 0


def test_where_it_is_not_known_what_the_run_learnt_from_an_evaluation_says_so(run, shapes, tmp_path, capsys):
    assert burnish.evaluate(run.folder, shapes).learnt_known
    counts = run.facts["counts"]
    for gone, learnt in (("images.csv", counts["train"] + counts["val"]), ("splits.csv", 0)):
        other = tmp_path / gone
        shutil.copytree(run.folder, other)
        (other / gone).unlink()
        cli.main(["evaluate", str(other), str(shapes), "--quiet"])
        assert "careful: it is not known which images the run learnt from" in " ".join(capsys.readouterr().out.split())
        cli.main(["evaluate", str(other), str(shapes), "--json"])
        told = json.loads(capsys.readouterr().out)
        assert (told["learnt"], told["learnt_known"]) == (learnt, False)
    (other / "splits.csv").write_text("path,label,split\nred/000.png,red\n")
    with pytest.raises(NotARun, match=r"splits\.csv is damaged"):
        burnish.evaluate(other, shapes)


def test_what_a_run_learnt_from_is_found_in_a_data_set_too_and_never_said_to_be_all(run, shapes):
    """Items of two data sets have the same numbers, which say nothing."""
    files = sorted(shapes.rglob("*.png"))
    found = burnish.evaluate(run.folder, [(str(file), file.parent.name) for file in files])
    assert found.learnt == run.facts["counts"]["train"] + run.facts["counts"]["val"] and not found.learnt_known
    drawn = burnish.evaluate(run.folder, [(Image.open(file), file.parent.name) for file in files])
    assert not drawn.learnt_known


def test_a_package_that_was_copied_alone_is_opened_in_python(run, shapes, tmp_path):
    shutil.copytree(package_folder(run.folder), tmp_path / "package")
    predictor = burnish.Predictor.open(str(tmp_path / "package"))
    file = next(shapes.rglob("*.png"))
    assert predictor.predict(file)[0].label == run.predict(file)[0].label
    assert repr(predictor).startswith("Predictor(3 classes: ")


def test_of_many_classes_an_evaluation_names_the_likeliest_and_scores_all(run, shapes, monkeypatch):
    whole = burnish.evaluate(run.folder, shapes)
    assert all(len(one.classes) == 3 for one in whole.predictions)
    monkeypatch.setattr(evaluating, "_ALL_NAMED", 2)
    monkeypatch.setattr(evaluating, "_NAMED", 1)
    part = burnish.evaluate(run.folder, shapes)
    assert all(len(one.classes) == 1 for one in part.predictions)
    assert part.scores.to_json() == whole.scores.to_json()


def test_an_earlier_run_whose_images_are_not_known_is_told_as_such(run, shapes, tmp_path):
    package = tmp_path / "package"
    shutil.copytree(run.folder / json.loads((run.folder / "package.json").read_text())["current"], package)
    later = burnish.fit(shapes, out=tmp_path / "later", cache="off", against=str(package), **QUICK)
    (told,) = [one for one in later.facts["baselines"] if one["key"] == "against"]
    assert "not known whether it learnt" in told["name"]
    known = burnish.fit(shapes, out=tmp_path / "known", cache="off", against=str(run.folder), **QUICK)
    (told,) = [one for one in known.facts["baselines"] if one["key"] == "against"]
    assert "not known" not in told["name"]


# ---- whose folder is whose ---------------------------------------------------------------------------------------------


def test_a_finished_run_is_not_handed_back_for_other_images(run, shapes, tmp_path):
    other = tmp_path / "other"
    write_shapes(other, images=21)
    with pytest.raises(RunError, match="finished run on other images, labels or splits"):
        burnish.fit(other, out=run.folder, cache="off", **QUICK)
    again = burnish.fit(shapes, out=run.folder, cache="off", **QUICK)
    assert again.facts == run.facts


def test_a_run_of_a_version_that_noted_no_images_is_handed_back(shapes, tmp_path):
    found = burnish.fit(shapes, out=tmp_path / "run", cache="off", **QUICK)
    asked = json.loads((found.folder / "run.json").read_text())
    assert asked.pop("images")
    (found.folder / "run.json").write_text(json.dumps(asked))
    assert burnish.fit(shapes, out=found.folder, cache="off", **QUICK).facts == found.facts


def test_images_changed_before_anything_came_of_a_run_are_taken(tmp_path):
    with RunFolder.open(tmp_path / "run") as folder:
        folder.begin({"seed": 0}, images="one")
        folder.write("splits.csv", "")
        assert folder.begin({"seed": 0}, images="two")
        assert json.loads((tmp_path / "run" / "run.json").read_text())["images"] == "two"


def test_the_digest_tells_paths_labels_and_splits_but_not_their_order(shapes, tmp_path):
    one = api.opened(shapes, None)
    assert one.at(np.arange(len(one))[::-1]).digest == one.digest
    assert one.at(np.arange(len(one) - 1)).digest != one.digest
    write_shapes(tmp_path / "elsewhere", images=20)
    assert api.opened(tmp_path / "elsewhere", None).digest == one.digest


def test_a_finished_comparison_is_of_its_images(shapes, tmp_path):
    settings = {"models": ["random:test_resnet"], "methods": ["probe"], "budget": None, "image_size": 64}
    burnish.compare(shapes, out=tmp_path / "race", **settings)
    with pytest.raises(DataError, match="nowhere"):
        burnish.compare(tmp_path / "nowhere", out=tmp_path / "race", **settings)
    write_shapes(tmp_path / "other", images=21)
    with pytest.raises(RunError, match="other images"):
        burnish.compare(tmp_path / "other", out=tmp_path / "race", **settings)
    assert burnish.compare(shapes, out=tmp_path / "race", **settings)["rows"]


def test_an_audit_is_written_over_no_run_and_not_into_the_data(run, shapes, tmp_path):
    before = (run.folder / "result.json").read_bytes()
    for folder in (run.folder, shapes):
        with pytest.raises(RunError, match="holds no audit"):
            api.audit(shapes, model=None, cache="off", out=folder)
    assert (run.folder / "result.json").read_bytes() == before
    for _ in range(2):
        api.audit(shapes, model=None, cache="off", out=tmp_path / "audit")
    (tmp_path / "audit" / "audit.html").unlink()  # what is left might be anyone's result
    with pytest.raises(RunError, match=r"result\.json is in it"):
        api.audit(shapes, model=None, cache="off", out=tmp_path / "audit")


@pytest.mark.skipif(disk.fcntl is None, reason="no locks on this system")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_used_without(number, tmp_path, monkeypatch):
    def refuse(descriptor, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(disk.fcntl, "flock", refuse)
    monkeypatch.chdir(tmp_path)
    with RunFolder.free("photos") as folder:
        assert folder.path.name == "photos-1"


def test_a_folder_that_cannot_be_removed_does_not_hide_the_mistake(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    done = subprocess.run(
        [sys.executable, "-m", "burnish", "fit", "../typo", "--out", "."], capture_output=True, text=True
    )
    assert done.returncode == 2 and "typo" in done.stderr, done.stderr


def test_a_program_without_an_output_ends_as_it_does_with_one(run, shapes, tmp_path):
    command = f"{sys.executable} -m burnish predict {run.folder} {shapes} --csv {tmp_path / 'x.csv'} >&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 61


# ---- what stdout refuses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end, codes", [("| head -1; exit ${PIPESTATUS[0]}", {141}), ("> /dev/full", {2})])
@pytest.mark.parametrize("verb", ["predict", "methods"])
def test_a_closed_pipe_and_a_full_disk_have_codes_of_their_own(verb, end, codes, run, shapes):
    if end.startswith(">") and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    what = f"predict {run.folder} {' '.join(60 * [str(shapes)])}" if verb == "predict" else "methods"
    begin = "head -c1" if verb == "methods" else "head -1"
    command = f"{sys.executable} -m burnish {what} {end.replace('head -1', begin)}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    if verb == "methods" and end.startswith("|"):
        codes = codes | {0}  # a pipe holds so few lines whole
    assert done.returncode in codes, done.stderr


def test_an_address_is_not_taken_for_a_file_that_is_missing():
    with pytest.raises(DataError, match=r"^https://x\.org/a\.jpg: web addresses are not fetched; download it first"):
        expand(["https://x.org/a.jpg"])


def test_a_folder_of_many_links_is_listed_in_a_time_that_grows_with_their_number(tmp_path, monkeypatch):
    """Not with its square, which is minutes for those that a tool made of a collection elsewhere."""
    links = [Named(f"{number:06d}.png", LINK_OUT) for number in range(30_000)]
    monkeypatch.setattr("burnish.ship.images.scan", lambda _: Scan([], [], links))
    monkeypatch.setattr("os.path.isfile", lambda _: True)
    began = time.process_time()
    assert len(expand([tmp_path])) == 30_000
    assert time.process_time() - began < 5.0
