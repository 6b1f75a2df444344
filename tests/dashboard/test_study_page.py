"""The people page on a real study: counts and no mean while it is open, the analysis once it is closed."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cogumi.workspace import Workspace
from evals.human.frozen import FOLDER, write_timeless
from evals.human.plan import study_folder
from evals.human.rows import Submission
from evals.human.store import StudyStore

if TYPE_CHECKING:
    from streamlit.testing.v1 import AppTest

# pytest's importlib mode leaves test folders off the path.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "reports"))
sys.path.insert(0, str(Path(__file__).parents[1] / "human"))

from small_run import Maker, criterion
from small_study import CONSENT, small_plan

Page = Callable[..., "AppTest"]
STEPS = [
    {"id": "base", "plan": "1.6", "uses": "training.sft", "inputs": {}},
    {"id": "people", "plan": "8.2", "gate": "phase8", "artifact": "base"},
]
SCORE = 7


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(Workspace(tmp_path / "workspace"), "r", steps=STEPS, references={}, suites={})


def rated(root: Path, raters: int = 3) -> StudyStore:
    """Make the study phase8 and let simulated raters finish it, all scores ``SCORE`` or one more."""
    store = StudyStore.create(study_folder(root, "phase8"), small_plan("phase8"))
    for token in store.invite(raters, "simulated"):
        rater = store.enter(token)
        assert rater is not None
        store.consent(rater, CONSENT, "en")
        store.instructed(rater)
        for row in store.assignments(rater):
            pair = row.kind == "pair"
            store.submit(
                rater,
                row.position,
                Submission(
                    key=f"k{row.position}",
                    revision=0,
                    score=None if pair else SCORE + (rater + row.position) % 2,
                    preference="left" if pair else None,
                    comment="<b>odd</b>" if row.position == 2 else "",
                    focus_ms=9_000,
                ),
            )
        store.finish(rater)
    return store


def texts(app: AppTest) -> str:
    assert not app.exception
    drawn = [*app.markdown, *app.caption, *app.warning, *app.info, *app.error, *app.code, *app.subheader]
    return "\n".join(str(one.value) for one in drawn)


def test_an_open_study_shows_counts_and_no_mean(maker: Maker, page_of: Page) -> None:
    rated(maker.workspace.root, raters=2).dispose()
    app = page_of(maker.workspace.root, "people", run="r")
    told = texts(app)
    assert "Open: 2 of 3 raters have finished" in told
    assert "2 raters are simulated" in told
    assert "cogumi humaneval status phase8" in told
    tables = "\n".join(frame.value.to_csv() for frame in app.dataframe)
    assert "<b>odd</b>" in tables
    shown = told + "\n".join(f"{one.label} {one.value}" for one in app.metric)
    assert not re.search(rf"mean\D{{0,12}}\d|{SCORE}\.\d", shown.replace("mean rating above **8**", ""))
    assert not [one for one in app.main if one.type == "plotly_chart"]


def test_a_closed_study_shows_its_analysis(maker: Maker, page_of: Page) -> None:
    store = rated(maker.workspace.root)
    store.close()
    store.dispose()
    told = texts(page_of(maker.workspace.root, "people", run="r"))
    assert "The study is closed" in told
    assert "UNDECIDED" in told
    assert "3 of 3 raters are simulated" in told


def test_a_changed_study_is_one_line(maker: Maker, page_of: Page) -> None:
    store = rated(maker.workspace.root)
    store.close()
    store.dispose()
    ratings = study_folder(maker.workspace.root, "phase8") / FOLDER / "ratings.parquet"
    ratings.write_bytes(ratings.read_bytes()[:-1])
    app = page_of(maker.workspace.root, "people", run="r")
    assert "was changed since" in texts(app)


def test_a_rehearsals_study_is_shown_from_its_artifact(maker: Maker, page_of: Page, tmp_path: Path) -> None:
    store = rated(tmp_path)
    frozen = store.close()
    store.dispose()
    staging = maker.workspace.store.new_staging()
    write_timeless(frozen, staging / "payload")
    made_by = {"stage": "people.study", "version": 1, "settings": {}, "inputs": {}}
    study = maker.workspace.store.commit(staging, kind="file", made_by=made_by, facts={}, created="now")
    maker.verdict(
        "phase8", study, criterion("human", "UNDECIDED", 7.5, 8.0, measure="rating", simulated=True)
    )
    told = texts(page_of(maker.workspace.root, "people", run="r"))
    assert "3 of 3 raters are simulated" in told
    assert "those of the table above" not in told
