"""What a file of weights gives when it is loaded, or the sentence with which it is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from test_backbones_hub import assert_a_sentence

from burnish.backbones import zoo
from burnish.errors import BurnishError

GIVEN = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def saved(value: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def refused(path: Path, **options: Any) -> str:
    """The sentence with which a file is refused."""
    keras = path.suffix in (".keras", ".h5")
    with pytest.raises(BurnishError) as error:
        zoo.load_backbone(str(path), preprocess="none" if keras else None, **options)
    assert_a_sentence(error)
    return str(error.value)


def features(path: Path, **options: Any) -> torch.Tensor:
    backbone = zoo.load_backbone(str(path), **options)
    size = backbone.preprocess.size
    with torch.no_grad():
        return backbone.module(torch.nn.functional.interpolate(GIVEN, (size, size)))
