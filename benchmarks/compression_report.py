"""The frontier's finished sides as a table, a plot and the lines themselves, for ``reports/published``.

    python -m benchmarks.compression_report --work A,B --out reports/published [--tasks results.jsonl]

``--work``: working folders of ``benchmarks.compression_frontier``, or files of its lines; of a side that
several hold, the last counts. Writes ``compression.jsonl`` and ``compression.svg``, and prints the Markdown
table; with ``--tasks``, what ``benchmarks.compression_tasks score --out`` wrote, that of the scores as well.
The picture carries its own colours and a white ground: it reads the same on paper and on a dark page.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from cogumi.errors import CogumiError, RunError, UsageError
from cogumi.store import write_atomic
from evals.datafiles import read_jsonl
from reports.svg import line, svg, text
from reports.text import clean

WIDTH, HEIGHT = 860, 540
_LEFT, _TOP, _RIGHT, _BOTTOM = 66.0, 66.0, WIDTH - 18.0, HEIGHT - 46.0
_MARK = 5.0
_CHAR, _ROW = 6.6, 13.0
_LEAST = 1e-7
"""A divergence below this is rounding, and has no place on a logarithmic axis."""

# Colours: Okabe and Ito 2008, told apart in any colour vision; markers tell families apart without them.
FAMILIES = {
    "llama.cpp": ("#56595c", "square"),
    "llama.cpp imatrix": ("#0072b2", "diamond"),
    "AWQ": ("#cc79a7", "up"),
    "GPTQ": ("#d55e00", "down"),
    "pruning": ("#8a6d00", "plus"),
    "depth cut": ("#56b4e9", "hexagon"),
    "ours": ("#009e73", "circle"),
    "ours, recovered": ("#7b3294", "ring"),
}
JOINED = ("ours", "ours, recovered")
"""Families of which only the size differs: a line joins them, and the axis names them."""

_STYLE = """
text{font:11px system-ui,sans-serif;fill:#222}
.b-tick{fill:#444}.b-title{font-weight:600}
.b-grid{stroke:#e3e3e3}.b-axis{stroke:#444}
"""


def read_lines(sources: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the lines of all finished sides, the smallest first; a later source replaces an earlier one's.

    Raises ``UsageError`` for a folder without lines, ``RunError`` for sides that were measured on different
    rows or are of no known family.
    """
    found: dict[str, dict[str, Any]] = {}
    for source in sources:
        file = source / "results.jsonl" if source.is_dir() else source
        if not file.is_file():
            raise UsageError(f"--work: no such file: {file}")
        # Where a side's files lay on another machine says nothing to anyone else.
        found |= {
            each["side"]: {key: value for key, value in each.items() if key != "artifact"}
            for each in read_jsonl(file)
        }
    if not found:
        raise UsageError("--work: no finished side")
    lines = sorted(found.values(), key=lambda each: (each["bytes_resident"], each["side"]))
    first = lines[0]
    for each in lines:
        if each["family"] not in FAMILIES:
            raise RunError(f"{each['side']}: of no known family ({each['family']})")
        if (each["rows"], each["tokens"]) != (first["rows"], first["tokens"]):
            raise RunError(
                f"{each['side']} was measured on {each['tokens']} tokens of {each['rows']} rows, "
                f"{first['side']} on {first['tokens']} of {first['rows']}; measure them alike"
            )
    return lines


def markdown(lines: Iterable[dict[str, Any]]) -> str:
    """Return the table of the sides, ours in bold."""
    rows = [
        "| side | resident MB | download MB | KL | bounds | perplexity | same top |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in lines:
        name = f"**{each['side']}**" if each["family"] in JOINED else each["side"]
        rows.append(
            f"| {name} | {each['bytes_resident'] / 1e6:.1f} | {each['bytes_download'] / 1e6:.1f} "
            f"| {each['kl']:.4f} | [{each['kl_lower']:.4f}, {each['kl_upper']:.4f}] "
            f"| {each['perplexity']:.3f} | {100 * each['top1_agreement']:.1f} % |"
        )
    return "\n".join(rows) + "\n"


def task_markdown(rows: Iterable[dict[str, Any]]) -> str:
    """Return the table of task scores."""
    told = [
        "| candidate | task | items | score | bounds | retention | bounds | lost / won | p | cut |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: str(row["task"])):
        retention = ["–" if row[key] is None else f"{row[key]:.3f}" for key in _RETENTION]
        told.append(
            f"| {row['candidate']} | {row['task']} | {row['n']} | {100 * row['score']:.1f} "
            f"| [{100 * row['lower']:.1f}, {100 * row['upper']:.1f}] | {retention[0]} "
            f"| [{retention[1]}, {retention[2]}] | {row['lost']} / {row['won']} | {row['p_value']:.2g} "
            f"| {row['cut']} |"
        )
    return "\n".join(told) + "\n"


_RETENTION = ("retention", "retention_lower", "retention_upper")


# The plot -----------------------------------------------------------------------------------------------


class Axes:
    """MB in memory on a linear x axis, KL in nats a token on a logarithmic y axis."""

    def __init__(self, lines: Sequence[dict[str, Any]]) -> None:
        sizes = [each["bytes_resident"] / 1e6 for each in lines]
        air = max(0.05 * (max(sizes) - min(sizes)), 1.0)
        self._x = (min(sizes) - air, max(sizes) + air)
        ends = [max(each[key], _LEAST) for each in lines for key in ("kl_lower", "kl", "kl_upper")]
        self._y = (math.log10(min(ends)) - 0.1, math.log10(max(ends)) + 0.1)

    def x(self, megabytes: float) -> float:
        """Return the place of a size."""
        low, high = self._x
        return float(_LEFT + (megabytes - low) / (high - low) * (_RIGHT - _LEFT))

    def y(self, kl: float) -> float:
        """Return the place of a divergence."""
        low, high = self._y
        return _BOTTOM - (math.log10(max(kl, _LEAST)) - low) / (high - low) * (_BOTTOM - _TOP)

    def drawn(self) -> list[str]:
        """Return grid, ticks and titles."""
        parts = []
        for value in self._y_ticks():
            y = self.y(value)
            parts.append(line("b-grid", _LEFT, y, _RIGHT, y))
            parts.append(text("b-tick", _LEFT - 6, y + 4, f"{value:g}", "end"))
        low, high = self._x
        step = next(
            each for each in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 1e4, 1e9) if each >= (high - low) / 12
        )
        for count in range(math.ceil(low / step), math.floor(high / step) + 1):
            x = self.x(count * step)
            parts.append(line("b-grid", x, _TOP, x, _BOTTOM))
            parts.append(text("b-tick", x, _BOTTOM + 16, f"{count * step:g}", "middle"))
        parts.append(line("b-axis", _LEFT, _BOTTOM, _RIGHT, _BOTTOM))
        parts.append(line("b-axis", _LEFT, _TOP, _LEFT, _BOTTOM))
        parts.append(text("b-title", 10, _TOP - 10, "KL from the dense model, nats a token (log) ↓"))
        parts.append(text("b-title", _RIGHT, HEIGHT - 10, "MB in memory →", "end"))
        return parts

    def _y_ticks(self) -> list[float]:
        low, high = self._y
        wide = high - low > 2.5
        return [
            digit * 10.0**exponent
            for exponent in range(math.floor(low), math.ceil(high) + 1)
            for digit in ((1,) if wide else (1, 2, 5))
            if low <= math.log10(digit * 10.0**exponent) <= high
        ]


def plot(lines: Sequence[dict[str, Any]]) -> str:
    """Return the picture: a marker with its bounds for each side, families by colour and marker."""
    axes = Axes(lines)
    ground = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
    parts = [f"<style>{_STYLE}</style>", ground, *axes.drawn(), *_legend(lines)]
    for family in JOINED:
        places = [_place(axes, each) for each in lines if each["family"] == family]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        if len(places) > 1:
            colour = FAMILIES[family][0]
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    parts += [_bounds(axes, each) for each in lines]
    parts += [_marker(axes, each) for each in lines]
    parts += _labels(axes, lines)
    return svg(WIDTH, HEIGHT, "Bytes of a compressed model against its divergence from the dense one", parts)


def _place(axes: Axes, each: dict[str, Any]) -> tuple[float, float]:
    return axes.x(each["bytes_resident"] / 1e6), axes.y(each["kl"])


def _bounds(axes: Axes, each: dict[str, Any]) -> str:
    x, _ = _place(axes, each)
    low, high = axes.y(each["kl_lower"]), axes.y(each["kl_upper"])
    colour = FAMILIES[each["family"]][0]
    return f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{colour}" stroke-opacity="0.55"/>'


def _marker(axes: Axes, each: dict[str, Any]) -> str:
    told = f"{each['side']}: {each['bytes_resident'] / 1e6:.1f} MB, {each['kl']:.4g} nats"
    shape = _shape(each["family"], *_place(axes, each))
    return f'<g class="b-side"><title>{escape(clean(told))}</title>{shape}</g>'


def _shape(family: str, x: float, y: float) -> str:
    colour, marker = FAMILIES[family]
    if marker in ("circle", "ring"):
        fill = colour if marker == "circle" else "#ffffff"
        paint = f'fill="{fill}" stroke="{colour}" stroke-width="2"'
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_MARK}" {paint}/>'
    if marker == "plus":
        d = f"M{x - _MARK:.1f} {y:.1f}h{2 * _MARK}M{x:.1f} {y - _MARK:.1f}v{2 * _MARK}"
        return f'<path d="{d}" stroke="{colour}" stroke-width="3"/>'
    corners = {"square": 4, "diamond": 4, "up": 3, "down": 3, "hexagon": 6}[marker]
    first = {"square": 45.0, "diamond": 0.0, "up": -90.0, "down": 90.0, "hexagon": 0.0}[marker]
    angles = [math.radians(first + 360 / corners * corner) for corner in range(corners)]
    points = " ".join(
        f"{x + 1.15 * _MARK * math.cos(angle):.1f},{y + 1.15 * _MARK * math.sin(angle):.1f}"
        for angle in angles
    )
    return f'<polygon points="{points}" fill="{colour}"/>'


def _legend(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Return name and marker of the families that are there, in one or two rows above the plot."""
    held = {each["family"] for each in lines}
    parts, x, y = [], 14.0, 18.0
    for family in FAMILIES:
        if family not in held:
            continue
        wide = 16 + _CHAR * len(family) + 18
        if x + wide > _RIGHT:
            x, y = 14.0, y + 18
        parts += [_shape(family, x, y), text("b-tick", x + 11, y + 4, family)]
        x += wide
    return parts


def _labels(axes: Axes, lines: Sequence[dict[str, Any]]) -> list[str]:
    """Return names beside the markers where they cover nothing; what has no room is told by its tooltip.

    Sizes of ours have none: the axis tells them. Of a type of llama.cpp with and without an importance matrix
    the first alone is named where both stand at one size.
    """
    taken = []
    for each in lines:
        x, y = _place(axes, each)
        taken.append((x - _MARK, y - _MARK, x + _MARK, y + _MARK))
        taken.append((x - 1, axes.y(each["kl_upper"]), x + 1, axes.y(each["kl_lower"])))
    parts: list[str] = []
    at = {each["side"]: each["bytes_resident"] for each in lines}
    for each in lines:
        told = each["side"]
        plain = at.get(told.removesuffix(" imatrix"), 0) if told.endswith(" imatrix") else 0
        if each["family"] in JOINED or abs(each["bytes_resident"] - plain) < 0.02 * plain:
            continue
        x, y = _place(axes, each)
        wide, near = _CHAR * len(told), _MARK + 3
        for left, top in (
            (x + near, y - _ROW / 2),
            (x - near - wide, y - _ROW / 2),
            (x + near, y - _ROW - 2),
            (x + near, y + 2),
            (x - near - wide, y - _ROW - 2),
            (x - near - wide, y + 2),
            (x - wide / 2, y - near - _ROW),
            (x - wide / 2, y + near),
        ):
            box = (left, top, left + wide, top + _ROW)
            inside = box[0] >= _LEFT and box[2] <= _RIGHT and box[1] >= _TOP and box[3] <= _BOTTOM
            if inside and not any(
                box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
                for other in taken
            ):
                taken.append(box)
                parts.append(text("b-label", left, top + _ROW - 3, told))
                break
    return parts


def main(arguments: Sequence[str] | None = None) -> int:
    """Write lines and picture, print the tables; returns an exit code."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.compression_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", required=True, help="working folders or files of lines, with commas")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--tasks", type=Path, help="what `compression_tasks score --out` wrote")
    args = parser.parse_args(arguments)
    try:
        lines = read_lines([Path(each) for each in args.work.split(",") if each])
        scores = read_jsonl(args.tasks) if args.tasks else []
        args.out.mkdir(parents=True, exist_ok=True)
        told = "".join(json.dumps(each) + "\n" for each in lines)
        write_atomic(args.out / "compression.jsonl", told.encode())
        write_atomic(args.out / "compression.svg", plot(lines).encode())
    except CogumiError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(markdown(lines))
    if scores:
        print(task_markdown(scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
