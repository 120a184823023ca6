"""A C-STORE listener: who may call, how much at once, and files that are whole or not there.

Owns the bounds, because anybody may connect: connections, bytes of one message and of one object, seconds for each,
and a rate. Refuses titles that are not on the list. Invariant: success is answered only after `keep` has returned.
"""

import socket
import threading
import time
from collections.abc import Callable
from socketserver import BaseServer
from typing import Any

from pynetdicom import AE, evt
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from medrec.errors import WorldError
from medrec.network import contexts
from medrec.network.association import context
from medrec.network.incoming import study_of
from medrec.peers import Receive

# A negotiation with every context that there is takes some 50 kB; nothing that we agreed to is longer.
MAX_MESSAGE_BYTES = contexts.MAX_PDU_BYTES + 1024
CHUNK_BYTES = 65_536
# DICOM PS3.4 table B.2-1.
OUT_OF_RESOURCES, DOES_NOT_MATCH, NOT_UNDERSTOOD, NOT_ALLOWED = 0xA700, 0xA900, 0xC000, 0x0124


class Listener:
    """Listens while it is entered; `keep` gets each whole object with its study's UID.

    `keep` may raise PermissionError for an object that was not asked for, and WorldError or OSError when it cannot be
    kept: the sender is told, and nothing is left.
    """

    def __init__(self, settings: Receive, keep: Callable[[str, bytes], bool]) -> None:
        self._settings = settings
        self._keep = keep
        self._rate = _Rate(settings.max_mb_per_s)
        self._server: ThreadedAssociationServer | None = None

    def __enter__(self) -> "Listener":
        """Raises WorldError when the port cannot be had, ConfigError when TLS cannot."""
        settings = self._settings
        ae = AE(settings.title)
        ae.require_called_aet = True
        ae.require_calling_aet = list(settings.callers)
        ae.maximum_associations = settings.max_associations
        ae.maximum_pdu_size = contexts.MAX_PDU_BYTES
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = settings.timeout_s
        tls = None if settings.tls is None else context(settings.tls, "intake.receive", server=True)
        try:
            self._server = ae.make_server(
                (settings.host, settings.port),
                ae_title=settings.title,
                contexts=contexts.accepting(),
                ssl_context=tls,
                evt_handlers=[(evt.EVT_C_STORE, self._store), (evt.EVT_C_ECHO, lambda event: 0)],
                server_class=_Server,
                request_handler=_handler(settings),
            )
        except OSError as error:
            raise WorldError(f"port {settings.port} cannot be listened at: {error.strerror}") from None
        self._server.limit = 4 * settings.max_associations  # type: ignore[attr-defined]
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="AcceptorServer", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        BaseServer.shutdown(self._server)  # pynetdicom's own wants a server that its AE has started
        for association in self._server.active_associations:
            association.abort()
        self._server.server_close()

    def _store(self, event: Any) -> int:
        content = event.encoded_dataset()
        if len(content) > self._settings.max_object_mb * 2**20:
            return OUT_OF_RESOURCES
        study = study_of(content, str(event.request.AffectedSOPInstanceUID))
        if study is None:
            return DOES_NOT_MATCH
        try:
            self._keep(study, content)
        except PermissionError:
            return NOT_ALLOWED
        except (WorldError, OSError):
            return OUT_OF_RESOURCES
        self._rate.wait(len(content))
        return 0


class _Rate:
    """Holds answers back so that all senders together stay below a rate; None is no limit."""

    def __init__(self, max_mb_per_s: float | None) -> None:
        self._bytes_per_s = None if max_mb_per_s is None else max_mb_per_s * 2**20
        self._free_at = 0.0
        self._lock = threading.Lock()

    def wait(self, count: int) -> None:
        if self._bytes_per_s is None:
            return
        with self._lock:
            start = max(time.monotonic(), self._free_at)
            self._free_at = start + count / self._bytes_per_s
        time.sleep(max(0.0, self._free_at - time.monotonic()))


class _Server(ThreadedAssociationServer):
    """Closes connections beyond `limit` before a thread is spent on them."""

    limit = 1

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return len(self.active_associations) < self.limit

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that fails is none; nothing of it is printed."""


class _Bounded:
    """Reads a message within bounds of size and time; pynetdicom's own believes any length that a stranger sends."""

    def __init__(self, line: AssociationSocket, limit_s: float) -> None:
        self._line = line
        self._limit_s = limit_s

    def __call__(self, nr_bytes: int) -> bytearray:
        if nr_bytes > MAX_MESSAGE_BYTES:
            raise OSError("longer than anything that was negotiated")
        assert self._line.socket is not None
        received = bytearray(nr_bytes)
        view, got, until = memoryview(received), 0, time.monotonic() + self._limit_s
        while got < nr_bytes:
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._line.socket.settimeout(left_s)
            count = self._line.socket.recv_into(view[got : got + CHUNK_BYTES])
            if not count:
                break
            got += count
        view.release()
        self._line.socket.settimeout(self._limit_s)
        return received[:got]


def _handler(settings: Receive) -> type[RequestHandler]:
    """pynetdicom's handler, with our reading, that breaks off an object which grows too large while it arrives."""
    limit = settings.max_object_mb * 2**20 + MAX_MESSAGE_BYTES

    class Bounded(RequestHandler):
        def _create_association(self) -> Any:
            association = super()._create_association()
            line = association.dul.socket
            assert line is not None
            line.recv = _Bounded(line, settings.timeout_s)  # type: ignore[method-assign]
            arrived = 0

            def count(event: Any) -> None:
                nonlocal arrived
                arrived += len(event.data)
                if arrived > limit:
                    self.request.shutdown(socket.SHUT_RDWR)

            def reset(event: Any) -> None:
                nonlocal arrived
                arrived = 0

            association.bind(evt.EVT_DATA_RECV, count)
            association.bind(evt.EVT_DIMSE_RECV, reset)
            return association

    return Bounded
