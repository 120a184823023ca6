"""What comes in: from anybody who may send, whole or not at all, within bounds, and counted."""

import contextlib
import hashlib
import os
import random
import socket
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pydicom
import pytest
from orthanc import OURS, Orthanc, debian, free_port
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, evt
from pynetdicom.dsutils import encode

from medrec.dicom import Pseudonyms
from medrec.errors import ConfigError, WorldError
from medrec.home import Home
from medrec.network import RefusedError, SeriesFound, StudyFound, UnreachableError, Wanted, contexts, reach
from medrec.network.incoming import Guard
from medrec.network.listener import Listener
from medrec.peers import DimsePeer, Intake, Pull, Receive, Tls, WebPeer
from medrec.phantom import grid, uid, write_dicom
from medrec.sources import Spool, intake
from medrec.sources.pull import pull
from medrec.sources.receiver import receive

SIZE = (16, 12, 6)
WANTED = Wanted("20200101", "20200105", "MR")


def study(folder: Path, name: str = "ONE", **header: "str | int") -> tuple[Path, ...]:
    voxels = np.random.default_rng(len(name)).integers(0, 900, SIZE).astype(np.int16)
    uids = {"study_uid": uid("study", name), "patient_id": name, "patient_name": f"{name}^PATIENT"}
    return write_dicom(voxels, grid(SIZE, (1.0, 1.0, 3.0)), folder, **{**uids, **header})


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path / "intake", Pseudonyms(b"k" * 32))
    spool.create()
    return spool


def settings(**more: object) -> Receive:
    usual = {"host": "127.0.0.1", "port": free_port(), "callers": ("STORESCU",), "quiet_s": 0.3, "timeout_s": 2}
    return Receive(**{**usual, **more})  # type: ignore[arg-type]


def storescu(where: Receive, *files: Path, calling: str = "STORESCU", called: str | None = None) -> int:
    command = [debian("storescu"), "-aet", calling, "-aec", called or where.title, "127.0.0.1", str(where.port)]
    return subprocess.run([*command, *map(str, files)], capture_output=True, timeout=60).returncode


@contextmanager
def receiving(where: Receive, spool: Spool) -> Iterator[list[str]]:
    stop, told = threading.Event(), []
    thread = threading.Thread(target=receive, args=(where, spool, told.append, stop.wait))
    thread.start()
    wait_until(lambda: bool(told))
    try:
        yield told
    finally:
        stop.set()
        thread.join(10)


