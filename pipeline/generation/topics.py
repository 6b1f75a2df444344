"""The plan's eight domains with the topics, and the styles, that keep thousands of questions apart."""

from __future__ import annotations

from dataclasses import dataclass

DIFFICULTIES = ("easy", "hard")


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain as the question writer is told about it."""

    description: str
    topics: tuple[str, ...]


def _domain(description: str, topics: str) -> Domain:
    return Domain(description, tuple(topics.split(", ")))


DOMAINS: dict[str, Domain] = {
    "coding": _domain(
        "programming tasks that ask for code, for the result of given code, or for the mend of a bug",
        "strings, lists and arrays, dictionaries and sets, sorting and searching, recursion, dynamic "
        "programming, graphs and trees, parsing and formats, files and errors, SQL, object design, "
        "concurrency, regular expressions, numeric code, testing, shell commands",
    ),
    "math": _domain(
        "mathematics with one exact answer",
        "arithmetic, fractions and percentages, linear equations, quadratic equations, geometry, "
        "number theory, combinatorics, probability, statistics, sequences and series, functions and "
        "limits, derivatives, integrals, matrices, word problems, units and rates",
    ),
    "tool_use": _domain(
        "requests that are met by choosing one of the tools described in the question and giving the "
        "exact JSON call with its arguments",
        "weather and time, calendar, e-mail and messages, web search, files and folders, databases, "
        "calculators and units, maps and travel, shopping, home devices, code execution, translation, "
        "finance, tickets and issues, music and media, health data",
    ),
    "reasoning": _domain(
        "logical reasoning from premises that are all stated in the question",
        "syllogisms, orderings and comparisons, seating and scheduling, truth tellers and liars, "
        "cause and effect, set membership, spatial relations, family relations, counterfactuals, "
        "analogies, patterns, planning under constraints, rules and exceptions, hidden assumptions",
    ),
    "reading": _domain(
        "reading comprehension: a passage that is given in full, then one question about it",
        "science news, history, biographies, nature, technology, manuals, letters, fiction, sports "
        "reports, law and contracts, recipes, travel, business reports, dialogues",
    ),
    "summarization": _domain(
        "requests to summarise a text that is given in full, with a stated length or form",
        "news, meeting notes, e-mail threads, scientific abstracts, reviews, stories, speeches, "
        "technical documents, legal texts, interviews, forum threads, product pages, lectures",
    ),
    "common_sense": _domain(
        "everyday knowledge about people, objects and what usually happens",
        "kitchen, weather and clothes, tools and materials, animals, plants, traffic, school, work, "
        "money, health and body, feelings and manners, time and habits, physics at home",
    ),
    "instruction": _domain(
        "instructions with constraints on form or content that can be checked",
        "length limits, required words, forbidden words, lists and tables, letter case, ordering, "
        "JSON output, tone and audience, rewriting, languages, several constraints at once, "
        "step-by-step guides, titles and headings, quotations",
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
)
