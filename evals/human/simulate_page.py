"""What a simulated rater sees of a page: its forms, and the texts that carry an id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import urlsplit

_VOID = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
)


@dataclass(slots=True)
class Form:
    """One form: where it goes and what it sends as it stands."""

    action: str
    fields: dict[str, str] = field(default_factory=dict)
    """Values of hidden and text fields, and of those boxes and buttons that are checked."""
    choices: dict[str, list[str]] = field(default_factory=dict)
    """Values of radio buttons and check boxes, checked or not."""

    def has(self, name: str) -> bool:
        """Tell whether the form has a field of this name."""
        return name in self.fields or name in self.choices

    def filled(self, **values: str) -> dict[str, str]:
        """Return what is sent when these fields are filled in; an empty value takes the field away."""
        return {name: value for name, value in {**self.fields, **values}.items() if value != ""}


@dataclass(frozen=True, slots=True)
class Page:
    """A page as it was answered."""

    path: str
    status: int
    forms: tuple[Form, ...]
    texts: Mapping[str, str]
    """Text content of each element that has an id."""

    @property
    def position(self) -> int | None:
        """The item that the page shows; None where it shows none."""
        head, _, number = self.path.rpartition("/")
        return int(number) if head == "/item" and number.isdigit() else None

    def form(self, name: str, action: str | None = None) -> Form | None:
        """Return the form with a field of this name, and this action where one is named."""
        found = (form for form in self.forms if form.has(name) and action in (None, form.action))
        return next(found, None)


def read_page(url: str, status: int, html: str) -> Page:
    """Read an HTML page."""
    path = urlsplit(url).path
    reader = _Reader(path)
    reader.feed(html)
    reader.close()
    return Page(path, status, tuple(reader.forms), {name: "".join(t) for name, t in reader.texts.items()})


class _Reader(HTMLParser):
    def __init__(self, path: str) -> None:
        super().__init__(convert_charrefs=True)
        self._path = path
        self._open: list[tuple[str, str | None]] = []
        self._form: Form | None = None
        self._area: str | None = None
        self._select: str | None = None
        self.forms: list[Form] = []
        self.texts: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open an element."""
        named = {name: value or "" for name, value in attrs}
        if named.get("id"):
            self.texts.setdefault(named["id"], [])
        if tag not in _VOID:
            self._open.append((tag, named.get("id") or None))
        if tag == "form":
            self._form = Form(urlsplit(named.get("action", "")).path or self._path)
            self.forms.append(self._form)
        elif tag in ("input", "textarea", "select", "option") and self._form is not None:
            self._field(self._form, tag, named)

    def _field(self, form: Form, tag: str, named: dict[str, str]) -> None:
        name, kind = named.get("name", ""), named.get("type", "text")
        if tag == "option" and self._select is not None:
            form.choices[self._select].append(named.get("value", ""))
            if "selected" in named or self._select not in form.fields:
                form.fields[self._select] = named.get("value", "")
        elif not name:
            return
        elif tag == "textarea":
            self._area = name
            form.fields[name] = ""
        elif tag == "select":
            self._select = name
            form.choices.setdefault(name, [])
        elif kind in ("radio", "checkbox"):
            value = named.get("value") or "on"
            form.choices.setdefault(name, []).append(value)
            if "checked" in named:
                form.fields[name] = value
        elif kind not in ("submit", "button", "image", "reset"):
            form.fields[name] = named.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        """Close an element, and what was left open inside."""
        if tag == "form":
            self._form = None
        elif tag == "textarea" and self._area is not None and self.forms:
            # HTML drops the line break that directly follows the opening tag.
            form = self.forms[-1]
            form.fields[self._area] = form.fields[self._area].removeprefix("\n")
            self._area = None
        elif tag == "select":
            self._select = None
        if any(name == tag for name, _ in self._open):
            while self._open.pop()[0] != tag:
                pass

    def handle_data(self, data: str) -> None:
        """Keep text for every open element that has an id."""
        if self._area is not None and self._form is not None:
            self._form.fields[self._area] += data
        for _, name in self._open:
            if name is not None:
                self.texts[name].append(data)
