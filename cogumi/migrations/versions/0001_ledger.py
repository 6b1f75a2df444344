"""The first schema of the ledger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("profile_name", sa.String(200), nullable=False),
        sa.Column("profile_digest", sa.String(80), nullable=False),
        sa.Column("profile", sa.JSON, nullable=False),
        sa.Column("accepted_infeasible", sa.JSON, nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("exit_code", sa.Integer),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
    )
    op.create_table(
        "steps",
        sa.Column("run", sa.String(200), primary_key=True),
        sa.Column("step", sa.String(200), primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True),
        sa.Column("key", sa.String(80), nullable=False, index=True),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("artifact", sa.String(80)),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("started_at", sa.Float, nullable=False),
        sa.Column("finished_at", sa.Float),
    )
    op.create_table(
        "calls",
        sa.Column("key", sa.String(80), primary_key=True),
        sa.Column("run", sa.String(200), nullable=False, index=True),
        sa.Column("step", sa.String(200), nullable=False),
        sa.Column("provider", sa.String(80), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("response", sa.JSON, nullable=False),
        sa.Column("input_tokens", sa.Integer, nullable=False),
        sa.Column("output_tokens", sa.Integer, nullable=False),
        sa.Column("cost_usd", sa.Float),
        sa.Column("simulated", sa.Boolean, nullable=False),
        sa.Column("batch_id", sa.String(200)),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "batches",
        sa.Column("key", sa.String(80), primary_key=True),
        sa.Column("run", sa.String(200), nullable=False),
        sa.Column("provider", sa.String(80), nullable=False),
        sa.Column("batch_id", sa.String(200), nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "verdicts",
        sa.Column("digest", sa.String(80), primary_key=True),
        sa.Column("run", sa.String(200), nullable=False, index=True),
        sa.Column("gate", sa.String(200), nullable=False),
        sa.Column("artifact", sa.String(80), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("verdict", sa.String(20), nullable=False),
        sa.Column("document", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "gate_attempts",
        sa.Column("gate", sa.String(200), primary_key=True),
        sa.Column("items_digest", sa.String(80), primary_key=True),
        sa.Column("artifact", sa.String(80), primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.UniqueConstraint("gate", "items_digest", "number", name="one_artifact_per_attempt"),
    )


def downgrade() -> None:
    for table in ("gate_attempts", "verdicts", "batches", "calls", "steps", "runs"):
        op.drop_table(table)
