"""Workers: real processes that answer, fail, die and are left alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cogumi.errors import BudgetError, CogumiError, RunError, UsageError
from cogumi.workers import Worker, together


class Heard:
    def __init__(self, raises: BaseException | None = None) -> None:
        self.seen: list[tuple[int, int, dict[str, Any]]] = []
        self._raises = raises

    def update(self, done: int, total: int, **facts: float | int | str) -> None:
        self.seen.append((done, total, facts))
        if self._raises is not None:
            raise self._raises


def workers(folder: Path, *tasks: dict[str, Any]) -> list[Worker]:
    return [
        Worker(f"worker {n}", "worker_jobs", task, log=folder / f"{n}.log", environment={"WHICH": str(n)})
        for n, task in enumerate(tasks, start=1)
    ]


def gone(worker: Worker) -> bool:
    return not Path(f"/proc/{worker.pid}").exists()


def test_the_first_answers_and_its_progress_alone_is_heard(tmp_path: Path) -> None:
    heard = Heard()
    made = workers(tmp_path, {"do": "add", "values": [1, 2]}, {"do": "add", "values": [5]})
    answer = together(made, heard)
    assert answer == {"sum": 3, "pid": made[0].pid}
    assert heard.seen == [(1, 2, {"loss": 0.5})]
    assert (tmp_path / "1.log").read_text() == "printed beside the progress\n"
    assert all(gone(worker) for worker in made)


@pytest.mark.parametrize(
    ("do", "kind", "told"),
    [
        ("refuse", UsageError, "^a has not finished in run r"),
        ("full", RunError, "^disk full while writing"),
        ("defect", RunError, r"^worker 2 failed \(KeyError: 'a line\\nand another'\); see .*/2.log$"),
        (
            "die",
            RunError,
            "^worker 2 was ended by SIGKILL: too little memory, or someone stopped it; run again",
        ),
        ("quit", RunError, "^worker 2 ended with exit code 0: see .*/2.log; run again"),
    ],
)
def test_one_that_fails_ends_all_in_one_line_of_its_class(
    tmp_path: Path, do: str, kind: type[CogumiError], told: str
) -> None:
    made = workers(tmp_path, {"do": "hang", "pid": str(tmp_path / "pid")}, {"do": do})
    with pytest.raises(kind, match=told) as caught:
        together(made, Heard())
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert all(gone(worker) for worker in made)
    if do == "defect":
        assert "Traceback" in (tmp_path / "2.log").read_text()


def test_of_several_failures_the_reason_is_told(tmp_path: Path) -> None:
    # The others fail because one was killed, and may say so first.
    made = workers(tmp_path, {"do": "defect"}, {"do": "die"})
    with pytest.raises(RunError, match=r"^worker 2 was ended by SIGKILL"):
        together(made, Heard())
    made = workers(tmp_path, {"do": "die"}, {"do": "refuse"})
    with pytest.raises(UsageError):
        together(made, Heard())


@pytest.mark.parametrize("error", [BudgetError("time limit"), KeyboardInterrupt()])
def test_what_a_progress_raises_ends_all(tmp_path: Path, error: BaseException) -> None:
    made = workers(tmp_path, *({"do": "hang", "pid": str(tmp_path / f"pid{n}")} for n in range(2)))
    with pytest.raises(type(error)):
        together(made, Heard(error))
    assert all(gone(worker) for worker in made)


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot write .*absent"):
        workers(tmp_path / "absent", {"do": "add"})
