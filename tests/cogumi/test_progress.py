"""What a run tells while it works: pace and time left of this process, money, plain lines and a live bar."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cogumi.cli.progress import Line, Pace
from cogumi.errors import BudgetError
from cogumi.gpu_cost import step_told
from cogumi.ledger import Ledger
from cogumi.profile import GpuPrice
from cogumi.stage import CallRecord, OpenBatch
from cogumi.units import money, rate
from cogumi.watching import WatchedCalls, WatchedProgress


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def work(pace: Pace, clock: Clock, seconds: int, per_second: int, done: int, total: int = 10_000) -> int:
    for _ in range(seconds):
        clock.now += 1
        done += per_second
        pace.update(done, total)
    return done


def test_what_was_done_before_is_no_work_of_this_process(clock: Clock) -> None:
    pace = Pace(clock)
    pace.update(9_000, 10_000)
    assert (pace.per_second, pace.left_s) == (None, None)
    work(pace, clock, 10, 5, 9_000)
    assert pace.per_second == pytest.approx(5)
    assert pace.left_s == pytest.approx(950 / 5)


def test_what_the_ledger_had_is_no_work_either(clock: Clock) -> None:
    pace = Pace(clock)
    pace.update(0, 10_000)
    clock.now += 1
    pace.update(8_000, 10_000, replayed=8_000)
    for second in range(1, 11):
        clock.now += 1
        pace.update(8_000 + 20 * second, 10_000, replayed=8_000)
    assert pace.per_second == pytest.approx(200 / 11)


def test_the_pace_is_that_of_the_last_half_minute(clock: Clock) -> None:
    pace = Pace(clock)
    pace.update(0, 10_000)
    done = work(pace, clock, 100, 50, 0)
    work(pace, clock, 60, 5, done)
    assert pace.per_second == pytest.approx(5, rel=0.01)


def test_slow_work_is_measured_over_its_last_ten_steps(clock: Clock) -> None:
    pace = Pace(clock)
    pace.update(0, 100)
    for done in range(1, 31):
        clock.now += 120
        pace.update(done, 100)
    assert pace.per_second == pytest.approx(1 / 120)
    assert pace.left_s == pytest.approx(70 * 120)


def test_a_stall_lengthens_the_time_left(clock: Clock) -> None:
    pace = Pace(clock)
    pace.update(0, 1_000)
    work(pace, clock, 10, 10, 0, 1_000)
    before = pace.left_s
    clock.now += 100
    assert before is not None
    assert pace.left_s is not None
    assert pace.left_s > 10 * before


@pytest.mark.parametrize(
    ("done", "total", "unit"), [(0, 10_000, "calls"), (300, 800, "calls"), (600, 10_000, "questions")]
)
def test_another_phase_has_a_pace_of_its_own(clock: Clock, done: int, total: int, unit: str) -> None:
    pace = Pace(clock)
    pace.update(0, 10_000, unit="calls")
    for second in range(1, 11):
        clock.now += 1
        pace.update(50 * second, 10_000, unit="calls")
    assert pace.per_second == pytest.approx(50)
    pace.update(done, total, unit=unit)
    assert pace.per_second is None
    for second in range(1, 6):
        clock.now += 1
        pace.update(done + 2 * second, total, unit=unit)
    assert pace.per_second == pytest.approx(2)


def test_work_that_is_added_keeps_the_pace_and_lengthens_the_time_left(clock: Clock) -> None:
    pace = Pace(clock)
    pace.update(0, 100)
    done = work(pace, clock, 10, 5, 0, 100)
    pace.update(done, 200)
    assert pace.per_second == pytest.approx(5)
    assert pace.left_s == pytest.approx(30)


def test_plain_lines_are_short_and_rarer_the_longer_it_takes(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    line = Line("questions", clock)
    facts: dict[str, Any] = {
        "duplicates": 3_210,
        "near_duplicates": 400,
        "leaks": 3,
        "refused": 2,
        "cells": "9/16",
    }
    for second in range(3_600):
        clock.now += 1
        line.update(second, 60_000, spent="$12.34", replayed=0, unit="", **facts)
    line.close()
    told = capsys.readouterr().err.splitlines()
    counted, _, facts_told = told[0].partition(", $12.34, ")
    assert counted == "    questions: 4/60,000, 1.0/s, 16 h 39 min left"
    assert facts_told == "duplicates 3,210, near duplicates 400, leaks 3"
    assert max(map(len, told)) <= 110
    assert 60 < len(told) < 120


def test_a_replay_is_named(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    line = Line("answers", clock)
    clock.now += 10
    line.update(500, 600, spent="$0.00", replayed=500, unit="questions")
    assert capsys.readouterr().err == "    answers: 500/600 questions, $0.00, 500 from the ledger\n"


@pytest.mark.parametrize(
    ("per_second", "told"), [(1234.5, "1,234/s"), (8.31, "8.3/s"), (0.2, "12/min"), (0.004, "0.24/min")]
)
def test_a_slow_rate_is_told_by_the_minute(per_second: float, told: str) -> None:
    assert rate(per_second) == told


@pytest.mark.parametrize(
    ("real", "simulated", "told"),
    [
        (0.0, 0.0, "$0.00"),
        (0.0123, 0.0, "$0.0123"),
        (1234.5, 0.0, "$1,234.50"),
        (0.0, 2.5, "$2.50 simulated"),
        (1.0, 2.5, "$1.00 + $2.50 simulated"),
    ],
)
def test_play_money_is_never_told_as_money(real: float, simulated: float, told: str) -> None:
    assert money(real, simulated) == told


# What the runner adds ---------------------------------------------------------------------------------


class Seen:
    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}

    def update(self, done: int, total: int, **facts: float | int | str) -> None:
        self.facts = facts


def record(number: int, usd: float | None) -> CallRecord:
    return CallRecord(f"key-{number}", "openai", "m", {"a": 1}, 1, 1, usd)


def test_the_runner_adds_money_and_what_was_replayed(tmp_path: Path) -> None:
    calls = WatchedCalls(Ledger(tmp_path), "run", "step", None)
    seen = Seen()
    watched = WatchedProgress(seen, None, "step", calls)
    watched.update(0, 100)
    watched.update(40, 100, dropped=2)
    assert seen.facts == {"replayed": 40, "spent": "$0.00", "dropped": 2}
    calls.record([record(1, 0.5), record(2, None)])
    watched.update(42, 100)
    assert seen.facts == {"replayed": 40, "spent": "$0.5000", "answers_of_unknown_price": 1}


def test_a_batch_that_is_waited_for_is_work_of_this_process(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    WatchedCalls(ledger, "run", "step", None).save_batch("openai", OpenBatch("key", "batch-1", ("call",)))
    calls = WatchedCalls(ledger, "run", "step", None)
    seen = Seen()
    watched = WatchedProgress(seen, None, "step", calls)
    watched.update(30, 100)
    assert len(calls.open_batches("openai")) == 1
    watched.update(90, 100)
    assert seen.facts["replayed"] == 30


def test_a_stage_without_teachers_is_told_as_it_is() -> None:
    seen = Seen()
    WatchedProgress(seen, None, "train", None).update(1, 2, loss=0.5)
    assert seen.facts == {"loss": 0.5}


def test_unpriced_answers_are_counted_also_at_the_limit(tmp_path: Path) -> None:
    calls = WatchedCalls(Ledger(tmp_path), "run", "step", 0.4)
    with pytest.raises(BudgetError):
        calls.record([record(1, 0.5), record(2, None)])
    assert calls.unpriced == 1
    assert sorted(calls.recorded(["key-1", "key-2"])) == ["key-1", "key-2"]


# On a terminal ----------------------------------------------------------------------------------------

_ON_TERMINAL = """
import time
from cogumi.cli.progress import Line
line = Line("questions")
for done in range(0, 2000, 50):
    line.update(done, 60000, spent="$12.34", duplicates=3210, near_duplicates=400, refused=2)
    time.sleep(0.05)
