"""The leak check: no item of a benchmark, nor a question nearly like one, may be trained on.

What counts as a leak is what ``cogumi data lint --against`` finds, warnings included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cogumi.errors import RunError, UsageError
from evals.lint.fields import QUESTION, is_blank, parts_of
from evals.lint.leaks import BenchmarkIndex, Place
from evals.lint.rows import Row, read_rows
from evals.micro import split_of
from evals.tasks import MICRO, get_task
from evals.types import Item


class LeakCheck:
    """Tells which questions belong to what is held out for evaluation.

    ``files``: benchmark files in the data folder or by path. ``tasks``: names of tasks, whose items are read
    from the data folder, else from the hub. ``micro``: the micro-domains' questions of other splits than
    train. Raises ``UsageError`` for an unknown name or a missing file and ``RunError`` for a benchmark that
    is not to be had or has broken rows; both name the mend.
    """

    def __init__(
        self,
        *,
        micro: bool,
        files: Sequence[str],
        threshold: float,
        data: Path | None,
        tasks: Sequence[str] = (),
    ) -> None:
        self._micro = micro
        self._benchmarks = BenchmarkIndex(threshold)
        for name in dict.fromkeys(files):
            _add_file(self._benchmarks, _find(name, data))
        for name in dict.fromkeys(tasks):
            _add_task(self._benchmarks, name, data)

    def leaks(self, question: str) -> bool:
        """Return True for a held-out question."""
        return self.leaking([question])[0]

    def leaking(self, questions: Sequence[str]) -> list[bool]:
        """Tell for each question whether it is held out; many at once are faster than one by one."""
        held = [self._micro and split_of(question) != "train" for question in questions]
        if len(self._benchmarks):
            rows = [(parts_of({"question": question}), [question]) for question in questions]
            found = self._benchmarks.leaks(rows)
            held = [known or leak is not None for known, leak in zip(held, found, strict=True)]
        return held


def _add_task(index: BenchmarkIndex, name: str, data: Path | None) -> None:
    try:
        items = get_task(name).items(data)
    except (UsageError, RunError) as error:
        raise type(error)(f"leak_tasks: {error}") from None
    # Few-shot examples and instructions that all items share are not theirs.
    start, end = _shared([item.prompt for item in items])
    for item in items:
        place = Place(f"{name}, item {item.id}")
        document = _document(item)
        if document is not None:
            index.add(document, parts_of(document), place)
        elif name in MICRO:
            # Questions that a program writes are all alike: only the same one is a leak.
            index.add_exact(item.prompt, place)
        else:
            index.add_question(item.prompt[start : len(item.prompt) - end], place)


def _document(item: Item) -> Mapping[str, object] | None:
    """Return the row of the source, where the item keeps it and the row has a question."""
    document = item.target.get("document")
    if isinstance(document, Mapping) and not is_blank(parts_of(document).question):
        return document
    return None


def _shared(texts: Sequence[str]) -> tuple[int, int]:
    """Return how many characters all of several texts begin with, and end with, whole words only."""
    if len(set(texts)) < 2:
        return 0, 0
    start = _common_words(texts)
    return start, _common_words([text[start:][::-1] for text in texts])


def _common_words(texts: Sequence[str]) -> int:
    # What the first and the last in alphabetical order begin with, all between them begin with.
    first, last = min(texts), max(texts)
    same = 0
    while same < min(len(first), len(last)) and first[same] == last[same]:
        same += 1
    while same and not first[same - 1].isspace():
        same -= 1
    return same


def _add_file(index: BenchmarkIndex, path: Path) -> None:
    for row in read_rows(path):
        if isinstance(row, Row):
            parts = parts_of(row.value)
            if is_blank(parts.question):
                names = ", ".join(QUESTION[:5])
                raise RunError(f"{path}, line {row.line}: no text under {names}, …; mend or drop it")
            index.add(row.value, parts, Place(str(path), row.line))
        elif row.severity == "error":
            raise RunError(f"{path}, line {row.line}: {row.message}; mend or drop it")


def _find(name: str, data: Path | None) -> Path:
    for path in (*([data / name] if data else []), Path(name)):
        if path.is_file():
            return path
    where = f"in {data} or here" if data else "here (and no --data folder is known)"
    raise UsageError(f"leak_files: no file {name} {where}")
