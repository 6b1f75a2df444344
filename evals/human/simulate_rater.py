"""One simulated rater before a running server: links, forms, cookies and keys, as a browser has them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from cogumi.errors import RunError
from evals.human.simulate_model import Mind, Seen
from evals.human.simulate_page import Form, Page, read_page

if TYPE_CHECKING:
    import httpx

    from evals.human.plan import StudyPlan

Ending = Literal["finished", "abandoned", "refused", "closed"]
"""``refused``: no slot was free; ``closed``: the study was closed under the rater's hands."""

_PATIENCE_S = 60.0
_DRAFT_EVERY = 4
"""Each so many items a draft is saved before the rating is sent, as autosave does."""
_AGAIN = (429, 502, 503, 504)
# What a page may show in place of a character that cannot be shown, and what is left out in comparing.
_STAND_INS = {0xFFFD: None, **dict.fromkeys(range(0x2400, 0x2427))}


class Texts:
    """What a simulated rater can know of the texts: which answer belongs to a prompt."""

    def __init__(self, plan: StudyPlan) -> None:
        self.items = plan.length
        self.practice = plan.practice
        self._answers = {
            squeezed(task.prompt): squeezed(task.answers[plan.subject])
            for task in plan.tasks
            if plan.subject in task.answers
        }

    def seen(self, page: Page) -> Seen:
        """Return what stands on an item's page; an answer that is not the judged system's own is not good."""
        prompt, answer = squeezed(page.texts.get("prompt", "")), squeezed(page.texts.get("answer", ""))
        return Seen(prompt, answer, self._answers.get(prompt, answer) == answer)

    def subject(self, page: Page) -> str:
        """Return the judged system's answer to the prompt that the page shows, empty for an unknown one."""
        return self._answers.get(squeezed(page.texts.get("prompt", "")), "")


def squeezed(text: str) -> str:
    """Return a text without what HTML does not keep: kinds of white space, control characters."""
    shown = "".join(one for one in text.translate(_STAND_INS) if one.isprintable() or one.isspace())
    return " ".join(shown.split())


@dataclass
class Told:
    """What all raters of a simulation met, counted."""

    items: int = 0
    """Items rated, practice among them."""
    statuses: Counter[int] = field(default_factory=Counter)
    retries: int = 0
    replayed: int = 0
    """Second copies of a submission that the server told apart."""
    drafts: int = 0
    corrections: int = 0
    pages_s: list[float] = field(default_factory=list)
    submissions_s: list[float] = field(default_factory=list)
    step: Callable[[], None] = lambda: None
    """Called after each item."""


