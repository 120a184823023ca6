"""What leaves, to a real PACS: nothing unasked, to the right patient, once, confirmed, and taken back."""

import contextlib
import hashlib
import io
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from orthanc import Orthanc, debian, free_port
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage
from pynetdicom import AE, evt
from returned import Made, changed, made
from reviewers import accept, reported, sign

from medrec import dispatch, objects, privacy, story
from medrec.config import Configuration
from medrec.errors import DataError
from medrec.home import Home
from medrec.objects.outbox import written
from medrec.peers import Destination, DimsePeer, Peer, WebPeer
from medrec.phantom import grid
from medrec.prediction import Returned
from medrec.report import Status, Verdict
from medrec.store import CaseRow, Lesion, State, Store

CASE = "c" * 24
AT = "2026-01-02T03:04:05Z"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    with Store.open(home.store_url) as store:
        store.start_batch("night", AT)
        store.remember_study("study", "patient", AT)
        yield store


@pytest.fixture
def one(tmp_path: Path, configuration: Configuration, home: Home, store: Store) -> Made:
    """A finished case with its objects in the outbox."""
    all_three = Returned(objects=("seg", "sr", "pdf"))
    one = made(tmp_path / "in", configuration, grid((24, 20, 12), (1.1, 0.8, 2.7)), returned=all_three)
    finish(store, home, one)
    return one


def finish(store: Store, home: Home, one: Made, key: str = CASE, study: str = "study") -> None:
    before = home.outbox / CASE if key != CASE and study == "study" else None
    found = objects.make(changed(one.case, case=key), one.source, before)
    objects.place(found, home.outbox / key)
    row = CaseRow(
        case=key, study=study, patient="patient", batch="night", model="phantom", version="1.0.0", inputs_sha256="0",
        status=Status.ANALYSED, reason="", verdict=Verdict.FINDING, report=None, supersedes=None, superseded_by=None,
        finished_at=AT, seconds_ms=1, mlflow_run_id=None,
    )  # fmt: skip
    files = reported(key)["files"] | {f"outbox/{key}/{one.name}": one.sha256 for one in found}
    store.finish(row, {"files": files}, AT)


def send(
    store: Store, home: Home, peer: Peer, release: str = "unreviewed", *, retry: bool = False, **rule: object
) -> dispatch.Delivered:
    rules = (Destination(peer="pacs", release=release, **rule),)  # type: ignore[arg-type]
    return dispatch.deliver(store, home, {"pacs": peer}, rules, lambda: AT, retry=retry)


def states(store: Store) -> list[tuple[str, State]]:
    return [(row.kind, row.state) for row in store.deliveries()]


def dimse(pacs: Orthanc, **more: object) -> DimsePeer:
    return DimsePeer(**pacs.dimse(**more))  # type: ignore[arg-type]


def kinds(store: Store) -> list[str]:
    """What the ledger tells of deliveries, one after the other."""
    return [str(r.facts["state"]) for r in store.ledger() if r.kind.startswith("delivery")]


def source_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "in").iterdir())


@pytest.mark.parametrize("way", ["dimse", "dicomweb"])
def test_what_was_sent_is_there_byte_for_byte_and_confirmed(
    way: str, one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path
) -> None:
    pacs.put(*source_files(tmp_path))
    done = send(store, home, dimse(pacs) if way == "dimse" else WebPeer(**pacs.web()))  # type: ignore[arg-type]
    assert done.counts == {"confirmed": 1}
    assert kinds(store) == ["queued", "sent", "confirmed"]
    there = {m: pacs.instances(m) for m in ("SEG", "SR", "DOC")}
    for path in (home.outbox / CASE).glob("*.dcm"):
        ours = pydicom.dcmread(path)
        other = pydicom.dcmread(io.BytesIO(there[ours.Modality][ours.SOPInstanceUID]))
        assert other == ours
    assert len(pacs.get("/studies")) == 1
    assert list(store.verify()) == []


def test_nothing_leaves_by_default(one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path) -> None:
    pacs.put(*source_files(tmp_path))
    done = send(store, home, dimse(pacs), "never")
    assert (done.rows, store.deliveries()) == ((), ())
    assert pacs.instances("SR") == {}


