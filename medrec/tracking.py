"""The searchable copy in MLflow: the one room that knows MLflow.

Filled from the store's outbox, at least once and made idempotent: a case's tag is looked for before a run is created
unless nobody can have created one, and what a killed night left is taken up again. `runs`, `artifacts` and `models` say
what MLflow shows, for `mirror` to hold against what was delivered. Invariants: nothing here decides anything; MLflow
away never stops a night; who only looks changes nothing; nothing but what a report holds gets in, and no text of it is
markup there.
"""

import hashlib
import json
import logging
import os
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medrec.config import CardFiles
from medrec.errors import WorldError
from medrec.home import Home
from medrec.report import DISCLAIMER
from medrec.shown import (
    ARTIFACTS,
    BATCH,
    CARD,
    CASE,
    CHALLENGER,
    CHAMPION,
    HEAD,
    MODEL,
    MONITORING,
    MONITORING_NAME,
    NOTE,
    PARENT,
    PENDING,
    RECORDS,
    REPORT,
    REVIEW,
    SHEET,
    STATUS,
    SUPERSEDED_BY,
    TRAINED,
    VERSION,
    VIEW,
    WORKER,
    Registered,
    ShownRun,
    inert,
    metrics_of,
    night_name,
    params_of,
    run_name,
    shown_at,
    tags_of,
)
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

from mlflow.entities import Metric, Param, Run, RunTag, ViewType  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.tracking import MlflowClient  # noqa: E402

# Its own words about a database in trouble are tracebacks with SQL and values; ours are a WorldError.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

# Opens the experiment in MLflow's classic view, with runs and artifacts, instead of the one for language models.
KIND = {"mlflow.experimentKind": "custom_model_development"}
PAGE = 1000


@dataclass(frozen=True, slots=True)
class Delivery:
    """Where MLflow keeps a case or a batch; `tags` are those that were set, `name` what it is called there."""

    run_id: str
    tags: Mapping[str, str]
    name: str


