"""What people answered to reports, and the labels that are asked for."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.create_table(
        "reviews",
        sa.Column("review", sa.Text, primary_key=True),
        sa.Column("case", sa.Text, sa.ForeignKey("cases.case"), nullable=False),
        sa.Column("report", sa.Text, nullable=False),
        sa.Column("page", sa.Text, nullable=False),
        sa.Column("decision", sa.Text, nullable=False),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("mask_sha256", sa.Text),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("key", sa.Text),
        sa.Column("signature", sa.Text, unique=True),
        sa.Column("problem", sa.Text, nullable=False),
        sa.Column("seq", sa.Integer, sa.ForeignKey("ledger.seq"), nullable=False, unique=True),
    )
    op.create_index("reviews_by_case", "reviews", ["case"])
    op.create_table(
        "label_requests",
        sa.Column("request", sa.Text, primary_key=True),
        sa.Column("case", sa.Text, sa.ForeignKey("cases.case"), nullable=False),
        sa.Column("study", sa.Text, sa.ForeignKey("studies.study"), nullable=False),
        sa.Column("patient", sa.Text, nullable=False),
        sa.Column("card", sa.Text, nullable=False),
        sa.Column("wants", sa.Text, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("seq", sa.Integer, sa.ForeignKey("ledger.seq"), nullable=False, unique=True),
    )
    op.create_index("label_requests_by_study", "label_requests", ["study"])
