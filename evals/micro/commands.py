"""Tool use and instruction following: a call as JSON, and a constraint on the words of the answer."""

from __future__ import annotations

import json
from typing import Any

from evals import sandbox
from evals.micro.forms import Fields, Form, distinct
from evals.micro.words import COLORS, NAMES, OBJECTS, numbers

# --- tool use -------------------------------------------------------------------------------------

_VERBS = ("send", "bring", "sell", "show")


def _call(fields: Fields) -> dict[str, Any]:
    """Return the call that a request asks for."""
    call: dict[str, Any] = {"tool": fields["v"], "item": f"{fields['c']} {fields['o']}"}
    if "n" in fields:
        call["count"] = int(fields["n"])
    if "p" in fields:
        call["from"] = fields["p"]
    return call | {"to": fields["q"]}


def _call_answer(fields: Fields) -> tuple[str, str]:
    call = _call(fields)
    steps = f"The tool is {fields['v']}, with {len(call) - 1} arguments."
    return json.dumps(call, separators=(",", ":")), steps


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _call_is_right(fields: Fields, given: str) -> bool:
    """Compare tool and arguments, types included; order and spacing of the JSON are free."""
    try:
        call = json.loads(given, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError):
        return False
    return sandbox.same_json(call, _call(fields))


TOOL_USE_EASY = (
    Form(
        ("Call a tool: {v} the {c} {o} to {q}.",),
        {"v": _VERBS, "c": COLORS, "o": OBJECTS, "q": NAMES},
        _call_answer,
        check=_call_is_right,
    ),
)
TOOL_USE_HARD = (
    Form(
        ("Call a tool: {v} {n} {c} {o}s from {p} to {q}.",),
        {"v": _VERBS, "n": numbers(2, 20), "c": COLORS, "o": OBJECTS, "p": NAMES, "q": NAMES},
        _call_answer,
        distinct("p", "q"),
        _call_is_right,
    ),
)

# --- instruction ----------------------------------------------------------------------------------

_JOINTS = {"spaces": " ", "commas": ", ", "dashes": "-"}


def _parts(given: str, joint: str) -> list[str]:
    return [part.strip() for part in given.strip().rstrip(".").split(joint.strip() or None)]


def _repeat(fields: Fields) -> tuple[str, str]:
    words = [f"{fields['c']} {fields['o']}"] * int(fields["n"])
    return _JOINTS[fields["j"]].join(words), f"{fields['n']} times, with {fields['j']}."


def _repeat_is_right(fields: Fields, given: str) -> bool:
    phrase = f"{fields['c']} {fields['o']}"
    if fields["j"] == "spaces":
        return _parts(given.casefold(), " ") == phrase.split() * int(fields["n"])
    return _parts(given.casefold(), _JOINTS[fields["j"]]) == [phrase] * int(fields["n"])


def _capitals(fields: Fields) -> tuple[str, str]:
    return f"{fields['c']} {fields['o']}".upper(), "Each letter becomes a capital."


def _same_letters(fields: Fields, given: str) -> bool:
    """Compare with case: capitals are what was asked for."""
    return " ".join(given.split()).rstrip(".") == _capitals(fields)[0]


def _free_colors(fields: Fields) -> list[str]:
    return [color for color in COLORS if color not in (fields["c"], fields["d"])]


def _name_colors(fields: Fields) -> tuple[str, str]:
    chosen = _free_colors(fields)[: int(fields["n"])]
    return ", ".join(chosen), f"Left out: {fields['c']} and {fields['d']}."


def _colors_are_right(fields: Fields, given: str) -> bool:
    """Any colors of the vocabulary do, in any order, if they are as many as asked and none is forbidden."""
    named = _parts(given.casefold().replace(" and ", ", "), ", ")
    free = _free_colors(fields)
    return len(named) == int(fields["n"]) == len(set(named)) and all(color in free for color in named)


def _reversed(fields: Fields) -> tuple[str, str]:
    return ", ".join(fields[slot] for slot in "zyx"), f"The last is {fields['z']}, so it comes first."


def _reversed_is_right(fields: Fields, given: str) -> bool:
    return _parts(given.casefold(), ", ") == [fields[slot].casefold() for slot in "zyx"]


def _backwards(words: tuple[str, ...], weight: float) -> Form:
    return Form(
        ("List in reverse order: {x}, {y}, {z}.",),
        {"x": words, "y": words, "z": words},
        _reversed,
        distinct("x", "y", "z"),
        _reversed_is_right,
        weight=weight,
    )


INSTRUCTION_EASY = (
    Form(
        (
            "Write {c} {o} {n} times with {j}.",
            "Repeat {c} {o} {n} times with {j}.",
            "Say {c} {o} {n} times with {j}.",
        ),
        {"c": COLORS, "o": OBJECTS, "n": numbers(2, 4), "j": tuple(_JOINTS)},
        _repeat,
        check=_repeat_is_right,
        weight=0.85,
    ),
    Form(
        (
            "Write {c} {o} in capital letters.",
            "Repeat {c} {o} in capital letters.",
            "Say {c} {o} in capital letters.",
        ),
        {"c": COLORS, "o": OBJECTS},
        _capitals,
        check=_same_letters,
        weight=0.15,
    ),
)
INSTRUCTION_HARD = (
    _backwards(OBJECTS, 0.4),
    _backwards(NAMES, 0.4),
    _backwards(COLORS, 0.1),
    Form(
        ("Name {n} colors, but not {c} or {d}.",),
        {"n": numbers(2, 3), "c": COLORS, "d": COLORS},
        _name_colors,
        distinct("c", "d"),
        _colors_are_right,
        weight=0.1,
    ),
)