class Tracker:
    """MLflow's client on the home's own database, or on the server that MLFLOW_TRACKING_URI names."""

    def __init__(self, home: Home, experiment: str, *, create: bool = True) -> None:
        """Raises WorldError when MLflow cannot be reached. `fresh` says that it held no experiment of ours.

        Without `create` an experiment that is not there is WorldError too: who only reads makes none.
        """
        self._home = home
        self.worker = home.worker
        self._versions: dict[str, str] = {}
        self._parents: dict[str, str] = {}
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        with _MlflowAway():
            if not uri:
                _create_database(home.mlflow_database)
                uri = f"sqlite:///{home.mlflow_database}"
            self._client = MlflowClient(uri, uri)
            self._local = _local_store(uri)
            found = self._client.get_experiment_by_name(experiment)
            self.fresh = found is None
            if found is None and not create:
                raise WorldError(f"MLflow holds no experiment {experiment}")
            self._experiment: str = (
                found.experiment_id
                if found is not None
                else self._client.create_experiment(experiment, str(home.mlflow_artifacts / "runs"), KIND)
            )

    @staticmethod
    def is_elsewhere() -> bool:
        """Whether MLflow is a server, and not the home's own database."""
        return bool(os.environ.get("MLFLOW_TRACKING_URI"))

    def start_batch(self, batch: str, started_ms: int) -> None:
        """Make sure that the batch has its run, and close what killed nights of this home left open.

        The home's lock is held: no other night of it can be running. Nights of other homes may.
        """
        with _MlflowAway():
            for run in self._search("attributes.status = 'RUNNING'"):
                ours = run.data.tags.get(WORKER, self._home.worker) == self._home.worker
                if ours and run.data.tags.get(BATCH) != batch and CASE not in run.data.tags:
                    self._client.set_terminated(run.info.run_id, "KILLED")
            self._parent(batch, started_ms)

    def place_of(self, batch: str) -> tuple[str, str]:
        """Where the web interface shows the experiment's runs, as a path; and the run of a batch, made when new."""
        with _MlflowAway():
            return f"#/experiments/{self._experiment}/runs", self._parent(batch, None)

    def finish_batch(
        self,
        batch: str,
        outcome: str,
        tags: Mapping[str, str],
        counts: Mapping[str, int],
        files: Mapping[str, str],
        anchor: tuple[int, str],
    ) -> Delivery:
        """Close the batch's run with its counts, its files and the ledger's length and head as an anchor.

        `files` are texts by name; those that are there already are written over.
        """
        with _MlflowAway():
            run_id = self._parent(batch, None)
            before = self._client.get_run(run_id).data.tags
            if HEAD in before and str(before.get(RECORDS, "")).isdecimal():
                anchor = int(before[RECORDS]), before[HEAD]  # an anchor stays: what it holds fast is older
            # Of two values of one moment MLflow shows the larger: counts become less when a patient is erased.
            now_ms = int(time.time() * 1000)
            metrics = [Metric(name, float(value), now_ms, 0) for name, value in counts.items()]
            tags = {**tags, HEAD: anchor[1], RECORDS: str(anchor[0]), BATCH: batch}
            self._client.log_batch(run_id, metrics, (), [RunTag(k, v) for k, v in tags.items()])
            for path, text in files.items():
                self._client.log_text(run_id, text, path)
            name = night_name(batch, outcome)
            self._client.update_run(run_id, name=name)
            self._client.set_terminated(run_id)
            return Delivery(run_id, tags, name)

    def deliver(
        self, row: CaseRow, now_ms: int, *, fresh: bool = False, replaced: tuple[CaseRow, ...] = ()
    ) -> Delivery:
        """Log one case as a child of its batch; a case that is there already is only found, and its tags mended.

        `fresh` says that nobody can have created a run for it, so that none is looked for. A run that holds another
        report of this case (it failed, and was tried again) is deleted. `replaced` are cases that it supersedes.
        """
        folder = (self._home.root / (row.report or "")).parent
        report = (folder / "report.json").read_bytes()
        digest = hashlib.sha256(report).hexdigest()
        facts = json.loads(report)
        with _MlflowAway():
            run = None if fresh else self._adopted(row, digest)
            run = run or self._create(row, digest, now_ms)
            run_id = run.info.run_id
            tags = {**tags_of(row, facts, digest), PARENT: self._parent(row.batch, None)}
            if run.info.status != "FINISHED":
                self._fill(run, row, folder, facts, now_ms, tags)
            elif changed := [RunTag(k, v) for k, v in tags.items() if run.data.tags.get(k) != v]:
                self._client.log_batch(run_id, (), (), changed)
            if run.info.run_name != run_name(row):
                self._client.update_run(run_id, name=run_name(row))
            for old in replaced:
                self._mark_superseded(old, row.case)
            return Delivery(run_id, tags, run_name(row))

    def _adopted(self, row: CaseRow, report_sha256: str) -> Run | None:
        """The run that shows this report of the case; any other of the case is deleted."""
        kept = None
        for found in sorted(self._search(f"tags.`{CASE}` = '{row.case}'"), key=lambda r: r.info.start_time):
            if found.data.tags.get(REPORT) != report_sha256 or kept is not None:
                self._client.delete_run(found.info.run_id)
            else:
                kept = found
        return kept

    def _mark_superseded(self, old: CaseRow, by: str) -> None:
        runs = [old.mlflow_run_id] if old.mlflow_run_id else []
        runs = runs or [r.info.run_id for r in self._search(f"tags.`{CASE}` = '{old.case}'")]
        for run_id in runs:
            self._client.set_tag(run_id, SUPERSEDED_BY, by)

    def register(self, model: CardFiles) -> Registered:
        """The registered version of a card with its weights; made, and given the alias champion, when new.

        Card and weights are kept as they are (no pickle, no tracing), below the home.
        """
        card, name = model.card, f"{MODEL}{model.card.name}"
        with _MlflowAway():
            version = self._version(model)
            if self._champion(name) != str(version.version):
                self._client.set_registered_model_alias(name, CHAMPION, version.version)
            self._versions[card.digest] = str(version.version)
            return _registered(version, self._client.get_registered_model(name).aliases)

    def log_training(self, model: CardFiles, folder: Path, facts: Mapping[str, str]) -> tuple[ShownRun, Registered]:
        """A run for a trained version, with its curves, what was measured and its files; and its registered version.

        `folder` holds its page, curves (*.curves.json) and evaluation.json; `facts` are those of its record, and its
        status. What is there already is written over.
        """
        card = model.card
        with _MlflowAway():
            found = self._search(f"tags.`{TRAINED}` = '{card.digest}'")
            name = f"training {card.name} {card.version}: {facts['status']}"
            tags = {TRAINED: card.digest, "medrec.model": card.name, "medrec.status": facts["status"]}
            run = found[0] if found else self._client.create_run(self._experiment, None, tags, name)
            run_id: str = run.info.run_id
            params = {k: v for k, v in facts.items() if k != "status"} | {"seed": str(card.training.seed)}
            self._client.log_batch(
                run_id, _curves(folder), [Param(k, v[:500]) for k, v in params.items() if k not in run.data.params],
                [RunTag(k, v) for k, v in tags.items()],
            )  # fmt: skip
            for path in sorted(folder.iterdir()):
                if path.suffix != ".safetensors":
                    self._client.log_artifact(run_id, str(path))
            self._client.update_run(run_id, name=name)
            self._client.set_terminated(run_id)
            version = self._version(model, run_id)
            self._client.set_registered_model_alias(version.name, CHALLENGER, version.version)
            aliases = self._client.get_registered_model(version.name).aliases
            return _shown(self._client.get_run(run_id)), _registered(version, aliases)

    def _version(self, model: CardFiles, run_id: str | None = None) -> Any:
        """The registered version of a card; made when there is none."""
        card, name = model.card, f"{MODEL}{model.card.name}"
        known = self._client.search_model_versions(f"name = '{name}'")
        found = next((v for v in known if v.tags.get(CARD) == card.digest), None)
        if found is not None:
            return found
        if not self._client.search_registered_models(f"name = '{name}'"):
            self._client.create_registered_model(name, {"medrec.card": card.name}, inert(card.title))
        tags = {
            "medrec.version": card.version,
            CARD: card.digest,
            "medrec.weights_sha256": card.weights_digest,
            "medrec.licence": card.licence,
        }
        text = f"{card.title}, {card.version}. {card.intended_use}"
        return self._client.create_model_version(
            name, str(self._store_model(model)), run_id, tags, description=f"{inert(text)} {DISCLAIMER}"
        )

    def _champion(self, name: str) -> str | None:
        aliases: Mapping[str, Any] = self._client.get_registered_model(name).aliases
        return str(aliases["champion"]) if "champion" in aliases else None

    def _store_model(self, model: CardFiles) -> Path:
        folder = self._home.mlflow_artifacts / "models" / model.card.name / model.card.digest
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in model.weights.items():
            shutil.copyfile(path, folder / name)
        (folder / "card.json").write_bytes(model.card.content)
        return folder

    def _search(self, filter_string: str) -> list[Run]:
        return list(self._pages(filter_string))

    def _pages(self, filter_string: str, view: int = ViewType.ACTIVE_ONLY) -> Iterator[Run]:
        token: str | None = None
        while True:
            page = self._client.search_runs([self._experiment], filter_string, view, PAGE, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _parent(self, batch: str, started_ms: int | None) -> str:
        if batch not in self._parents:
            # By name too: its cases carry the same tag, and there may be thousands.
            named = f"tags.`{BATCH}` = '{batch}' and attributes.run_name LIKE 'night %'"
            found = [r for r in self._search(named) if CASE not in r.data.tags]
            run = (
                found[0]
                if found
                else self._client.create_run(
                    self._experiment,
                    started_ms,
                    {BATCH: batch, WORKER: self._home.worker},
                    night_name(batch),
                )
            )
            self._parents[batch] = run.info.run_id
        return self._parents[batch]

    def _create(self, row: CaseRow, report_sha256: str, now_ms: int) -> Run:
        tags = {CASE: row.case, REPORT: report_sha256, BATCH: row.batch, PARENT: self._parent(row.batch, None)}
        return self._client.create_run(self._experiment, now_ms - row.seconds_ms, tags, run_name(row))

    def _fill(
        self,
        run: Run,
        row: CaseRow,
        folder: Path,
        facts: Mapping[str, Any],
        now_ms: int,
        tags: Mapping[str, str],
    ) -> None:
        more = {
            VERSION: self._versions.get(facts["card_sha256"], ""),
            STATUS: PENDING,
        }
        self._client.log_batch(
            run.info.run_id,
            [Metric(k, v, now_ms, 0) for k, v in metrics_of(facts, row).items()],
            [Param(k, v) for k, v in params_of(facts).items()],
            [RunTag(k, v) for k, v in {**tags, **more}.items()],
        )
        place = run.info.artifact_uri.removeprefix("file://")
        for name in ARTIFACTS:
            if self._local is not None and place.startswith("/"):  # MLflow would read the run anew for each
                Path(place).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, Path(place, name))
            else:
                self._client.log_artifact(run.info.run_id, str(folder / name))
        self._client.set_terminated(run.info.run_id, end_time=now_ms)

    def answered(self) -> tuple[ShownRun, ...]:
        """The runs of cases that somebody answered by their tags, and those that say where their review stands."""
        with _MlflowAway():
            found = {
                run.info.run_id: run
                for wanted in (f"tags.`{STATUS}` != '{PENDING}'", f"tags.`{REVIEW}` != ''")
                for run in self._pages(wanted)
                if CASE in run.data.tags
            }
            return tuple(_shown(run) for run in found.values())

    def show_review(self, run_id: str, text: str) -> bool:
        """Say with a case where its review stands; False when its run was deleted."""
        with _MlflowAway():
            try:
                if self._client.get_run(run_id).info.lifecycle_stage == "deleted":
                    return False
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return False
            self._client.set_tag(run_id, REVIEW, text)
            return True

    def monitoring(self, recorded: str | None) -> ShownRun | None:
        """The run that shows how the models do over time: the `recorded` one, or one that nobody could record.

        Never another run that somebody gave the tag.
        """
        with _MlflowAway():
            found = self._search(f"tags.`{MONITORING}` = '{self.worker}'")
            if recorded is not None:
                return next((_shown(run) for run in found if run.info.run_id == recorded), None)
            own = [r for r in found if r.info.run_name == MONITORING_NAME and not {BATCH, CASE} & r.data.tags.keys()]
            return _shown(min(own, key=lambda run: run.info.start_time)) if own else None

    def log_monitoring(
        self,
        before: ShownRun | None,
        points: Mapping[str, Sequence[tuple[int, float]]],
        pages: Mapping[str, str],
    ) -> ShownRun:
        """Add points (step, value) to metrics of the run called monitoring, and put pages there, by name.

        `before` is that run, made when it is None. Other metrics and pages of it are left as they are, so that several
        parts of medrec share it.
        """
        with _MlflowAway():
            run_id = before.run_id if before is not None else self._create_monitoring()
            now_ms = int(time.time() * 1000)
            new = []
            for name, values in points.items():
                known = self._client.get_metric_history(run_id, name) if before is not None else []
                there = {m.step: m.value for m in sorted(known, key=lambda m: int(m.timestamp))}
                new += [Metric(name, value, now_ms, step) for step, value in values if there.get(step) != value]
            for start in range(0, len(new), PAGE):
                self._client.log_batch(run_id, new[start : start + PAGE])
            for name, text in pages.items():
                self._client.log_text(run_id, text, name)
            self._client.set_terminated(run_id)
            return _shown(self._client.get_run(run_id))

    def _create_monitoring(self) -> str:
        tags = {MONITORING: self.worker, WORKER: self.worker}
        run = self._client.create_run(self._experiment, None, tags, MONITORING_NAME)
        return str(run.info.run_id)

    def runs(self) -> tuple[ShownRun, ...]:
        """Every run that is not deleted, in one sweep."""
        with _MlflowAway():
            return tuple(_shown(run) for run in self._pages(""))

    def artifacts(self, run: ShownRun) -> dict[str, str]:
        """SHA-256 of every artifact of a run by its path; "" for one that cannot be read."""
        folder = run.place.removeprefix("file://")
        if folder.startswith("/"):
            return _digests(Path(folder))
        with _MlflowAway():
            return {path: self._fetched(run.run_id, path) for path in self._listed(run.run_id, None)}

    def _listed(self, run_id: str, folder: str | None) -> Iterator[str]:
        for found in self._client.list_artifacts(run_id, folder):
            if found.is_dir:
                yield from self._listed(run_id, found.path)
            else:
                yield found.path

    def _fetched(self, run_id: str, path: str) -> str:
        from tempfile import TemporaryDirectory

        with TemporaryDirectory() as place, suppress(Exception):  # a server's own words for "not there"
            return hashlib.sha256(Path(self._client.download_artifacts(run_id, path, place)).read_bytes()).hexdigest()
        return ""

    def models(self) -> tuple[Registered, ...]:
        """Every version of every registered model of ours, as MLflow shows it now."""
        with _MlflowAway():
            return tuple(
                _registered(version, model.aliases)
                for model in self._client.search_registered_models(f"name LIKE '{MODEL}%'", PAGE)
                for version in self._client.search_model_versions(f"name = '{model.name}'")
            )

    def forget(self, cases: tuple[str, ...]) -> int:
        """Take every run of these cases out of MLflow, those deleted before included, with artifacts and tags.

        Returns how many were left on a remote server, which only marks runs as deleted: there, run `mlflow gc`.
        """
        left = 0
        with _MlflowAway():
            for key in cases:
                for run in list(self._pages(f"tags.`{CASE}` = '{key}'", ViewType.ALL)):
                    left += self._forget(run)
        return left

    def _forget(self, run: Run) -> int:
        run_id = run.info.run_id
        if run.info.lifecycle_stage != "deleted":
            self._client.delete_run(run_id)
        folder = run.info.artifact_uri.removeprefix("file://")
        if folder.startswith("/"):
            shutil.rmtree(Path(folder).parent, ignore_errors=True)
        if self._local is None:
            return 1
        self._local._hard_delete_run(run_id)  # what `mlflow gc` calls; there is no other way
        return 0


