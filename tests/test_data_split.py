"""Splits: stratified, grouped, addressed by content; written and read back."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish import api
from burnish.data.catalog import SPLIT_WORDS, Catalog, Named, Splits
from burnish.data.sources import without
from burnish.data.sources.assemble import Labelled, assemble
from burnish.data.split import make_splits, read_splits, restricted, write_splits
from burnish.errors import DataError, NotEnoughData, RecipeError
from images import write_images

ROOT = Path("/nowhere")  # splits read no pixels


def catalog_of(counts: dict[str, int], **columns: list[str | None]) -> Catalog:
    """A catalogue of so many images of each class; `split` and `group` may give one value an image, in that order."""
    names = [(f"{label}/{number:04d}.png", label) for label, count in counts.items() for number in range(count)]
    split, group = columns.get("split", [None] * len(names)), columns.get("group", [None] * len(names))
    images = [Labelled(*name, *rest) for name, *rest in zip(names, split, group, strict=True)]
    return assemble(ROOT, images, [], source="csv")


def sides(catalog: Catalog, splits: Splits) -> dict[str, str]:
    """path -> split word; fails unless every entry has exactly one."""
    pairs = [(catalog.paths[row], word) for word in SPLIT_WORDS for row in getattr(splits, word)]
    assert len(dict(pairs)) == len(pairs) == len(catalog)
    return dict(pairs)


def counted(catalog: Catalog, splits: Splits, word: str) -> dict[str, int]:
    """class -> images in one split."""
    return dict(Counter(catalog.classes[catalog.labels[row]] for row in getattr(splits, word)))


def test_splits_are_disjoint_sorted_int64_and_cover_all():
    catalog = catalog_of({"a": 50, "b": 30})
    splits = make_splits(catalog, seed=0)
    sides(catalog, splits)
    for word in SPLIT_WORDS:
        rows = getattr(splits, word)
        assert rows.dtype == np.int64
        assert np.all(np.diff(rows) > 0)


def test_every_class_is_drawn_in_proportion():
    catalog = catalog_of({"a": 4000, "b": 2000, "c": 3})
    splits = make_splits(catalog, seed=0)
    for word, share in (("test", 0.2), ("val", 0.16), ("train", 0.64)):
        found = counted(catalog, splits, word)
        for name, count in (("a", 4000), ("b", 2000)):
            assert abs(found[name] - share * count) < 4 * np.sqrt(share * (1 - share) * count)
        assert found["c"] == 1
    assert splits.how == (
        "test (20% of each class) and val (20% of what is left of each class) drawn from all images with seed 0"
    )


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=5),
    seed=st.integers(0, 5),
    test_fraction=st.floats(0.01, 0.95),
    val_fraction=st.floats(0.01, 0.95),
)
def test_classes_of_three_are_in_every_split_and_all_are_in_train(counts, seed, test_fraction, val_fraction):
    catalog = catalog_of({f"c{index}": count for index, count in enumerate(counts)})
    splits = make_splits(catalog, seed=seed, test_fraction=test_fraction, val_fraction=val_fraction)
    sides(catalog, splits)
    for index, count in enumerate(counts):
        held = [f"c{index}" in counted(catalog, splits, word) for word in ("train", "test", "val")]
        assert held == [True, count >= 2, count >= 3]


def test_same_seed_same_splits_and_another_seed_others():
    catalog = catalog_of({"a": 50, "b": 50})
    one, two, other = (make_splits(catalog, seed=seed) for seed in (1, 1, 2))
    assert (one.sha256, sides(catalog, one)) == (two.sha256, sides(catalog, two))
    assert one.sha256 != other.sha256


def test_order_of_the_catalogue_does_not_matter():
    catalog = catalog_of({"a": 20, "b": 20})
    order = np.random.default_rng(0).permutation(len(catalog))
    shuffled = replace(
        catalog,
        paths=tuple(catalog.paths[row] for row in order),
        labels=catalog.labels[order],
        splits=tuple(catalog.splits[row] for row in order),
    )
    one, two = make_splits(catalog, seed=0), make_splits(shuffled, seed=0)
    assert sides(catalog, one) == sides(shuffled, two)
    assert one.sha256 == two.sha256


@pytest.mark.parametrize("seed", range(10))
def test_adding_images_moves_none_of_the_others(seed):
    small, large = catalog_of({"a": 100, "b": 80}), catalog_of({"a": 300, "b": 80, "c": 50})
    before, after = (sides(catalog, make_splits(catalog, seed=seed)) for catalog in (small, large))
    assert {path: after[path] for path in before} == before


def test_a_class_has_images_to_choose_and_prove_by_however_the_draw_falls():
    for seed in range(60):
        catalog = catalog_of({"a": 12, "b": 40})
        splits = make_splits(catalog, seed=seed)
        assert counted(catalog, splits, "test")["a"] >= 1 and counted(catalog, splits, "test")["b"] >= 4
        assert counted(catalog, splits, "val")["a"] >= 2 and counted(catalog, splits, "val")["b"] >= 3


def test_a_file_that_is_renamed_stays_on_its_side():
    catalog = catalog_of({"a": 50, "b": 50})
    content = [f"hash {row}" for row in range(len(catalog))]
    renamed = replace(catalog, paths=tuple(f"new/{number}.png" for number in range(len(catalog))))
    one, other = (make_splits(each, seed=0, content=content) for each in (catalog, renamed))
    assert all(np.array_equal(getattr(one, word), getattr(other, word)) for word in SPLIT_WORDS)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99), ties=st.lists(st.integers(0, 59), min_size=60, max_size=60), grouped=st.booleans())
def test_pictures_that_are_the_same_stay_on_one_side(seed, ties, grouped):
    groups = [f"g{number % 20}" for number in range(60)] if grouped else [None] * 60
    catalog = catalog_of({"a": 30, "b": 30}, group=groups)
    where = sides(catalog, make_splits(catalog, seed=seed, together=np.array(ties)))
    for keys in (ties, catalog.groups or ties):
        places = {(key, where[path]) for key, path in zip(keys, catalog.paths, strict=True)}
        assert len(places) == len(set(keys))


def test_losing_images_moves_none_of_the_others():
    catalog = catalog_of({"a": 20, "b": 20})
    splits = make_splits(catalog, seed=0)
    less = without(catalog, [Named("a/0003.png", "truncated"), Named("b/0007.png", "truncated")])
    left = restricted(splits, catalog, less)
    before = sides(catalog, splits)
    assert sides(less, left) == {path: before[path] for path in less.paths}
    assert left.sha256 != splits.sha256


# --- given splits ----------------------------------------------------------------------------------------------


def test_splits_that_the_data_gives_are_kept():
    given_splits = ["train", "val", "test", "test"] * 2
    catalog = catalog_of({"a": 4, "b": 4}, split=given_splits)
    splits = make_splits(catalog, seed=3)
    assert (
        list(sides(catalog, splits).items())
        and [sides(catalog, splits)[path] for path in catalog.paths] == given_splits
    )
    assert splits.how == "train and val and test given by the data"


def test_val_is_drawn_out_of_train_when_only_test_is_given():
    catalog = catalog_of({"a": 20, "b": 20}, split=(["train"] * 10 + ["test"] * 10) * 2)
    splits = make_splits(catalog, seed=0)
    assert all(catalog.splits[row] == "test" for row in splits.test) and len(splits.test) == 20
    assert all(1 <= count <= 4 for count in counted(catalog, splits, "val").values())
    assert "val (20% of what is left of each class) drawn from train with seed 0" in splits.how


def test_test_is_drawn_out_of_train_when_only_val_is_given():
    catalog = catalog_of({"a": 20, "b": 20}, split=(["train"] * 10 + ["val"] * 10) * 2)
    splits = make_splits(catalog, seed=0)
    assert [catalog.splits[row] for row in splits.val] == ["val"] * 20
    assert all(1 <= count <= 4 for count in counted(catalog, splits, "test").values())
    assert splits.how == "train and val given by the data; test (20% of each class) drawn from train with seed 0"


def test_train_alone_is_as_good_as_nothing_given():
    plain, trained = catalog_of({"a": 20, "b": 20}), catalog_of({"a": 20, "b": 20}, split=["train"] * 40)
    assert make_splits(plain, seed=0).sha256 == make_splits(trained, seed=0).sha256


def test_missing_classes_are_said():
    catalog = catalog_of({"a": 3, "b": 2, "c": 1}, split=["train", "val", "test", "train", "val", "train"])
    assert make_splits(catalog, seed=0).how.endswith("val has no image of 'c'; test has no image of 'b', 'c'")


def test_a_fraction_of_zero_draws_none():
    splits = make_splits(catalog_of({"a": 9, "b": 9}), seed=0, test_fraction=0.0, val_fraction=0.0)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (18, 0, 0)


@pytest.mark.parametrize("wrong", [-0.1, 1.0, 20, float("nan")])
def test_fractions_out_of_range_are_all_named(wrong):
    with pytest.raises(RecipeError, match=r"test_fraction is .* and val_fraction is .*, expected a fraction from 0"):
        make_splits(catalog_of({"a": 9, "b": 9}), seed=0, test_fraction=wrong, val_fraction=wrong)


# --- groups ----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 3), kept=st.sampled_from([None, "test", "val"]))
def test_groups_are_never_torn_apart_and_every_class_is_trained(data, seed, kept):
    labels = data.draw(st.lists(st.sampled_from("abc"), min_size=6, max_size=60))
    groups = data.draw(
        st.lists(st.sampled_from([f"g{i}" for i in range(9)]), min_size=len(labels), max_size=len(labels))
    )
    images = [
        Labelled(f"{i}.png", label, None if kept is None else kept if group == "g0" else "train", group)
        for i, (label, group) in enumerate(zip(labels, groups, strict=True))
    ]
    catalog = assemble(ROOT, images, [], source="csv")
    splits = make_splits(catalog, seed=seed)
    where = sides(catalog, splits)
    places = {(group, where[path]) for group, path in zip(catalog.groups, catalog.paths, strict=True)}
    assert len(places) == len(set(catalog.groups))
    could_train = {image.label for image in images if image.split != kept or kept is None}
    assert set(counted(catalog, splits, "train")) == could_train


def test_groups_are_drawn_in_proportion():
    catalog = catalog_of({"a": 2000, "b": 2000}, group=[f"g{number // 5}" for number in range(4000)])
    splits = make_splits(catalog, seed=0)
    assert all(330 < count < 470 for count in counted(catalog, splits, "test").values())
    assert "groups kept together" in splits.how


def test_class_of_three_groups_is_in_every_split_even_if_they_are_large():
    catalog = catalog_of({"a": 30, "b": 30}, group=[f"g{number // 10}" for number in range(60)])
    splits = make_splits(catalog, seed=0)
    for word in SPLIT_WORDS:
        assert counted(catalog, splits, word) == {"a": 10, "b": 10}


def test_class_of_one_group_is_trained_and_the_gap_is_said():
    catalog = catalog_of({"a": 30, "b": 5}, group=[*(f"g{number}" for number in range(30)), *["b"] * 5])
    splits = make_splits(catalog, seed=0)
    assert counted(catalog, splits, "train")["b"] == 5
    assert "test has no image of 'b'" in splits.how


def test_given_splits_that_tear_a_group_apart_are_kept_and_left_to_the_audit():
    catalog = catalog_of({"a": 2, "b": 1}, split=["train", "test", "train"], group=["p", "p", "q"])
    assert len(make_splits(catalog, seed=0, val_fraction=0.0).test) == 1


# --- files -----------------------------------------------------------------------------------------------------


def test_written_splits_are_read_back_and_hash_to_their_sha256(tmp_path):
    catalog = catalog_of({'a, "b"\nc': 10, "é": 10})
    splits = make_splits(catalog, seed=0)
    file = tmp_path / "splits.csv"
    write_splits(file, catalog, splits)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == splits.sha256
    assert file.read_bytes().startswith(b"path,label,split\r\n")
    back = read_splits(file, catalog, sha256=splits.sha256)
    assert sides(catalog, back) == sides(catalog, splits)
    assert (back.sha256, back.how) == (splits.sha256, "read from splits.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["splits.csv"]


def test_failed_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    catalog = catalog_of({"a": 5, "b": 5})
    file = tmp_path / "splits.csv"
    file.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_splits(file, catalog, make_splits(catalog, seed=0))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("splits.csv", "old")]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: "", r"is damaged, expected the columns path,label,split"),
        (lambda text: text.replace("path,label,split", "path,label"), r"is damaged, expected the columns"),
        (
            lambda text: text[: text.rindex("b/")],
            r"is of other images; those that the data has anew: 1 \(first: b/0004\.png\)",
        ),
        (
            lambda text: text + "x.png,a,train\r\n",
            r"those that the data no longer has: 1 \(first: x\.png\)\. Restore the data",
        ),
        (lambda text: text.replace("b/0000.png,b", "b/0000.png,a"), r"has 'a' for b/0000\.png, the data has 'b'"),
        (lambda text: text.replace(",val", ",vla"), r"has the split 'vla', expected train, val, test"),
        (lambda text: '"' + text, r"cannot be read as splits"),
    ],
    ids=["empty", "column", "fewer", "more", "label", "word", "quote"],
)
def test_splits_that_do_not_match_the_data_are_refused(tmp_path, change, sentence):
    catalog = catalog_of({"a": 5, "b": 5})
    file = tmp_path / "splits.csv"
    write_splits(file, catalog, make_splits(catalog, seed=0))
    file.write_bytes(change(file.read_bytes().decode()).encode())
    with pytest.raises(DataError, match=sentence):
        read_splits(file, catalog)


def test_splits_of_another_hash_are_refused(tmp_path):
    catalog = catalog_of({"a": 5, "b": 5})
    file = tmp_path / "splits.csv"
    write_splits(file, catalog, make_splits(catalog, seed=0))
    with pytest.raises(DataError, match=r"splits\.csv was changed since the splits were made"):
        read_splits(file, catalog, sha256="0" * 64)


def test_missing_splits_file_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read as splits: .*No such file.* Start a new run"):
        read_splits(tmp_path / "splits.csv", catalog_of({"a": 5, "b": 5}))


def test_many_small_classes_are_split_in_time_that_grows_with_them():
    """Each class once looked through all images: 4,000 × 5 took half a minute."""
    classes, each = 4000, 5
    paths = tuple(f"{c}/{n}.png" for c in range(classes) for n in range(each))
    labels = np.repeat(np.arange(classes), each)
    catalog = Catalog(
        Path("/x"), paths, labels, tuple(map(str, range(classes))), (None,) * len(paths), None, (), "folder"
    )
    splits = make_splits(catalog, seed=0)
    for rows in (splits.train, splits.val, splits.test):
        assert len(np.unique(labels[rows])) == classes


def test_a_test_folder_that_is_a_copy_of_train_is_told_as_the_reason(tmp_path):
    write_images(tmp_path / "train", {"a": 6, "b": 6})
    write_images(tmp_path / "test", {"a": 6, "b": 6})
    with pytest.raises(NotEnoughData, match="12 of the training images are in test too, byte for byte"):
        api.fit(tmp_path, model="random:test_resnet", budget="none", epochs=1, out=tmp_path / "run", cache="off")
