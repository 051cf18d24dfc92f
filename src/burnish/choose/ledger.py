"""What a run has settled so far, so that the same command goes on after a death: probe, plan, training (P7, P9)."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from burnish.backbones.changing.changes import check_changes
from burnish.backbones.changing.taps import tapped_as
from burnish.backbones.spec import Backbone
from burnish.choose.probing import Probed, Probes
from burnish.data.audit.findings import Finding
from burnish.disk import read_plain_json, write_whole
from burnish.errors import BurnishError, RunError, shown, spoilt
from burnish.measure.held_out import HeldOut
from burnish.measure.ood import Familiarity
from burnish.methods.base import Fitted
from burnish.methods.heads import HeadChoice, HeadKind, head_from
from burnish.runtime import Clock, Watcher
from burnish.terms import Preprocess
from burnish.train.checkpoint import STATE, has_checkpoints, read_checkpoint, write_checkpoint

_LEAST_SECONDS = 5.0  # between two saves
_SHARE_OF_BUDGET = 0.02
_MOST_SECONDS = 60.0
_WITHOUT_BUDGET_SECONDS = 15.0
_COST_AT_MOST = 1 / 50  # of the time, for saving
# The plain values of a HeadChoice and of Probes.
_CHOICE = ("accuracy", "standard_error", "loss", "alone", "instead")
_PROBES = ("deep_loss", "flip", "flip_reason", "images_per_second", "size_reason", "rounded", "more_data", "where")
_HELD_OUT, _FAMILIAR = "held_out.", "familiarity."


def origin_of(backbone: Backbone, device: torch.device) -> dict[str, str]:
    """What the numbers of a run come from besides its images and settings: the network's weights, the device, torch."""
    digest = hashlib.sha256()
    if not backbone.sha256:  # random weights, or a network that was handed over
        for name, value in backbone.module.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return {
        "weights": backbone.sha256 or digest.hexdigest(),
        "preprocess": json.dumps(backbone.preprocess.to_json()),  # a config.json beside the weights has a say in it
        "device": device.type,
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
    }


def check_origin(before: dict[str, str], now: dict[str, str], run: Path, watcher: Watcher) -> None:
    """RunError where a run would go on with other weights or on another kind of device; another torch is said."""
    for key, what in (("weights", "the weights of the network"), ("preprocess", "how images are made for the network")):
        if before[key] != now[key]:
            raise RunError(
                f"{what} changed since the run in {shown(str(run))} began; restore the files of the model to go on with it, "
                "or name another folder with --out"
            )
    if before["device"] != now["device"]:
        raise RunError(
            f"the run in {shown(str(run))} began on {before['device']}, this is {now['device']}, where the rest of it would "
            f"take another time and come to other numbers; say --device {before['device']} where there is one, or name "
            "another folder with --out"
        )
    if before["processor"] != now["processor"]:
        watcher.say(
            f"the run began on {shown(before['processor'])}, this is {shown(now['processor'])}: its last bits may differ"
        )
    if before["torch"] != now["torch"]:
        watcher.say(f"the run began with torch {before['torch']}, this is {now['torch']}: its last bits may differ")
    if before["threads"] != now["threads"]:
        watcher.say(
            f"the run began with {before['threads']} threads, this has {now['threads']}: its last bits may differ "
            f"(OMP_NUM_THREADS={before['threads']} for the same)"
        )


@contextmanager
def states_of_other_versions(run: Path) -> Iterator[None]:
    """RunError where a run that is taken up has a state that this version cannot make sense of."""
    try:
        resumed = has_checkpoints(run)
    except OSError:  # which reading it says better
        resumed = True
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        if not resumed or isinstance(error, BurnishError):
            raise
        raise RunError(
            f"the run in {shown(str(run))} cannot go on ({spoilt(error)}): its state seems to "
            f"be of another version of burnish; remove {shown(str(run / STATE))} to begin anew, or name another folder with --out"
        ) from error


