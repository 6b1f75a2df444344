"""The data page: what the data steps made, its rows, broken files and hostile text."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogumi.errors import RunError
from dashboard import data_plots, data_rows, data_sets, data_tables
from dashboard.data_rows import COLUMNS, PAGE_ROWS, DataFile, Filters
from dashboard.data_sets import DataSets, DataStep
from dashboard.view import open_view
from pipeline.generation import STAGES
from pipeline.generation.accounts import CellAccount
from pipeline.generation.topics import DOMAINS

if TYPE_CHECKING:
    from streamlit.testing.v1 import AppTest

# pytest's importlib mode leaves test folders off the path.
sys.path.insert(0, str(Path(__file__).parent))

from data_run import ACCOUNT, QUOTAS, RUN, fill, merged
from small_dashboard import MARKUP
from small_run import Maker, criterion

Page = Callable[..., "AppTest"]
CELLS = {f"{domain}/{level}": n for domain, levels in QUOTAS.items() for level, n in levels.items()}
MERGED = "merged: training_60k_complete.parquet"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """A finished run of the data steps; only to be read."""
    maker = fill(tmp_path_factory.mktemp("data") / "workspace", simulated=("answers_easy",))
    told = criterion("leaks", "FAIL", 2.0, 0.0, comparison="<=", measure="benchmark_leaks")
    maker.verdict("phase1-data", merged(maker), told)
    return maker


@pytest.fixture
def own(run: Maker, tmp_path: Path) -> Path:
    """A copy of the run's workspace, to be spoilt."""
    return shutil.copytree(run.workspace.root, tmp_path / "workspace")


@pytest.fixture(scope="module")
def found(run: Maker) -> DataSets:
    return data_sets.data_sets(open_view(run.workspace.root, RUN))


@pytest.fixture(scope="module")
def file(found: DataSets) -> DataFile:
    return next(one for one in data_rows.data_files(found.steps) if one.label == MERGED)


def texts(app: AppTest) -> str:
    assert not app.exception
    drawn = [*app.markdown, *app.caption, *app.warning, *app.info, *app.error, *app.code]
    return "\n".join(str(one.value) for one in drawn)


# What the steps made ---------------------------------------------------------------------------------


def test_names_are_those_that_the_stages_write() -> None:
    assert {data_sets.QUESTIONS, data_sets.VALIDATE, data_sets.MERGE, *data_sets.ANSWERS} == set(STAGES)
    assert set(data_tables.FATES) | {"offered"} <= set(CellAccount().counts())
    assert sorted(DOMAINS, key=data_sets.plan_order) == list(DOMAINS)


def test_cells_have_quota_rows_and_shares(found: DataSets) -> None:
    cells = data_tables.cell_table(found).set_index("Cell")
    assert dict(found.quotas) == CELLS
    assert cells["Merged"].to_dict() == CELLS
    assert cells["Answered"].to_dict() == CELLS
    assert cells["Share of rows"].sum() == pytest.approx(1)
    assert cells["Share of trained tokens"].sum() == pytest.approx(1, abs=1e-3)
    # What 1.2 left is told, not the older account of 1.1, which knows one cell here.
    assert cells["Offered"].tolist() == [ACCOUNT.offered] * len(CELLS)
    assert cells.loc["coding/easy", "Judge dropped"] == 0.5
    assert cells["Judge dropped"].isna().sum() == len(CELLS) - 1


def test_real_and_simulated_dollars_stand_apart(found: DataSets) -> None:
    costs = data_tables.cost_table(found).set_index("Step")
    assert costs["USD simulated"].dropna().to_dict() == {"answers_easy": 0.5}
    assert costs["USD paid"].dropna().to_dict() == {"questions": 0.0, "validated": 1.25, "answers_hard": 8.0}


def test_what_was_thrown_away_is_told_with_its_share(found: DataSets) -> None:
    lost = data_tables.thrown_away(found).set_index("Thrown away")
    cells = len(CELLS)
    assert lost.loc["held out (benchmark items)", "Questions"] == ACCOUNT.leaks * cells
    assert lost.loc["duplicates", "Share"] == pytest.approx(ACCOUNT.duplicates / ACCOUNT.offered)
    assert lost.loc["dropped by the judge, under 7 of 10", "Of"] == 51
    left = data_tables.left_over(found).set_index("Check")
    assert left.loc["Questions that are there twice", "Found"] == 0
    # No benchmark was named: that is not "no leak".
    assert left["Found"].isna()["Benchmark items"] == bool(
        left.loc["Benchmark items", "Note"].startswith("no")
    )


