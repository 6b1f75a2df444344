from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path

import pytest

from cogumi.digest import digest_of
from cogumi.errors import RunError, UsageError
from cogumi.store import Artifact, ArtifactStore, write_atomic


def make(store: ArtifactStore, content: str = "hello", facts: dict[str, object] | None = None) -> Artifact:
    staging = store.new_staging()
    (staging / "payload" / "a.txt").write_text(content)
    return store.commit(staging, kind="dataset", made_by={"stage": "t"}, facts=facts or {}, created="now")


def test_equal_content_is_one_artifact(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    first, second = make(store), make(store)
    assert first.digest == second.digest
    assert make(store, "other").digest != first.digest
    assert make(store, facts={"rows": 1}).digest != first.digest
    assert list(store.staging.iterdir()) == []


@pytest.mark.parametrize(
    "manifest",
    ["[]", "{}", "3", '{"kind": "model", "files": [], "facts": {}}', "[" * 100_000],
    ids=["list", "empty", "number", "files a list", "deep"],
)
def test_a_manifest_of_another_shape_is_named(tmp_path: Path, manifest: str) -> None:
    store = ArtifactStore(tmp_path)
    artifact = make(store)
    (artifact.path.parent / "manifest.json").write_text(manifest)
    with pytest.raises(RunError, match=r"manifest\.json is unreadable"):
        store.get(artifact.digest)


def test_a_link_is_followed_and_a_pipe_is_written_to(tmp_path: Path) -> None:
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    target.write_text("old")
    link.symlink_to(target)
    write_atomic(link, b"new")
    assert (link.is_symlink(), target.read_bytes()) == (True, b"new")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_atomic(pipe, b"told")
        assert os.read(reader, 10) == b"told"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_found_by_digest_and_by_unique_prefix(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    artifact = make(store)
    assert store.get(artifact.digest).file("a.txt").read_text() == "hello"
    assert store.get(artifact.short).digest == artifact.digest
    for unknown in ("sha256:" + "0" * 64, "abcdef", "*", "../x", "", "..", "a" * 300):
        with pytest.raises(UsageError):
            store.get(unknown)
    with pytest.raises(RunError, match="no file b"):
        artifact.file("b")


@pytest.mark.parametrize("damage", ["cut", "changed", "manifest", "gone"])
def test_damage_is_found_and_named(tmp_path: Path, damage: str) -> None:
    store = ArtifactStore(tmp_path)
    artifact = make(store)
    store.verify(artifact)
    path = artifact.path / "a.txt"
    if damage == "cut":
        path.write_text("hel")
    elif damage == "changed":
        path.write_text("hellO")
    elif damage == "gone":
        path.unlink()
    else:
        manifest = artifact.path.parent / "manifest.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "facts": {"rows": 9}}))
        artifact = store.get(artifact.digest)
    with pytest.raises(RunError):
        store.verify(artifact)


def test_a_broken_manifest_is_one_line(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    artifact = make(store)
    (artifact.path.parent / "manifest.json").write_text("{")
    with pytest.raises(RunError, match="manifest"):
        store.get(artifact.digest)


def test_sweep_removes_only_what_dead_processes_left(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    mine = store.new_staging()
    child = os.fork()
    if child == 0:
        store.new_staging()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(list(store.staging.iterdir())) == 2
    store.sweep()
    assert list(store.staging.iterdir()) == [mine]


def test_a_full_disk_is_told_and_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    # A file-size limit makes the system refuse the write half-way, as a full disk does.
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_atomic(path, b"x" * 5000)
        except RunError as error:
            os._exit(0 if "cannot write" in str(error) else 3)
        os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        write_atomic(tmp_path / "file" / "below", b"x")


def test_digests_take_any_text() -> None:
    assert digest_of({"b": 1, "a": "\udc80"}) == digest_of({"a": "\udc80", "b": 1})
    assert digest_of([1]) != digest_of(["1"])
