"""Plan 1.5 without a teacher: the merged file, its Parquet form and card, and what the merge refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from merge_inputs import SIMULATED, Merging, Row, each_line, rows_of

from cogumi.errors import RunError, UsageError
from cogumi.store import Artifact
from evals.lint.tokens import find_tokenizer, token_counts
from pipeline.generation.leaks import LeakCheck
from pipeline.generation.measured import Measured, Yardstick, measure, schema_fault
from pipeline.generation.records import Cell

QUOTAS = {"coding": {"easy": 4, "hard": 6}, "math": {"easy": 3, "hard": 5}, "reading": {"hard": 2}}
FILE = "training_60k_complete.jsonl"
Files = dict[str, list[Row]]


@pytest.fixture(scope="module")
def merging(tmp_path_factory: pytest.TempPathFactory) -> Merging:
    return Merging(tmp_path_factory.mktemp("merging"), QUOTAS, simulated=SIMULATED)


@pytest.fixture(scope="module")
def merged(merging: Merging) -> Artifact:
    return merging.merge()


def cells(quotas: dict[str, dict[str, int]] = QUOTAS) -> dict[Cell, int]:
    return {Cell(domain, level): n for domain, levels in quotas.items() for level, n in levels.items()}


def measured(path: Path, wanted: dict[str, int] | None = None, near: float = 0.8, **more: Any) -> Measured:
    known = wanted if wanted is not None else {row["question_id"]: 8 for row in each_line(path)}
    return measure(path, Yardstick(cells(), known, near, more.get("leaks")), token_counts(None)[0])


# The files -------------------------------------------------------------------------------------------


def test_rows_are_the_plans_record_key_by_key(merged: Artifact) -> None:
    rows = list(each_line(merged.file(FILE)))
    assert [list(row) for row in rows] == [
        ["question_id", "domain", "difficulty", "question", "answer", "reasoning"]
    ] * 20
    assert {row["reasoning"] is None for row in rows if row["difficulty"] == "easy"} == {True}
    assert not any(schema_fault(row) for row in rows)
    # The first hard question was refused: the reserve's stands in its place.
    names = [row["question_id"] for row in rows]
    assert "coding_hard_0001" not in names
    assert "coding_hard_0007" in names
    source = rows_of(QUOTAS)
    said = {row["question_id"]: row for row in source["easy"] + source["hard"]}
    assert all(row["answer"] == said[row["question_id"]]["answer"] for row in rows)
    assert all(row["reasoning"] == said[row["question_id"]].get("reasoning") for row in rows)


def test_parquet_holds_the_same_rows_typed_and_compressed(merged: Artifact) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(merged.file("training_60k_complete.parquet"))
    assert file.read().to_pylist() == list(each_line(merged.file(FILE)))
    assert {column.type for column in file.schema_arrow} == {pa.string()}
    assert [column.name for column in file.schema_arrow if column.nullable] == ["reasoning"]
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"


def test_the_folder_loads_as_a_data_set(merged: Artifact, tmp_path: Path) -> None:
    import datasets

    loaded = datasets.load_dataset(str(merged.path), cache_dir=str(tmp_path))
    assert list(loaded) == ["train"]
    assert loaded["train"].to_list() == list(each_line(merged.file(FILE)))


def test_equal_inputs_give_equal_bytes_whatever_the_order_of_the_answers(
    merging: Merging, merged: Artifact
) -> None:
    files = rows_of(QUOTAS)
    files["hard"].reverse()
    again = merging.merge(files)
    assert again.manifest["files"] == merged.manifest["files"]


# The card --------------------------------------------------------------------------------------------


def test_card_has_the_hubs_head_and_no_open_licence(merged: Artifact) -> None:
    text = merged.file("README.md").read_text(encoding="utf-8")
    _, head, body = text.split("---\n", 2)
    told = yaml.safe_load(head)
    assert told["license"] == "other"
    assert told["size_categories"] == ["n<1K"]
    assert told["task_categories"] == ["text-generation"]
    assert told["configs"][0]["data_files"] == [{"split": "train", "path": "training_60k_complete.parquet"}]
    assert body.strip().splitlines()[0] == "# SIMULATED: 20 questions and answers in 5 cells"
    assert "- Anthropic: https://www.anthropic.com/legal/commercial-terms" in body
    assert "| coding/hard | 6 | 6 |" in body
    assert "| 1.3 easy answers | $0.50 (simulated) | $2.52 | length 1, stop 10 |" in body
    assert "| **all** | $9.25 and $0.50 simulated (nothing was paid) | $425.52 |" in body


def test_real_data_say_nothing_of_simulation_and_unknown_costs_are_unknown(tmp_path: Path) -> None:
    costs = {"questions": None, "validated": None, "answers_easy": 0.5, "answers_hard": 8.0}
    made = Merging(tmp_path, QUOTAS, costs=costs).merge()
    text = made.file("README.md").read_text(encoding="utf-8").lower()
    assert "simulated" not in text
    assert "| 1.2 validation | unknown: a price is not known | $9 |" in text
    assert made.facts["cost_usd"]["total"] is None
    assert "usd_validation" not in made.facts["metrics"]
    assert made.facts["metrics"]["usd_answers_hard"] == 8.0


def test_tokens_are_the_tokenizers_own(tmp_path: Path, merging: Merging, merged: Artifact) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    facts = merging.merge(tokenizer=str(tmp_path)).facts["tokens"]
    rows = list(each_line(merged.file(FILE)))

    def words_of(part: str, *chosen: Row) -> int:
        return sum(len((row[part] or "").split()) for row in chosen)

    assert facts["total"] == {part: words_of(part, *rows) for part in ("question", "answer", "reasoning")}
    hard = [row for row in rows if row["difficulty"] == "hard"]
    share = words_of("answer", *hard) / words_of("answer", *rows)
    assert facts["difficulties"]["hard"]["answer_share"] == pytest.approx(share, abs=1e-4)
    trained = words_of("answer", *rows) + words_of("reasoning", *rows)
    coding = [row for row in hard if row["domain"] == "coding"]
    told = (words_of("answer", *coding) + words_of("reasoning", *coding)) / trained
    assert facts["cells"]["coding/hard"]["trained_share"] == pytest.approx(told, abs=1e-4)
    lengths = np.array([words_of("reasoning", row) for row in hard])
    assert facts["percentiles"]["hard"]["reasoning"]["p50"] == np.sort(lengths)[len(lengths) // 2]
    assert facts["percentiles"]["hard"]["reasoning"]["max"] == lengths.max()
    assert facts["counted_by"].startswith(f"the tokenizer {tmp_path.name} (sha256 ")
    assert merged.facts["tokens"]["counted_by"].startswith("estimate")


def test_tokenizers_are_found_by_path_and_by_name(tmp_path: Path) -> None:
    packaged = find_tokenizer("SmolLM2-135M-Instruct")
    assert packaged.suffix == ".gguf"
    counts, _ = token_counts(packaged)
    assert counts(["Hello world", ""]) == [2, 0]
    assert find_tokenizer(str(tmp_path)) == tmp_path
    for name, message in (
        (str(tmp_path / "none.json"), "no such file or folder"),
        ("smollm2-135m-instrukt", "did you mean 'smollm2-135m-instruct'"),
    ):
        with pytest.raises(UsageError, match=message):
            find_tokenizer(name)
    with pytest.raises(
        RunError, match="nobody/nothing: not in the local cache, and the hub is not reachable"
    ):
        find_tokenizer("nobody/nothing")


# What the rows hold ----------------------------------------------------------------------------------


def test_metrics_are_counted_on_the_rows(merged: Artifact) -> None:
    metrics = merged.facts["metrics"]
    validated = {
        row["question_id"]: row for row in [*rows_of(QUOTAS)["validated"], *rows_of(QUOTAS)["reserve"]]
    }
    names = [row["question_id"] for row in each_line(merged.file(FILE))]
    expected = {
        **{
            "questions": 20,
            "questions_coding_hard": 6,
            "questions_math_easy": 3,
            "questions_tool_use_easy": 0,
        },
        **{"cells_off_quota": 0, "near_duplicate_share": 0, "answers_easy": 7, "answers_hard": 13},
        **{"answers_invalid": 0, "reasoning_structure_rate": 1, "rows_merged": 20},
        **{"rows_missing_or_twice": 0, "schema_errors": 0, "usd_validation": 1.25, "usd_answers_easy": 0.5},
        "judge_score_min": min(min(validated[name]["scores"].values()) for name in names),
    }
    assert {name: metrics[name] for name in expected} == expected
    # No benchmark was named: nothing can be said of leaks, and 0 would be a claim.
    assert "benchmark_leaks" not in metrics
    assert "no benchmark was named" in merged.facts["unmeasured"]["benchmark_leaks"]


def edited(merged: Artifact, path: Path, change: Callable[[list[Row]], Any]) -> Path:
    rows = list(each_line(merged.file(FILE)))
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("change", "metric", "value"),
    [
        (lambda rows: rows[0].pop("reasoning"), "schema_errors", 1),
        (lambda rows: rows[0].update(domain="maths"), "schema_errors", 1),
        (lambda rows: rows[0].update(question_id="math_hard_0001"), "schema_errors", 1),
        (lambda rows: rows[0].update(reasoning="because"), "schema_errors", 1),
        (lambda rows: rows[0].update(question=" "), "schema_errors", 1),
        (lambda rows: rows[0].update(answer=5), "schema_errors", 1),
        (lambda rows: rows[0].update(note="kept"), "schema_errors", 1),
        (lambda rows: rows.append([]), "schema_errors", 1),
        (lambda rows: rows[0].update(answer="  "), "answers_invalid", 1),
        (lambda rows: rows[0].update(answer="  "), "answers_easy", 6),
        (lambda rows: rows[0].update(answer="<answer>It is"), "answers_invalid", 1),
        (
            lambda rows: rows[-1].update(reasoning="[DRAFT] a [REVISED] b"),
            "reasoning_structure_rate",
            12 / 13,
        ),
        (lambda rows: rows[-1].update(answer="</answer>"), "answers_hard", 12),
        (lambda rows: rows.pop(), "rows_missing_or_twice", 1),
        (lambda rows: rows.pop(), "cells_off_quota", 1),
        (lambda rows: rows.append(rows[0]), "rows_missing_or_twice", 1),
        (lambda rows: rows[0].update(question_id="coding_easy_0099"), "rows_missing_or_twice", 2),
        (lambda rows: rows[1].update(question=rows[0]["question"].upper()), "questions", 19),
        (lambda rows: rows[1].update(question=f"{rows[0]['question']} ko"), "near_duplicate_share", 1 / 20),
    ],
)
def test_one_wrong_row_shows_in_its_metric(
    merged: Artifact, tmp_path: Path, change: Callable[[list[Row]], Any], metric: str, value: float
) -> None:
    wanted = {row["question_id"]: 8 for row in each_line(merged.file(FILE))}
    sound = measured(merged.file(FILE), wanted).metrics(cells())
    found = measured(edited(merged, tmp_path / FILE, change), wanted).metrics(cells())
    assert found[metric] == pytest.approx(value)
    assert sound[metric] != pytest.approx(value)


def test_items_of_benchmarks_are_counted(merged: Artifact, tmp_path: Path) -> None:
    row = list(each_line(merged.file(FILE)))[3]
    (tmp_path / "bench.jsonl").write_text(json.dumps({"question": row["question"]}) + "\n")
    check = LeakCheck(micro=False, files=("bench.jsonl",), threshold=0.7, data=tmp_path)
    found = measured(merged.file(FILE), leaks=check)
    assert found.metrics(cells())["benchmark_leaks"] == 1
    assert found.told("leaks") == f"line 4 ({row['question_id']})"


def test_near_duplicates_are_counted_even_where_the_profile_allows_them(
    merged: Artifact, tmp_path: Path
) -> None:
    path = edited(merged, tmp_path / FILE, lambda rows: rows[1].update(question=f"{rows[0]['question']} ko"))
    allowed, refused = measured(path, near=1.0), measured(path, near=0.7)
    assert (allowed.near, allowed.near_refused) == (1, 0)
    assert (refused.near, refused.near_refused) == (1, 1)


# What the merge refuses ------------------------------------------------------------------------------


def put(name: str, place: int, **values: Any) -> Callable[[Files], None]:
    return lambda files: files[name][place].update(values)


def repeat_first(files: Files) -> None:
    files["validated"][1]["question"] = files["validated"][0]["question"].upper()


def nearly_first(files: Files) -> None:
    files["validated"][1]["question"] = f"{files['validated'][0]['question']} ko"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda files: files["hard"].pop(),
            r"quotas are not met: reading/hard has 1 of 2; make 1\.2 to 1\.4",
        ),
        (
            lambda files: files["easy"].append(dict(files["easy"][0])),
            r"coding_easy_0001 is answered twice; make 1\.3 and 1\.4 again",
        ),
        (put("easy", 0, question_id="coding_easy_0077"), "coding_easy_0077 is answered but is no validated"),
        (put("easy", 0, question_id="coding_hard_0001"), "coding_hard_0001 has an answer of the wrong diffi"),
        (put("easy", 0, answer=None), r"answers_easy_24k\.jsonl, line 1: no text under answer"),
        (
            put("easy", 0, answer=" "),
            r"cannot be used: 1 \(line 1 \(coding_easy_0001\): the answer is blank\); make",
        ),
        (
            put("hard", 0, reasoning="so it is"),
            r"\(coding_hard_0002\): the hard answer is not draft, critique",
        ),
        (
            put("validated", 0, domain="cooking"),
            r"rows without the plan's form: 1 \(line 1: no cell cooking/easy\); make 1\.2",
        ),
        (
            put("validated", 0, scores={"quality": 8}),
            r"validated\.jsonl, line 1: no quality, relevance, clarity",
        ),
        (repeat_first, r"hold 1 duplicates \(line 2 \(coding_easy_0002\)\); make 1\.1 and 1\.2 again"),
        (nearly_first, r"hold 1 near duplicates \(line 2 \(coding_easy_0002\), Jaccard 0\.8\d\)"),
    ],
)
def test_wrong_rows_are_refused_by_name(tmp_path: Path, change: Callable[[Files], Any], message: str) -> None:
    files = rows_of(QUOTAS)
    change(files)
    with pytest.raises(RunError, match=message) as raised:
        Merging(tmp_path, QUOTAS).merge(files)
    assert "\n" not in str(raised.value)


def test_held_out_rows_are_refused(tmp_path: Path) -> None:
    files = rows_of(QUOTAS)
    (tmp_path / "bench.jsonl").write_text(json.dumps({"question": files["validated"][2]["question"]}) + "\n")
    merging = Merging(tmp_path, QUOTAS, writer={"leak_files": ("bench.jsonl",)}, data=tmp_path)
    with pytest.raises(RunError, match=r"hold 1 leaks \(line 3 \(coding_easy_0003\)\)"):
        merging.merge(files)
    (tmp_path / "bench.jsonl").write_text(json.dumps({"question": "Who sold the grey mill at last?"}) + "\n")
    assert merging.merge(files).facts["metrics"]["benchmark_leaks"] == 0


# The commands on it ----------------------------------------------------------------------------------


def test_lint_and_stats_find_nothing_wrong(cogumi: Callable[..., Any], merged: Artifact) -> None:
    for name in (FILE, "training_60k_complete.parquet"):
        path = str(merged.file(name))
        linted = cogumi("data", "lint", path)
        assert (linted.code, linted.out.strip()) == (0, "1 file, 20 rows: nothing found")
        stats = cogumi("data", "stats", path, "--json").json
        assert (stats["rows"], stats["distinct"], stats["near_duplicates"], stats["empty"]) == (20, 20, 0, 0)
        assert stats["by_difficulty"] == {"hard": 13, "easy": 7}
        assert stats["tokens"] == sum(merged.facts["tokens"]["total"].values())
