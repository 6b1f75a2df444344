"""``cogumi data``: making data, what is wrong with data files, and what they hold."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from cogumi.cli import data_stages
from cogumi.cli.common import JsonOption, echo_json
from cogumi.errors import RunError, UsageError

if TYPE_CHECKING:
    from evals.lint.linter import Report
    from evals.lint.stats import DataStats

_HELP = """Make training data step by step, and check and count data files.

Files may be JSON lines, JSON, CSV, TSV, Parquet, and the text forms in gzip.

\b
Example: cogumi data generate --profile llama-3.1-8b --dry-run
         cogumi data lint train.jsonl --against benchmarks/
"""

_LINT = """Find what is wrong with training or benchmark files; exit 1 when anything is.

A folder stands for the data files below it. Findings: unparsable and empty rows, empty fields, duplicates
within and across files, near duplicates, labels and answers that contradict their format, answers that were
cut, and, with --against, training rows that hold items of a benchmark.

Example: cogumi data lint train.jsonl --against gsm8k/test.jsonl ifeval/prompts.jsonl
"""

_STATS = """Count rows, distinct questions, near duplicates, empty rows, domains, difficulties and tokens.

Without --tokenizer tokens are an estimate, of words, numbers and signs.

Example: cogumi data stats train.jsonl --json
"""

_TOLD_EACH = 20
"""Findings of one rule in one file that are told line by line; ``--json`` has all."""


class _ManyAgainst(TyperCommand):
    """Lets ``--against`` take every path up to the next option, as the shell's patterns give them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments with ``--against A B`` spelt out as ``--against A --against B``."""
        return super().parse_args(ctx, spread_against(args))


def spread_against(args: Sequence[str]) -> list[str]:
    """Return the arguments with ``--against`` before each of the paths that follow it.

    Where that would leave no file to lint it takes one path: ``--against BENCHMARK FILES…``.
    """
    spread: list[str] = []
    files = 0
    words = list(args)
    while words:
        word = words.pop(0)
        spread.append(word)
        if word == "--":
            files += len(words)
            spread += words
            break
        if word in ("--against", "--near") and words:
            spread.append(words.pop(0))
            while word == "--against" and words and not words[0].startswith("-"):
                spread += [word, words.pop(0)]
        elif not word.startswith("-"):
            files += 1
    return spread if files else list(args)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help=_HELP, no_args_is_help=True, rich_markup_mode=None)
    data_stages.register(group)
    group.command("lint", help=_LINT, cls=_ManyAgainst)(lint)
    group.command("stats", help=_STATS)(stats)
    app.add_typer(group, name="data")


def lint(
    files: Annotated[list[str], typer.Argument(help="Files or folders to lint.")],
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="FILES...", help="Benchmarks whose items must not be in FILES."),
    ] = None,
    near: Annotated[
        float, typer.Option("--near", min=0.1, max=1, help="Similarity of near duplicates; 1: none.")
    ] = 0.8,
    as_json: JsonOption = False,
) -> None:
    """Lint and print."""
    from evals.lint.linter import lint_files
    from evals.lint.rows import data_files

    report = lint_files(data_files(files), data_files(against or ()), near=near)
    with _printing():
        if as_json:
            echo_json(report.to_json())
        else:
            _print_report(report)
    raise typer.Exit(1 if report.findings else 0)


def stats(
    file: Annotated[str, typer.Argument(help="File to count.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", help="Model folder or GGUF file whose tokens are counted exactly."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Count and print."""
    from evals.lint.rows import data_files
    from evals.lint.stats import data_stats

    if Path(file).is_dir():
        raise UsageError(f"{file} is a folder; name one file")
    counted = data_stats(Path(data_files([file])[0]), tokenizer)
    with _printing():
        if as_json:
            echo_json(counted.to_json())
        else:
            _print_stats(counted)


@contextmanager
def _printing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        # What could not be written now must not be tried again when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise RunError(f"standard output: {error.strerror}; run it again elsewhere") from None


def _print_report(report: Report) -> None:
    told: Counter[tuple[str, str]] = Counter()
    totals = Counter((found.file, found.rule) for found in report.findings)
    for found in report.findings:
        place = (found.file, found.rule)
        told[place] += 1
        if told[place] <= _TOLD_EACH:
            typer.echo(found.text())
        elif told[place] == _TOLD_EACH + 1:
            more = totals[place] - _TOLD_EACH
            typer.echo(f"{found.file}: {found.severity} {found.rule}: and {more:,} more (--json has all)")
    what = ", ".join(f"{count:,} {rule}" for rule, count in report.counts.items())
    files = "1 file" if len(report.files) == 1 else f"{len(report.files)} files"
    rows = "1 row" if report.rows == 1 else f"{report.rows:,} rows"
    typer.echo(f"{files}, {rows}: {what or 'nothing found'}")


def _print_stats(counted: DataStats) -> None:
    typer.echo(counted.file)
    typer.echo(f"  rows             {counted.rows:,}")
    typer.echo(f"  distinct         {counted.distinct:,}")
    typer.echo(f"  near duplicates  {counted.near_duplicates:,}")
    typer.echo(f"  empty            {counted.empty:,}")
    typer.echo(f"  tokens           {counted.tokens:,}  ({counted.tokens_counted_by})")
    for name, counts in (("domain", counted.by_domain), ("difficulty", counted.by_difficulty)):
        if counts:
            typer.echo(f"  by {name:<13} " + ", ".join(f"{key} {n:,}" for key, n in counts.items()))
