"""A server that strangers may connect to: connections, bytes and seconds within bounds, whatever they send.

Owns the bounds that pynetdicom has not: it believes any length, waits for any drip, keeps any number of messages, and
ends a thread with a traceback when a message is none. Invariant: what one connection costs is bounded before it is
known who calls.
"""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from socketserver import BaseServer
from typing import Any

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from medrec.network import contexts

# A negotiation with every context that there is takes some 50 kB; nothing that we agreed to is longer.
MAX_MESSAGE_BYTES = contexts.MAX_PDU_BYTES + 1024
CHUNK_BYTES = 65_536
LEAST_BYTES_PER_S = 4096  # of a message on its way: a slow line brings more, who drips holds a place for nothing
DISCARDED_OBJECTS = 4  # an object too large is read to its end, to be answered, up to so many times the limit
TOO_LARGE, NO_ROOM = "object too large", "too much at once, try again later"


class Room:
    """Bytes that may be in memory at once, of all connections together."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._lock = threading.Lock()

    def take(self, count: int) -> bool:
        """Whether there is room for so many more bytes; they are taken then."""
        with self._lock:
            if count > self._left:
                return False
            self._left -= count
            return True

    def give(self, count: int) -> None:
        """Give back what was taken."""
        with self._lock:
            self._left += count


class Bounds:
    """What one server allows: so many `connections`, `limit` bytes of one object, `room` for those of all together.

    A message that takes longer than `timeout_s` must come at LEAST_BYTES_PER_S at least.
    """

    def __init__(self, timeout_s: float, connections: int, limit: int, room: Room) -> None:
        self.timeout_s = timeout_s
        self.connections = connections
        self.limit = limit
        self.room = room


class Server:
    """Serves while it is entered; `more` are contexts and handlers as pynetdicom's `make_server` takes them.

    `callers` are the titles that may call, anybody when there are none.
    """

    def __init__(
        self, title: str, callers: Sequence[str], address: tuple[str, int], bounds: Bounds, tls: Any, **more: Any
    ) -> None:
        ae = _Entity(title)
        ae.require_called_aet = True
        ae.require_calling_aet = list(callers)
        ae.maximum_associations = bounds.connections
        ae.maximum_pdu_size = contexts.MAX_PDU_BYTES
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = bounds.timeout_s
        self._bounds = bounds
        more |= {"ae_title": title, "ssl_context": tls, "server_class": _Server, "request_handler": _handler(bounds)}
        self._make: Callable[[], Any] = partial(ae.make_server, address, **more)

    def __enter__(self) -> "Server":
        """Raises OSError when the port cannot be had."""
        self._server = self._make()
        self._server.limit = 4 * self._bounds.connections
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="AcceptorServer", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        BaseServer.shutdown(self._server)  # pynetdicom's own wants a server that its AE has started
        for association in self._server.active_associations:
            if association.is_established:
                association.abort()
            else:
                _hang_up(association)
        self._server.server_close()


class _Entity(AE):
    """Counts as associations those that were established, and not everybody who connects and says nothing."""

    @property
    def active_associations(self) -> list[Association]:
        here = threading.current_thread()  # the one that is being negotiated asks in its own thread
        return [a for a in super().active_associations if a.is_established or a is here]


class _Server(ThreadedAssociationServer):
    """Closes connections beyond `limit` before a thread is spent on them."""

    limit = 1

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return len(self.active_associations) < self.limit

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that fails is none; nothing of it is printed."""


class Line:
    """Reads a message within bounds of size and time; pynetdicom's own believes any length that a stranger sends."""

    def __init__(self, line: AssociationSocket, limit_s: float) -> None:
        self._line = line
        self._limit_s = limit_s

    def __call__(self, nr_bytes: int) -> bytearray:
        """At most so many bytes. Raises OSError when that is too many, or they do not come in time."""
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


