"""What a teacher client does about rates, refusals and spending, against a provider that a test plays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogumi.errors import BudgetError, RunError
from cogumi.ledger import Ledger, LedgerCalls
from cogumi.stage import OpenBatch, TeacherConfig
from cogumi.teachers import AskOptions, Message, Reply, RetryPolicy, TeacherRequest, Usage, ask, ask_each
from cogumi.teachers import batches as batches_module
from cogumi.teachers.limit import Pace
from cogumi.teachers.pricing import expected_usd
from cogumi.teachers.types import Answer, BatchItem, BatchLimits, BatchStatus, BatchTicket, Failure

POLICY = RetryPolicy(timeout_seconds=5.0, attempts=3, backoff_seconds=0.001)
LIVE = AskOptions("live", concurrency=4, policy=POLICY)
BATCH = AskOptions("batch", concurrency=4, poll_seconds=0.001, policy=POLICY)
CONFIG = TeacherConfig(
    name="played",
    api="openai",
    model="m",
    base_url="http://nowhere",
    key_env=None,
    input_usd_per_mtok=0.0,
    output_usd_per_mtok=1e6,
    batch_discount=0.0,
    endpoint="",
    simulated=False,
)


class HttpError(Exception):
    """A failure with the kind that ``classify`` would find."""

    def __init__(self, kind: Any, status: int, message: str = "no") -> None:
        super().__init__(message)
        self.found = Failure(kind, f"HTTP {status}: {message}", status)


class Played:
    """A provider whose answers cost a dollar each, and whose failures a test decides by the question."""

    def __init__(self, fails: Callable[[str], HttpError | None] = lambda _: None) -> None:
        self.limits = BatchLimits(requests=100, bytes=10**6)
        self.names_batches = True
        self.lost_submissions = 0
        self.says = ""
        self.fails = fails
        self.asked: list[str] = []
        self.most_at_once = 0
        self.batches: dict[str, tuple[BatchTicket, list[dict[str, Any]]]] = {}
        self.refuse_queue_above: int | None = None
        self.expire_after: int | None = None
        self._now = 0

    def body(self, request: TeacherRequest) -> dict[str, Any]:
        return {"question": request.messages[0].text}

    async def ask(self, request: TeacherRequest) -> Answer:
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            await asyncio.sleep(0.002)
            return self._answer(request.messages[0].text)
        finally:
            self._now -= 1

    def _answer(self, question: str) -> Answer:
        if error := self.fails(question):
            raise error
        self.asked.append(question)
        return Answer(f"id-{question}", self.says or f"re: {question}", "stop", Usage(1, 1))

    async def upload(self, ticket: BatchTicket, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return bodies

    async def submit(self, ticket: BatchTicket, uploaded: list[dict[str, Any]]) -> str:
        name = f"batch-{len(self.batches)}"
        self.batches[name] = (ticket, uploaded)
        if self.lost_submissions:
            self.lost_submissions -= 1
            raise HttpError("retry", 500, "the answer was lost")
        return name

    async def candidates(self, ticket: BatchTicket, ignore: set[str]) -> list[str]:
        return [
            name
            for name, (known, _) in self.batches.items()
            if known.key == ticket.key and name not in ignore
        ]

    async def status(self, batch_id: str) -> BatchStatus:
        size = len(self.batches[batch_id][1])
        if self.refuse_queue_above is not None and size > self.refuse_queue_above:
            return BatchStatus(ended=True, finished=0, problem="too many tokens queued", queue_full=True)
        return BatchStatus(ended=True, finished=size, results=(batch_id,))

    async def results(self, place: str) -> list[BatchItem]:
        ticket, bodies = self.batches[place]
        items = []
        for index, body in enumerate(bodies):
            name = ticket.custom_id(index)
            if self.expire_after is not None and index >= self.expire_after:
                items.append(BatchItem(name, None, "expired"))
                continue
            try:
                items.append(BatchItem(name, self._answer(body["question"])))
            except HttpError as error:
                kind: Any = error.found.kind
                items.append(BatchItem(name, None, str(error), kind))
        return items

    def failure(self, error: Exception) -> Failure | None:
        return error.found if isinstance(error, HttpError) else None

    async def close(self) -> None:
        return


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    book = Ledger(tmp_path)
    yield book
    book.close()


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Played]:
    """Put a played provider in the place of the SDKs."""

    def put(*arguments: Any) -> Played:
        provider = Played(*arguments)
        monkeypatch.setattr("cogumi.teachers.client.open_provider", lambda *_: provider)
        return provider

    return put


def questions(count: int, **changes: Any) -> list[TeacherRequest]:
    return [TeacherRequest((Message("user", f"q{n}"),), 1, **changes) for n in range(count)]


def calls_of(ledger: Ledger, max_usd: float | None = None) -> LedgerCalls:
    return LedgerCalls(ledger, "run", "step", max_usd)


def recorded(ledger: Ledger) -> list[str]:
    return sorted(row["response"]["text"] for row in ledger.snapshot()["calls"])


def test_answer_with_half_a_character_can_be_written(ledger: Ledger, play: Callable[..., Played]) -> None:
    provider = play()
    provider.says = "half \ud83d and whole \N{GRINNING FACE}"
    (replies,), _ = ask(calls_of(ledger), [(CONFIG, questions(1))], LIVE)
    assert replies[0].text == "half ? and whole \N{GRINNING FACE}"
    assert replies[0].text.encode()


# Rates -----------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.floats(10, 6000), st.integers(2, 60))
def test_pace_never_lets_more_through_than_the_minute_allows(per_minute: float, calls: int) -> None:
    async def waits() -> list[float]:
        pace = Pace(per_minute, None)
        return [pace.wait(0) for _ in range(calls)]

    found = asyncio.run(waits())
    gap = 60 / per_minute
    # All asked at once: beyond a second's worth each waits one gap longer than the one before.
    for index, wait in enumerate(found):
        assert wait >= index * gap - 1.0 - gap - 0.05


def test_pace_counts_tokens_and_what_was_really_used() -> None:
    async def waits(used: int) -> float:
        pace = Pace(None, 6000)
        assert pace.wait(1000) == 0.0
        pace.correct(1000, used)
        return pace.wait(1000)

    assert asyncio.run(waits(1000)) == pytest.approx(9.0, abs=0.1)
    assert asyncio.run(waits(300)) == pytest.approx(2.0, abs=0.1)


def test_teachers_of_one_account_share_its_rate(ledger: Ledger, play: Callable[..., Played]) -> None:
    play()
    from dataclasses import replace

    slow = replace(CONFIG, requests_per_minute=1200.0)
    other = replace(slow, name="other", model="n", requests_per_minute=None)
    start = time.perf_counter()
    ask(calls_of(ledger), [(slow, questions(20)), (other, questions(20))], LIVE)
    # 40 calls at 20 a second, of which a second's worth and one more may go at once.
    assert time.perf_counter() - start > 0.8


def test_cached_prefix_is_written_by_one_call_before_the_others_go(
    ledger: Ledger, play: Callable[..., Played]
) -> None:
    provider = play()
    seen: list[int] = []
    ask_first = provider.ask

    async def watched(request: TeacherRequest) -> Answer:
        seen.append(provider._now)
        return await ask_first(request)

    provider.ask = watched  # type: ignore[method-assign]
    ask(calls_of(ledger), [(CONFIG, questions(8, system="long", cache_system=True))], LIVE)
    assert seen[:2] == [0, 0]
    assert max(seen) > 0


# Refused requests ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [LIVE, BATCH], ids=["live", "batch"])
def test_a_request_that_the_provider_refuses_is_one_reply_and_stops_nothing(
    ledger: Ledger, play: Callable[..., Played], options: AskOptions
) -> None:
    provider = play(lambda question: HttpError("request", 400, "policy") if question == "q3" else None)
    (replies,), stats = ask(calls_of(ledger), [(CONFIG, questions(10))], options)
    assert [reply.finish for reply in replies].count("rejected") == 1
    assert (replies[3].finish, replies[3].complete, replies[3].cost_usd) == ("rejected", False, 0.0)
    assert (stats.asked, stats.rejected) == (9, 1)
    asked = len(provider.asked)
    (again,), _ = ask(calls_of(ledger), [(CONFIG, questions(10))], options)
    assert again == replies
    assert len(provider.asked) == asked


@pytest.mark.parametrize("options", [LIVE, BATCH], ids=["live", "batch"])
def test_refusals_one_after_another_are_an_error_and_none_is_kept(
    ledger: Ledger, play: Callable[..., Played], options: AskOptions
) -> None:
    play(lambda _: HttpError("request", 400, "unknown field"))
    with pytest.raises(RunError, match="unknown field"):
        ask(calls_of(ledger), [(CONFIG, questions(30))], options)
    assert recorded(ledger) == []


def test_dead_account_stops_a_live_asking_and_keeps_the_answers(
    ledger: Ledger, play: Callable[..., Played]
) -> None:
    provider = play(lambda question: HttpError("key", 402, "no credit") if int(question[1:]) >= 8 else None)
    with pytest.raises(RunError, match="402"):
        ask(calls_of(ledger), [(CONFIG, questions(200))], LIVE)
    assert recorded(ledger) == sorted(f"re: {question}" for question in provider.asked)
    assert 8 <= len(provider.asked) < 20


# Spending --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [LIVE, BATCH], ids=["live", "batch"])
def test_limit_is_used_to_its_end_and_never_passed(
    ledger: Ledger, play: Callable[..., Played], options: AskOptions
) -> None:
    provider = play()
    request = questions(1)[0]
    assert expected_usd(CONFIG, request, batch=True) == pytest.approx(1.0)
    with pytest.raises(BudgetError):
        ask(calls_of(ledger, 7.5), [(CONFIG, questions(40))], options)
    assert len(provider.asked) == len(recorded(ledger)) == 7
    (replies,), stats = ask(calls_of(ledger, 100.0), [(CONFIG, questions(40))], options)
    assert (len(replies), stats.from_ledger, len(provider.asked)) == (40, 7, 40)


def test_calls_wait_for_what_others_have_reserved(ledger: Ledger, play: Callable[..., Played]) -> None:
    """Ten cents are expected and one is paid: all calls fit, although not all of them at once."""
    from dataclasses import replace

    play()
    config = replace(CONFIG, output_usd_per_mtok=1e4)
    requests = [TeacherRequest((Message("user", f"q{n}"),), 10) for n in range(30)]
    (replies,), _ = ask(calls_of(ledger, 0.45), [(config, requests)], AskOptions(concurrency=16))
    assert len(replies) == 30
    assert sum(ledger.spent("run")) == pytest.approx(0.30)


# Batches ---------------------------------------------------------------------------------------------


def test_queue_that_is_full_is_waited_for_with_smaller_batches(
    ledger: Ledger, play: Callable[..., Played]
) -> None:
    provider = play()
    provider.refuse_queue_above = 3
    (replies,), _ = ask(calls_of(ledger), [(CONFIG, questions(10))], BATCH)
    assert [reply.text for reply in replies] == [f"re: q{n}" for n in range(10)]
    assert len(provider.asked) == 10


def test_expired_batch_keeps_what_it_finished_and_the_rest_is_asked_again(
    ledger: Ledger, play: Callable[..., Played]
) -> None:
    provider = play()
    provider.expire_after = 4
    (replies,), stats = ask(calls_of(ledger), [(CONFIG, questions(10))], BATCH)
    assert len(replies) == 10
    assert sorted(provider.asked) == sorted(f"q{n}" for n in range(10))
    assert stats.batches == 3


@pytest.mark.parametrize("named", [True, False], ids=["named", "by custom ids"])
def test_batch_whose_creation_got_no_answer_is_found_and_not_paid_twice(
    ledger: Ledger, play: Callable[..., Played], named: bool
) -> None:
    provider = play()
    provider.names_batches, provider.lost_submissions = named, 1
    (replies,), _ = ask(calls_of(ledger), [(CONFIG, questions(10))], BATCH)
    assert (len(replies), len(provider.batches)) == (10, 1)
    # Without a name its results are read once to know it.
    assert len(provider.asked) == (10 if named else 20)


def test_open_batch_is_collected_however_requests_are_cut_now(
    ledger: Ledger, play: Callable[..., Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = play()
    requests = questions(12)
    keys = tuple(request.key(CONFIG) for request in requests)
    ticket = BatchTicket("sha256:" + "a" * 64, 12)
    batch_id = asyncio.run(provider.submit(ticket, [provider.body(each) for each in requests]))
    calls = calls_of(ledger)
    calls.save_batch("openai", OpenBatch(ticket.key, batch_id, keys))
    monkeypatch.setattr(batches_module, "OURS", BatchLimits(requests=5, bytes=10**6))
    (replies,), stats = ask(calls, [(CONFIG, requests)], BATCH)
    assert (len(replies), stats.batches, len(provider.batches)) == (12, 0, 1)
    assert len(provider.asked) == 12
    assert calls.open_batches("openai") == []


def test_replies_are_handed_on_only_when_they_are_in_the_ledger(
    ledger: Ledger, play: Callable[..., Played]
) -> None:
    play()
    calls, requests = calls_of(ledger), questions(20)
    keys = [request.key(CONFIG) for request in requests]
    seen: list[tuple[int, bool]] = []

    def take(_: int, place: int, reply: Reply) -> None:
        seen.append((place, keys[place] in calls.known([keys[place]]) and reply.text == f"re: q{place}"))

    ask_each(calls, [(CONFIG, requests)], LIVE, take)
    assert sorted(place for place, _ in seen) == list(range(20))
    assert all(there for _, there in seen)
