"""The reference registry: the shipped rows, look-up, and rows of a user's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cogumi.errors import CogumiError, RunError, UsageError
from evals.references import PairedScores, ReferenceScores, add, get, load_all, table
from evals.references.registry import LEAST_MARGIN

ROW = """references:
  - id: my-model/gsm8k@2026
    model: my-model
    snapshot: null
    benchmark: gsm8k
    kind: published
    score: 0.5
    n: 1319
    family: gsm8k/exact/5-shot-cot
    source: "our own run"
    date: "2026-11"
    margin: 0.01
    how_read: measured
"""


def test_rows_are_those_of_the_research_note() -> None:
    rows = load_all()
    read = {name: rows[name].score for name in rows}
    assert read["gpt-4/humaneval@technical-report"] == 0.670
    assert read["gpt-4/gsm8k@technical-report"] == 0.920
    assert read["gpt-4-0125-preview/humaneval@simple-evals"] == 0.866
    assert read["gpt-4/humaneval@evalplus-2023-05"] == 0.884
    assert read["llama-3.1-8b-instruct/humaneval@model-card"] == 0.726
    assert read["gpt-4o-mini-2024-07-18/drop@simple-evals"] == 0.797
    remembered = {("gpt-4", "mgsm"), ("gpt-4", "math@first-release")}
    assert not remembered & {(row.model, row.benchmark) for row in rows.values()}


def test_every_row_is_usable() -> None:
    for row in load_all().values():
        assert row.id.startswith(f"{row.model}/")
        assert row.family.startswith(row.benchmark.split("_")[0])
        assert row.kind == "per-item" or (row.margin or 0) >= LEAST_MARGIN
        assert not row.simulated


def test_the_per_item_reference_is_not_a_number() -> None:
    row = get("gpt-4/ifeval@2023-11-07")
    assert (row.kind, row.published_score, row.n, row.file) == (
        "per-item",
        0.7689,
        541,
        "ifeval/gpt4_responses.jsonl",
    )
    with pytest.raises(UsageError, match="is per item"):
        row.published()


def test_its_answers_are_there(data_folder: Path) -> None:
    row = get("gpt-4/ifeval@2023-11-07")
    assert row.file is not None
    assert len((data_folder / row.file).read_text(encoding="utf-8").splitlines()) == row.n


def test_a_published_row_becomes_scores() -> None:
    found = get("gpt-4/gsm8k@technical-report").published()
    assert (found.kind, found.score, found.margin, found.n) == ("published", 0.92, 0.005, 1319)


def test_unknown_id_names_its_neighbour() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'gpt-4/ifeval@2023-11-07'"):
        get("gpt-4/ifeval@2023-11-08")


def test_table_shows_percent() -> None:
    shown = {row["id"]: row for row in table(load_all().values())}
    assert shown["gpt-4/ifeval@2023-11-07"]["score"] == "76.89"
    assert shown["gpt-4/humaneval@technical-report"]["score"] == "67"
    assert list(shown) == sorted(shown)


def test_add_saves_into_the_workspace_once(tmp_path: Path) -> None:
    workspace, file = tmp_path / "workspace", tmp_path / "mine.yaml"
    file.write_text(ROW)
    assert [row.id for row in add(file, workspace)] == ["my-model/gsm8k@2026"]
    assert get("my-model/gsm8k@2026", workspace).score == 0.5
    saved = workspace / "references" / "mine.yaml"
    before = saved.read_bytes()
    add(file, workspace)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["mine.yaml"]
    assert "my-model/gsm8k@2026" not in load_all()


def test_another_file_of_the_same_name_is_kept_beside(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(ROW)
    add(file, tmp_path)
    file.write_text(ROW.replace("@2026", "@2027"))
    add(file, tmp_path)
    assert {"my-model/gsm8k@2026", "my-model/gsm8k@2027"} <= set(load_all(tmp_path))


def test_a_row_that_a_verdict_may_have_named_never_changes(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(ROW)
    add(file, tmp_path)
    file.write_text(ROW.replace("0.5", "0.6"))
    with pytest.raises(UsageError, match="taken by other content"):
        add(file, tmp_path)
    file.write_text(ROW + ROW.removeprefix("references:\n"))
    with pytest.raises(UsageError, match="stands in two rows"):
        add(file, tmp_path / "other")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("score: 0.5", "score: 50", "line 7: references.0.score: input should be less than or equal to 1"),
        ("margin: 0.01", "margin: 0.001", "line 12: references.0.margin"),
        ("    margin: 0.01\n", "", "needs score and margin"),
        ("score", "scroe", "did you mean 'score'?"),
        ("published", "per-item", "a per-item reference needs file and n"),
        ("my-model/gsm8k@2026", "my-model", "references.0.id"),
        ('"2026-11"', "2026-11-01", "references.0.date"),
        ("family: gsm8k/exact/5-shot-cot\n", "family:\n", "references.0.family"),
        ("how_read: measured", "how_read: memory", "references.0.how_read"),
    ],
)
def test_broken_rows_are_refused_with_their_place(tmp_path: Path, old: str, new: str, told: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(ROW.replace(old, new))
    with pytest.raises(CogumiError) as caught:
        add(file, tmp_path)
    assert told in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "references").exists()


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        add(tmp_path / "none.yaml", tmp_path)
    (tmp_path / "bad.yaml").write_text("references: [")
    with pytest.raises(RunError, match="no valid YAML"):
        add(tmp_path / "bad.yaml", tmp_path)


def test_shapes_refuse_what_the_test_cannot_bear() -> None:
    none = np.zeros(2, dtype=bool)
    with pytest.raises(RunError, match="unequal length"):
        PairedScores("t", "f", "p", "i", "o", 5, np.zeros(3), none, none)
    with pytest.raises(RunError, match="does not fit"):
        ReferenceScores("r", "per-item", "f", 0.5)
