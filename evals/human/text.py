"""Texts of strangers made storable: what UTF-8, PostgreSQL or a terminal cannot take is replaced."""

from __future__ import annotations

import re

_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def harmless(text: str, most: int | None = None) -> str:
    """Return the text with one kind of line end, control characters and lone surrogates replaced, and cut."""
    return _UNFIT.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))[:most]


def unfit(text: str) -> str | None:
    """Return how the first character that cannot be stored is written (``U+0000``), or None."""
    found = _UNFIT.search(text.replace("\r", "\n"))
    return f"U+{ord(found[0]):04X}" if found else None
