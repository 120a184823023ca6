"""A throw-away PACS for the tests: Debian's Orthanc with DICOMweb, on free loopback ports, in a temporary folder.

The fixture `pacs` of conftest is one. A missing program fails, so that nothing is skipped unseen.
"""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

TITLE, OURS = "ORTHANC", "MEDREC"
PLUGINS = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
START_S = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def debian(name: str) -> str:
    """Debian's program, never one of the same name that came with a Python package."""
    path = shutil.which(name, path="/usr/bin:/usr/sbin")
    if path is None:
        pytest.fail(f"{name} is not installed: .ci/run says which package holds it")
    return path


class Orthanc:
    """One server; `start` and `kill` as often as a test likes, its data stay."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="medrec-orthanc-"))
        self.http, self.dicom, self.ours = free_port(), free_port(), free_port()
        self.settings: dict[str, Any] = {
            "Name": "medrec tests",
            "StorageDirectory": str(self.folder / "data"),
            "IndexDirectory": str(self.folder / "data"),
            "HttpPort": self.http,
            "DicomPort": self.dicom,
            "DicomAet": TITLE,
            "DicomCheckCalledAet": True,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAlwaysAllowStore": True,
            "DicomAlwaysAllowFind": True,
            "DicomAlwaysAllowGet": True,
            "DicomAlwaysAllowMove": True,
            "DicomModalities": {"medrec": [OURS, "127.0.0.1", self.ours]},
            "Plugins": [str(PLUGINS)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False},
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}/dicom-web"

    def dimse(self, **more: object) -> dict[str, object]:
        """As a peer of the configuration."""
        return {"kind": "dimse", "host": "127.0.0.1", "port": self.dicom, "title": TITLE, "timeout_s": 10, **more}

    def web(self, **more: object) -> dict[str, object]:
        return {"kind": "dicomweb", "url": self.url, "timeout_s": 10, **more}

    def start(self) -> None:
        if not PLUGINS.exists():
            pytest.fail("orthanc-dicomweb is not installed: .ci/run installs it")
        path = self.folder / "orthanc.json"
        path.write_text(json.dumps(self.settings))
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen([debian("Orthanc"), path], stdout=log, stderr=log)
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                self.get("/system")
                return
            time.sleep(0.05)
        pytest.fail(f"Orthanc did not start: {(self.folder / 'log').read_text()[-500:]}")

    def kill(self) -> None:
        """As a power failure does."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Alive, and answering nobody."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(how)
            self._process.wait(20)
            self._process = None

    def close(self) -> None:
        self._end(signal.SIGKILL)  # it takes seconds to end by itself
        shutil.rmtree(self.folder, ignore_errors=True)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=10) as answer:
            content = answer.read()
        return json.loads(content) if answer.headers.get_content_type() == "application/json" else content

    def put(self, *files: Path) -> None:
        """Bring files in by HTTP: neither we nor dcmtk take part."""
        for path in files:
            request = urllib.request.Request(f"http://127.0.0.1:{self.http}/instances", path.read_bytes())
            urllib.request.urlopen(request, timeout=10).read()

    def delete(self, level: str) -> None:
        """Everything of a level: "studies", "series", "instances"."""
        for one in self.get(f"/{level}"):
            self.delete_one(level, one)

    def delete_one(self, level: str, one: str) -> None:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}/{level}/{one}", method="DELETE")
        urllib.request.urlopen(request, timeout=10).read()

    def instances(self, modality: str | None = None) -> dict[str, bytes]:
        """The files of all instances, of one modality or of all, by SOP Instance UID."""
        found = {}
        for series in self.get("/series"):
            told = self.get(f"/series/{series}")
            if modality in (None, told["MainDicomTags"].get("Modality")):
                for instance in told["Instances"]:
                    uid = self.get(f"/instances/{instance}")["MainDicomTags"]["SOPInstanceUID"]
                    found[uid] = self.get(f"/instances/{instance}/file")
        return found
