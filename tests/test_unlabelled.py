"""What is to be named may lie in an archive, or stand in a table: no labels are asked for."""

import csv
import io
import json
import re
import shutil
import zipfile

import pytest

import burnish
from burnish.api import write_predictions
from burnish.errors import DataError, RecipeError
from burnish.screen import print_predictions
from burnish.ship.answering import Prediction
from conftest import burnish as command


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    tiny = {"model": "random:test_resnet", "image_size": 32, "budget": None, "method": "probe", "cache": "off"}
    return burnish.fit(shapes, out=tmp_path_factory.mktemp("unlabelled") / "run", **tiny)


@pytest.fixture
def home(shapes, tmp_path):
    """A folder with some images, and those in archives and tables."""
    for name in ("red/000.png", "red/001.png", "blue/000.png"):
        (tmp_path / "some" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shapes / name, tmp_path / "some" / name)
    for kind in ("zip", "tar", "gztar"):
        shutil.make_archive(str(tmp_path / "packed"), kind, tmp_path / "some")
    return tmp_path


def answers(run, images):
    return [(one.label, one.probability) for one in run.predict(images)]


@pytest.mark.parametrize("name", ["packed.zip", "packed.tar", "packed.tar.gz"])
def test_images_in_an_archive_are_answered_as_those_in_folders(run, home, name):
    assert answers(run, home / name) == answers(run, home / "some")
    first = run.predict([str(home / name)])[0]
    assert re.fullmatch(rf".*{name}/(\./)?blue/000\.png", first.path)


@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.jsonl"])
def test_images_that_a_table_lists_are_answered_line_by_line(run, home, name):
    listed = ["some/red/001.png", "some/blue/000.png", "some/red/001.png"]
    lines = [json.dumps({"path": path}) for path in listed] if name.endswith("l") else ["Path", *listed]
    (home / name).write_text("\n".join(lines) + "\n")
    found = run.predict(home / name)
    assert [one.path for one in found] == [str(home / path) for path in listed]
    assert answers(run, home / name) == answers(run, [home / path for path in listed])


def test_a_table_with_labels_is_a_list_too_and_what_it_names_that_is_no_file_has_its_reason(run, home, capsys):
    rows = ["label;path", "x;some/red/000.png", "y;some/none.png", "z;../some/red/000.png", "z;/etc/hostname", "z;"]
    (home / "list.csv").write_text("\n".join(rows) + "\n")
    code, out, err = command("predict", run.folder, home / "list.csv", "--csv", "-", capsys=capsys)
    told = list(csv.DictReader(io.StringIO(out)))
    assert (code, err) == (1, "4 of the images could not be read\n")
    assert [bool(row["label"]) for row in told] == [True, False, False, False, False]
    assert told[1]["path"] == str(home / "some/none.png") and told[1]["problem"] == "no such file (list.csv, line 3)"
    assert "without '..' (list.csv, line 4)" in told[2]["problem"] and "relative" in told[3]["problem"]
    assert told[4]["problem"] == "the path is empty (list.csv, line 6)"


def test_a_link_in_a_table_s_folder_is_not_followed_out_of_it(run, home, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    shutil.copy(home / "some/red/000.png", outside / "a.png")
    (home / "away").symlink_to(outside)
    (home / "list.csv").write_text("path\naway/a.png\n")
    assert [one.problem for one in run.predict(home / "list.csv")] == [
        "a symbolic link out of the data folder: not followed (list.csv, line 2)"
    ]


def test_members_that_climb_out_or_are_damaged_are_named_and_the_others_answered(run, home):
    with zipfile.ZipFile(home / "packed.zip", "a") as archive:
        archive.write(home / "some/red/000.png", "../out.png")
        archive.writestr("red/bad.png", b"no image")
        archive.writestr("notes.txt", b"not asked about")
    found = {one.path.rpartition("/")[2]: one for one in run.predict(home / "packed.zip")}
    assert set(found) == {"000.png", "001.png", "bad.png", "out.png"}
    assert found["000.png"].label and found["bad.png"].problem and found["out.png"].problem


def test_rows_of_a_parquet_file_are_answered(run, home):
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = [home / "some/red/000.png", home / "some/blue/000.png"]
    pq.write_table(pa.table({"image": [one.read_bytes() for one in files], "label": ["a", "b"]}), home / "some.parquet")
    assert answers(run, home / "some.parquet") == answers(run, files)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.zip", b"hello", r"a\.zip is no archive that is read\. Expected a \.zip or \.tar"),
        ("a.zip", b"", r"a\.zip is no archive"),
        ("a.csv", b"image\nx.png\n", r"has the columns 'image'; expected path\. Rename"),
        ("a.csv", "path\nx.png\n".encode("utf-16"), r"is not UTF-8"),
        ("a.csv", b"path\n", r"a\.csv lists no images"),
        ("a.jsonl", b"\n", r"a\.jsonl lists no images"),
        ("a.jsonl", b'{"file": "x.png"}\n', r"line 1: it has no path"),
        ("a.tar", b"\0" * 1024, r"a\.tar"),
    ],
)
def test_what_is_no_archive_and_no_list_is_a_sentence(run, tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        run.predict(tmp_path / name)


def test_answers_are_not_written_over_the_list_that_they_answer(run, home):
    text = "path\nsome/red/000.png\n"
    (home / "list.csv").write_text(text)
    with pytest.raises(RecipeError, match=r"list\.csv holds, lists or is one of the images"):
        write_predictions(home / "list.csv", run.predictor, [str(home / "list.csv")])
    assert (home / "list.csv").read_text() == text


def pack_rows(file, columns):
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), file)


