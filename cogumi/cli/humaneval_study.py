"""What the commands of ``cogumi humaneval`` share: which study is meant, and opening it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogumi.cli.common import Place, place
from cogumi.errors import UsageError, nearest

if TYPE_CHECKING:
    from evals.human.frozen import Frozen
    from evals.human.store import StudyStore

DEFAULT_STUDY = "phase8"
"""The study that gates/phase8.yaml asks for."""

StudyArgument = Annotated[str, typer.Argument(metavar="[STUDY]", help="Name of the study.")]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        metavar="URL",
        help="PostgreSQL database of the study (COGUMI_STUDY_DATABASE_URL; a file in the workspace).",
        show_default=False,
    ),
]


def find_study(context: typer.Context, workspace: Path | None, study: str) -> tuple[Place, Path]:
    """Return the place and the study's folder; raises ``UsageError`` naming the nearest study."""
    from evals.human.plan import PLAN_FILE, STUDIES, study_folder

    where = place(context, workspace)
    folder = study_folder(where.workspace.root, study)
    if not (folder / PLAN_FILE).exists():
        known = sorted(path.parent.name for path in (where.workspace.root / STUDIES).glob(f"*/{PLAN_FILE}"))
        hint = nearest(study, known) or f"; `cogumi humaneval create {study}` makes one"
        raise UsageError(f"no study {study!r} in {where.workspace.root}{hint}")
    return where, folder


@contextmanager
def opened(folder: Path, url: str | None, *, read_only: bool = False) -> Iterator[StudyStore]:
    """Give the open study and let its database go at the end."""
    from evals.human.store import StudyStore

    store = StudyStore.open(folder, url, read_only=read_only)
    try:
        yield store
    finally:
        store.dispose()


def closed_study(where: Place, study: str) -> Frozen:
    """Return the frozen study; raises ``UsageError`` while it is open."""
    from evals.human.frozen import find_frozen, study_state

    frozen = find_frozen(where.workspace.root, study)
    if frozen is None:
        if study_state(where.workspace.root, study) is None:
            raise UsageError(f"no study {study!r} in {where.workspace.root}")
        raise UsageError(
            f"study {study} is open: nobody is shown a mean or a rating before it is closed; "
            f"`cogumi humaneval close {study}` closes it for good"
        )
    return frozen


def link(base: str, token: str) -> str:
    """Return a rater's personal link."""
    return f"{base.rstrip('/')}/join?t={token}"
