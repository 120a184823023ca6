"""The tables, as the migrations leave them; a test compares the two."""

import sqlalchemy as sa

META = sa.MetaData()

BATCHES = sa.Table(
    "batches",
    META,
    sa.Column("batch", sa.Text, primary_key=True),
    sa.Column("started_at", sa.Text, nullable=False),
    sa.Column("finished_at", sa.Text),
    sa.Column("summary", sa.Text),
    sa.Column("mlflow_run_id", sa.Text),
)
STUDIES = sa.Table(
    "studies",
    META,
    sa.Column("study", sa.Text, primary_key=True),
    sa.Column("patient", sa.Text, nullable=False),
    sa.Column("first_seen", sa.Text, nullable=False),
)
# Of a study whose files name several patients; it stands under its own name then, and each of them may ask for its
# erasure.
STUDY_PATIENTS = sa.Table(
    "study_patients",
    META,
    sa.Column("study", sa.Text, sa.ForeignKey("studies.study"), primary_key=True),
    sa.Column("patient", sa.Text, primary_key=True),
)
LEDGER = sa.Table(
    "ledger",
    META,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("previous", sa.Text, nullable=False, unique=True),
    sa.Column("digest", sa.Text, nullable=False, unique=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
)
# What each record is about: for its story and for the order of kinds. `verify` does not rely on it.
LEDGER_SUBJECTS = sa.Table(
    "ledger_subjects",
    META,
    sa.Column("seq", sa.Integer, sa.ForeignKey("ledger.seq"), primary_key=True, autoincrement=False),
    sa.Column("subject", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Index("ledger_subjects_by_subject", "subject", "kind"),
    sa.Index("ledger_subjects_by_kind", "kind"),
)
# What a patient's digests in the ledger are keyed with; when it is gone, nobody can tell whose they were.
SALTS = sa.Table(
    "salts",
    META,
    sa.Column("patient", sa.Text, primary_key=True),
    sa.Column("salt", sa.Text, nullable=False),
)
# Patients who asked to be forgotten: known by pseudonym only, so that the next night does not take them in again.
ERASED_PATIENTS = sa.Table(
    "erased",
    META,
    sa.Column("patient", sa.Text, primary_key=True),
    sa.Column("at", sa.Text, nullable=False),
)
CASES = sa.Table(
    "cases",
    META,
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
    sa.Index("cases_by_study", "study", "model"),
    sa.Index("cases_by_batch", "batch"),
)
# What is kept of a case in a few numbers (`medrec.observed`, JSON): for the watch, and for what to label next.
OBSERVED = sa.Table(
    "observed",
    META,
    sa.Column("case", sa.Text, sa.ForeignKey("cases.case"), primary_key=True),
    sa.Column("site", sa.Text, nullable=False),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("scanner", sa.Text, nullable=False),
    sa.Column("numbers", sa.Text, nullable=False),
)
# What a challenger said beside the champion of one study (`medrec.shadow`, JSON): it leaves the store for nowhere.
SHADOWS = sa.Table(
    "shadows",
    META,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("study", sa.Text, sa.ForeignKey("studies.study"), nullable=False),
    sa.Column("patient", sa.Text, nullable=False),
    sa.Column("card", sa.Text, nullable=False),
    sa.Column("beside", sa.Text, nullable=False),
    sa.Column("batch", sa.Text, nullable=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("facts", sa.Text, nullable=False),
    sa.Column("seq", sa.Integer, sa.ForeignKey("ledger.seq"), nullable=False),
    sa.Index("shadows_by_card", "card"),
)
OUTBOX = sa.Table(
    "outbox",
    META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("case", sa.Text, sa.ForeignKey("cases.case"), nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("why", sa.Text),
    sa.Column("tried_at", sa.Text),
    sa.Column("delivered_at", sa.Text),
    sa.Column("leased_by", sa.Text),
    sa.Column("leased_until", sa.Text),
    sa.Index("outbox_by_kind", "kind", "delivered_at"),
)
DELIVERIES = sa.Table(
    "deliveries",
    META,
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
    sa.Index("deliveries_by_state", "state"),
)
# Work in progress: no key of `cases`, for a case that is being worked on has no row yet.
CLAIMS = sa.Table(
    "claims",
    META,
    sa.Column("case", sa.Text, primary_key=True),
    sa.Column("worker", sa.Text, nullable=False),
    sa.Column("until", sa.Text, nullable=False),
)
ACCEPTED = sa.Table(
    "accepted",
    META,
    sa.Column("case", sa.Text, sa.ForeignKey("cases.case"), primary_key=True),
    sa.Column("reviewer", sa.Text, nullable=False),
    sa.Column("at", sa.Text, nullable=False),
)
RECALLED = sa.Table(
    "recalled",
    META,
    sa.Column("case", sa.Text, sa.ForeignKey("cases.case"), primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("at", sa.Text, nullable=False),
)
# What may be labelled: a series as the volume that it becomes, or a single image. `image` is the pseudonym of the one
# or the other; shape, affine, instances, inputs, cards and names are JSON.
KNOWN = sa.Table(
    "known",
    META,
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
    sa.Index("known_by_study", "study"),
)
# A label in force has no `superseded_by`; at most one is, for each card, image and `what` ("mask" or "class").
LABELS = sa.Table(
    "labels",
    META,
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
    sa.Index("labels_by_card", "card", "image", "what"),
)
# What people answered to reports. A signed answer has `key` and `signature`, one that anybody may have typed has none;
# `problem` says why such a one is no answer. Never changed.
REVIEWS = sa.Table(
    "reviews",
    META,
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
    sa.Index("reviews_by_case", "case"),
)
# Labels that are asked for: `wants` is "blind", or "any" that is not the network's own answer.
LABEL_REQUESTS = sa.Table(
    "label_requests",
    META,
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
    sa.Index("label_requests_by_study", "study"),
)
# On which side a patient stands, for every model of this store: see `medrec.splits`.
SIDES = sa.Table(
    "sides",
    META,
    sa.Column("patient", sa.Text, primary_key=True),
    sa.Column("side", sa.Text, nullable=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("seq", sa.Integer, sa.ForeignKey("ledger.seq"), nullable=False),
)

# The fields of a case that its ledger record repeats, so that a changed row is noticed. Not the patient's
# pseudonym: the ledger cannot forget, and a patient may ask to be forgotten. What could be computed from somebody's
# files or UIDs goes in keyed with the patient's salt (SALTED), which can be forgotten.
SEALED = (
    "case",
    "study",
    "batch",
    "model",
    "version",
    "inputs_sha256",
    "status",
    "reason",
    "verdict",
    "report",
    "supersedes",
    "finished_at",
    "seconds_ms",
)
SALTED = ("study", "inputs_sha256")
# Of the facts that a case's record holds beside its row.
SALTED_FACTS = ("inputs", "pixels", "stages")
