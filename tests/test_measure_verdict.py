"""The verdict: its word, its sentence, its way to disk and back."""

from __future__ import annotations

import json

import numpy as np
import pytest

from burnish.errors import NotEnoughData
from burnish.measure.intervals import percent
from burnish.measure.verdict import Verdict, chance, judge


def rights(both: int, only_probe: int, only_tuned: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    cells = [both, only_probe, only_tuned, neither]
    return np.repeat([True, True, False, False], cells), np.repeat([True, False, True, False], cells)


def test_a_proven_gain_reads_aloud() -> None:
    verdict = judge(*rights(1360, 10, 182, 10), seconds=114.0)
    assert verdict.word == "better"
    assert verdict.sentence() == (
        "Fine-tuning helped: 98.7 % against 87.7 % for the frozen probe on the same 1,562 test images "
        "(+11.0 points, 95 % interval +9.4 to +12.7, exact McNemar p < 0.001)."
    )


def test_a_proven_loss_reads_aloud() -> None:
    verdict = judge(*rights(70, 20, 3, 7), seconds=1.0)
    assert verdict.word == "worse"
    assert verdict.sentence().startswith("Fine-tuning hurt: 73.0 % against 90.0 % for the frozen probe")
    assert "(-17.0 points" in verdict.sentence()


def test_what_is_not_proven_is_called_so() -> None:
    verdict = judge(*rights(80, 5, 8, 7), seconds=1.0)
    assert verdict.word == "not proven"
    assert verdict.sentence().startswith("Not proven that fine-tuning helped: 88.0 % against 85.0 %")
    assert "p = 0.58" in verdict.sentence()


@pytest.mark.parametrize("only_tuned", range(1, 12))
def test_better_needs_the_interval_and_the_test(only_tuned: int) -> None:
    verdict = judge(*rights(40, 0, only_tuned, 3), seconds=1.0)
    assert verdict.paired is not None
    proven = verdict.paired.low > 0 and verdict.paired.p < 0.05
    assert (verdict.word == "better") is proven
    assert proven is (only_tuned >= 6)  # 2 / 2**6 is the first below 0.05


def test_a_probe_alone_is_told_with_its_interval() -> None:
    verdict = judge(rights(88, 0, 0, 12)[0], None, seconds=2.0)
    assert (verdict.word, verdict.tuned, verdict.paired) == ("probe only", None, None)
    assert verdict.sentence() == (
        "The frozen probe was kept: 88.0 % of 100 test images right (95 % interval 80.2 % to 93.0 %)."
    )


@pytest.mark.parametrize("tuned", [True, False])
def test_a_verdict_returns_from_json_as_it_was(tuned: bool) -> None:
    first, second = rights(80, 3, 12, 5)
    verdict = judge(first, second if tuned else None, seconds=3.5)
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json(), allow_nan=False))) == verdict


def test_the_sentence_fits_every_terminal() -> None:
    assert judge(*rights(80, 12, 3, 5), seconds=1.0).sentence().isascii()


def test_one_image_is_singular() -> None:
    assert "on the same 1 test image (" in judge(np.array([True]), np.array([True]), seconds=1.0).sentence()


def test_no_images_give_no_verdict() -> None:
    with pytest.raises(NotEnoughData):
        judge(np.zeros(0, bool), None, seconds=1.0)


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0.0 %"), (1.0, "100.0 %"), (0.99999, "99.9 %"), (0.00001, "0.1 %"), (0.5, "50.0 %")]
)
def test_only_all_and_nothing_are_shown_as_such(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0, "p < 0.001"), (0.0496, "p = 0.0496"), (0.05, "p = 0.05"), (0.578, "p = 0.58"), (1.0, "p = 1.00")],
)
def test_p_values_never_round_across_five_percent(p: float, text: str) -> None:
    assert chance(p) == text
