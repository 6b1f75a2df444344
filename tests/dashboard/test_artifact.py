"""The page of one artifact, and where a model comes from: each parent once, hostile manifests as text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogumi.workspace import Workspace
from dashboard.lineage import MOST, Made, lineage, recipe
from dashboard.models import Models, models_of
from dashboard.view import open_view

HOSTILE = "<script>alert(1)</script> **bold** [x](https://example.test) \u202eabc\x00"


@pytest.fixture(scope="module")
def models(workspace: Path) -> Models:
    return models_of(open_view(workspace, None))


def digest_of(models: Models, name: str) -> str:
    return next(digest for digest, known in models.names.items() if known == name)


def said(app: Any) -> str:
    """All words of a page, without what keeps Markdown from reading them."""
    shown = [*app.markdown, *app.caption, *app.warning, *app.info, *app.error, *app.header, *app.code]
    return "\n".join(str(one.value) for one in shown).replace("\\", "").replace("\u2060", "")


# Lineage ------------------------------------------------------------------------------------------


def test_parents_come_before_children_and_each_once(workspace: Path, models: Models) -> None:
    made = lineage(open_view(workspace, None).workspace, digest_of(models, "q4"), models.names)
    names = [one.name for one in made]
    assert names[-1] == "q4"
    assert "base (attempt 2)" in names
    assert len(set(names)) == len(names)
    seen: set[str] = set()
    for one in made:
        assert seen.issuperset(one.inputs.values())
        seen.add(one.digest)


def test_a_recipe_tells_what_was_done_to_the_model_and_not_to_its_data() -> None:
    def made(name: str, stage: str, inputs: dict[str, str], settings: dict[str, Any], **facts: Any) -> Made:
        return Made(
            name, name, "gguf" if "gguf" in name else "model", stage, "1", inputs, settings, facts, "", 1
        )

    whole = [
        made("data", "generation.merge", {}, {}),
        made("blank", "models.micro", {}, {"layers": 3, "heads": 4}),
        made("base", "training.sft", {"data": "data", "model": "blank"}, {"method": "full", "steps": 1600}),
        made(
            "gguf",
            "compression.recipe",
            {"model": "base"},
            {},
            recipe=[
                {"uses": "compression.grid", "settings": {"type": "q2_0", "bits": True}},
                {"uses": "compression.package", "settings": None},
            ],
        ),
    ]
    assert recipe(whole) == "micro 3 layers → sft full, 1,600 steps → grid q2_0 → package"
    assert recipe(whole[:1]) == "merge"
    assert recipe([]) == ""


def _manifest(folder: Path, digest: str, inputs: dict[str, str], **more: Any) -> None:
    home = folder / "artifacts" / "objects" / digest
    (home / "payload").mkdir(parents=True)
    made_by = {"stage": "made.up", "version": 1, "settings": {"x": 1}, "inputs": inputs}
    document = {"kind": "model", "facts": {}, "files": {}, "made_by": made_by, **more}
    (home / "manifest.json").write_text(json.dumps(document))


@pytest.mark.parametrize("made_by", [None, [], "x", {"inputs": [1], "settings": "no", "stage": {"a": 1}}])
def test_a_manifest_of_another_shape_is_no_error(tmp_path: Path, made_by: Any) -> None:
    _manifest(tmp_path, "a" * 64, {}, made_by=made_by, facts=[])
    (one,) = lineage(Workspace(tmp_path), "sha256:" + "a" * 64, {})
    assert (one.inputs, dict(one.settings), dict(one.facts)) == ({}, {}, {})


def test_a_circle_and_a_long_line_of_parents_end(tmp_path: Path) -> None:
    digests = [f"{k:064x}" for k in range(MOST + 40)]
    for k, digest in enumerate(digests):
        _manifest(tmp_path, digest, {"model": f"sha256:{digests[(k + 1) % len(digests)]}"})
    found = lineage(Workspace(tmp_path), f"sha256:{digests[0]}", {})
    assert len(found) == MOST
    assert found[-1].digest == f"sha256:{digests[0]}"
    assert recipe(found).startswith("… → ")


@given(st.dictionaries(st.integers(0, 9), st.lists(st.integers(0, 9), max_size=3), max_size=10))
def test_any_graph_gives_each_of_its_nodes_once_and_ends_with_itself(graph: dict[int, list[int]]) -> None:
    def one(name: str, inputs: list[int]) -> Made:
        parents = {f"input {k}": str(parent) for k, parent in enumerate(inputs)}
        return Made(name, name, "model", "made.up", "1", parents, {}, {}, "", None)

    known = {str(k): one(str(k), graph.get(k, [])) for k in range(10)}
    found = lineage(Workspace(Path("/nowhere")), "0", {}, known)
    assert found[-1].digest == "0"
    assert len({made.digest for made in found}) == len(found)


# The page -----------------------------------------------------------------------------------------


def test_the_page_tells_sizes_scores_verdicts_and_the_way_there(page: Any, models: Models) -> None:
    digest = digest_of(models, "q4")
    app = page("artifact", artifact=digest)
    assert not app.exception
    assert not app.error
    assert not app.warning
    assert {one.label: one.value for one in app.metric}["To download"] == "48 kB"
    assert {one.label: one.value for one in app.metric}["In memory"] == "57 kB"
    assert digest in said(app)
    labels = [one.label for one in app.expander]
    assert [label for label in labels if "base (attempt 2)" in label]
    tables = [one.value for one in app.dataframe]
    scores = next(table for table in tables if "Score" in table)
    suite = next(part for part in models.artifacts if part.digest == digest).quality[0]
    assert next(iter(scores["Score"])) == suite.score
    assert set(scores["Task"]) == {"all tasks", "micro/math", "micro/reading"}
    verdicts = next(table for table in tables if "Criterion" in table)
    assert set(verdicts["Gate"]) == {"phase3"}


def test_the_start_of_a_digest_will_do_and_a_data_set_is_an_artifact_too(page: Any, models: Models) -> None:
    app = page("artifact", artifact=digest_of(models, "data")[:20])
    assert not app.exception
    assert not app.error
    assert "Its files have 1.2 kB" in said(app)
    assert "No gate was asked about it." in said(app)


@pytest.mark.parametrize("asked", ["sha256:" + "0" * 64, "00", "../../etc/passwd", HOSTILE, "*", "sha256:"])
def test_an_unknown_digest_is_one_line_and_a_choice(page: Any, asked: str) -> None:
    app = page("artifact", artifact=asked)
    assert not app.exception
    assert len(app.error) == 1
    assert "No artifact" in app.error[0].value
    assert not app.metric
    assert [one.value for one in app.selectbox if one.label == "Made by this run"] == [None]


def test_what_is_gone_from_the_store_keeps_its_scores_and_verdicts(
    copied: Path, page_of: Any, models: Models
) -> None:
    digest = digest_of(models, "q4")
    shutil.rmtree(copied / "artifacts" / "objects" / digest.removeprefix("sha256:"))
    app = page_of(copied, "artifact", artifact=digest)
    assert not app.exception
    assert not app.error
    assert "gone from the store" in said(app)
    assert [one for one in app.dataframe if "Criterion" in one.value]
    assert {one.label: one.value for one in app.metric}["To download"] == "–"


def test_hostile_manifests_are_text(copied: Path, page_of: Any, models: Models) -> None:
    digest = "b" * 64
    parents = {HOSTILE: digest_of(models, "q4")}
    made_by = {"stage": HOSTILE, "version": HOSTILE, "inputs": parents, "settings": {HOSTILE: HOSTILE}}
    _manifest(copied, digest, {}, made_by=made_by, facts={HOSTILE: HOSTILE * 100}, kind=HOSTILE, created="x")
    app = page_of(copied, "artifact", artifact=digest)
    assert not app.exception
    assert not app.error
    assert "<script>" not in "".join(str(one.value) for one in app.markdown)
    assert "\u202e" not in said(app)
    assert "\x00" not in said(app)


def test_one_unreadable_file_of_evidence_is_one_line(copied: Path, page_of: Any, models: Models) -> None:
    digest = digest_of(models, "q4")
    file = sorted((copied / "evidence" / digest.removeprefix("sha256:")).rglob("*.parquet"))[0]
    file.unlink()
    file.write_bytes(b"PAR1")
    app = page_of(copied, "artifact", artifact=digest)
    assert not app.exception
    assert not app.error
    assert len(app.warning) == 1
    assert file.name in said(app)
    scores = next(one.value for one in app.dataframe if "Score" in one.value)
    assert len(scores) == 2