def _is_told_so(facts: Mapping[str, Any]) -> bool:
    """Whether a state says of itself what every state does: a budget is counted by it."""
    seconds, sittings, parts = (facts.get(key) for key in ("seconds", "sittings", "parts"))
    counted = isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and 0 <= seconds <= 1e9
    return counted and type(sittings) is int and 0 <= sittings <= 1e9 and isinstance(parts, dict)


class Ledger:
    """Parts by name, each plain values and tensors; written whole, read back when the run is taken up again."""

    def __init__(self, run: Path, clock: Clock, watcher: Watcher) -> None:
        found = read_checkpoint(run)
        self.run, self.watcher = run, watcher
        if found is not None and not _is_told_so(found[0]):
            found = None
        self.resumed = found is not None
        if found is None and has_checkpoints(run):
            watcher.say(
                "what an earlier sitting saved is damaged, or of another version of burnish: the run begins anew"
            )
        facts, tensors = found or ({"seconds": 0.0, "sittings": 0, "parts": {}}, {})
        self.parts: dict[str, Any] = facts["parts"]
        self.tensors: dict[str, dict[str, Tensor]] = {part: {} for part in self.parts}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(":")
            self.tensors[part][rest] = tensor
        self.sittings: int = facts["sittings"] + 1
        # The seconds of earlier sittings count, those between them do not.
        self.clock = replace(clock, started=clock.started - facts["seconds"])
        self._began = self._saved = time.monotonic()
        self._cost, self._spent, self._warned = 0.1, 0.0, False  # seconds of the latest save, and of all

    def put(self, part: str, facts: Any, tensors: dict[str, Tensor] | None = None) -> None:
        """Settle a part, or what is now of it; `write` makes it durable."""
        self.parts[part], self.tensors[part] = facts, tensors or {}

    def get(self, part: str) -> tuple[Any, dict[str, Tensor]] | None:
        """A part that was settled, here or in an earlier sitting."""
        return (self.parts[part], self.tensors[part]) if part in self.parts else None

    def note(self, name: str, count: int, *, of: str) -> None:
        """Make a number of these images durable by itself: all parts may be gigabytes. What a disk refuses is found out anew."""
        with suppress(OSError, RunError):
            (self.run / STATE).mkdir(exist_ok=True)
            write_whole(self.run / STATE / f"{name}.json", json.dumps({"count": count, "of": of}))

    def noted(self, name: str, *, of: str) -> int | None:
        """A number that an earlier sitting, which this one goes on with, noted of the same images."""
        try:
            found = read_plain_json(self.run / STATE / f"{name}.json") if self.resumed else {}
        except (OSError, ValueError):
            return None
        count = found.get("count")
        return count if type(count) is int and count > 0 and found.get("of") == of else None

    def due(self) -> bool:
        """Whether enough time has passed since the last save."""
        budget = self.clock.budget_seconds
        wanted = _WITHOUT_BUDGET_SECONDS if budget is None else min(_MOST_SECONDS, _SHARE_OF_BUDGET * budget)
        return self.affords_a_save() and time.monotonic() - self._saved >= max(_LEAST_SECONDS, wanted)

    def affords_a_save(self) -> bool:
        """Whether saves take no more than their share of the time, another one now included: of that since the last, or of all.

        Of all: what early saves of a small state have not used may go to plans that are made anew in quick succession.
        """
        now = time.monotonic()
        since_last, since_all = (now - self._saved, self._cost), (now - self._began, self._spent + self._cost)
        return any(cost <= _COST_AT_MOST * seconds for seconds, cost in (since_last, since_all))

    def write(self) -> None:
        """Save all parts. A disk that refuses is told once: what was saved before stays, and the run goes on."""
        began = time.monotonic()
        tensors = {f"{part}:{name}": tensor for part, held in self.tensors.items() for name, tensor in held.items()}
        facts = {"seconds": self.clock.elapsed(), "sittings": self.sittings, "parts": self.parts}
        try:
            write_checkpoint(self.run, facts, tensors)
        except RunError as error:
            if not self._warned:
                self.watcher.say(
                    f"the state could not be saved, so a run that dies now goes on from an earlier one: {error}"
                )
            self._warned = True
        self._saved = time.monotonic()
        self._cost = self._saved - began
        self._spent += self._cost


