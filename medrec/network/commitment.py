"""Storage commitment, push model (DICOM PS3.4 annex J): asking for it, and hearing the answer.

The answer comes over the same association, or over one that the PACS opens to us: both are listened to.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pynetdicom import build_context, evt
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]

from medrec.errors import WorldError
from medrec.network import contexts
from medrec.network.association import context, opened
from medrec.network.bounded import Bounds, Room, Server, arriving
from medrec.network.pacs import RefusedError, UnansweredError, UnreachableError
from medrec.peers import DimsePeer

INSTANCE = "1.2.840.10008.1.20.1.1"  # the well-known instance, PS3.4 J.3.2
REQUEST = 1
CONNECTIONS, ANSWER_BYTES = 4, 2**20


class Commitment:
    """One question and its answer."""

    def __init__(self, name: str, peer: DimsePeer, port: int) -> None:
        self._name = name
        self._peer = peer
        self._port = port
        self._heard = threading.Event()
        self._answer: Dataset | None = None
        self._transaction = ""

    def of(self, files: Sequence[Path]) -> frozenset[str]:
        """The names of those files that the PACS takes responsibility for.

        Raises RefusedError when it offers none, UnansweredError when no answer comes in time.
        """
        names = {}
        question = Dataset()
        question.ReferencedSOPSequence = []
        for path in files:
            ds = pydicom.dcmread(path, stop_before_pixels=True)
            names[str(ds.SOPInstanceUID)] = path.name
            question.ReferencedSOPSequence.append(_reference(ds))
        self._transaction = question.TransactionUID = pydicom.uid.generate_uid(prefix="2.25.")
        handlers = [(evt.EVT_N_EVENT_REPORT, self._hear)]
        with self._listening():
            with opened(self._name, self._peer, contexts.committing(), handlers=handlers) as association:
                status, _ = association.send_n_action(question, REQUEST, StorageCommitmentPushModel, INSTANCE)
                if "Status" not in status:
                    raise UnreachableError(f"{self._name} broke off while it was asked for storage commitment")
                if status.Status != 0:
                    raise RefusedError(f"{self._name} gives no storage commitment (status {int(status.Status):04X})")
                self._heard.wait(min(1.0, self._peer.timeout_s))
            self._heard.wait(self._peer.timeout_s)
        if self._answer is None:
            raise UnansweredError(f"{self._name} did not answer the storage commitment in time")
        kept = {str(item.ReferencedSOPInstanceUID) for item in self._answer.get("ReferencedSOPSequence", [])}
        return frozenset(name for instance, name in names.items() if instance in kept)

    def _hear(self, event: Any) -> tuple[int, None]:
        told = event.event_information
        if str(told.get("TransactionUID", "")) == self._transaction:
            self._answer = told
            self._heard.set()
        return 0, None

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """A server that takes nothing but the PACS's answer. Raises WorldError when the port cannot be had."""
        peer = self._peer
        accepted = build_context(StorageCommitmentPushModel, list(contexts.NATIVE))
        accepted.scu_role, accepted.scp_role = False, True
        server = Server(
            peer.ours,
            (),  # who answers may have another title; an answer without the question's number is none
            ("", self._port),
            Bounds(peer.timeout_s, CONNECTIONS, ANSWER_BYTES, Room(CONNECTIONS * ANSWER_BYTES)),
            None if peer.tls is None else context(peer.tls, self._name, server=True),
            contexts=[accepted],
            evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._hear_there)],
        )
        try:
            server.__enter__()
        except OSError as error:
            raise WorldError(f"port {self._port} cannot be listened at: {error.strerror}") from None
        try:
            yield
        finally:
            server.__exit__()

    def _hear_there(self, event: Any) -> tuple[int, None]:
        try:
            return self._hear(event)
        finally:
            arriving(event.assoc).done()


def _reference(ds: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    return item
