"""Cells whose teacher has no more to say: the stop, its account, and what a second run pays."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from generation_bench import WRITERS, Bench

from cogumi.errors import RunError
from pipeline.generation.accounts import CellAccount, saturation_account
from pipeline.generation.records import Cell
from pipeline.local_teacher import LocalTeacher, TeacherOptions

TEACHERS = {**WRITERS, "instruction": "llama"}
WRITER = {"questions_per_call": 40, "near_duplicate_threshold": 1.0, "leak_micro": True}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTeacher]:
    with LocalTeacher(TeacherOptions(tmp_path_factory.mktemp("teacher"))) as running:
        yield running


def test_saturated_cell_stops_with_an_account_after_all_others_are_full(
    teacher: LocalTeacher, tmp_path: Path
) -> None:
    made = Bench(tmp_path / "bench", teacher.base_url)
    # The micro-domain has about 1,100 hard instructions to train on.
    quotas = {"instruction": {"hard": 2000}, "math": {"easy": 90}, "reading": {"hard": 60}}
    with pytest.raises(RunError) as raised:
        made.run("questions", quotas=quotas, teachers=TEACHERS, writer=WRITER)
    summary, cell, recent, *rest = str(raised.value).splitlines()
    assert summary.startswith("the question writer saturated in 1 of 3 cells: instruction/hard; ")
    found = re.match(r"  instruction/hard has ([\d,]+) of 2,000: ([\d,]+) new of ([\d,]+) offered", cell)
    assert found
    has, new, offered = (int(each.replace(",", "")) for each in found.groups())
    assert 700 < has == new < 1500
    told = re.match(r"    its last 20 calls gave (\d+) new of 800 offered \((.*)%\)", recent)
    assert told
    assert int(told[1]) < 0.02 * 800
    assert float(told[2]) == pytest.approx(int(told[1]) / 8, abs=0.051)
    # What was spent to learn it: the cell's own size several times over, not its whole allowance.
    assert offered < 9_000
    assert sum("times again: '" in line for line in rest) == 3
    assert "lower the quota" in rest[-1]
    assert made.told.facts["cells"] == "2/3"

    answered = teacher.counters(ids=False)["answered"]
    made.run("questions", quotas={"math": {"easy": 90}}, teachers=TEACHERS, writer=WRITER)
    assert teacher.counters(ids=False)["answered"] == answered
    assert made.metrics["questions"]["calls_asked"] == 0


def test_calls_of_a_cell_are_bounded_and_more_of_them_pay_for_the_new_ones_alone(
    teacher: LocalTeacher, tmp_path: Path
) -> None:
    made = Bench(tmp_path / "bench", teacher.base_url)
    quotas = {"math": {"easy": 50}}
    writer = {**WRITER, "questions_per_call": 5, "max_calls_per_cell": 3}
    with pytest.raises(RunError, match=r"math/easy has \d+ of 50: \d+ new of 15 offered in 3 calls"):
        made.run("questions", quotas=quotas, teachers=TEACHERS, writer=writer)
    writer["max_calls_per_cell"] = 100
    artifact = made.run("questions", quotas=quotas, teachers=TEACHERS, writer=writer)
    assert artifact.facts["cells"] == {"math/easy": 50}
    assert made.metrics["questions"]["calls_from_ledger"] == 3
    assert made.metrics["questions"]["calls_asked"] == artifact.facts["calls"] - 3


def test_teacher_that_refuses_everything_runs_dry(tmp_path: Path) -> None:
    with LocalTeacher(TeacherOptions(tmp_path / "teacher", faults={"refusal": 1.0})) as mute:
        made = Bench(tmp_path / "bench", mute.base_url)
        writer = {"saturation_calls": 4, "questions_per_call": 10}
        with pytest.raises(RunError, match=r"math/easy has 0 of 9: .* 0 unusable and \d refused") as raised:
            made.run("questions", quotas={"math": {"easy": 9}}, teachers=WRITERS, writer=writer)
    assert "the 9 that it lacks are not to be had at this yield" in str(raised.value)
    assert 4 <= mute_calls(str(raised.value)) <= 8


def mute_calls(account: str) -> int:
    found = re.search(r"offered in (\d+) calls", account)
    assert found
    return int(found[1])


def test_account_tells_what_it_would_take() -> None:
    cell = Cell("math", "easy")
    account = CellAccount(calls=40, offered=800, accepted=100, duplicates=700)
    for new in range(5):
        account.took(20, new % 2, 4)
    told = saturation_account({cell: (100, 160)}, {cell: account}, {cell: [("a\nb" * 99, 7)]}, 15)
    assert "saturated in 1 of 16 cells: math/easy" in told
    assert "its last 4 calls gave 2 new of 80 offered (2.5%)" in told
    assert "the 60 that it lacks take about 120 calls more" in told
    assert all(len(line) < 220 for line in told.splitlines())
    assert CellAccount.of(account.document()) == account
