"""Promises of slim: a smaller package that every verb takes, chosen by images it has not learnt from, with a true proof."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from burnish import api, cli
from burnish.data.sources import open_source
from burnish.errors import BadWeights, DataError, NotARun, NotEnoughData, RecipeError, RunError
from burnish.measure import kept
from burnish.measure.kept import judge_kept, may_take
from burnish.record.folder import sides_in
from burnish.runtime import Nobody
from burnish.ship.bundle import package_folder, read_bundle, write_bundle
from burnish.ship.slim_weights import BYTE, FULL, HALF, packed, stored_as, unpacked
from burnish.use import slim_ways, slimming
from burnish.use.slim_ways import sizes_below
from conftest import write_shapes

TINY = {"model": "random:test_resnet", "image_size": 64, "budget": None, "cache": "off"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """60 images of each of three classes."""
    root = tmp_path_factory.mktemp("slim") / "photos"
    write_shapes(root, images=60)
    return root


@pytest.fixture(scope="module")
def tuned(photos, tmp_path_factory):
    return api.fit(photos, out=tmp_path_factory.mktemp("runs") / "tuned", method="full", epochs=1, **TINY).folder


@pytest.fixture(scope="module")
def frozen(photos, tmp_path_factory):
    return api.fit(photos, out=tmp_path_factory.mktemp("runs") / "frozen", method="multiprobe", **TINY).folder


@pytest.fixture(scope="module")
def slims(tuned, frozen):
    """(run, what slim made of it) of a tuned network and of a frozen one; nine points may be lost of so few images."""
    return {run.name: (run, api.slim(run, lose=20, onnx="off")) for run in (tuned, frozen)}


# ---- weights ---------------------------------------------------------------------------------------------------------


def weights():
    draws = torch.Generator().manual_seed(0)
    return {
        "trunk.conv.weight": torch.randn(64, 8, 3, 3, generator=draws) * torch.logspace(-3, 2, 64)[:, None, None, None],
        "trunk.norm.weight": torch.randn(64, generator=draws),
        "trunk.norm.num_batches_tracked": torch.tensor(3),
        "trunk.position": torch.randn(1, 50, 64, generator=draws),
        "head.weight": torch.randn(10, 512, generator=draws),
    }


def test_int8_is_within_half_a_step_of_each_channels_own_scale():
    given = weights() | {"trunk.empty.weight": torch.zeros(64, 64)}
    made = unpacked(packed(given, BYTE))
    assert list(made) == list(given) and all(one.dtype == given[name].dtype for name, one in made.items())
    conv = given["trunk.conv.weight"]
    steps = conv.abs().amax((1, 2, 3), keepdim=True) / 127
    assert ((made["trunk.conv.weight"] - conv).abs() <= 0.501 * steps).all()
    assert not torch.equal(made["trunk.conv.weight"], conv)
    assert torch.equal(made["trunk.empty.weight"], given["trunk.empty.weight"])
    for name in ("trunk.norm.weight", "trunk.norm.num_batches_tracked"):
        assert torch.equal(made[name], given[name])
    for name in ("head.weight", "trunk.position"):  # whose scale would be one for all
        assert torch.equal(made[name], given[name].half().float())


def test_a_number_too_large_for_float16_stays_what_it_is():
    given = {"trunk.conv.weight": torch.full((64, 64), 1e5)}
    assert torch.equal(unpacked(packed(given, HALF))["trunk.conv.weight"], given["trunk.conv.weight"])


def test_what_is_rounded_once_stays_so_when_it_is_rounded_again():
    once = unpacked(packed(weights(), BYTE))
    twice = unpacked(packed(once, BYTE))
    assert all(torch.allclose(once[name], twice[name], rtol=1e-6, atol=0) for name in once)


@pytest.mark.parametrize("stored", [FULL, HALF, BYTE])
def test_what_is_stored_is_told_by_the_tensors(stored):
    assert stored_as(packed(weights(), stored)) == stored


def damages():
    good = packed(weights(), BYTE)
    scale, whole = "scale.trunk.conv.weight", "int8.trunk.conv.weight"
    yield "has the scale none", {name: one for name, one in good.items() if name != scale}
    yield "is the scale of no weights", {name: one for name, one in good.items() if name != whole}
    yield r"has the scale torch.float32 \[3\]", good | {scale: torch.ones(3)}
    yield "is torch.float32", good | {whole: good[whole].float()}
    yield "is there twice", good | {"trunk.conv.weight": torch.zeros(2)}
    yield "is torch.float32, expected torch.float16", good | {"float16.head.weight": torch.zeros(10, 512)}


@pytest.mark.parametrize(("words", "tensors"), list(damages()))
def test_damaged_weights_are_refused_in_a_sentence(words, tensors):
    with pytest.raises(BadWeights, match=words):
        unpacked(tensors)


def test_a_scale_that_is_no_number_makes_the_package_unsound(tuned, tmp_path):
    bundle = read_bundle(tuned)
    made = packed(bundle.state, BYTE)
    next(one for name, one in made.items() if name.startswith("scale."))[0] = float("nan")
    with pytest.raises(RunError, match="NaN or infinite"):
        write_bundle(tmp_path, replace(bundle, state=unpacked(made)))


def test_an_int8_package_is_read_as_what_was_rounded_and_takes_a_third(tuned, tmp_path):
    bundle = read_bundle(tuned)
    folder = write_bundle(tmp_path, replace(bundle, stored=BYTE))
    again = read_bundle(tmp_path)
    assert again.stored == BYTE and bundle.stored == FULL
    expected = unpacked(packed(bundle.state, BYTE))
    assert all(torch.equal(again.state[name], expected[name]) for name in bundle.state)
    whole = package_folder(tuned) / "weights.safetensors"
    assert (folder / "weights.safetensors").stat().st_size < 0.36 * whole.stat().st_size
    assert again.classifier().training is False


# ---- what may be taken -----------------------------------------------------------------------------------------------


def answers(n, wrong):
    found = np.ones(n, bool)
    found[list(wrong)] = False
    return found


@pytest.mark.parametrize(("n", "rules_out"), [(764, False), (765, True)])
def test_half_a_point_is_ruled_out_by_765_images_that_are_all_right(n, rules_out):
    right = answers(n, [])
    found = judge_kept(right, right, right, lose=0.005)
    assert (found.word == "kept") == rules_out == (not found.few)
    assert ("so few could not rule out 0.5 points of any model" in found.sentence()) == (not rules_out)


def test_a_loss_beyond_the_margin_is_lost_and_what_is_not_ruled_out_is_not_proven():
    before, same = answers(2000, range(20)), answers(2000, [])
    assert judge_kept(before, answers(2000, range(80)), same, lose=0.005).word == "lost"
    assert judge_kept(before, answers(2000, [*range(16), *range(100, 106)]), same, lose=0.005).word == "kept"
    assert judge_kept(before, answers(2000, [*range(10), *range(100, 116)]), same, lose=0.005).word == "not proven"
    better = judge_kept(answers(2000, range(80)), before, same, lose=0.005)
    assert better.word == "kept" and better.sentence().startswith(
        "Proven that no more than 0.5 points were lost: 99.0 %"
    )


def test_whole_groups_are_what_is_drawn():
    before, groups = answers(2000, range(20)), np.arange(2000) // 100
    after = answers(2000, range(100, 140))  # all in one group
    alone = judge_kept(before, after, before == after, lose=0.02)
    grouped = judge_kept(before, after, before == after, lose=0.02, groups=groups)
    assert alone.word == "kept" and grouped.word == "not proven"
    assert "of 20 groups" in grouped.sentence()


def test_enough_images_decide_by_the_limit_of_what_is_right():
    loss = np.full(2000, 0.1)
    before = answers(2000, range(20))
    assert may_take((before, answers(2000, range(18, 38))), (loss, loss), lose=0.01).allowed
    refused = may_take((before, answers(2000, range(40))), (loss, loss), lose=0.005)
    assert not refused.allowed and "a loss of more than 0.5 points is not ruled out" in refused.why


def test_too_few_images_decide_by_the_probability_of_what_is_true():
    right = answers(100, range(5))
    rng = np.random.default_rng(0)
    loss = rng.uniform(0.05, 0.1, 100)
    assert may_take((right, right), (loss, loss + 1e-4), lose=0.005).allowed
    unsure = may_take((right, right), (loss, loss + 0.02), lose=0.005)
    assert not unsure.allowed and "too few to rule out 0.5 points by counting" in unsure.why
    assert not may_take((right, answers(100, range(6))), (loss, loss), lose=0.005).allowed


def test_sizes_are_multiples_of_the_usual_stride_down_to_two_fifths():
    assert sizes_below(224) == [192, 160, 128, 96] and sizes_below(64) == [32] and sizes_below(32) == []
    assert sizes_below(260)[0] == 256


# ---- the verb --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tuned", "frozen"])
def test_the_smaller_package_says_what_its_proof_says_it_does(name, slims, photos):
    run, made = slims[name]
    tests = {path for path, side in sides_in(run / "splits.csv").items() if side == "test"}
    files = sorted(photos / path for path in tests)
    first, second = (api.predict(one, files) for one in (run, made.folder))
    proof = made.facts["proof"]
    assert proof["slim"]["n"] == len(files) == proof["original"]["n"]
    for key, found in (("original", first), ("slim", second)):
        hits = np.mean([one.label == path.parent.name for one, path in zip(found, files, strict=True)])
        assert proof[key]["value"] == pytest.approx(hits)
    same = np.mean([one.label == other.label for one, other in zip(first, second, strict=True)])
    assert proof["agreement"]["value"] == pytest.approx(same)
    assert made.facts == json.loads((made.folder / "slim.json").read_text())


@pytest.mark.parametrize("name", ["tuned", "frozen"])
def test_it_is_smaller_and_knows_where_it_came_from(name, slims):
    run, made = slims[name]
    bundle = read_bundle(made.folder)
    assert bundle.stored == BYTE and bundle.classes == read_bundle(run).classes
    assert made.facts["bytes"]["slim"] < 0.5 * made.facts["bytes"]["original"]
    history = bundle.facts["slim"]
    assert history["of"]["run"] == str(run) and history["weights"] == BYTE
    assert history["of"]["created"] == read_bundle(run).created
    assert set(made.facts["milliseconds"]) == {"original", "slim"} and min(made.facts["milliseconds"].values()) > 0


@pytest.mark.parametrize("name", ["tuned", "frozen"])
def test_held_out_answers_are_the_smaller_models_own(name, slims, photos):
    run, made = slims[name]
    before, after = read_bundle(run), read_bundle(made.folder)
    assert after.held_out is not None and before.held_out is not None
    assert len(after.held_out) == len(before.held_out)
    if name == "tuned":
        sides = sides_in(run / "splits.csv")
        val = [path for path in open_source(photos, for_training=False).paths if sides[path] == "val"]
        found = api.Result(made.folder, {}, slimming.Predictor(after)).predict_proba([photos / path for path in val])
        assert found.max(1) == pytest.approx(after.held_out.confidence, abs=1e-5)
    assert (after.familiarity is None) == (before.familiarity is None)
    assert api.predict(made.folder, photos / "red/000.png", sets=0.5)[0].set


def test_every_verb_takes_it(slims, photos, tmp_path):
    _, made = slims["tuned"]
    assert api.evaluate(made.folder, photos).learnt > 0  # what it learnt from is still known
    rows, _ = api.explain(made.folder, photos / "red/000.png", out=tmp_path / "explained")
    assert rows[0].file
    with pytest.raises(RecipeError, match="has learnt from"):
        api.fit(photos, out=tmp_path / "further", **{**TINY, "model": str(made.folder)}, method="probe")
    write_shapes(tmp_path / "others", images=12, classes=("cyan", "magenta"))
    for path in (tmp_path / "others").glob("*/*"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    more = api.fit(tmp_path / "others", out=tmp_path / "more", **{**TINY, "model": str(made.folder)}, method="probe")
    assert more.classes == ("cyan", "magenta")


def test_smaller_images_are_taken_where_they_are_faster_and_lose_little(tuned, tmp_path, monkeypatch):
    monkeypatch.setattr(slim_ways, "interleaved", lambda calls, **_: {n: np.ones(3) * (n == "original") for n in calls})
    monkeypatch.setattr(kept, "quantile", lambda confidence: 0.0)
    made = api.slim(tuned, out=tmp_path / "small", lose=60, onnx="off")
    assert read_bundle(made.folder).preprocess.size == 32
    assert [step["allowed"] for step in made.facts["steps"]] == [True, True]


def test_smaller_images_that_gain_no_time_are_not_taken(tuned, tmp_path, monkeypatch):
    monkeypatch.setattr(slim_ways, "interleaved", lambda calls, **_: {name: np.ones(3) for name in calls})
    made = api.slim(tuned, out=tmp_path / "same", lose=60, onnx="off")
    assert read_bundle(made.folder).preprocess.size == 64
    assert "the original" in made.facts["steps"][-1]["why"] and not made.facts["steps"][-1]["allowed"]


def test_where_nothing_may_be_taken_the_package_is_the_runs_own(tuned, tmp_path, monkeypatch):
    refuse = kept.Step(False, "no", kept.paired_shares(np.ones(2, bool), np.ones(2, bool)), 0.0, 0.0)
    monkeypatch.setattr(slim_ways, "may_take", lambda *_, **__: refuse)
    made = api.slim(tuned, out=tmp_path / "own", onnx="off")
    one, other = read_bundle(tuned), read_bundle(made.folder)
    assert other.stored == FULL and all(torch.equal(one.state[name], other.state[name]) for name in one.state)
    assert one.temperature == other.temperature and "nothing cheaper was taken" in made.facts["notes"][0]
    assert made.facts["proof"]["paired"]["difference"] == 0.0


def test_a_slim_package_made_smaller_again_keeps_its_history(slims, photos, tmp_path):
    _, made = slims["tuned"]
    with pytest.raises(RecipeError, match=r"made of a run by burnish slim.*name the data"):
        api.slim(made.folder, out=tmp_path / "again")
    with pytest.raises(RecipeError, match=r"made of a run by burnish slim.*name the data"):
        api.harden(made.folder, out=tmp_path / "again")
    again = api.slim(made.folder, photos, tmp_path / "again", lose=20, onnx="off")
    history = read_bundle(again.folder).facts["slim"]
    assert history["of"]["run"] == str(made.folder) and history["before"] == read_bundle(made.folder).facts["slim"]


def test_what_it_is_not_is_said(slims, tuned, tmp_path):
    made = slims["tuned"][1].folder
    for asked in (
        lambda: api.open_run(made),
        lambda: api.report(made),
        lambda: api.report_runs([tuned, made], out=tmp_path / "runs.html"),
    ):
        with pytest.raises(NotARun, match="it is what burnish slim made of a run: its package can predict"):
            asked()


class Pulled(Nobody):
    """A watcher that ends the call at a stage."""

    def __init__(self, at):
        self.at = at

    def stage(self, name, *, total=None, detail=""):
        if name.startswith(self.at):
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", ["validation, int8", "test, slim", "time"])
def test_an_interrupted_slim_leaves_nothing(at, tuned, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        api.slim(tuned, out=tmp_path / "new/slim", onnx="off", watcher=Pulled(at))
    assert not (tmp_path / "new/slim").exists() and not list((tmp_path).glob("new/.*"))


def test_a_place_that_is_taken_is_left_alone(slims, tuned, tmp_path):
    with pytest.raises(RunError, match="holds an earlier slim package; name another folder with --out"):
        api.slim(tuned, lose=20, onnx="off")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(RunError, match="is there already"):
        api.slim(tuned, out=tmp_path / "mine")
    assert [one.name for one in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_a_place_that_cannot_be_written_to_is_told_before_the_work(tuned, tmp_path):
    (tmp_path / "file").write_text("dear")
    with pytest.raises(RunError, match="name a folder with --out"):
        api.slim(tuned, out=tmp_path / "file/slim", watcher=Pulled("validation"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"lose": 0}, "lose is 0, expected percentage points above 0"), ({"lose": "1"}, "lose is '1', expected"),
      ({"lose": float("nan")}, "lose is nan"),
     ({"onnx": "yes"}, "onnx is 'yes', expected one of auto, on, off")],
)  # fmt: skip
def test_a_wrong_setting_is_told_before_anything_is_done(settings, words, tuned, tmp_path):
    with pytest.raises(RecipeError, match=words):
        api.slim(tuned, out=tmp_path / "one", **settings)
    assert not (tmp_path / "one").exists()


def test_a_package_alone_and_images_that_changed_are_told(tuned, photos, tmp_path):
    shutil.copytree(package_folder(tuned), tmp_path / "alone")
    with pytest.raises(NotARun, match=r"holds no splits\.csv"):
        api.slim(tmp_path / "alone", photos, onnx="off")
    write_shapes(tmp_path / "others", images=60)
    Image.new("RGB", (40, 32)).save(tmp_path / "others/red/000.png")
    with pytest.raises(DataError, match="another content"):
        api.slim(tuned, tmp_path / "others", out=tmp_path / "one", onnx="off")
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize(("side", "words"), [("test", "holds no test images"), ("val", "has no validation images")])
def test_a_run_without_images_to_judge_by_is_told_what_to_do(side, words, tuned, photos, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    text = (run / "splits.csv").read_text()
    (run / "splits.csv").write_text(text.replace(f",{side}\n", ",train\n"))
    with pytest.raises(NotEnoughData, match=words):
        api.slim(run, photos, onnx="off")


# ---- other kinds of data ---------------------------------------------------------------------------------------------


def test_several_classes_an_image_keep_thresholds_of_their_own(photos, tmp_path):
    label = {"red": "red|warm", "green": "warm", "blue": "blue"}
    rows = [f"{path.relative_to(photos)},{label[path.parent.name]}\n" for path in sorted(photos.glob("*/*"))]
    shutil.copytree(photos, tmp_path / "data")
    table = tmp_path / "data/table.csv"
    table.write_text("path,label\n" + "".join(rows))
    for method, more in (("probe", {}), ("full", {"epochs": 1})):
        run = api.fit(table, out=tmp_path / method, method=method, **TINY, **more)
        made = api.slim(run.folder, lose=30, onnx="off")
        bundle = read_bundle(made.folder)
        assert bundle.thresholds is not None and len(bundle.thresholds) == 3 and bundle.held_out is None
        found = api.evaluate(made.folder, table)
        assert found.scores.n == 180 and 0.0 < made.facts["proof"]["slim"]["value"] <= 1.0


def test_groups_of_images_are_counted_whole(photos, tmp_path):
    files = [path.relative_to(photos) for path in sorted(photos.glob("*/*"))]
    rows = [f"{path},{path.parent},{path.parent}{int(path.stem) // 4}\n" for path in files]
    shutil.copytree(photos, tmp_path / "data")
    (tmp_path / "data/table.csv").write_text("path,label,group\n" + "".join(rows))
    run = api.fit(tmp_path / "data/table.csv", out=tmp_path / "run", method="probe", **TINY)
    made = api.slim(run.folder, lose=50, onnx="off")
    assert made.facts["proof"]["paired"]["groups"] * 4 == made.facts["proof"]["slim"]["n"]
    assert " groups (" in made.sentence


def test_images_handed_over_in_python_are_handed_over_again(photos, tmp_path):
    files = sorted(photos.glob("*/*"))
    data = np.stack([np.asarray(Image.open(path)) for path in files]), [path.parent.name for path in files]
    run = api.fit(data, out=tmp_path / "run", method="probe", **TINY)
    with pytest.raises(RecipeError, match="hand the images over again"):
        api.slim(run.folder, onnx="off")
    made = api.slim(run.folder, data, lose=20, onnx="off")
    assert api.predict(made.folder, data[0][:1])[0].label == "blue"


def test_an_arm_of_a_comparison_is_made_smaller_beside_the_comparison(photos, tmp_path):
    race = api.compare(photos, models=[TINY["model"]], methods=["probe"], out=tmp_path / "race",
                       budget=None, image_size=64, cache="off")  # fmt: skip
    (arm,) = (race.folder / "arms").iterdir()
    made = api.slim(arm, photos, lose=30, onnx="off")
    assert made.folder == tmp_path / f"race-{arm.name}-slim" and list((race.folder / "arms").iterdir()) == [arm]


# ---- the command line ------------------------------------------------------------------------------------------------


def test_the_page_fits_80_columns_and_json_is_what_is_written(tuned, tmp_path, capsys):
    cli.main(["slim", str(tuned), "--out", str(tmp_path / "a"), "--lose", "20", "--onnx", "off", "--quiet"])
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines() if str(tmp_path) not in line)
    assert "were lost: " in out and "weights float32 → int8" in out and "time an image" in out
    cli.main(["slim", str(tuned), "--out", str(tmp_path / "b"), "--lose", "20", "--onnx", "off", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "b/slim.json").read_text())


@pytest.mark.parametrize("verb", ["slim", "harden"])
def test_a_verb_that_was_interrupted_says_that_nothing_was_written(verb, tuned, tmp_path, monkeypatch, capsys):
    def interrupted(*given, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(api, verb, interrupted)
    with pytest.raises(SystemExit) as left:
        cli.main([verb, str(tuned), "--out", str(tmp_path / "made"), "--quiet"])
    told = capsys.readouterr().err
    assert (
        left.value.code == 130 and "is as it was, and nothing was written to" in told and str(tmp_path / "made") in told
    )


def test_what_slim_cannot_write_to_is_told_at_once(tuned, tmp_path, monkeypatch, capsys):
    (tmp_path / "made").touch()
    monkeypatch.setattr(api, "slim", lambda *given, **more: pytest.fail("PyTorch was loaded first"))
    with pytest.raises(SystemExit):
        cli.main(["slim", str(tuned), "--out", str(tmp_path / "made")])
    assert "is there already" in capsys.readouterr().err
