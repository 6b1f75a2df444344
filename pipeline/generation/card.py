"""The data set's card: README.md with the hub's YAML head, and tables of what was measured.

The head's fields are those of the hub's dataset cards (huggingface/hub-docs, datasetcard.md); with them
``datasets.load_dataset(FOLDER)`` finds the rows. Every figure comes from ``facts``, which card.json has too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from pipeline.generation.measured import CELLS, PARTS, Measured
from pipeline.generation.records import TRAINING
from pipeline.generation.topics import DIFFICULTIES

README = "README.md"
PARQUET = TRAINING.replace(".jsonl", ".parquet")

STEPS = {
    "questions": ("1.1 questions", "$0"),
    "validated": ("1.2 validation", "$9"),
    "answers_easy": ("1.3 easy answers", "$2.52"),
    "answers_hard": ("1.4 hard answers", "$414"),
}
"""Inputs of the merge, each with its step of the plan and the plan's own price for 60,000 rows."""

_PERCENTILES = (5, 25, 50, 75, 95, 99)
_PROVIDERS = {
    "api.openai.com": ("OpenAI", "https://openai.com/policies/"),
    "api.anthropic.com": ("Anthropic", "https://www.anthropic.com/legal/commercial-terms"),
    "openrouter.ai": ("OpenRouter", "https://openrouter.ai/terms"),
}
"""Whose terms hold for answers from a host, and where they are to be read."""
_OWN = {"openai": "api.openai.com", "anthropic": "api.anthropic.com"}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LARGEST = "1M<n<10M"

Facts = Mapping[str, Any]


def token_facts(found: Measured, counted_by: str) -> dict[str, Any]:
    """Return the tokens of the rows: per cell, per difficulty with its shares, and percentiles of lengths.

    ``answer_share`` is the share of all answers' tokens, ``trained_share`` that of answers and reasoning.
    """
    cells = {
        str(cell): {part: sum(found.lengths[cell][part]) for part in PARTS}
        for cell in CELLS
        if cell in found.lengths
    }
    levels = {
        level: {
            part: sum(tokens[part] for name, tokens in cells.items() if name.endswith(f"/{level}"))
            for part in PARTS
        }
        for level in DIFFICULTIES
    }
    totals = {part: sum(tokens[part] for tokens in levels.values()) for part in PARTS}
    return {
        "counted_by": counted_by,
        "total": totals,
        "cells": {name: {**tokens, **_shares(tokens, totals)} for name, tokens in cells.items()},
        "difficulties": {name: {**tokens, **_shares(tokens, totals)} for name, tokens in levels.items()},
        "percentiles": {level: _percentiles(found, level) for level in DIFFICULTIES},
    }


def _shares(tokens: Mapping[str, int], totals: Mapping[str, int]) -> dict[str, float]:
    trained = totals["answer"] + totals["reasoning"]
    return {
        "answer_share": round(tokens["answer"] / totals["answer"], 4) if totals["answer"] else 0.0,
        "trained_share": round((tokens["answer"] + tokens["reasoning"]) / trained, 4) if trained else 0.0,
    }


def _percentiles(found: Measured, level: str) -> dict[str, dict[str, int]]:
    # Here, so that a plan, which reads the settings of ``merge`` alone, does not wait for it.
    import numpy as np

    told: dict[str, dict[str, int]] = {}
    for part in PARTS:
        held = [lengths[part] for cell, lengths in found.lengths.items() if cell.difficulty == level]
        values = np.concatenate(
            [np.asarray(each, dtype=np.int64) for each in held] or [np.empty(0, np.int64)]
        )
        if len(values):
            ranks = np.percentile(values, _PERCENTILES, method="inverted_cdf")
            told[part] = {f"p{rank}": int(value) for rank, value in zip(_PERCENTILES, ranks, strict=True)}
            told[part]["max"] = int(values.max())
    return told