def test_an_unreviewed_case_waits_and_an_accepted_one_goes_in_other_words(
    one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path
) -> None:
    pacs.put(*source_files(tmp_path))
    assert send(store, home, dimse(pacs), "after_review").counts == {"waiting for review": 1}
    assert pacs.instances("SR") == {}
    accept(store, CASE, "DOE^REVIEWER", "2026-02-03T04:05:06Z")
    assert send(store, home, dimse(pacs), "after_review").counts == {"confirmed": 1}
    (sr,) = (pydicom.dcmread(io.BytesIO(b)) for b in pacs.instances("SR").values())
    (seg,) = (pydicom.dcmread(io.BytesIO(b)) for b in pacs.instances("SEG").values())
    assert (sr.VerificationFlag, sr.PreliminaryFlag) == ("VERIFIED", "FINAL")
    assert sr.VerifyingObserverSequence[0].VerifyingObserverName == "DOE^REVIEWER"
    assert "unreviewed" not in sr.SeriesDescription + seg.SeriesDescription
    assert not [e for e in sr.iterall() if e.keyword == "TextValue" and "not reviewed" in e.value]
    referred = {e.value for e in sr.iterall() if e.keyword == "ReferencedSOPInstanceUID"}
    assert seg.SOPInstanceUID in referred
    unreviewed = pydicom.dcmread(home.outbox / CASE / "sr.dcm")
    assert sr.SOPInstanceUID != unreviewed.SOPInstanceUID
    uids = [[e.value for e in ds.iterall() if e.keyword == "UID"] for ds in (sr, unreviewed)]
    assert uids[0] == uids[1], "the lesions are the same"
    (pdf,) = (pydicom.dcmread(io.BytesIO(b)) for b in pacs.instances("DOC").values())
    assert (pdf.DocumentTitle, pdf.VerificationFlag) == ("AI report, accepted", "VERIFIED")
    for kind in ("SR", "SEG", "DOC"):
        (content,) = pacs.instances(kind).values()
        (tmp_path / kind).write_bytes(content)
        told = subprocess.run([debian("dciodvfy"), "-new", tmp_path / kind], capture_output=True, text=True)
        assert "Error" not in told.stdout + told.stderr


@pytest.mark.parametrize(
    ("keyword", "value", "words"),
    [("PatientID", "SOMEONE-ELSE", "patient id"), ("PatientName", "ELSE^SOMEONE", "name")],
)
def test_results_are_held_when_the_study_there_is_somebody_elses(
    keyword: str, value: str, words: str, one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path
) -> None:
    for path in source_files(tmp_path):
        ds = pydicom.dcmread(path)
        setattr(ds, keyword, value)
        ds.save_as(path)
    pacs.put(*source_files(tmp_path))
    done = send(store, home, dimse(pacs))
    assert done.counts == {"held": 1}
    assert words in done.problems[0]
    assert value not in " ".join(done.problems)
    assert pacs.instances("SR") == {}
    pacs.delete("studies")
    assert "not there" in send(store, home, dimse(pacs)).problems[0]


def test_a_held_delivery_goes_once_the_study_is_there(
    one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path
) -> None:
    assert send(store, home, dimse(pacs)).counts == {"held": 1}
    pacs.put(*source_files(tmp_path))
    assert send(store, home, dimse(pacs)).counts == {"confirmed": 1}


def test_a_pacs_that_is_down_delays_and_never_doubles(
    one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path
) -> None:
    pacs.put(*source_files(tmp_path))
    pacs.kill()
    done = send(store, home, dimse(pacs))
    assert done.counts == {"queued": 1}
    assert "does not answer" in done.problems[0]
    pacs.start()
    assert send(store, home, dimse(pacs)).counts == {"confirmed": 1}
    first = pacs.instances()
    for row in store.deliveries():  # as if the confirmation had been lost
        store.move(row, State.QUEUED, AT, "again")
    assert send(store, home, dimse(pacs)).counts == {"confirmed": 1}
    assert pacs.instances() == first


