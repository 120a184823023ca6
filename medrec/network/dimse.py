"""A PACS by DIMSE: C-STORE, C-FIND, C-GET, C-MOVE, storage commitment (DICOM PS3.4 annexes B, C and J)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pynetdicom import build_role, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from medrec.errors import WorldError
from medrec.network import contexts
from medrec.network.association import alive, opened
from medrec.network.commitment import Commitment
from medrec.network.incoming import Guard, number, study_of, uid, value
from medrec.network.listener import Listener
from medrec.network.pacs import (
    MAX_ANSWERS,
    Keep,
    Outcome,
    Person,
    RefusedError,
    SeriesFound,
    StudyFound,
    UnreachableError,
    Wanted,
)
from medrec.peers import DimsePeer, Receive

PENDING = (0xFF00, 0xFF01)
# DICOM PS3.4 B.2.3 and PS3.7 annex C: what a later try may change.
OUT_OF_RESOURCES = range(0xA700, 0xA800)
PROCESSING_FAILURE, RESOURCE_LIMITATION = 0x0110, 0x0213
DUPLICATE = 0x0111  # the same instance is there: a retry arrived before
COERCED = (0xB000, 0xB006, 0xB007)
SUBOPERATIONS_FAILED = 0xB000
NO_ROOM, NOT_ALLOWED = 0xA700, 0x0124


class DimsePacs:
    """A PACS that is spoken to by DIMSE; `receive` is our own listener's settings, which C-MOVE needs."""

    def __init__(
        self, name: str, peer: DimsePeer, receive: Receive | None, retrieve: str, commitment_port: int | None
    ) -> None:
        self.name = name
        self._peer = peer
        self._receive = receive
        self._retrieve = retrieve
        self._commitment_port = commitment_port

    def store(self, files: Sequence[Path]) -> tuple[Outcome, ...]:
        """C-STORE over one association; one that breaks off in between leaves the rest to another try."""
        outcomes = []
        with opened(self.name, self._peer, contexts.sending()) as association:
            for path in files:
                ds = pydicom.dcmread(path)
                try:
                    status = association.send_c_store(ds)
                except ValueError:  # pynetdicom: no accepted context for the object
                    outcomes.append(Outcome(path.name, stored=False, status="no context"))
                    continue
                if "Status" not in status:
                    raise UnreachableError(f"{self.name} broke off while an object was sent")
                outcomes.append(_outcome(path.name, int(status.Status)))
        return tuple(outcomes)

    def person(self, study_uid: str) -> Person | None:
        """C-FIND at study level."""
        keys = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex")
        for found in self._find("STUDY", keys, StudyInstanceUID=study_uid):
            if value(found, "StudyInstanceUID") == study_uid:
                return Person(*(value(found, key) for key in keys))
        return None

    def holds(self, study_uid: str, series_uid: str) -> frozenset[str]:
        """C-FIND at image level."""
        where = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": series_uid}
        found = self._find("IMAGE", ("SOPInstanceUID",), **where)
        return frozenset(uid(value(ds, "SOPInstanceUID")) for ds in found) - {""}

    def search(self, wanted: Wanted) -> tuple[StudyFound, ...]:
        """C-FIND at study level."""
        where = {"StudyDate": f"{wanted.first_date}-{wanted.last_date}", "ModalitiesInStudy": wanted.modality}
        answers = self._find("STUDY", ("StudyInstanceUID",), **where)
        dates = {uid(value(ds, "StudyInstanceUID")): value(ds, "StudyDate") for ds in answers}
        return tuple(StudyFound(study, dates[study]) for study in sorted(dates) if study)

    def series(self, study_uid: str) -> tuple[SeriesFound, ...]:
        """C-FIND at series level."""
        keys = ("SeriesInstanceUID", "Modality", "SeriesDescription", "NumberOfSeriesRelatedInstances")
        found = {}
        for ds in self._find("SERIES", keys, StudyInstanceUID=study_uid):
            series, modality, description, count = (value(ds, key) for key in keys)
            if uid(series):
                found[series] = SeriesFound(series, modality, description, number(count))
        return tuple(found[series] for series in sorted(found))

    def fetch(self, study_uid: str, series_uid: str, keep: Keep) -> frozenset[str]:
        """C-GET, or C-MOVE to our own listener."""
        if self._retrieve == "move":
            return self._move(study_uid, series_uid, keep)
        return self._get(study_uid, series_uid, keep)

    def committed(self, files: Sequence[Path]) -> frozenset[str] | None:
        """Storage commitment (PS3.4 annex J): asked for, then waited for on the port that the settings name."""
        if self._commitment_port is None:
            return None
        try:
            return Commitment(self.name, self._peer, self._commitment_port).of(files)
        except RefusedError:  # what is not offered is asked for in the other way
            return None

    def _find(self, level: str, keys: Sequence[str], **where: str) -> list[Dataset]:
        query = Dataset()
        query.QueryRetrieveLevel = level
        for keyword in keys:
            setattr(query, keyword, "")
        for keyword, asked in where.items():
            setattr(query, keyword, asked)
        answers = []
        with opened(self.name, self._peer, contexts.finding()) as association:
            for status, found in association.send_c_find(query, StudyRootQueryRetrieveInformationModelFind):
                code = _status(status, self.name)
                if code not in (*PENDING, 0):
                    raise RefusedError(f"{self.name} cannot answer the query (status {code:04X})")
                answers += [found] if code in PENDING and found is not None else []
                if len(answers) > MAX_ANSWERS:
                    raise RefusedError(f"{self.name} does not stop answering: more than {MAX_ANSWERS} answers")
        return answers

    def _get(self, study_uid: str, series_uid: str, keep: Keep) -> frozenset[str]:
        guard = Guard(study_uid, series_uid, keep)

        def store(event: Any) -> int:
            content = event.encoded_dataset()
            try:
                guard(study_of(content, str(event.request.AffectedSOPInstanceUID)) or "", content)
            except PermissionError:
                return NOT_ALLOWED
            except WorldError:
                return NO_ROOM
            return 0

        roles = [build_role(sop_class, scp_role=True) for sop_class in contexts.IMAGES]
        handlers = [(evt.EVT_C_STORE, store)]
        with opened(self.name, self._peer, contexts.getting(), roles, handlers) as association:
            answers = association.send_c_get(_of(study_uid, series_uid), StudyRootQueryRetrieveInformationModelGet)
            self._finish(answers)
            came = guard.came()
            alive(association, self.name)
        return came

    def _move(self, study_uid: str, series_uid: str, keep: Keep) -> frozenset[str]:
        if self._receive is None:
            raise RefusedError("C-MOVE needs intake.receive: where the PACS is to send the images")
        guard = Guard(study_uid, series_uid, keep)
        callers = tuple({*self._receive.callers, self._peer.title})
        settings = self._receive.model_copy(update={"callers": callers})
        with Listener(settings, guard), opened(self.name, self._peer, contexts.moving()) as association:
            query = _of(study_uid, series_uid)
            model = StudyRootQueryRetrieveInformationModelMove
            self._finish(association.send_c_move(query, settings.title, model))
        return guard.came()

    def _finish(self, answers: Iterator[tuple[Dataset, Dataset | None]]) -> None:
        """Wait until all has come. That some failed is for the caller's count to notice."""
        code = 0
        for status, _ in answers:
            code = _status(status, self.name)
        if code not in (0, SUBOPERATIONS_FAILED):
            words = f"{self.name} cannot send a series (status {code:04X})"
            raise UnreachableError(words) if code in OUT_OF_RESOURCES else RefusedError(words)


def _of(study_uid: str, series_uid: str) -> Dataset:
    query = Dataset()
    query.QueryRetrieveLevel, query.StudyInstanceUID, query.SeriesInstanceUID = "SERIES", study_uid, series_uid
    return query


def _status(status: Dataset, name: str) -> int:
    if "Status" not in status:
        raise UnreachableError(f"{name} broke off, or was too slow to answer")
    return int(status.Status)


def _outcome(name: str, code: int) -> Outcome:
    stored = code in (0, DUPLICATE, *COERCED)
    again = code in OUT_OF_RESOURCES or code in (PROCESSING_FAILURE, RESOURCE_LIMITATION)
    return Outcome(name, stored, f"{code:04X}", again)
