"""Verdicts for people and for CI: terminal lines, Markdown and JUnit XML. ``gates.page`` has the HTML."""

from __future__ import annotations

import re
from xml.etree import ElementTree as Xml

from cogumi.verdict import Verdict
from gates.metrics import DATA_METRICS
from gates.verdicts import CriterionVerdict, GateVerdict

# GitHub refuses a step summary above 1 MiB (docs, "Workflow commands": job summaries are limited to 1MiB a
# step).
MARKDOWN_LIMIT = 1024 * 1024
_CUT = "\n\n(cut at GitHub's limit of 1 MiB; `cogumi gate --json` has everything)\n"

_STYLES = {
    Verdict.PASS: "bold green",
    Verdict.FAIL: "bold red",
    Verdict.UNDECIDED: "bold yellow",
    Verdict.INFEASIBLE: "bold magenta",
    Verdict.ERROR: "bold red",
    Verdict.BUDGET: "bold yellow",
}

# What XML 1.0 cannot hold, escaped or not.
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def text(verdict: GateVerdict, *, color: bool = False) -> str:
    """Return the lines for a terminal, the verdict of the gate last; ``color`` adds rich's markup."""
    lines = []
    for criterion in verdict.criteria:
        line = criterion_line(verdict.gate, criterion, color=color)
        if criterion.note == f"not measured: {criterion.measure}":
            lines.append(f"{line}  not measured")
            continue
        lines.append(line)
        if criterion.note:
            lines.append(_safe(f"    {criterion.note}", color))
    if verdict.left_out:
        lines.append(_safe(f"    {_left_out(verdict)}", color))
    attempt = f", attempt {verdict.attempt}" if verdict.attempt else ""
    simulated = "".join(
        f", {name}" for name in dict.fromkeys(one.simulated_part for one in verdict.criteria) if name
    )
    choice = f", {verdict.choice}" if verdict.choice else ""
    facts = f"exit {verdict.exit_code}{attempt}{simulated}{choice}"
    end = f"{verdict.gate}  {_word(verdict.verdict, color)}  ({facts})"
    return "\n".join([*lines, end + (f"  {_safe(verdict.title, color)}" if verdict.title else "")])


def criterion_line(gate: str, criterion: CriterionVerdict, *, color: bool = False) -> str:
    """Return one criterion as one line: claim, numbers, error rate, reference."""
    parts = [f"{gate}/{criterion.id}", _word(criterion.verdict, color), _safe(claim(criterion), color)]
    if criterion.alpha is not None and criterion.n_total:
        parts.append(f"n={criterion.n_used:,} of {criterion.n_total:,}")
        attempt = f" attempt {criterion.attempt}" if criterion.attempt else ""
        parts.append(f"alpha {criterion.alpha:.3g}{attempt}")
    if criterion.reference:
        kind = ", ".join(filter(None, (criterion.reference_kind, criterion.simulated_part)))
        parts.append(_safe(f"vs {criterion.reference}" + (f" ({kind})" if kind else ""), color))
    elif criterion.simulated:
        parts.append(criterion.simulated_part)
    return "  ".join(parts)


def claim(criterion: CriterionVerdict) -> str:
    """Return the numbers of a criterion: ``ratio 0.41 in [0.28, 0.58] < 0.88``."""
    # Of a data set most numbers are counts of rows: 18, not 18.00.
    told = count if criterion.measure in DATA_METRICS else number
    bar = told(criterion.bar)
    opposite = "<" if criterion.comparison == ">=" else ">"
    if criterion.value is None:
        return f"{criterion.measure}, bar {criterion.comparison} {bar}"
    found = f"{criterion.measure} {told(criterion.value)}{interval(criterion)}"
    if criterion.verdict is Verdict.PASS:
        return f"{found} {criterion.comparison} {bar}"
    if criterion.verdict is Verdict.FAIL:
        return f"{found} {opposite} {bar}"
    return f"{found}, bar {criterion.comparison} {bar}"


def interval(criterion: CriterionVerdict) -> str:
    """Return `` in [lower, upper]``, or nothing where the number is exact or unknown."""
    if criterion.lower is None and criterion.upper is None:
        return ""
    if criterion.lower == criterion.upper == criterion.value:
        return ""
    lower = "-inf" if criterion.lower is None else number(criterion.lower)
    upper = "inf" if criterion.upper is None else number(criterion.upper)
    return f" in [{lower}, {upper}]"


def count(value: float) -> str:
    """Return a whole number as one, any other as ``number`` does: 18, 60,000, 2.52."""
    return f"{value:,.0f}" if value == round(value) else number(value)


