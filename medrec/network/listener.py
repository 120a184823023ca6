"""A C-STORE listener: who may call, how much at once, and files that are whole or not there.

`bounded` owns what a connection may cost. Refuses titles that are not on the list. Invariant: success is answered only
after `keep` has returned.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import evt

from medrec.errors import WorldError
from medrec.network import contexts
from medrec.network.association import context
from medrec.network.bounded import TOO_LARGE, Arriving, Bounds, Room, Server, arriving
from medrec.network.incoming import study_of
from medrec.peers import Receive

# DICOM PS3.4 table B.2-1.
OUT_OF_RESOURCES, DOES_NOT_MATCH, NOT_ALLOWED = 0xA700, 0xA900, 0x0124


class Listener:
    """Listens while it is entered; `keep` gets each whole object with its study's UID.

    `keep` may raise PermissionError for an object that was not asked for, and WorldError or OSError when it cannot be
    kept: the sender is told, and nothing is left.
    """

    def __init__(self, settings: Receive, keep: Callable[[str, bytes], bool]) -> None:
        self._settings = settings
        self._keep = keep
        self._rate = _Rate(settings.max_mb_per_s)

    def __enter__(self) -> "Listener":
        """Raises WorldError when the port cannot be had, ConfigError when TLS cannot."""
        settings = self._settings
        limit = settings.max_object_mb * 2**20
        room = Room(max(settings.max_memory_mb, settings.max_object_mb + 1) * 2**20)
        self._server = Server(
            settings.title,
            settings.callers,
            (settings.host, settings.port),
            Bounds(settings.timeout_s, settings.max_associations, limit, room),
            None if settings.tls is None else context(settings.tls, "intake.receive", server=True),
            contexts=contexts.accepting(),
            evt_handlers=[(evt.EVT_C_STORE, self._store), (evt.EVT_C_ECHO, _echo)],
        )
        try:
            self._server.__enter__()
        except OSError as error:
            raise WorldError(f"port {settings.port} cannot be listened at: {error.strerror}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()

    def _store(self, event: Any) -> int | Dataset:
        watch = arriving(event.assoc)
        try:
            return self._answer(event, watch)
        finally:
            watch.done()

    def _answer(self, event: Any, watch: Arriving) -> int | Dataset:
        limit_mb = self._settings.max_object_mb
        if watch.why:
            return _refusal(f"{watch.why} (at most {limit_mb} MB)" if watch.why == TOO_LARGE else watch.why)
        content = event.encoded_dataset()
        if len(content) > limit_mb * 2**20:
            return _refusal(f"{TOO_LARGE} (at most {limit_mb} MB)")
        study = study_of(content, str(event.request.AffectedSOPInstanceUID))
        if study is None:
            return DOES_NOT_MATCH
        try:
            self._keep(study, content)
        except PermissionError:
            return NOT_ALLOWED
        except (WorldError, OSError):
            return _refusal("the disk does not take it")
        self._rate.wait(len(content))
        return 0


def _echo(event: Any) -> int:
    arriving(event.assoc).done()
    return 0


def _refusal(why: str) -> Dataset:
    """Out of resources, and why in the words that a sender's log shows (PS3.7 annex C, Error Comment)."""
    status = Dataset()
    status.Status, status.ErrorComment = OUT_OF_RESOURCES, why
    return status


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
            self._free_at = own = start + count / self._bytes_per_s
        time.sleep(max(0.0, own - time.monotonic()))
