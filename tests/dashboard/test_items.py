"""Items of evidence, found by duckdb: against what Python finds in the same rows."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogumi.errors import RunError
from cogumi.evidence import EvidenceFile, EvidenceKey, Record
from cogumi.evidence_parts import COLUMNS
from dashboard import items_export
from dashboard.items import PAGE_ROWS, PREVIEW, Answer, Change, Filters, Items
from dashboard.items_export import export

PROTOCOL = {"items": "i", "order": "o", "family": "f", "backend": "hf"}
N = 130
LONG = "long line " * 110_000
"""A line of a megabyte."""
NASTY = {
    3: "<script>alert('x')</script>",
    4: "a\0b",
    5: "\u202edlrow olleh\u202c שלום",
    6: LONG,
    7: '=HYPERLINK("http://example.test")',
    8: "100% .* [a-z]+ \\d $1 'quoted' \"double\"; DROP TABLE x; --",
    9: "",
    10: "ÄÖÜ straße",
}


def record(position: int, *, shift: int = 0) -> Record:
    score = (0.0, 1.0, 0.5)[(position * 7 + shift * position // 3) % 3]
    return Record(
        position=position,
        item_id=f"item-{position * 37 % 1000:03d}/{position}",
        domain=("math", "coding")[position % 2],
        score=score,
        finish_reason="length" if position % 11 == 0 else "stop",
        prompt_tokens=position,
        completion_tokens=(position * 53) % 97,
        seconds=((position * 31) % 89) / 10,
        cost_usd=0.0,
        prompt=f"Question {position}?",
        output=NASTY.get(position, f"answer {position} of {shift}"),
        details={"exact": score},
    )


def evidence(
    root: Path, artifact: str, records: list[Record], *, total: int = N, blocks: int = 1
) -> EvidenceFile:
    """Record in several parts; what is not whole stays in parts."""
    file = EvidenceFile(root, EvidenceKey(artifact, "made/up", PROTOCOL))
    size = -(-len(records) // blocks)
    for start in range(0, len(records), size):
        file.append(records[start : start + size], n_total=total, facts={})
    return file


@pytest.fixture(scope="module")
def own() -> list[Record]:
    return [record(position) for position in range(N)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, own: list[Record]) -> tuple[EvidenceFile, EvidenceFile]:
    # A folder whose name is a pattern to duckdb.
    root = tmp_path_factory.mktemp("items") / "a[b]*?c" / "evidence"
    others = [record(position, shift=1) for position in range(100)]
    return evidence(root, "own", own), evidence(root, "other", others, blocks=4)


@pytest.fixture(scope="module")
def items(files: tuple[EvidenceFile, EvidenceFile]) -> Items:
    return Items(*files)


def found(items: Items, filters: Filters) -> list[int]:
    """Return the positions on all pages, and check that the pages tell the same total."""
    positions: list[int] = []
    while True:
        page = items.page(filters, len(positions))
        positions += [answer.position for answer, _ in page.rows]
        if len(positions) >= page.total:
            return positions


def test_pages_are_the_committed_order(items: Items, own: list[Record]) -> None:
    first, second = items.page(Filters()), items.page(Filters(), PAGE_ROWS)
    assert first.total == second.total == N
    assert [answer.item_id for answer, _ in first.rows + second.rows] == [one.item_id for one in own[:100]]
    assert found(items, Filters()) == list(range(N))
    # Behind the last item there is the first page.
    assert items.page(Filters(), 5_000).rows == first.rows


@pytest.mark.parametrize(
    ("filters", "fits"),
    [
        (Filters(domain="coding"), lambda one: one.domain == "coding"),
        (Filters(verdict="right"), lambda one: one.score == 1),
        (Filters(verdict="wrong"), lambda one: one.score == 0),
        (Filters(verdict="partly"), lambda one: one.score == 0.5),
        (
            Filters(reason="length", verdict="wrong"),
            lambda one: one.finish_reason == "length" and one.score == 0,
        ),
        (Filters(domain="no such domain' OR '1'='1"), lambda one: False),
    ],
)
def test_filters(items: Items, own: list[Record], filters: Filters, fits: Callable[[Record], bool]) -> None:
    assert found(items, filters) == [one.position for one in own if fits(one)]


PLAIN = ["answer 12", "QUESTION 7", "ESTION 1", "<script>", "a\0b", "שלום", "äöü", "\ud800", "long line long"]
PATTERNS = [".*", "[a-z]+", "\\d", "%", "_", "(?i)x", "'quoted' \"double\"; DROP"]


@pytest.mark.parametrize("text", [*PLAIN, *PATTERNS])
def test_text_is_a_plain_substring_in_any_case(items: Items, own: list[Record], text: str) -> None:
    wanted = text.lower()
    fitting = [one.position for one in own if wanted in one.prompt.lower() or wanted in one.output.lower()]
    assert found(items, Filters(text=text)) == fitting


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(codec="ascii"), min_size=1, max_size=6))
def test_no_text_is_a_pattern(items: Items, own: list[Record], text: str) -> None:
    wanted = text.lower()
    fitting = sum(wanted in one.prompt.lower() or wanted in one.output.lower() for one in own)
    assert items.count(Filters(text=text)) == fitting


@pytest.mark.parametrize(
    ("sort", "key"),
    [
        ("id", lambda one: one.item_id),
        ("score", lambda one: one.score),
        ("tokens", lambda one: one.completion_tokens),
        ("seconds", lambda one: one.seconds),
    ],
)
@pytest.mark.parametrize("descending", [False, True])
def test_sorts(
    items: Items, own: list[Record], sort: str, key: Callable[[Record], Any], descending: bool
) -> None:
    # Equal keys keep the committed order, up and down.
    ordered = sorted(own, key=lambda one: one.position)
    ordered.sort(key=key, reverse=descending)
    filters = Filters(sort=sort, descending=descending)  # type: ignore[arg-type]
    assert found(items, filters) == [one.position for one in ordered]


def test_differences_to_the_answers_beside(items: Items, own: list[Record]) -> None:
    scores = [(one.position, one.score, record(one.position, shift=1).score) for one in own[:100]]
    assert found(items, Filters(change="differs")) == [at for at, mine, other in scores if mine != other]
    assert found(items, Filters(change="lost")) == [at for at, mine, other in scores if mine < other]
    assert found(items, Filters(change="gained")) == [at for at, mine, other in scores if mine > other]
    most = max(scores, key=lambda row: (row[1] - row[2], -row[0]))[0]
    assert found(items, Filters(sort="difference", descending=True))[0] == most
    # What the other was not asked has nothing beside it, and no difference.
    assert items.answers([99, 100], None)[0][1] is not None
    assert items.answers([99, 100], None)[1][1] is None


def test_without_answers_beside_nothing_differs(files: tuple[EvidenceFile, EvidenceFile]) -> None:
    alone = Items(files[0])
    assert alone.page(Filters(change="differs")).total == 0
    assert alone.count(Filters(sort="difference")) == 0
    assert alone.page(Filters()).rows[0][1] is None


def test_one_item_is_whole_and_a_table_is_not(items: Items, own: list[Record]) -> None:
    answer, beside = items.item(own[6].item_id) or pytest.fail("not found")
    assert answer.output == LONG
    assert beside is not None
    assert isinstance(beside, Answer)
    assert len(items.page(Filters()).rows[6][0].output) < 1000
    assert items.item("no such item") is None
    assert items.item("\ud800") is None


def test_neighbours_are_those_of_the_list(items: Items, own: list[Record]) -> None:
    filters = Filters(verdict="wrong", sort="seconds", descending=True)
    listed = found(items, filters)
    at = listed[7]
    place = items.place(filters, at)
    assert place is not None
    assert place.rank == 8
    assert (place.previous, place.following) == (own[listed[6]].item_id, own[listed[8]].item_id)
    first = items.place(filters, listed[0])
    assert first is not None
    assert first.previous is None
    right = next(one.position for one in own if one.score == 1)
    assert items.place(filters, right) is None


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("change", ["", "lost"])
@pytest.mark.parametrize("text", ["a", "no such text"])
def test_the_first_page_of_a_search_is_that_of_all_its_hits(
    items: Items, text: str, change: Change, descending: bool
) -> None:
    wanted = Filters(text=text, change=change, descending=descending)
    page = items.page(wanted)
    fitting = items.positions(wanted, 1_000_000)
    assert page.total == len(fitting) == items.count(wanted)
    assert list(page.rows) == items.answers(fitting[:PAGE_ROWS], PREVIEW)
    assert (text == "a") == bool(page.rows)


def test_a_search_in_differences_to_nothing_finds_nothing(files: tuple[EvidenceFile, EvidenceFile]) -> None:
    page = Items(files[0]).page(Filters(text="a", change="differs"))
    assert (page.total, page.rows) == (0, ())


def test_tally_and_decoding(items: Items, files: tuple[EvidenceFile, EvidenceFile]) -> None:
    assert items.tally("domain") == {"coding": 65, "math": 65}
    assert items.tally("finish_reason") == {"length": 12, "stop": 118}
    ours, theirs = items.decoding(70), files[0].decoding(70)
    assert (ours.items, ours.completion_tokens) == (theirs.items, theirs.completion_tokens)
    assert ours.seconds == pytest.approx(theirs.seconds)


def test_only_the_known_prefix_counts(tmp_path: Path, own: list[Record]) -> None:
    file = EvidenceFile(tmp_path, EvidenceKey("a", "t", PROTOCOL))
    assert Items(file).page(Filters()).total == 0
    assert Items(file).tally("domain") == {}
    file.append(own[:40], n_total=N, facts={})
    file.append(own[60:80], n_total=N, facts={})
    items = Items(file)
    assert found(items, Filters()) == list(range(40))
    assert items.item(own[61].item_id) is None
    # A part that holds again what another one holds, as two shards may leave it.
    whole = pa.concat_tables([pq.read_table(path) for path in sorted(file.folder.glob("part-*.parquet"))])
    double = whole.slice(30, 10)
    extra = EvidenceFile(tmp_path, EvidenceKey("b", "t", PROTOCOL))
    extra.append(own[40:60], n_total=N, facts={})
    more = pa.concat_tables([double, pq.read_table(next(extra.folder.glob("part-*.parquet")))])
    pq.write_table(more, file.folder / "part-00000030.parquet")
    assert found(items, Filters()) == list(range(80))


def test_parts_that_are_joined_meanwhile_are_read_again(
    tmp_path: Path, own: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = evidence(tmp_path, "a", own[:-1], blocks=3)
    stale = file.prefix()
    file.append(own[-1:], n_total=N, facts={})
    answers = iter([stale])
    real = EvidenceFile.prefix
    monkeypatch.setattr(EvidenceFile, "prefix", lambda self: next(answers, None) or real(self))
    assert Items(file).page(Filters()).total == N


@pytest.mark.parametrize("harm", ["cut", "junk", "middle", "column", "empty"])
def test_a_broken_part_is_named(tmp_path: Path, own: list[Record], harm: str) -> None:
    file = evidence(tmp_path, "a", [one for one in own if one.position < 6], blocks=2)
    part = sorted(file.folder.glob("part-*.parquet"))[1]
    content = bytearray(part.read_bytes())
    if harm == "cut":
        part.write_bytes(content[: len(content) // 2])
    elif harm == "junk":
        part.write_bytes(os.urandom(2_000))
    elif harm == "middle":
        content[20 : len(content) // 2] = b"\xff" * (len(content) // 2 - 20)
        part.write_bytes(content)
    elif harm == "column":
        pq.write_table(pq.read_table(part).drop(["output"]), part)
    else:
        part.write_bytes(b"")
    with pytest.raises(RunError, match=r"part-00000003\.parquet"):
        Items(EvidenceFile(tmp_path, file.key)).page(Filters())


def test_broken_answers_beside_are_named(tmp_path: Path, own: list[Record]) -> None:
    mine, other = evidence(tmp_path, "a", own[:9]), evidence(tmp_path, "b", own[:9])
    next(other.folder.glob("*.parquet")).write_bytes(b"PAR1 and no more")
    with pytest.raises(RunError, match=f"{other.folder.parent.parent.name}.*broken"):
        Items(mine, other).page(Filters())


def test_evidence_that_is_gone_is_said(
    tmp_path: Path, own: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = evidence(tmp_path, "a", own[:9])
    stale = file.prefix()
    shutil.rmtree(file.folder)
    monkeypatch.setattr(EvidenceFile, "prefix", lambda self: stale)
    with pytest.raises(RunError, match="gone"):
        Items(file).page(Filters())


# Files --------------------------------------------------------------------------------------------


def rows_of(content: bytes) -> list[list[str]]:
    csv.field_size_limit(10_000_000)
    return list(csv.reader(io.StringIO(content.decode())))


def test_parquet_is_exact(items: Items, own: list[Record]) -> None:
    table = pq.read_table(io.BytesIO(export(items, Filters(domain="coding"), "parquet")))
    assert table.column_names[:12] == list(COLUMNS)
    wanted = [one for one in own if one.domain == "coding"]
    assert table["output"].to_pylist() == [one.output for one in wanted]
    assert table["score"].to_pylist() == [one.score for one in wanted]
    assert table["beside_output"].to_pylist()[-1] is None
    assert b"cut" not in (table.schema.metadata or {})


def test_csv_is_for_spreadsheets(items: Items) -> None:
    header, *rows = rows_of(export(items, Filters(), "csv"))
    assert header[:3] == ["position", "item_id", "domain"]
    assert len(rows) == N
    output = header.index("output")
    assert rows[7][output].startswith("'=HYPERLINK")
    assert rows[4][output] == "a␀b"
    assert len(rows[6][output]) == 32_767


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_files_are_bounded_and_say_so(items: Items, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(items_export, "MOST_ROWS", 20)
    content = export(items, Filters(sort="seconds"), form)  # type: ignore[arg-type]
    if form == "csv":
        assert rows_of(content)[-1] == [f"cut: 20 of {N} items"]
    else:
        table = pq.read_table(io.BytesIO(content))
        assert table.num_rows == 20
        assert (table.schema.metadata or {})[b"cut"] == f"cut: 20 of {N} items".encode()
    monkeypatch.setattr(items_export, "MOST_BYTES", 1_000_000)
    assert b"cut: 6 of" in export(items, Filters(), "csv")


def test_a_filter_that_nothing_fits_makes_an_empty_file(items: Items) -> None:
    assert len(rows_of(export(items, Filters(text="no such text"), "csv"))) == 1
    assert pq.read_table(io.BytesIO(export(items, Filters(text="no such text"), "parquet"))).num_rows == 0
