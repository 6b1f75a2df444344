"""Simulated raters through real HTTP: a whole study in seconds, marked as simulated in every row.

They need invitations of the source ``simulated``, which only the store gives, and the study's plan, by which
an honest one tells an answer that belongs to its prompt from a planted one.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cogumi.errors import CogumiError, RunError
from evals.human.simulate_model import Behaviour, Mind, Mix
from evals.human.simulate_rater import Ending, SimulatedRater, Texts, Told

if TYPE_CHECKING:
    import ssl

    import httpx

    from evals.human.plan import StudyPlan

_CONNECTIONS = 2
"""Of one rater: a double click needs two. A pool for all raters would look through all of them each time."""


@dataclass(frozen=True, slots=True)
class Simulation:
    """What is simulated: one rater for each token, before the server at ``url``."""

    url: str
    tokens: Sequence[str]
    plan: StudyPlan
    mix: Mix
    seed: int
    true_mean: float = 8.2
    """Mean of an honest rater's scores over raters and tasks, after rounding and cutting."""
    in_order: bool = False
    """Raters consent one after the other, so that equal seeds give equal ratings in equal slots."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """What became of the raters, and what the server answered."""

    endings: Mapping[Ending, int]
    behaviours: Mapping[Behaviour, int]
    items: int
    corrections: int
    replayed: int
    drafts: int
    requests: int
    retries: int
    server_errors: int
    seconds: float
    pages_p95_ms: float
    submissions_p95_ms: float

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON document; ``source`` says what these raters are."""
        fields = ("items", "corrections", "replayed", "drafts", "requests", "retries", "server_errors")
        return {
            "source": "simulated",
            "endings": dict(self.endings),
            "behaviours": dict(self.behaviours),
            **{name: getattr(self, name) for name in fields},
            "seconds": round(self.seconds, 3),
            "pages_p95_ms": round(self.pages_p95_ms, 1),
            "submissions_p95_ms": round(self.submissions_p95_ms, 1),
        }


def simulate(simulation: Simulation, update: Callable[..., None] = lambda *_, **__: None) -> Simulated:
    """Let all raters rate and return what became of them; ``update(done, total, unit=…)`` is told of items.

    Raises ``RunError`` when the server stops answering, or answers what no rater can go on from.
    """
    return asyncio.run(_simulate(simulation, update))


async def _simulate(simulation: Simulation, update: Callable[..., None]) -> Simulated:
    import httpx

    texts, told, begun = Texts(simulation.plan), Told(), time.monotonic()
    dealt = simulation.mix.dealt(len(simulation.tokens), simulation.seed)
    total = texts.items * len(dealt)
    told.step = lambda: update(told.items, total, unit="items")
    # Read once: certificates take longer to load than a rater to rate.
    secure = httpx.create_ssl_context() if simulation.url.startswith("https") else False
    async with AsyncExitStack() as stack:
        raters = []
        for number, behaviour in enumerate(dealt, start=1):
            client = await stack.enter_async_context(_client(simulation.url, secure))
            mind = Mind(simulation.seed, number, behaviour, simulation.true_mean)
            name = f"simulated rater {number} ({behaviour})"
            raters.append(SimulatedRater(name, client, mind, texts, told))
        try:
            endings = await _all(raters, simulation)
        except* CogumiError as group:
            raise _first(group) from None
    return Simulated(
        endings=dict(sorted(endings.items())),
        behaviours=Counter(dealt),
        items=told.items,
        corrections=told.corrections,
        replayed=told.replayed,
        drafts=told.drafts,
        requests=told.statuses.total(),
        retries=told.retries,
        server_errors=sum(n for status, n in told.statuses.items() if status >= 500),
        seconds=time.monotonic() - begun,
        pages_p95_ms=1000 * _p95(told.pages_s),
        submissions_p95_ms=1000 * _p95(told.submissions_s),
    )


def _client(url: str, secure: ssl.SSLContext | bool) -> httpx.AsyncClient:
    """Return a rater's own client: cookies and connections of its own, and no proxy before our own server."""
    import httpx

    return httpx.AsyncClient(
        base_url=url,
        verify=secure,
        follow_redirects=True,
        trust_env=False,
        timeout=30.0,
        limits=httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS),
    )


async def _all(raters: Sequence[SimulatedRater], simulation: Simulation) -> Counter[Ending]:
    """Let all raters in and rate; whoever found no slot tries once more when the others are done."""
    endings: Counter[Ending] = Counter()
    waiting = list(zip(raters, simulation.tokens, strict=True))
    for last in (False, True):
        refused = []
        entered = set()
        if simulation.in_order:
            for rater, token in waiting:
                if await rater.enter(token):
                    entered.add(rater)

        async def one(rater: SimulatedRater, token: str, inside: bool) -> Ending:
            if not inside and (simulation.in_order or not await rater.enter(token)):
                return "refused"
            return await rater.rate()

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(r, token, r in entered)) for r, token in waiting]
        for who, task in zip(waiting, tasks, strict=True):
            if task.result() == "refused" and not last:
                refused.append(who)
            else:
                endings[task.result()] += 1
        waiting = refused
    return endings


def _first(group: BaseExceptionGroup[CogumiError]) -> CogumiError:
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    return RunError("the simulation ended without a reason")


def _p95(values: Sequence[float]) -> float:
    return sorted(values)[int(0.95 * len(values))] if values else 0.0
