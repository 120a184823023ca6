"""On which side each patient stands: locked for tests, or to be learnt from."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table(
        "sides",
        sa.Column("patient", sa.Text, primary_key=True),
        sa.Column("side", sa.Text, nullable=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("seq", sa.Integer, sa.ForeignKey("ledger.seq"), nullable=False),
    )
