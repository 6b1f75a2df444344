from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogumi import evidence
from cogumi.errors import RunError
from cogumi.evidence import EvidenceFile, EvidenceKey, Merged, Record, list_evidence

KEY = EvidenceKey("sha256:ab", "micro/math", {"family": "f", "backend": "hf"})


def record(position: int, score: float = 1.0) -> Record:
    return Record(position, f"i{position}", "math", score, "stop", 3, 2, 0.1, 0.0, "p", "o", {"x": 1.0})


def test_grows_in_order_and_is_joined_at_the_end(tmp_path: Path) -> None:
    file = EvidenceFile(tmp_path, KEY)
    assert not file.exists
    assert file.count() == 0
    assert len(file.scores()) == 0
    file.append([record(0), record(1, 0.0)], n_total=3, facts={"stack": {"v": "1"}})
    assert file.count() == 2
    assert [path.name for path in sorted(file.folder.glob("*.parquet"))] == ["part-00000000.parquet"]
    file.append([record(2, 0.5)], n_total=3, facts={"stack": {"v": "2"}})
    assert file.scores().tolist() == [1.0, 0.0, 0.5]
    assert [path.name for path in file.folder.glob("*.parquet")] == ["items.parquet"]
    assert file.facts() == {"stack": {"v": "2"}}
    assert [found.key.protocol_digest for found in list_evidence(tmp_path)] == [KEY.protocol_digest]


def test_what_is_known_is_never_replaced(tmp_path: Path) -> None:
    file = EvidenceFile(tmp_path, KEY)
    file.append([record(0), record(1)], n_total=9, facts={})
    file.append([record(1, 0.0), record(2, 0.0)], n_total=9, facts={})
    file.append([], n_total=9, facts={})
    assert file.scores().tolist() == [1.0, 1.0, 0.0]
    assert file.missing(0, 9) == [(3, 9)]


@pytest.mark.parametrize("positions", [[0, 2], [1, 0], [-1, 0], [8, 9]])
def test_positions_must_be_consecutive_and_of_the_task(tmp_path: Path, positions: list[int]) -> None:
    with pytest.raises(ValueError, match="position"):
        EvidenceFile(tmp_path, KEY).append([record(p) for p in positions], n_total=9, facts={})


def test_only_what_has_no_gap_before_it_counts(tmp_path: Path) -> None:
    file = EvidenceFile(tmp_path, KEY)
    file.append([record(4), record(5)], n_total=9, facts={"stack": {"v": "2"}})
    assert (file.count(), len(file.scores()), file.facts()) == (0, 0, {})
    assert file.missing(0, 9) == [(0, 4), (6, 9)]
    assert file.missing(4, 6) == []
    file.append([record(p) for p in range(4)], n_total=9, facts={"stack": {"v": "1"}, "peak_rss_bytes": 5})
    assert file.count() == 6
    assert file.origins() == [{"stack": {"v": "1"}}, {"stack": {"v": "2"}}]
    file.append([record(p) for p in range(6, 9)], n_total=9, facts={"stack": {"v": "1"}, "peak_rss_bytes": 7})
    assert [path.name for path in file.folder.glob("*.parquet")] == ["items.parquet"]
    # Joined or not, it is known who answered.
    assert file.origins() == [{"stack": {"v": "1"}}, {"stack": {"v": "2"}}]
    assert file.facts()["peak_rss_bytes"] == 7


def test_decoding_adds_up(tmp_path: Path) -> None:
    file = EvidenceFile(tmp_path, KEY)
    assert file.decoding().tokens_per_second is None
    file.append([record(p) for p in range(3)], n_total=9, facts={})
    assert file.decoding(2).completion_tokens == 4
    both = file.decoding() + file.decoding()
    assert (both.items, both.tokens_per_second) == (6, pytest.approx(20))


@st.composite
def cuts(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """A task's size, and blocks of it that cover all items, overlapping or not, in any order."""
    n = draw(st.integers(1, 12))
    edges = sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=4))})
    blocks = list(pairwise(edges))
    more = draw(st.lists(st.tuples(st.integers(0, n), st.integers(0, n)), max_size=3))
    blocks += [(min(pair), max(pair)) for pair in more]
    return n, draw(st.permutations(blocks))


