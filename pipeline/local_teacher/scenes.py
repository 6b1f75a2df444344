"""Scenes before a micro-domain question, so that no two of many thousands are near duplicates.

The micro-domains hold few questions by design, 1,600 to 20,000 a cell, and those are near copies of each
other. A scene of two or three sentences, a blank line after it, makes each text its own; what is asked, and
so the answer, stays that of the micro question behind it.
"""

from __future__ import annotations

import random
import re

from pipeline.local_teacher import scene_words as words

_GAP = "\n\n"
_NUMBERS = tuple(str(number) for number in range(3, 400))
_DATES = tuple(str(number) for number in range(1, 29))
_TIMES = tuple(f"{hour}:{minute:02d}" for hour in range(5, 23) for minute in range(0, 60, 5))
_SLOTS = {
    "person": words.PEOPLE,
    "other": words.OTHERS,
    "town": words.TOWNS,
    "street": words.STREETS,
    "trade": words.TRADES,
    "things": words.THINGS,
    "goods": words.GOODS,
    "kind": words.QUALITIES,
    "building": words.BUILDINGS,
    "event": words.EVENTS,
    "vehicle": words.VEHICLES,
    "weather": words.WEATHERS,
    "day": words.DAYS,
    "month": words.MONTHS,
    "n": _NUMBERS,
    "m": _NUMBERS,
    "date": _DATES,
    "time": _TIMES,
}

_OPENINGS = (
    "On {month} {date} {person} the {trade} brought {n} {kind} {things} and {m} {goods} to {town}.",
    "{person} opened a stall on {street} at {time} and laid out {n} {things} beside {m} {kind} {goods}.",
    "When the {vehicle} from {town} stopped at {time}, {person} took {n} {kind} {things} to the {building}.",
    "In {month} the {trade} of {town} missed {n} {things} and asked {person} about {m} {kind} {goods}.",
    "The {trade} from {town} paid {person} {n} crowns for {m} {kind} {things} in {month}.",
    "Before the {event} in {town}, {person} stored {n} {kind} {things} in the {building} on {street}.",
    "It was {weather} in {town} that {day}, and {person} needed {n} {kind} {things} for the {event}.",
    "At {time} the {building} on {street} was full of {kind} {things}, and {person} counted {n} of them.",
    "{person} wrote to the {trade} in {town} that {n} {kind} {things} had left by {vehicle} in {month}.",
    "For the {event} of {town} the {trade} ordered {n} {things}, and {person} added {m} {kind} {goods}.",
    "Nobody in {town} knew why {person} kept {n} {kind} {things} above the {building} until {month} {date}.",
    "{person}, once {trade} in {town}, sold {n} {things} on {street} for {m} crowns.",
)
_MIDDLES = (
    "{other} watched from the {building} and wrote down {m} {kind} {goods}.",
    "A {vehicle} with {m} {goods} for {other} was late, since {street} was closed for the {event}.",
    "{other} and the {trade} shared {m} {kind} {goods}, but left the {things} in the {building}.",
    "By {time} {other} had packed {n} {goods} into {m} {kind} {things}.",
    "The {building} gave {other} {n} {goods} on {day} and asked for {m} {things} in return.",
    "Later {other} found {m} {kind} {goods} behind the {building} and told the {trade}.",
    "It was {weather} on {street}, so {other} covered the {kind} {goods} with {m} {things}.",
    "The {trade} doubted it, yet {other} had seen {n} {goods} on the {vehicle} to {town}.",
    "{other} arrived from {town} on {day} with {m} {kind} {goods} and no {things} at all.",
    "Near {street} {other} swapped {n} {kind} {goods} for a {vehicle} that the {trade} had mended.",
    "Between {month} and the {event}, {other} lent the {building} {m} {kind} {goods}.",
    "Each of the {n} {goods} that {other} kept on {street} bore the mark of the {building}.",
)
_CLOSINGS = (
    "The {event} began at {time} all the same.",
    "By {month} {date} only {n} {kind} {goods} were left.",
    "That {day} the {trade} from {town} laughed about the {kind} {things}.",
    "Nothing else left the {building} before {time}.",
    "The {vehicle} went on to {town} without the {things}.",
    "It stayed {weather} until {month} {date}.",
    "The {trade} on {street} still speaks of the {kind} {goods}.",
    "All {n} {things} came back by {vehicle} in {month}.",
)

_Sentence = tuple[str | tuple[str, ...], ...]
"""Fixed texts and, between them, the words that a slot chooses from."""


def write_scene(rng: random.Random) -> str:
    """Return two sentences, or three in half of the cases, of random people, places, things and numbers."""
    parts = [rng.choice(_OPENING_PARTS), rng.choice(_MIDDLE_PARTS)]
    if rng.random() < 0.5:
        parts.append(rng.choice(_CLOSING_PARTS))
    return " ".join(_filled(sentence, rng) for sentence in parts)


def with_scene(question: str, rng: random.Random) -> str:
    """Return the question behind a new scene and a blank line."""
    return f"{write_scene(rng)}{_GAP}{question}"


def behind_scene(text: str) -> str:
    """Return what stands behind the last blank line, the whole text where there is none."""
    return text.rpartition(_GAP)[2].strip()


def _filled(sentence: _Sentence, rng: random.Random) -> str:
    draw = rng.random  # three times as fast as choice; no list here is long enough for its bias to matter
    return "".join(part if isinstance(part, str) else part[int(draw() * len(part))] for part in sentence)


def _parsed(template: str) -> _Sentence:
    pieces = re.split(r"\{(\w+)\}", template)
    return tuple(_SLOTS[piece] if at % 2 else piece for at, piece in enumerate(pieces))


_OPENING_PARTS = tuple(map(_parsed, _OPENINGS))
_MIDDLE_PARTS = tuple(map(_parsed, _MIDDLES))
_CLOSING_PARTS = tuple(map(_parsed, _CLOSINGS))
