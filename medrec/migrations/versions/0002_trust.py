"""What records are about, salts, the erased, leases of the outbox, and the MLflow run of a batch.

Patients that are here already get the empty salt: their records were written with plain digests, and stay valid.
"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

# As in `medrec.events` when this was released; a migration stands on its own.
CASE_KINDS = ("case analysed", "case refused", "case failed", "case superseded")


def upgrade() -> None:
    op.create_table(
        "ledger_subjects",
        sa.Column("seq", sa.Integer, sa.ForeignKey("ledger.seq"), primary_key=True, autoincrement=False),
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
    )
    op.create_index("ledger_subjects_by_subject", "ledger_subjects", ["subject", "kind"])
    op.create_index("ledger_subjects_by_kind", "ledger_subjects", ["kind"])
    op.create_table(
        "salts", sa.Column("patient", sa.Text, primary_key=True), sa.Column("salt", sa.Text, nullable=False)
    )
    op.create_table("erased", sa.Column("patient", sa.Text, primary_key=True), sa.Column("at", sa.Text, nullable=False))
    op.add_column("outbox", sa.Column("leased_by", sa.Text))
    op.add_column("outbox", sa.Column("leased_until", sa.Text))
    op.add_column("batches", sa.Column("mlflow_run_id", sa.Text))
    connection = op.get_bind()
    connection.execute(sa.text("INSERT INTO salts (patient, salt) SELECT DISTINCT patient, '' FROM studies"))
    add = sa.text("INSERT INTO ledger_subjects (seq, subject, kind) VALUES (:seq, :subject, :kind)")
    for seq, body in connection.execute(sa.text("SELECT seq, body FROM ledger")).all():
        for row in _subjects(seq, bytes(body)):
            connection.execute(add, row)


def _subjects(seq: int, body: bytes) -> list[dict[str, object]]:
    try:
        record = json.loads(body)
        kind, facts = record["kind"], record["facts"]
        names = {f"case {facts[name]}" for name in ("case", "by") if isinstance(facts.get(name), str)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return []  # not a record of ours: for `medrec audit verify` to name
    return [{"seq": seq, "subject": s, "kind": kind} for s in sorted(names)] if kind in CASE_KINDS else []
