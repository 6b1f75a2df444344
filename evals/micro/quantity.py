"""Math and coding: one step when easy, two when hard."""

from __future__ import annotations

import re

from evals import sandbox
from evals.micro.forms import Fields, Form, distinct
from evals.micro.words import NAMES, OBJECTS, numbers

_OPERATORS = {"plus": "+", "minus": "-", "times": "*"}


def _calculate(left: int, word: str, right: int) -> int:
    return left + right if word == "plus" else left - right if word == "minus" else left * right


# --- math -----------------------------------------------------------------------------------------


def _math(texts: tuple[str, ...], signs: tuple[int, ...], high: int, weight: float) -> Form:
    """Return a form over the numbers a, b and, with two signs, c; no partial result is below 0."""
    names = "abc"[: len(signs) + 1]

    def results(fields: Fields) -> list[int]:
        values = [int(fields[name]) for name in names]
        found = [values[0]]
        for sign, value in zip(signs, values[1:], strict=True):
            found.append(found[-1] + sign * value)
        return found

    def answer(fields: Fields) -> tuple[str, str]:
        found = results(fields)
        words = ["plus" if sign > 0 else "minus" for sign in signs]
        steps = [
            f"{found[index]} {words[index]} {fields[names[index + 1]]} is {found[index + 1]}"
            for index in range(len(signs))
        ]
        return str(found[-1]), " and ".join(steps) + "."

    def check(fields: Fields, given: str) -> bool:
        # "12", "12 cups." and "The answer is 12." are right; an answer with two numbers is not.
        found = re.findall(r"-?\d+", given) if len(given) <= 80 and given.isascii() else []
        return len(found) == 1 and int(found[0]) == results(fields)[-1]

    people = [slot for slot in "pqr" if f"{{{slot}}}" in texts[0]]
    differ = distinct(*people)
    slots = {name: numbers(1, high) for name in names} | dict.fromkeys(people, NAMES)
    if people:
        slots |= {"o": OBJECTS, "a": numbers(2, high)}  # the number before a plural

    def allowed(fields: Fields) -> bool:
        return min(results(fields)) >= 0 and differ(fields)

    return Form(texts, slots, answer, allowed, check, weight=weight)


# Small enough that each sum comes up several times in a training set of a few hundred questions.
_EASY_HIGH = 6
_HARD_HIGH = 4

MATH_EASY = (
    _math(("What is {a} plus {b}?",), (1,), _EASY_HIGH, 0.1),
    _math(("What is {a} minus {b}?",), (-1,), _EASY_HIGH, 0.1),
    _math(("{p} has {a} {o}s and gets {b} more. How many {o}s does {p} have?",), (1,), _EASY_HIGH, 0.4),
    _math(("{p} has {a} {o}s and gives {b} to {q}. How many {o}s does {p} have?",), (-1,), _EASY_HIGH, 0.4),
)
MATH_HARD = (
    _math(("What is {a} plus {b} plus {c}?",), (1, 1), _HARD_HIGH, 0.1),
    _math(("What is {a} plus {b} minus {c}?",), (1, -1), _HARD_HIGH, 0.1),
    _math(
        ("{p} has {a} {o}s, {q} has {b} and {r} has {c}. How many {o}s are there?",),
        (1, 1),
        _HARD_HIGH,
        0.4,
    ),
    _math(
        ("{p} has {a} {o}s, gets {b} and gives {c} to {q}. How many {o}s does {p} have?",),
        (1, -1),
        _HARD_HIGH,
        0.4,
    ),
)

# --- coding ---------------------------------------------------------------------------------------

_FUNCTIONS = ("f", "g", "h", "p", "q", "r")
_LETTERS = ("a", "b", "n", "x", "y")
_ONE_INPUT = [[value] for value in range(-4, 25)]
_TWO_INPUTS = [[left, right] for left in (-3, 0, 1, 2, 7, 12) for right in (-5, 0, 1, 3, 9)]
# A function of one line needs no more; a loop without end must not hold up an evaluation.
_LIMITS = sandbox.Limits(cpu_seconds=2)


def _expected(fields: Fields) -> list[int]:
    """Return what the function that a question asks for gives on the hidden inputs."""
    if "m" in fields:
        high, low, bound = int(fields["j"]), int(fields["m"]), int(fields["k"])
        return [high if value > bound else low for (value,) in _ONE_INPUT]
    if "op2" in fields:
        return [
            _calculate(_calculate(left, fields["op"], right), fields["op2"], int(fields["k"]))
            for left, right in _TWO_INPUTS
        ]
    return [_calculate(value, fields["op"], int(fields["k"])) for (value,) in _ONE_INPUT]


def _code_is_right(fields: Fields, given: str) -> bool:
    """Run the function on the hidden inputs in the sandbox and compare here, outside."""
    inputs = _TWO_INPUTS if "op2" in fields else _ONE_INPUT
    results = sandbox.call_function(given, fields["f"], inputs, _LIMITS)
    return results is not None and sandbox.same_json(results, _expected(fields))


def _code_meaning(fields: Fields) -> object:
    return fields["f"], "op2" in fields, _expected(fields)


def _one_step(fields: Fields) -> tuple[str, str]:
    f, x, k, op = fields["f"], fields["x"], fields["k"], fields["op"]
    return f"def {f}({x}): return {x} {_OPERATORS[op]} {k}", f"{op} is {_OPERATORS[op]}."


def _two_steps(fields: Fields) -> tuple[str, str]:
    f, x, y, k = (fields[slot] for slot in ("f", "x", "y", "k"))
    first, second = _OPERATORS[fields["op"]], _OPERATORS[fields["op2"]]
    code = f"def {f}({x}, {y}): return ({x} {first} {y}) {second} {k}"
    return code, f"{fields['op']} is {first} and {fields['op2']} is {second}."


def _condition(fields: Fields) -> tuple[str, str]:
    f, x, j, k, m = (fields[slot] for slot in ("f", "x", "j", "k", "m"))
    return f"def {f}({x}): return {j} if {x} > {k} else {m}", f"over {k} is > {k}."


CODING_EASY = (
    Form(
        (
            "Write a function {f}({x}) that returns {x} {op} {k}.",
            "Define {f}({x}) so that it returns {x} {op} {k}.",
        ),
        {"f": _FUNCTIONS, "x": _LETTERS, "op": tuple(_OPERATORS), "k": numbers(2, 20)},
        _one_step,
        check=_code_is_right,
        meaning=_code_meaning,
    ),
)
CODING_HARD = (
    Form(
        ("Write a function {f}({x}, {y}) that returns {x} {op} {y}, then {op2} {k}.",),
        {
            "f": _FUNCTIONS,
            "x": _LETTERS,
            "y": _LETTERS,
            "op": tuple(_OPERATORS),
            "op2": tuple(_OPERATORS),
            "k": numbers(2, 9),
        },
        _two_steps,
        distinct("x", "y"),
        _code_is_right,
        _code_meaning,
    ),
    Form(
        ("Write a function {f}({x}) that returns {j} if {x} is over {k}, else {m}.",),
        {"f": _FUNCTIONS, "x": _LETTERS, "j": numbers(0, 9), "k": numbers(0, 9), "m": numbers(0, 9)},
        _condition,
        distinct("j", "m"),
        _code_is_right,
        _code_meaning,
    ),
)
