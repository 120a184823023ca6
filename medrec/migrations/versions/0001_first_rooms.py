"""Batches, studies, cases, the ledger and the outbox.

A migration is never edited after it was released. The tables say what `medrec.store` says; a test compares
them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision: str | None = None

WORDS = "the ledger only grows: its records can be neither changed nor removed"

SQLITE_TRIGGERS = (
    f"CREATE TRIGGER ledger_no_update BEFORE UPDATE ON ledger BEGIN SELECT RAISE(ABORT, '{WORDS}'); END",
    f"CREATE TRIGGER ledger_no_delete BEFORE DELETE ON ledger BEGIN SELECT RAISE(ABORT, '{WORDS}'); END",
    # INSERT OR REPLACE removes the old row without asking the trigger above.
    f"""CREATE TRIGGER ledger_no_replace BEFORE INSERT ON ledger
    WHEN EXISTS (SELECT 1 FROM ledger WHERE seq = NEW.seq OR previous = NEW.previous OR digest = NEW.digest)
    BEGIN SELECT RAISE(ABORT, '{WORDS}'); END""",
)
POSTGRESQL_TRIGGERS = (
    f"""CREATE FUNCTION medrec_ledger_only_grows() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION '{WORDS}' USING ERRCODE = 'integrity_constraint_violation'; END $$""",
    """CREATE TRIGGER ledger_no_change BEFORE UPDATE OR DELETE ON ledger
    FOR EACH ROW EXECUTE FUNCTION medrec_ledger_only_grows()""",
    """CREATE TRIGGER ledger_no_truncate BEFORE TRUNCATE ON ledger
    FOR EACH STATEMENT EXECUTE FUNCTION medrec_ledger_only_grows()""",
)


def upgrade() -> None:
    op.create_table(
        "batches",
        sa.Column("batch", sa.Text, primary_key=True),
        sa.Column("started_at", sa.Text, nullable=False),
        sa.Column("finished_at", sa.Text),
        sa.Column("summary", sa.Text),
    )
    op.create_table(
        "studies",
        sa.Column("study", sa.Text, primary_key=True),
        sa.Column("patient", sa.Text, nullable=False),
        sa.Column("first_seen", sa.Text, nullable=False),
    )
    op.create_table(
        "ledger",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("previous", sa.Text, nullable=False, unique=True),
        sa.Column("digest", sa.Text, nullable=False, unique=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "cases",
        sa.Column("case", sa.Text, primary_key=True),
        sa.Column("study", sa.Text, sa.ForeignKey("studies.study"), nullable=False),
        sa.Column("patient", sa.Text, nullable=False),
        sa.Column("batch", sa.Text, sa.ForeignKey("batches.batch"), nullable=False),
        sa.Column("model", sa.Text),
        sa.Column("version", sa.Text),
        sa.Column("inputs_sha256", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("verdict", sa.Text),
        sa.Column("report", sa.Text),
        sa.Column("supersedes", sa.Text, sa.ForeignKey("cases.case")),
        sa.Column("superseded_by", sa.Text, sa.ForeignKey("cases.case")),
        sa.Column("finished_at", sa.Text, nullable=False),
        sa.Column("seconds_ms", sa.Integer, nullable=False),
        sa.Column("mlflow_run_id", sa.Text),
        sa.Column("seq", sa.Integer, sa.ForeignKey("ledger.seq"), nullable=False, unique=True),
    )
    op.create_index("cases_by_study", "cases", ["study", "model"])
    op.create_index("cases_by_batch", "cases", ["batch"])
    op.create_table(
        "outbox",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("case", sa.Text, sa.ForeignKey("cases.case"), nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("why", sa.Text),
        sa.Column("tried_at", sa.Text),
        sa.Column("delivered_at", sa.Text),
    )
    op.create_index("outbox_by_kind", "outbox", ["kind", "delivered_at"])
    sqlite = op.get_bind().dialect.name == "sqlite"
    for statement in SQLITE_TRIGGERS if sqlite else POSTGRESQL_TRIGGERS:
        op.execute(statement)
