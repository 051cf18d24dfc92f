"""What spreadsheets read and write: no cell is a formula, and every name and list is read back."""

from __future__ import annotations

import csv

import pytest

from burnish.data.audit.quarantine import read_quarantine
from burnish.data.sources import open_source
from burnish.data.split import make_splits, read_splits, write_splits
from burnish.errors import cell, uncelled
from burnish.record.folder import SPLITS, sides_in
from conftest import write_shapes


def test_numbers_are_no_formulas():
    assert [cell(text) for text in ("-1", "+1", "-0.5", "+1/0.png", "=1+1", "-1+cmd")] == [
        "-1", "+1", "-0.5", "'+1/0.png", "'=1+1", "'-1+cmd",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "=1",
        "'=1",
        "''=1",
        "-1",
        "'-1",
        "-a",
        "@b",
        "plain",
        "'",
        "",
        "'quoted'",
        "a\rb",
        "a\\rb",
        "\\\r\\\\r\r",
        "\r",
        "\u240d",
        "\u241b\u240d\r",
        "\r\u241b",
    ],
)
def test_names_in_cells_are_read_back(name):
    assert uncelled(cell(name)) == name and not cell(name).startswith(("=", "@", "-a"))


def test_splits_are_safe_for_a_spreadsheet_and_read_back(tmp_path):
    write_shapes(tmp_path / "data", images=8, classes=("=1+1", "-1", "'=x"))
    catalog = open_source(tmp_path / "data")
    made = make_splits(catalog, seed=0)
    write_splits(tmp_path / SPLITS, catalog, made)
    first = {line.split(",")[0][:2] for line in (tmp_path / SPLITS).read_text().splitlines()[1:]}
    assert first == {"'=", "''", "'-"}, "a path that begins with -1 is no number"
    assert read_splits(tmp_path / SPLITS, catalog, sha256=made.sha256).sha256 == made.sha256
    assert set(sides_in(tmp_path / SPLITS)) == set(catalog.paths)


def test_paths_of_windows_are_in_their_cells_as_they_are():
    assert cell("C:\\red\\rose\\1.png") == uncelled("C:\\red\\rose\\1.png") == "C:\\red\\rose\\1.png"


def test_splits_of_folders_with_carriage_returns_are_read_back(tmp_path):
    write_shapes(tmp_path / "data", images=8, classes=("a\rb", "a\\rb", "plain"))
    catalog = open_source(tmp_path / "data")
    made = make_splits(catalog, seed=0)
    write_splits(tmp_path / SPLITS, catalog, made)
    assert read_splits(tmp_path / SPLITS, catalog, sha256=made.sha256).sha256 == made.sha256
    assert set(sides_in(tmp_path / SPLITS)) == set(catalog.paths)


def test_a_list_that_a_spreadsheet_saved_with_semicolons_is_read(tmp_path):
    for separator in ";\t,":
        file = tmp_path / "audit.csv"
        rows = [["path", "exclude", "evidence"], ["a,b.png", "yes", "why; so"], ["c.png", "no", ""]]
        with open(file, "w", newline="") as stream:
            csv.writer(stream, delimiter=separator).writerows(rows)
        assert read_quarantine(file) == {"a,b.png": "why; so"}
