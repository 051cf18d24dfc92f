"""The TensorBoard files: read back with tensorboard's own reader."""

from __future__ import annotations

import io
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from burnish.errors import RunError
from burnish.labels import right
from burnish.measure.scores import score
from burnish.measure.verdict import judge
from burnish.reports.board import Board, confusion_image

RECIPE = {"model": "efficientnet_lite0", "budget_seconds": None, "seed": 0, "stage_decay": 0.75, "flip": "off"}


def facts(*, hostile: str = "b") -> dict[str, object]:
    labels = np.array([0, 0, 1, 1, 1])
    probe = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3], [0.1, 0.9]])
    tuned = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7], [0.1, 0.9]])
    names = ["a", hostile]
    return {
        "verdict": judge(right(probe, labels), right(tuned, labels), seconds=1.0).to_json(),
        "scores": {"probe": score(probe, labels, names).to_json(), "tuned": score(tuned, labels, names).to_json()},
        "kept": "full",
        "recipe": RECIPE,
    }


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def text(events: EventAccumulator, tag: str) -> str:
    return events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode()


def test_scalars_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.scalars(10, {"val/accuracy": 0.5, "val/loss": float("nan"), "train/loss": None})
    board.scalars(20, {"val/accuracy": 0.75})
    events = read(tmp_path)
    assert events.Tags()["scalars"] == ["val/accuracy"]
    assert [(one.step, one.value) for one in events.Scalars("val/accuracy")] == [(10, 0.5), (20, 0.75)]
    board.close()


def test_the_end_of_a_run_leaves_scores_picture_recipe_and_verdict(tmp_path: Path) -> None:
    with Board(tmp_path) as board:
        board.scalars(7, {"train/loss": 1.0})
        board.finish(facts())
    events = read(tmp_path)
    assert [(one.step, round(one.value, 3)) for one in events.Scalars("test/accuracy")] == [(7, 1.0)]
    assert round(events.Scalars("test/accuracy/probe")[0].value, 3) == 0.6
    picture = Image.open(io.BytesIO(events.Images("test/confusion")[0].encoded_image_string))
    assert picture.size == (640, 640)
    assert "stage_decay = 0.75" in text(events, "recipe") and "budget_seconds = none" in text(events, "recipe")
    assert "Not proven that fine-tuning helped" in text(events, "verdict")


def test_settings_appear_in_the_hparams_tab(tmp_path: Path) -> None:
    with Board(tmp_path) as board:
        board.finish(facts())
    metadata = read(tmp_path).SummaryMetadata("_hparams_/session_start_info")
    settings = HParamsPluginData.FromString(metadata.plugin_data.content).session_start_info.hparams
    assert settings["stage_decay"].number_value == 0.75
    assert settings["budget_seconds"].string_value == "none"


def test_names_are_plain_text_in_the_board(tmp_path: Path) -> None:
    with Board(tmp_path) as board:
        board.finish(facts(hostile="<b>x</b>\n# heading"))
    lines = text(read(tmp_path), "test/classes").splitlines()
    assert len(lines) == 2 and all(line.startswith("    ") for line in lines)
    assert lines[1].endswith("<b>x</b>\\n# heading")


def test_a_run_without_tuning_has_a_board_too(tmp_path: Path) -> None:
    only = facts()
    with Board(tmp_path) as board:
        board.finish({"verdict": only["verdict"], "scores": {"probe": only["scores"]["probe"]}, "kept": "probe"})  # type: ignore[index]
    assert round(read(tmp_path).Scalars("test/accuracy")[0].value, 3) == 0.6


def test_closing_twice_is_fine(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.close()
    board.close()


def test_a_disk_that_is_full_is_told_in_a_sentence_and_by_no_traceback_of_a_thread(tmp_path: Path, monkeypatch) -> None:
    tracebacks: list[object] = []
    monkeypatch.setattr(threading, "excepthook", tracebacks.append)
    board = Board(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))  # as near to a full disk as a test comes without root
    try:
        with pytest.raises(RunError, match="cannot write to"):
            for step in range(20):
                board.scalars(step, {"val/accuracy": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert not tracebacks


def test_a_folder_that_cannot_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(RunError, match="is a file; name a folder"):
        Board(tmp_path / "taken")


@pytest.mark.parametrize("k", [2, 25, 26, 101, 700])
def test_confusion_pictures_have_one_square_a_cell(k: int) -> None:
    picture = confusion_image(np.eye(k, dtype=int) * 3)
    assert picture.size == (k * max(1, 640 // k),) * 2
    assert picture.getpixel((0, 0)) == (31, 95, 139)
    assert picture.getpixel((picture.width - 1, 0)) == (255, 255, 255)


def test_writing_a_board_needs_neither_torch_nor_tensorflow() -> None:
    code = "import sys, burnish.reports.board; print({'torch', 'tensorflow', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
