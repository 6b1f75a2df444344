"""Blinding: names of models and their makers are taken out of answers, and nothing else of them changes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

STAND_IN = "the assistant"

_ALWAYS = (
    "chatgpt", "gpt", "smollm", "qwen", "mixtral", "deepseek", "gemma", "cogumi", "openai", "anthropic",
    "mistralai", "mistral ai", "meta ai", "google deepmind", "deepmind", "hugging face", "huggingface",
    "xai", "grok",
)  # fmt: skip
"""Words that mean nothing else, however they are written."""
_CAPITAL = ("claude", "llama", "gemini", "mistral")
"""Also an animal, a wind and first names: replaced where they begin with a capital, or with a version."""
_VERSION = r"(?:[-\s]?v?\d+(?:\.\d+)*[a-z]{0,2}(?![\w]))"
_SIZE = r"(?:[-\s]\d+(?:\.\d+)?[bm]\b)?"
_KIND = r"(?:-(?:instruct|chat|turbo|mini|base|it|opus|sonnet|haiku|pro|flash))*"


def _words(names: Iterable[str]) -> str:
    return "|".join(re.escape(name).replace(r"\ ", r"\s+") for name in sorted(names, key=len, reverse=True))


class Blinder:
    """Replaces the names in answers and counts what it replaced.

    ``systems``: the study's own names of systems, replaced as well where they look like a name: with a digit,
    a dash, a dot or an underscore. One that is a plain word ("subject", "ours") would be missed elsewhere.
    """

    def __init__(self, systems: Iterable[str] = ()) -> None:
        own = [name for name in systems if re.search(r"[\d\-_./]", name) and len(name) > 2]
        tail = f"{_VERSION}?{_SIZE}{_KIND}"
        known = rf"(?<![\w-])(?i:(?:{_words(_ALWAYS)}){tail})(?![\w])"
        capital = "|".join(f"(?:{name[0].upper()}(?i:{name[1:]}))" for name in _CAPITAL)
        with_version = rf"(?<![\w-])(?i:(?:{_words(_CAPITAL)}){_VERSION}{_SIZE}{_KIND})(?![\w])"
        capitals = rf"(?<![\w-])(?:{capital})(?i:{tail})(?![\w])"
        parts = [known, with_version, capitals]
        # "As an OpenAI model": the article goes with the name that it stands before.
        if own:
            parts.insert(0, rf"(?<![\w])(?i:{_words(own)})(?![\w])")
        self._names = re.compile(rf"(?:(?<![\w])(?i:an?|the)\s+)?(?P<name>{'|'.join(parts)})")
        self.replaced: Counter[str] = Counter()
        """How often each name was replaced, as it stood, in lower case."""

    def blind(self, answer: str) -> str:
        """Return the answer without names; its white space, length and markup stay otherwise."""

        def stand_in(match: re.Match[str]) -> str:
            found = match["name"]
            self.replaced[" ".join(found.lower().split())] += 1
            start = match.start()
            before = answer[:start].rstrip(" ")
            begins = not before or before[-1] in ".!?\n"
            return STAND_IN.capitalize() if begins else STAND_IN

        return self._names.sub(stand_in, answer)