def test_scores_are_those_judged_and_those_merged(found: DataSets) -> None:
    scores = data_tables.score_table(found)
    quality = scores[scores["Aspect"] == "quality"].set_index("Score")
    assert quality.loc[3, "Judged"] == 4
    assert quality.loc[3, "Merged"] == 0
    assert quality["Merged"].sum() == sum(CELLS.values())


def test_a_map_marks_the_cells_that_miss_their_quota(found: DataSets) -> None:
    cells = data_tables.cell_table(found)
    cells.loc[0, "Merged"] = 3
    shown = next(one for one in data_plots.known_maps(cells) if one.column == "Merged")
    plot = data_plots.cell_map(cells, shown).data[0]
    assert plot.text[0] == ["▼ 3 / 4", "✓ 6 / 6"]
    # There is no easy reading: unknown, and not 0.
    assert plot.text[2] == ["–", "✓ 2 / 2"]
    assert plot.z[2][0] is None


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_NAMES = ("rows", "cells", "quotas", "tokens", "duplicates", "leaks", "metrics", "unmeasured", "cost_usd")
_MORE = ("score_histograms", "judge_scores", "dropped_share", "accounts", "simulated", "refused", "settings")


@settings(max_examples=20, deadline=None)
@given(facts=st.dictionaries(st.sampled_from(_NAMES + _MORE), _json))
def test_facts_of_any_shape_make_tables(facts: dict[str, Any]) -> None:
    from cogumi.store import Artifact

    steps = []
    for name in STAGES:
        made = {"kind": "dataset", "facts": facts, "files": {}, "made_by": {"teachers": facts}}
        artifact = Artifact("sha256:00", Path("/nowhere"), made)
        steps.append(DataStep("x", "1", name, "done", 1, None, "", "", facts, facts, artifact, gone=False))
    sets = DataSets(tuple(steps), {"a/b": 0})
    cells = data_tables.cell_table(sets)
    for shown in data_plots.known_maps(cells):
        data_plots.cell_map(cells, shown)
    for table in ("step_table", "cost_table", "thrown_away", "left_over", "score_table", "length_table"):
        assert getattr(data_tables, table)(sets) is not None


# Rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "filters",
    [
        Filters(),
        Filters(domain="math"),
        Filters(domain="math", difficulty="hard"),
        Filters(difficulty="easy", text="A"),
        Filters(text="[draft]"),
        Filters(text="%_'; DROP TABLE x"),
        Filters(domain="no such"),
    ],
)
@pytest.mark.parametrize(
    "name", [MERGED, "answers_easy: answers_easy_24k.jsonl", "validated: questions_reserve.jsonl"]
)
def test_filters_find_what_a_plain_search_finds(found: DataSets, filters: Filters, name: str) -> None:
    one = next(each for each in data_rows.data_files(found.steps) if each.label == name)
    assert one.lines is not None
    wanted = []
    for line, text in enumerate(one.lines.read_text(encoding="utf-8").splitlines(), 1):
        row = json.loads(text)
        domain, level, _ = row["question_id"].split("_")
        held = [row.get(part) or "" for part in ("question_id", "question", "answer", "reasoning")]
        fits = filters.domain in ("", domain) and filters.difficulty in ("", level)
        if fits and any(filters.text.lower() in text.lower() for text in held):
            wanted.append(line)
    got: list[int] = []
    for offset in range(0, len(wanted) + 1, PAGE_ROWS):
        page = data_rows.sample(one, filters, offset)
        assert page.total == len(wanted)
        assert len(page.rows) <= PAGE_ROWS
        got += [row.line for row in page.rows] if page.offset == offset else []
    assert got == wanted


def test_a_cut_text_says_how_long_it_was(tmp_path: Path) -> None:
    one = lines_file(tmp_path, [json.dumps({"question_id": "math_easy_0001", "question": "x" * 1_048_576})])
    row = data_rows.sample(one, Filters()).rows[0]
    assert len(row.values["question"] or "") == data_rows.LONGEST
    assert row.lengths["question"] == 1_048_576


