"""The study's database behind one face: every write is one transaction, committed before it returns."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from sqlalchemy import select, update

from cogumi.errors import UsageError
from evals.human import closing, opening, raters, ratings
from evals.human.book import Book, Transaction, utc_now
from evals.human.errors import (
    DiskFull,
    Incomplete,
    Invalid,
    KeyConflict,
    NotFound,
    NotOpen,
    StaleRevision,
    StudyClosed,
    StudyError,
    StudyFull,
    Unavailable,
)
from evals.human.frozen import FOLDER, STUDY_FILE, Frozen, Seal, read_frozen, write_frozen
from evals.human.opening import DATABASE_FILE, DATABASE_URL_ENV, SECRET_FILE
from evals.human.plan import StudyPlan, read_plan
from evals.human.progress import progress
from evals.human.rows import (
    AssignmentRow,
    Draft,
    InviteRow,
    Progress,
    RaterId,
    RaterRow,
    Source,
    Submission,
    Submitted,
)
from evals.human.schema import study

__all__ = [
    "DATABASE_FILE",
    "DATABASE_URL_ENV",
    "SECRET_FILE",
    "AssignmentRow",
    "DiskFull",
    "Draft",
    "Incomplete",
    "Invalid",
    "InviteRow",
    "KeyConflict",
    "NotFound",
    "NotOpen",
    "Progress",
    "RaterId",
    "RaterRow",
    "StaleRevision",
    "StudyClosed",
    "StudyError",
    "StudyFull",
    "StudyStore",
    "Submission",
    "Submitted",
    "Unavailable",
]


class StudyStore:
    """A study that is open on disk or in PostgreSQL; safe to use from threads and from several processes.

    Every method may raise ``DiskFull`` (a write that found no room: nothing was stored), ``Unavailable``
    (the database does not answer), and ``NotFound`` for a rater who is unknown or whose invitation was
    revoked, alike. ``plan`` is the study's plan, ``secret`` 32 random bytes that sign cookies and CSRF
    tokens (empty where the study was opened for reading only).
    """

    def __init__(self, folder: Path, plan: StudyPlan, secret: bytes, book: Book) -> None:
        self.folder, self.plan, self.secret, self._book = folder, plan, secret, book

    @classmethod
    def create(
        cls, folder: Path, plan: StudyPlan, url: str | None = None, *, now: Callable[[], datetime] = utc_now
    ) -> StudyStore:
        """Make a study: its folder with plan and secret, its database with every slot's sequence.

        ``url`` (else ``COGUMI_STUDY_DATABASE_URL``) where the plan says postgresql. Raises ``UsageError``
        where a study is there already or the URL does not fit, ``RunError`` where it cannot be written.
        """
        opening.create_study(folder, plan, url, now())
        return cls.open(folder, url, now=now)

    @classmethod
    def open(
        cls,
        folder: Path,
        url: str | None = None,
        *,
        read_only: bool = False,
        now: Callable[[], datetime] = utc_now,
    ) -> StudyStore:
        """Open a study; ``read_only`` refuses every write and makes no file.

        Raises ``UsageError`` where there is none or no URL is given, ``RunError`` in one line where its
        database is missing, broken, newer than this program, or another study's.
        """
        plan = read_plan(folder)
        secret = b"" if read_only else opening.read_secret(folder)
        engine = opening.open_study(folder, plan, url, read_only=read_only)
        return cls(folder, plan, secret, Book(engine, plan, now, read_only=read_only))

    def dispose(self) -> None:
        """Let the database's connections go; the store opens new ones when it is used again."""
        self._book.dispose()

    @property
    def closed_at(self) -> str | None:
        """When the study was closed (UTC); None while it is open."""
        return self._book.closed_at()

    @property
    def closed(self) -> bool:
        """Whether the study was closed."""
        return self.closed_at is not None

    # Who may enter --------------------------------------------------------------------------------

    def new_admin_token(self) -> str:
        """Return a new token for the admin page, valid from now on instead of the last; shown once."""
        token = secrets.token_urlsafe(24)
        digest = raters.sha256_of(token)
        self._book.write(lambda t: t.run(update(study).values(admin_sha256=digest)))
        return token

    def admin_digest(self) -> str:
        """Return the SHA-256 of the admin token in force, in hex; empty where there is none."""
        return self._book.read(lambda t: t.connection.execute(select(study.c.admin_sha256)).scalar()) or ""

    def is_admin(self, token: str) -> bool:
        """Tell whether this is the admin token (compared by digest, in constant time)."""
        # Without a token in force the digest is empty, which no token's is.
        return hmac.compare_digest(raters.sha256_of(token), self.admin_digest())

    def invite(self, count: int, source: Source = "human") -> list[str]:
        """Return new tokens, each a rater's; only their SHA-256 is kept. Raises ``StudyClosed``."""
        if count < 1:
            raise UsageError(f"{count} invitations: ask for one at least")
        tokens = raters.new_tokens(count)
        self._book.write(lambda t: raters.invite(t, tokens, source))
        return tokens

    def revoke(self, token_or_id: str | int) -> None:
        """Make an invitation worthless, also one that was used; an unfinished rater's slot may be taken.

        Raises ``NotFound``.
        """
        self._book.write(lambda t: raters.revoke(t, token_or_id))

    def invites(self) -> list[InviteRow]:
        """Return all invitations in the order in which they were made."""
        return self._book.read(raters.all_invites)

    def enter(self, token: str) -> RaterId | None:
        """Return the rater of a token, made at its first use; None for an unknown or revoked one alike."""
        good, known = self._book.read(lambda t: raters.entered(t, token))
        if not good or known is not None:
            return known
        return self._book.write(lambda t: raters.enter(t, token))

    # A rater's way --------------------------------------------------------------------------------

    def rater(self, rater_id: RaterId) -> RaterRow:
        """Return a rater; raises ``NotFound``, also where the invitation was revoked."""
        return self._book.read(lambda t: raters.rater_row(t, rater_id))

    def consent(self, rater_id: RaterId, consent_sha256: str, locale: str) -> RaterRow:
        """Record consent and take a slot; who has consented already keeps what there is.

        The lowest free slot, else the one whose lease ran out longest ago. Raises ``StudyFull``,
        ``StudyClosed``, ``NotOpen`` (withdrawn, erased, expired).
        """
        return self._book.write(lambda t: raters.consent(t, rater_id, consent_sha256, locale))

    def instructed(self, rater_id: RaterId) -> None:
        """Record that the instructions were read. Raises ``NotOpen`` before consent and after the end."""
        self._book.write(lambda t: raters.instructed(t, rater_id))

    def set_locale(self, rater_id: RaterId, locale: str) -> None:
        """Keep the language that a rater chose."""
        self._book.write(lambda t: raters.set_locale(t, rater_id, locale))

    def seen(self, rater_id: RaterId) -> None:
        """Renew the lease of who holds a slot (at most one write a minute)."""
        if self._book.read(lambda t: raters.needs_seeing(t, rater_id)):
            self._book.write(lambda t: raters.seen(t, rater_id))

    def assignments(self, rater_id: RaterId) -> list[AssignmentRow]:
        """Return a rater's items in order; none before consent and after erasure."""
        return self._book.read(lambda t: ratings.items(t, rater_id))

    def shown(self, rater_id: RaterId, position: int) -> None:
        """Record when an item's page was first shown. Raises ``NotFound``; does nothing when not open."""
        if self._book.read(lambda t: ratings.needs_showing(t, rater_id, position)):
            self._book.write(lambda t: ratings.shown(t, rater_id, position))

    def submit(self, rater_id: RaterId, position: int, submission: Submission) -> Submitted:
        """Store an answer exactly once.

        The same key with the same answer (score, preference, comment, flag) is replayed, even after the
        end. Raises ``KeyConflict``, ``StaleRevision``, ``NotOpen``, ``StudyClosed``, ``NotFound``,
        ``Invalid``.
        """
        return self._book.write(lambda t: ratings.submit(t, rater_id, position, submission))

    def save_draft(self, rater_id: RaterId, position: int, draft: Draft) -> bool:
        """Keep a draft; False where it is older than what is known. Raises ``NotFound``, ``NotOpen``."""
        return self._book.write(lambda t: ratings.save_draft(t, rater_id, position, draft))

    def finish(self, rater_id: RaterId) -> str:
        """End a rater's work and return the completion code; the same code when asked again.

        Raises ``Incomplete``, ``NotOpen``, ``StudyClosed``.
        """
        return self._book.write(lambda t: ratings.finish(t, rater_id))

    def pause(self, rater_id: RaterId) -> None:
        """Note a pause until the next item is shown or rated; the lease begins anew."""
        self._book.write(lambda t: raters.pause(t, rater_id))

    def withdraw(self, rater_id: RaterId, erase: bool) -> None:
        """End a rater's part and free the slot; ``erase`` removes all that the rater gave, for good.

        May be asked again, then with erasure. Raises ``StudyClosed``: the data is frozen by then.
        """
        if self._book.write(lambda t: raters.withdraw(t, rater_id, erase)):
            self._book.scrub()

    # The whole study ------------------------------------------------------------------------------

    def progress(self) -> Progress:
        """Return counts, pace and remarks; no score and nothing that a mean follows from."""
        return self._book.read(progress)

    def close(self) -> Frozen:
        """Close the study for good and freeze its ratings; asked again, it finishes what was begun."""
        if self.closed_at is None:
            self._book.write(closing.close)
        if (self.folder / FOLDER / STUDY_FILE).exists():
            return read_frozen(self.folder)

        def found(t: Transaction) -> tuple[list[dict[str, object]], Seal]:
            seal = Seal(closing.counts(t), closing.consents(t), self.closed_at)
            return closing.rating_rows(t), seal

        # Nobody writes any more: killed here, the next call finds the same rows.
        rows, seal = self._book.read(found)
        return write_frozen(self.folder, self.plan, rows, seal)
