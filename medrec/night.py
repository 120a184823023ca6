"""One night: index a folder, plan, lead every study through the pipeline, account for every file.

Owns `Night`. Knows nothing of Prefect: a flow calls `scan`, `get_ready`, `analyse` for each case that is
`pending`, three at a time, and `close`. Invariants: seen = analysed + unused + refused + waiting; every planned study
has a line in the summary; an error in one study, or MLflow away, never ends the night.
"""

import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from medrec import anchors, answers, delivery, dispatch, pipeline, planning, privacy, registry, reviewing, sentinels
from medrec.accounts import Account, CaseLine, Summary
from medrec.answers import Synced
from medrec.config import CardFiles, Configuration, unaccepted
from medrec.dicom import Archive, Pseudonyms
from medrec.dicom.renaming import Renamed
from medrec.errors import ConfigError, DataError, WeightsError, WorldError
from medrec.home import Home
from medrec.leases import Leases
from medrec.pace import Begun, Pace, Visit, Window, several
from medrec.pictures import PictureCard, PicturePredictor
from medrec.pipeline import Finished, Setting
from medrec.planning import Planned
from medrec.prediction import Predictor
from medrec.report import Status
from medrec.routing import Routed, RoutedPictures, rules_of
from medrec.series import Reason, Refused, ScanFile, Skipped, Study, group
from medrec.sources import intake
from medrec.store import CaseRow, Store
from medrec.tracking import Tracker
from medrec.worklist import as_facts

Tell = Callable[[str], None]
HELD = "another worker is at it"
LOOK_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Request:
    """What a person asked for.

    `pull` brings the studies of the configured PACS into `input` before; after `window` no study is begun. `only` are
    (study, model) whose analysis alone is wanted; None is everything. `patience_s` is how long another night of the
    home is waited for.
    """

    input: Path
    home: Home
    configuration: Configuration
    reanalyse: bool = False
    pull: bool = False
    window: Window | None = None
    only: frozenset[tuple[str, str]] | None = None
    patience_s: float = 1.0