def _curves(folder: Path) -> list[Metric]:
    """Loss, learning rate and what the watching patients saw, by step, for each network."""
    found = []
    for path in sorted(folder.glob("*.curves.json")):
        network = path.name.removesuffix(".safetensors.curves.json")
        for name, points in json.loads(path.read_text()).items():
            found += [Metric(f"{network}.{name}", float(value), 0, int(step)) for step, value in points]
    evaluation = folder / "evaluation.json"
    if evaluation.exists():
        measured = json.loads(evaluation.read_text())["measured"]
        found += [Metric(f"locked.{k}", float(i["value"]), 0, 0) for k, i in measured.items() if i["value"] is not None]
    return found[:PAGE]  # one batch of MLflow's


def _shown(run: Run) -> ShownRun:
    return ShownRun(
        *(run.info.run_id, run.info.run_name or "", run.info.status, run.info.artifact_uri),
        *(dict(run.data.tags), dict(run.data.params), dict(run.data.metrics)),
    )


def _registered(version: Any, aliases: Mapping[str, str]) -> Registered:
    place = str(version.source).removeprefix("file://")
    told = dict(version.tags) | {NOTE: version.description or ""}
    return Registered(
        card=told.get(CARD, ""),
        name=version.name,
        version=str(version.version),
        files=_digests(Path(place)) if place.startswith("/") else {},
        tags={key: hashlib.sha256(value.encode()).hexdigest() for key, value in told.items()},
        aliases=tuple(sorted(alias for alias, of in aliases.items() if str(of) == str(version.version))),
    )


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of everything below a folder by its path there; "" for what is no readable file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() or not path.is_dir():
            try:
                found[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError:
                found[path.relative_to(folder).as_posix()] = ""
    return found


def _local_store(uri: str) -> Any:
    """MLflow's own store where its database can be reached without a server."""
    if not uri.startswith(("sqlite:", "postgresql")):
        return None
    from mlflow.tracking._tracking_service.utils import _get_store

    return _get_store(uri)


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
    return f"/#/experiments/{found[0].experiment_id}/runs?{VIEW}" if found else "/"


def last_sheet(home: Home) -> str | None:
    """The path of the contact sheet of the night that ended last; None where no night has one."""
    client = MlflowClient(f"sqlite:///{home.mlflow_database}")
    with _MlflowAway():
        ids = [e.experiment_id for e in client.search_experiments() if e.name != "Default"]
        named = "attributes.run_name LIKE 'night %' and attributes.status = 'FINISHED'"
        for run in client.search_runs(ids, named, order_by=["attributes.start_time DESC"], max_results=1):
            if any(found.path == SHEET for found in client.list_artifacts(run.info.run_id)):
                return "/" + shown_at(f"#/experiments/{run.info.experiment_id}/runs", run.info.run_id, SHEET)
    return None
