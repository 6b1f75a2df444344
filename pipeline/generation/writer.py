"""The question writer: asks until every cell is exactly full of questions that are new and not held out.

Questions are looked at in the order of the requests, as soon as all earlier ones are answered: which of two
near duplicates stays does not depend on which answer came first, so that a resumed run gives the same bytes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from cogumi.errors import RunError
from cogumi.stage import Settings, StageContext, TeacherConfig
from cogumi.teachers import AskOptions, Message, Reply, TeacherRequest, ask_each
from evals.lint.duplicates import QuestionIndex
from pipeline.generation.accounts import MOST_TAKEN, CellAccount, most_repeated, saturation_account
from pipeline.generation.asking import Bill, shown, teacher
from pipeline.generation.prompts import WRITER_SYSTEM, parse_questions, writer_prompt
from pipeline.generation.records import Cell, Row

_TOKENS_PER_QUESTION = 160
"""Room for one question in the answer; passages of reading and summarization are the longest."""
_LOW_YIELD = 0.5
"""Share of new questions below which a cell's next prompts name what it repeats."""
_POOR_YIELD = 0.1
"""Share of new questions below which a cell is asked step by step: it may be about to saturate."""
_TOLD_IN_ACCOUNT = 3


class WriterSettings(Settings):
    """What a question must be like; it holds for the refill of validation as well."""

    questions_per_call: int = Field(default=20, ge=1)
    max_calls_per_cell: int = Field(default=2000, ge=1)
    saturation_calls: int = Field(default=20, ge=1)
    """A cell is saturated when its last so many calls gave hardly anything new."""
    saturation_yield: float = Field(default=0.02, ge=0, le=1)
    """Share of new ones among the questions of those calls below which that is so."""
    max_question_chars: int = Field(default=4000, ge=1)
    near_duplicate_threshold: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of token trigrams from which two questions count as one; 1 is exact only."""
    temperature: float | None = Field(default=1.0, ge=0)
    leak_micro: bool = False
    """Refuse micro-domain questions that are held out for development, gates and the final test."""
    leak_tasks: tuple[str, ...] = ()
    """Tasks whose items are refused; they are read from the data folder, else from the hub."""
    leak_files: tuple[str, ...] = ()
    """Benchmark files (JSONL), in the data folder or by path, whose items are refused."""
    leak_threshold: float = Field(default=0.7, gt=0, le=1)


class QuestionWriter:
    """Writes questions for cells; every decision depends on the order of requests, not of answers."""

    def __init__(
        self,
        ctx: StageContext,
        settings: WriterSettings,
        teachers: Mapping[str, str],
        options: AskOptions,
        bill: Bill,
    ) -> None:
        from pipeline.generation.leaks import LeakCheck

        self._ctx = ctx
        self._settings = settings
        self._teachers = teachers
        self._options = options
        self._bill = bill
        self._index = QuestionIndex(settings.near_duplicate_threshold)
        self._unread: list[str] = []
        """Questions of an earlier writer that are not in the index yet."""
        self._texts: list[str] = []
        """The questions of the index, by number."""
        self._leaks = LeakCheck(
            micro=settings.leak_micro,
            files=settings.leak_files,
            threshold=settings.leak_threshold,
            data=ctx.data,
            tasks=settings.leak_tasks,
        )
        self._repeats: dict[Cell, Counter[int]] = {}
        """How often each known question came again in a cell."""
        self.accounts: dict[Cell, CellAccount] = {}

    def resume(self, accounts: Mapping[str, Mapping[str, Any]], rows: Sequence[Row]) -> None:
        """Go on where another writer stopped: its calls are not repeated, its questions are known."""
        for name, account in accounts.items():
            domain, _, difficulty = name.partition("/")
            self.accounts[Cell(domain, difficulty)] = CellAccount.of(account)
        self._unread = [row["question"] for row in rows]

    def _recall(self) -> None:
        # Only when more is written: until then the index would lie beside all that is judged.
        for question in self._unread:
            self._remember(question)
        self._unread = []

    def document(self) -> dict[str, Any]:
        """Return what ``resume`` and a reader need: settings and accounts."""
        return {
            "settings": self._settings.model_dump(mode="json"),
            "accounts": {str(cell): account.document() for cell, account in self.accounts.items()},
        }

    def fill(self, wanted: Mapping[Cell, int]) -> dict[Cell, list[Row]]:
        """Return exactly as many new rows per cell as wanted.

        Raises ``RunError`` with an account of every cell that saturated: its teacher repeats itself. All
        other cells are filled before, so that another run pays for nothing of them.
        """
        self._recall()
        filling = _Filling(wanted)
        for cell in wanted:
            self.accounts.setdefault(cell, CellAccount())
        while plan := self._plan(filling):
            self._round(filling, plan)
        short = {cell: (filling.has(cell), number) for cell, number in wanted.items() if filling.lacks(cell)}
        if short:
            repeated = {cell: self._most_repeated(cell, _TOLD_IN_ACCOUNT) for cell in short}
            full = len(wanted) - len(short)
            raise RunError(saturation_account(short, self.accounts, repeated, full))
        return filling.rows

    def _plan(self, filling: _Filling) -> dict[Cell, int]:
        """Return how many calls each cell gets in the next round."""
        plan = {}
        for cell in filling.wanted:
            account = self.accounts[cell]
            missing = filling.lacks(cell)
            left = self._settings.max_calls_per_cell - account.calls
            if missing and left > 0 and not self._saturated(account, filling.calls[cell]):
                plan[cell] = min(left, self._calls(account, missing, filling.calls[cell]))
        return plan

    def _saturated(self, account: CellAccount, calls: int) -> bool:
        if calls < self._settings.saturation_calls:
            return False
        return not account.recent_new or account.recent_yield < self._settings.saturation_yield

    def _calls(self, account: CellAccount, missing: int, calls: int) -> int:
        # At the yield of the last calls and a standard deviation more, so that too many are rarely asked; and
        # with one full call before them, because a single refused answer must not bring twenty more.
        full = self._settings.questions_per_call
        likely = account.recent_new + math.sqrt(account.recent_new) + full
        expected = math.ceil(missing * (len(account.recent) + 1) / likely)
        if not account.recent or account.recent_yield >= _POOR_YIELD:
            return expected
        # Hardly anything may soon be nothing: such a round adds at most a quarter to those before it.
        return min(expected, max(self._settings.saturation_calls, calls // 4))

    def _round(self, filling: _Filling, plan: Mapping[Cell, int]) -> None:
        """Ask the calls of a plan, and look at the answers in order while they arrive."""
        asked: dict[str, list[tuple[Cell, TeacherRequest]]] = {}
        for cell, calls in plan.items():
            account = self.accounts[cell]
            taken = self._taken(cell, account)
            requests = [self._request(cell, account.calls + offset, taken) for offset in range(calls)]
            account.calls += calls
            filling.calls[cell] += calls
            asked.setdefault(self._teachers[cell.domain], []).extend((cell, each) for each in requests)
        configs = [teacher(self._ctx, name) for name in asked]
        pairs = list(asked.values())
        # The k-th requests of all teachers stand together: no teacher waits for another one's last answer.
        order = sorted((place, job) for job, requests in enumerate(pairs) for place in range(len(requests)))
        waiting: dict[tuple[int, int], Reply] = {}
        progress = {"looked": 0, "answered": 0}

        def take(job: int, place: int, reply: Reply) -> None:
            self._bill.add(reply)
            waiting[place, job] = reply
            progress["answered"] += 1
            while progress["looked"] < len(order) and order[progress["looked"]] in waiting:
                at = order[progress["looked"]]
                self._take(filling, pairs[at[1]][at[0]][0], configs[at[1]], waiting.pop(at))
                progress["looked"] += 1
            self._tell(filling, f"{progress['answered']:,}/{len(order):,}")

        jobs = [
            (config, [request for _, request in each]) for config, each in zip(configs, pairs, strict=True)
        ]
        self._bill.stats.add(ask_each(self._ctx.calls, jobs, self._options, take))

    def _request(self, cell: Cell, call: int, taken: Sequence[str]) -> TeacherRequest:
        number = self._settings.questions_per_call
        prompt = writer_prompt(cell.domain, cell.difficulty, number, call, self._ctx.seed, taken)
        return TeacherRequest(
            messages=(Message("user", prompt),),
            max_tokens=number * _TOKENS_PER_QUESTION,
            system=WRITER_SYSTEM,
            temperature=self._settings.temperature,
        )

    def _taken(self, cell: Cell, account: CellAccount) -> list[str]:
        if not account.recent or account.recent_yield >= _LOW_YIELD:
            return []
        return [text for text, _ in self._most_repeated(cell, MOST_TAKEN)]

    def _most_repeated(self, cell: Cell, most: int) -> list[tuple[str, int]]:
        return most_repeated(self._repeats.get(cell, Counter()), self._texts, most)

    def _take(self, filling: _Filling, cell: Cell, config: TeacherConfig, reply: Reply) -> None:
        """Look at one answer's questions: more or fewer than asked for are all right, a cut list is not."""
        account = self.accounts[cell]
        questions = parse_questions(reply.text) if reply.complete else None
        if questions is None:
            refused = reply.finish in ("refusal", "rejected")
            account.refused_calls += refused
            account.unusable_calls += not refused
        before = (account.offered, account.accepted)
        leaks = self._leaks.leaking(questions) if questions and filling.lacks(cell) else []
        for question, leaked in zip(questions or [], leaks, strict=False):
            if not filling.lacks(cell):
                break
            account.offered += 1
            if self._accepts(cell, account, question, leaked=leaked):
                account.accepted += 1
                filling.rows[cell].append(
                    {
                        "question_id": cell.question_id(account.accepted),
                        "domain": cell.domain,
                        "difficulty": cell.difficulty,
                        "question": question,
                        "model": config.model,
                    }
                )
        looked = account.offered - before[0]
        account.surplus += len(questions or []) - looked
        account.took(looked, account.accepted - before[1], self._settings.saturation_calls)

    def _accepts(self, cell: Cell, account: CellAccount, question: str, *, leaked: bool) -> bool:
        if len(question) > self._settings.max_question_chars:
            account.too_long += 1
        elif leaked:
            account.leaks += 1
        elif (match := self._index.match(question)) is not None:
            account.duplicates += match == "exact"
            account.near_duplicates += match == "near"
            known = self._index.closest(question)
            assert known is not None
            self._repeats.setdefault(cell, Counter())[known.number] += 1
        else:
            self._remember(question)
            return True
        return False

    def _remember(self, question: str) -> None:
        if self._index.add(question) == len(self._texts):
            self._texts.append(question)

    def _tell(self, filling: _Filling, calls: str) -> None:
        accounts = [self.accounts[cell] for cell in filling.wanted]
        full = sum(not filling.lacks(cell) for cell in filling.wanted)
        self._ctx.progress.update(
            sum(map(len, filling.rows.values())),
            sum(filling.wanted.values()),
            **shown(
                cells=f"{full}/{len(filling.wanted)}",
                duplicates=sum(each.duplicates for each in accounts),
                near=sum(each.near_duplicates for each in accounts),
                held_out=sum(each.leaks for each in accounts),
                refused=sum(each.refused_calls for each in accounts),
                calls=calls,
            ),
        )


class _Filling:
    """One filling of cells: what is wanted, what came, and the calls that it took."""

    def __init__(self, wanted: Mapping[Cell, int]) -> None:
        self.wanted = wanted
        self.rows: dict[Cell, list[Row]] = {cell: [] for cell in wanted}
        self.calls = dict.fromkeys(wanted, 0)

    def has(self, cell: Cell) -> int:
        """Return how many rows a cell has."""
        return len(self.rows[cell])

    def lacks(self, cell: Cell) -> int:
        """Return how many rows a cell still wants."""
        return self.wanted[cell] - len(self.rows[cell])
