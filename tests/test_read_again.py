"""What two more readings of the code found: kept pixels and the clock, images that change, runs from elsewhere, odd layouts."""

from __future__ import annotations

import csv
import io
import os
import sys
import tarfile
import tempfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from burnish import api, archives, seeds
from burnish import trained as trained_stage
from burnish.backbones import zoo
from burnish.choose import material as gathering
from burnish.choose.ledger import Ledger, states_of_other_versions
from burnish.choose.material import Bench, _Reader, gather
from burnish.choose.probing import plain_at
from burnish.data import contents
from burnish.data.audit import twins
from burnish.data.audit.classes import class_findings
from burnish.data.audit.quarantine import read_quarantine
from burnish.data.contents import Spool
from burnish.data.looks import look_at, read_digests
from burnish.data.pixels import read_all
from burnish.data.sources import open_source
from burnish.data.split import make_splits, read_splits, write_splits
from burnish.data.store import PixelStore
from burnish.disk import write_whole
from burnish.errors import DataError, NotARun, NotEnoughData, RunError, UnreadableImage, cell, uncelled
from burnish.measure import ood
from burnish.measure.ood import Familiarity
from burnish.recipe import Recipe
from burnish.result import IMAGES, PICTURES, PREDICTIONS, RESULT, SPLITS, RunFolder, read_facts, read_pictures, sides_in
from burnish.runtime import Clock, Nobody
from burnish.terms import Preprocess
from burnish.train.around import pick_device
from burnish.verbs.options import print_json
from conftest import write_shapes

TINY = {"model": "random:test_resnet", "image_size": 32, "budget": None, "method": "probe", "cache": "off"}


