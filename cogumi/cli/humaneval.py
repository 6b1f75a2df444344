"""``cogumi humaneval``: a study with people, from its plan to its verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from cogumi.cli import (
    humaneval_create,
    humaneval_results,
    humaneval_serve,
    humaneval_simulate,
    humaneval_status,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_HELP = """Ask people: make a study, invite raters, serve the rating app, close it, then read the mean.

Studies lie in the workspace under studies/NAME; phase8 is the one that the plan's gate asks for. A database
in PostgreSQL is named by COGUMI_STUDY_DATABASE_URL or --database-url at every command, and never stored.

\b
Example: cogumi humaneval create --tasks tasks.jsonl --contact study@example.org
         cogumi humaneval invite --count 100 --url https://rate.example.org --out links.txt
         cogumi humaneval serve --public-url https://rate.example.org
"""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help=_HELP, no_args_is_help=True, rich_markup_mode=None)
    parts: tuple[Callable[[typer.Typer], None], ...] = (
        humaneval_create.register,
        humaneval_serve.register,
        humaneval_status.register,
        humaneval_results.register,
        humaneval_simulate.register,
    )
    for part in parts:
        part(group)
    app.add_typer(group, name="humaneval")
