"""An open batch knows which calls it asks, so that it is collected however requests are cut later."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("batches", sa.Column("requests", sa.JSON))
