"""Storage commitment, push model (DICOM PS3.4 annex J): asking for it, and hearing the answer.

The answer comes over the same association, or over one that the PACS opens to us: both are listened to.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]

from medrec.errors import WorldError
from medrec.network import contexts
from medrec.network.association import opened
from medrec.network.pacs import RefusedError, UnreachableError
from medrec.peers import DimsePeer

INSTANCE = "1.2.840.10008.1.20.1.1"  # the well-known instance, PS3.4 J.3.2
REQUEST = 1


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

        Raises RefusedError when it offers none, UnreachableError when no answer comes in time.
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
            raise UnreachableError(f"{self._name} did not answer the storage commitment in time")
        kept = {str(item.ReferencedSOPInstanceUID) for item in self._answer.get("ReferencedSOPSequence", [])}
        return frozenset(name for instance, name in names.items() if instance in kept)

    def _hear(self, event: Any) -> tuple[int, None]:
        told = event.event_information
        if str(told.get("TransactionUID", "")) == self._transaction:
            self._answer = told
            self._heard.set()
        return 0, None

    def _listening(self) -> "_Ear":
        return _Ear(self._peer.ours, self._port, self._peer.timeout_s, [(evt.EVT_N_EVENT_REPORT, self._hear)])


class _Ear:
    """A server that takes nothing but the PACS's answer."""

    def __init__(self, title: str, port: int, timeout_s: float, handlers: list[Any]) -> None:
        self._ae = AE(title)
        self._ae.require_called_aet = True
        self._ae.acse_timeout = self._ae.dimse_timeout = self._ae.network_timeout = timeout_s
        self._ae.add_supported_context(StorageCommitmentPushModel, list(contexts.NATIVE), scu_role=False, scp_role=True)
        self._port, self._handlers = port, handlers

    def __enter__(self) -> None:
        try:
            self._server = self._ae.start_server(("", self._port), block=False, evt_handlers=self._handlers)
        except OSError as error:
            raise WorldError(f"port {self._port} cannot be listened at: {error.strerror}") from None

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.shutdown()


def _reference(ds: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    return item