class Arriving:
    """The messages of one association as they come in, in the place of pynetdicom's `receive_primitive`.

    Whoever handles a message calls `done` before it is answered: nothing may come before that. `why` says in a few
    words why the object was cut off, "" when it is whole.
    """

    def __init__(self, association: Association, bounds: Bounds) -> None:
        self.why = ""
        self._association = association
        self._bounds = bounds
        self._take: Callable[[Any], None] = association.dimse.receive_primitive
        self._arrived = self._held = 0
        self._since = 0.0
        self._busy = False

    def __call__(self, primitive: Any) -> None:
        """Take one part of a message; what is no message, drips, or crowds in ends the association."""
        try:
            self._accept(primitive)
            self._take(primitive)
            self._busy = self._association.dimse.message is None
        except Exception:  # whatever garbage makes the parser raise
            _hang_up(self._association)

    def done(self) -> None:
        """The message was dealt with: its bytes are gone from memory."""
        self._bounds.room.give(self._held)
        self._held = self._arrived = 0
        self._busy, self.why = False, ""

    def _accept(self, primitive: Any) -> None:
        """Count a part, and empty it when there is no room for it."""
        if self._busy:
            raise OSError("one operation at a time was agreed to")
        now, parts = time.monotonic(), primitive.presentation_data_value_list
        self._since = self._since if self._arrived else now
        size = sum(len(data) for _, data in parts)
        self._arrived += size
        late_s = now - self._since - self._bounds.timeout_s
        if late_s > 0 and self._arrived < LEAST_BYTES_PER_S * late_s:
            raise TimeoutError
        if self._arrived > DISCARDED_OBJECTS * self._bounds.limit + MAX_MESSAGE_BYTES:
            raise OSError("no end of it")
        if self._arrived > self._bounds.limit + MAX_MESSAGE_BYTES:
            self.why = TOO_LARGE
        elif not self.why and self._bounds.room.take(size):
            self._held += size
        else:
            self.why = self.why or NO_ROOM
        if self.why:
            primitive.presentation_data_value_list = [[number, data[:1]] for number, data in parts]


class Answers:
    """The messages of an association that we asked for, in the place of pynetdicom's `receive_primitive`."""

    def __init__(self, association: Association, limit: int) -> None:
        self._association = association
        self._take: Callable[[Any], None] = association.dimse.receive_primitive
        self._limit = limit
        self._arrived = 0

    def __call__(self, primitive: Any) -> None:
        """Take one part of a message; what is no message, or has no end, ends the association."""
        try:
            self._arrived += sum(len(data) for _, data in primitive.presentation_data_value_list)
            if self._arrived > self._limit:
                raise OSError("no end of it")
            self._take(primitive)
            if self._association.dimse.message is None:
                self._arrived = 0
        except Exception:  # whatever garbage makes the parser raise
            _hang_up(self._association)


def _hang_up(association: Association) -> None:
    line = association.dul.socket
    if line is not None and line.socket is not None:
        with suppress(OSError):
            line.socket.shutdown(socket.SHUT_RDWR)


def _quiet(association: Association) -> None:
    """The thread that reads the line, without a traceback where what came has no place in the protocol."""
    try:
        association.dul.run_reactor()
    except Exception:
        _hang_up(association)
        association.kill()


def arriving(association: Association) -> Arriving:
    """What watches over an association of a `Server`."""
    found = association.dimse.receive_primitive
    assert isinstance(found, Arriving)
    return found


def _handler(bounds: Bounds) -> type[RequestHandler]:
    """pynetdicom's handler, with our reading."""

    class Bounded(RequestHandler):
        def _create_association(self) -> Any:
            association = super()._create_association()
            line = association.dul.socket
            assert line is not None
            line.recv = Line(line, bounds.timeout_s)  # type: ignore[method-assign]
            watch = Arriving(association, bounds)
            association.dimse.receive_primitive = watch  # type: ignore[method-assign]
            association.dul.run = lambda: _quiet(association)  # type: ignore[method-assign]
            association.bind(evt.EVT_CONN_CLOSE, lambda event: watch.done())
            return association

    return Bounded
