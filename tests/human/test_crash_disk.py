"""A full disk at the server: a clear page, nothing acknowledged, pages still shown, all well when freed."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from test_crash import stored

from benchmarks.human_client import Rater, filled
from benchmarks.human_server import Server
from benchmarks.human_study import make_study

SHORT = {"items": 6, "planted": 1, "repeats": 0, "practice": 0}
LONG = "no end of words " * 120
"""A comment as long as they may be: 2,000 characters."""


@contextmanager
def rater_of(server: Server, token: str) -> Iterator[Rater]:
    rater = Rater(server.url, token)
    assert rater.begin().status_code == httpx.codes.SEE_OTHER
    try:
        yield rater
    finally:
        rater.close()


def refused(rater: Rater, position: int, score: int) -> dict[str, str]:
    """Send a rating that finds no room, as a page and as JSON, and return what was sent."""
    sent = filled(rater.item(position), score, comment=LONG)
    page = rater.post(f"/item/{position}", sent)
    assert page.status_code == httpx.codes.INSUFFICIENT_STORAGE, page.text
    assert page.headers["content-type"].startswith("text/html")
    assert "Traceback" not in page.text
    assert "sqlite" not in page.text.lower()
    told = rater.post(f"/item/{position}", sent, json=True)
    assert told.status_code == httpx.codes.INSUFFICIENT_STORAGE
    assert told.headers["content-type"].startswith("application/json")
    draft = {"csrf": sent["csrf"], "client_seq": "1", "score": str(score), "comment": LONG, "focus_ms": "1"}
    kept = rater.post(f"/item/{position}/draft", draft)
    assert kept.status_code == httpx.codes.INSUFFICIENT_STORAGE
    return sent


def test_no_room_in_a_file_is_told_and_nothing_is_acknowledged(tmp_path: Path) -> None:
    store = make_study(tmp_path / "study", raters=2, **SHORT)
    tokens = store.invite(2)
    ids = [store.enter(token) for token in tokens]
    store.dispose()
    with Server(tmp_path / "study") as server:
        server.start()
        with rater_of(server, tokens[0]) as rater:
            assert rater.post("/item/1", filled(rater.item(1), 7)).status_code == httpx.codes.SEE_OTHER
            server.limit_files(1)
            sent = refused(rater, 2, 9)
            for path in ("/item/1", "/item/2", "/item/3", "/review", "/healthz"):
                assert rater.http.get(path).status_code == httpx.codes.OK, path
            server.limit_files(resource.RLIM_INFINITY)
            # The same form, as the page sends it again by itself.
            assert rater.post("/item/2", sent).status_code == httpx.codes.SEE_OTHER
        server.stop()
    _, current = stored(tmp_path / "study")
    assert current == {(ids[0], 1): (7, 1), (ids[0], 2): (9, 1)}


@pytest.fixture
def small_disk(tmp_path: Path) -> tuple[list[str], Path]:
    """Words that run a command where ``tmp_path/disk`` is a tmpfs of 4 MiB, in a namespace of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f'mount -t tmpfs -o size=4m none {disk} && exec "$@"'
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    if not shutil.which("unshare") or subprocess.run([*words, "true"], check=False).returncode != 0:
        pytest.skip("no user namespace with a mount of its own here")
    return words, disk


def test_a_full_disk_is_told_and_work_goes_on_when_it_is_freed(
    tmp_path: Path, small_disk: tuple[list[str], Path]
) -> None:
    words, disk = small_disk
    with Server(disk / "study", within=words) as server:
        inside = Path(f"/proc/{server.runner_pid}/root/{disk}")
        store = make_study(tmp_path / "study", raters=2, **SHORT)
        tokens = store.invite(2)
        ids = [store.enter(token) for token in tokens]
        store.dispose()
        shutil.copytree(tmp_path / "study", inside / "study")
        server.start()
        with rater_of(server, tokens[0]) as rater:
            assert rater.post("/item/1", filled(rater.item(1), 7)).status_code == httpx.codes.SEE_OTHER
            _fill(inside / "ballast")
            # What the write-ahead log has already taken from the disk is still room: a few may succeed.
            position, told = 1, httpx.codes.SEE_OTHER
            known = {1: 7}
            while told == httpx.codes.SEE_OTHER:
                position = position % 6 + 1
                form = rater.item(position)
                told = rater.post(f"/item/{position}", filled(form, position, comment=LONG)).status_code
                if told == httpx.codes.SEE_OTHER:
                    known[position] = position
            assert told == httpx.codes.INSUFFICIENT_STORAGE
            sent = refused(rater, position, 9)
            (inside / "ballast").unlink()
            assert rater.post(f"/item/{position}", sent).status_code == httpx.codes.SEE_OTHER
            known[position] = 9
        server.stop()
        shutil.copytree(inside / "study", tmp_path / "after")
    _, current = stored(tmp_path / "after")
    assert {position: score for (rater_id, position), (score, _) in current.items()} == known
    assert {rater_id for rater_id, _ in current} == {ids[0]}


def _fill(path: Path) -> None:
    """Take all that is free on a disk."""
    with path.open("wb", buffering=0) as ballast:
        for size in (65536, 4096, 1):
            with suppress(OSError):
                while True:
                    ballast.write(b"x" * size)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), path.open("ab", buffering=0) as ballast:
        ballast.write(b"x" * 4096)
