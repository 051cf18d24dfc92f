"""Heads of nearest neighbours: their arithmetic, the honesty of their choice, and that a package of one is like any other."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import burnish
from burnish.backbones.head import is_form, logits_by_neighbours, made, neighbours_form
from burnish.backbones.spec import Learnt
from burnish.cli import main
from burnish.errors import BurnishError, RecipeError
from burnish.labels import right
from burnish.methods.heads import choose_head, head_from
from burnish.methods.neighbours import Neighbours
from burnish.methods.table import method_named
from burnish.run.baselines import Earlier, earlier_contender
from burnish.ship.bundle import read_bundle, write_bundle


def clusters(n=240, d=20, k=4, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % k
    centres = rng.normal(size=(k, d)) * 1.2
    return (centres[labels] + spread * rng.normal(size=(n, d))).astype(np.float32), labels


def by_hand(features, bank, labels, classes, neighbours, temperature):
    """The same in plain loops, float64."""
    mean = bank.mean(0)
    unit = [(one - mean) / np.linalg.norm(one - mean) for one in bank]
    frequency = (np.bincount(labels, minlength=classes) + 1) / (len(labels) + classes)
    out = []
    for feature in features:
        own = (feature - mean) / np.linalg.norm(feature - mean)
        cosines = np.array([own @ one for one in unit])
        order = np.argsort(-cosines)
        near, edge = order[:neighbours], cosines[order[neighbours]]
        weights = [np.exp(cosines[one] / temperature) - np.exp(edge / temperature) for one in near]
        share = np.zeros(classes)
        for one, weight in zip(near, weights, strict=True):
            share[labels[one]] += weight
        share = share / share.sum()
        out.append(np.log((neighbours * share + frequency) / (neighbours + 1)))
    return np.array(out)


def test_shares_are_those_of_plain_loops():
    features, labels = clusters(n=80, spread=2.0)
    bank, asked = features[:60].astype(np.float64), features[60:]
    head = Neighbours.of(features[:60], labels[:60], classes=4, neighbours=7, temperature=0.1)
    expected = by_hand(asked.astype(np.float64), bank, labels[:60], 4, 7, 0.1)
    assert np.abs(head.logits(asked) - expected).max() < 1e-3, "the floor under the weights is a millionth"
    chances = np.exp(head.logits(asked))
    assert np.allclose(chances.sum(1), 1.0, atol=1e-5)


def test_no_answer_jumps_when_two_neighbours_change_places():
    votes = torch.tensor([[1, 0], [0, 1], [1, 0]], dtype=torch.uint8)
    step = 1e-5
    answers = [
        logits_by_neighbours(
            torch.tensor([[0.9, 0.5 + shift, 0.5 - shift]]), votes, neighbours=2, temperature=0.1, several=False
        )
        for shift in (-step, step)
    ]
    assert (answers[0] - answers[1]).abs().max() < 1e-3


def test_a_crowd_of_copies_still_has_a_say():
    features = np.repeat(np.eye(3, 8, dtype=np.float32), 6, axis=0)
    labels = np.repeat(np.arange(3), 6)
    head = Neighbours.of(features, labels, classes=3, neighbours=3, temperature=0.05)
    assert (head.logits(features).argmax(1) == labels).all()


def test_more_neighbours_than_images_are_all_images():
    features, labels = clusters(n=6, k=2, spread=0.1)
    head = Neighbours.of(features, labels, classes=2, neighbours=50, temperature=0.1)
    assert head.form == "knn:5:6"
    assert np.isfinite(head.logits(features)).all()
    alone = Neighbours.of(features[:1], labels[:1], classes=2, neighbours=5, temperature=0.1)
    assert alone.form == "knn:1:1"
    assert np.isfinite(alone.logits(features)).all()


def test_the_choice_is_out_of_fold():
    features, labels = clusters(spread=1.0)
    found = choose_head(features, labels, classes=4, seed=0, seconds_left=lambda: 60, kinds=("knn",))
    assert found.how.kind == "knn"
    assert found.accuracy > 0.8
    noise = np.random.default_rng(5).normal(size=features.shape).astype(np.float32)
    blind = choose_head(noise, labels, classes=4, seed=0, seconds_left=lambda: 60, kinds=("knn",))
    assert blind.accuracy < 0.4, "an image must never be its own neighbour"
    assert blind.loss > 0.9 * np.log(4)


def test_neighbours_win_where_classes_are_in_pieces_and_lose_where_they_are_not():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 6)) * 3
    piece = np.arange(800) % 40
    features, labels = (centres[piece] + 0.3 * rng.normal(size=(800, 6))).astype(np.float32), piece % 4
    kinds = ("lda", "logistic", "knn")
    assert choose_head(features, labels, classes=4, seed=0, seconds_left=lambda: 60, kinds=kinds).how.kind == "knn"
    features, labels = clusters(spread=2.5)
    assert choose_head(features, labels, classes=4, seed=0, seconds_left=lambda: 60, kinds=kinds).how.kind != "knn"


def test_several_classes_an_image():
    features, labels = clusters(n=200)
    both = np.zeros((200, 4), bool)
    both[np.arange(200), labels] = True
    both[:, 0] |= features[:, 0] > features[:, 0].mean()
    found = choose_head(features, both, classes=4, seed=0, seconds_left=lambda: 60, kinds=("knn",))
    assert found.head.form.endswith(":several")
    assert right(found.head.logits(features), both).mean() > 0.85
    with pytest.raises(RecipeError, match="LDA needs one class"):
        choose_head(features, both, classes=4, seed=0, seconds_left=lambda: 60, kinds=("lda",))


def test_a_head_is_the_same_after_its_arrays_were_written_and_read():
    features, labels = clusters()
    for kinds in (("knn",), ("lda",), ("logistic",)):
        head = choose_head(features, labels, classes=4, seed=0, seconds_left=lambda: 60, kinds=kinds).head
        again = head_from(head.form, head.arrays())
        assert np.array_equal(again.logits(features), head.logits(features))
        module = made(head.form, head.width, head.classes)
        head.fill(module)
        assert torch.allclose(module(torch.from_numpy(features)), torch.from_numpy(head.logits(features)), atol=1e-5)


def test_forms():
    assert is_form(neighbours_form(5, 100, several=True))
    for wrong in ("knn", "knn:5", "knn:0:10", "knn:5:10:many", "knn:5:999999999"):
        assert not is_form(wrong), wrong


def test_an_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(RecipeError, match="nearest: knn"):
        method_named("probe:head=kn")
    assert method_named("multiprobe:head=knn").head == "knn"


# ---- whole runs ------------------------------------------------------------------------------------------------------

RUN = {"model": "random:test_resnet", "budget": None, "image_size": 64, "seed": 0}


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp("knn") / "run"
    return burnish.fit(shapes, method="probe:head=knn", out=out, **RUN)


def test_a_run_of_neighbours_is_a_run_like_any_other(run, shapes, tmp_path):
    facts = json.loads((run.folder / "result.json").read_text())
    assert facts["kept"] == "probe:head=knn"
    assert any("knn" in one["what"] and "neighbour" in one["what"] for one in facts["decisions"])
    bundle = read_bundle(run.folder)
    assert bundle.head.startswith("knn:")
    paths = sorted((shapes / "red").iterdir())[:4]
    answers = run.predict(paths)
    assert [one.label for one in answers] == ["red"] * 4
    with pytest.raises(BurnishError):
        write_bundle(tmp_path / "bad", dataclasses.replace(bundle, head="knn:1:3"))
    assert main(["explain", str(run.folder), str(paths[0]), "--out", str(tmp_path / "maps")]) in (0, None)


def test_a_run_that_died_after_the_probe_goes_on_with_its_neighbours(shapes, tmp_path, monkeypatch):
    import burnish.run.job as job

    def killed(*_, **__):
        raise KeyboardInterrupt

    whole = burnish.fit(shapes, method="multiprobe:head=knn", out=tmp_path / "whole", **RUN)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(job, "choose", killed)
        burnish.fit(shapes, method="multiprobe:head=knn", out=tmp_path / "again", **RUN)
    again = burnish.fit(shapes, method="multiprobe:head=knn", out=tmp_path / "again", **RUN)
    one, two = (read_bundle(found.folder) for found in (whole, again))
    assert one.head == two.head
    assert one.state.keys() == two.state.keys()
    assert all(torch.equal(one.state[name], two.state[name]) for name in one.state)


def test_an_earlier_run_of_neighbours_keeps_its_classes_by_name(run, shapes, tmp_path):
    later = burnish.fit(shapes, method="probe", out=tmp_path / "later", against=str(run.folder), **RUN)
    facts = json.loads((later.folder / "result.json").read_text())
    (against,) = [one for one in facts["baselines"] if one["key"] == "against"]
    assert against["accuracy"]["value"] > 0.9
    bundle, order = read_bundle(run.folder), [2, 0, 1]
    turned = dataclasses.replace(
        bundle,
        classes=tuple(bundle.classes[place] for place in order),
        state={**bundle.state, "head.votes": bundle.state["head.votes"][:, order]},
    )
    bench = SimpleNamespace(backbone=None)
    again = earlier_contender(
        Earlier("x", turned, frozenset(), Learnt(frozenset(), known=False)), bench, bundle.classes
    )
    images = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again.classifier(images), bundle.classifier()(images))


def test_compare_races_kinds_of_heads(shapes, tmp_path):
    found = burnish.compare(
        shapes, methods=["probe:head=lda", "probe:head=knn", "multiprobe:head=logistic"], models=[RUN["model"]],
        budget=None, image_size=64, out=tmp_path / "race",
    )  # fmt: skip
    rows = {row["method"]: row for row in found["rows"]}
    assert set(rows) == {"probe:head=lda", "probe:head=knn", "multiprobe:head=logistic"}
    forms = {name: read_bundle(tmp_path / "race" / row["package"]).head for name, row in rows.items()}
    assert forms["probe:head=knn"].startswith("knn:")
    assert forms["probe:head=lda"] == "linear"
    widths = {name: read_bundle(tmp_path / "race" / row["package"]).width for name, row in rows.items()}
    assert widths["multiprobe:head=logistic"] > widths["probe:head=knn"]


def test_neighbours_beside_another_form_of_head_are_refused(shapes, tmp_path):
    with pytest.raises(RecipeError, match="leave one of the two out"):
        burnish.fit(shapes, method="probe:head=knn", head="cosine", budget=None, out=tmp_path / "run")
