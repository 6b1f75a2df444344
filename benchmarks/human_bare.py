"""The load's peer: the least that FastAPI and SQLite take for a page and for one durable row.

``python -m benchmarks.human_bare FILE PORT``. No cookie, token, template, lease or history; the database is
set as the study's is (WAL, ``synchronous=FULL``, ``BEGIN IMMEDIATE``), so the disk's part is the same.
"""

from __future__ import annotations

import sqlite3
import sys
import threading

import uvicorn
from fastapi import FastAPI, Form
from fastapi.responses import PlainTextResponse, RedirectResponse


def bare(path: str) -> FastAPI:
    """Return the app on a database file of its own."""
    app, lock = FastAPI(), threading.Lock()
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        database.execute(f"PRAGMA {pragma}")
    database.execute("CREATE TABLE rating (rater, position, score, key UNIQUE)")

    @app.get("/")
    def page() -> PlainTextResponse:
        return PlainTextResponse("Rate this")

    @app.post("/")
    def rate(
        rater: str = Form(), position: int = Form(), score: int = Form(), key: str = Form()
    ) -> RedirectResponse:
        with lock:
            database.execute("BEGIN IMMEDIATE")
            database.execute("INSERT INTO rating VALUES (?, ?, ?, ?)", (rater, position, score, key))
            database.execute("COMMIT")
        return RedirectResponse("/", status_code=303)

    return app


if __name__ == "__main__":
    uvicorn.run(bare(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
