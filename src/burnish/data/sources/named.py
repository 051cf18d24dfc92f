"""Data sets by name: hf:ORG/NAME on the Hugging Face hub, torchvision:NAME; what was fetched once is there without a network."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from burnish.archives import MAX_DATA_BYTES
from burnish.data.catalog import Catalog
from burnish.data.sources.python import TARGETS, open_dataset
from burnish.disk import cache_folder
from burnish.errors import DataError, brief, nearest, shown
from burnish.runtime import Silent, TooMuch, unless_silent

_REPOSITORY = re.compile(r"[\w\-.]{1,96}(/[\w\-.]{1,96})?")
_FILES = ("*.parquet", "*.jpg", "*.jpeg", "*.png", "*.webp", "*.avif", "*.csv", "*.jsonl")
# torchvision's classifiers' sets that lie in images or plain arrays, with the arguments for each split. Sets that it keeps as
# pickles (CIFAR) are not here: nothing of ours opens one, and the hub has them as Parquet.
TORCHVISION: dict[str, dict[str, dict[str, Any]]] = {
    "MNIST": {"train": {"train": True}, "test": {"train": False}},
    "FashionMNIST": {"train": {"train": True}, "test": {"train": False}},
    "KMNIST": {"train": {"train": True}, "test": {"train": False}},
    "SVHN": {"train": {"split": "train"}, "test": {"split": "test"}},
    "STL10": {"train": {"split": "train"}, "test": {"split": "test"}},
    "GTSRB": {"train": {"split": "train"}, "test": {"split": "test"}},
    "Food101": {"train": {"split": "train"}, "test": {"split": "test"}},
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "Flowers102": {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}},
    "DTD": {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}},
    "FGVCAircraft": {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}},
    "EuroSAT": {"": {}},
}
_SILENT_SECONDS, _PROGRESS = 30.0, 1 << 16  # in which so many bytes must come
_PICKLED = {"CIFAR10": "hf:uoft-cs/cifar10", "CIFAR100": "hf:uoft-cs/cifar100"}


def fetched(name: str) -> Path:
    """The folder of a hub's data set, fetched when it is not in the hub's cache; name: ORG/NAME[@REVISION]."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    repository, _, revision = name.partition("@")
    if not _REPOSITORY.fullmatch(repository) or ".." in name:
        raise DataError(f"hf:{shown(name)} is no name of a data set. Expected hf:ORG/NAME or hf:ORG/NAME@REVISION.")
    blobs = Path(constants.HF_HUB_CACHE) / f"datasets--{repository.replace('/', '--')}" / "blobs"

    def came() -> int:
        try:
            return sum(one.stat().st_size for one in os.scandir(blobs))
        except OSError:  # there is none yet, or one was finished and renamed meanwhile
            return 0

    def fetch() -> str:
        return snapshot_download(
            repository, repo_type="dataset", revision=revision or None, allow_patterns=list(_FILES), etag_timeout=12
        )

    try:
        return Path(unless_silent(fetch, came, least=_PROGRESS, most=MAX_DATA_BYTES, seconds=_SILENT_SECONDS))
    except Silent:
        raise DataError(
            f"hf:{shown(name)} cannot be fetched: the hub sends less than {_PROGRESS:,} bytes in {_SILENT_SECONDS:g} s. "
            "Try again."
        ) from None
    except TooMuch:
        raise DataError(f"hf:{shown(name)} has more than the {MAX_DATA_BYTES:,} bytes that are read.") from None
    except RepositoryNotFoundError:
        raise DataError(f"The hub has no data set {shown(repository)}, or it needs a login (HF_TOKEN).") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise DataError(
            f"hf:{shown(name)} is not in the cache and cannot be fetched ({brief(error)}). Connect to the network, or "
            "give a folder."
        ) from None


def open_torchvision(name: str) -> Catalog:
    """The catalogue of one of torchvision's data sets, kept in burnish's cache folder."""
    if name in _PICKLED:
        raise DataError(
            f"torchvision keeps {name} as pickles, which burnish does not open. Say {_PICKLED[name]}: the same images as Parquet."
        )
    if name not in TORCHVISION:
        known = [*TORCHVISION, *_PICKLED]
        raise DataError(f"There is no torchvision:{shown(name)} here. Nearest: {nearest(name, known)}.")
    import torchvision.datasets
    from torch.utils.data import ConcatDataset

    root = cache_folder() / "torchvision"
    try:
        parts = {
            split: getattr(torchvision.datasets, name)(str(root), download=True, **options)
            for split, options in TORCHVISION[name].items()
        }
    except Exception as error:  # the network's, the disk's, the archive's
        raise DataError(
            f"torchvision:{name} is not in {shown(str(root))} and cannot be fetched ({brief(error)}). Connect to the "
            "network, or give a folder."
        ) from None
    whole = ConcatDataset(list(parts.values()))
    first = next(iter(parts.values()))
    targets = [next((getattr(part, name) for name in TARGETS if hasattr(part, name)), None) for part in parts.values()]
    if all(one is not None and len(one) == len(part) for one, part in zip(targets, parts.values(), strict=True)):
        # Else every image would be decoded to learn its label.
        whole.targets = [int(label) for one in targets if one is not None for label in one]  # type: ignore[attr-defined]
    if hasattr(first, "classes"):
        whole.classes = list(first.classes)  # type: ignore[attr-defined]
    splits = [split for split, part in parts.items() for _ in range(len(part))]
    return open_dataset(whole, splits=splits if len(parts) > 1 else None, source=f"torchvision:{name}")