def readme(facts: Facts) -> str:
    """Return the card as Markdown; its first line of text begins with SIMULATED where a teacher was."""
    simulated = bool(facts["simulated"])
    title = f"{facts['rows']:,} questions and answers in {len(facts['cells'])} cells"
    blocks = [_head(facts, title), f"# {'SIMULATED: ' if simulated else ''}{title}"]
    if simulated:
        steps = ", ".join(STEPS[name][0] for name in facts["simulated_steps"])
        blocks.append(
            f"A local teacher stood in for the models of {steps}. Its rows are a rehearsal and teach "
            "nothing; its dollars are play money."
        )
    blocks += [
        "Synthetic training data: questions with direct answers (easy), and with reasoning in draft, "
        f"critique and revision (hard). `{TRAINING}` and `{PARQUET}` hold the same rows in the same order.",
        _table(("column", "type", "what it holds"), _COLUMNS),
        "## Rows",
        _rows_table(facts),
        "## Tokens",
        f"Counted by {facts['tokens']['counted_by']}. `answers`: share of all tokens of answers; `trained`: "
        "share of all tokens of answers and reasoning.",
        _tokens_table(facts["tokens"]),
        "Length of one row in tokens:",
        _percentile_table(facts["tokens"]["percentiles"]),
        "## Quality",
        _table(("check", "found"), _checks(facts)),
        _table(("score", "lowest", "mean", "rows by score"), _scores(facts["judge_scores"])),
        "## How it was made",
        _steps_table(facts),
        _models(facts),
        "## Licence",
        _licence(facts),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


_COLUMNS = (
    ("question_id", "text", "`domain_difficulty_number`, once each"),
    ("domain", "text", "one of the plan's eight"),
    ("difficulty", "text", "`easy` or `hard`"),
    ("question", "text", "stands alone"),
    ("answer", "text", "the final answer"),
    ("reasoning", "text or null", "null for easy; `[DRAFT] … [CRITIQUE] … [REVISED] …` for hard"),
)


def _head(facts: Facts, title: str) -> str:
    import yaml

    size = next((name for limit, name in _SIZES if facts["rows"] < limit), _LARGEST)
    head = {
        "pretty_name": f"{'SIMULATED: ' if facts['simulated'] else ''}{title}",
        "language": ["en"],
        # Never an open licence by default: the teachers' providers restrict what their answers may train.
        "license": "other",
        "license_name": "terms-of-the-teachers-providers",
        "license_link": README,
        "task_categories": ["text-generation"],
        "size_categories": [size],
        "tags": ["synthetic", *(["simulated"] if facts["simulated"] else [])],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": PARQUET}]}],
    }
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=1000)}---"


def _rows_table(facts: Facts) -> str:
    rows = [
        (name, f"{facts['cells'].get(name, 0):,}", f"{quota:,}") for name, quota in facts["quotas"].items()
    ]
    total = ("**all**", f"{facts['rows']:,}", f"{sum(facts['quotas'].values()):,}")
    return _table(("cell", "rows", "quota"), [*rows, total])


def _tokens_table(tokens: Facts) -> str:
    def row(name: str, counts: Facts) -> tuple[str, ...]:
        shares = (f"{100 * counts[key]:.1f} %" for key in ("answer_share", "trained_share"))
        return (name, *(f"{counts[part]:,}" for part in PARTS), *shares)

    rows = [row(name, counts) for name, counts in tokens["cells"].items()]
    rows += [row(f"**{name}**", counts) for name, counts in tokens["difficulties"].items()]
    total = ("**all**", *(f"{tokens['total'][part]:,}" for part in PARTS), "", "")
    return _table(("cell", *PARTS, "answers", "trained"), [*rows, total])


def _percentile_table(percentiles: Facts) -> str:
    names = [*(f"p{rank}" for rank in _PERCENTILES), "max"]
    rows = [
        (f"{level} {part}", *(f"{lengths[name]:,}" for name in names))
        for level, parts in percentiles.items()
        for part, lengths in parts.items()
    ]
    return _table(("part", *names), rows)


