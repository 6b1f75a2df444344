"""What closing a study writes, and how it is read again: every row, its seal, and nothing more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_study import (
    CONSENT,
    LENGTH,
    SUBJECT,
    Clock,
    answer,
    answer_all,
    begun,
    joined,
    small_plan,
)

from cogumi.errors import RunError
from evals.human import store as store_module
from evals.human.frozen import COLUMNS, Frozen, find_frozen, read_frozen, study_state, write_timeless
from evals.human.plan import study_folder
from evals.human.rows import Submission
from evals.human.store import StudyStore

MakeStore = Callable[..., StudyStore]


def played(store: StudyStore, clock: Clock) -> StudyStore:
    """Let raters of every kind through a study of six places."""
    done, begin, gone, erased, lost = (begun(store, locale) for locale in ("en", "de", "en", "en", "en"))
    joined(store)
    answer_all(store, done, 8, focus_ms=2500)
    store.shown(begin, 3)
    clock.forward(seconds=12.345)
    answer(store, begin, 3, 4, comment='=1+1, "so" \u2014 \u00e9', flag=True)
    answer(store, begin, 3, 6)
    answer(store, gone, 2, 2)
    store.withdraw(gone, erase=False)
    answer(store, erased, 2, 9)
    store.withdraw(erased, erase=True)
    answer(store, lost, 5, 5)
    return store


@pytest.fixture
def closed(new_store: MakeStore, clock: Clock) -> Frozen:
    """A closed study in ``tmp_path/study``."""
    return played(new_store(raters=6), clock).close()


def test_every_rating_is_a_row_and_practice_and_the_erased_are_none(closed: Frozen) -> None:
    rows: list[dict[str, Any]] = closed.table.to_pylist()
    assert list(rows[0]) == list(COLUMNS)
    assert [(row["slot"], row["position"], row["rater"]) for row in rows] == sorted(
        (row["slot"], row["position"], row["rater"]) for row in rows
    )
    by_rater = {
        name: [row for row in rows if row["rater"] == name] for name in ("r0001", "r0002", "r0003", "r0005")
    }
    assert len(rows) == sum(map(len, by_rater.values())) == LENGTH - 1 + 3
    done = by_rater["r0001"]
    assert [row["position"] for row in done] == list(range(2, LENGTH + 1))
    assert {row["kind"] for row in done} == {"scored", "planted", "repeat", "pair"}
    for row in done:
        assert row["system"] == ("planted" if row["kind"] == "planted" else SUBJECT)
        assert row["domain"] == ("general", "science")[int(row["task_id"].removeprefix("task-")) % 2]
        assert (row["score"] is None) == (row["kind"] == "pair") != (row["preference"] is None)
        assert (row["rater_state"], row["source"], row["slot"], row["locale"]) == (
            "finished",
            "human",
            1,
            "en",
        )
        assert (row["focus_ms"], row["wall_ms"], row["revisions"]) == (2500, 0, 1)
    (corrected,) = by_rater["r0002"]
    assert (corrected["score"], corrected["revisions"], corrected["wall_ms"]) == (6, 2, 12345)
    assert (corrected["comment"], corrected["flag"], corrected["rater_state"]) == ("", False, "active")
    (gone,) = by_rater["r0003"]
    assert (gone["rater_state"], gone["score"], gone["wall_ms"]) == ("withdrawn", 2, None)


def test_the_seal_says_who_took_part_and_when(closed: Frozen) -> None:
    assert closed.closed_at == "2026-01-05T08:00:12.345Z"
    assert closed.counts == {
        "invited": 6,
        "started": 6,
        "consented": 5,
        "finished": 1,
        "withdrawn": 1,
        "erased": 1,
        "expired": 0,
        "simulated": 0,
    }
    assert closed.consents == {CONSENT: 5}
    assert closed.plan == small_plan(raters=6)
    again = read_frozen(closed.folder)
    assert (again.counts, again.consents, again.digest) == (closed.counts, closed.consents, closed.digest)
    assert again.table.equals(closed.table)


def test_a_preference_means_a_system_wherever_it_stood(new_store: MakeStore) -> None:
    store = new_store(raters=8)
    sides = set()
    for n in range(8):
        rater = begun(store)
        (pair,) = (row for row in store.assignments(rater) if row.kind == "pair")
        left = "subject" if pair.answers[0].startswith("ours") else "reference"
        sides.add(left)
        chosen = ("left", "right", "tie")[n % 3]
        store.submit(rater, pair.position, Submission("k", 0, preference=chosen))
        other = {"subject": "reference", "reference": "subject"}[left]
        wanted = {"left": left, "right": other, "tie": "tie"}[chosen]
        assert store.rater(rater).pseudonym == f"r{n + 1:04d}"
        sides.add((n, wanted))
    found = [(n, row["preference"]) for n, row in enumerate(store.close().table.to_pylist())]
    assert sides == {"subject", "reference", *found}


def test_equal_studies_freeze_equal_bytes_and_nobody_is_nothing(
    new_store: MakeStore, clock: Clock, tmp_path: Path
) -> None:
    start = clock.now
    digests = set()
    for place in ("one", "two"):
        clock.now = start
        store = StudyStore.create(tmp_path / place / "study", small_plan(raters=6), now=clock)
        digests.add(played(store, clock).close().digest)
        store.dispose()
    assert len(digests) == 1
    files = [(tmp_path / place / "study" / "frozen" / "study.json").read_bytes() for place in ("one", "two")]
    assert files[0] == files[1]
    empty = new_store("empty").close()
    assert (empty.table.num_rows, empty.counts["started"], empty.consents) == (0, 0, {})
    assert empty.table.column_names == list(COLUMNS)


def test_without_times_equal_ratings_give_equal_bytes(
    new_store: MakeStore, closed: Frozen, clock: Clock, tmp_path: Path
) -> None:
    clock.forward(days=30)
    later = played(new_store("later", name="study", raters=6), clock)
    other = later.close()
    assert (other.closed_at, other.table.num_rows) != (closed.closed_at, 0)
    found = []
    for n, frozen in enumerate((closed, other)):
        write_timeless(frozen, tmp_path / f"out-{n}")
        files = [path for path in (tmp_path / f"out-{n}").rglob("*") if path.is_file()]
        found.append({str(path.relative_to(tmp_path / f"out-{n}")): path.read_bytes() for path in files})
    assert found[0] == found[1]
    assert set(found[0]) == {"plan.json", "frozen/ratings.parquet", "frozen/study.json"}
    timeless = read_frozen(tmp_path / "out-0")
    assert (timeless.closed_at, timeless.counts, timeless.plan) == (None, closed.counts, closed.plan)
    assert set(timeless.table["wall_ms"].to_pylist()) == {None}
    assert timeless.table.drop_columns(["wall_ms"]).equals(closed.table.drop_columns(["wall_ms"]))
    assert not any(b"2026-" in data for data in found[0].values())


# Closing ------------------------------------------------------------------------------------------


def test_closing_that_was_cut_off_is_finished_by_closing_again(
    new_store: MakeStore, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "workspace"
    store = StudyStore.create(study_folder(root, "study"), small_plan(raters=6), now=clock)
    played(store, clock)

    def killed(*_: object) -> Frozen:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_frozen", killed)
        with pytest.raises(KeyboardInterrupt):
            store.close()
    closed_at = store.closed_at
    assert closed_at is not None
    assert (study_state(root, "study"), find_frozen(root, "study")) == ("open", None)
    clock.forward(days=1)
    frozen = store.close()
    assert frozen.closed_at == closed_at
    assert study_state(root, "study") == "closed"
    found = find_frozen(root, "study")
    assert found is not None
    assert found.digest == frozen.digest
    # Gone or damaged, it is written again from the database, the same bytes.
    shutil.rmtree(frozen.folder / "frozen")
    assert store.close().digest == frozen.digest
    store.dispose()


def test_a_full_disk_at_closing_is_one_line_and_nothing_is_half(
    store: StudyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store.folder / "frozen").touch()
    with pytest.raises(RunError, match="cannot write"):
        store.close()
    (store.folder / "frozen").unlink()
    assert store.close().table.num_rows == 0


def test_a_workspace_tells_of_its_studies_from_files_alone(new_store: MakeStore, tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    assert (study_state(root, "study"), find_frozen(root, "study")) == (None, None)
    store = StudyStore.create(study_folder(root, "study"), small_plan())
    assert (study_state(root, "study"), find_frozen(root, "study")) == ("open", None)
    store.close()
    store.dispose()
    assert study_state(root, "study") == "closed"


# Reading ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def closed_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a closed study with one rating; only to be copied."""
    store = StudyStore.create(tmp_path_factory.mktemp("closed") / "study", small_plan())
    answer(store, begun(store), 2)
    store.close()
    store.dispose()
    return store.folder


