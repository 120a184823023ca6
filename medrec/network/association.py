"""Opening an association: titles, TLS, time limits, and in plain words why there is none.

Silences pynetdicom, whose log lines quote data sets.
"""

import logging
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext

from medrec.errors import ConfigError
from medrec.network.bounded import Answers, Line
from medrec.network.contexts import MAX_PDU_BYTES
from medrec.network.pacs import RefusedError, UnreachableError
from medrec.peers import DimsePeer, Tls

_log = logging.getLogger("pynetdicom")
_log.handlers = [logging.NullHandler()]
_log.propagate = False
_log.setLevel(logging.CRITICAL + 1)
_config.LOG_HANDLER_LEVEL = "none"

MAX_OBJECT_BYTES = 2**31  # as `dicom` reads at most
# DICOM PS3.8 9.3.4: why an association was rejected for good, by (source, reason).
REFUSALS = {
    (1, 3): "it does not know our AE title {ours}",
    (1, 7): "it is not called {title}",
    (1, 2): "it does not support the application context",
}


@contextmanager
def opened(
    name: str,
    peer: DimsePeer,
    contexts: Sequence[PresentationContext],
    roles: Sequence[Any] = (),
    handlers: Sequence[Any] = (),
) -> Iterator[Association]:
    """An association with a peer, released at the end.

    Raises RefusedError when it does not want us, UnreachableError when it is away or broke off.
    """
    ae = AE(peer.ours)
    ae.maximum_pdu_size = MAX_PDU_BYTES
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = peer.timeout_s
    association = ae.associate(
        peer.host,
        peer.port,
        contexts=list(contexts),
        ae_title=peer.title,
        ext_neg=list(roles),
        evt_handlers=[*handlers, (evt.EVT_CONN_OPEN, _bounded)],
        tls_args=None if peer.tls is None else (context(peer.tls, name, server=False), peer.host),
        max_pdu=MAX_PDU_BYTES,
    )
    if not association.is_established:
        raise _why(name, peer, association)
    try:
        yield association
    except BaseException:
        association.abort()
        raise
    if association.is_established:
        association.release()


def _bounded(event: Any) -> None:
    """A peer may send garbage as well as a stranger: no longer message, and no object larger than a night reads."""
    association = event.assoc
    line, timeout_s = association.dul.socket, association.network_timeout
    line.recv = Line(line, timeout_s)
    association.dimse.receive_primitive = Answers(association, MAX_OBJECT_BYTES)


def _why(name: str, peer: DimsePeer, association: Association) -> Exception:
    if association.is_rejected:
        answer = association.acceptor.primitive
        source, reason = getattr(answer, "result_source", 0), getattr(answer, "diagnostic", 0)
        if getattr(answer, "result", 1) == 1:
            words = REFUSALS.get((source, reason), f"source {source}, reason {reason}")
            return RefusedError(f"{name} refuses the association: {words.format(ours=peer.ours, title=peer.title)}")
        return UnreachableError(f"{name} is too busy for an association")
    if association.rejected_contexts and not association.accepted_contexts:
        return RefusedError(f"{name} takes none of the kinds of objects or questions that were offered")
    return UnreachableError(f"{name} does not answer at {peer.host}:{peer.port}")


def context(tls: Tls, name: str, *, server: bool) -> ssl.SSLContext:
    """TLS 1.2 or newer, both sides with certificates of one authority (DICOM PS3.15 B.12).

    Raises ConfigError when a file cannot be used.
    """
    purpose = ssl.Purpose.CLIENT_AUTH if server else ssl.Purpose.SERVER_AUTH
    try:
        made = ssl.create_default_context(purpose, cafile=tls.authority)
        made.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            [f"{name}: tls: certificate, key or authority cannot be used ({type(error).__name__})"]
        ) from None
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.verify_mode = ssl.CERT_REQUIRED
    return made


def alive(association: Association, name: str) -> None:
    """Raises UnreachableError when the other side broke off."""
    if not association.is_established:
        raise UnreachableError(f"{name} broke off the association")