def test_hostile_lines_keep_their_numbers(tmp_path: Path) -> None:
    one = lines_file(
        tmp_path,
        [
            json.dumps({"question_id": "math_easy_0001", "question": MARKUP}),
            '{"question_id": "math_easy_0002", "question": "\\ud800"}',
            '{"question_id": "cut sho',
            b'{"question_id": "\xff"}',
            "[1, 2]",
            json.dumps({"question_id": 5, "domain": {"a": 1}, "question": None}),
            json.dumps({"question_id": "math_easy_0007", "question": "last"}),
        ],
    )
    page = data_rows.sample(one, Filters())
    assert (page.total, page.unreadable) == (7, 4)
    assert [row.line for row in page.rows if row.readable] == [1, 6, 7]
    assert page.rows[0].values["question"] == MARKUP
    last = data_rows.row_at(one, 7)
    assert last is not None
    assert last.values["question"] == "last"
    assert data_rows.row_at(one, 8) is None
    assert [row.line for row in data_rows.sample(one, Filters(domain="math")).rows] == [1, 7]
    assert data_rows.lint(one).counts["unparsable"] == 4


def test_lint_reads_the_first_rows_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [json.dumps({"question": f"How many is {number} times {number}?"}) for number in range(30)]
    twice = [*rows[:3], rows[0], *rows[3:]]
    whole = data_rows.lint(lines_file(tmp_path, twice))
    assert whole.whole
    assert whole.rows == 31
    assert [one.line for one in whole.findings if one.rule == "duplicate"] == [4]
    monkeypatch.setattr(data_rows, "LINT_ROWS", 3)
    first = data_rows.lint(lines_file(tmp_path, twice, "few"))
    assert (first.rows, first.whole) == (3, False)
    assert "duplicate" not in first.counts
    monkeypatch.setattr(data_rows, "LINT_ROWS", 5)
    monkeypatch.setattr(data_rows, "LINT_BYTES", len(twice[0]) + 2)
    assert data_rows.lint(lines_file(tmp_path, twice, "short")).rows == 1


def test_a_manifest_cannot_name_files_elsewhere(found: DataSets) -> None:
    step = found.steps[-1]
    assert step.artifact is not None
    entry = {"bytes": 9, "sha256": ""}
    names = ("../../ledger.jsonl", "/etc/passwd.jsonl", "a/b.jsonl", "..", "fine.jsonl", "odd\x00.txt")
    made = {**step.artifact.manifest, "files": {**dict.fromkeys(names, entry), "list.jsonl": []}}
    artifact = type(step.artifact)(step.artifact.digest, step.artifact.path, made)
    spoilt = DataStep("x", "", "", "done", 1, None, "", "", {}, {}, artifact, gone=False)
    assert [one.name for one in data_rows.data_files((spoilt,))] == ["fine.jsonl"]


def lines_file(folder: Path, lines: list[str | bytes], name: str = "rows") -> DataFile:
    path = folder / f"{name}.jsonl"
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return DataFile("step", path.name, path, path.stat().st_size, path)


# The page --------------------------------------------------------------------------------------------


def test_the_page_tells_rows_cells_and_what_is_simulated(run: Maker, page_of: Page) -> None:
    app = page_of(run.workspace.root, "data", run=RUN)
    told = texts(app)
    assert f"**{sum(CELLS.values())} rows in {len(CELLS)} cells**, every cell exactly full" in told
    assert "Simulated: a local teacher stood in for the models of answers\\_easy." in told
    assert "✗ FAIL leaks" in told
    assert [one.value for one in app.title] == ["Data"]
    assert {"Steps", "Cells", "Token shares", "A judge's scores", "Rows", "Lint"} <= {
        one.value for one in app.header
    }
    assert set(COLUMNS[:4]) <= set(app.dataframe[-1].value.columns)


def test_the_address_names_file_filters_page_and_line(run: Maker, page_of: Page) -> None:
    query = {
        "domain": "math",
        "difficulty": "easy",
        "page": "2",
        "line": "1",
        "lint": "true",
        "map": "Share that the judge dropped",
    }
    app = page_of(run.workspace.root, "data", run=RUN, **query)
    told = texts(app)
    assert "Rows 21 to 30 of 30." in told
    assert "which is not here" not in told
    assert "Line 1" in [one.value for one in app.subheader]
    assert app.selectbox(key="map").value == "Share that the judge dropped"
    assert f"All {sum(CELLS.values())} rows were read" in told
    app.selectbox(key="domain").set_value("reading")
    app.selectbox(key="difficulty").set_value("all").run()
    assert "Rows 1 to 2 of 2." in texts(app)