class Told(Nobody):
    """A watcher that keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.fixture
def images(tmp_path):
    """A folder of its own, whose files may be changed."""
    write_shapes(tmp_path / "images", images=12)
    return tmp_path / "images"


def bench_for(store=None, **recipe):
    backbone = zoo.load_backbone("random:test_resnet", image_size=32)
    return Bench(
        Recipe(model="random:test_resnet", **recipe),
        backbone,
        pick_device("cpu"),
        Clock.start(None, from_process_start=False),
        Nobody(),
        store=store,
    )


def gathered(data, bench):
    """(material, looks) of a folder."""
    catalog = open_source(data)
    looks = look_at(catalog, np.arange(len(catalog)), workers=1)
    found, _ = gather(
        catalog,
        make_splits(catalog, seed=0),
        looks,
        bench,
        bench.backbone.preprocess,
        trains=False,
        decoded_per_second=7.0,
    )
    return found, looks


# ---- the clock -----------------------------------------------------------------------------------------------------


def test_kept_pixels_say_nothing_of_how_fast_images_are_decoded(images, tmp_path):
    bench = bench_for(PixelStore(tmp_path / "kept"))
    assert gathered(images, bench)[0].decoded_per_second > 7.0, "all were decoded"
    assert gathered(images, bench)[0].decoded_per_second == 7.0, "none were: as the survey timed it"


def test_a_reader_without_a_survey_tells_its_own_rate(images):
    catalog = open_source(images)
    looks = look_at(catalog, np.arange(len(catalog)), workers=1)
    reader = _Reader(catalog, looks, bench_for(), Preprocess(size=32), None)
    assert len(reader.read(np.arange(6), None).ids) == 6 and reader.rate > 0.0


def test_several_trainings_look_at_images_for_the_time_of_one(monkeypatch, images):
    asked = []
    monkeypatch.setattr(
        gathering, "_looked_at_in_time", lambda catalog, seconds: (asked.append(seconds), len(catalog))[1]
    )
    for count in (1, 5):
        gathering.first_splits(open_source(images), Recipe(budget_seconds=100.0, seeds=count), Nobody())
    gathering.first_splits(open_source(images), Recipe(budget_seconds=None, seeds=5), Nobody())
    assert asked == [100.0, 20.0, None]


def test_the_other_seeds_have_the_address_that_was_asked_for(monkeypatch, tmp_path):
    """The facts of the first are without its query and its fragment, where the hash of a file from the web stands."""
    address, asked = "https://here.invalid/w.pth?token=1#sha256=" + 64 * "0", []

    def job(catalog, recipe, folder, clock, *, by_clock):
        asked.append(recipe.model)
        raise KeyboardInterrupt

    facts = {"seconds": 1.0, "recipe": {"model": "https://here.invalid/w.pth", "crop_mode": "center"}, "scores": {
        "probe": {"accuracy": {"value": 0.5}}}, "kept": "probe", "method": "probe"}  # fmt: skip
    monkeypatch.setattr(seeds, "_with_splits", lambda catalog, *_: catalog)
    monkeypatch.setattr(seeds, "method_of", lambda facts: "probe")
    for model, expected in ((address, address), ("auto", "https://here.invalid/w.pth")):
        with RunFolder.open(tmp_path / model[:4]) as folder, pytest.raises(KeyboardInterrupt):
            recipe = Recipe(model=model, seeds=2)
            seeds.other_seeds(job, None, recipe, folder, facts, Clock.start(None, from_process_start=False), Nobody())
        assert asked.pop() == expected


# ---- a disk that refuses ------------------------------------------------------------------------------------------------


def test_training_goes_on_where_a_better_model_cannot_be_saved(monkeypatch):
    def full(*_):
        raise RunError("the disk is full")

    told, refused = Told(), []
    bench = SimpleNamespace(watcher=told, recipe=SimpleNamespace(method="full"))
    tuning = SimpleNamespace(
        bench=bench, material=None, tunable=SimpleNamespace(backbone=None), classifier=lambda candidate: None
    )
    monkeypatch.setattr(trained_stage, "tuned_contender", lambda *_, **__: None)
    monkeypatch.setattr(trained_stage, "save", full)
    for _ in range(2):
        assert not trained_stage._is_saved(SimpleNamespace(), tuning, None, told=refused)
    assert told.lines == ["the better model could not be saved, training goes on: the disk is full"]
    monkeypatch.setattr(trained_stage, "save", lambda *_: None)
    assert trained_stage._is_saved(SimpleNamespace(), tuning, None, told=refused)


def test_a_run_whose_packages_are_refused_while_it_trains_comes_to_its_end(shapes, tmp_path, monkeypatch):
    """And to the same weights and scores."""
    settings = {**TINY, "method": "full", "epochs": 4}
    monkeypatch.setattr(trained_stage, "_is_saved", lambda *_, told: bool(told.append(None)))
    found = api.fit(shapes, out=tmp_path / "run", **settings)
    monkeypatch.undo()
    assert found.facts["scores"] == api.fit(shapes, out=tmp_path / "other", **settings).facts["scores"]


def test_a_part_that_a_disk_takes_is_not_all(monkeypatch):
    class Slow(io.BytesIO):
        def write(self, data):
            return super().write(bytes(data)[:100])

    held = Slow()
    monkeypatch.setattr(contents, "IN_MEMORY_BYTES", 10)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: held)
    spool = Spool()
    first, second = spool.add(bytes(range(256))), spool.add(b"x" * 300)
    assert (first, second) == ((0, 256), (256, 300)) and held.getvalue() == bytes(range(256)) + b"x" * 300


def test_a_state_folder_that_cannot_be_listed_is_said(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("burnish.train.checkpoint.versions_of", refused)
    with pytest.raises(RunError, match="Input/output error"), states_of_other_versions(tmp_path):
        Ledger(tmp_path, Clock.start(None, from_process_start=False), Nobody())


def test_a_folder_of_a_comparison_that_cannot_be_begun_is_let_go(shapes, tmp_path, monkeypatch):
    real = RunFolder.begin

    def refused(self, asked, **options):
        if self.path.parent.name == "arms" or "models" in self.path.parts:
            raise RunError("the disk is full")
        return real(self, asked, **options)

    settings = {**TINY, "models": ["random:test_resnet"], "methods": ["probe"]}
    del settings["model"], settings["method"]
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "begin", refused)
        with pytest.raises(RunError, match="the disk is full"):
            api.compare(shapes, out=tmp_path / "race", **settings)
    assert api.compare(shapes, out=tmp_path / "race", **settings)["rows"]


# ---- images that change -------------------------------------------------------------------------------------------------


def test_an_image_that_changed_is_not_taken_at_another_size(images):
    bench = bench_for()
    material, _ = gathered(images, bench)
    ids = material.fitting.ids[:3]
    before = plain_at(material, ids, Preprocess(size=48), bench)[:]
    assert before.shape == (3, 48, 48, 3)
    Image.new("RGB", (40, 32)).save(images / material.catalog.paths[ids[1]])
    with pytest.raises(UnreadableImage, match=r"cannot now .*it changed"):
        plain_at(material, ids, Preprocess(size=48), bench)
    assert len(plain_at(material, material.test.ids, Preprocess(size=48), bench)) == len(material.test.ids)


def test_what_was_not_read_at_the_first_look_is_named(images):
    catalog = open_source(images)
    digests = list(look_at(catalog, np.arange(len(catalog)), workers=1).digests)
    digests[2] = "unread 2"
    found = read_all(catalog, np.arange(len(catalog)), {}, {}, workers=1, digests=digests)
    assert [(one.path, one.reason) for one in found.named] == [
        (catalog.paths[2], "it could not be read when it was first looked at; run again")
    ]


def test_a_finished_run_is_not_handed_back_for_other_images(images, tmp_path):
    api.fit(images, out=tmp_path / "run", **TINY)
    assert len(read_digests(tmp_path / "run" / IMAGES)) == 36
    told = Told()
    assert api.fit(images, out=tmp_path / "run", watcher=told, **TINY) and "is finished" in told.lines[-1]
    for file in sorted(images.rglob("*.png")):
        Image.open(file).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(file)
    with pytest.raises(RunError, match=r"holds a finished run, and of 36 of its images .* 36 have changed"):
        api.fit(images, out=tmp_path / "run", **TINY)


def test_nor_for_other_arrays(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    pixels = rng.integers(0, 100, (40, 32, 32, 3), np.uint8)
    pixels[labels == 1, ..., 0] += 100
    first = api.fit((pixels, labels), out=tmp_path / "a", **TINY)
    assert api.fit((pixels, labels), out=tmp_path / "a", **TINY).facts == first.facts
    with pytest.raises(RunError, match="have changed"):
        api.fit((pixels[:, ::-1].copy(), labels), out=tmp_path / "a", **TINY)
    api.fit((255 - pixels, labels), out=tmp_path / "b", **TINY)
    with pytest.raises(NotEnoughData, match="no test image in common"):
        api.report_runs([tmp_path / "a", tmp_path / "b"], out=tmp_path / "runs.html")
    assert api.evaluate(tmp_path / "a", (255 - pixels, labels)).learnt == 0, "numbers alike are not images alike"
    assert api.evaluate(tmp_path / "a", (pixels, labels)).learnt > 20


def test_images_are_known_again_under_another_name(images, tmp_path):
    api.fit(images, out=tmp_path / "run", **TINY)
    sides = sides_in(tmp_path / "run" / SPLITS)
    images.rename(tmp_path / "moved")
    (tmp_path / "outer").mkdir()
    (tmp_path / "moved").rename(tmp_path / "outer" / "photos")
    table = tmp_path / "table.csv"
    files = sorted((tmp_path / "outer").rglob("*.png"))
    table.write_text("path,label\n" + "".join(f"{file.relative_to(tmp_path)},{file.parent.name}\n" for file in files))
    assert api.evaluate(tmp_path / "run", table).learnt == sum(side != "test" for side in sides.values())
    (tmp_path / "run" / IMAGES).unlink()  # a run of before
    assert api.evaluate(tmp_path / "run", table).learnt == 0
    assert api.evaluate(tmp_path / "run", tmp_path / "outer" / "photos").learnt > 0


def test_a_data_set_that_draws_anew_is_known_by_its_numbers(tmp_path):
    class Drawing:
        classes, targets = ["a", "b"], [at % 2 for at in range(40)]

        def __init__(self):
            self.rng = np.random.default_rng(0)

        def __len__(self):
            return 40

        def __getitem__(self, at):
            pixels = self.rng.integers(0, 100, (32, 32, 3), np.uint8)
            pixels[..., at % 2] += 100
            return pixels, at % 2

    first = api.fit(Drawing(), out=tmp_path / "run", **TINY)
    assert not (tmp_path / "run" / IMAGES).exists()
    assert api.fit(Drawing(), out=tmp_path / "run", **TINY).facts == first.facts
    assert api.evaluate(tmp_path / "run", Drawing()).learnt > 0


# ---- runs from elsewhere ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    return api.fit(shapes, out=tmp_path_factory.mktemp("again") / "run", **TINY)


def test_a_page_does_not_follow_a_link_in_a_run(run, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    page = run.folder / "report.html"
    page.unlink()
    page.symlink_to(precious)
    assert api.report(run.folder) == page
    assert precious.read_text() == "mine" and not page.is_symlink() and page.read_text().startswith("<!doctype html>")
    assert page.stat().st_mode & 0o777 == 0o666 & ~_umask()
    link = tmp_path / "named.html"
    precious.write_text("<!doctype html>an older page")
    link.symlink_to(precious)
    api.report(run.folder, out=link)
    assert link.is_symlink() and precious.read_text() == page.read_text(), "a link that is named is meant"


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with a name")
def test_a_pipe_among_a_runs_files_is_not_waited_for(run, tmp_path):
    for name in (PICTURES, SPLITS, PREDICTIONS, RESULT):
        os.mkfifo(tmp_path / name)
    assert read_pictures(tmp_path) == {} and sides_in(tmp_path / SPLITS) == {}
    with pytest.raises(NotARun):
        read_facts(tmp_path)
    os.mkfifo(tmp_path / "page")
    write_whole(tmp_path / "page", "text")
    assert (tmp_path / "page").read_text() == "text"


def test_facts_that_are_nested_too_deeply_are_a_sentence(tmp_path):
    (tmp_path / RESULT).write_text("[" * 200_000)
    with pytest.raises(NotARun, match="cannot be read"):
        read_facts(tmp_path)


def test_a_home_folder_is_found_wherever_a_folder_is_named(shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = api.fit(shapes, out="~/run", **{**TINY, "cache": "~/kept"})
    assert found.folder == tmp_path / "run" and (tmp_path / "kept").is_dir() and not (tmp_path / "~").exists()
    assert api.open_run("~/run").facts == found.facts
    assert api.evaluate("~/run", shapes).scores.accuracy.n == 60
    assert api.report("~/run", out="~/page.html") == tmp_path / "page.html"
    with RunFolder.of("~/other", "data") as folder:
        assert folder.path == tmp_path / "other"


def test_json_to_an_output_that_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    print_json({"a": 1})


# ---- layouts ------------------------------------------------------------------------------------------------------------


def test_splits_within_class_folders_are_not_mixed(images, tmp_path):
    for file in sorted(images.rglob("*.png")):
        inner = file.parent / ("test" if file.stem < "004" else "Train")
        inner.mkdir(exist_ok=True)
        file.rename(inner / file.name)
    with pytest.raises(DataError, match=r"splits within its folders \('blue' holds .*Put the splits outside"):
        open_source(images)
    for file in list(images.rglob("*.png")):
        inner = file.parent.parent / ("indoor" if file.parent.name == "test" else "Train")
        inner.mkdir(exist_ok=True)
        file.rename(inner / file.name)
    assert open_source(images).classes == ("blue", "green", "red"), "other folders in classes are theirs"


def packed(root, target, extra):
    """A tar of the images in class folders, and of texts beside them: name -> what it holds."""
    with tarfile.open(target, "w") as tar:
        for file in sorted(root.rglob("*.png")):
            tar.add(file, file.relative_to(root).as_posix())
        for name, text in extra.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return target


def test_a_note_beside_an_image_in_a_tar_is_no_label(images, tmp_path):
    some = packed(images, tmp_path / "some.tar", {"blue/000.txt": "hello", "red/001.json": "{}"})
    found = open_source(some)
    assert found.classes == ("blue", "green", "red") and len(found) == 36
    names = [file.relative_to(images).with_suffix(".txt").as_posix() for file in images.rglob("*.png")]
    with pytest.raises(DataError, match=r"all\.tar holds images in folders \(blue, green, …\).*may say the class"):
        open_source(packed(images, tmp_path / "all.tar", dict.fromkeys(names, "a caption")))
    told = {name.replace(".txt", ".cls"): str(at % 2) for at, name in enumerate(sorted(names))}
    assert open_source(packed(images, tmp_path / "shard.tar", told)).classes == ("0", "1")
    for at, name in enumerate(sorted(path.name for path in images.iterdir())):
        (images / name).rename(images / f"{at:05d}")
    numbered = {f"{at:05d}/{number:03d}.json": '{"label": "x"}' for at in range(3) for number in range(12)}
    numbered |= {f"{0:05d}/{number:03d}.json": '{"label": "y"}' for number in range(12)}
    assert open_source(packed(images, tmp_path / "numbered.tar", numbered)).classes == ("x", "y")


def test_what_is_not_asked_for_in_a_tar_is_not_read(images, tmp_path):
    big = packed(images, tmp_path / "big.tar", {"notes/large.bin": "x" * 4_000_000})
    read = []

    class Counted(io.FileIO):
        def read(self, size=-1):
            data = super().read(size)
            read.append(len(data))
            return data

    with Counted(big) as file:
        names = [info.name for _, info in archives.entries_of_tar(file, "big.tar", skips=True)]
    assert len(names) == 37 and sum(read) < 100_000
    cut = tmp_path / "cut.tar"
    cut.write_bytes(big.read_bytes()[:-2_000_000])
    with pytest.raises(DataError, match=r"cut\.tar"):
        open_source(cut)


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


def test_a_list_that_a_spreadsheet_saved_with_semicolons_is_read(tmp_path):
    for separator in ";\t,":
        file = tmp_path / "audit.csv"
        rows = [["path", "exclude", "evidence"], ["a,b.png", "yes", "why; so"], ["c.png", "no", ""]]
        with open(file, "w", newline="") as stream:
            csv.writer(stream, delimiter=separator).writerows(rows)
        assert read_quarantine(file) == {"a,b.png": "why; so"}


def test_splits_are_safe_for_a_spreadsheet_and_read_back(tmp_path):
    write_shapes(tmp_path / "data", images=8, classes=("=1+1", "-1", "'=x"))
    catalog = open_source(tmp_path / "data")
    made = make_splits(catalog, seed=0)
    write_splits(tmp_path / SPLITS, catalog, made)
    first = {line.split(",")[0][:2] for line in (tmp_path / SPLITS).read_text().splitlines()[1:]}
    assert first == {"'=", "''", "'-"}, "a path that begins with -1 is no number"
    assert read_splits(tmp_path / SPLITS, catalog, sha256=made.sha256).sha256 == made.sha256
    assert set(sides_in(tmp_path / SPLITS)) == set(catalog.paths)


@pytest.mark.parametrize("name", ["=1", "'=1", "''=1", "-1", "'-1", "-a", "@b", "plain", "'", "", "'quoted'"])
def test_names_in_cells_are_read_back(name):
    assert uncelled(cell(name)) == name and not cell(name).startswith(("=", "@", "-a"))


# ---- memory -------------------------------------------------------------------------------------------------------------


def test_distances_from_classes_are_taken_in_pieces(monkeypatch):
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(120, 40)).astype(np.float32), np.arange(120) % 6
    made = Familiarity.of(features, labels).limited_by(features[:30])
    answers = np.full((120, 6), 1 / 6)
    whole = made.strangeness(features, answers)
    monkeypatch.setattr(ood, "_NUMBERS_AT_ONCE", 7 * len(made.centres))
    assert np.allclose(made.strangeness(features, answers), whole, rtol=1e-12, atol=1e-9)
    assert len(made.strangeness(features[:0], answers[:0])) == 0


@pytest.mark.parametrize("name", ["mean", "within", "centres"])
def test_what_is_familiar_is_told_by_numbers(name):
    rng = np.random.default_rng(0)
    arrays = Familiarity.of(rng.normal(size=(60, 8)).astype(np.float32), np.arange(60) % 3).arrays()
    assert Familiarity.from_arrays(arrays, 8).centres.shape == (3, 8)
    arrays[name] = arrays[name] * np.float32("nan")
    with pytest.raises(ValueError, match=f"{name} with NaN"):
        Familiarity.from_arrays(arrays, 8)


def test_the_grey_of_small_squares_is_held_once_and_small():
    thumbs = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)
    thumbs[3] = thumbs[4] = 128
    grey, chroma, spread = twins._parts(thumbs)
    assert grey.element_size() == 2 and grey.shape == (20, 64, 64) and chroma.shape == (20, 2, 4, 4)
    assert (spread < 1e-3).nonzero()[0].tolist() == [3, 4]
