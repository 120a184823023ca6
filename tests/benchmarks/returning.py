"""What writing SEG and SR adds to a 512 x 512 x 300 study, and how fast a study is received beside Orthanc.

Run: python tests/benchmarks/returning.py. Prints tables; times are of this machine, and the first call in a process
also imports highdicom and reads its tables of the standard.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from orthanc import Orthanc, debian, free_port
from returned import CREATED, KEY, case_of, changed

from medrec import config
from medrec.dicom import Archive
from medrec.network.listener import Listener
from medrec.objects import make
from medrec.peers import Receive
from medrec.phantom import grid, write_dicom
from medrec.prediction import Returned
from medrec.series import Series
from medrec.sources import Spool
from medrec.stacks import stacks
from medrec.volume import Volume

SIZE = (512, 512, 300)
PAIRS = 5


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """(by the clock, of this process's processor time)."""
    wall, own = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - own


def blocks(count: int) -> np.ndarray:
    """(i, j, k) bool: `count` blocks of 14 x 14 x 12 voxels, apart from each other."""
    mask = np.zeros(SIZE, bool)
    for n in range(count):
        k, row = divmod(n, 20)
        i, j = (row % 5) * 90 + 20, (row // 5) * 90 + 20
        mask[i : i + 14, j : j + 14, 20 + k * 40 : 32 + k * 40] = True
    return mask


def writing(folder: Path) -> list[Path]:
    voxels = np.random.default_rng(0).integers(0, 900, SIZE).astype(np.int16)
    paths = write_dicom(voxels, grid(SIZE, (0.5, 0.5, 0.8)), folder / "in")
    archive = Archive(folder / "in", KEY, {})
    (series,) = (s for s in stacks(archive.index().files) if isinstance(s, Series))
    loaded = archive.load(series)
    assert isinstance(loaded, tuple)
    volume: Volume = loaded[0]
    card = next(c.card for c in config.load().cards if c.card.name == "phantom")
    card = card.model_copy(update={"returned": Returned(objects=("seg", "sr"))})
    print(f"SEG and SR of {SIZE[0]} x {SIZE[1]} x {SIZE[2]}, seconds")
    print(f"{'segments':>8} {'try':>4} {'source':>8} {'objects':>8} {'together':>9} {'processor':>9}")
    for count in (1, 1, 1, 100, 100):
        case = changed(case_of(volume, blocks(count), card, "c" * 24), created=CREATED)
        assert len(case.report.findings) == count
        first, own = seconds(lambda: archive.source(series))
        source = archive.source(series)
        second, more = seconds(lambda: make(case, source))  # noqa: B023
        print(f"{count:8} {'':>4} {first:8.2f} {second:8.2f} {first + second:9.2f} {own + more:9.2f}")
    return list(paths)


def receiving(files: list[Path], folder: Path) -> None:
    """The same files from the same storescu, in turns, to Orthanc and to our listener."""
    print(f"\nreceiving {len(files)} files of 0.5 MB from storescu, seconds")
    print(f"{'Orthanc':>8} {'medrec':>8} {'ratio':>6}")
    ratios = []
    for pair in range(PAIRS):
        server = Orthanc()
        server.start()
        theirs = seconds(lambda: send(files, "ORTHANC", server.dicom))[0]  # noqa: B023
        server.close()
        spool = Spool(folder / f"spool{pair}", KEY)
        spool.create()
        where = Receive(host="127.0.0.1", port=free_port(), callers=("STORESCU",))
        with Listener(where, spool.keep):
            ours = seconds(lambda: send(files, "MEDREC", where.port))[0]  # noqa: B023
        assert len(list(spool.incoming.rglob("*.dcm"))) == len(files)
        ratios.append(ours / theirs)
        print(f"{theirs:8.2f} {ours:8.2f} {ours / theirs:6.2f}")
    print(f"median ratio {statistics.median(ratios):.2f} (below 1: faster than Orthanc)")


def send(files: list[Path], title: str, port: int) -> None:
    command = [debian("storescu"), "-pdu", "131072", "-aec", title, "127.0.0.1", str(port)]
    subprocess.run([*command, *map(str, files)], check=True, capture_output=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        receiving(writing(Path(place)), Path(place))