def probes_parts(probes: Probes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Probes as plain values and tensors."""
    facts: dict[str, Any] = {key: getattr(probes, key) for key in _PROBES}
    facts["findings"] = [one.to_json() for one in probes.findings]
    tensors: dict[str, Tensor] = {}
    facts["special"] = list(probes.special)
    named = {f"special{place}": one for place, one in enumerate(probes.special.values())}
    for key, probed in (("last", probes.last), ("deep", probes.deep), *named.items()):
        if probed is None:
            continue
        facts[key] = {
            "name": probed.name,
            "preprocess": probed.preprocess.to_json(),
            "changes": list(probed.backbone.changes),
            "choice": {own: getattr(probed.choice, own) for own in _CHOICE},
            "how": asdict(probed.choice.how),
        }
        arrays = {"right": probed.choice.right, "told": probed.choice.told}
        arrays |= {"val_right": probed.val_right, "val_logits": probed.val_logits}
        for name, head in (("head", probed.choice.head), ("train_head", probed.train_head)):
            facts[key][name] = head.form
            arrays |= {f"{name}.{own}": array for own, array in head.arrays().items()}
        if probed.held_out is not None:
            arrays |= {_HELD_OUT + name: array for name, array in vars(probed.held_out).items()}
        if probed.familiarity is not None:
            arrays |= {_FAMILIAR + name: array for name, array in probed.familiarity.arrays().items()}
        if probed.thresholds is not None:
            arrays["thresholds"] = probed.thresholds
        tensors |= {f"{key}/{own}": torch.from_numpy(np.ascontiguousarray(array)) for own, array in arrays.items()}
        if probed.backbone.changes:
            tensors[f"{key}/scale"] = probed.backbone.module.get_submodule("taps").state_dict()["scale"].clone()
    return facts, tensors


def probes_from(facts: dict[str, Any], tensors: dict[str, Tensor], backbone: Backbone) -> Probes:
    """The inverse of `probes_parts`; backbone: the network without taps."""

    def probed(key: str) -> Probed:
        own, base = facts[key], backbone
        check_changes(own["changes"])  # a state that came from elsewhere may say anything
        for change in own["changes"]:
            base = tapped_as(base, change, tensors[f"{key}/scale"])
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}

        def under(start: str) -> dict[str, np.ndarray]:
            start = f"{key}/{start}"
            return {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}

        def head(name: str) -> Fitted:
            return head_from(own[name], under(f"{name}."))

        return Probed(
            name=own["name"],
            backbone=base,
            preprocess=Preprocess.from_json(own["preprocess"]),
            choice=HeadChoice(
                head=head("head"),
                how=HeadKind.of(own["how"]),
                right=arrays[f"{key}/right"],
                told=arrays[f"{key}/told"],
                **own["choice"],
            ),
            train_head=head("train_head"),
            val_right=arrays[f"{key}/val_right"],
            val_logits=arrays[f"{key}/val_logits"],
            held_out=HeldOut(**kept) if (kept := under(_HELD_OUT)) else None,
            thresholds=arrays.get(f"{key}/thresholds"),
            familiarity=Familiarity.from_arrays(known, base.width) if (known := under(_FAMILIAR)) else None,
        )

    deep = probed("deep") if "deep" in facts else None
    findings = tuple(Finding(**{**one, "paths": tuple(one["paths"])}) for one in facts["findings"])
    special = {name: probed(f"special{place}") for place, name in enumerate(facts["special"])}
    return Probes(
        last=probed("last"),
        deep=deep,
        findings=findings,
        special=special,
        **{key: facts[key] for key in _PROBES if key in facts},
    )
