"""A PACS by DICOMweb: STOW-RS, QIDO-RS, WADO-RS (DICOM PS3.18)."""

import io
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pydicom
import requests
from dicomweb_client.api import DICOMwebClient

from medrec.errors import ConfigError, MedrecError
from medrec.network.incoming import Guard, number, study_of, uid
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
from medrec.peers import WebPeer

for _name in ("dicomweb_client", "urllib3"):  # they log addresses, which hold UIDs
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)

# What a later try may change (RFC 9110, 6585, 4918): too slow, too many, the server's own trouble, its full disk.
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504, 507})
DUPLICATE = 0x0111
# DICOM JSON (PS3.18 annex F): tags by keyword.
TAGS = {
    "PatientID": "00100020",
    "IssuerOfPatientID": "00100021",
    "PatientName": "00100010",
    "PatientBirthDate": "00100030",
    "PatientSex": "00100040",
    "StudyInstanceUID": "0020000D",
    "SOPInstanceUID": "00080018",
    "SeriesInstanceUID": "0020000E",
    "Modality": "00080060",
    "StudyDate": "00080020",
    "SeriesDescription": "0008103E",
    "NumberOfSeriesRelatedInstances": "00201209",
}
PAGE = 500


class WebPacs:
    """A PACS that is spoken to by HTTP."""

    def __init__(self, name: str, peer: WebPeer) -> None:
        """Raises ConfigError when the variable that holds the token is empty."""
        self.name = name
        session = requests.Session()
        session.verify = peer.authority or True
        if peer.token is not None:
            token = os.environ.get(peer.token)
            if not token:
                raise ConfigError([f"peers.{name}.token: the environment variable {peer.token} is not set"])
            session.headers["Authorization"] = f"Bearer {token}"
        self._client = DICOMwebClient(peer.url, session=session, timeout=peer.timeout_s)
        self._client.set_http_retry_params(retry=False)  # who calls decides when to try again

    def store(self, files: Sequence[Path]) -> tuple[Outcome, ...]:
        """STOW-RS, one object in a request: what becomes of each is told for itself."""
        return tuple(self._store(path) for path in files)

    def _store(self, path: Path) -> Outcome:
        try:
            with self._plain_words():
                answer = self._client.store_instances([pydicom.dcmread(path)])
                failed = [int(i.get("FailureReason", 0)) for i in answer.get("FailedSOPSequence", [])]
                warned = [int(i.get("WarningReason", 0)) for i in answer.get("ReferencedSOPSequence", [])]
        except _ObjectRefusedError as refused:
            return Outcome(path.name, stored=False, status=f"HTTP {refused.status}")
        if failed:
            again = 0xA700 <= failed[0] < 0xA800 or failed[0] == 0x0110
            return Outcome(path.name, failed[0] == DUPLICATE, f"{failed[0]:04X}", again)
        return Outcome(path.name, stored=True, status=f"{next((w for w in warned if w), 0):04X}")

    def person(self, study_uid: str) -> Person | None:
        """QIDO-RS for one study."""
        keys = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex")
        found = self._search("studies", {"StudyInstanceUID": study_uid}, fields=list(keys))
        for one in found:
            if _text(one, "StudyInstanceUID") == study_uid:
                return Person(*(_text(one, key) for key in keys))
        return None

    def holds(self, study_uid: str, series_uid: str) -> frozenset[str]:
        """QIDO-RS for the instances of one series."""
        found = self._search("instances", {}, study_instance_uid=study_uid, series_instance_uid=series_uid)
        return frozenset(uid(_text(one, "SOPInstanceUID")) for one in found) - {""}

    def search(self, wanted: Wanted) -> tuple[StudyFound, ...]:
        """QIDO-RS for studies."""
        where = {"StudyDate": f"{wanted.first_date}-{wanted.last_date}", "ModalitiesInStudy": wanted.modality}
        answers = self._search("studies", where)
        dates = {uid(_text(one, "StudyInstanceUID")): _text(one, "StudyDate") for one in answers}
        return tuple(StudyFound(study, dates[study]) for study in sorted(dates) if study)

    def series(self, study_uid: str) -> tuple[SeriesFound, ...]:
        """QIDO-RS for the series of one study."""
        keys = ("SeriesInstanceUID", "Modality", "SeriesDescription", "NumberOfSeriesRelatedInstances")
        found = {}
        for one in self._search("series", {}, study_instance_uid=study_uid, fields=list(keys)):
            series, modality, description, count = (_text(one, key) for key in keys)
            if uid(series):
                found[series] = SeriesFound(series, modality, description, number(count))
        return tuple(found[series] for series in sorted(found))

    def fetch(self, study_uid: str, series_uid: str, keep: Keep) -> frozenset[str]:
        """WADO-RS, an object at a time."""
        guard = Guard(study_uid, series_uid, keep)
        with self._plain_words():
            for ds in self._client.iter_series(study_uid, series_uid, media_types=(("application/dicom", "*"),)):
                packed = io.BytesIO()
                ds.save_as(packed, enforce_file_format=True)
                with suppress(PermissionError):
                    guard(study_of(packed.getvalue()) or "", packed.getvalue())
        return guard.came()

    def committed(self, files: Sequence[Path]) -> None:
        """DICOMweb has no storage commitment that peers offer (PS3.18 13 is younger than they are)."""

    def _search(self, level: str, where: dict[str, str], **more: Any) -> list[dict[str, Any]]:
        search = getattr(self._client, f"search_for_{level}")
        found: list[dict[str, Any]] = []
        with self._plain_words():
            while True:
                page = search(search_filters=where, limit=PAGE, offset=len(found), **more)
                fresh = [one for one in page if one not in found[-PAGE:]]
                found += fresh
                if len(found) > MAX_ANSWERS:
                    raise RefusedError(f"{self.name} does not stop answering: more than {MAX_ANSWERS} answers")
                if len(page) < PAGE or not fresh:  # a server may not know of pages, and send the first for ever
                    return found

    @contextmanager
    def _plain_words(self) -> Iterator[None]:
        try:
            yield
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status in AGAIN:
                raise UnreachableError(f"{self.name} is in trouble (HTTP {status})") from None
            if status in (401, 403, 404, 405):
                raise RefusedError(f"{self.name} refuses (HTTP {status})") from None
            raise _ObjectRefusedError(self.name, status) from None
        except (requests.RequestException, OSError) as error:
            raise UnreachableError(f"{self.name} does not answer ({type(error).__name__})") from None
        except MedrecError:
            raise
        except Exception as error:  # what came is not what the standard says, and may make any library raise anything
            raise UnreachableError(f"{self.name} answers something else ({type(error).__name__})") from None


class _ObjectRefusedError(RefusedError):
    """The server refuses what it was sent or asked, not us."""

    def __init__(self, name: str, status: int) -> None:
        self.status = status
        super().__init__(f"{name} refuses what it was sent or asked (HTTP {status})")


def _text(one: dict[str, Any], keyword: str) -> str:
    """The first value of an attribute in DICOM JSON, "" when there is none; of a name all groups."""
    try:
        first = (one[TAGS[keyword]].get("Value") or [""])[0]
    except (KeyError, IndexError, TypeError, AttributeError):
        return ""
    if isinstance(first, dict):
        groups = [str(first.get(k, "")) for k in ("Alphabetic", "Ideographic", "Phonetic")]
        return "=".join(groups).rstrip("=")
    return str(first)
