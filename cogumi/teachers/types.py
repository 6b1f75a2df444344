"""The words that every teacher speaks: request, answer, reply, and what a batch is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from cogumi.digest import digest_of
from cogumi.stage import TeacherConfig

Finish = Literal["stop", "length", "refusal", "rejected", "other"]
"""``refusal``: the model would not answer; ``rejected``: the provider did not take the request at all."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; the system text is kept apart in the request."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class TeacherRequest:
    """Everything that is asked, in no provider's format."""

    messages: tuple[Message, ...]
    max_tokens: int
    system: str = ""
    cache_system: bool = False
    """Ask the provider to cache the system text: worth it when many requests share a long one."""
    temperature: float | None = None
    sample: int = 0
    """Tells apart equal requests that shall be answered anew."""

    def key(self, config: TeacherConfig) -> str:
        """Return the digest of provider, model and everything asked: the name of the paid answer.

        Another endpoint behind the same model name answers for itself, and so does a local teacher that
        was told to err otherwise.
        """
        # Written out, because dataclasses.asdict takes ten times as long and this is done for every call.
        request = {
            "messages": [{"role": message.role, "text": message.text} for message in self.messages],
            "max_tokens": self.max_tokens,
            "system": self.system,
            "cache_system": self.cache_system,
            "temperature": self.temperature,
            "sample": self.sample,
        }
        asked: dict[str, Any] = {"api": config.api, "model": config.model, "endpoint": config.endpoint}
        if config.extra_body:
            asked["extra_body"] = dict(config.extra_body)
        return digest_of({**asked, "request": request})

    @property
    def expected_tokens(self) -> int:
        """Tokens of the prompt, three characters each, and of the longest answer: both err upwards."""
        prompt = len(self.system) + sum(len(message.text) for message in self.messages)
        return prompt // 3 + 16 + self.max_tokens


@dataclass(frozen=True, slots=True)
class Usage:
    """Billed tokens; ``input_tokens`` does not contain those written to or read from a cache."""

    input_tokens: int
    output_tokens: int
    cache_write_tokens: int = 0
    cache_read_tokens: int = 0

    @property
    def all_input_tokens(self) -> int:
        """Every token of the prompt, cached or not."""
        return self.input_tokens + self.cache_write_tokens + self.cache_read_tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """What a provider said to one request."""

    id: str
    text: str
    finish: Finish
    usage: Usage


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that is in the ledger; only a ``complete`` one may be used."""

    id: str
    text: str
    finish: Finish
    usage: Usage
    cost_usd: float | None
    """None when the model's price is unknown."""

    @property
    def complete(self) -> bool:
        """Tell whether the model ended by itself and said something."""
        return self.finish == "stop" and bool(self.text.strip())

    @staticmethod
    def from_response(response: Mapping[str, Any]) -> Reply:
        """Rebuild a reply from what the ledger keeps."""
        return Reply(
            id=response["id"],
            text=response["text"],
            finish=response["finish"],
            usage=Usage(**response["usage"]),
            cost_usd=response["cost_usd"],
        )


def response_of(answer: Answer, cost_usd: float | None) -> dict[str, Any]:
    """Return what the ledger keeps of an answer; it holds no time, so that equal runs have equal ledgers."""
    return asdict(answer) | {"cost_usd": cost_usd}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a call was not answered: ``retry`` may succeed later, ``request`` is refused for what it says.

    ``key`` and ``fatal`` would befall every other request as well.
    """

    kind: Literal["retry", "request", "key", "fatal"]
    message: str
    status: int | None = None
    retry_after: float | None = None
    """Seconds that the provider asks us to wait."""

    @property
    def throttled(self) -> bool:
        """Tell whether we ask too much: rate limit or overload."""
        return self.status in (429, 529)


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How much a provider takes in one batch."""

    requests: int
    bytes: int


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """How far a batch is; ``problem`` tells why the provider refused it as a whole."""

    ended: bool
    finished: int
    problem: str = ""
    queue_full: bool = False
    """True when it was refused only because too much is under way already."""
    results: tuple[str, ...] = ()
    """Where the outcomes of an ended batch are read, in the provider's own terms."""


@dataclass(frozen=True, slots=True)
class BatchItem:
    """The outcome of one request of a batch: an answer, or why there is none."""

    custom_id: str
    answer: Answer | None
    error: str = ""
    kind: Literal["retry", "request", "fatal"] = "retry"
    """As in ``Failure``."""


@dataclass(frozen=True, slots=True)
class BatchTicket:
    """What identifies a batch of ours at a provider, also when its id was lost in a kill."""

    key: str
    """Digest of the requests' keys."""
    requests: int
    since: float = 0.0
    """Unix time of the submission."""

    @property
    def prefix(self) -> str:
        """What every custom id of the batch begins with."""
        return self.key.removeprefix("sha256:")[:24]

    def custom_id(self, index: int) -> str:
        """Return the custom id of the request at this position."""
        return f"{self.prefix}-{index:06d}"


class Provider(Protocol):
    """One wire format over its own SDK, without any retry."""

    limits: BatchLimits
    names_batches: bool
    """Whether a batch carries our name, so that a candidate is certainly ours."""

    def body(self, request: TeacherRequest) -> dict[str, Any]:
        """Return the request in the wire format."""
        ...

    async def ask(self, request: TeacherRequest) -> Answer:
        """Ask once."""
        ...

    async def upload(self, ticket: BatchTicket, bodies: list[dict[str, Any]]) -> Any:
        """Bring a batch's requests to where ``submit`` wants them; nothing is asked by this alone."""
        ...

    async def submit(self, ticket: BatchTicket, uploaded: Any) -> str:
        """Submit a batch once and return its id."""
        ...

    async def candidates(self, ticket: BatchTicket, ignore: set[str]) -> list[str]:
        """Return the ids of batches that may have been submitted under this ticket, the newest first."""
        ...

    async def status(self, batch_id: str) -> BatchStatus:
        """Return how far a batch is."""
        ...

    async def results(self, place: str) -> list[BatchItem]:
        """Return the outcomes that stand at one of the places of ``BatchStatus.results``."""
        ...

    def failure(self, error: Exception) -> Failure | None:
        """Classify an exception of the SDK; None for one that is none of its own."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


@dataclass
class TeacherStats:
    """What happened on the wire; it depends on the day and belongs into metrics, never into facts."""

    asked: int = 0
    from_ledger: int = 0
    retries: int = 0
    throttled: int = 0
    rejected: int = 0
    """Requests that a provider would not take."""
    batches: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    """Failed calls by HTTP status, or ``connection``."""

    def add(self, other: TeacherStats) -> None:
        """Add the counts of another teacher."""
        self.asked += other.asked
        self.from_ledger += other.from_ledger
        self.retries += other.retries
        self.throttled += other.throttled
        self.rejected += other.rejected
        self.batches += other.batches
        for name, count in other.failures.items():
            self.failures[name] = self.failures.get(name, 0) + count

    def metrics(self) -> dict[str, float]:
        """Return the counts as a stage's metrics."""
        counts = {"asked": self.asked, "from_ledger": self.from_ledger, "retries": self.retries}
        counts |= {"throttled": self.throttled, "rejected": self.rejected, "batches": self.batches}
        counts |= {f"failed_{name}": count for name, count in self.failures.items()}
        return {f"calls_{name}": float(count) for name, count in counts.items()}
