"""The verbs that look and train nothing: what is wrong with images, which networks and methods there are."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from burnish.auditing import Audit, run_audit
from burnish.backbones import zoo
from burnish.backbones.changing.anatomy import Anatomy
from burnish.backbones.changing.anatomy import anatomy as taken_apart
from burnish.backbones.zoo import ModelRow
from burnish.data.audit.findings import csv_of
from burnish.data.audit.quarantine import opened
from burnish.data.sources import Data, called
from burnish.disk import expanded, left_behind, no_folder, plain_disk_errors, read_plain_json, write_whole
from burnish.errors import RunError, shown
from burnish.methods.base import Method
from burnish.methods.table import METHODS, method_named
from burnish.recipe import recipe_from
from burnish.record.folder import AUDIT_PAGE, AUDIT_TABLE, RESULT, plain
from burnish.reports.findings import page_of
from burnish.run.outset import backbone_for, store_of
from burnish.train.around import settled_torch
from burnish.watching import Watching, settled_watcher, told_if_slow


@settled_torch()
def audit(
    data: Data,
    *,
    model: str | None = zoo.DEFAULT_MODEL,
    arch: str = "",
    preprocess: str = "",
    out: str | os.PathLike[str] | None = None,
    quarantine: str | os.PathLike[str] | None = None,
    seed: int = 0,
    cache: str | os.PathLike[str] = "auto",
    watcher: Watching = "auto",
) -> Audit:
    """What is wrong with labelled images: unreadable files, duplicates, leaks between splits, likely label errors, …

    Nothing is changed. model: whose features judge labels and outliers; None leaves those out, and is faster; arch and
    preprocess: of a file that does not say it. seed: of the cross-validation that doubts labels. cache: as for `fit`. out: one
    for audit.html, audit.csv (which `fit` takes as quarantine) and result.json: a new one, an empty one or that of an earlier
    audit whose table nobody edited, else RunError. Raises DataError when the data cannot be opened.
    """
    if out is not None:
        if not os.fspath(out):
            raise RunError("the name of the audit's folder is empty; name one, or leave it out")
        _require_audit_folder(expanded(out))
    backbone = (
        None
        if model in (None, "none")
        else backbone_for(recipe_from({"model": model, "arch": arch, "preprocess": preprocess}))
    )
    watcher = settled_watcher(watcher)
    with told_if_slow(f"reading {called(data)}", watcher):
        catalog = opened(data, quarantine, for_training=False)
    found = run_audit(catalog, backbone, data=called(data), seed=seed, store=store_of(cache), watcher=watcher)
    if out is not None:
        folder = expanded(out)
        with plain_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / AUDIT_TABLE).unlink(missing_ok=True)  # which nobody edited
        table = csv_of(found.findings)
        facts = {
            **plain(found.facts),
            "table_sha256": hashlib.sha256(table.encode("utf-8", "backslashreplace")).hexdigest(),
        }
        # In this order: whoever is stopped between two of them has a folder that the next audit takes.
        write_whole(folder / AUDIT_PAGE, page_of(found.facts, found.findings, found.thumbnails))
        write_whole(folder / RESULT, json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        write_whole(folder / AUDIT_TABLE, table)
    return found


def _require_audit_folder(folder: Path) -> None:
    """RunError when the folder holds what no audit wrote: a run's record is not to be lost, nor the data written to.

    Nor a table in which somebody has chosen what to leave out.
    """
    try:
        names = {entry.name for entry in folder.iterdir()}
    except FileNotFoundError:
        return
    except OSError as error:
        said = f"cannot write to {shown(str(folder))}: {error.strerror}; name another folder with --out"
        raise no_folder(folder) or RunError(said) from None
    own = {AUDIT_TABLE, AUDIT_PAGE, RESULT}
    strangers = (
        name for name in names - own if left_behind(name) not in own and name not in (".DS_Store", "Thumbs.db")
    )
    foreign = sorted(strangers, key=lambda name: (name.startswith("."), name))
    if RESULT in names and AUDIT_PAGE not in names:
        foreign.append(RESULT)
    if foreign:
        what = f"{shown(foreign[0])} is in it"
        raise RunError(f"{shown(str(folder))} holds no audit ({what}); name a new or empty folder with --out")
    if _was_edited(folder):
        raise RunError(
            f"{shown(str(folder / AUDIT_TABLE))} was edited since its audit; name another folder with --out, or remove it"
        )


def _was_edited(folder: Path) -> bool:
    """Whether the table of an earlier audit is another than that audit wrote."""
    try:
        table = (folder / AUDIT_TABLE).read_bytes()
    except FileNotFoundError:
        return False
    try:
        wrote = read_plain_json(folder / RESULT).get("table_sha256")
    except (OSError, ValueError):  # damaged: who knows what it wrote
        return True
    return wrote is not None and hashlib.sha256(table).hexdigest() != wrote


def models(query: str = "") -> list[ModelRow]:
    """Pretrained networks whose name holds `query`; UnknownModel with the nearest names when there is none."""
    return zoo.models(query)


def anatomy(model: str, **settings: Any) -> Anatomy:
    """The stages of a network, their widths, weights and cost, and its blocks.

    settings: of the network alone, as for `fit`: arch, preprocess, image_size, pool, depth, remove, insert.
    """
    recipe = recipe_from({"model": model, **settings})
    return taken_apart(backbone_for(recipe))


def methods(name: str | None = None) -> list[Method]:
    """All fine-tuning methods, or the one of that name; RecipeError for any other."""
    return list(METHODS.values()) if name is None else [method_named(name)]
