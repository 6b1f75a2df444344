"""The dashboard's colours: Okabe and Ito's set (jfly.uni-koeln.de/color), which the colour-blind tell apart.

Some of the eight are too dark for a dark page or too light for a white one; each theme leaves those out or
moves them until they stand out from the ground by 3 to 1 (WCAG 2.2, 1.4.11).
"""

from __future__ import annotations

import json

LIGHT = ("#0072B2", "#D55E00", "#00835F", "#A8518A", "#8A6100", "#2A7FB0", "#333333")
"""Colours of series on a light ground, in the order in which they are used."""
DARK = ("#56B4E9", "#E69F00", "#1FC49A", "#E39AC4", "#F0E442", "#FF8A4C", "#D9D9D9")
"""The same on a dark ground."""

_COLOURS = {
    "light": {
        "primaryColor": "#00629B",
        "backgroundColor": "#FFFFFF",
        "secondaryBackgroundColor": "#F2F4F7",
        "textColor": "#0B0E12",
        "linkColor": "#00558A",
        "borderColor": "#8A929C",
    },
    "dark": {
        "primaryColor": "#1C76AE",
        "backgroundColor": "#14171B",
        "secondaryBackgroundColor": "#1F242A",
        "textColor": "#EDEFF2",
        "linkColor": "#7CC4F0",
        "borderColor": "#6F7883",
    },
}


def palette(dark: bool) -> tuple[str, ...]:
    """Return the colours of series for one of the two themes."""
    return DARK if dark else LIGHT


def options() -> dict[str, str]:
    """Return Streamlit's options for both themes; which one is shown follows the browser."""
    found = {"theme.baseFontSize": "16", "theme.linkUnderline": "true", "theme.showWidgetBorder": "true"}
    for name, colours in _COLOURS.items():
        for option, colour in colours.items():
            found[f"theme.{name}.{option}"] = colour
        found[f"theme.{name}.chartCategoricalColors"] = json.dumps(palette(name == "dark"))
    return found
