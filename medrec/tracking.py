"""The searchable copy in MLflow: the one room that knows MLflow.

Filled from the store's outbox, at least once and made idempotent: a case's tag is looked for before a run is created,
and what a killed night left is taken up again. Invariants: nothing here decides anything; MLflow away never stops a
night; nothing but what a report holds gets in.
"""

import hashlib
import json
import os
import secrets
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medrec.config import CardFiles
from medrec.errors import WorldError
from medrec.home import Home
from medrec.report import DISCLAIMER
from medrec.store import CaseRow

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_AI_GATEWAY": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "GIT_PYTHON_REFRESH": "quiet",
}
os.environ.update(ENVIRONMENT)  # before the first import: MLflow reads them while it is imported

from mlflow.entities import Metric, Param, Run, RunTag  # noqa: E402
from mlflow.tracking import MlflowClient  # noqa: E402

BATCH, CASE, REPORT = "medrec.batch", "medrec.case", "medrec.report_sha256"
NOTE = "mlflow.note.content"
# Opens the experiment in MLflow's classic view, with runs and artifacts, instead of the one for language models.
KIND = {"mlflow.experimentKind": "custom_model_development"}
PARENT = "mlflow.parentRunId"


@dataclass(frozen=True, slots=True)
class Delivery:
    """Where MLflow keeps a case."""

    run_id: str


class Tracker:
    """MLflow's client on the home's own database, or on the server that MLFLOW_TRACKING_URI names."""

    def __init__(self, home: Home, experiment: str) -> None:
        """Raises WorldError when MLflow cannot be reached. `fresh` says that it held no experiment of ours."""
        self._home = home
        self._versions: dict[str, str] = {}
        self._parents: dict[str, str] = {}
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        with _MlflowAway():
            if not uri:
                _create_database(home.mlflow_database)
                uri = f"sqlite:///{home.mlflow_database}"
            self._client = MlflowClient(uri, uri)
            found = self._client.get_experiment_by_name(experiment)
            self.fresh = found is None
            self._experiment: str = (
                found.experiment_id
                if found is not None
                else self._client.create_experiment(experiment, str(home.mlflow_artifacts / "runs"), KIND)
            )

    def start_batch(self, batch: str, started_ms: int) -> None:
        """Make sure that the batch has its run, and close what killed nights left open."""
        with _MlflowAway():
            for run in self._search("attributes.status = 'RUNNING'"):
                if run.data.tags.get(BATCH) != batch and CASE not in run.data.tags:
                    self._client.set_terminated(run.info.run_id, "KILLED")
            self._parent(batch, started_ms)

    def finish_batch(
        self, batch: str, outcome: str, description: str, counts: Mapping[str, int], summary: str, head: str
    ) -> None:
        """Close the batch's run with its counts, its summary (JSON) and the ledger's head as an anchor."""
        with _MlflowAway():
            run_id = self._parent(batch, None)
            metrics = [Metric(name, float(value), 0, 0) for name, value in counts.items()]
            tags = [RunTag(NOTE, description), RunTag("medrec.ledger_head", head)]
            self._client.log_batch(run_id, metrics, (), tags)
            self._client.log_text(run_id, summary, "batch.json")
            self._client.update_run(run_id, name=f"night {_moment(batch)}: {outcome}")
            self._client.set_terminated(run_id)

    def deliver(self, row: CaseRow, now_ms: int) -> Delivery:
        """Log one case as a child of its batch; a case that is there already is only found.

        A run that holds another report of this case (it failed, and was tried again) is deleted.
        """
        folder = (self._home.root / (row.report or "")).parent
        report = (folder / "report.json").read_bytes()
        digest = hashlib.sha256(report).hexdigest()
        with _MlflowAway():
            run = None
            for found in self._search(f"tags.`{CASE}` = '{row.case}'"):
                if found.data.tags.get(REPORT) != digest or run is not None:
                    self._client.delete_run(found.info.run_id)
                else:
                    run = found
            run = run or self._create(row, digest, now_ms)
            if run.info.status != "FINISHED":
                self._fill(run.info.run_id, row, folder, json.loads(report), now_ms)
            self._mark_superseded(row)
            return Delivery(run.info.run_id)

    def _mark_superseded(self, row: CaseRow) -> None:
        if row.supersedes is not None:
            for old in self._search(f"tags.`{CASE}` = '{row.supersedes}'"):
                self._client.set_tag(old.info.run_id, "medrec.superseded_by", row.case)

    def register(self, model: CardFiles) -> str:
        """The registered version of a card with its weights; made, and given the alias champion, when new.

        Card and weights are kept as they are (no pickle, no tracing), below the home.
        """
        card = model.card
        if card.digest in self._versions:
            return self._versions[card.digest]
        name = f"medrec-{card.name}"
        with _MlflowAway():
            known = self._client.search_model_versions(f"name = '{name}'")
            version = next((v for v in known if v.tags.get("medrec.card_sha256") == card.digest), None)
            if version is None:
                if not self._client.search_registered_models(f"name = '{name}'"):
                    self._client.create_registered_model(name, {"medrec.card": card.name}, card.title)
                version = self._client.create_model_version(
                    name,
                    str(self._store_model(model)),
                    tags={
                        "medrec.version": card.version,
                        "medrec.card_sha256": card.digest,
                        "medrec.weights_sha256": card.weights_digest,
                        "medrec.licence": card.licence,
                    },
                    description=f"{card.title}, {card.version}. {card.intended_use} {DISCLAIMER}",
                )
                self._client.set_registered_model_alias(name, "champion", version.version)
            self._versions[card.digest] = str(version.version)
        return self._versions[card.digest]

    def _store_model(self, model: CardFiles) -> Path:
        folder = self._home.mlflow_artifacts / "models" / model.card.name / model.card.digest
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in model.weights.items():
            shutil.copyfile(path, folder / name)
        (folder / "card.json").write_bytes(model.card.content)
        return folder

    def _search(self, filter_string: str) -> list[Run]:
        runs: list[Run] = self._client.search_runs([self._experiment], filter_string, max_results=1000)
        return runs

    def _parent(self, batch: str, started_ms: int | None) -> str:
        if batch not in self._parents:
            found = [r for r in self._search(f"tags.`{BATCH}` = '{batch}'") if CASE not in r.data.tags]
            run = (
                found[0]
                if found
                else self._client.create_run(self._experiment, started_ms, {BATCH: batch}, f"night {_moment(batch)}")
            )
            self._parents[batch] = run.info.run_id
        return self._parents[batch]

    def _create(self, row: CaseRow, report_sha256: str, now_ms: int) -> Run:
        tags = {CASE: row.case, REPORT: report_sha256, BATCH: row.batch, PARENT: self._parent(row.batch, None)}
        return self._client.create_run(self._experiment, now_ms - row.seconds_ms, tags, _run_name(row))

    def _fill(self, run_id: str, row: CaseRow, folder: Path, facts: Mapping[str, Any], now_ms: int) -> None:
        version = self._versions.get(facts["card_sha256"], "")
        params = {
            "model": facts["model_name"] or "none",
            "model_version": facts["model_version"] or "none",
            "card_sha256": facts["card_sha256"] or "none",
            "config_sha256": facts["config_sha256"],
            "code_version": facts["code_version"],
            **{f"weights_sha256.{name}": digest for name, digest in facts["weights_sha256"].items()},
        }
        tags = {
            "medrec.study": row.study,
            "medrec.patient": row.patient,
            "medrec.status": row.status.value,
            "medrec.verdict": row.verdict.value if row.verdict else row.status.value,
            "medrec.registered_version": version,
            "review.status": "pending",
            NOTE: description(facts),
        }
        self._client.log_batch(
            run_id,
            [Metric(k, v, now_ms, 0) for k, v in _metrics(facts, row).items()],
            [Param(k, v) for k, v in params.items()],
            [RunTag(k, v) for k, v in tags.items()],
        )
        for name in ("report.html", "report.json"):
            self._client.log_artifact(run_id, str(folder / name))
        self._client.set_terminated(run_id, end_time=now_ms)