def test_what_the_address_asks_for_and_is_not_there_is_said(run: Maker, page_of: Page) -> None:
    query = {"domain": "no such", "page": "99", "line": "4000", "file": "../../etc/passwd", "map": "x"}
    app = page_of(run.workspace.root, "data", run=RUN, **query)
    told = texts(app)
    assert told.count("which is not here") == 4
    assert "has no line 4,000" in told
    assert "Rows 1 to 20 of 47." in told


def spoil(parquet: Path, harm: str) -> None:
    content = parquet.read_bytes()
    if harm == "corrupt":
        parquet.write_bytes(b"PAR1" + b"\x00" * (len(content) - 8) + b"PAR1")
    elif harm == "cut":
        parquet.write_bytes(content[: len(content) // 2])
    elif harm == "name":
        parquet.write_bytes(content.replace(b"question", b"quest\xffon"))
    else:
        parquet.unlink()


@pytest.mark.parametrize("harm", ["corrupt", "cut", "name", "gone"])
def test_a_broken_file_is_named_in_one_line(file: DataFile, tmp_path: Path, harm: str) -> None:
    path = Path(shutil.copy(file.path, tmp_path))
    spoilt = DataFile(file.step, file.name, path, file.bytes, None)
    assert spoilt.fault() is None
    spoil(path, harm)
    assert (spoilt.fault() is None) == (harm in ("corrupt", "name"))
    for ask in (data_rows.cells_of, lambda one: data_rows.sample(one, Filters())):
        with pytest.raises(
            RunError, match=r"^training_60k_complete.parquet of step merged [^\n]+ again"
        ) as told:
            ask(spoilt)
        assert "Traceback" not in str(told.value)


@pytest.mark.parametrize("harm", ["corrupt", "manifest"])
def test_around_a_broken_file_the_page_is_drawn(run: Maker, own: Path, page_of: Page, harm: str) -> None:
    payload = own / merged(run).path.relative_to(run.workspace.root)
    if harm == "manifest":
        (payload.parent / "manifest.json").write_text("{")
    else:
        spoil(payload / "training_60k_complete.parquet", harm)
    app = page_of(own, "data", run=RUN)
    told = texts(app)
    if harm == "manifest":
        assert "its manifest is broken" in told
        assert app.selectbox(key="file").value == "questions: questions_60k.jsonl"
    else:
        assert len(app.error) == 1
        assert {"Token shares", "Lint"} <= {one.value for one in app.header}


def test_hostile_rows_are_only_text(tmp_path: Path, page_of: Page) -> None:
    from merge_inputs import rows_of

    rows = rows_of(QUOTAS)
    rows["easy"][0]["answer"] = MARKUP
    rows["validated"][0]["question"] = f"{MARKUP} {'long ' * 200_000}?"
    maker = fill(tmp_path / "workspace", rows=rows)
    app = page_of(maker.workspace.root, "data", run=RUN)
    shown = [str(one.value) for one in app.code]
    assert any(text.startswith("<script>alert(1)</script> **bold**") and "␀" in text for text in shown)
    assert max(map(len, shown)) < data_rows.LONGEST + 200
    assert "of 1,000," in texts(app)
    assert "No gate has judged these rows" in texts(app)
    assert not any("<script" in str(one.value) for one in app.markdown)


def test_an_unfinished_run_says_what_to_type(tmp_path: Path, page_of: Page) -> None:
    maker = fill(tmp_path / "workspace", until="validated")
    app = page_of(maker.workspace.root, "data", run=RUN)
    told = texts(app)
    assert "2 of 5 data steps are done, answers\\_easy is waiting" in told
    assert f"cogumi run --profile small --run {RUN} --until merged" in told
    assert app.selectbox(key="map").value == "Validated questions against quota"


def test_a_run_without_data_steps_says_so(tmp_path: Path, page_of: Page) -> None:
    from cogumi.workspace import Workspace

    maker = Maker(Workspace(tmp_path / "workspace"), RUN, steps=[])
    assert "no step that makes data" in texts(page_of(maker.workspace.root, "data", run=RUN))
    assert data_sets.data_sets(open_view(tmp_path / "elsewhere", None)).steps == ()
