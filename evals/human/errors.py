"""What a study refuses, each kind an exception of its own, so that a page answers with the right status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cogumi.errors import CogumiError

if TYPE_CHECKING:
    from evals.human.rows import StoredRating


class StudyError(CogumiError):
    """A study cannot do what was asked; ``str(error)`` is one line."""


class NotOpen(StudyError):  # noqa: N818 - what the rater meets, not a fault of the program
    """This rater can rate no longer: finished, withdrawn, erased, expired, not yet instructed."""


class StudyClosed(NotOpen):
    """The study was closed: nothing is written any more."""


class StudyFull(StudyError):  # noqa: N818
    """Every slot is held by a rater whose lease runs."""


class NotFound(StudyError):  # noqa: N818
    """No such rater (or the invitation was revoked), no such position."""


class Invalid(StudyError):  # noqa: N818
    """A rating that cannot be one: no score, a score outside 1 to 10, a preference for a single answer."""


class KeyConflict(StudyError):  # noqa: N818
    """An idempotency key that was used already, with another answer or at another position."""

    def __init__(self, message: str, stored: StoredRating | None) -> None:
        super().__init__(message)
        self.stored = stored
        """What is stored at the position now."""


class StaleRevision(StudyError):  # noqa: N818
    """The page on which the answer was given shows another revision than the one that is stored."""

    def __init__(self, message: str, stored: StoredRating | None) -> None:
        super().__init__(message)
        self.stored = stored
        """What is stored at the position now; None where nothing is."""


class Incomplete(StudyError):  # noqa: N818
    """Items are still unrated."""

    def __init__(self, message: str, missing: Sequence[int]) -> None:
        super().__init__(message)
        self.missing = tuple(missing)
        """Their positions."""


class DiskFull(StudyError):  # noqa: N818
    """The database took no write: the disk is full, failing or read-only. Nothing was stored."""


class Unavailable(StudyError):  # noqa: N818
    """The database did not answer; what was asked may be asked again, with the same key."""
