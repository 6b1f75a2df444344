"""Reading, summarization, reasoning and common sense: lookup, merging, order, and what things are for."""

from __future__ import annotations

import itertools

from evals.micro.forms import Fields, Form, distinct, same_text
from evals.micro.words import COLORS, NAMES, OBJECTS, PLACES, PURPOSES

# --- reading: the question's words choose a slot of the text ----------------------------------------


def _reading(text: str, asked: str, *conditions: tuple[str, ...]) -> Form:
    """Return a form whose answer is the word in the slot ``asked``."""
    kinds = (("pq", NAMES), ("om", OBJECTS), ("c", COLORS), ("kl", PLACES))
    slots = {slot: values for kind, values in kinds for slot in kind if f"{{{slot}}}" in text}

    def answer(fields: Fields) -> tuple[str, str]:
        return fields[asked], f"The text says {fields[asked]}."

    def allowed(fields: Fields) -> bool:
        return all(distinct(*slots)(fields) for slots in conditions)

    return Form((text,), slots, answer, allowed)


_ONE_FACT = "{p} has a {c} {o} in the {k}."
READING_EASY = (
    _reading(f"{_ONE_FACT} Who has it?", "p"),
    _reading(f"{_ONE_FACT} What color is it?", "c"),
    _reading(f"{_ONE_FACT} What does {{p}} have?", "o"),
    _reading(f"{_ONE_FACT} Where is it?", "k"),
)

_TWO_FACTS = "{p} took the {o} to the {k}. Then {q} took the {m} to the {l}."
_APART = (("p", "q"), ("o", "m"), ("k", "l"))
READING_HARD = (
    _reading(f"{_TWO_FACTS} Who was first?", "p", *_APART),
    _reading(f"{_TWO_FACTS} Who was last?", "q", *_APART),
    _reading(f"{_TWO_FACTS} What was taken first?", "o", *_APART),
    _reading(f"{_TWO_FACTS} What was taken last?", "m", *_APART),
    _reading(f"{_TWO_FACTS} Where did {{p}} go?", "k", *_APART),
    _reading(f"{_TWO_FACTS} Where did {{q}} go?", "l", *_APART),
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

# --- reasoning: people in order -------------------------------------------------------------------

_SCALES = {"older": ("oldest", "youngest"), "taller": ("tallest", "shortest")}
_RANKS = ("first", "second", "third", "last")


def _chain(fields: Fields) -> tuple[str, str]:
    """Return who stands at the end of the scale that the question names: p before q before r."""
    winner = fields["p"] if fields["x"] == _SCALES[fields["a"]][0] else fields["r"]
    return winner, f"In order: {fields['p']}, {fields['q']}, {fields['r']}."


def _race(fields: Fields) -> tuple[str, str]:
    order = [fields[slot] for slot in "pqrs"]
    return order[_RANKS.index(fields["x"])], f"In order: {', '.join(order)}."


REASONING_EASY = (
    Form(
        ("{p} is {a} than {q}. {q} is {a} than {r}. Who is the {x}?",),
        dict.fromkeys("pqr", NAMES) | {"a": tuple(_SCALES), "x": tuple(itertools.chain(*_SCALES.values()))},
        _chain,
        lambda fields: fields["x"] in _SCALES[fields["a"]] and distinct("p", "q", "r")(fields),
    ),
)
REASONING_HARD = (
    Form(
        ("{p} beat {q}, {q} beat {r} and {r} beat {s}. Who came {x}?",),
        dict.fromkeys("pqrs", NAMES) | {"x": _RANKS},
        _race,
        distinct("p", "q", "r", "s"),
    ),
)

# --- common sense: what a thing is for ------------------------------------------------------------


def _need(fields: Fields) -> tuple[str, str]:
    return PURPOSES[fields["v"]], f"To {fields['v']} takes a {PURPOSES[fields['v']]}."


def _needs(fields: Fields) -> tuple[str, str]:
    things = [PURPOSES[fields[slot]] for slot in "vw"]
    return " and ".join(things), f"One is to {fields['v']}, the other to {fields['w']}."


def _thing_is_right(fields: Fields, given: str) -> bool:
    """Return whether the answer names the right thing, with or without its article."""
    return any(same_text(article + PURPOSES[fields["v"]], given) for article in ("", "a ", "the "))


def _things_are_right(fields: Fields, given: str) -> bool:
    first, second = (PURPOSES[fields[slot]] for slot in "vw")
    pairs = ((first, second), (second, first))
    return any(
        same_text(f"{article}{left} and {article}{right}", given)
        for left, right in pairs
        for article in ("", "a ", "the ")
    )


COMMON_SENSE_EASY = (
    Form(
        (
            "{p} wants to {v} in the {k}. What does {p} need?",
            "In the {k} {p} wants to {v}. What does {p} need?",
            "What does {p} need to {v} in the {k}?",
        ),
        {"p": NAMES, "v": tuple(PURPOSES), "k": PLACES},
        _need,
        check=_thing_is_right,
    ),
)
COMMON_SENSE_HARD = (
    Form(
        ("{p} wants to {v}. Which helps, a {x} or a {y}?",),
        {"p": NAMES, "v": tuple(PURPOSES), "x": OBJECTS, "y": OBJECTS},
        _need,
        lambda fields: fields["x"] != fields["y"] and PURPOSES[fields["v"]] in (fields["x"], fields["y"]),
        _thing_is_right,
    ),
    Form(
        ("{p} wants to {v} and {q} wants to {w}. What do they need?",),
        {"p": NAMES, "q": NAMES, "v": tuple(PURPOSES), "w": tuple(PURPOSES)},
        _needs,
        lambda fields: fields["p"] != fields["q"] and fields["v"] != fields["w"],
        _things_are_right,
    ),
)
