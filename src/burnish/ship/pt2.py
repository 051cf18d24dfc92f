"""A tuned model as an archive of torch.export, which PyTorch opens without burnish: a graph of its operators, and its weights."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from burnish.errors import RunError, brief, shown
from burnish.ship.bundle import Bundle
from burnish.ship.exported import (
    PIXELS,
    PREPARED,
    WORDS,
    Whole,
    as_utf8,
    asked,
    meaning,
    quiet,
    require_new,
    require_same,
    write_with_meaning,
)


def export_pt2(bundle: Bundle, path: Path, *, input: str = PREPARED) -> Path:
    """Write the model to `path`, a .pt2 file, and what it means into it and to the .json beside it; returns `path`.

    `torch.export.load(path).module()` takes any number of images: "prepared" float32 [n 3 s s], or "pixels" uint8 [n s s 3]; what
    it gives, [n k], are burnish's probabilities, the temperature included. The extra files "burnish" (the text of the .json) and
    "licence" are in the archive. RecipeError when the name or the input is none; RunError when PyTorch cannot export the network,
    what it reads back gives other probabilities, or the disk refuses. Nothing is written then.
    """
    require_new(path, ".pt2", input=input)
    images, expected = asked(bundle, input=input)
    data = _archived(bundle, torch.from_numpy(images[:2]), input=input)
    opened = _opened(data, bundle)
    require_same("torch.export's archive", lambda few: _answers(opened, few, bundle), images, expected)
    write_with_meaning(path, data, bundle, WORDS[input])
    return path


def _archived(bundle: Bundle, example: Tensor, *, input: str) -> bytes:
    """The archive's bytes; RunError where PyTorch cannot make one of the network."""
    network = Whole(bundle, pixels=input == PIXELS).requires_grad_(False)
    told = {"burnish": json.dumps(meaning(bundle, WORDS[input])), "licence": bundle.licence}
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("n")},))
            for node in program.graph.nodes:  # which name files of the machine that it was written on
                node.meta.pop("stack_trace", None)
            program.example_inputs = None  # they would be a pickle in the archive
            torch.export.save(
                program, file := io.BytesIO(), extra_files={key: as_utf8(one) for key, one in told.items()}
            )
    except Exception as error:  # it has classes of its own for each reason
        raise _refused("cannot export", bundle, error) from error
    return file.getvalue()


def _opened(data: bytes, bundle: Bundle) -> torch.nn.Module:
    """The module that an archive holds; RunError where PyTorch cannot read it back."""
    try:
        with quiet():
            return torch.export.load(io.BytesIO(data)).module()
    except Exception as error:
        raise _refused("cannot read back what it exported of", bundle, error) from error


def _answers(module: Any, images: np.ndarray, bundle: Bundle) -> np.ndarray:
    """What an opened archive makes of the images [n k]; RunError where it cannot."""
    try:
        with torch.no_grad():
            return module(torch.from_numpy(images)).numpy()
    except Exception as error:
        raise _refused("cannot run what it exported of", bundle, error) from error


def _refused(what: str, bundle: Bundle, error: Exception) -> RunError:
    return RunError(
        f"PyTorch {what} {shown(bundle.base_model)} ({brief(error.__cause__ or error)}); nothing was written; "
        "bundle.classifier() is a plain torch module, see docs/models.md"
    )