def test_a_pacs_that_loses_what_it_took_is_found_out(
    one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path
) -> None:
    pacs.put(*source_files(tmp_path))
    taken: list[str] = []

    def swallow(event: object) -> int:
        taken.append(str(event.request.AffectedSOPInstanceUID))  # type: ignore[attr-defined]
        return 0

    with peer_that(swallow) as liar:
        done = send(store, home, liar, check_patient=False)
    assert len(taken) == 3
    assert done.counts == {"queued": 1}
    assert "taken, but not there" in done.rows[0].why
    assert send(store, home, dimse(pacs)).counts == {"confirmed": 1}


@pytest.mark.parametrize(
    ("status", "state"),
    [(0xA700, State.QUEUED), (0x0110, State.QUEUED), (0xA900, State.FAILED), (0xC000, State.FAILED)],
)
def test_a_refusal_is_retried_only_where_the_world_was_down(
    status: int, state: State, one: Made, store: Store, home: Home
) -> None:
    with peer_that(lambda event: status) as peer:
        done = send(store, home, peer, check_patient=False)
    assert [row.state for row in done.rows] == [state]
    assert f"{status:04X}" in done.rows[0].why


def test_a_warning_is_recorded_and_what_was_given_up_goes_when_asked_for(
    one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path
) -> None:
    with peer_that(lambda event: 0xC000) as peer:
        assert send(store, home, peer, check_patient=False).counts == {"failed": 1}
    with peer_that(lambda event: 0xB000) as peer:
        assert send(store, home, peer, check_patient=False).rows == ()
        done = send(store, home, peer, check_patient=False, retry=True)
    assert "seg.dcm: B000" in done.rows[0].warnings
    told = [r.facts.get("warnings") for r in store.ledger() if r.kind == "delivery"]
    assert told == ["report.dcm: B000, seg.dcm: B000, sr.dcm: B000"]


def test_a_wrong_title_is_held_and_named(one: Made, store: Store, home: Home, pacs: Orthanc) -> None:
    done = send(store, home, dimse(pacs, title="NOBODY"))
    assert done.counts == {"held": 1}
    assert "it is not called NOBODY" in done.problems[0]


def test_a_class_that_the_peer_does_not_take_fails_by_name(one: Made, store: Store, home: Home) -> None:
    with peer_that(lambda event: 0, classes=(SegmentationStorage,)) as peer:
        done = send(store, home, peer, check_patient=False)
    assert done.counts == {"failed": 1}
    assert "sr.dcm: no context" in done.rows[0].why


def test_a_peer_that_is_too_slow_is_left_for_later(
    one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path
) -> None:
    pacs.put(*source_files(tmp_path))
    pacs.pause()
    started = time.monotonic()
    done = send(store, home, dimse(pacs, timeout_s=1))
    assert time.monotonic() - started < 10
    assert done.counts == {"queued": 1}
    pacs.go_on()
    assert send(store, home, dimse(pacs)).counts == {"confirmed": 1}


@pytest.mark.parametrize("after_bytes", [3_000, 15_000, 30_000, 50_000])
def test_a_pacs_killed_in_the_middle_of_a_push_ends_with_everything_once(
    after_bytes: int, one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path
) -> None:
    pacs.put(*source_files(tmp_path))
    with relay_that_kills(pacs, after_bytes) as peer:
        assert send(store, home, peer, check_patient=False).counts == {"queued": 1}
    pacs.start()
    assert send(store, home, dimse(pacs)).counts == {"confirmed": 1}
    assert {m: len(pacs.instances(m)) for m in ("SEG", "SR", "DOC")} == {"SEG": 1, "SR": 1, "DOC": 1}
    assert kinds(store)[-2:] == ["sent", "confirmed"]


def test_storage_commitment_confirms(one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path) -> None:
    pacs.put(*source_files(tmp_path))
    assert send(store, home, dimse(pacs), commitment_port=pacs.ours).counts == {"confirmed": 1}


