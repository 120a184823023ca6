"""The patients of a study whose files name several: each of them may ask for its erasure."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "study_patients",
        sa.Column("study", sa.Text, sa.ForeignKey("studies.study"), primary_key=True),
        sa.Column("patient", sa.Text, primary_key=True),
    )
