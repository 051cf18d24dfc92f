"""The end of a race: which arms are tested and timed as the clock runs out, and what the pages call their numbers."""

import csv
import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
from test_compare import Lines, made_up, row
from test_report_page import facts_of

from burnish import api
from burnish.choose.evidence import Evidence
from burnish.record.answers import Answers
from burnish.reports.leaderboard import csv_of, round_numbers
from burnish.reports.leaderboard import page_of as leaderboard_page
from burnish.reports.page import render
from burnish.reports.runs import page_of as runs_page
from burnish.reports.runs import side_by_side
from burnish.run.race import tested as testing_stage
from burnish.run.race.arms import Arm, Score
from burnish.run.race.state import Race

BUDGET = 60.0


class Simulated:
    """Seconds that only testing and timing spend; stands for the clock of a race and for the module time."""

    def __init__(self, left):
        self.now = BUDGET - left

    def monotonic(self):
        return self.now

    def left(self):
        return BUDGET - self.now


def ended(monkeypatch, tmp_path, *, left, testing, timing, arms=3):
    """(rows, what was said, the clock) of a race with so many seconds left for arms that take so many each."""
    clock = Simulated(left)
    monkeypatch.setattr(testing_stage, "time", clock)
    race = Race.__new__(Race)
    race.arms = [
        Arm(f"m{place}", "probe", place, Evidence(np.arange(10) < 9 - place, np.ones(10)), state="frozen")
        for place in range(arms)
    ]
    for arm in race.arms:
        arm.package = tmp_path / arm.model
    material = SimpleNamespace(test_groups=None, test_labels=np.zeros(10, int))
    looked = SimpleNamespace(material=material, probes=SimpleNamespace(images_per_second=96.0))
    race.looked = {arm.model: looked for arm in race.arms}
    race.decisions, race.watcher = [], Lines()
    race.recipe, race.folder = SimpleNamespace(budget_seconds=BUDGET), SimpleNamespace(path=tmp_path)
    race.ledger = SimpleNamespace(clock=clock)
    asked = []

    def tested(race, arm):
        asked.append(f"test {arm.model}")
        clock.now += testing
        return Score(np.ones(10, bool), {}, None, 1000)

    def speed(race, arm):
        asked.append(f"time {arm.model}")
        clock.now += timing
        return 50.0

    monkeypatch.setattr(testing_stage, "_tested", tested)
    monkeypatch.setattr(testing_stage, "_speed", speed)
    return testing_stage.score(race), asked, clock


def test_two_arms_are_tested_where_the_clock_has_no_time_for_a_third_or_to_time_them(monkeypatch, tmp_path):
    rows, asked, clock = ended(monkeypatch, tmp_path, left=5.0, testing=2.0, timing=3.0)
    assert asked == ["test m0", "test m1"]
    assert [one["test"] is not None for one in rows] == [True, True, False]
    assert [one["images_per_second"] for one in rows] == [None] * 3
    assert rows[2]["state"] == "not tested: no time was left"
    assert clock.left() >= 0.0


def test_the_second_arm_may_end_a_little_after_the_budget_and_never_far_after_it(monkeypatch, tmp_path):
    _, asked, clock = ended(monkeypatch, tmp_path, left=5.0, testing=3.0, timing=3.0)
    assert asked == ["test m0", "test m1"] and clock.now == 61.0
    _, asked, _ = ended(monkeypatch, tmp_path, left=5.0, testing=4.0, timing=3.0)
    assert asked == ["test m0"]


def test_all_finalists_are_tested_before_any_is_timed(monkeypatch, tmp_path):
    rows, asked, _ = ended(monkeypatch, tmp_path, left=15.0, testing=2.0, timing=2.0)
    assert asked == ["test m0", "test m1", "test m2", "time m0", "time m1", "time m2"]
    assert {one["images_per_second"] for one in rows} == {50.0}
    rows, asked, _ = ended(monkeypatch, tmp_path, left=12.0, testing=2.0, timing=2.0)
    assert asked == ["test m0", "test m1", "test m2", "time m0"]
    assert [one["images_per_second"] for one in rows] == [50.0, None, None]


def test_an_arm_that_cannot_be_timed_keeps_its_score(monkeypatch, tmp_path):
    monkeypatch.setattr(testing_stage, "TIMED_FOR_SPEED", 0)
    real = testing_stage._timed

    def failing(race, *rest):
        monkeypatch.setattr(testing_stage, "_speed", lambda race, arm: 1 / 0)
        return real(race, *rest)

    monkeypatch.setattr(testing_stage, "_timed", failing)
    rows, asked, _ = ended(monkeypatch, tmp_path, left=30.0, testing=1.0, timing=1.0)
    assert asked == ["test m0", "test m1", "test m2"]
    assert all(one["test"] is not None and one["state"] == "frozen" for one in rows)