@given(cuts())
@settings(max_examples=25, deadline=None)
def test_shards_in_any_order_give_what_one_run_gives(case: tuple[int, list[tuple[int, int]]]) -> None:
    n, blocks = case
    with tempfile.TemporaryDirectory() as folder:
        straight, sharded = EvidenceFile(Path(folder) / "a", KEY), EvidenceFile(Path(folder) / "b", KEY)
        straight.append([record(p, p / n) for p in range(n)], n_total=n, facts={"stack": {}})
        known: set[int] = set()
        for start, stop in blocks:
            sharded.append([record(p, p / n) for p in range(start, stop)], n_total=n, facts={"stack": {}})
            known |= set(range(start, stop))
            prefix = next((p for p in range(n) if p not in known), n)
            assert sharded.count() == len(sharded.scores()) == prefix
            lacking = {p for first, last in sharded.missing(0, n) for p in range(first, last)}
            assert lacking == set(range(n)) - known
        assert sharded.table().equals(straight.table())
        assert (sharded.folder / "items.parquet").read_bytes() == (
            straight.folder / "items.parquet"
        ).read_bytes()


IDS = [f"i{p}" for p in range(9)]


def test_two_workspaces_become_one(tmp_path: Path) -> None:
    ours, theirs = EvidenceFile(tmp_path / "ours", KEY), EvidenceFile(tmp_path / "theirs", KEY)
    assert ours.merge(theirs, IDS) == Merged(0, 0, 0)
    assert not ours.exists
    ours.append([record(p) for p in range(3)], n_total=9, facts={"machine": "m1"})
    theirs.append([record(p, 0.0) for p in (2, 3, 4)], n_total=9, facts={"machine": "m2"})
    theirs.append([record(p) for p in (7, 8)], n_total=9, facts={"machine": "m3"})
    assert ours.merge(theirs, IDS) == Merged(4, 1, 1)
    assert ours.scores().tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert ours.missing(0, 9) == [(5, 7)]
    assert ours.merge(theirs, IDS) == Merged(0, 5, 1)
    ours.append([record(5), record(6)], n_total=9, facts={"machine": "m1"})
    assert ours.count() == 9
    assert [origin["machine"] for origin in ours.origins()] == ["m1", "m2", "m3"]
    # A whole file merges as well, into nothing and into itself.
    fresh = EvidenceFile(tmp_path / "fresh", KEY)
    assert fresh.merge(ours, IDS) == Merged(9, 0, 0)
    assert fresh.table().equals(ours.table())
    assert ours.merge(ours, IDS) == Merged(0, 9, 0)


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([replace(record(4), item_id="other")], "position 4 is item 'other', here it is 'i4'"),
        ([record(4, 2.0)], r"the score 2.0 at position 4"),
        ([record(4, float("nan"))], "the score nan"),
        ([record(9)], "position 9 where 9 of 9 belongs"),
    ],
)
def test_a_part_that_is_no_evidence_on_these_items_is_named_and_nothing_is_taken(
    tmp_path: Path, records: list[Record], told: str
) -> None:
    ours, theirs = EvidenceFile(tmp_path / "ours", KEY), EvidenceFile(tmp_path / "theirs", KEY)
    theirs.append([record(0)], n_total=20, facts={})
    theirs.append(records, n_total=20, facts={})
    with pytest.raises(RunError, match=told) as error:
        ours.merge(theirs, IDS)
    assert f"part-{records[0].position:08d}.parquet" in str(error.value)
    assert ours.count() == 0


def test_a_part_under_a_wrong_name_or_cut_short_is_named(tmp_path: Path) -> None:
    ours, theirs = EvidenceFile(tmp_path / "ours", KEY), EvidenceFile(tmp_path / "theirs", KEY)
    theirs.append([record(0)], n_total=9, facts={})
    part = theirs.folder / "part-00000000.parquet"
    moved = part.rename(part.with_name("part-00000003.parquet"))
    with pytest.raises(RunError, match="position 0 where 3 of 9 belongs"):
        ours.merge(theirs, IDS)
    moved.write_bytes(moved.read_bytes()[:-20])
    with pytest.raises(RunError, match=r"part-00000003\.parquet: broken"):
        ours.merge(theirs, IDS)
    moved.rename(part.with_name("part-x.parquet"))
    with pytest.raises(RunError, match=r"part-x\.parquet"):
        theirs.count()


def test_meta_of_another_key_is_named(tmp_path: Path) -> None:
    ours, theirs = EvidenceFile(tmp_path / "ours", KEY), EvidenceFile(tmp_path / "theirs", KEY)
    theirs.append([record(0)], n_total=9, facts={})
    meta = theirs.folder / "meta.json"
    meta.write_text(meta.read_text().replace("sha256:ab", "sha256:cd"))
    with pytest.raises(RunError, match=r"meta\.json: it tells of another artifact"):
        ours.merge(theirs, IDS)
    meta.write_text("{}")
    with pytest.raises(RunError, match=r"meta\.json: broken"):
        ours.merge(theirs, IDS)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"artifact": 1, "task": "t", "protocol": {}}'])
