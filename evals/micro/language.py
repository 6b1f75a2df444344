"""Reading, summarization, reasoning and common sense: lookup, merging, order, and a scale of animals."""

from __future__ import annotations

import itertools

from evals.micro.forms import Fields, Form, distinct, same_text
from evals.micro.words import ANIMALS, COLORS, NAMES, OBJECTS, PLACES

# --- reading: slot x holds the thing that is asked about, one of those in the given slots ---------


def _reading(text: str, things: str, answers: str, told: str, weight: float = 1.0) -> Form:
    """Return a form; the answer is the slot of ``answers`` that goes with the asked slot of ``things``."""
    slots: dict[str, tuple[str, ...]] = {"x": OBJECTS}
    for kind, values in (("pqr", NAMES), ("omn", OBJECTS), ("cd", COLORS), ("kl", PLACES)):
        slots |= {slot: values for slot in kind if f"{{{slot}}}" in text}
    groups = [distinct(*(slot for slot in kind if slot in slots)) for kind in ("pqr", "omn", "cd", "kl")]

    def allowed(fields: Fields) -> bool:
        asked = any(fields["x"] == fields[slot] for slot in things)
        return asked and all(group(fields) for group in groups)

    def answer(fields: Fields) -> tuple[str, str]:
        index = [fields[slot] for slot in things].index(fields["x"])
        return fields[answers[index]], told.format(x=fields["x"], answer=fields[answers[index]])

    return Form((text,), slots, answer, allowed, weight=weight)


READING_EASY = (
    _reading(
        "{p} has a {c} {o}. {q} has a {d} {m}. Who has the {x}?",
        "om",
        "pq",
        "The text gives the {x} to {answer}.",
    ),
    _reading(
        "{p} has a {c} {o}. {q} has a {d} {m}. What color is the {x}?",
        "om",
        "cd",
        "The text calls the {x} {answer}.",
    ),
)
READING_HARD = (
    _reading(
        "{p} has the {o}, {q} has the {m} and {r} has the {n}. Who has the {x}?",
        "omn",
        "pqr",
        "The text gives the {x} to {answer}.",
    ),
    _reading(
        "{p} has the {o}. {q} has the {m}. {p} is in the {k}. {q} is in the {l}. Where is the {x}?",
        "om",
        "kl",
        "Who has the {x} is in the {answer}.",
    ),
)

# --- summarization --------------------------------------------------------------------------------

_VERBS = {"is in": "are in", "went to": "went to", "likes": "like", "left": "left"}
_FILLERS = ("It is a sunny day.", "The bus is late.", "The clock is old.")


def _summary(texts: tuple[str, ...], people: str) -> Form:
    """Return a form that merges sentences which differ in the person only; the people's order is free."""

    def merged(names: tuple[str, ...], fields: Fields) -> str:
        return f"{', '.join(names[:-1])} and {names[-1]} {_VERBS[fields['v']]} the {fields['k']}."

    def named(fields: Fields) -> tuple[str, ...]:
        return tuple(fields[slot] for slot in people)

    def answer(fields: Fields) -> tuple[str, str]:
        return merged(named(fields), fields), f"All of them {_VERBS[fields['v']]} the {fields['k']}."

    def check(fields: Fields, given: str) -> bool:
        return any(same_text(merged(names, fields), given) for names in itertools.permutations(named(fields)))

    slots = dict.fromkeys(people, NAMES) | {"v": tuple(_VERBS), "k": PLACES}
    if "{w}" in texts[0]:
        slots["w"] = _FILLERS
    return Form(texts, slots, answer, distinct(*people), check)


SUMMARIZATION_EASY = (_summary(("Summarize: {p} {v} the {k}. {q} {v} the {k}.",), "pq"),)
SUMMARIZATION_HARD = (
    _summary(("Summarize: {p} {v} the {k}. {q} {v} the {k}. {r} {v} the {k}.",), "pqr"),
    _summary(
        (
            "Summarize: {w} {p} {v} the {k}. {q} {v} the {k}.",
            "Summarize: {p} {v} the {k}. {w} {q} {v} the {k}.",
            "Summarize: {p} {v} the {k}. {q} {v} the {k}. {w}",
        ),
        "pq",
    ),
)

# --- reasoning: three people in order -------------------------------------------------------------

_SCALES = (
    ("older", "oldest", "younger", "youngest"),
    ("taller", "tallest", "shorter", "shortest"),
    ("faster", "fastest", "slower", "slowest"),
)
_SUPERLATIVE = {more: most for scale in _SCALES for more, most in (scale[:2], scale[2:])}
_OPPOSITE = {scale[index]: scale[2 - index] for scale in _SCALES for index in (0, 2)}


