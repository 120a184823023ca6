"""What may be labelled (series and single images that are known), and the labels that people gave."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "known",
        sa.Column("image", sa.Text, primary_key=True),
        sa.Column("study", sa.Text, sa.ForeignKey("studies.study"), nullable=False),
        sa.Column("patient", sa.Text, nullable=False),
        sa.Column("series", sa.Text, nullable=False),
        sa.Column("frame", sa.Text),
        sa.Column("modality", sa.Text, nullable=False),
        sa.Column("cards", sa.Text, nullable=False),
        sa.Column("shape", sa.Text, nullable=False),
        sa.Column("affine", sa.Text),
        sa.Column("instances", sa.Text, nullable=False),
        sa.Column("inputs", sa.Text, nullable=False),
        sa.Column("names", sa.Text, nullable=False),
        sa.Column("geometry_sha256", sa.Text, nullable=False),
        sa.Column("pixels_sha256", sa.Text, nullable=False),
        sa.Column("at", sa.Text, nullable=False),
    )
    op.create_index("known_by_study", "known", ["study"])
    op.create_table(
        "labels",
        sa.Column("label", sa.Text, primary_key=True),
        sa.Column("card", sa.Text, nullable=False),
        sa.Column("study", sa.Text, sa.ForeignKey("studies.study"), nullable=False),
        sa.Column("patient", sa.Text, nullable=False),
        sa.Column("image", sa.Text, nullable=False),
        sa.Column("what", sa.Text, nullable=False),
        sa.Column("mask_sha256", sa.Text),
        sa.Column("classes", sa.Text, nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("source_sha256", sa.Text, nullable=False),
        sa.Column("geometry_sha256", sa.Text, nullable=False),
        sa.Column("pixels_sha256", sa.Text, nullable=False),
        sa.Column("superseded_by", sa.Text),
        sa.Column("seq", sa.Integer, sa.ForeignKey("ledger.seq"), nullable=False, unique=True),
    )
    op.create_index("labels_by_card", "labels", ["card", "image", "what"])