class Night:
    """A batch in progress; a context manager that holds the home's lock."""

    def __init__(self, request: Request, tell: Tell = lambda text: None) -> None:
        self._request = request
        self._tell = tell
        self.batch = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
        self.planned: tuple[Planned, ...] = ()
        self.deliveries: dict[str, int] = {}
        self._reviews = Synced()
        self._lines: dict[str, CaseLine] = {}
        self._account = Account()
        self._warnings: list[str] = []
        self._predictors: dict[str, Predictor | PicturePredictor] = {}
        self._seen = 0
        self._mlflow_failed = False
        self._tracker: Tracker | None = None
        self._by_case: dict[str, Planned] = {}
        self.pace = Pace()
        self._sentinels: dict[str, str] = {}
        self._noting = threading.Lock()
        self._over = ""  # why no study is begun any more

    def __enter__(self) -> Self:
        request = self._request
        request.home.create()
        request.home.check_input(request.input)
        with ExitStack() as held:
            self._hold(held)
            self._open()
            held.callback(self._store.close)
            held.enter_context(self._leases)
            self._held = held.pop_all()
        return self

    def _hold(self, held: ExitStack) -> None:
        held.enter_context(self._request.home.lock(patience_s=self._request.patience_s))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def _open(self) -> None:
        request, now = self._request, datetime.now(UTC)
        self._store = Store.open(request.home.store_url)
        configuration, self._disabled = registry.in_force(request.configuration, request.home, self._store)
        if problems := unaccepted(configuration):
            raise ConfigError(problems)
        self._store.start_batch(self.batch, _iso(now))
        self._request = replace(request, configuration=configuration)
        # Who holds the home's lock is alone in it: what its night still holds, a killed one left.
        self._store.free_claims(request.home.worker)
        if not self._store.claims(_iso(now)):
            request.home.sweep()
        self._leases = Leases(self._store, request.home.worker, configuration.settings.workers.lease)
        privacy.settle(request.home, self._store)
        self._store.seal_nights(_iso(now))
        privacy.complete_summary(request.home, self._store, configuration.settings.retention, now)
        self._read_from()
        self._note_configuration(now)
        self._tracker = self._reach_mlflow(now)

    def _read_from(self) -> None:
        request, configuration = self._request, self._request.configuration
        rules = rules_of(c.card for c in configuration.cards)
        self._archive = Archive(request.input, Pseudonyms.load(request.home.key), rules, memory=request.home.index)
        original = Renamed.load(request.home.root, request.home.key).original
        self._setting = Setting(self.batch, request.home, self._store, configuration, "", original=original)

    def _note_configuration(self, now: datetime) -> None:
        """Put a configuration that is not the last night's into the ledger, with the key's fingerprint.

        Raises ConfigError for a key that did not make the names in the store.
        """
        privacy.check_key(self._request.home, self._store)
        key = Pseudonyms.load(self._request.home.key).fingerprint
        facts: dict[str, object] = {"configuration": self._request.configuration.sha256, "key": key}
        last = self._store.latest("configuration changed")
        if last is None or last.facts != facts:
            self._store.append("configuration changed", _iso(now), facts)
        if told := reviewing.note_people(self._store, self._request.configuration.settings, _iso(now)):
            self.warn(told)

    def _reach_mlflow(self, now: datetime) -> Tracker | None:
        try:
            tracker = Tracker(self._request.home, self._request.configuration.settings.experiment)
            self._store.free_leases("mlflow", tracker.worker)
            if delivery.begin(self._store, tracker):
                self.warn("MLflow holds nothing of this home: every report is delivered there again")
            tracker.start_batch(self.batch, _ms(now))
            delivery.register_models(self._store, tracker, self._request.configuration.cards)
            delivery.deliver_trainings(self._store, tracker, self._request.home)
            delivery.deliver_batches(self._store, tracker, self._request.home)
        except WorldError as error:
            self.warn(f"{error}; reports are delivered there on a later night")
            return None
        return tracker

    def index(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """`scan` and `get_ready`."""
        self.scan(progress)
        self.get_ready()

    def scan(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Read every file's header and plan what is to be done. `progress` gets files done and in all."""
        self._account, self._seen = Account(), 0
        self._pull()
        files: list[ScanFile] = []
        total = self._archive.count()
        for found in self._archive.scan():
            self._seen += 1
            if self._over:
                self._break_off()
                return
            files += (f for f in found if isinstance(f, ScanFile))
            for refused in (f for f in found if isinstance(f, Refused)):
                self._account.refuse([refused], str(refused))
            if any(isinstance(f, ScanFile) and f.member for f in found):
                self._account.packed.update(f.ordinal for f in found if isinstance(f, ScanFile))
            progress(self._seen, max(total, self._seen))
        erased = self._store.erased_patients()
        self._account.refuse((f for f in files if f.patient in erased), str(Reason.ERASED))
        files = [f for f in files if f.patient not in erased]
        studies = self._arrived(group(files))
        planned = planning.plan(studies, self._request.configuration, self._store.salt, self._disabled)
        self.planned = self._wanted(planned)
        self._by_case = {p.case: p for p in self.planned}
        for each in self.planned:
            self._done(each)

    def _wanted(self, planned: Sequence[Planned]) -> tuple[Planned, ...]:
        """What was asked for; the files of all else are left out, by name."""
        only = self._request.only
        if only is None:
            return tuple(planned)
        wanted = {p.case: (p.study.study, p.model.card.name if p.model is not None else "") in only for p in planned}
        self._account.left_out.update(f.ordinal for p in planned if not wanted[p.case] for f in p.study.files)
        return tuple(p for p in planned if wanted[p.case])

    def _pull(self) -> None:
        """Bring new studies from the configured PACS; one that is away leaves the night with what is here."""
        request, settings = self._request, self._request.configuration.settings
        if not request.pull or settings.intake is None:
            return
        today = datetime.now().date()  # a PACS counts days where it stands
        try:
            done = intake.fill(request.home, settings.intake, settings.peers, None, today, lambda number, total: None)
        except (WorldError, DataError) as error:
            self.warn(f"{error}; the night goes on with what is here")
            return
        for problem in done.problems:
            self.warn(f"pull: {problem}")

    def _arrived(self, studies: Sequence[Study]) -> tuple[Study, ...]:
        """The studies to which nothing was added for a while; the others wait for the next night.

        A file from the future says nothing: the clock that wrote it is wrong.
        """
        quiet_s, now = 60 * self._request.configuration.settings.quiet_minutes, datetime.now(UTC).timestamp()
        here = []
        for study in studies:
            newest = max((t for f in study.files if (t := self._archive.modified(f.ordinal)) <= now), default=0.0)
            if newest > now - quiet_s:
                self._account.waiting.update(f.ordinal for f in study.files)
                self.warn(f"study {study.study[:8]} may still be arriving; it waits for the next night")
            else:
                here.append(study)
        return tuple(here)

    def _break_off(self) -> None:
        """The night was stopped before all was read: of no study it is known whether it is whole."""
        self._account = Account(waiting=set(range(self._seen)))
        self.warn(f"stopped while files were read: {self._over}; everything waits for the next night")

    @property
    def has_work(self) -> bool:
        """Whether any planned case was not done before."""
        return len(self._lines) < len(self.planned)

    def case(self, key: str) -> Planned:
        """The planned case with this key."""
        return self._by_case[key]

    def get_ready(self) -> None:
        """Load the networks that tonight's work needs.

        Raises ConfigError with every card that cannot be used: before any study is touched.
        """
        needed = {
            p.model.card.name: p.model
            for p in self.planned
            if p.model is not None and not isinstance(p.routed, Skipped) and not self.is_done(p)
        }
        problems = []
        for name, model in sorted(needed.items()):
            try:
                self._predictor(model)
            except (ConfigError, WeightsError) as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise ConfigError(problems)

    def prove(self) -> None:
        """Lead studies with known answers through the pipeline. Raises SentinelError when one comes out wrong."""
        self._sentinels = sentinels.watch(self._predictor(sentinels.model()), self._setting)

    def stop(self, why: str) -> None:
        """Begin no more studies; what is in work is finished."""
        self._over = self._over or why

    @property
    def request(self) -> Request:
        """What was asked for."""
        return self._request

    def is_over(self) -> bool:
        """Whether no study is begun any more: the window closed, or the night was stopped."""
        window = self._request.window
        if window is not None and window.closed(datetime.now(UTC)):
            self.stop(f"the night's window closed at {window.until:%H:%M} UTC")
        return bool(self._over)

    def others_at_work(self) -> bool:
        """Whether another worker holds a case of this night."""
        return bool(self._store.claims(_iso(datetime.now(UTC))).keys() & self._by_case.keys())

    def collect(self) -> int:
        """Take up what other workers finished, and bring it to MLflow; returns how many cases are left."""
        for planned in self.planned:
            row = None if self.is_done(planned) else self._store.case(planned.case)
            if row is not None and (row.status is not Status.FAILED or row.batch == self.batch):
                self._note(
                    planned, row, row.status, row.seconds_ms / 1000, pipeline.refused_inputs(row, self._request.home)
                )
        self._deliver()
        return len(self.planned) - len(self._lines)

    def pending(self) -> Iterator[Planned]:
        """The cases to work on, each given out once; when the window closes, or after `stop`, the others wait."""
        left = 0
        for planned in self.planned:
            if self.is_done(planned):
                continue
            if self.is_over():
                left += 1
                self._wait(planned, self._over)
            else:
                yield planned
        if left:
            self.warn(f"{left} of {len(self.planned)} studies wait for the next night: {self._over}")

    def lead(self, begin: Callable[[Planned], Begun], progress: Callable[[int, int], None]) -> None:
        """Lead every pending study through `analyse`, a few at a time; `begin` starts it in a thread of its own."""
        done = len(self._lines)
        for planned, begun in several(self.pending(), begin):
            try:
                begun.result()
            except WorldError as error:
                self.give_up(planned, str(error))
            done += 1
            progress(done, len(self.planned))

    def analyse(self, planned: Planned) -> CaseLine:
        """Lead one study through the pipeline, or find that it was done before, or that another worker is at it.

        Raises WorldError when something outside is down: trying again may help; `give_up` records that it did not.
        """
        if (line := self._done(planned)) is not None:
            return line
        if not self._leases.take(planned.case):
            return self._wait(planned, HELD)
        try:
            # Again: between the question and the claim another worker may have finished it.
            return self._done(planned) or self._analyse(planned)
        finally:
            self._leases.free(planned.case)

    def _done(self, planned: Planned) -> CaseLine | None:
        """The line of a case that was done before."""
        done = planning.already_done(planned, self._store, self._request.reanalyse)
        if done is None:
            return None
        refused = pipeline.refused_inputs(done, self._request.home)
        if done.batch == self.batch:  # another worker did it this night
            return self._note(planned, done, done.status, done.seconds_ms / 1000, refused)
        return self._note(planned, done, Status.ALREADY_DONE, 0.0, refused)

    def _analyse(self, planned: Planned) -> CaseLine:
        visit = self.pace.visit()
        try:
            finished = self._work(planned, visit)
        except WorldError:
            raise
        except Exception as error:  # one poisoned study never takes the night down; the text may quote a header
            return self.give_up(planned, f"internal error ({type(error).__name__})", visit)
        return self._finished(planned, finished, visit)

    def _wait(self, planned: Planned, why: str) -> CaseLine:
        """Leave a case for later, with its files."""
        self._account.waiting.update(f.ordinal for f in planned.routed.files)
        return self._line(planned, Status.WAITING, why, 0.0)

    def _line(self, planned: Planned, status: Status, why: str, seconds: float) -> CaseLine:
        """The line of a case that has no row of this night."""
        line = CaseLine(
            planned.case, planned.study.study, planned.inputs, status.value, why, None, None, None, round(seconds, 3)
        )
        self._lines[planned.case] = line
        return line

    def give_up(self, planned: Planned, why: str, visit: Visit | None = None) -> CaseLine:
        """Record that a study failed for a reason of ours; the next night tries it again."""
        visit = visit or self.pace.visit()
        skipped = Skipped(planned.study.study, Reason.FAILED, why, planned.routed.files)
        try:
            with visit.turn("finish"):
                finished = pipeline.finish(planned, skipped, None, self._setting, _ago(visit.seconds), failure=why)
        except Exception as error:  # the store or the disk itself is down: the summary is what is left
            self.warn(f"a failed study could not be recorded ({type(error).__name__})")
            self._account.refuse(planned.routed.files, f"analysis failed: {why}")
            return self._line(planned, Status.FAILED, why, visit.seconds)
        return self._finished(planned, finished, visit)

    def newest_study(self) -> str | None:
        """When the study that came last was first seen."""
        return self._store.newest_study()

    def is_done(self, planned: Planned) -> bool:
        """Whether the summary has a line for this case."""
        return planned.case in self._lines

    def close(self) -> Summary:
        """Deliver what waits, write the batch's summary, and return it."""
        self._mlflow_failed = False
        self._deliver()
        for planned in self.planned:
            if self.is_done(planned) and self._lines[planned.case].status == Status.WAITING:
                self._done(planned)  # another worker may have finished it by now
        self._find_runs()
        self._review()  # first: what a review has released leaves in the same night
        self._send()
        summary = self.summary()
        now = datetime.now(UTC)
        text = json.dumps(asdict(summary) | {"salt": secrets.token_hex(16)}, indent=1, allow_nan=False)
        self._store.finish_batch(self.batch, _iso(now), text)
        privacy.write_summary(self._request.home, self.batch, text)
        if self._tracker is not None:
            try:
                delivery.deliver_batches(self._store, self._tracker, self._request.home)
            except WorldError as error:
                self.warn(str(error))
        self._anchor(now)
        self._keep()
        return self.summary()

    def _keep(self) -> None:
        """Bring what was written to its second place; what cannot go now goes on a later night."""
        url = self._request.configuration.settings.depot
        if url is None:
            return
        from medrec import depot  # object stores' libraries are large, and few have one

        try:
            depot.synchronise(self._request.home, self._store, depot.Depot(url))
        except (WorldError, ConfigError) as error:
            self.warn(str(error))

    def _anchor(self, now: datetime) -> None:
        """Leave the ledger's signed head where the configuration says."""
        settings = self._request.configuration.settings
        if settings.anchors is None or settings.anchor_key is None:
            return
        try:
            anchors.write(settings.anchors, settings.anchor_key, self._store.position(), _iso(now))
        except (WorldError, ConfigError) as error:
            self.warn(str(error))

    def summary(self) -> Summary:
        """The accounts as they stand."""
        analysed, refused = self._account.settled()
        waiting = self._account.waiting - analysed - refused.keys()
        left_out = self._account.left_out - analysed - refused.keys() - waiting
        files = {
            "seen": self._seen,
            "analysed": len(analysed),
            "unused": self._seen - len(analysed) - len(refused) - len(waiting) - len(left_out),
            "refused": len(refused),
            **({"waiting": len(waiting)} if waiting else {}),
            **({"left out": len(left_out)} if left_out else {}),
        }
        refusals = tuple({"sha256": sha or None, "reason": why} for _, (sha, why) in sorted(refused.items()))
        lines = tuple(self._lines[p.case] for p in self.planned if p.case in self._lines)
        return Summary(
            self.batch,
            files,
            refusals,
            lines,
            tuple(self._warnings),
            self.deliveries,
            self.pace.seconds,
            self._sentinels,
            self._reviews.counts,
            as_facts(self._reviews.overdue),
        )

    def _work(self, planned: Planned, visit: Visit) -> Finished:
        with visit.turn("prepare"):
            prepared = pipeline.prepare(planned, self._archive)
        prediction = None
        if not isinstance(prepared, Skipped):
            assert planned.model is not None
            with visit.turn("predict"):
                prediction = pipeline.predict(prepared, self._predictor(planned.model))
        self._let_earlier_finish(planned)
        with visit.turn("finish"):
            if not self._leases.holds(planned.case):
                raise WorldError("the claim on the case ran out: this machine was held up, or its clock was set")
            begun = _ago(visit.seconds)
            return pipeline.finish(planned, prepared, prediction, self._setting, begun, archive=self._archive)

    def _let_earlier_finish(self, planned: Planned) -> None:
        """Wait while a study before it of the same patient is in work, here or with another worker.

        Of studies that lie in order no two wait for each other; a claim that its worker lost ends the waiting.
        """
        earlier = {p.case for p in self.planned if planning.precedes(p, planned)}
        while earlier & self._store.claims(_iso(datetime.now(UTC))).keys():
            time.sleep(LOOK_EVERY_S)

    def _predictor(self, model: CardFiles) -> Predictor | PicturePredictor:
        """The networks of a card, loaded once in the night."""
        if model.card.digest not in self._predictors:
            from medrec.models import inference, still  # torch and MONAI take seconds: only when there is work

            settings = self._request.configuration.settings
            device = inference.device_name(os.environ.get("MEDREC_DEVICE") or settings.device)
            inference.use_threads(settings.threads)
            card, files = model.card, model.weights
            self._predictors[card.digest] = (
                still.load(card, files, device)
                if isinstance(card, PictureCard)
                else inference.load(card, files, device)
            )
            self._setting = replace(self._setting, device=device, threads=inference.threads())
        return self._predictors[model.card.digest]

    def _finished(self, planned: Planned, finished: Finished, visit: Visit) -> CaseLine:
        line = self._note(planned, finished.row, finished.row.status, visit.seconds, finished.refused)
        with visit.turn("deliver"):
            self._deliver()
        stored = self._store.case(planned.case)
        if stored is not None and stored.mlflow_run_id is not None:
            line = self._note(planned, stored, stored.status, visit.seconds, finished.refused)
        return line

    def _note(
        self, planned: Planned, row: CaseRow, status: Status, seconds: float, refused: Mapping[str, str]
    ) -> CaseLine:
        """Put a case into the summary and its files where they belong."""
        with self._noting:
            return self._noted(planned, row, status, seconds, refused)

    def _noted(
        self, planned: Planned, row: CaseRow, status: Status, seconds: float, refused: Mapping[str, str]
    ) -> CaseLine:
        if row.status is Status.ANALYSED:
            self._account.use(planned.routed.files)
            for file in planned.routed.files:
                if file.sha256 in refused:
                    self._account.refuse([file], refused[file.sha256])
            if isinstance(planned.routed, Routed | RoutedPictures):
                for skipped in planned.routed.defective:
                    self._account.refuse(skipped.files, str(skipped))
        elif not (isinstance(planned.routed, Skipped) and planned.routed.reason is Reason.NO_ROUTE):
            self._account.refuse(planned.routed.files, row.reason)
        line = CaseLine(
            case=row.case,
            study=row.study,
            inputs=tuple(digest for digest in planned.inputs if digest not in refused),
            status=status.value,
            reason=row.reason,
            verdict=row.verdict.value if row.verdict else None,
            report=row.report,
            mlflow_run_id=row.mlflow_run_id,
            seconds=round(seconds, 3),
        )
        self._lines[planned.case] = line
        return line

    def _deliver(self) -> None:
        """Copy what waits in the outbox to MLflow; what cannot be copied now waits on.

        After a failure the next try is the one at the night's end: a locked or slow MLflow costs its patience once.
        """
        if self._tracker is None or self._mlflow_failed:
            return
        self._mlflow_failed = not delivery.deliver_cases(self._store, self._tracker)
        if self._mlflow_failed:
            self.warn("MLflow could not take a report; it is delivered on a later night")

    def _find_runs(self) -> None:
        """Name the MLflow run of each case that got one only now: of a night that MLflow missed, say."""
        for key, line in self._lines.items():
            stored = self._store.case(line.case) if line.mlflow_run_id is None else None
            if stored is not None and stored.mlflow_run_id is not None:
                self._lines[key] = replace(line, mlflow_run_id=stored.mlflow_run_id)

    def _review(self) -> None:
        """Read answers back from MLflow; without it, what was signed still counts."""
        request, settings = self._request, self._request.configuration.settings
        try:
            self._reviews = answers.sync(request.home, self._store, self._tracker, settings, answers.utc_now)
        except (WorldError, DataError) as error:
            self.warn(f"{error}; reviews are read on a later night")
            return
        for problem in self._reviews.problems:
            self.warn(problem)
        if count := len(self._reviews.conflicts):
            self.warn(f"answers to {count} reports are in conflict: medrec review list --conflicts")
        if count := len(self._reviews.overdue):
            self.warn(reviewing.overdue_words(count, settings))

    def _send(self) -> None:
        """Bring to each destination what may go there; what cannot go now waits on."""
        settings = self._request.configuration.settings
        try:
            done = dispatch.deliver(
                self._store, self._request.home, settings.peers, settings.destinations, lambda: _iso(datetime.now(UTC))
            )
        except WorldError as error:
            self.warn(f"{error}; results are sent on a later night")
            return
        for problem in done.problems:
            self.warn(problem)
        if settings.destinations or done.rows:
            self.deliveries = done.counts

    def warn(self, text: str) -> None:
        """Say something to the operator, once, and keep it for the summary."""
        if text not in self._warnings:
            self._warnings.append(text)
            self._tell(text)


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)
