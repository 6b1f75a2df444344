"""Controls whose value stands in the address, under names that last: digests, not what a run calls them.

The address is the truth. A control writes its value there and is drawn from it, so every view has a link; a
value that is not known here is told in one line, and the default is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import streamlit as st

from dashboard import kit

_LEAST_PREFIX = 6
"""Hex digits from which on the start of a digest stands for it."""
_DIGITS = 9


def choose(
    name: str,
    label: str,
    options: Mapping[str, str],
    *,
    default: str | None = None,
    forget: Sequence[str] = (),
    help_: str | None = None,
) -> str:
    """Draw a box of ``{value: what is shown}``, at least one, for a parameter of the address; return its
    value.

    ``default``: the first by default. Choosing anew goes back to the first page of a list, and drops the
    parameters of ``forget``: what they name belongs to what was chosen before.
    """
    values = list(options)
    found = _resolve(st.query_params.get(name), values)
    if found is None:
        kit.asked(name, values)
        found = default if default in options else values[0]
    key = f"choose-{name}"
    st.session_state[key] = found
    chosen = st.selectbox(
        label,
        values,
        format_func=lambda value: kit.plain(options.get(value, value), longest=80),
        key=key,
        on_change=_take,
        args=(name, key, forget),
        help=help_,
    )
    return str(chosen)


def choose_some(
    name: str,
    label: str,
    options: Mapping[str, str],
    *,
    default: Sequence[str],
    most: int,
    passed_over: Sequence[str] = (),
    forget: Sequence[str] = (),
) -> list[str]:
    """Draw a box for several of ``{value: what is shown}``; the address holds them with commas between.

    ``passed_over``: values that it may name, and that cannot be chosen now.
    """
    asked = st.query_params.get(name)
    values = list(options)
    chosen = [value for value in default if value in options]
    if asked is not None:
        told = [(one, _resolve(one, values)) for one in asked.split(",") if one and one not in passed_over]
        chosen = list(dict.fromkeys(value for _, value in told if value is not None))
        unknown = [one for one, value in told if value is None]
        if unknown:
            told_unknown = kit.safe(kit.plain(", ".join(unknown), longest=80))
            st.warning(f"The address asks for {kit.safe(name)} “{told_unknown}”, which is not here.")
    key = f"choose-{name}"
    st.session_state[key] = chosen[:most]
    return list(
        st.multiselect(
            label,
            values,
            format_func=lambda value: kit.plain(options.get(value, value), longest=80),
            key=key,
            on_change=_take,
            args=(name, key, forget),
            max_selections=most,
        )
    )


def asked_number(name: str) -> int:
    """Return the number from 1 on that the address asks for; 1 where it asks for none."""
    asked = st.query_params.get(name, "1")
    return max(1, int(asked)) if asked.isascii() and asked.isdigit() and len(asked) <= _DIGITS else 1


def number(name: str, label: str, value: int, most: int) -> None:
    """Draw a field for a number from 1 to ``most`` that the address holds; ``value``: what it is now."""
    key = f"choose-{name}"
    st.session_state[key] = min(max(value, 1), most)
    st.number_input(label, 1, most, key=key, on_change=_write, args=(name, key))


def first_page() -> None:
    """Forget the page of the list: it is another list now."""
    st.query_params.pop("page", None)


def _take(name: str, key: str, forget: Sequence[str]) -> None:
    _write(name, key)
    first_page()
    for other in forget:
        st.query_params.pop(other, None)


def _write(name: str, key: str) -> None:
    value = st.session_state[key]
    st.query_params[name] = ",".join(value) if isinstance(value, list) else str(value)


def _resolve(asked: str | None, values: Sequence[str]) -> str | None:
    if asked is None or asked in values:
        return asked
    short = asked.removeprefix("sha256:")
    fitting = [value for value in values if value.startswith(f"sha256:{short}")]
    return fitting[0] if len(short) >= _LEAST_PREFIX and len(fitting) == 1 else None
