"""Which images the network of a run has learnt from, told by their content: a test on them would prove nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from burnish.backbones.spec import Backbone, Learnt
from burnish.data.catalog import Catalog
from burnish.data.contents import is_redrawn
from burnish.data.looks import look_at, read_digests
from burnish.disk import read_plain_json
from burnish.errors import NotARun, shown, spoilt
from burnish.granted import cores
from burnish.record.folder import IMAGES, LEARNT, SPLITS, RunFolder, home_of, sides_in

FURTHER = "tuned_further"  # among a package's facts: whether its network had been tuned before the run


def learnt_from(run: Path, *, further: bool = False) -> tuple[set[str], Learnt]:
    """The images that a run's model was trained on or chosen by: paths, and hashes of their content.

    With those that the network had learnt from before the run, where it was itself an earlier run's (`further`: it was, so that
    there must be a note of them). Of an arm of a comparison the comparison's folder tells. NotARun where what tells is damaged.
    """
    home = home_of(run)
    paths = {path for path, side in sides_in(home / SPLITS).items() if side in ("train", "val")}
    digests = read_digests(home / IMAGES) if paths else {}
    before = _learnt_before(home, further=further)
    hashes = frozenset({digests[path] for path in paths if path in digests}) | before.hashes
    return paths, Learnt(hashes, before.known and bool(paths) and all(path in digests for path in paths))


def _learnt_before(home: Path, *, further: bool) -> Learnt:
    """What the network had learnt from when the run in this folder began; further: whether it had been tuned at all."""
    try:
        told = read_plain_json(home / LEARNT)
        hashes, known = told.get("hashes"), told.get("known")
        if (
            not isinstance(hashes, list)
            or not all(isinstance(one, str) for one in hashes)
            or not isinstance(known, bool)
        ):
            raise ValueError("it is not what burnish wrote")
        return Learnt(frozenset(hashes), known)
    except FileNotFoundError:
        return Learnt(frozenset(), not further)
    except (OSError, ValueError) as error:
        raise NotARun(
            f"{shown(str(home / LEARNT))} is damaged ({spoilt(error)}), so that nobody can say what the network had "
            "learnt from before the run; remove that file to do without"
        ) from None


def learnt_among(run: Path, catalog: Catalog, rows: np.ndarray, *, further: bool) -> tuple[int, bool]:
    """How many of these entries the run's model was made from, and whether that is known to be all.

    By what is in them, or, where that is not known, by path. Images of a data set in Python may be the same and drawn otherwise:
    what is found of them is never known to be all. further: whether the network had been tuned before the run.
    """
    (paths, learnt), redrawn = learnt_from(run, further=further), is_redrawn(catalog.contents)
    if learnt.hashes:
        found = sum(digest in learnt.hashes for digest in look_at(catalog, rows, workers=cores()).digests)
    else:
        found = sum(catalog.paths[row] in paths for row in rows)
    return found, learnt.known and not redrawn


def note_learnt(folder: RunFolder, backbones: Iterable[Backbone]) -> None:
    """Keep what these networks had learnt from before this run, for whoever tunes what comes of it further."""
    tuned = [one.learnt for one in backbones if one.learnt is not None]
    if tuned:
        hashes = sorted(frozenset[str]().union(*(one.hashes for one in tuned)))
        folder.write_json(LEARNT, {"known": all(one.known for one in tuned), "hashes": hashes})
