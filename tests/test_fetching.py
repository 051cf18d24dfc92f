"""A network that comes over the network while a budget runs."""

from __future__ import annotations

import pytest

from burnish.errors import WeightsUnreachable
from burnish.run import fetching
from burnish.run.fetching import Fetching
from burnish.runtime import Clock
from burnish.watching import Lines


class Simulated:
    """Seconds that pass as the test says."""

    now = 1000.0

    def monotonic(self):
        return self.now


class Told(Lines):
    def __init__(self):
        super().__init__()
        self.said = []

    def say(self, text):
        self.said.append(text)


@pytest.fixture
def time(monkeypatch):
    simulated = Simulated()
    monkeypatch.setattr(fetching, "time", simulated)
    monkeypatch.setattr("burnish.runtime.time.monotonic", lambda: simulated.now)
    return simulated


def fetched(time, budget, *, speed, size=100_000_000, had=0, seconds=40, model="resnet50"):
    """What was said of a file of which so many bytes come each second; `had`: left by an earlier process."""
    watcher = Told()
    told = Fetching(model, Clock(time.now, budget), watcher)
    for second in range(seconds):
        told(min(size, had + second * speed), size if second else 0)
        time.now += 1.0
    return watcher.said


def test_how_long_it_takes_is_said_once(time):
    assert fetched(time, None, speed=2_000_000) == ["fetching resnet50: 100 MB, about 47 s more at 2.0 MB/s"]


def test_what_is_there_soon_needs_no_word(time):
    assert fetched(time, 60.0, speed=60_000_000, seconds=2) == []


def test_what_would_come_after_the_budget_is_given_up_at_once(time):
    with pytest.raises(
        WeightsUnreachable, match=r"at 1\.0 MB/s the 97 MB that are lacking take about 97 s, and 27 s are left"
    ) as told:
        fetched(time, 30.0, speed=1_000_000)
    assert time.now == 1003.0 and "what came is kept" in str(told.value)


def test_what_an_earlier_process_left_does_not_count_as_speed(time):
    with pytest.raises(WeightsUnreachable, match=r"at 20\.0 kB/s"):
        fetched(time, 30.0, speed=20_000, had=90_000_000)


def test_a_file_that_stops_coming_in_time_is_given_up(time):
    watcher, clock = Told(), Clock(time.now, 30.0)
    told = Fetching("resnet50", clock, watcher)
    with pytest.raises(WeightsUnreachable):
        for _ in range(40):
            told(min(90_000_000, int((time.now - 1000.0) * 10_000_000)), 100_000_000)
            time.now += 1.0
    assert clock.left() > 0.0


def test_an_address_is_told_without_its_secrets(time):
    said = fetched(time, None, speed=2_000_000, model="https://me:secret@host/file?key=secret#sha256=00")
    assert "secret" not in said[0] and "https://host/file" in said[0]
