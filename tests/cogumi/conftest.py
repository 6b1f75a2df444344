"""A database of its own for every test that needs PostgreSQL; this folder's helpers made importable."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def postgresql_url() -> Iterator[str]:
    """An empty database on the server of ``COGUMI_TEST_POSTGRES_URL``, dropped after the test."""
    from sqlalchemy import create_engine, make_url, text

    given = os.environ.get("COGUMI_TEST_POSTGRES_URL")
    if not given:
        pytest.fail("COGUMI_TEST_POSTGRES_URL is not set; `make test-postgresql` starts a server and sets it")
    url = make_url(given)
    name = f"cogumi_test_{uuid.uuid4().hex}"
    server = create_engine(url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        with server.connect() as connection:
            # A test that failed may have left its connections open.
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        server.dispose()
