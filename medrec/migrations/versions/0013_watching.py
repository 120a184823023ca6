"""What is kept of each case to watch for changes, and what a challenger said beside the champion."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0011"


def upgrade() -> None:
    op.create_table(
        "observed",
        sa.Column("case", sa.Text, sa.ForeignKey("cases.case"), primary_key=True),
        sa.Column("site", sa.Text, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("scanner", sa.Text, nullable=False),
        sa.Column("numbers", sa.Text, nullable=False),
    )
    op.create_table(
        "shadows",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("study", sa.Text, sa.ForeignKey("studies.study"), nullable=False),
        sa.Column("patient", sa.Text, nullable=False),
        sa.Column("card", sa.Text, nullable=False),
        sa.Column("beside", sa.Text, nullable=False),
        sa.Column("batch", sa.Text, nullable=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("facts", sa.Text, nullable=False),
        sa.Column("seq", sa.Integer, sa.ForeignKey("ledger.seq"), nullable=False),
    )
    op.create_index("shadows_by_card", "shadows", ["card"])
