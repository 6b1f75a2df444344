"""How often the verdict of a human study errs, and how often it decides: simulated, through its own interval.

Ratings are whole and end at 1 and 10: effects of raters and tasks are drawn on a latent scale, and its mean
is set so that the mean rating is what is asked, exactly. False PASS: at a true mean of 8.0, beside the
interval that takes rows as independent and the one that clusters raters only. Power: at 8.1 to 8.6.

    python -m benchmarks.human_coverage --studies 10000 --out reports/published
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gates.crossed import (
    Bounds,
    FloatArray,
    moment_bounds,
    rater_bounds,
    row_wise_bounds,
    two_way_bounds,
)
from gates.human_power import MEANS, Sds, power_table
from reports.svg import line, svg, text

ALPHA, BAR, RATERS, ITEMS = 0.05, 8.0, 100, 20
GOAL = 0.06
LATENT = {"low": (0.8, 0.5, 1.0), "mid": (1.2, 0.8, 1.3), "high": (1.5, 1.1, 1.5)}
"""Latent SDs of raters, tasks and the rest: research note on people, section 5."""
DESIGNS = (("low", 20), ("mid", 20), ("high", 20), ("low", 100), ("mid", 100), ("high", 100), ("mid", 200))
_CELLS = 2_000_000
"""Cells of raters x tasks at a time: some 100 MB with what is reckoned from them."""

Method = Callable[[FloatArray, float], Bounds]


@dataclass(frozen=True, slots=True)
class Found:
    """One design at one true mean: shares of PASS and FAIL by the verdict's interval, of PASS by two others.

    ``sd``: of the studies' means. ``se``: mean standard error that the interval claims.
    """

    case: str
    tasks: int
    mean: float
    studies: int
    passes: float
    fails: float
    row_wise: float
    raters_only: float
    sd: float
    se: float


def latent_mean(target: float, sds: Sequence[float]) -> float:
    """Return the latent mean at which whole ratings, cut at 1 and 10, have the mean ``target``."""
    spread = math.sqrt(sum(sd**2 for sd in sds))
    low, high = -10.0, 30.0
    while high - low > 1e-10:
        middle = (low + high) / 2
        # A rating is above k where the latent value is above k + 1/2.
        above = sum(0.5 * math.erfc((k + 0.5 - middle) / (spread * math.sqrt(2))) for k in range(1, 10))
        low, high = (middle, high) if 1 + above < target else (low, middle)
    return (low + high) / 2


def dealt(rng: np.random.Generator, raters: int, tasks: int, items: int, studies: int) -> np.ndarray:
    """Return who rates what, (S, U, T): decks of all tasks dealt ``items`` at a time, each task as often."""
    seen = np.zeros((studies, raters, tasks), dtype=bool)
    per_deck = tasks // items
    for first in range(0, raters, per_deck):
        order = rng.permuted(np.broadcast_to(np.arange(tasks), (studies, tasks)), axis=1)
        for k in range(min(per_deck, raters - first)):
            np.put_along_axis(seen[:, first + k], order[:, k * items : (k + 1) * items], True, axis=1)
    return seen


def studies_of(
    rng: np.random.Generator, sds: Sequence[float], tasks: int, target: float, studies: int
) -> FloatArray:
    """Return ratings of many studies, (S, 100, tasks), NaN where a rater was not dealt a task."""
    u, t, e = sds
    y = rng.normal(latent_mean(target, sds), e, (studies, RATERS, tasks))
    y += rng.normal(0, u, (studies, RATERS, 1))
    y += rng.normal(0, t, (studies, 1, tasks))
    np.clip(np.rint(y, out=y), 1, 10, out=y)
    if tasks > ITEMS:
        y[~dealt(rng, RATERS, tasks, ITEMS, studies)] = np.nan
    return y


def simulate(rng: np.random.Generator, case: str, tasks: int, target: float, studies: int) -> Found:
    """Simulate studies of one design and return how often each interval decides."""
    size = max(1, _CELLS // (RATERS * tasks))
    method: Method = moment_bounds if tasks == ITEMS else two_way_bounds
    parts: list[tuple[Bounds, Bounds, Bounds]] = []
    for start in range(0, studies, size):
        y = studies_of(rng, LATENT[case], tasks, target, min(size, studies - start))
        parts.append((method(y, ALPHA), row_wise_bounds(y, ALPHA), rater_bounds(y, ALPHA)))
    lowers = [np.concatenate([part[k].lower for part in parts]) for k in range(3)]
    ours = [part[0] for part in parts]
    return Found(
        case=case,
        tasks=tasks,
        mean=target,
        studies=studies,
        passes=float(np.mean(lowers[0] > BAR)),
        fails=float(np.mean(np.concatenate([one.upper for one in ours]) < BAR)),
        row_wise=float(np.mean(lowers[1] > BAR)),
        raters_only=float(np.mean(lowers[2] > BAR)),
        sd=float(np.concatenate([one.mean for one in ours]).std(ddof=1)),
        se=float(np.concatenate([one.se for one in ours]).mean()),
    )


def false_passes(rng: np.random.Generator, studies: int) -> Iterator[Found]:
    """Every design at a true mean of exactly 8.0, where each PASS and each FAIL is wrong."""
    for case, tasks in DESIGNS:
        yield simulate(rng, case, tasks, BAR, studies)


def powers(rng: np.random.Generator, studies: int) -> Iterator[Found]:
    """Every design at the means of interest."""
    for case, tasks in DESIGNS:
        for mean in MEANS:
            yield simulate(rng, case, tasks, mean, studies)


def observed_sds(rng: np.random.Generator, studies: int = 200) -> list[Sds]:
    """Return what the latent SDs become in whole ratings around 8, by moments over many large studies."""
    from gates.crossed import mean_squares

    found = []
    for case, sds in LATENT.items():
        _, ms_u, ms_t, ms_e = (one.mean() for one in mean_squares(studies_of(rng, sds, ITEMS, BAR, studies)))
        parts = ((ms_u - ms_e) / ITEMS, (ms_t - ms_e) / RATERS, ms_e)
        found.append(Sds(case, *(round(math.sqrt(one), 3) for one in parts)))
    return found


# What is written ------------------------------------------------------------------------------------


_PAGE = """# How often the verdict of a human study errs