class SimulatedRater:
    """Walks from its link to the thanks page; every rating goes through the form that a person would send.

    Raises ``RunError`` with one line when the server answers what a rater cannot go on from.
    """

    def __init__(self, name: str, client: httpx.AsyncClient, mind: Mind, texts: Texts, told: Told) -> None:
        self.name = name
        self._client, self._mind, self._texts, self._told = client, mind, texts, told
        self._scores: dict[int, int] = {}
        self._done: set[int] = set()
        self._has_corrected = False

    async def enter(self, token: str) -> bool:
        """Follow the link and agree; False where no slot is free."""
        page = await self._get("/join", {"t": token})
        if page.path != "/consent":
            return self._expect(page, page.position is not None or page.path in ("/instructions", "/review"))
        form = self._form(page, "agree")
        page = await self._post(form.action, form.filled(agree="yes"))
        if page.status == 409:
            return False
        return self._expect(page, page.path != "/consent")

    async def rate(self) -> Ending:
        """Go on from wherever the server says, until the end that this rater's behaviour has."""
        page = await self._get("/")
        while page.path != "/thanks":
            if page.status == 410:
                return "closed"
            if self._mind.behaviour == "abandon":
                share = len(self._done) / self._texts.items
                if share >= self._mind.stops_after:
                    return "abandoned"
            page = await self._next(page)
        self._expect(page, page.status == 200)
        return "finished"

    async def _next(self, page: Page) -> Page:
        position = page.position
        if page.status != 200:
            raise self._lost(page)
        if position is not None and position not in self._done:
            return await self._item(page, position)
        if page.path == "/review":
            if self._mind.behaviour == "correct" and not self._has_corrected:
                await self._correct()
            form = self._form(page, "csrf", "/finish")
            return await self._post(form.action, form.filled())
        if page.path == "/instructions":
            form = self._form(page, "csrf", "/instructions")
            return await self._post(form.action, form.filled())
        raise self._lost(page)

    async def _item(self, page: Page, position: int) -> Page:
        form = self._form(page, "key")
        answer = self._answer(page, form, position)
        filled = form.filled(
            **answer,
            comment=self._mind.comment(position),
            focus_ms=str(self._mind.focus_ms(position)),
        )
        if position % _DRAFT_EVERY == 0 and self._mind.behaviour != "careless":
            draft = {name: value for name, value in filled.items() if name != "key"}
            draft["client_seq"] = str(time.time_ns() // 1_000_000)
            await self._post(f"/item/{position}/draft", draft, plain=True)
            self._told.drafts += 1
        if self._mind.behaviour == "double":
            following = await self._twice(form.action, filled)
        else:
            following = await self._post(form.action, filled)
        if following.status == 200:
            self._done.add(position)
            self._told.items += 1
            self._told.step()
        return following

    def _answer(self, page: Page, form: Form, position: int) -> dict[str, str]:
        if form.has("preference"):
            left, right = (squeezed(page.texts.get(f"answer-{side}", "")) for side in ("left", "right"))
            liked = self._mind.preference(left, right, self._texts.subject(page), position)
            return {"preference": liked}
        score = self._mind.score(self._texts.seen(page), position)
        self._scores[position] = score
        return {"score": str(score)}

    async def _twice(self, action: str, filled: Mapping[str, str]) -> Page:
        """Send the same form twice at once, as an impatient double click does; one of them is a replay."""
        sent = (self._exchange("POST", action, filled, {"Accept": "application/json"}) for _ in range(2))
        answers = await asyncio.gather(*sent)
        if any(answer.status_code != 200 for answer in answers):
            worst = max(answers, key=lambda answer: answer.status_code)
            return read_page(str(worst.url), worst.status_code, worst.text)
        self._told.replayed += sum(answer.json()["status"] == "replayed" for answer in answers)
        return await self._get("/")

    async def _correct(self) -> None:
        """Go back to one scored item and change its score."""
        scored = sorted(position for position in self._scores if position > self._texts.practice)
        position = scored[self._mind.corrects % len(scored)]
        page = await self._get(f"/item/{position}")
        form = self._form(page, "key")
        score = self._mind.corrected(self._scores[position])
        answered = await self._post(form.action, form.filled(score=str(score)))
        self._expect(answered, answered.status == 200)
        self._has_corrected = True
        self._told.corrections += 1

    # Over the wire ------------------------------------------------------------------------------------

    async def _get(self, path: str, query: Mapping[str, str] | None = None) -> Page:
        answer = await self._exchange("GET", path, query or {}, {})
        return read_page(str(answer.url), answer.status_code, answer.text)

    async def _post(self, path: str, fields: Mapping[str, str], *, plain: bool = False) -> Page:
        accept = {"Accept": "application/json"} if plain else {}
        answer = await self._exchange("POST", path, fields, accept)
        if plain:
            if answer.status_code not in (200, 410):
                raise self._lost(read_page(str(answer.url), answer.status_code, ""))
            return Page(path, answer.status_code, (), {})
        return read_page(str(answer.url), answer.status_code, answer.text)

    async def _exchange(
        self, method: str, path: str, fields: Mapping[str, str], headers: Mapping[str, str]
    ) -> httpx.Response:
        """Send until an answer comes: the same bytes, so the same key, whatever became of those before."""
        import httpx

        end, wait = time.monotonic() + _PATIENCE_S, 0.1
        sent = {"params": fields or None} if method == "GET" else {"data": fields}
        while True:
            begun, why = time.monotonic(), ""
            try:
                answer = await self._client.request(method, path, headers=headers, **sent)
            except httpx.TransportError as error:
                why = f"{type(error).__name__}: {error}"
            else:
                self._told.statuses[answer.status_code] += 1
                spent = self._told.pages_s if method == "GET" else self._told.submissions_s
                spent.append(time.monotonic() - begun)
                if answer.status_code not in _AGAIN:
                    return answer
                why = f"status {answer.status_code}"
                wait = max(wait, _seconds(answer.headers.get("Retry-After")))
            if time.monotonic() + wait > end:
                raise RunError(f"{self.name}: {method} {path}: no answer in {_PATIENCE_S:.0f} s ({why})")
            self._told.retries += 1
            await asyncio.sleep(wait)
            wait = min(2.0, wait * 2)

    def _form(self, page: Page, name: str, action: str | None = None) -> Form:
        form = page.form(name, action) if page.status == 200 else None
        if form is None:
            raise self._lost(page)
        return form

    def _expect(self, page: Page, fine: bool) -> bool:
        if not fine or page.status >= 400:
            raise self._lost(page)
        return True

    def _lost(self, page: Page) -> RunError:
        hint = " (a link that was revoked, or of another study)" if page.path == "/join" else ""
        return RunError(f"{self.name}: {page.path} answered {page.status}, from which no rater goes on{hint}")


def _seconds(header: str | None) -> float:
    return float(header) if header and header.isdigit() else 0.0