def test_a_race_times_its_finalists_and_tells_no_seconds_where_there_is_no_budget(shapes, tmp_path):
    watcher = Lines()
    facts = api.compare(
        shapes, models=["random:test_resnet"], methods=["probe", "full"], out=tmp_path / "race", watcher=watcher,
        budget=None, epochs=1, image_size=64, batch_size=12, precision="float32",
    )  # fmt: skip
    assert all(one["images_per_second"] > 0 and one["parameters"] > 0 for one in facts["rows"])
    assert "random:test_resnet · full: round 1" in watcher.said
    assert not [text for text in watcher.said if "inf s" in text]
    assert facts["several"] is False


def test_an_arm_without_a_speed_is_on_the_page_under_its_own_number():
    rows = [row(chosen=True, images_per_second=None), row(name="second")]
    page = leaderboard_page(made_up(rows))
    assert "Without images/s: 1 of the finalists, as no time was left to time them." in page
    plots = page.split("<figure>")[1:]
    assert [plot.count("<circle") for plot in plots] == [2, 1]
    assert ">2</text>" in plots[1] and ">1</text>" not in plots[1]
    assert "Without images/s" not in leaderboard_page(made_up([row(chosen=True)]))


def test_what_stands_against_the_chosen_comes_before_what_is_looked_up():
    """On a screen of 1,200 pixels the last columns may be beyond the edge."""
    page = leaderboard_page(made_up([row(chosen=True, model="efficientnet_lite0")]))
    heads = re.findall(r"<th [^>]*>([^<]*)", page)
    assert heads.index("against the chosen") == heads.index("95 %") + 1
    assert "efficientnet_<wbr>lite0" in page


@pytest.mark.parametrize(("low", "high"), [(28.5, 101.0), (0.0, 7.36), (0.0, 1e-9), (99.2, 100.0), (0.0, 123456.0)])
def test_numbers_on_an_axis_are_round(low, high):
    found = round_numbers(low, high)
    assert 2 <= len(found) <= 6 and all(low - 1e-9 <= one <= high + 1e-9 for one in found)
    step = found[1] - found[0]
    assert f"{step:.0e}"[0] in "125" and step == pytest.approx(float(f"{step:.0e}"))


@pytest.mark.parametrize("several", [True, False])
def test_the_leaderboard_calls_the_jaccard_index_so(several):
    page = leaderboard_page(made_up([row(chosen=True)], several=several))
    assert ("test %, classes right<br>by image (Jaccard)</th>" in page) is several
    assert ("Classes right by image (Jaccard) against seconds spent" in page) is several
    assert ("Accuracy against seconds spent" in page) is not several


@pytest.mark.parametrize(("score", "name"), [("mAP", "Classes right by image (Jaccard)"), ("accuracy", "Accuracy")])
def test_runs_side_by_side_call_the_jaccard_index_so(score, name):
    right = np.array([0.5, 1.0, 0.0, 1.0]) if score == "mAP" else np.array([True, False, True, True])
    answers = Answers(("a", "b", "c", "d"), ("x", "y", "x", "y"), right)
    rows, n = side_by_side([(run, {"verdict": {"score": score}}, answers) for run in ("one", "two")])
    assert f'<th class="number">{name}</th>' in runs_page(rows, n)


def test_the_chosen_arm_has_no_limits_of_its_difference_to_itself_in_the_csv():
    first, second = csv.DictReader(io.StringIO(csv_of(made_up([row(chosen=True), row(name="second")]))))
    assert first["difference_low"] == first["difference_high"] == ""
    assert float(second["difference_low"]) < float(second["difference_high"])


UNSURE = {"kind": "unsure", "path": "a.png", "label": "a", "predicted": "a", "confidence": 0.5, "near": []}


def test_a_run_without_a_wrong_answer_shows_no_worst_mistakes():
    page = render({**facts_of(3), "mistakes": []}, {"cases": [UNSURE]})
    assert "Worst mistakes" not in page and "wrong answers that the kept model was surest of" not in page
    assert page.count("Least certain answers</h2>") == 1
    assert "Least certain answers</h3>" not in page and '<p class="soft"></p>' not in page
    page = render(facts_of(3), {"cases": [UNSURE]})
    assert "Worst mistakes" in page and page.count("Least certain answers</h3>") == 1


def test_a_page_names_reject_only_where_it_can_be_had():
    beyond = {"value": 0.1, "low": 0.05, "high": 0.2, "n": 40}
    facts = {**facts_of(3), "familiarity": {"limit": 1.0, "meant": 0.05, "beyond": beyond}, "declining": None}
    page = render(facts)
    assert "Images unlike the training images" in page and "--reject" not in page
