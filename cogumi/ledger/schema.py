"""The ledger's tables; ``cogumi/migrations`` builds exactly these (a test holds that)."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

HEAD_REVISION = "0002"
"""Newest alembic revision; compared without importing alembic, which costs half a second."""

metadata = MetaData()

runs = Table(
    "runs",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("profile_name", String(200), nullable=False),
    Column("profile_digest", String(80), nullable=False),
    Column("profile", JSON, nullable=False),
    Column("accepted_infeasible", JSON, nullable=False),
    Column("status", String(20), nullable=False),
    Column("exit_code", Integer),
    Column("note", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
)

steps = Table(
    "steps",
    metadata,
    Column("run", String(200), primary_key=True),
    Column("step", String(200), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("key", String(80), nullable=False, index=True),
    Column("kind", String(20), nullable=False),
    Column("status", String(20), nullable=False),
    Column("artifact", String(80)),
    Column("note", Text, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("finished_at", Float),
)

calls = Table(
    "calls",
    metadata,
    Column("key", String(80), primary_key=True),
    Column("run", String(200), nullable=False, index=True),
    Column("step", String(200), nullable=False),
    Column("provider", String(80), nullable=False),
    Column("model", String(200), nullable=False),
    Column("response", JSON, nullable=False),
    Column("input_tokens", Integer, nullable=False),
    Column("output_tokens", Integer, nullable=False),
    Column("cost_usd", Float),
    Column("simulated", Boolean, nullable=False),
    Column("batch_id", String(200)),
    Column("created_at", Float, nullable=False),
)

batches = Table(
    "batches",
    metadata,
    Column("key", String(80), primary_key=True),
    Column("run", String(200), nullable=False),
    Column("provider", String(80), nullable=False),
    Column("batch_id", String(200), nullable=False),
    Column("status", String(20), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("requests", JSON),
)

verdicts = Table(
    "verdicts",
    metadata,
    Column("digest", String(80), primary_key=True),
    Column("run", String(200), nullable=False, index=True),
    Column("gate", String(200), nullable=False),
    Column("artifact", String(80), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("verdict", String(20), nullable=False),
    Column("document", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
)

gate_attempts = Table(
    "gate_attempts",
    metadata,
    Column("gate", String(200), primary_key=True),
    Column("items_digest", String(80), primary_key=True),
    Column("artifact", String(80), primary_key=True),
    Column("number", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    UniqueConstraint("gate", "items_digest", "number", name="one_artifact_per_attempt"),
)