line.close()
"""


def on_terminal(columns: int) -> str:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    command = [sys.executable, "-c", _ON_TERMINAL]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 65_536):
            seen += chunk
    except OSError:
        # Linux ends a terminal whose other side is closed with EIO.
        assert process.wait() == 0
    os.close(ours)
    return seen.decode()


@pytest.mark.parametrize(
    ("columns", "last"), [(80, "$12.34"), (120, "near duplicates 400")], ids=["narrow", "wide"]
)
def test_the_live_bar_stays_on_one_line(columns: int, last: str) -> None:
    from rich.text import Text

    screens = [Text.from_ansi(part).plain.rstrip() for part in on_terminal(columns).split("\r")]
    drawn = [line.strip("\n") for line in screens if "/60,000" in line]
    assert drawn
    assert max(map(len, drawn)) <= columns
    assert not any("\n" in line for line in drawn)
    assert last in drawn[-1]
    assert "left" in drawn[-1]


# Training ---------------------------------------------------------------------------------------------

TRAINING: dict[str, Any] = {
    "lr": 2e-4,
    "loss": 1.23456,
    "held_out_loss": 1.3,
    "mfu": 0.381,
    "tok_s": 15_050,
    "gpu_seconds": 1800.0,
}
H100 = GpuPrice(name="H100 SXM", usd_per_hour=2.0, source="test")


def test_a_training_line_tells_what_matters_first(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    line = Line("base", clock)
    watched = WatchedProgress(line, None, "base", None, H100)
    for step in range(1, 12):
        clock.now += 1
        watched.update(10 * step, 600, unit="steps", **TRAINING)
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == (
        "    base: 100/600 steps, 50 s left, GPU $1.00, loss 1.23, held-out 1.3, 15,050 tok/s, MFU 38.1%, "
        "lr 0.0002"
    )
    assert len(told) <= 110


@pytest.mark.parametrize("gpu", [None, GpuPrice(name="H100 SXM", source="test")])
def test_an_unknown_price_is_no_sum(gpu: GpuPrice | None) -> None:
    seen = Seen()
    WatchedProgress(seen, None, "base", None, gpu).update(1, 2, gpu_seconds=1800.0)
    assert seen.facts == {"gpu_seconds": 1800.0}


def test_gpu_time_is_told_beside_money_for_teachers(tmp_path: Path) -> None:
    seen = Seen()
    calls = WatchedCalls(Ledger(tmp_path), "run", "step", None)
    WatchedProgress(seen, None, "step", calls, H100).update(1, 2, gpu_seconds=900.0)
    assert seen.facts == {"replayed": 1, "spent": "$0.00", "gpu_seconds": 900.0, "gpu_usd": 0.5}


@pytest.mark.parametrize(
    ("metrics", "gpu", "told"),
    [
        ({"seconds": 30.0}, H100, ""),
        ({"seconds": 30.0, "gpus": 0.0}, H100, ""),
        ({"seconds": 3600.0, "gpus": 2.0}, H100, ", 2 GPU hours, $4.00"),
        ({"seconds": 60.0, "gpus": 2.0, "gpu_hours": 3.0}, H100, ", 3 GPU hours, $6.00"),
        (
            {"seconds": 1800.0, "gpus": 1.0},
            None,
            ", 0.5 GPU hours, cost unknown (the profile has no gpu.usd_per_hour)",
        ),
    ],
)
def test_what_a_finished_step_took(metrics: dict[str, float], gpu: GpuPrice | None, told: str) -> None:
    assert step_told(metrics, gpu) == told