@pytest.mark.parametrize("column", ["image", "path"])
def test_a_parquet_file_of_images_to_be_named_needs_no_labels(run, home, column):
    files = [home / "some/red/000.png", home / "some/blue/000.png"]
    cells = [one.read_bytes() if column == "image" else f"some/{one.parent.name}/{one.name}" for one in files]
    pack_rows(home / "plain.parquet", {column: cells})
    assert answers(run, home / "plain.parquet") == answers(run, files)


def test_labels_of_a_test_set_that_tell_nothing_are_not_looked_at(run, home):
    files = [home / "some/red/000.png", home / "some/blue/000.png"]
    pack_rows(home / "test.parquet", {"image": [one.read_bytes() for one in files], "label": [-1.5, None]})
    assert answers(run, home / "test.parquet") == answers(run, files)


def test_a_parquet_file_without_images_says_what_is_expected_of_one_to_be_named(run, home):
    pack_rows(home / "x.parquet", {"photo": ["a.png"]})
    with pytest.raises(DataError, match=r"x\.parquet has the columns photo; expected path or the images themselves"):
        run.predict(home / "x.parquet")


def test_a_folder_of_archives_and_parquet_files_is_answered_by_what_they_hold(run, home):
    folder = home / "shards"
    folder.mkdir()
    shutil.copy(home / "packed.zip", folder / "0.zip")
    shutil.copy(home / "packed.tar", folder / "1.tar")
    pack_rows(folder / "2.parquet", {"image": [(home / "some/red/000.png").read_bytes()]})
    shutil.copy(folder / "2.parquet", folder / "cache-2.arrow")
    files = ["blue/000.png", "red/000.png", "red/001.png"]
    found, alone = run.predict(folder), run.predict([home / "some" / one for one in [*files, *files, "red/000.png"]])
    places = [*(f"0.zip/{one}" for one in files), *(f"1.tar/{one}" for one in files), "2.parquet/2.parquet#000001"]
    assert [one.path.replace("/./", "/") for one in found] == [str(folder / place) for place in places]
    assert [(one.label, one.probability) for one in found] == [(one.label, one.probability) for one in alone]


def test_a_folder_of_images_and_archives_is_answered_whole_and_what_cannot_be_read_has_its_reason(run, home, capsys):
    shutil.copy(home / "packed.zip", home / "some/more.zip")
    (home / "some/broken.tar.gz").write_bytes(b"no archive")
    (home / "some/list.csv").write_text("path\nred/000.png\n")
    with zipfile.ZipFile(home / "some/notes.zip", "w") as archive:
        archive.writestr("notes.txt", b"no image")
    with zipfile.ZipFile(home / "some/phone.zip", "w") as archive:
        archive.writestr("IMG_1.HEIC", b"of a telephone")
    pack_rows(home / "some/same.parquet", {"path": ["red/000.png", "red/none.png"]})
    code, out, err = command("predict", run.folder, home / "some", "--json", capsys=capsys)
    told = [(row["path"].removeprefix(f"{home}/some/"), row["problem"]) for row in json.loads(out)]
    assert (code, err) == (1, "3 of the images could not be read\n")
    plain = ["blue/000.png", "red/000.png", "red/001.png"]
    assert [path for path, problem in told if problem is None] == [*plain, *(f"more.zip/{one}" for one in plain)]
    assert {path: problem for path, problem in told if problem is not None} == {
        "broken.tar.gz": "broken.tar.gz is no archive that is read. Expected a .zip or .tar of images.",
        "phone.zip/IMG_1.HEIC": "HEIC is not read: save it as JPEG, PNG or TIFF",
        "red/none.png": "no such file (same.parquet, row 2)",
    }


def test_a_folder_that_holds_but_a_list_says_to_give_the_list(run, home):
    (home / "lists").mkdir()
    (home / "lists/list.csv").write_text("path\nx.png\n")
    with pytest.raises(
        DataError, match=r"lists holds no image files; to have those named that list\.csv lists, give it by"
    ):
        run.predict(home / "lists")


def test_a_set_of_hundreds_of_classes_is_counted_on_the_screen(capsys):
    """Of 1,050 classes a line had 30,000 characters."""
    names = tuple(f"class {number}" for number in range(500))
    print_predictions(
        [Prediction("a.png", names[:1], (0.1,), set=names), Prediction("b.png", names[:1], (0.9,), set=names[:2])]
    )
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("class 19 and 480 more}") and second.endswith("\t{class 0, class 1}")
