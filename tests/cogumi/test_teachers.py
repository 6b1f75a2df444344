"""Teacher clients over the real SDKs, against the local teacher and with the real ledger."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from email.utils import formatdate
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogumi.errors import BudgetError, RunError
from cogumi.ledger import Ledger, LedgerCalls
from cogumi.stage import CallRecord, OpenBatch, TeacherConfig
from cogumi.teachers import AskOptions, Message, Reply, RetryPolicy, TeacherRequest, TeacherStats, Usage, ask
from cogumi.teachers.limit import AdaptiveLimit
from cogumi.teachers.pricing import cost_usd, expected_usd
from cogumi.teachers.providers import retry_after
from cogumi.teachers.types import BatchLimits
from evals.micro import solve
from pipeline.local_teacher import LocalTeacher, TeacherOptions

Api = Literal["openai", "anthropic"]
APIS: tuple[Api, ...] = ("openai", "anthropic")
QUICK = RetryPolicy(timeout_seconds=5.0, attempts=8, backoff_seconds=0.02, backoff_cap_seconds=0.1)
LIVE = AskOptions("live", concurrency=8, policy=QUICK)
BATCH = AskOptions("batch", poll_seconds=0.05, policy=QUICK)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTeacher]:
    """A well-behaved teacher that knows two models."""
    options = TeacherOptions(tmp_path_factory.mktemp("teacher"), models=("gpt", "claude"))
    with LocalTeacher(options) as running:
        yield running


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    book = Ledger(tmp_path)
    yield book
    book.close()


def calls_of(ledger: Ledger, max_usd: float | None = None) -> LedgerCalls:
    return LedgerCalls(ledger, "run", "step", max_usd)


def config_of(url: str, api: Api = "openai", **changes: Any) -> TeacherConfig:
    known = TeacherConfig(
        name="writer",
        api=api,
        model="gpt" if api == "openai" else "claude",
        base_url=url,
        key_env=None,
        input_usd_per_mtok=1.0,
        output_usd_per_mtok=2.0,
        batch_discount=0.5,
        endpoint="here",
        simulated=True,
    )
    return replace(known, **changes)


def sums(count: int, first: int = 0, **changes: Any) -> list[TeacherRequest]:
    """Requests that no other test sends, so that the teacher's counters can be compared."""
    return [
        TeacherRequest(
            (Message("user", f"What is {n % 10} plus 3?" + " " * (n // 10)),), max_tokens=20, **changes
        )
        for n in range(first, first + count)
    ]


def paid(ledger: Ledger) -> list[str]:
    return sorted(row["response"]["id"] for row in ledger.snapshot()["calls"])


# Words and prices ------------------------------------------------------------------------------------


def test_key_names_everything_that_was_asked_and_nothing_of_the_address() -> None:
    config, (request,) = config_of("http://one"), sums(1)
    key = request.key(config)
    assert key == request.key(config_of("http://two", key_env="KEY", name="other"))
    others = [
        request.key(replace(config, model="b")),
        request.key(replace(config, api="anthropic")),
        *(
            replace(request, **change).key(config)
            for change in ({"sample": 1}, {"max_tokens": 21}, {"system": "s"}, {"temperature": 0.0})
        ),
    ]
    assert len({key, *others}) == len(others) + 1


def test_unknown_price_is_unknown_and_never_nothing() -> None:
    usage = Usage(1_000_000, 1_000_000)
    assert cost_usd(config_of(""), usage, batch=False) == 3.0
    assert cost_usd(config_of(""), usage, batch=True) == 1.5
    assert cost_usd(config_of("", batch_discount=0.0), usage, batch=True) == 3.0
    assert cost_usd(config_of("", output_usd_per_mtok=None), usage, batch=False) is None
    assert cost_usd(config_of("", input_usd_per_mtok=0.0, output_usd_per_mtok=0.0), usage, batch=False) == 0.0


def test_cache_is_billed_with_the_providers_multipliers() -> None:
    usage = Usage(0, 0, cache_write_tokens=1_000_000, cache_read_tokens=2_000_000)
    config = config_of("", cache_write_usd_per_mtok=1.25, cache_read_usd_per_mtok=0.1)
    assert cost_usd(config, usage, batch=False) == pytest.approx(1.25 + 0.2)


@given(st.text(max_size=400), st.integers(1, 500))
def test_expected_cost_is_no_less_than_the_local_bill(text: str, max_tokens: int) -> None:
    request = TeacherRequest((Message("user", text),), max_tokens)
    bill = cost_usd(config_of(""), Usage(len(text) // 4 + 1, max_tokens), batch=False)
    assert bill is not None
    assert expected_usd(config_of(""), request, batch=False) >= bill


def test_retry_after_is_read_in_both_forms_and_garbage_is_ignored() -> None:
    assert retry_after({"retry-after": "2.5"}) == 2.5
    soon = retry_after({"retry-after": formatdate(time.time() + 30, usegmt=True)})
    assert soon is not None
    assert 25 < soon <= 30
    assert retry_after({"retry-after": "-3"}) == 0.0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


@given(st.integers(1, 30), st.none() | st.floats(0, 100))
def test_delay_has_a_cap_and_respects_the_provider(attempt: int, wanted: float | None) -> None:
    delay = RetryPolicy(backoff_seconds=1, backoff_cap_seconds=20).delay(attempt, wanted)
    assert (wanted or 0.0) <= delay <= max(20.0, (wanted or 0.0) + 2.0)


def test_limit_halves_once_per_wave_of_429_and_grows_back() -> None:
    async def scenario() -> list[int]:
        limit = AdaptiveLimit(16)
        sizes = []
        for _ in range(5):
            limit.throttled(None)
        sizes.append(limit.allowed)
        for _ in range(200):
            limit.succeeded()
        sizes.append(limit.allowed)
        return sizes

    assert asyncio.run(scenario()) == [8, 16]


def test_limit_never_lets_more_through_than_allowed_and_everybody_when_closed() -> None:
    async def scenario() -> tuple[int, bool]:
        limit = AdaptiveLimit(3)
        active = most = 0

        async def work() -> None:
            nonlocal active, most
            await limit.acquire()
            active += 1
            most = max(most, active)
            await asyncio.sleep(0)
            active -= 1
            limit.release()

        await asyncio.gather(*(work() for _ in range(20)))
        for _ in range(3):
            await limit.acquire()
        blocked = asyncio.ensure_future(limit.acquire())
        await asyncio.sleep(0)
        waited = not blocked.done()
        limit.close()
        await blocked
        return most, waited

    assert asyncio.run(scenario()) == (3, True)


# Live ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", APIS)
def test_replies_come_in_order_and_a_second_run_asks_nothing(
    teacher: LocalTeacher, ledger: Ledger, api: Api
) -> None:
    config, requests = config_of(teacher.base_url, api), sums(24, 1000)
    told: list[tuple[int, int]] = []
    (first,), stats = ask(calls_of(ledger), [(config, requests)], LIVE, lambda *now: told.append(now))
    answered = teacher.counters()["answered"]
    (again,), second = ask(calls_of(ledger), [(config, requests)], LIVE)
    assert first == again
    assert teacher.counters()["answered"] == answered
    assert (stats.asked, second.asked, second.from_ledger) == (24, 0, 24)
    assert told[-1] == (24, 24)
    assert all(reply.complete and reply.cost_usd for reply in first)
    solutions = [solve(request.messages[0].text) for request in requests]
    expected = [solution.answer if solution else "I do not know." for solution in solutions]
    # All but the few that this teacher gets wrong.
    assert sum(reply.text == answer for reply, answer in zip(first, expected, strict=True)) >= 18


def test_equal_requests_of_one_call_are_asked_once(teacher: LocalTeacher, ledger: Ledger) -> None:
    (request,) = sums(1, 2000)
    before = teacher.counters()["answered"]
    (replies,), _ = ask(calls_of(ledger), [(config_of(teacher.base_url), [request] * 3)], LIVE)
    assert teacher.counters()["answered"] == before + 1
    assert replies[0] == replies[1] == replies[2]


def test_cut_answer_is_paid_recorded_and_not_complete(teacher: LocalTeacher, ledger: Ledger) -> None:
    request = TeacherRequest((Message("user", "Who wrote Faust?"),), max_tokens=1)
    (replies,), _ = ask(calls_of(ledger), [(config_of(teacher.base_url), [request])], LIVE)
    assert (replies[0].finish, replies[0].complete) == ("length", False)
    assert len(paid(ledger)) == 1


def test_faults_are_retried_and_no_answer_is_paid_twice_or_lost(tmp_path: Path, ledger: Ledger) -> None:
    faults = {"429": 0.1, "500": 0.15, "drop": 0.15}
    options = TeacherOptions(tmp_path / "teacher", faults=faults, retry_after_seconds=0.05)
    with LocalTeacher(options) as teacher:
        jobs = [(config_of(teacher.base_url, api), sums(30)) for api in APIS]
        replies, stats = ask(calls_of(ledger), jobs, LIVE)
        counters = teacher.counters(ids=True)
    assert [len(each) for each in replies] == [30, 30]
    assert sorted(counters["ids"]) == paid(ledger)
    assert len(set(counters["ids"])) == 60
    assert stats.retries == sum(stats.failures.values()) == sum(counters["faults"].values()) > 0
    assert stats.throttled == counters["faults"]["429"]


def test_stalled_call_times_out_and_is_given_up_with_one_line(tmp_path: Path, ledger: Ledger) -> None:
    policy = RetryPolicy(timeout_seconds=0.2, attempts=2, backoff_seconds=0.01)
    with (
        LocalTeacher(TeacherOptions(tmp_path / "teacher", faults={"stall": 1.0})) as teacher,
        pytest.raises(RunError, match=r"gave up after 2 attempts \(last: no answer in time\)") as raised,
    ):
        ask(calls_of(ledger), [(config_of(teacher.base_url), sums(1))], AskOptions(policy=policy))
    assert "\n" not in str(raised.value)


def test_dead_key_stops_at_once_and_names_the_variable_but_never_the_key(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRITER_KEY", "sk-secret-123")
    with LocalTeacher(TeacherOptions(tmp_path / "teacher", require_key="another")) as teacher:
        for api in APIS:
            config = config_of(teacher.base_url, api, key_env="WRITER_KEY")
            with pytest.raises(RunError, match=r"HTTP 401.*WRITER_KEY") as raised:
                ask(calls_of(ledger), [(config, sums(50))], LIVE)
            assert "secret" not in str(raised.value)
        assert sum(teacher.counters()["received"].values()) <= 2 * LIVE.concurrency


def test_missing_key_is_named_before_anything_is_asked(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WRITER_KEY", raising=False)
    config = config_of("http://127.0.0.1:9", key_env="WRITER_KEY")
    with pytest.raises(RunError, match="WRITER_KEY is not set"):
        ask(calls_of(ledger), [(config, sums(1))], LIVE)


def test_key_is_cut_out_of_what_a_provider_says(
    teacher: LocalTeacher, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRITER_KEY", "gpt-secret")
    config = config_of(teacher.base_url, model="gpt-secret", key_env="WRITER_KEY")
    with pytest.raises(RunError, match="HTTP 404") as raised:
        ask(calls_of(ledger), [(config, sums(1))], LIVE)
    assert "gpt-secret" not in str(raised.value)
    assert "***" in str(raised.value)


@pytest.mark.parametrize("options", [LIVE, BATCH], ids=["live", "batch"])
def test_spending_limit_keeps_what_was_paid_and_is_never_passed(
    teacher: LocalTeacher, ledger: Ledger, options: AskOptions
) -> None:
    config = config_of(teacher.base_url, input_usd_per_mtok=100.0, output_usd_per_mtok=100.0)
    requests = sums(40, 3000)
    each = expected_usd(config, requests[0], batch=options.mode == "batch")
    limit = 12 * each
    with pytest.raises(BudgetError):
        ask(calls_of(ledger, limit), [(config, requests)], options)
    first = len(paid(ledger))
    assert sum(ledger.spent("run")) <= limit
    (replies,), stats = ask(calls_of(ledger), [(config, requests)], options)
    assert (len(replies), stats.from_ledger) == (40, first)
    if options.mode == "live":
        assert first > 0


def test_one_teachers_failure_stops_the_other_and_keeps_its_answers(
    teacher: LocalTeacher, ledger: Ledger
) -> None:
    good, bad = config_of(teacher.base_url), config_of(teacher.base_url, model="unknown")
    with pytest.raises(RunError, match="refused a request: HTTP 404"):
        ask(calls_of(ledger), [(good, sums(400, 4000)), (bad, sums(1))], LIVE)
    kept = len(paid(ledger))
    assert kept < 400
    _, stats = ask(calls_of(ledger), [(good, sums(400, 4000)[:kept])], LIVE)
    assert stats.from_ledger > 0


# Batches ---------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


class KilledCalls(LedgerCalls):
    """A ledger whose process dies when a condition on the method and its arguments holds."""

    def __init__(self, ledger: Ledger, dies: Callable[[str, tuple[Any, ...]], bool]) -> None:
        super().__init__(ledger, "run", "step", None)
        self._dies = dies

    def save_batch(self, provider: str, batch: OpenBatch) -> None:
        self._die("save_batch", batch.batch_id)
        super().save_batch(provider, batch)

    def record(self, records: Sequence[CallRecord]) -> None:
        self._die("record", records)
        super().record(records)

    def close_batch(self, key: str) -> None:
        self._die("close_batch", key)
        super().close_batch(key)

    def _die(self, name: str, *arguments: Any) -> None:
        if self._dies(name, arguments):
            raise Killed


def requests_of(api: Api, count: int, first: int) -> list[TeacherRequest]:
    return sums(count, first, system="s" * 5000, cache_system=api == "anthropic")


def ask_killed(ledger: Ledger, job: Any, dies: Callable[[str, tuple[Any, ...]], bool]) -> None:
    with pytest.raises(Killed):
        ask(KilledCalls(ledger, dies), [job], BATCH)


def open_batches(ledger: Ledger) -> int:
    return sum(row["status"] == "open" for row in ledger.snapshot()["batches"])


@pytest.mark.parametrize("api", APIS)
def test_batch_answers_equal_live_ones_at_half_the_price(
    teacher: LocalTeacher, tmp_path: Path, ledger: Ledger, api: Api
) -> None:
    config, requests = config_of(teacher.base_url, api), sums(20, 5000)
    (batch,), stats = ask(calls_of(ledger), [(config, requests)], BATCH)
    (tmp_path / "live").mkdir()
    (live,), _ = ask(calls_of(Ledger(tmp_path / "live")), [(config, requests)], LIVE)
    assert [reply.text for reply in batch] == [reply.text for reply in live]
    for one, other in zip(batch, live, strict=True):
        assert one.cost_usd is not None
        assert one.cost_usd * 2 == pytest.approx(other.cost_usd)
    assert stats.batches == 1
    assert open_batches(ledger) == 0


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("moment", ["before submit", "after submit", "before record", "after record"])
def test_kill_at_any_moment_of_a_batch_pays_once(
    teacher: LocalTeacher, ledger: Ledger, api: Api, moment: str
) -> None:
    dies: dict[str, Callable[[str, tuple[Any, ...]], bool]] = {
        "before submit": lambda name, given: name == "save_batch" and given[0].startswith("submitting:"),
        "after submit": lambda name, given: name == "save_batch" and not given[0].startswith("submitting:"),
        "before record": lambda name, _: name == "record",
        "after record": lambda name, _: name == "close_batch",
    }
    first = 6000 + 100 * list(dies).index(moment)
    job = (config_of(teacher.base_url, api), requests_of(api, 15, first))
    before = teacher.counters()["answered"]
    ask_killed(ledger, job, dies[moment])
    (replies,), _ = ask(calls_of(ledger), [job], BATCH)
    assert len(replies) == 15
    assert teacher.counters()["answered"] == before + 15
    assert len(paid(ledger)) == 15
    assert open_batches(ledger) == 0


@pytest.mark.parametrize("api", APIS)
def test_expired_batches_and_failed_requests_are_collected_and_submitted_again(
    tmp_path: Path, ledger: Ledger, api: Api
) -> None:
    faults = {"batch_expire": 0.5, "batch_error": 0.2, "drop": 0.1}
    options = TeacherOptions(tmp_path / "teacher", faults=faults, seed=3)
    with LocalTeacher(options) as teacher:
        (replies,), stats = ask(calls_of(ledger), [(config_of(teacher.base_url, api), sums(30))], BATCH)
        counters = teacher.counters(ids=True)
    assert len(replies) == 30
    assert stats.batches > 1
    assert sorted(counters["ids"]) == paid(ledger)
    assert counters["faults"]["batch_error"] > 0
    assert open_batches(ledger) == 0


def test_batch_that_never_answers_is_given_up(tmp_path: Path, ledger: Ledger) -> None:
    with (
        LocalTeacher(TeacherOptions(tmp_path / "teacher", faults={"batch_error": 1.0})) as teacher,
        pytest.raises(RunError, match="3 batch requests are still unanswered after 6 batches"),
    ):
        ask(calls_of(ledger), [(config_of(teacher.base_url), sums(3))], BATCH)


@pytest.mark.parametrize("api", APIS)
def test_bad_request_in_a_batch_is_an_error_and_the_others_are_kept(
    teacher: LocalTeacher, ledger: Ledger, api: Api
) -> None:
    config = config_of(teacher.base_url, api, model="unknown")
    with pytest.raises(RunError, match="refused a request in a batch: The model `unknown` does not exist"):
        ask(calls_of(ledger), [(config, sums(2))], BATCH)
    assert open_batches(ledger) == 0


@pytest.mark.parametrize("api", APIS)
def test_batches_are_split_to_the_providers_limits(
    teacher: LocalTeacher, ledger: Ledger, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cogumi.teachers.anthropic_provider import AnthropicProvider
    from cogumi.teachers.openai_provider import OpenAIProvider

    provider = OpenAIProvider if api == "openai" else AnthropicProvider
    config = config_of(teacher.base_url, api)
    monkeypatch.setattr(provider, "limits", BatchLimits(requests=4, bytes=10**6))
    _, by_count = ask(calls_of(ledger), [(config, sums(10, 7000))], BATCH)
    size = len(json.dumps(provider(config, "none", 1.0, 8).body(sums(1, 7100)[0]))) + 256
    monkeypatch.setattr(provider, "limits", BatchLimits(requests=100, bytes=5 * size + 100))
    (replies,), by_size = ask(calls_of(ledger), [(config, sums(10, 7100))], BATCH)
    assert (by_count.batches, by_size.batches) == (3, 2)
    assert len(replies) == 10


def test_reply_survives_the_ledger_and_stats_add_up(ledger: Ledger) -> None:
    reply = Reply("id", "text", "stop", Usage(1, 2, 3, 4), None)
    assert Reply.from_response(json.loads(json.dumps(asdict(reply)))) == reply
    total = TeacherStats(asked=1, failures={"429": 1})
    total.add(TeacherStats(asked=2, retries=1, failures={"429": 2, "500": 1}))
    assert total.metrics()["calls_failed_429"] == 3.0
    assert total.metrics()["calls_asked"] == 3.0
