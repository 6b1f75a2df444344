from __future__ import annotations

from pathlib import Path

import pytest

from cogumi.errors import RunError
from cogumi.evidence import EvidenceFile, EvidenceKey, Record, list_evidence

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


@pytest.mark.parametrize("start", [0, 2, 5])
def test_nothing_is_measured_twice_or_skipped(tmp_path: Path, start: int) -> None:
    file = EvidenceFile(tmp_path, KEY)
    file.append([record(0)], n_total=9, facts={})
    with pytest.raises(ValueError, match="continues at position 1"):
        file.append([record(start)], n_total=9, facts={})


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