def test_one_broken_meta_leaves_the_other_evidence_listed(tmp_path: Path, text: str) -> None:
    for artifact in ("aa", "bb", "cc"):
        EvidenceFile(tmp_path, EvidenceKey(artifact, "task", {})).append([record(0)], n_total=1, facts={})
    meta = EvidenceFile(tmp_path, EvidenceKey("bb", "task", {})).folder / "meta.json"
    meta.write_text(text)
    broken: list[str] = []
    assert [found.key.artifact for found in list_evidence(tmp_path, broken)] == ["aa", "cc"]
    (line,) = broken
    assert line.startswith(f"{meta}: broken evidence")
    with pytest.raises(RunError, match=r"meta\.json: broken evidence"):
        list_evidence(tmp_path)


@pytest.mark.parametrize("dies_at", range(5))
def test_a_merge_that_dies_at_any_write_is_done_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    ours, theirs = EvidenceFile(tmp_path / "ours", KEY), EvidenceFile(tmp_path / "theirs", KEY)
    for start in (6, 3, 0):
        theirs.append([record(p, 0.5) for p in range(start, start + 2)], n_total=9, facts={})
    for position in (2, 5, 8):
        ours.append([record(position)], n_total=9, facts={})
    writes = 0
    really = evidence.write_atomic

    def dying(path: Path, data: bytes) -> None:
        nonlocal writes
        if writes == dies_at:
            raise RunError("killed")
        writes += 1
        really(path, data)

    monkeypatch.setattr(evidence, "write_atomic", dying)
    with contextlib.suppress(RunError):
        ours.merge(theirs, IDS)
    monkeypatch.setattr(evidence, "write_atomic", really)
    again = EvidenceFile(tmp_path / "ours", KEY)
    again.merge(theirs, IDS)
    assert again.scores().tolist() == [0.5, 0.5, 1.0] * 3
    assert [path.name for path in again.folder.glob("*.parquet")] == ["items.parquet"]


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_evidence import KEY, record
from cogumi.evidence import EvidenceFile
file = EvidenceFile(Path(sys.argv[1]), KEY)
for position in range(int(sys.argv[2]), 400, 2):
    file.append([record(position)], n_total=400, facts={})
    print(position, flush=True)
"""


def test_kill_9_amid_two_writers_loses_nothing_that_was_kept(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    here = str(Path(__file__).parent)
    writers = [
        subprocess.Popen([*command, str(first), here], stdout=subprocess.PIPE, text=True) for first in (0, 1)
    ]
    kept: set[int] = set()
    for writer in writers:
        assert writer.stdout is not None
        kept |= {int(writer.stdout.readline()) for _ in range(12)}
    for writer in writers:
        writer.kill()
        assert writer.stdout is not None
        kept |= {int(line) for line in writer.stdout if line.endswith("\n")}
        writer.wait()
    file = EvidenceFile(tmp_path, KEY)
    lacking = {p for first, last in file.missing(0, 400) for p in range(first, last)}
    assert not kept & lacking
    for first, last in file.missing(0, 400):
        file.append([record(p) for p in range(first, last)], n_total=400, facts={})
    assert file.table(["position"])["position"].to_pylist() == list(range(400))


def test_another_protocol_is_another_file(tmp_path: Path) -> None:
    other = EvidenceKey(KEY.artifact, KEY.task, {**KEY.protocol, "backend": "gguf"})
    EvidenceFile(tmp_path, KEY).append([record(0)], n_total=2, facts={})
    assert EvidenceFile(tmp_path, other).count() == 0


def test_tasks_that_look_alike_do_not_share_a_folder(tmp_path: Path) -> None:
    keys = [EvidenceKey("sha256:ab", task, {}) for task in ("micro/math", "micro-math", "micro:math")]
    assert len({EvidenceFile(tmp_path, key).folder for key in keys}) == 3


def test_a_kill_between_joining_and_tidying_counts_nothing_twice(tmp_path: Path) -> None:
    file = EvidenceFile(tmp_path, KEY)
    file.append([record(0)], n_total=2, facts={})
    part = next(file.folder.glob("part-*.parquet"))
    content = part.read_bytes()
    file.append([record(1)], n_total=2, facts={})
    part.write_bytes(content)
    assert file.count() == 2


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    file = EvidenceFile(tmp_path, KEY)
    file.append([record(0), record(1)], n_total=9, facts={})
    part = next(file.folder.glob("part-*.parquet"))
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(RunError, match="broken evidence file"):
        file.count()
    with pytest.raises(RunError, match="broken evidence file"):
        file.scores()