def number(value: float) -> str:
    """Return a number as people read it: 0.88, 0.003, 540,000,000."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if value != 0 and abs(value) < 0.1:
        return f"{value:.2g}"
    return f"{value:.3f}".rstrip("0").rstrip(".") if round(value, 2) != round(value, 3) else f"{value:.2f}"


def markdown(verdict: GateVerdict) -> str:
    """Return a Markdown summary, cut at GitHub's limit of 1 MiB."""
    head = f"## {verdict.gate}: {verdict.verdict.value}\n\n"
    head += f"{_cell(verdict.title)}\n\n" if verdict.title else ""
    head += f"Artifact `{_cell(verdict.artifact)}`" + (f", run `{_cell(verdict.run)}`" if verdict.run else "")
    head += f", attempt {verdict.attempt}.\n\n" if verdict.attempt else ".\n\n"
    head += f"{_cell(_left_out(verdict))}.\n\n" if verdict.left_out else ""
    columns = "| criterion | verdict | found | items | alpha | reference | note |\n" + "|---" * 7 + "|\n"
    rows = [_markdown_row(criterion) for criterion in verdict.criteria]
    document = (head + columns + "\n".join(rows) + "\n").encode()
    if len(document) <= MARKDOWN_LIMIT:
        return document.decode()
    return document[: MARKDOWN_LIMIT - len(_CUT.encode())].decode(errors="ignore") + _CUT


def junit(verdict: GateVerdict) -> str:
    """Return JUnit XML: a FAIL is a failure, UNDECIDED and BUDGET are skipped, the rest are errors.

    Criteria that the profile leaves out are skipped too. The elements are those that Jenkins and GitLab read.
    """
    tags = [_JUNIT.get(criterion.verdict) for criterion in verdict.criteria]
    tags += ["skipped"] * len(verdict.left_out)
    counts = {
        "tests": str(len(tags)),
        "failures": str(tags.count("failure")),
        "errors": str(tags.count("error")),
        "skipped": str(tags.count("skipped")),
    }
    suite = Xml.Element("testsuite", {"name": f"cogumi.{verdict.gate}", **counts, "time": "0"})
    for criterion, tag in zip(verdict.criteria, tags, strict=False):
        case = _junit_case(suite, verdict.gate, criterion.id)
        line = criterion_line(verdict.gate, criterion)
        if tag is not None:
            message = line if criterion.verdict is Verdict.FAIL or not criterion.note else criterion.note
            Xml.SubElement(case, tag, message=_xml(message), type=criterion.verdict.value).text = _xml(line)
        Xml.SubElement(case, "system-out").text = _xml("\n".join(filter(None, (line, criterion.note))))
    for name in verdict.left_out:
        case = _junit_case(suite, verdict.gate, name)
        Xml.SubElement(case, "skipped", message="left out by the profile")
    totals = {key: counts[key] for key in ("tests", "failures", "errors")}
    suites = Xml.Element("testsuites", {"name": "cogumi gate", **totals})
    suites.append(suite)
    Xml.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(suites, encoding="unicode") + "\n"


_JUNIT = {
    Verdict.FAIL: "failure",
    Verdict.UNDECIDED: "skipped",
    Verdict.BUDGET: "skipped",
    Verdict.INFEASIBLE: "error",
    Verdict.ERROR: "error",
}


def _junit_case(suite: Xml.Element, gate: str, name: str) -> Xml.Element:
    return Xml.SubElement(suite, "testcase", classname=f"cogumi.{gate}", name=name, time="0")


def _left_out(verdict: GateVerdict) -> str:
    return f"left out by the profile: {', '.join(verdict.left_out)}"


def _word(verdict: Verdict, color: bool) -> str:
    return f"[{_STYLES[verdict]}]{verdict.value}[/]" if color else verdict.value


def _safe(value: str, color: bool) -> str:
    """Keep rich from reading brackets of ours as its markup."""
    return value.replace("[", r"\[") if color else value


def _markdown_row(criterion: CriterionVerdict) -> str:
    kind = ", ".join(filter(None, (criterion.reference_kind, criterion.simulated_part)))
    reference = criterion.reference or ""
    reference += f" ({kind})" if reference and kind else kind
    items = f"{criterion.n_used:,} of {criterion.n_total:,}" if criterion.n_total else ""
    items = "exact" if criterion.alpha is None else items
    alpha = "" if criterion.alpha is None else f"{criterion.alpha:.3g}"
    cells = (criterion.id, f"**{criterion.verdict.value}**", claim(criterion), items, alpha, reference)
    return "| " + " | ".join(_cell(cell) for cell in (*cells, criterion.note)) + " |"


def _cell(value: str) -> str:
    """Escape what would break a table row or start HTML."""
    value = value.replace("|", r"\|").replace("<", "&lt;").replace(">", "&gt;")
    return value.replace("\r", " ").replace("\n", " ")


def _xml(value: str) -> str:
    return _NOT_XML.sub("?", value)