def _checks(facts: Facts) -> Iterable[tuple[str, str]]:
    metrics, dropped = facts["metrics"], facts["dropped"]
    yield "repeated questions in these rows", f"{facts['duplicates']:,}"
    near = f"{100 * metrics['near_duplicate_share']:.2f} %"
    yield "near duplicates in these rows (Jaccard of token trigrams from 0.8)", near
    if "benchmark_leaks" in metrics:
        yield "items of the named benchmarks in these rows", f"{metrics['benchmark_leaks']:,}"
    else:
        yield "items of benchmarks in these rows", facts["unmeasured"]["benchmark_leaks"]
    yield "dropped while writing: repeated", f"{dropped['duplicates']:,}"
    yield "dropped while writing: near duplicates", f"{dropped['near_duplicates']:,}"
    yield "dropped while writing: items of benchmarks", f"{dropped['leaks']:,}"
    yield "dropped by the judge", f"{dropped['judge']:,}"
    for name, count in facts["refused"].items():
        yield f"{STEPS[name][0]}: refused and replaced", f"{count:,}"
    for name, count in facts["repaired"].items():
        yield f"{STEPS[name][0]}: usable after one repair request", f"{count:,}"


def _scores(scores: Facts) -> Iterable[tuple[str, ...]]:
    for name, counts in scores.items():
        number = sum(counts.values())
        mean = sum(int(score) * count for score, count in counts.items()) / number
        told = ", ".join(f"{score}: {count:,}" for score, count in counts.items())
        yield name, min(counts, key=int), f"{mean:.2f}", told


def _steps_table(facts: Facts) -> str:
    def dollars(name: str) -> str:
        cost = facts["cost_usd"][name]
        if cost is None:
            return "unknown: a price is not known"
        return f"${cost:,.2f}{' (simulated)' if name in facts['simulated_steps'] else ''}"

    rows = []
    for name, (title, plan) in STEPS.items():
        ended = ", ".join(f"{reason} {count:,}" for reason, count in facts["finish_reasons"][name].items())
        rows.append((title, dollars(name), plan, ended))
    rows.append(("**all**", _total(facts), "$425.52", ""))
    return _table(("step", "cost", "the plan, for 60,000", "how answers ended"), rows)


def _total(facts: Facts) -> str:
    total = facts["cost_usd"]["total"]
    if total is None:
        return "unknown"
    play = sum(facts["cost_usd"][name] for name in facts["simulated_steps"])
    if not facts["simulated_steps"]:
        return f"${total:,.2f}"
    return f"${total - play:,.2f} and ${play:,.2f} simulated (nothing was paid)"


def _models(facts: Facts) -> str:
    named = [
        (STEPS[row["step"]][0], row["teacher"], row["model"], _place(row)[0]) for row in facts["teachers"]
    ]
    written = ", ".join(f"{model} {count:,}" for model, count in facts["models"].items())
    lines = [_table(("step", "teacher", "model", "asked at"), named)] if named else []
    return "\n\n".join([*lines, f"Questions by model: {written}."])


def _licence(facts: Facts) -> str:
    terms = dict.fromkeys(_place(row) for row in facts["teachers"])
    rows = [f"- {name}: {address}" if address else f"- {name}" for name, address in terms]
    rows.append(f"- the licence of each model: {', '.join(facts['models_asked'])}")
    return "\n".join(
        (
            "No open licence is given. What may be done with these rows, and with models trained on them, is "
            "subject to the terms of those who answered, which may forbid the training of competing models. "
            "Read them before publishing either:",
            "",
            *rows,
        )
    )


def _place(row: Facts) -> tuple[str, str]:
    """Return who answered, and the address of its terms or nothing."""
    address = row["address"]
    if address == "local":
        return "the local teacher (simulated)", ""
    if address.startswith("gguf:"):
        return "our own server with an open-weight model", ""
    host = (urlsplit(address).hostname or address) if address else _OWN[row["api"]]
    return _PROVIDERS.get(host, (host, ""))


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