def _order(text: str, comparatives: tuple[str, ...], weight: float = 1.0) -> Form:
    """Return a form in which p is more than q and q more than r; ``{b}`` is the opposite of ``{a}``."""
    slots = dict.fromkeys("pqr", NAMES) | {"a": comparatives, "x": tuple(_SUPERLATIVE.values())}
    if "{b}" in text:
        slots["b"] = tuple(_OPPOSITE)
    differ = distinct("p", "q", "r")

    def allowed(fields: Fields) -> bool:
        more, less = fields["a"], _OPPOSITE[fields["a"]]
        fits = fields["x"] in (_SUPERLATIVE[more], _SUPERLATIVE[less]) and fields.get("b", less) == less
        return fits and differ(fields)

    def answer(fields: Fields) -> tuple[str, str]:
        first = fields["x"] == _SUPERLATIVE[fields["a"]]
        steps = f"In order: {fields['p']}, {fields['q']}, {fields['r']}, each {fields['a']} than the next."
        return fields["p" if first else "r"], steps

    return Form((text,), slots, answer, allowed, weight=weight)


REASONING_EASY = (
    _order(
        "{p} is {a} than {q}. {q} is {a} than {r}. Who is the {x}?",
        tuple(scale[0] for scale in _SCALES),
    ),
)
REASONING_HARD = (
    _order("{q} is {a} than {r}. {p} is {a} than {q}. Who is the {x}?", tuple(_OPPOSITE)),
    _order("{p} is {a} than {q}. {r} is {b} than {q}. Who is the {x}?", tuple(_OPPOSITE)),
)

# --- common sense: which animal is bigger ---------------------------------------------------------

_UPWARD = {"bigger": True, "heavier": True, "smaller": False, "lighter": False}
_MOST = {"biggest": True, "heaviest": True, "smallest": False, "lightest": False}


def _extreme(fields: Fields, slots: str, upward: bool) -> str:
    """Return which of the slots holds the biggest animal, or the smallest."""
    return (max if upward else min)(slots, key=lambda slot: ANIMALS.index(fields[slot]))


def _ladder(fields: Fields, slots: str) -> str:
    ordered = sorted((fields[slot] for slot in slots), key=ANIMALS.index)
    return f"From small to big: {', '.join(ordered)}."


def _which(fields: Fields) -> tuple[str, str]:
    return fields[_extreme(fields, "xy", _UPWARD[fields["a"]])], _ladder(fields, "xy")


def _whether(fields: Fields) -> tuple[str, str]:
    yes = _extreme(fields, "xy", _UPWARD[fields["a"]]) == "x"
    return "Yes" if yes else "No", _ladder(fields, "xy")


def _most(fields: Fields) -> tuple[str, str]:
    return fields[_extreme(fields, "xyz", _MOST[fields["a"]])], _ladder(fields, "xyz")


def _who(fields: Fields) -> tuple[str, str]:
    owner = {"x": "p", "y": "q"}[_extreme(fields, "xy", _UPWARD[fields["a"]])]
    return fields[owner], _ladder(fields, "xy")


def _animal_is_right(fields: Fields, given: str) -> bool:
    """Return whether the answer names the right animal, with or without its article."""
    answer = (_most if "z" in fields else _which)(fields)[0]
    return any(same_text(f"{article}{answer}", given) for article in ("", "a ", "the "))


COMMON_SENSE_EASY = (
    Form(
        (
            "Which is {a}, a {x} or a {y}?",
            "Of a {x} and a {y}, which is {a}?",
            "Name the {a} animal: a {x} or a {y}.",
        ),
        {"x": ANIMALS, "y": ANIMALS, "a": tuple(_UPWARD)},
        _which,
        distinct("x", "y"),
        _animal_is_right,
        weight=0.7,
    ),
    Form(
        ("Is a {x} {a} than a {y}?",),
        {"x": ANIMALS, "y": ANIMALS, "a": tuple(_UPWARD)},
        _whether,
        distinct("x", "y"),
        weight=0.3,
    ),
)
COMMON_SENSE_HARD = (
    Form(
        ("Which is the {a}, a {x}, a {y} or a {z}?",),
        {"x": ANIMALS, "y": ANIMALS, "z": ANIMALS, "a": tuple(_MOST)},
        _most,
        distinct("x", "y", "z"),
        _animal_is_right,
    ),
    Form(
        ("{p} has a {x} and {q} has a {y}. Who has the {a} animal?",),
        {"p": NAMES, "q": NAMES, "x": ANIMALS, "y": ANIMALS, "a": tuple(_UPWARD)},
        _who,
        lambda fields: fields["p"] != fields["q"] and fields["x"] != fields["y"],
    ),
)
