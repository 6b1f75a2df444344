"""The pages Items and Compare: what they show; broken evidence and hostile text break neither."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cogumi.evidence import list_evidence
from dashboard.catalogue import catalogue, names
from dashboard.pairs import compare
from dashboard.view import View, open_view
from gates.compare import PairedTask, compare_tasks, macro_score

# pytest's importlib mode leaves test folders off the path.
sys.path.insert(0, str(Path(__file__).parent))

from small_dashboard import MARKUP, RUN, TASKS

if TYPE_CHECKING:
    from streamlit.testing.v1 import AppTest

Page = Callable[..., "AppTest"]
MATH, READING = TASKS


@pytest.fixture(scope="session")
def view(workspace: Path) -> View:
    return open_view(workspace, RUN)


@pytest.fixture(scope="session")
def digests(view: View) -> dict[str, str]:
    """The digest of each model of the small run by its step, and of its reference."""
    called = names(view)
    found = {name: digest for digest, name in called.models.items()}
    return found | {"gpt-4": next(iter(called.references))}


def sound(app: AppTest) -> AppTest:
    assert not app.exception
    return app


def texts(app: AppTest, *kinds: str) -> str:
    return "\n".join(str(one.value) for kind in kinds for one in getattr(app, kind))


def evidence_of(folder: Path, artifact: str, task: str = MATH) -> Path:
    """Return the one Parquet file of a measurement."""
    found = [one for one in list_evidence(folder / "evidence") if one.key.artifact == artifact]
    return next(path for one in found if one.key.task == task for path in one.folder.glob("*.parquet"))


def rewrite(path: Path, position: int, **changed: Any) -> None:
    """Change one row of a Parquet file."""
    rows = pq.read_table(path).to_pylist()
    rows[position] |= changed
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)


# Items --------------------------------------------------------------------------------------------


def test_items_begin_with_the_last_model_beside_the_reference(page: Page, digests: dict[str, str]) -> None:
    app = sound(page("items"))
    chosen = {one.label: one.value for one in app.selectbox}
    assert chosen["Model"] == digests["q4"]
    assert chosen["Beside"] == digests["gpt-4"]
    table = app.dataframe[0].value
    assert list(table.columns[:3]) == ["Item", "Verdict", "Beside"]
    assert len(table) == 50
    assert not app.error
    assert not app.warning


def test_the_address_says_what_is_shown(page: Page, digests: dict[str, str], view: View) -> None:
    stored = catalogue(view).of(digests["q8"], READING)[0]
    item = stored.file.table(["item_id"])["item_id"].to_pylist()[59]
    base = digests["base (attempt 2)"]
    app = sound(page("items", artifact=digests["q8"], task=READING, page="2", item=item, **{"with": base}))
    assert len(app.dataframe[0].value) == 10
    assert app.number_input[0].value == 2
    assert f"Item {item}" in texts(app, "header")
    assert texts(app, "subheader").split("\n") == ["Prompt", "q8", "base (attempt 2)"]
    assert "60 of 60 that fit" in texts(app, "caption")
    # The start of a digest will do; it is the last item, so there is nothing next.
    assert [one.disabled for one in app.button] == [False, True]
    app.button[0].click().run()
    assert "59 of 60 that fit" in texts(app, "caption")


def test_what_the_address_asks_in_vain_is_one_line_each(page: Page) -> None:
    query = {
        "artifact": "sha256:nothing",
        "task": "no/task",
        "with": "sha256:nothing",
        "verdict": "maybe",
        "reason": "boredom",
        "domain": "alchemy",
        "differs": "a bit",
        "sort": "luck",
        "item": "no such item",
    }
    app = sound(page("items", **query))
    assert len(app.warning) == len(query)
    assert len(app.dataframe[0].value) == 50


def test_pages_that_are_not_there(page: Page) -> None:
    app = page("items", page="0")
    for number in ("-3", "99999999999999999999", "77", "x", "²"):
        assert sound(app).number_input[0].value == 1
        app.query_params["page"] = number
        app.run()


def test_filters_find_what_python_finds(page: Page, digests: dict[str, str], view: View) -> None:
    table = catalogue(view).of(digests["q4"], MATH)[0].file.table(["score", "output"])
    wrong = [score == 0 for score in table["score"].to_pylist()]
    app = sound(page("items", artifact=digests["q4"][:19], task=MATH, verdict="wrong"))
    assert f"**{sum(wrong):,}** of" in texts(app, "markdown")
    app.text_input(key="text").set_value("NOT SO").run()
    fits = sum("not so" in text for text, bad in zip(table["output"].to_pylist(), wrong, strict=True) if bad)
    assert f"**{fits:,}** of" in texts(sound(app), "markdown")
    app.text_input(key="text").set_value("(nothing has this").run()
    assert "Widen the filter" in texts(sound(app), "info")


HOSTILE = {
    "markup": MARKUP,
    "nul": "a\0b\0",
    "line of a megabyte": "x" * 2**20,
    "right to left": "\u202e\u2067שלום\u2069 abc",
    "fence": "```\n</code></pre><img src=x onerror=alert(1)>\n```",
    "formula": "=cmd|' /C calc'!A0",
    "empty": "",
}


def test_hostile_texts(copied: Path, page_of: Page, digests: dict[str, str]) -> None:
    path = evidence_of(copied, digests["q4"])
    for position, text in enumerate(HOSTILE.values()):
        told = {"prompt": text, "output": text, "domain": text[:200], "finish_reason": text[:200]}
        rewrite(path, position, item_id=text[:500] or "-", **told)
    app = sound(page_of(copied, "items", artifact=digests["q4"], task=MATH))
    assert not app.error
    assert app.dataframe[0].value["Output"].str.len().max() < 2_000
    for text in HOSTILE.values():
        app.query_params["item"] = text[:500] or "-"
        app = sound(app.run())
        assert not app.error
        assert not app.warning
        drawn = [str(one.value) for one in [*app.code, *app.markdown, *app.header, *app.caption]]
        assert max(map(len, drawn)) < 25_000
        assert all("\0" not in one and "\u202e" not in one for one in drawn)
        assert len(app.code) >= (2 if text else 1)
        assert all(one.proto.allow_html is False for one in app.markdown)
        assert all("<" not in str(one.value).replace("\\<", "") for one in app.markdown)


def test_broken_parquet_is_one_line_and_the_rest_is_drawn(
    copied: Path, page_of: Page, digests: dict[str, str]
) -> None:
    evidence_of(copied, digests["q4"]).write_bytes(b"PAR1 broken PAR1")
    app = sound(page_of(copied, "items", artifact=digests["q4"], task=MATH))
    assert len(app.error) == 1
    assert "items.parquet" in app.error[0].value
    assert {one.label for one in app.selectbox} >= {"Model", "Task"}
    # Another task of the same model, and another model, are as they were.
    app.query_params["task"] = READING
    assert len(sound(app.run()).dataframe[0].value) == 50
    app.query_params.update({"artifact": digests["q8"], "task": MATH, "with": digests["q4"]})
    app = sound(app.run())
    assert "Nothing is shown beside" in texts(app, "warning")
    assert len(app.dataframe[0].value) == 50


def test_broken_and_missing_files(copied: Path, page_of: Page, digests: dict[str, str]) -> None:
    evidence_of(copied, digests["q4"]).unlink()
    metas = sorted((copied / "evidence").glob("*/*/*/meta.json"))
    mine = digests["base (attempt 1)"].removeprefix("sha256:")
    broken = [path for path in metas if mine in str(path)]
    broken[0].write_text("{")
    broken[1].write_text(json.dumps({"artifact": 1, "task": [], "protocol": None, "n_total": "x"}))
    app = sound(page_of(copied, "items", artifact=digests["q4"], task=MATH))
    assert "No item of it is known yet" in texts(app, "info")
    assert len(app.warning) == 2
    assert all("meta.json" in one.value for one in app.warning)


def test_a_workspace_without_evidence_says_what_to_type(copied: Path, page_of: Page) -> None:
    for path in sorted((copied / "evidence").glob("*/*/*/meta.json")):
        path.unlink()
    assert "cogumi eval" in texts(sound(page_of(copied, "items")), "code")
    assert "cogumi compare" in texts(sound(page_of(copied, "compare")), "code")


# Compare ------------------------------------------------------------------------------------------


def test_differences_are_those_of_the_engine(view: View, digests: dict[str, str]) -> None:
    known = catalogue(view)
    a, b = digests["base (attempt 2)"], digests["q8"]
    found = compare(known, a, b, TASKS)
    pairs, both = [], []
    for task in TASKS:
        mine, other = known.of(a, task)[0], known.of(b, task)[0]
        scores = mine.file.scores()[:60], other.file.scores()
        seed = int(mine.told("order")[7:23], 16)
        pairs.append(PairedTask(task=task, a=scores[0], b=scores[1], n_total=mine.n_total, seed=seed))
        both.append((scores[1], mine.n_total))
    assert found.of == compare_tasks(pairs)
    assert found.score_b == macro_score(both)
    assert found.whole
    assert found.speed_ratio is None
    assert "stacks differ (backend)" in found.speed_note
    assert any("backend (hf and gguf)" in note for note in found.notes)
    assert any("not all items" in note for note in found.notes)


def test_speeds_of_one_stack_have_a_ratio(view: View, digests: dict[str, str]) -> None:
    found = compare(catalogue(view), digests["q8"], digests["q4"], TASKS)
    assert found.speed_note == ""
    assert found.speed_ratio == pytest.approx(1.0)
    assert found.speed_a == pytest.approx(10 / 0.02)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("items", "others", "items differ"),
        ("order", "another", "the order of the items differs"),
        ("family", "micro/other", "protocol families differ (micro/exact, micro/other)"),
    ],
)
def test_what_cannot_be_paired_is_refused(
    copied: Path, page_of: Page, digests: dict[str, str], name: str, value: str, why: str
) -> None:
    from cogumi.evidence import EvidenceFile, EvidenceKey

    q4 = [one for one in list_evidence(copied / "evidence") if one.key.artifact == digests["q4"]]
    moved = next(one for one in q4 if one.key.task == MATH)
    protocol = {**moved.key.protocol, name: value}
    target = EvidenceFile(copied / "evidence", EvidenceKey(moved.key.artifact, MATH, protocol))
    meta = json.loads((moved.folder / "meta.json").read_text()) | {"protocol": protocol}
    moved.folder.rename(target.folder)
    (target.folder / "meta.json").write_text(json.dumps(meta))
    view = open_view(copied, RUN)
    found = compare(catalogue(view), digests["q8"], digests["q4"], TASKS)
    assert [(one.task, one.why) for one in found.refused] == [(MATH, why)]
    assert not found.whole
    if name != "family":
        return
    app = sound(page_of(copied, "compare", pinned=digests["q8"], **{"with": digests["q4"]}))
    assert "not paired" in texts(app, "warning")
    suite = app.dataframe[0].value
    assert np.isnan(suite["Score"].astype(float)[0])
    assert suite["Difference, 95 %"][0] == "–"
    assert suite["Tasks"][0] == "1 of 2"


def test_the_page_tells_differences_flips_and_sizes(page: Page, digests: dict[str, str], view: View) -> None:
    app = sound(page("compare"))
    assert not app.error
    assert not app.warning
    chosen = {one.label: one.value for one in app.selectbox}
    assert chosen["Baseline (pinned)"] == digests["base (attempt 2)"]
    assert app.multiselect[0].value == [digests["q8"], digests["q4"]]
    found = compare(catalogue(view), digests["base (attempt 2)"], digests["q4"], TASKS)
    assert found.of is not None
    suite = app.dataframe[0].value.set_index("Model").loc["q4"]
    assert suite["Difference"] == pytest.approx(found.of.difference)
    assert suite["Got worse"] == sum(task.a_only for task in found.of.tasks)
    assert suite["Difference, 95 %"] == "exact"
    sizes = next(one.value for one in app.dataframe if "MB to download" in one.value).set_index("Model")
    assert sizes.loc["q4", "MB to download"] == pytest.approx(0.048)
    assert sizes.loc["q4", "MB in memory"] == pytest.approx(0.057)
    assert sizes.loc["q4", "Download, ratio to baseline"] == pytest.approx(48_000 / 300_002)
    flips = app.dataframe[-1].value
    assert set(flips["Change"]) <= {"↓ worse", "↑ better"}
    assert all(score != before for score, before in zip(flips["Score"], flips["Baseline"], strict=True))


def test_a_baseline_is_pinned_by_the_address(page: Page, digests: dict[str, str]) -> None:
    both = f"{digests['q4']},{digests['base (attempt 2)']},nonsense"
    app = sound(page("compare", pinned=digests["gpt-4"], suite="general", **{"with": both}))
    assert "nonsense" in texts(app, "warning")
    assert {one.label: one.value for one in app.selectbox}["Baseline (pinned)"] == digests["gpt-4"]
    assert list(app.dataframe[0].value["Model"]) == ["q4", "base (attempt 2)"]
    assert "simulated" in texts(app, "markdown")
    # Whoever is pinned is not compared with itself.
    app.query_params["pinned"] = digests["q4"]
    app = sound(app.run())
    assert list(app.dataframe[0].value["Model"]) == ["base (attempt 2)"]


def test_a_broken_file_refuses_its_task_alone(copied: Path, digests: dict[str, str]) -> None:
    evidence_of(copied, digests["q4"], READING).write_bytes(b"junk")
    found = compare(catalogue(open_view(copied, RUN)), digests["q8"], digests["q4"], TASKS)
    assert [one.task for one in found.refused] == [READING]
    assert "items.parquet" in found.refused[0].why
    assert [pair.task for pair in found.pairs] == [MATH]


def test_models_without_a_common_task(copied: Path, page_of: Page, digests: dict[str, str]) -> None:
    for task in TASKS:
        evidence_of(copied, digests["q4"], task).unlink()
    app = sound(page_of(copied, "compare", pinned=digests["q8"], **{"with": digests["q4"]}))
    assert "no item is known of both" in texts(app, "warning")
    assert not app.dataframe
