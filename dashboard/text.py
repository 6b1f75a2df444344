"""Text that others wrote, made fit to be shown: it cannot draw, link, or pretend to be other text."""

from __future__ import annotations

import re

_LONGEST = 20_000

# What a reader cannot see, and what turns the direction of what follows (unicode.org/reports/tr9, tr36);
# U+E0000 to U+E007F are letters that nobody sees and every model reads.
_INVISIBLE = re.compile(
    "[\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\U000e0000-\U000e007f]"
)
_UNFIT = re.compile("[\x80-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_CONTROL = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: "␡"}
_LINES = str.maketrans({"\u2028": "\n", "\u2029": "\n"})

# Markup anywhere in a line, and at its start (spec.commonmark.org 0.31; GitHub's tables and strikes; $x$).
_MARKUP = re.compile(r"([\\`*_~\[\]<>&$|])")
_START = re.compile(r"^(?:([#+=-])|(\d+)([.)]))")
_DIRECTIVE = re.compile(r":(?=[A-Za-z])")
# Addresses and :names: are found in the text once more after Markdown was read; a word joiner parts them.
_JOINER = "\u2060"
_FOUND_LATER = re.compile(r":(?=//|\S*:)|@(?=\S)|\bwww(?=\.)", re.IGNORECASE)


def plain(text: str, *, longest: int = _LONGEST) -> str:
    """Return text that only reads: control characters as symbols, invisible ones named, long ones cut.

    ``longest`` is in characters of ``text``; what was cut is said at the end.
    """
    shown = text[:longest].replace("\r\n", "\n").translate(_LINES).translate(_CONTROL)
    shown = _UNFIT.sub("\ufffd", shown)
    shown = _INVISIBLE.sub(lambda match: f"⟨U+{ord(match.group()):04X}⟩", shown)
    return f"{shown}… ({len(text):,} characters, cut)" if len(text) > longest else shown


def safe(text: str) -> str:
    """Return Markdown that shows just this text, in one line: no markup, link, image, formula or icon."""
    line = _MARKUP.sub(r"\\\1", " ".join(plain(text).split()))
    line = _START.sub(lambda match: rf"\{match[1]}" if match[1] else rf"{match[2]}\{match[3]}", line)
    line = _FOUND_LATER.sub(lambda match: match.group() + _JOINER, line)
    return _DIRECTIVE.sub(r"\:", line)