def description(facts: Mapping[str, Any]) -> str:
    """The Markdown that MLflow shows with a case: the verdict first."""
    headline = facts["verdict"] or facts["status"]
    lines = [f"## {headline.upper()}", "", facts["verdict_text"] or facts["reason"] or ""]
    lines += [f"- {flag}" for flag in facts["flags"]]
    if facts["findings"]:
        unit = " (nominal)" if facts["geometry_nominal"] else ""
        lines += [
            "",
            f"| lesion | volume ml{unit} | longest axial x perpendicular mm{unit} | side |",
            "|---|---|---|---|",
        ]
        for f in facts["findings"]:
            size = f"{f['longest_axial_mm']:.1f} x {f['perpendicular_mm']:.1f}"
            lines.append(f"| {f['number']} | {f['volume_mm3'] / 1000:.1f} | {size} | {f['side']} |")
    lines += ["", "Open **report.html** under Artifacts.", "", f"*{DISCLAIMER}*"]
    return "\n".join(lines)


def _metrics(facts: Mapping[str, Any], row: CaseRow) -> dict[str, float]:
    metrics = {"seconds": row.seconds_ms / 1000}
    if facts["status"] != "analysed":
        return metrics
    found = facts["findings"]
    metrics |= {"lesions": float(len(found)), "volume_ml": sum(f["volume_mm3"] for f in found) / 1000}
    if found:
        metrics["longest_axial_mm"] = max(f["longest_axial_mm"] for f in found)
        metrics["largest_ml"] = found[0]["volume_mm3"] / 1000
    if facts["slice_probability"]:
        metrics["slice_probability_max"] = max(facts["slice_probability"])
    return metrics


def _moment(batch: str) -> str:
    """A batch's id begins with the moment of its start, UTC: 20261122T010203Z-ab12 to 2026-11-22 01:02."""
    return f"{batch[:4]}-{batch[4:6]}-{batch[6:8]} {batch[9:11]}:{batch[11:13]}"


def _run_name(row: CaseRow) -> str:
    return f"{row.study[:8]} {row.verdict or row.status}"


def _create_database(path: Path) -> None:
    """Make MLflow's database under another name and move it in: a kill in between leaves none, not half of one."""
    if path.exists():
        return
    for left in path.parent.glob(".mlflow-*.db*"):
        left.unlink(missing_ok=True)
    draft = path.with_name(f".mlflow-{secrets.token_hex(4)}.db")
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(f"sqlite:///{draft}", str(path.parent / "mlartifacts")).engine.dispose()
    with closing(sqlite3.connect(draft)) as connection:  # nothing may stay behind in a journal
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    draft.chmod(0o600)
    draft.replace(path)


class _MlflowAway:
    """Turns whatever MLflow raises into a WorldError without its text (which holds SQL and values)."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, WorldError):
            raise WorldError(f"MLflow cannot be reached or written ({type(error).__name__})") from None


def experiment_page(home: Home) -> str:
    """The path of the runs' page in MLflow's web interface: the classic view, with the batches."""
    client = MlflowClient(f"sqlite:///{home.mlflow_database}")
    with _MlflowAway():
        found = [e for e in client.search_experiments() if e.name != "Default"]
    return f"/#/experiments/{found[0].experiment_id}/runs?workflowType=machine_learning" if found else "/"
