"""Tables of the command line: names, figures under each other, and a last column that may be long."""

from __future__ import annotations

import typer


def print_columns(table: list[list[str]], left: int, source: bool = False) -> None:
    """Print rows under a heading: ``left`` columns of names, figures, and a ``source`` that may be long."""
    # A heading may run over the empty cells beside it.
    widths = [max(len(row[column]) for row in table[1:]) for column in range(len(table[0]))]
    widths = [
        max(width, len(table[0][column])) if column >= left else width for column, width in enumerate(widths)
    ]
    names = sum(widths[:left]) + left - 1
    for number, row in enumerate(table):
        if number == 0:
            cells = [row[0].ljust(names + 2)]
        else:
            cells = [
                "  " + " ".join(cell.ljust(width) for cell, width in zip(row[:left], widths, strict=False))
            ]
        figures = list(zip(row[left:], widths[left:], strict=True))
        for index, (cell, width) in enumerate(figures):
            last = source and index == len(figures) - 1
            cells.append(cell if last else cell.rjust(width))
        typer.echo("  ".join(cells).rstrip())
