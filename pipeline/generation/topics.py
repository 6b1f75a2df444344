"""The plan's eight domains, and the seeds that keep thousands of questions of one domain apart.

Every call of the question writer gets one topic, kind, setting and style. The four lists have lengths of
which no two share a factor, so that walking all of them one step a call meets every combination once before
the first returns (Chinese remainder theorem), and neighbouring calls differ in all four.
"""

from __future__ import annotations

from dataclasses import dataclass

DIFFICULTIES = ("easy", "hard")


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain as the question writer is told about it."""

    description: str
    topics: tuple[str, ...]
    kinds: tuple[str, ...]
    """What a question asks for, whatever its topic."""


@dataclass(frozen=True, slots=True)
class Seeds:
    """What one call of the question writer shall write about."""

    topic: str
    kind: str
    setting: str
    style: str


def _domain(description: str, topics: str, kinds: str) -> Domain:
    return Domain(description, tuple(topics.split(", ")), tuple(kinds.split(", ")))


DOMAINS: dict[str, Domain] = {
    "coding": _domain(
        "programming tasks that ask for code, for the result of given code, or for the mend of a bug",
        "strings, lists and arrays, dictionaries and sets, sorting and searching, recursion, dynamic "
        "programming, graphs and trees, parsing and formats, files and errors, SQL, object design, "
        "concurrency, regular expressions, numeric code, testing, shell commands",
        "write a function, tell the output, find the bug, complete a missing line, handle an edge case, make "
        "it faster, choose a data structure, translate between languages, write a test, explain an error "
        "message, rewrite without a library",
    ),
    "math": _domain(
        "mathematics with one exact answer",
        "arithmetic, fractions and percentages, linear equations, quadratic equations, geometry, "
        "number theory, combinatorics, probability, statistics, sequences and series, functions and "
        "limits, derivatives, integrals, matrices, word problems, units and rates",
        "compute a value, find the unknown, count the ways, compare two quantities, find the largest or "
        "smallest, find the error in a given solution, continue from a partial result, decide whether it is "
        "possible, estimate and then compute, work backwards, combine two rules",
    ),
    "tool_use": _domain(
        "requests that are met by choosing one of the tools described in the question and giving the "
        "exact JSON call with its arguments",
        "weather and time, calendar, e-mail and messages, web search, files and folders, databases, "
        "calculators and units, maps and travel, shopping, home devices, code execution, translation, "
        "finance, tickets and issues, music and media, health data",
        "one obvious tool, two similar tools, optional arguments, dates to work out, units to convert, lists "
        "as arguments, nested arguments, an enumerated value, a default to override, details spread over the "
        "request, a tool that must not be used",
    ),
    "reasoning": _domain(
        "logical reasoning from premises that are all stated in the question",
        "syllogisms, orderings and comparisons, seating and scheduling, truth tellers and liars, "
        "cause and effect, set membership, spatial relations, family relations, counterfactuals, "
        "analogies, patterns, planning under constraints, rules and exceptions, hidden assumptions",
        "what follows, what cannot be, who or which one, how many at least, find the contradiction, which "
        "premise is missing, complete the arrangement, the shortest plan, what changes if one premise falls, "
        "judge an argument, name the odd one out",
    ),
    "reading": _domain(
        "reading comprehension: a passage that is given in full, then one question about it",
        "science news, history, biographies, nature, technology, manuals, letters, fiction, sports "
        "reports, law and contracts, recipes, travel, business reports, dialogues",
        "a stated fact, the order of events, cause and effect, a number worked out from the text, what a "
        "pronoun means, the meaning of a word in context, the writer's purpose, a comparison, an exception, "
        "what the text does not say, an inference from two sentences",
    ),
    "summarization": _domain(
        "requests to summarise a text that is given in full, with a stated length or form",
        "news, meeting notes, e-mail threads, scientific abstracts, reviews, stories, speeches, "
        "technical documents, legal texts, interviews, forum threads, product pages, lectures",
        "one sentence, a limit of words, three points, a headline, decisions only, for a child, for an "
        "expert, causes and consequences, points for and against, open questions, what happens next",
    ),
    "common_sense": _domain(
        "everyday knowledge about people, objects and what usually happens",
        "kitchen, weather and clothes, tools and materials, animals, plants, traffic, school, work, "
        "money, health and body, feelings and manners, time and habits, physics at home",
        "what happens next, why someone did it, what to use instead, what is missing, what is unsafe, what "
        "comes first, where it is kept, how it feels, what cannot work, what is usual, how to notice it",
    ),
    "instruction": _domain(
        "instructions with constraints on form or content that can be checked",
        "length limits, required words, forbidden words, lists and tables, letter case, ordering, "
        "JSON output, tone and audience, rewriting, languages, several constraints at once, "
        "step-by-step guides, titles and headings, quotations",
        "write a message, describe an object, give advice, tell a short story, explain a concept, compare "
        "two things, make a plan, invent names, mend a text, answer a complaint, write a notice",
    ),
}

STYLES = (
    "plain and short",
    "from a realistic situation",
    "as a student would ask",
    "as a colleague would ask",
    "with concrete names and numbers",
    "with one unusual detail",
    "formal",
    "conversational",
    "as a customer would ask",
)

SETTINGS = (
    "a hospital", "a farm", "a city library", "a railway station", "a bakery", "a research ship",
    "a primary school", "a mountain village", "a repair shop", "a newspaper", "an airport", "a theatre",
    "a court", "a football club", "a power plant", "a family at home", "a museum", "a start-up company",
    "a bank", "a construction site", "a national park", "a harbour", "a television studio", "a restaurant",
    "a weather station",
)  # fmt: skip

_SEED_STEP = 7919
"""Calls between the beginnings of two profile seeds; a prime that is no factor of any list's length."""


def seeds_of(domain: str, call: int, seed: int) -> Seeds:
    """Return what the ``call``-th set of a domain's cell is about; ``seed`` is the profile's."""
    known = DOMAINS[domain]
    place = call + _SEED_STEP * seed
    return Seeds(
        topic=known.topics[place % len(known.topics)],
        kind=known.kinds[place % len(known.kinds)],
        setting=SETTINGS[place % len(SETTINGS)],
        style=STYLES[place % len(STYLES)],
    )