def test_commitment_finds_what_was_lost(one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path) -> None:
    pacs.put(*source_files(tmp_path))
    send(store, home, dimse(pacs), check_patient=False)
    for row in store.deliveries():
        store.move(row, State.SENT, AT, "asked again")
    for instance in pacs.get("/instances"):
        if pacs.get(f"/instances/{instance}/tags?simplify")["Modality"] == "SR":
            pacs.delete_one("instances", instance)
    done = send(store, home, dimse(pacs), commitment_port=pacs.ours)
    assert done.rows[0].why == "taken, but not there: sr.dcm; they are sent again"
    assert send(store, home, dimse(pacs), commitment_port=pacs.ours).counts == {"confirmed": 1}


def test_a_changed_object_is_not_sent(one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path) -> None:
    pacs.put(*source_files(tmp_path))
    path = home.outbox / CASE / "sr.dcm"
    ds = pydicom.dcmread(path)
    ds.PatientID = "SOMEONE-ELSE"
    ds.save_as(path)
    done = send(store, home, dimse(pacs))
    assert done.counts == {"failed": 1}
    assert done.rows[0].why == "sr.dcm of the outbox is not what was written"
    assert pacs.instances("SEG") == {}


def sealed_again(path: Path) -> None:
    """Somebody who knows how UIDs follow from bytes."""
    ds = pydicom.dcmread(path)
    ds.SeriesDescription = "forged"
    path.write_bytes(written(path.name, ds).content)


def test_an_object_that_was_forged_whole_is_not_sent(
    one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path
) -> None:
    pacs.put(*source_files(tmp_path))
    sealed_again(home.outbox / CASE / "sr.dcm")
    done = send(store, home, dimse(pacs))
    assert done.counts == {"failed": 1}
    assert done.rows[0].why == "sr.dcm: not what the ledger tells of"
    assert pacs.instances("SEG") == {}


def test_accepted_objects_and_rejections_are_made_again_and_compared_before_they_leave(
    one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path
) -> None:
    pacs.put(*source_files(tmp_path))
    folder = home.outbox / f"{CASE}-accepted"
    shutil.copytree(home.outbox / CASE, folder)
    assert dispatch.derived(store, home, CASE, "accepted") == "no record tells of it"
    accept(store, CASE, "Dr Reader", AT)
    done = send(store, home, dimse(pacs), "after_review")
    assert done.counts == {"failed": 1}
    assert "not what the ledger tells of" in done.rows[0].why
    shutil.rmtree(folder)
    assert send(store, home, dimse(pacs), "after_review", retry=True).counts == {"confirmed": 1}
    dispatch.recall(store, home, "phantom", "2026-01-01", "quality", lambda: AT)
    assert dispatch.derived(store, home, CASE, "rejected") == ""
    (path,) = (home.outbox / f"{CASE}-rejected").iterdir()
    sealed_again(path)
    assert dispatch.derived(store, home, CASE, "rejected") == f"{path.name}: not what the ledger tells of"


