"""A verdict as HTML that stands alone: inline style, light and dark, no script, nothing loaded."""

from __future__ import annotations

from html import escape

from cogumi.verdict import Verdict
from gates.render import claim
from gates.verdicts import CriterionVerdict, GateVerdict

_STYLE = """
.cogumi-gate { --ink: #1c2330; --soft: #5b6473; --line: #d9dee7; --paper: #ffffff; --good: #12733c;
  --bad: #b3261e; --open: #8a5a00; --odd: #6b3fa0; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, sans-serif; padding: 1rem 1.25rem; border: 1px solid var(--line);
  border-radius: 10px; }
@media (prefers-color-scheme: dark) { .cogumi-gate { --ink: #e6e9ef; --soft: #a3abba; --line: #343b48;
  --paper: #161a22; --good: #5fd08d; --bad: #ff8a80; --open: #f0c05a; --odd: #c9a5f5; } }
.cogumi-gate h2 { margin: 0 0 .25rem; font-size: 1.15rem; }
.cogumi-gate p { margin: 0 0 .75rem; color: var(--soft); overflow-wrap: anywhere; }
.cogumi-gate table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
.cogumi-gate th, .cogumi-gate td { text-align: left; vertical-align: top; padding: .4rem .6rem .4rem 0;
  border-top: 1px solid var(--line); }
.cogumi-gate th { color: var(--soft); font-weight: 600; border-top: 0; }
.cogumi-gate .note { color: var(--soft); font-size: .9em; }
.cogumi-gate b.pass { color: var(--good); }
.cogumi-gate b.fail, .cogumi-gate b.error { color: var(--bad); }
.cogumi-gate b.undecided, .cogumi-gate b.budget { color: var(--open); }
.cogumi-gate b.infeasible { color: var(--odd); }
"""


def html(verdict: GateVerdict, *, style: bool = True) -> str:
    """Return a fragment with its own style; ``style=False`` where another fragment on the page brought it."""
    head = f"<style>{_STYLE}</style>\n" if style else ""
    facts = [f"artifact {escape(verdict.artifact)}"]
    facts += [f"run {escape(verdict.run)}"] if verdict.run else []
    facts += [f"attempt {verdict.attempt}"] if verdict.attempt else []
    facts += [escape(f"{verdict.choice}, without {', '.join(verdict.left_out)}")] if verdict.left_out else []
    title = f"{escape(verdict.title)}<br>" if verdict.title else ""
    rows = "\n".join(_row(criterion) for criterion in verdict.criteria)
    return (
        f'{head}<section class="cogumi-gate">\n'
        f"<h2>{escape(verdict.gate)}: {_badge(verdict.verdict)}</h2>\n"
        f"<p>{title}{' · '.join(facts)}</p>\n"
        "<table>\n<thead><tr><th>criterion</th><th>verdict</th><th>found</th><th>items</th>"
        f"<th>reference</th></tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</section>\n"
    )


def _row(criterion: CriterionVerdict) -> str:
    kind = ", ".join(filter(None, (criterion.reference_kind, criterion.simulated_part)))
    reference = escape(criterion.reference or "")
    reference += f'<br><span class="note">{escape(kind)}</span>' if kind else ""
    items = "exact" if criterion.alpha is None else ""
    if criterion.alpha is not None and criterion.n_total:
        attempt = f", attempt {criterion.attempt}" if criterion.attempt else ""
        items = f"{criterion.n_used:,} of {criterion.n_total:,}"
        items += f'<br><span class="note">alpha {criterion.alpha:.3g}{attempt}</span>'
    note = f'<br><span class="note">{escape(criterion.note)}</span>' if criterion.note else ""
    found = escape(claim(criterion)) + note
    cells = (escape(criterion.id), _badge(criterion.verdict), found, items, reference)
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _badge(verdict: Verdict) -> str:
    return f'<b class="{verdict.value.lower()}">{verdict.value}</b>'