def wait_until(true: "object", seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


def images(folder: Path) -> set[str]:
    return {str(pydicom.dcmread(p).SOPInstanceUID) for p in folder.rglob("*.dcm")}


def test_what_a_foreign_client_sends_is_handed_over_when_it_is_quiet(spool: Spool, tmp_path: Path) -> None:
    sent = study(tmp_path / "in")
    where = settings(quiet_s=2)
    with receiving(where, spool):
        assert storescu(where, *sent[:4]) == 0
        assert storescu(where, *sent[4:]) == 0
        wait_until(lambda: list(spool.studies.iterdir()))
    assert images(spool.studies) == {str(pydicom.dcmread(p).SOPInstanceUID) for p in sent}
    assert list(spool.incoming.iterdir()) == []
    arrived = [pydicom.dcmread(p).PixelData for p in spool.studies.rglob("*.dcm")]
    assert sorted(arrived) == sorted(pydicom.dcmread(p).PixelData for p in sent)


def test_names_tell_nothing_and_files_are_private(spool: Spool, tmp_path: Path) -> None:
    for path in study(tmp_path / "in"):
        spool.keep(uid("study", "ONE"), path.read_bytes())
    spool.settle(time.time(), 0)
    for path in spool.root.rglob("*"):
        assert "ONE" not in path.name
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_a_late_slice_joins_its_study_and_a_second_copy_is_none(spool: Spool, tmp_path: Path) -> None:
    sent = study(tmp_path / "in")
    for path in sent[:5]:
        assert spool.keep(uid("study", "ONE"), path.read_bytes())
    assert spool.settle(time.time(), 0) == 1
    assert not spool.keep(uid("study", "ONE"), sent[0].read_bytes())
    assert spool.keep(uid("study", "ONE"), sent[5].read_bytes())
    assert spool.settle(time.time(), 3600) == 0
    spool.settle(time.time(), 0)
    assert len(list(spool.studies.rglob("*.dcm"))) == 6
    assert len(list(spool.studies.iterdir())) == 1


def test_a_file_and_its_name_are_on_the_disk_before_it_counts(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda fd: flushed.append(Path(f"/proc/self/fd/{fd}").readlink()))
    path = study(tmp_path / "in")[0]
    spool.keep(uid("study", "ONE"), path.read_bytes())
    (folder,) = spool.incoming.iterdir()
    assert flushed[0].name.endswith(".part")
    assert flushed[1:] == [folder, spool.incoming], "the file's name, and that of its new folder"
    flushed.clear()
    spool.settle(time.time(), 0)
    assert flushed == [spool.studies, spool.incoming]


def test_what_does_not_belong_in_the_spool_holds_up_no_study(spool: Spool, tmp_path: Path) -> None:
    (spool.incoming / ".DS_Store").write_bytes(b"left by a file manager")
    spool.keep(uid("study", "ONE"), study(tmp_path / "in")[0].read_bytes())
    assert spool.settle(time.time(), 0) == 1


def test_want_of_memory_leaves_no_part_behind(spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(descriptor: int) -> None:
        raise MemoryError

    monkeypatch.setattr(os, "fdatasync", none_left)
    with pytest.raises(MemoryError):
        spool.keep(uid("study", "ONE"), study(tmp_path / "in")[0].read_bytes())
    assert [p for p in spool.root.rglob("*") if p.is_file()] == []


def test_a_disk_that_does_not_hand_over_is_named(spool: Spool, tmp_path: Path) -> None:
    spool.keep(uid("study", "ONE"), study(tmp_path / "in")[0].read_bytes())
    spool.studies.rmdir()
    spool.studies.write_bytes(b"no folder")
    with pytest.raises(WorldError, match="handed over"):
        spool.complete(uid("study", "ONE"))
    with pytest.raises(WorldError, match="handed over"):
        spool.settle(time.time(), 0)


@pytest.mark.parametrize(("calling", "called"), [("STRANGER", None), ("STORESCU", "NOTUS")])
def test_titles_that_are_not_on_the_list_are_refused(
    calling: str, called: str | None, spool: Spool, tmp_path: Path
) -> None:
    sent, where = study(tmp_path / "in"), settings()
    with Listener(where, spool.keep):
        assert storescu(where, *sent, calling=calling, called=called) != 0
    assert images(spool.root) == set()


def test_an_object_over_the_limit_leaves_nothing_and_the_rest_goes_on(spool: Spool, tmp_path: Path) -> None:
    large = np.zeros((1024, 1024, 1), np.int16)
    too_large = write_dicom(large, grid((1024, 1024, 1), (1, 1, 1)), tmp_path / "large")
    sent, where = study(tmp_path / "in"), settings(max_object_mb=1)
    with Listener(where, spool.keep):
        assert storescu(where, *too_large) != 0
        assert storescu(where, *sent) == 0
    assert images(spool.incoming) == {str(pydicom.dcmread(p).SOPInstanceUID) for p in sent}


def test_a_full_disk_is_told_to_the_sender(spool: Spool, tmp_path: Path) -> None:
    sent, where = study(tmp_path / "in"), settings()

    def full(study_uid: str, content: bytes) -> bool:
        raise WorldError("what came cannot be kept: No space left on device")

    with Listener(where, full):
        ae = AE("STORESCU")
        ae.add_requested_context(MRImageStorage)
        association = ae.associate("127.0.0.1", where.port, ae_title=where.title)
        assert association.send_c_store(pydicom.dcmread(sent[0])).Status == 0xA700
        association.release()


def test_an_object_that_is_not_what_it_was_announced_as_is_refused(spool: Spool, tmp_path: Path) -> None:
    sent, where = study(tmp_path / "in"), settings()
    with Listener(where, spool.keep):
        ae = AE("STORESCU")
        ae.add_requested_context(MRImageStorage)
        association = ae.associate("127.0.0.1", where.port, ae_title=where.title)
        ds = pydicom.dcmread(sent[0])
        ds.StudyInstanceUID = "../../etc"
        assert association.send_c_store(ds).Status == 0xA900
        association.release()
    assert images(spool.root) == set()


def garbage() -> list[bytes]:
    rng = random.Random(5)
    huge = b"\x01\x00\xff\xff\xff\xff" + b"A" * 300_000  # an association request that says it is 4 GB long
    data = b"\x04\x00\x00\x00\x00\x08" + rng.randbytes(8)  # data before any association
    return [
        b"",
        b"\0",
        rng.randbytes(5000),
        b"GET / HTTP/1.1\r\n\r\n",
        huge,
        data,
        b"\x01\x00\x00\x00\x10\x00" + b"\0" * 70,
    ]


def test_garbage_neither_ends_the_listener_nor_leaves_anything(spool: Spool, tmp_path: Path) -> None:
    sent, where = study(tmp_path / "in"), settings()
    with Listener(where, spool.keep):
        for content in garbage():
            with socket.create_connection(("127.0.0.1", where.port)) as line:
                line.sendall(content[:200_000]) if content else None
        assert storescu(where, *sent) == 0
    assert len(list(spool.incoming.rglob("*.dcm"))) == 6


def test_connections_that_say_nothing_do_not_keep_others_out(spool: Spool, tmp_path: Path) -> None:
    sent, where = study(tmp_path / "in"), settings(timeout_s=1, max_associations=2)
    with Listener(where, spool.keep):
        silent = [socket.create_connection(("127.0.0.1", where.port)) for _ in range(50)]
        assert threading.active_count() < 40, "a stranger can start threads without end"
        wait_until(lambda: storescu(where, *sent) == 0, 20)
        for line in silent:
            line.close()


def hand_made(where: Receive) -> socket.socket:
    """A line with an association of a caller that is allowed; what goes over it next is the test's."""
    ae, said = AE("STORESCU"), []
    ae.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
    listening = [(evt.EVT_DATA_SENT, lambda event: said.append(event.data))]
    ae.associate("127.0.0.1", where.port, ae_title=where.title, evt_handlers=listening).release()
    line = socket.create_connection(("127.0.0.1", where.port))
    line.sendall(said[0])
    assert line.recv(10_000)[0] == 2, "accepted"
    return line


def part(control: int, content: bytes) -> bytes:
    """A P-DATA-TF with one value (DICOM PS3.8 9.3.5): 3 ends a command, 0 goes on with data, 2 ends them."""
    value = struct.pack(">LBB", len(content) + 2, 1, control) + content
    return struct.pack(">BBL", 4, 0, len(value)) + value


def command(field: int) -> bytes:
    ds = Dataset()
    ds.AffectedSOPClassUID, ds.AffectedSOPInstanceUID, ds.CommandField = MRImageStorage, "1.2.3", field
    ds.MessageID, ds.Priority, ds.CommandDataSetType = 1, 0, 1
    body = encode(ds, True, True)
    return part(3, struct.pack("<HHLL", 0, 0, 4, len(body)) + body)


def broken_off(line: socket.socket, content: bytes, times: int, pause_s: float = 0) -> bool:
    """Whether the other side ends it before so many are sent."""
    line.settimeout(5)
    for _ in range(times):
        try:
            line.sendall(content)
        except ConnectionError:
            return True
        time.sleep(pause_s)
    return False


NO_MESSAGE = (command(0x7777), part(3, b"garbage" * 5), part(3, b""), struct.pack(">BBLL", 4, 0, 4, 0), part(2, b"x"))


def test_what_is_no_message_ends_its_association_quietly(
    spool: Spool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sent, where = study(tmp_path / "in"), settings(max_associations=2)
    with Listener(where, spool.keep):
        for content in NO_MESSAGE:
            hand_made(where).sendall(content)
        wait_until(lambda: storescu(where, *sent) == 0, 20)
    assert capfd.readouterr().err == ""


def test_who_drips_loses_its_place(spool: Spool, tmp_path: Path) -> None:
    sent, where = study(tmp_path / "in"), settings(timeout_s=1, max_associations=1)
    with Listener(where, spool.keep):
        line = hand_made(where)
        line.sendall(command(1))
        assert broken_off(line, part(0, b"x"), 100, 0.1)
        wait_until(lambda: storescu(where, *sent) == 0, 5)


def test_objects_that_come_before_the_last_was_answered_are_not_kept_in_memory(spool: Spool, tmp_path: Path) -> None:
    content = study(tmp_path / "in")[0].read_bytes()[352:]
    where, taken = settings(), threading.Event()
    with Listener(where, lambda study_uid, content: taken.wait(20)):
        line = hand_made(where)
        assert broken_off(line, command(1) + part(2, content), 3000)
        taken.set()


def test_silent_strangers_take_no_place_of_a_known_caller(
    spool: Spool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sent, where = study(tmp_path / "in"), settings(timeout_s=20, max_associations=2)
    with Listener(where, spool.keep):
        silent = [socket.create_connection(("127.0.0.1", where.port)) for _ in range(5)]
        time.sleep(0.3)
        assert storescu(where, *sent) == 0
        for line in silent:
            line.close()
    assert capfd.readouterr().err == ""


def big(folder: Path, mb: int) -> Path:
    voxels = np.zeros((1024, 512 * mb, 1), np.int16)
    return write_dicom(voxels, grid(voxels.shape, (1, 1, 1)), folder)[0]  # type: ignore[arg-type]


def store_answers(where: Receive, *files: Path) -> list[tuple[int, str]]:
    ae = AE("STORESCU")
    ae.add_requested_context(MRImageStorage)
    association = ae.associate("127.0.0.1", where.port, ae_title=where.title)
    answers = [association.send_c_store(pydicom.dcmread(path)) for path in files]
    association.release()
    return [(a.get("Status"), a.get("ErrorComment", "")) for a in answers]


def test_an_object_too_large_is_answered_so_and_the_association_goes_on(spool: Spool, tmp_path: Path) -> None:
    sent, where = study(tmp_path / "in"), settings(max_object_mb=1, max_memory_mb=4)
    with Listener(where, spool.keep):
        told = store_answers(where, big(tmp_path / "two", 2), big(tmp_path / "three", 3), sent[0])
    assert told == [(0xA700, "object too large (at most 1 MB)")] * 2 + [(0, "")]
    assert len(images(spool.incoming)) == 1


def test_all_senders_together_stay_within_the_memory_and_later_ones_may_try_again(spool: Spool, tmp_path: Path) -> None:
    path = big(tmp_path / "two", 2)
    where = settings(max_object_mb=3, max_memory_mb=4)
    with Listener(where, spool.keep):
        line = hand_made(where)
        line.sendall(command(1) + b"".join(part(0, b"x" * 100_000) for _ in range(25)))
        time.sleep(0.3)
        assert store_answers(where, path) == [(0xA700, "too much at once, try again later")]
        line.close()
        wait_until(lambda: store_answers(where, path) == [(0, "")], 5)


def test_a_transfer_that_breaks_off_leaves_no_part_of_a_file(spool: Spool, tmp_path: Path) -> None:
    large = np.random.default_rng(1).integers(0, 4000, (512, 512, 1)).astype(np.int16)
    (path,) = write_dicom(large, grid((512, 512, 1), (1, 1, 1)), tmp_path / "in")
    where = settings()
    with Listener(where, spool.keep):
        ae = AE("STORESCU")
        ae.add_requested_context(MRImageStorage)
        association = ae.associate("127.0.0.1", where.port, ae_title=where.title)
        line, sent = association.dul.socket, 0
        send = line.send

        def some(content: bytes) -> None:
            nonlocal sent
            sent += len(content)
            if sent > 300_000:
                line.socket.close()
            send(content)

        line.send = some  # type: ignore[method-assign]
        association.send_c_store(pydicom.dcmread(path))
        time.sleep(0.3)
        assert 200_000 < sent < 520_000
    assert [p for p in spool.root.rglob("*") if p.is_file()] == []


def test_a_rate_is_kept(spool: Spool, tmp_path: Path) -> None:
    voxels = np.zeros((256, 256, 8), np.int16)
    sent = write_dicom(voxels, grid((256, 256, 8), (1, 1, 1)), tmp_path / "in")
    where = settings(max_mb_per_s=1)
    with Listener(where, spool.keep):
        started = time.monotonic()
        assert storescu(where, *sent) == 0
    assert time.monotonic() - started > 0.9, "1 MB came in less than a second"


def test_tls_lets_in_who_has_a_certificate_and_nobody_else(spool: Spool, tmp_path: Path) -> None:
    sent = study(tmp_path / "in")
    tls = certificates(tmp_path)
    where = settings(tls=tls)
    with Listener(where, spool.keep):
        assert storescu(where, *sent) != 0
        command = [debian("storescu"), "+tls", tls.key, tls.certificate, "+cf", tls.authority, "-aet", "STORESCU"]
        command += ["-aec", where.title, "127.0.0.1", str(where.port), *map(str, sent)]
        assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0
        peer = DimsePeer(kind="dimse", host="127.0.0.1", port=where.port, title=where.title, ours="STORESCU", tls=tls)
        with pytest.raises(Exception, match="takes none"):  # secured, and no query model on our listener
            reach("self", peer).person("1.2.3")
    assert len(list(spool.incoming.rglob("*.dcm"))) == 6


def certificates(folder: Path) -> Tls:
    """One certificate that is its own authority, for 127.0.0.1."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return Tls(certificate=str(certificate), key=str(key), authority=str(certificate))


def test_a_port_in_use_and_a_bad_certificate_are_named(spool: Spool, tmp_path: Path) -> None:
    where = settings()
    with (
        Listener(where, spool.keep),
        pytest.raises(WorldError, match=f"port {where.port}"),
        Listener(where, spool.keep),
    ):
        pass
    (tmp_path / "no.pem").write_text("no certificate")
    tls = Tls(certificate=str(tmp_path / "no.pem"), key=str(tmp_path / "no.pem"), authority=str(tmp_path / "no.pem"))
    with pytest.raises(ConfigError, match="tls"), Listener(settings(tls=tls), spool.keep):
        pass


@pytest.mark.parametrize("way", ["get", "move", "dicomweb"])
def test_a_pull_brings_what_was_asked_for_and_nothing_else(
    way: str, spool: Spool, pacs: Orthanc, tmp_path: Path
) -> None:
    wanted, other = study(tmp_path / "one"), study(tmp_path / "two", "TWO", series_description="T2")
    pacs.put(*wanted, *other)
    done = pull(peer(pacs, way), Wanted("20200101", "20200105", "MR", "FLA*"), spool, lambda number, total: None)
    assert (done.studies, done.complete, done.expected, done.received, done.problems) == (1, 1, 6, 6, ())
    assert images(spool.studies) == {str(pydicom.dcmread(p).SOPInstanceUID) for p in wanted}
    pixels = {hashlib.sha256(pydicom.dcmread(p).PixelData).hexdigest() for p in wanted}
    assert {hashlib.sha256(pydicom.dcmread(p).PixelData).hexdigest() for p in spool.studies.rglob("*.dcm")} == pixels


def peer(pacs: Orthanc, way: str, **more: object) -> "object":
    if way == "dicomweb":
        return reach("pacs", WebPeer(**pacs.web(**more)))  # type: ignore[arg-type]
    ours = Receive(title=OURS, host="127.0.0.1", port=pacs.ours, callers=("NOBODY",), timeout_s=5)
    return reach("pacs", DimsePeer(**pacs.dimse(**more)), receive=ours, retrieve=way)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("first", "last", "modality"), [("20190101", "20200101", "MR"), ("20200101", "20200105", "CT")]
)
@pytest.mark.parametrize("way", ["get", "dicomweb"])
def test_other_days_and_modalities_bring_nothing(
    way: str, first: str, last: str, modality: str, spool: Spool, pacs: Orthanc, tmp_path: Path
) -> None:
    pacs.put(*study(tmp_path / "one"))
    assert pull(peer(pacs, way), Wanted(first, last, modality), spool, lambda n, t: None).studies == 0  # type: ignore[arg-type]
    assert list(spool.studies.iterdir()) == []


def test_a_second_pull_asks_only_for_what_is_new(spool: Spool, pacs: Orthanc, tmp_path: Path) -> None:
    sent = study(tmp_path / "one")
    pacs.put(*sent[:4])
    server = peer(pacs, "get")
    assert pull(server, WANTED, spool, lambda n, t: None).received == 4  # type: ignore[arg-type]
    asked: list[str] = []
    fetch = server.fetch  # type: ignore[attr-defined]
    server.fetch = lambda *a: asked.append(a[0]) or fetch(*a)  # type: ignore[attr-defined]
    pull(server, WANTED, spool, lambda n, t: None)  # type: ignore[arg-type]
    assert asked == []
    pacs.put(*sent[4:])
    done = pull(server, WANTED, spool, lambda n, t: None)  # type: ignore[arg-type]
    assert (done.complete, done.received) == (1, 6)
    assert len(list(spool.studies.rglob("*.dcm"))) == 6


def test_a_pull_goes_on_where_the_pacs_went_away(spool: Spool, pacs: Orthanc, tmp_path: Path) -> None:
    for name in ("ONE", "TWO", "THREE"):
        pacs.put(*study(tmp_path / name, name))
    seen: list[int] = []

    def kill_after_one(number: int, total: int) -> None:
        seen.append(number)
        if number == 1:
            pacs.kill()

    with pytest.raises(UnreachableError):
        pull(peer(pacs, "get"), WANTED, spool, kill_after_one)  # type: ignore[arg-type]
    assert len(list(spool.studies.iterdir())) == 1
    pacs.start()
    done = pull(peer(pacs, "get"), WANTED, spool, lambda n, t: None)  # type: ignore[arg-type]
    assert (done.studies, done.complete, done.received) == (3, 3, 18)
    assert len(list(spool.studies.rglob("*.dcm"))) == 18


def test_a_study_that_comes_incomplete_is_not_handed_over(spool: Spool, tmp_path: Path) -> None:
    sent = study(tmp_path / "one")

    class Short:
        """A PACS that promises six images and sends four of them, and one of another study."""

        name = "short"

        def search(self, wanted: Wanted) -> tuple[StudyFound, ...]:
            return (StudyFound(uid("study", "ONE"), ""),)

        def series(self, study_uid: str) -> "object":
            return (SeriesFound("1.2", "MR", "FLAIR", 6), SeriesFound("1.3", "SR", "", 2))

        def fetch(self, study_uid: str, series_uid: str, keep: "object") -> frozenset[str]:
            assert series_uid == "1.2", "a report is no image"
            for path in sent[:4]:
                keep(study_uid, path.read_bytes())  # type: ignore[operator]
            return frozenset(path.name for path in sent[:4])

    done = pull(Short(), WANTED, spool, lambda n, t: None)  # type: ignore[arg-type]
    assert (done.complete, done.expected, done.received) == (0, 6, 4)
    assert "4 of 6 images came" in done.problems[0]
    assert list(spool.studies.iterdir()) == []


def test_what_a_pacs_sends_unasked_is_not_taken() -> None:
    series = (SeriesFound("1.2", "MR", "Ax FLAIR", 6), SeriesFound("1.3", "PR", "", 1))
    wanted = Wanted("20200101", "20200105", "MR", "*flair*")
    assert wanted.fits(StudyFound("1", "20200102"), series)
    assert not wanted.fits(StudyFound("1", "20200202"), series)
    assert not wanted.fits(StudyFound("1", "20200102"), series[1:])
    assert not Wanted("20200101", "20200105", "MR", "*T2*").fits(StudyFound("1", "20200102"), series)


@pytest.mark.parametrize("other", [{"study_uid": uid("study", "TWO")}, {"series_number": 2}])
def test_images_of_another_study_or_series_are_refused_to_the_pacs(
    other: dict[str, "str | int"], spool: Spool, tmp_path: Path
) -> None:
    asked = pydicom.dcmread(study(tmp_path / "one")[0])
    guard = Guard(asked.StudyInstanceUID, asked.SeriesInstanceUID, spool.keep)
    path = study(tmp_path / "two", **other)[0]
    with pytest.raises(PermissionError):
        guard(pydicom.dcmread(path).StudyInstanceUID, path.read_bytes())
    assert images(spool.root) == guard.came() == set()


def test_what_lies_in_the_spool_already_does_not_stand_for_what_was_promised(spool: Spool, tmp_path: Path) -> None:
    for path in study(tmp_path / "pushed", series_number=2):
        spool.keep(uid("study", "ONE"), path.read_bytes())
    sent = study(tmp_path / "one")

    class Short:
        name = "short"

        def search(self, wanted: Wanted) -> tuple[StudyFound, ...]:
            return (StudyFound(uid("study", "ONE"), ""),)

        def series(self, study_uid: str) -> "object":
            return (SeriesFound(pydicom.dcmread(sent[0]).SeriesInstanceUID, "MR", "FLAIR", 6),)

        def fetch(self, study_uid: str, series_uid: str, keep: "object") -> frozenset[str]:
            guard = Guard(study_uid, series_uid, keep)  # type: ignore[arg-type]
            for path in sent[:4]:
                guard(study_uid, path.read_bytes())
            return guard.came()

    done = pull(Short(), WANTED, spool, lambda n, t: None)  # type: ignore[arg-type]
    assert (done.complete, done.expected, done.received) == (0, 6, 4)


ODD_ANSWERS = [
    {"NumberOfSeriesRelatedInstances": "twelve"},
    {"NumberOfSeriesRelatedInstances": "\u00b2"},
    {"NumberOfSeriesRelatedInstances": "1\\2"},
    {"SeriesInstanceUID": "../../instances"},
    {"SeriesInstanceUID": "*"},
    {"StudyInstanceUID": "1.2.3\\1.2.4"},
    {"StudyDate": "yesterday"},
]


@pytest.mark.parametrize("odd", ODD_ANSWERS, ids=lambda odd: next(iter(odd)))
def test_odd_answers_to_a_query_bring_nothing_and_end_nothing(odd: dict[str, str], spool: Spool) -> None:
    def find(event: "object") -> "object":
        found = Dataset()
        usual = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "Modality": "MR", "StudyDate": "20200102"}
        for keyword, text in {**usual, "NumberOfSeriesRelatedInstances": "1", **odd}.items():
            tag = tag_for_keyword(keyword)
            assert tag is not None
            found.add(DataElement(tag, "LO", text))  # as it is on the wire: implicit, whatever it should be
        found.SpecificCharacterSet = "ISO_IR 192"
        yield 0xFF00, found

    ae = AE("ODD")
    ae.add_supported_context(contexts.ASKED[0], ImplicitVRLittleEndian)
    port = free_port()
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_FIND, find)])
    try:
        peer_ = reach("odd", DimsePeer(kind="dimse", host="127.0.0.1", port=port, title="ODD", timeout_s=3))
        with contextlib.suppress(RefusedError, UnreachableError):
            assert pull(peer_, WANTED, spool, lambda n, t: None).complete == 0
    finally:
        server.shutdown()
    assert images(spool.root) == set()


ODD_PAGES = [
    ("application/dicom+json", b""),
    ("application/dicom+json", b"{}"),
    ("application/dicom+json", b'["1.2.3", 7, null]'),
    ("application/dicom+json", b'[{"0020000D": {"Value": {"a": 1}}}]'),
    ("application/dicom+json", b'[{"0020000D": {"Value": ["../../studies"]}}]'),
    ("text/html", b"<html>log in</html>"),
    ("multipart/related; boundary=b", b"--b\r\nContent-Type: application/dicom\r\n\r\ngarbage\r\n--b--"),
]


@pytest.mark.parametrize(("kind", "body"), ODD_PAGES)
def test_a_web_server_that_answers_something_else_ends_nothing(kind: str, body: bytes, spool: Spool) -> None:
    with web_server_that_says(kind, body) as address:
        server = reach("web", WebPeer(kind="dicomweb", url=address, timeout_s=3))
        for ask in (
            lambda: server.search(WANTED),
            lambda: server.person("1.2.3"),
            lambda: server.series("1.2.3"),
            lambda: server.holds("1.2.3", "1.2.4"),
            lambda: server.fetch("1.2.3", "1.2.4", spool.keep),
        ):
            with contextlib.suppress(RefusedError, UnreachableError):
                assert not ask()
    assert images(spool.root) == set()


@contextmanager
def web_server_that_says(kind: str, body: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/dicom-web"
    finally:
        server.shutdown()


@pytest.mark.parametrize("content", garbage()[1:5], ids=["nul", "random", "http", "huge"])
def test_a_peer_that_answers_garbage_is_away(content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            line, _ = listening.accept()
            with contextlib.suppress(OSError):
                line.recv(10_000)
                line.sendall(content[:200_000])
                line.close()

        threading.Thread(target=answer, daemon=True).start()
        peer_ = DimsePeer(kind="dimse", host="127.0.0.1", port=listening.getsockname()[1], title="X", timeout_s=2)
        started = time.monotonic()
        with pytest.raises(UnreachableError):
            reach("pacs", peer_).person("1.2.3")
    assert time.monotonic() - started < 8
    assert capfd.readouterr().err == ""


def test_an_intake_in_the_home_or_none_is_a_mistake_of_the_configuration(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    for folder in (home.root / "in", tmp_path):
        with pytest.raises(ConfigError, match="beside each other"):
            intake.spool_of(home, Intake(folder=str(folder)))
    with pytest.raises(ConfigError, match="intake"):
        intake.spool_of(home, None)


def test_a_question_covers_the_configured_days() -> None:
    asked = intake.question(Pull(peer="pacs", days=3, description="*FLAIR*"), date(2026, 3, 1))
    assert asked == Wanted("20260227", "20260301", "MR", "*FLAIR*")


def test_the_listener_accepts_exactly_what_the_statement_says(spool: Spool) -> None:
    where = settings()
    with Listener(where, spool.keep):
        accepted = set()
        for sop_class in contexts.RECEIVED:
            ae = AE("STORESCU")
            for syntax in (*contexts.READABLE, "1.2.840.10008.1.2.4.102"):  # and MPEG-4, which nobody here reads
                ae.add_requested_context(sop_class, syntax)
            association = ae.associate("127.0.0.1", where.port, ae_title=where.title)
            accepted |= {(c.abstract_syntax, c.transfer_syntax[0]) for c in association.accepted_contexts}
            association.release()
    assert accepted == {(c, s) for c in contexts.RECEIVED for s in contexts.READABLE}


def test_the_conformance_statement_is_the_one_that_the_code_prints() -> None:
    from medrec.network.conformance import statement

    written = Path(__file__).parent.parent / ".readme" / "dicom-conformance.md"
    assert written.read_text() == statement(), "run: medrec conformance > .readme/dicom-conformance.md"


def test_an_unwritable_intake_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match=r"intake\.folder"):
        Spool(tmp_path / "file" / "intake", Pseudonyms(b"k" * 32)).create()
