"""A run's unfinished state on disk: old or new, never torn (P9), restored to the same bits (P7).

RUN/state/current.json                      the pointer
RUN/state/versions/0007/facts.json          plain values, and the hashes of both
RUN/state/versions/0007/tensors.safetensors
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from burnish.backbones.reading.weights import tensors_of
from burnish.disk import plain_disk_errors, read_plain_json, versions_of, write_version
from burnish.errors import BadWeights, RunError, shown
from burnish.train.loop import Training

STATE, FACTS, TENSORS = "state", "facts.json", "tensors.safetensors"
_VERSIONS, _POINTER = "versions", "current.json"
_FORMAT = 1
_COUNTED = ("total", "steps", "progress", "epoch", "position", "size")
_MAX_FACTS_BYTES = 2**30  # losses of an epoch and the history grow with the run


def write_checkpoint(run: Path, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Make this the run's state; durable on return. RunError when the disk refuses: the one before it stays then."""
    data = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    plain = json.loads(json.dumps(facts, allow_nan=False))
    hashes = {TENSORS: hashlib.sha256(data).hexdigest(), FACTS: _digest(plain)}
    values = {"format": _FORMAT, "sha256": hashes, "facts": plain}
    members = {TENSORS: data, FACTS: json.dumps(values).encode()}
    with plain_disk_errors(run):
        # Two are kept: should the newest be damaged, the one before it leads to the same bits.
        write_version(run / STATE, members, versions=_VERSIONS, pointer=_POINTER, keep=2)


def has_checkpoints(run: Path) -> bool:
    """Whether a state was saved there, sound or not."""
    return bool(versions_of(run / STATE, versions=_VERSIONS))


def read_checkpoint(run: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """(facts, tensors) of the newest sound state; None when there is none. RunError when the disk gives none of them."""
    refused: OSError | None = None
    try:
        folders = versions_of(run / STATE, versions=_VERSIONS)
    except OSError as error:
        folders, refused = [], error
    for folder in folders:
        try:
            values = read_plain_json(folder / FACTS, max_bytes=_MAX_FACTS_BYTES)
            found, hashes = values["facts"], values["sha256"]
            if values["format"] == _FORMAT and _digest(found) == hashes[FACTS]:
                data = (folder / TENSORS).read_bytes()  # our own, of any size; its hash is asked before it is read
                if hashlib.sha256(data).hexdigest() == hashes[TENSORS]:
                    return found, tensors_of(data, shown(str(folder / TENSORS)))
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, BadWeights):
            continue
        except OSError as error:
            refused = error
    if refused is not None:  # beginning anew would overwrite what may be read in a moment
        raise RunError(
            f"{shown(str(run / STATE))} cannot be read ({refused.strerror or refused}), so the run cannot go on; try again, "
            "or remove that folder to begin anew"
        )
    return None


def _digest(facts: Any) -> str:
    """SHA-256 of plain values, however they are laid out."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def drop_checkpoints(run: Path) -> None:
    """The run is finished: its state is no longer needed."""
    shutil.rmtree(run / STATE, ignore_errors=True)


def training_state(training: Training) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `restore_training` needs, between two steps."""
    parameters = training.tunable.moving()
    tensors: dict[str, Tensor] = {}
    for name, average in zip(training.average.names, training.average.values, strict=True):
        parameter = parameters[name]
        tensors[f"weights/{name}"], tensors[f"average/{name}"] = parameter, average
        for key, value in training.optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser/{key}/{name}"] = value
    facts = {key: getattr(training, key) for key in (*_COUNTED, "losses", "norms")} | {
        "averaged": training.average.steps,
        "pieces": training.optimiser.param_groups[0].get("pieces", 1),  # which sums in another order
        "rates": [group["rate"] for group in training.optimiser.param_groups],
    }
    return facts, tensors


def restore_training(training: Training, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Put a fresh `Training` of the same tunable where the saved one stood."""
    parameters = training.tunable.moving()
    with torch.no_grad():
        for name, average in zip(training.average.names, training.average.values, strict=True):
            parameter = parameters[name]
            parameter.copy_(tensors[f"weights/{name}"])
            average.copy_(tensors[f"average/{name}"])
            if f"optimiser/step/{name}" in tensors:
                moments = {key: tensors[f"optimiser/{key}/{name}"] for key in ("exp_avg", "exp_avg_sq")}
                # In memory they lie as their parameter does: the fused step takes no other layout.
                training.optimiser.state[parameter] = {
                    "step": tensors[f"optimiser/step/{name}"].to(parameter.device),
                    **{key: torch.empty_like(parameter).copy_(value) for key, value in moments.items()},
                }
    training.average.steps = facts["averaged"]
    for group, rate in zip(training.optimiser.param_groups, facts["rates"], strict=True):
        group["rate"] = rate
    training.optimiser.param_groups[0]["pieces"] = facts["pieces"]
    for key in _COUNTED:
        setattr(training, key, facts[key])
    training.losses, training.norms = list(facts["losses"]), list(facts["norms"])
