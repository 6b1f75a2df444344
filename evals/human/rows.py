"""The words of a study: what goes into its store and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["practice", "scored", "planted", "repeat", "pair"]
"""What an item is for: only ``scored`` counts; ``planted`` is a bad answer, ``repeat`` one shown again."""
Source = Literal["human", "simulated"]
State = Literal["invited", "consented", "instructed", "active", "finished", "withdrawn", "erased", "expired"]
"""Where a rater stands. ``expired``: the lease ran out and the slot was given to another, for good."""
Preference = Literal["left", "right", "tie"]

HOLDING: tuple[State, ...] = ("consented", "instructed", "active", "finished")
"""States in which a rater holds a slot."""
RATING: tuple[State, ...] = ("instructed", "active")
"""States in which a rater may rate."""

RaterId = int
COMMENT_CHARACTERS = 2_000
"""Longer comments are cut."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One item of a rater's sequence.

    ``other``: for a pair the reference system; for a planted answer the task whose answer is shown instead,
    None where the task has a bad answer of its own. ``swapped``: the subject's answer is shown on the right.
    """

    position: int
    """From 1."""
    kind: Kind
    task_id: str
    system: str
    other: str | None = None
    swapped: bool = False


@dataclass(frozen=True, slots=True)
class Submission:
    """An answer on its way in: a score for a single answer, a preference for a pair."""

    key: str
    """Idempotency key of the form, made by the server: 1 to 100 characters."""
    revision: int
    """The revision that the page showed: 0 where nothing was stored."""
    score: int | None = None
    preference: str | None = None
    comment: str = ""
    flag: bool = False
    focus_ms: int = 0
    """Time with the focus on this item's page, in all: a page counts on from ``AssignmentRow.focus_ms``."""


@dataclass(frozen=True, slots=True)
class Draft:
    """An answer not yet given; ``client_seq`` rises with every save of a position, also over reloads."""

    client_seq: int
    score: int | None = None
    preference: str | None = None
    comment: str = ""
    flag: bool = False
    focus_ms: int = 0
    revision: int = 0
    """The revision that the page showed, as in ``Submission``: one from before a submission is ignored."""


@dataclass(frozen=True, slots=True)
class StoredRating:
    """A rating as it stands; ``revision`` 1 for the first answer, one more for every correction."""

    score: int | None
    preference: str | None
    comment: str
    flag: bool
    focus_ms: int
    revision: int
    submitted_at: str


@dataclass(frozen=True, slots=True)
class Submitted:
    """What a submission did: ``stored``, or ``replayed`` where this key had stored the same answer before."""

    status: Literal["stored", "replayed"]
    position: int
    score: int | None
    preference: str | None
    comment: str
    flag: bool
    revision: int


@dataclass(frozen=True, slots=True)
class AssignmentRow:
    """One item as its page needs it. It names no system; ``kind`` is not for the rater's eyes either."""

    position: int
    kind: Kind
    task_id: str
    """``practice-1`` and so on for practice items, which have no texts here: the app brings them."""
    domain: str
    prompt: str
    answers: tuple[str, ...]
    """One answer, or a pair's two in the order left, right; none for practice."""
    rating: StoredRating | None
    draft: Draft | None
    shown_at: str | None
    focus_ms: int
    """Focus time known so far, of rating or draft."""

    @property
    def revision(self) -> int:
        """The revision that a page on this item shows."""
        return self.rating.revision if self.rating else 0


@dataclass(frozen=True, slots=True)
class RaterRow:
    """A rater; ``pseudonym`` is given with consent (r0001 to the first), empty before."""

    id: RaterId
    state: State
    source: Source
    pseudonym: str
    locale: str | None
    slot: int | None
    paused: bool
    consent_sha256: str | None
    code: str | None
    """Completion code of a finished rater."""
    lease_until: str | None
    last_seen: str | None


@dataclass(frozen=True, slots=True)
class InviteRow:
    """An invitation: never its token; ``rater`` once it was used."""

    id: int
    source: Source
    created_at: str
    revoked: bool
    rater: RaterId | None
    state: State | None


@dataclass(frozen=True, slots=True)
class Remark:
    """A comment or a flag of a rater on an item."""

    pseudonym: str
    position: int
    task_id: str
    flag: bool
    comment: str
    at: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a study is: counts and times, never a score nor anything that a mean follows from."""

    name: str
    title: str
    closed_at: str | None
    slots: int
    """Raters wanted."""
    free: int
    """Slots that nobody holds."""
    invites: int
    revoked: int
    states: Mapping[State, int]
    """Raters in each state, every state named."""
    paused: int
    overdue: int
    """Raters whose lease has run out and whose slot has not been taken yet."""
    simulated: int
    """Raters who are no people."""
    items_done: int
    """Submitted ratings of raters who hold a slot, practice left out."""
    items_wanted: int
    """Slots times items of a sequence, practice left out."""
    items_last_hour: int
    items_per_hour: float | None
    """Pace over the hours since the first rating, at least a quarter of an hour; None before one."""
    hours_left: float | None
    """What is missing at this pace; None where there is no pace."""
    dropped_at: Mapping[int, int]
    """Raters who left (withdrawn, expired, overdue) by the last position that they rated; 0: none."""
    median_seconds: float | None
    """Median focus time of an item."""
    remarks: tuple[Remark, ...]
    """Flags and comments, the latest first, at most 200."""
