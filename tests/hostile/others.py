"""What is no model, and what lies beside one."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from hostile.kinds import KINDS, Kind, kind, written
from hostile.pickles import line_of
from hostile.smallest import valid_safetensors


@kind("is a web page")
def a_web_page(folder):
    return written(folder, "hostile.pth", b"\n<!DOCTYPE html><html><script>alert(1)</script></html>")


@kind("is a Git LFS pointer")
def a_pointer_of_git_lfs(folder):
    return written(
        folder, "hostile.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    )


@kind("the file is empty")
def an_empty_file(folder):
    return written(folder, "hostile.pth", b"")


@kind("is not a plain file")
def a_fifo(folder):
    os.mkfifo(folder / "hostile.pth")
    return folder / "hostile.pth"


@kind("is not a plain file")
def a_device(folder):
    (folder / "hostile.pth").symlink_to("/dev/zero")
    return folder / "hostile.pth"


@kind("no such file|not a plain file|cannot be read")
def a_link_to_itself(folder):
    (folder / "hostile.pth").symlink_to("hostile.pth")
    return folder / "hostile.pth"


@kind("a folder without a file of weights")
def a_folder_without_weights(folder):
    (folder / "inner.pth").mkdir()
    os.mkfifo(folder / "inner.pth" / "a.pth")
    return folder / "inner.pth"


@kind("no file of weights that burnish knows")
def a_python_program(folder):
    return written(folder, "hostile.pt", f"import os\n{line_of(folder)}\n".encode())


@kind("no file of weights that burnish knows")
def a_program_of_the_machine(folder):
    return written(folder, "hostile.bin", b"\x7fELF" + bytes(60))


def _beside(config: Any, folder: Path) -> Path:
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    (folder / "config.json").write_bytes(text)
    return valid_safetensors(folder)


for _what, _config, _found in (
    ("names a program", {"architecture": "os.system"}, "os.system"),
    ("names a path", {"architecture": "../../etc/passwd"}, "etc"),
    ("names control characters", {"architecture": "\x1b[2Jresnet18"}, "resnet18"),
    ("is nested a hundred thousand deep", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    ("holds NaN", b'{"architecture": NaN}', "not JSON"),
    ("wants images of a billion pixels",
     {"architecture": "resnet18", "pretrained_cfg": {"input_size": [3, 10**9, 10**9]}}, "1 to 4096|resnet18"),
    ("says numbers where words should be",
     {"architecture": "resnet18", "pretrained_cfg": {"crop_mode": 5, "mean": "abc"}}, "resnet18"),
    ("says words where numbers should be",
     {"architecture": "resnet18", "pretrained_cfg": {"crop_pct": "1e400", "std": [[], {}, None]}}, "resnet18"),
    ("says lists where words should be",
     {"architecture": "resnet18", "pretrained_cfg": {"interpolation": ["bicubic"], "crop_mode": {}}}, "resnet18"),
):  # fmt: skip
    KINDS.append(Kind(f"a config.json that {_what}", partial(_beside, _config), _found))