def _document(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "study.json"
        document = {**json.loads(path.read_bytes()), **changes}
        path.write_text(json.dumps({name: value for name, value in document.items() if value != "gone"}))

    return change


def _text(text: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "study.json").write_bytes(text) and None


def _other_ratings(folder: Path) -> None:
    table = pq.read_table(folder / "ratings.parquet")
    scores = pa.array([10] * table.num_rows, pa.int8())
    pq.write_table(
        table.set_column(table.column_names.index("score"), "score", scores), folder / "ratings.parquet"
    )


def _resealed(data: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        import hashlib

        (folder / "ratings.parquet").write_bytes(data)
        _document(ratings_sha256="sha256:" + hashlib.sha256(data).hexdigest())(folder)

    return change


def _other_columns() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"score": [1, 2]}), sink)
    return bytes(sink.getvalue())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda folder: (folder / "study.json").unlink(), "no closed study there"),
        (lambda folder: (folder / "ratings.parquet").unlink(), "ratings.parquet: broken"),
        (_other_ratings, "its SHA-256 is not the one in study.json"),
        (_resealed(b"PAR1 no parquet PAR1"), "ratings.parquet: broken"),
        (_resealed(b""), "ratings.parquet: broken"),
        (_resealed(_other_columns()), "its columns are not those"),
        (_text(b"{"), "study.json: broken"),
        (_text(b"\xff"), "study.json: broken"),
        (_text(b"[" * 100_000), "study.json: broken"),
        (_text(b"[]"), "no schema_version"),
        (_document(schema_version=2), "schema 2 is newer than this program's 1"),
        (_document(schema_version="1"), "no schema_version"),
        (_document(counts="gone"), "KeyError"),
        (_document(counts=[1]), "study.json: broken"),
        (_document(plan={"name": "x"}), "study.json: broken"),
        (_document(plan=None), "study.json: broken"),
        (_document(plan_digest="sha256:0"), "the plan was changed since"),
    ],
)
def test_what_is_wrong_with_frozen_files_is_one_line(
    closed_study: Path, tmp_path: Path, change: Callable[[Path], None], line: str
) -> None:
    folder = shutil.copytree(closed_study, tmp_path / "study")
    change(folder / "frozen")
    with pytest.raises(RunError, match=line) as caught:
        read_frozen(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
