"""Deliveries to a PACS, and the cases that a person has accepted or taken back."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("case", sa.Text, sa.ForeignKey("cases.case"), nullable=False),
        sa.Column("destination", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("warnings", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("changed_at", sa.Text, nullable=False),
        sa.UniqueConstraint("case", "destination", "kind", name="one_delivery"),
    )
    op.create_index("deliveries_by_state", "deliveries", ["state"])
    op.create_table(
        "accepted",
        sa.Column("case", sa.Text, sa.ForeignKey("cases.case"), primary_key=True),
        sa.Column("reviewer", sa.Text, nullable=False),
        sa.Column("at", sa.Text, nullable=False),
    )
    op.create_table(
        "recalled",
        sa.Column("case", sa.Text, sa.ForeignKey("cases.case"), primary_key=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("at", sa.Text, nullable=False),
    )