def test_a_later_case_withdraws_what_has_not_left_and_corrects_what_has(
    one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path
) -> None:
    pacs.put(*source_files(tmp_path))
    send(store, home, dimse(pacs))
    other = (Destination(peer="other", release="after_review"),)
    dispatch.plan(store, home, other, AT)
    finish(store, home, one, "d" * 24)
    send(store, home, dimse(pacs))
    where = {(row.case[0], row.destination): row.state for row in store.deliveries()}
    assert where[("c", "other")] is State.WITHDRAWN
    assert where[("d", "pacs")] is State.CONFIRMED
    named = set()
    for content in pacs.instances("SR").values():
        for study in pydicom.dcmread(io.BytesIO(content)).get("PredecessorDocumentsSequence", []):
            named.add(study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
    assert named == {pydicom.dcmread(home.outbox / CASE / "sr.dcm").SOPInstanceUID}


@pytest.mark.parametrize(("reason", "code"), [("quality", "113001"), ("safety", "113037")])
def test_a_recall_rejects_what_has_left_and_stops_what_has_not(
    reason: str, code: str, one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path
) -> None:
    pacs.put(*source_files(tmp_path))
    send(store, home, dimse(pacs))
    assert [a.standing for a in dispatch.recall(store, home, "phantom", "2026-01-01", None, lambda: AT)] == ["in force"]
    assert dispatch.recall(store, home, "phantom", "2026-01-03", None, lambda: AT) == ()
    dispatch.recall(store, home, "phantom", "2026-01-01", reason, lambda: AT)  # type: ignore[arg-type]
    send(store, home, dimse(pacs), "never")  # taking back needs no release
    (affected,) = dispatch.recall(store, home, "phantom", "2026-01-01", None, lambda: AT)
    assert affected.standing == f"recalled ({reason}), rejection confirmed"
    assert affected.sent == ("pacs",)
    (content,) = pacs.instances("KO").values()
    (tmp_path / "ko.dcm").write_bytes(content)
    ko = pydicom.dcmread(tmp_path / "ko.dcm")
    assert ko.ConceptNameCodeSequence[0].CodeValue == code
    rejected = {e.value for e in ko.iterall() if e.keyword == "ReferencedSOPInstanceUID"}
    assert rejected == {pydicom.dcmread(p).SOPInstanceUID for p in (home.outbox / CASE).glob("*.dcm")}
    told = subprocess.run([debian("dciodvfy"), "-new", tmp_path / "ko.dcm"], capture_output=True, text=True)
    assert "Error" not in told.stdout + told.stderr
    rules = (Destination(peer="elsewhere", release="unreviewed"),)
    dispatch.plan(store, home, rules, AT)
    assert {row.destination for row in store.deliveries()} == {"pacs"}, "a recalled case goes nowhere else"


def test_a_case_without_objects_says_why(one: Made, store: Store, home: Home, pacs: Orthanc) -> None:
    why = objects.NotReturnableError("the source has no valid FrameOfReferenceUID")
    objects.place([objects.refusal(why)], home.outbox / CASE)
    done = send(store, home, dimse(pacs))
    assert [(r.state, r.why) for r in store.deliveries()] == [(State.FAILED, str(why))]
    assert pacs.instances() == {}
    assert done.counts == {}


def test_the_ledger_and_the_store_hold_nothing_of_the_person(
    one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path
) -> None:
    pacs.put(*source_files(tmp_path))
    send(store, home, dimse(pacs))
    source = pydicom.dcmread(source_files(tmp_path)[0])
    secret = [str(source[k].value).encode() for k in ("PatientName", "PatientID", "StudyInstanceUID", "SOPInstanceUID")]
    for path in home.root.rglob("*"):
        if path.is_file() and path.suffix != ".dcm":
            assert not [s for s in secret if s in path.read_bytes()], path
    (sent,) = (r.facts["objects"] for r in store.ledger() if r.kind == "delivery")
    digests = {hashlib.sha256(p.read_bytes()).hexdigest() for p in (home.outbox / CASE).glob("*.dcm")}
    assert set(sent.values()) == digests  # type: ignore[attr-defined]


class peer_that:  # noqa: N801
    """A C-STORE peer that answers as `answer` says, and finds `finds`, nothing of what it took."""

    def __init__(
        self, answer: object, classes: tuple[str, ...] | None = None, *, commits: bool = False, finds: object = ()
    ) -> None:
        from medrec.network import contexts

        ae = AE("LIAR")
        for sop_class in classes or contexts.SENT:
            ae.add_supported_context(sop_class)
        ae.add_supported_context(contexts.ASKED[0])
        if commits:  # it takes the question, and never answers it
            ae.add_supported_context(contexts.StorageCommitmentPushModel)
        self._port = free_port()

        def find(event: object) -> Iterator[tuple[int, Dataset]]:
            for instance in finds:  # type: ignore[attr-defined]
                found = Dataset()
                found.SOPInstanceUID = instance
                yield 0xFF00, found

        handlers = [(evt.EVT_C_STORE, answer), (evt.EVT_C_FIND, find)]
        handlers += [(evt.EVT_N_ACTION, lambda event: (0, None))]
        self._ae, self._handlers = ae, handlers

    def __enter__(self) -> DimsePeer:
        self._server = self._ae.start_server(("127.0.0.1", self._port), block=False, evt_handlers=self._handlers)
        return DimsePeer(kind="dimse", host="127.0.0.1", port=self._port, title="LIAR", timeout_s=5)

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()


class relay_that_kills:  # noqa: N801
    """Stands between us and a PACS, and kills it once so many bytes have gone through."""

    def __init__(self, pacs: Orthanc, after_bytes: int) -> None:
        self._pacs, self._left = pacs, after_bytes
        self._listening = socket.create_server(("127.0.0.1", 0))

    def __enter__(self) -> DimsePeer:
        threading.Thread(target=self._serve, daemon=True).start()
        port = self._listening.getsockname()[1]
        return DimsePeer(kind="dimse", host="127.0.0.1", port=port, title="ORTHANC", timeout_s=5)

    def __exit__(self, *_: object) -> None:
        self._listening.close()
        assert self._left <= 0, "the push was over before the kill"

    def _serve(self) -> None:
        ours, _ = self._listening.accept()
        theirs = socket.create_connection(("127.0.0.1", self._pacs.dicom))
        threading.Thread(target=self._back, args=(theirs, ours), daemon=True).start()
        while content := ours.recv(min(4096, self._left)):
            theirs.sendall(content)
            self._left -= len(content)
            if self._left <= 0:
                self._pacs.kill()
                ours.close()
                return

    def _back(self, theirs: socket.socket, ours: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := theirs.recv(4096):
                ours.sendall(content)


def test_who_is_erased_leaves_nothing_in_the_outbox_and_no_delivery(
    one: Made, store: Store, home: Home, configuration: Configuration, pacs: Orthanc, tmp_path: Path
) -> None:
    pacs.put(*source_files(tmp_path))
    send(store, home, dimse(pacs))
    privacy.erase("patient", home, store, configuration)
    assert [p for p in home.outbox.rglob("*") if p.is_file()] == []
    assert store.deliveries() == ()
    assert list(store.verify()) == []


# What must not leave, whatever was configured before


def test_what_was_given_up_is_judged_again_before_it_is_tried_again(
    one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path
) -> None:
    pacs.put(*source_files(tmp_path))
    with peer_that(lambda event: 0xC000) as peer:
        assert send(store, home, peer, check_patient=False).counts == {"failed": 1}
    for rule, state in (("never", State.HELD), ("after_review", State.REVIEW)):
        send(store, home, dimse(pacs), rule, retry=True)
        assert states(store) == [("results", state)]
    for row in store.deliveries():
        store.move(row, State.FAILED, AT)
    finish(store, home, one, "d" * 24)
    dispatch.deliver(store, home, {"pacs": dimse(pacs)}, (), lambda: AT, retry=True)
    assert states(store) == [("results", State.WITHDRAWN)]
    assert pacs.instances("SR") == {}


@pytest.mark.parametrize("later", ["after_review", "never"])
def test_what_was_sent_is_confirmed_under_the_rule_of_that_day(
    later: str, one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path
) -> None:
    pacs.put(*source_files(tmp_path))
    send(store, home, dimse(pacs))
    (row,) = store.deliveries()
    store.move(row, State.SENT, AT, "not asked yet")
    first = pacs.instances()
    assert send(store, home, dimse(pacs), later).counts == {"confirmed": 1}
    assert pacs.instances() == first


def test_a_push_that_was_killed_is_taken_back_as_if_it_had_arrived(one: Made, store: Store, home: Home) -> None:
    def killed(event: object) -> int:
        raise KeyboardInterrupt

    from medrec.network.dimse import DimsePacs

    with pytest.MonkeyPatch.context() as patch, peer_that(lambda event: 0) as peer:
        patch.setattr(DimsePacs, "store", lambda self, files: killed(files))
        with pytest.raises(KeyboardInterrupt):
            send(store, home, peer, check_patient=False)
    dispatch.recall(store, home, "phantom", "2026-01-01", "safety", lambda: AT)
    assert states(store) == [("results", State.WITHDRAWN), ("rejection", State.QUEUED)]


def test_a_recall_sends_nothing_where_nothing_was_ever_sent(one: Made, store: Store, home: Home, pacs: Orthanc) -> None:
    send(store, home, dimse(pacs), "after_review")
    send(store, home, dimse(pacs), "never")
    send(store, home, dimse(pacs), "never")
    (affected,) = dispatch.recall(store, home, "phantom", "2026-01-01", "safety", lambda: AT)
    assert affected.standing == "recalled (safety), never left"
    assert states(store) == [("results", State.WITHDRAWN)]


def test_what_was_taken_back_is_not_sent_again_because_the_pacs_hides_it(
    one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path
) -> None:
    pacs.put(*source_files(tmp_path))
    send(store, home, dimse(pacs))
    (row,) = store.deliveries()
    store.move(row, State.SENT, AT, "not asked yet")
    dispatch.recall(store, home, "phantom", "2026-01-01", "quality", lambda: AT)
    for instance in pacs.get("/instances"):  # as a PACS that follows IOCM does
        if pacs.get(f"/instances/{instance}/tags?simplify")["Modality"] in ("SR", "SEG", "DOC"):
            pacs.delete_one("instances", instance)
    for _ in range(2):
        send(store, home, dimse(pacs))
    assert pacs.instances("SR") == {}
    assert ("rejection", State.CONFIRMED) in states(store)


def test_a_recall_goes_on_where_the_objects_are_gone_and_says_so(
    one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path
) -> None:
    pacs.put(*source_files(tmp_path))
    send(store, home, dimse(pacs))
    for path in (home.outbox / CASE).iterdir():
        path.unlink()
    (affected,) = dispatch.recall(store, home, "phantom", "2026-01-01", "quality", lambda: AT)
    assert affected.standing == "recalled (quality), rejection failed"
    assert "taken back at the PACS itself" in store.deliveries()[-1].why


@pytest.mark.parametrize("release", ["unreviewed", "after_review"])
def test_a_signed_rejection_takes_back_what_was_sent(
    release: str, one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path
) -> None:
    pacs.put(*source_files(tmp_path))
    accept(store, CASE, "DOE^REVIEWER", AT)
    assert send(store, home, dimse(pacs), release).counts == {"confirmed": 1}
    sign(store, CASE, "reject", "ROE^REVIEWER", AT)
    dispatch.take_back(store, home, CASE, "quality", lambda: AT)
    send(store, home, dimse(pacs), release)
    assert states(store) == [("results", State.CONFIRMED), ("rejection", State.CONFIRMED)]
    assert len(pacs.instances("KO")) == 1
    assert [*store.verify(), *store.contradictions()] == []


def test_a_rejected_report_that_waited_never_leaves(
    one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path
) -> None:
    pacs.put(*source_files(tmp_path))
    dispatch.plan(store, home, (Destination(peer="pacs", release="unreviewed"),), AT)
    sign(store, CASE, "reject", "ROE^REVIEWER", AT)
    send(store, home, dimse(pacs))
    assert pacs.instances("SR") == {}
    dispatch.take_back(store, home, CASE, "quality", lambda: AT)
    assert states(store) == [("results", State.WITHDRAWN)]


def test_a_changed_object_is_not_accepted_in_its_new_words(
    one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path
) -> None:
    pacs.put(*source_files(tmp_path))
    path = home.outbox / CASE / "sr.dcm"
    ds = pydicom.dcmread(path)
    next(e for e in ds.iterall() if e.keyword == "TextValue").value = "Nothing of note."
    ds.save_as(path)
    accept(store, CASE, "DOE^REVIEWER", AT)
    done = send(store, home, dimse(pacs), "after_review")
    assert [(r.state, r.why) for r in done.rows] == [(State.FAILED, "sr.dcm: not what the ledger tells of")]
    assert pacs.instances("SR") == {}


def test_a_commitment_that_never_comes_holds_up_nobody(one: Made, store: Store, home: Home, pacs: Orthanc) -> None:
    finish_other(store, home, one)
    with peer_that(lambda event: 0, commits=True) as peer:
        peer = peer.model_copy(update={"timeout_s": 1})
        done = send(store, home, peer, check_patient=False, commitment_port=pacs.ours)
        assert done.counts == {"sent": 2}
        assert [row.attempts for row in done.rows] == [1, 1]
        assert send(store, home, peer, check_patient=False, commitment_port=pacs.ours).counts == {"sent": 2}
    assert len(done.problems) == 1
    assert "did not answer the storage commitment" in done.problems[0]


def finish_other(store: Store, home: Home, one: Made) -> None:
    """A case of another study, so that it supersedes nothing."""
    store.remember_study("other", "patient", AT)
    finish(store, home, one, "e" * 24, study="other")


def test_a_commitment_that_is_not_offered_is_asked_for_by_query(one: Made, store: Store, home: Home) -> None:
    taken: list[str] = []

    def take(event: object) -> int:
        taken.append(str(event.request.AffectedSOPInstanceUID))  # type: ignore[attr-defined]
        return 0

    with peer_that(take, finds=taken) as peer:
        done = send(store, home, peer, check_patient=False, commitment_port=free_port())
    assert done.counts == {"confirmed": 1}


def test_a_destination_gets_only_the_kinds_that_it_takes(
    one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path
) -> None:
    pacs.put(*source_files(tmp_path))
    assert send(store, home, dimse(pacs), objects=("seg", "sr")).counts == {"confirmed": 1}
    assert {kind: len(pacs.instances(kind)) for kind in ("SEG", "SR", "DOC")} == {"SEG": 1, "SR": 1, "DOC": 0}


# Lesions that are known from before


def report_of(home: Home, key: str, lesions: int = 1) -> None:
    (home.reports / key).mkdir()
    (home.reports / key / "report.json").write_text(json.dumps({"findings": [{}] * lesions}))


@pytest.mark.parametrize("release", ["unreviewed", "after_review"])
def test_a_lesion_inherits_its_tracking_only_by_a_match_on_the_record(
    release: str, one: Made, store: Store, home: Home, pacs: Orthanc, tmp_path: Path
) -> None:
    pacs.put(*source_files(tmp_path))
    later = "d" * 24
    finish(store, home, one, later)  # a correction of the same study, and the very same lesion
    for key in (CASE, later):
        report_of(home, key)
    own = [pydicom.dcmread(home.outbox / key / "seg.dcm").SegmentSequence[0].TrackingUID for key in (CASE, later)]
    assert own[0] != own[1], "nothing is inherited by itself"
    dispatch.match(store, home, Lesion(later, 1), Lesion(CASE, 1), "DOE^READER", "same place, half the size", AT)
    accept(store, later, "DOE^READER", AT)
    assert send(store, home, dimse(pacs), release).counts["confirmed"] == 1
    (seg,) = (pydicom.dcmread(io.BytesIO(b)) for b in pacs.instances("SEG").values())
    (sr,) = (pydicom.dcmread(io.BytesIO(b)) for b in pacs.instances("SR").values())
    (segment,) = seg.SegmentSequence
    assert (segment.TrackingUID, segment.TrackingID) == (own[0], f"{CASE[:12]} lesion 1")
    told = {str(e.value) for e in sr.iterall() if e.keyword in ("UID", "TextValue")}
    assert {own[0], f"{CASE[:12]} lesion 1"} <= told
    assert own[1] not in told
    assert seg.SOPInstanceUID in {e.value for e in sr.iterall() if e.keyword == "ReferencedSOPInstanceUID"}
    (content,) = pacs.instances("SEG").values()
    (tmp_path / "seg").write_bytes(content)
    checked = subprocess.run([debian("dciodvfy"), "-new", tmp_path / "seg"], capture_output=True, text=True)
    assert "Error" not in checked.stdout + checked.stderr
    assert "says DOE^READER: same place, half the size" in "\n".join(story.tell(later, store))
    dispatch.recall(store, home, "phantom", "2026-01-01", "safety", lambda: AT)
    send(store, home, dimse(pacs), release)
    assert ("rejection", State.CONFIRMED) in states(store)
    assert list(store.verify()) == []


def test_a_match_with_a_lesion_that_is_not_there_is_refused(one: Made, store: Store, home: Home) -> None:
    finish_other(store, home, one)
    report_of(home, CASE)
    for case, number, words in ((CASE, 2, "its report tells of 1"), ("e" * 24, 1, "no report of case eeee")):
        with pytest.raises(DataError, match=words):
            dispatch.match(store, home, Lesion(case, number), Lesion(CASE, 1), "DOE", "looks alike", AT)
    assert not [r for r in store.ledger() if r.kind == "lesions matched"]