Simulated studies of {raters} raters x {items} ratings, whole and from 1 to 10, through the intervals that the
verdict uses (`gates/crossed.py`): moments where all rate all (20 tasks), two-way clusters where tasks are
dealt from a pool, both widened for skewness. PASS means that the one-sided 95 % lower bound lies above 8.0.
Low, mid and high: latent standard deviations of raters, tasks and the rest of
{latent}.

    {command}

took {seconds:.0f} s on a machine with 2 CPU cores.

![Share of studies that pass at a true mean of 8.0](human-coverage.svg)

## At a true mean of exactly 8.0: every PASS is wrong ({studies:,} studies a row)

| case | tasks | false PASS | false FAIL | raters only | rows independent | SD of the mean | claimed SE |
|---|---|---|---|---|---|---|---|
{errors}

Goal: at most {goal:.2f}; the largest here is {worst:.3f} (simulation error of a figure {spread:.4f}): {met}.
Raters only (clusters of raters, tasks left out) and rows independent are the false PASS of what not to use.

## Chance of PASS by true mean ({decided:,} studies a cell)

In brackets what `cogumi humaneval create --plan` reckons in closed form (`gates/human_power.py`).

| case | tasks | {means} |
{rule}
{powers}

The ratings are as many in every row: more tasks help where more raters do not.
"""


def document(errors: Sequence[Found], decided: Sequence[Found], command: str, seconds: float) -> str:
    """Return the page of results in Markdown."""
    worst = max(one.passes for one in errors)
    expected = {(row.case, row.tasks): row.power for row in power_table()}
    powers = []
    for case, tasks in DESIGNS:
        found = [one for one in decided if (one.case, one.tasks) == (case, tasks)]
        cells = [f"{one.passes:.2f} ({expected[case, tasks][one.mean]:.2f})" for one in found]
        powers.append(f"| {case} | {tasks} | {' | '.join(cells)} |")
    return _PAGE.format(
        raters=RATERS,
        items=ITEMS,
        latent=", ".join("/".join(f"{sd:g}" for sd in sds) for sds in LATENT.values()),
        command=command,
        seconds=seconds,
        studies=errors[0].studies,
        errors="\n".join(
            f"| {one.case} | {one.tasks} | {one.passes:.3f} | {one.fails:.3f} | {one.raters_only:.3f} | "
            f"{one.row_wise:.3f} | {one.sd:.3f} | {one.se:.3f} |"
            for one in errors
        ),
        goal=GOAL,
        worst=worst,
        spread=math.sqrt(GOAL * (1 - GOAL) / errors[0].studies),
        met="met" if worst <= GOAL else "NOT met",
        decided=decided[0].studies,
        means=" | ".join(f"{mean:g}" for mean in MEANS),
        rule="|---" * (2 + len(MEANS)) + "|",
        powers="\n".join(powers),
    )


_STYLE = (
    "<style>text{font:12px system-ui,sans-serif;fill:#444}.b{fill:#0b5cad}.r{fill:#c9ced6}.g{fill:#8a93a0}"
    ".p-goal{stroke:#c02230;stroke-dasharray:4 3}"
    "@media(prefers-color-scheme:dark){text{fill:#c8ced6}.b{fill:#7db8f5}.r{fill:#4a535f}.g{fill:#76808c}"
    ".p-goal{stroke:#ff8a80}}</style>"
)


def picture(errors: Sequence[Found]) -> str:
    """Return the shares of false PASS as an SVG that brings its own style."""
    left, top, step, wide = 96.0, 40.0, 34.0, 420.0

    def x(value: float) -> float:
        return left + wide * value / 0.45

    bottom = top + step * len(errors)
    parts = [
        _STYLE,
        text("p-title", 4, 16, "Share of studies that PASS at a true mean of 8.0 (should be 0.05)"),
    ]
    parts.append(line("p-goal", x(GOAL), top - 8, x(GOAL), bottom))
    for k, one in enumerate(errors):
        y = top + k * step
        parts.append(text("p-tick", left - 8, y + 17, f"{one.case}, T = {one.tasks}", "end"))
        for place, (kind, value) in enumerate(
            (("b", one.passes), ("g", one.raters_only), ("r", one.row_wise))
        ):
            at = y + 9 * place
            parts.append(
                f'<rect class="{kind}" x="{left}" y="{at:.1f}" width="{x(value) - left:.1f}" height="8"/>'
            )
            if kind != "g":
                parts.append(text("p-tick", max(x(value), x(GOAL)) + 5, at + 8, f"{value:.3f}"))
    parts.append(text("p-tick", x(GOAL), bottom + 14, f"goal {GOAL:g}", "middle"))
    names = (("b", "the verdict's interval"), ("g", "clusters of raters only"), ("r", "rows as independent"))
    for k, (kind, name) in enumerate(names):
        at = left - 60 + 165 * k
        parts.append(f'<rect class="{kind}" x="{at:.1f}" y="{bottom + 24:.1f}" width="10" height="10"/>')
        parts.append(text("p-tick", at + 14, bottom + 33, name))
    title = "Share of studies that pass at a true mean of 8.0"
    return svg(int(left + wide + 50), int(bottom + 46), title, parts)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns 1 where the false PASS is above the goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000, help="studies a row")
    parser.add_argument("--seed", type=int, default=20261124)
    parser.add_argument("--out", type=Path, help="write human-coverage.md and .svg into this folder")
    options = parser.parse_args(arguments)
    rng, start = np.random.default_rng(options.seed), time.monotonic()
    for one in observed_sds(rng):
        print(f"observed SDs, {one.name}: raters {one.rater}, tasks {one.task}, rest {one.residual}")
    print("case  tasks  false PASS  FAIL   raters only  row-wise  SD     SE")
    errors = []
    for found in false_passes(rng, options.studies):
        errors.append(found)
        print(
            f"{found.case:5} {found.tasks:5}  {found.passes:.3f}       {found.fails:.3f}  "
            f"{found.raters_only:.3f}        {found.row_wise:.3f}     {found.sd:.3f}  {found.se:.3f}",
            flush=True,
        )
    decided = []
    for found in powers(rng, max(1, options.studies // 5)):
        decided.append(found)
        if found.mean == MEANS[0]:
            print(f"\npower {found.case} {found.tasks}:", end="")
        print(f" {found.mean:g} {found.passes:.2f}", end="", flush=True)
    seconds = time.monotonic() - start
    print(f"\n{seconds:.0f} s")
    if options.out is not None:
        command = f"python -m benchmarks.human_coverage --studies {options.studies} --seed {options.seed}"
        (options.out / "human-coverage.md").write_text(document(errors, decided, command, seconds))
        (options.out / "human-coverage.svg").write_text(picture(errors) + "\n")
    # Three standard errors of the simulation: a goal that is met must not fail by chance.
    allowed = GOAL + 3 * math.sqrt(GOAL * (1 - GOAL) / options.studies)
    return int(max(one.passes for one in errors) > allowed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
