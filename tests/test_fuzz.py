"""Damaged files of every kind: each accounted for once, within its time, and nothing outside the output folder.

Short here; `MEDREC_FUZZ=20000 pytest tests/test_fuzz.py` goes on for hours with other damage every time.
"""

import io
import os
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest

from medrec.conversion import convert, inspect
from medrec.dicom import decoders, selftest
from medrec.phantom import grid, write_dicom

ROUNDS = int(os.environ.get("MEDREC_FUZZ", "0"))
Damage = Callable[[random.Random, bytearray], bytearray]


def flip(rng: random.Random, data: bytearray) -> bytearray:
    """A few bits, anywhere."""
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def flip_in_header(rng: random.Random, data: bytearray) -> bytearray:
    """Bytes where tags, lengths and values stand."""
    for _ in range(rng.randint(1, 6)):
        data[rng.randrange(min(132, len(data) - 1), min(len(data), 1500))] = rng.randrange(256)
    return data


def cut(rng: random.Random, data: bytearray) -> bytearray:
    """The end is gone."""
    return data[: rng.randrange(len(data))]


def splice(rng: random.Random, data: bytearray) -> bytearray:
    """A piece of it once more, somewhere else."""
    start, length, at = rng.randrange(len(data)), rng.randint(1, 400), rng.randrange(len(data))
    return data[:at] + data[start : start + length] + data[at:]


def lie(rng: random.Random, data: bytearray) -> bytearray:
    """Where a length could stand, an absurd one."""
    at = rng.randrange(132, max(133, len(data) - 4))
    data[at : at + 4] = struct.pack("<I", rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF, 0xFFFF]))
    return data


def evil_text(rng: random.Random, data: bytearray) -> bytearray:
    """A value full of what text should not hold."""
    texts = [
        b"../../../etc/x",
        b"\0\0\0\0",
        b"\xff\xfe\xfd",
        b"${jndi:x}",
        b"<script>",
        b"\\" * 40,
        b"1" * 300,
        b"\x1b$B",
    ]
    at, text = rng.randrange(132, max(133, len(data) - 300)), rng.choice(texts)
    data[at : at + len(text)] = text
    return data


DAMAGE: dict[str, Damage] = {f.__name__: f for f in (flip, flip_in_header, cut, splice, lie, evil_text)}


def whole(ds: pydicom.FileDataset) -> bytes:
    """A sample of the self-test with all that a file needs."""
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID, ds.Modality = "1.2.3", "1.2.4", "1.2.5", "MR"
    ds.PixelSpacing, ds.SliceThickness = ["1", "2"], "3"
    ds.ImagePositionPatient, ds.ImageOrientationPatient = ["1", "2", "3"], list("100010")
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One file of each transfer syntax, and a zip file of a study."""
    found = {pydicom.uid.UID(s).name: whole(selftest.sample(s)[0]) for s in decoders.STRICT}
    folder = tmp_path_factory.mktemp("study")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for path in write_dicom(
            selftest.RAMP.reshape(64, 64, 1).repeat(4, 2) // 2, grid((64, 64, 4), (1, 1, 3)), folder
        ):
            file.write(path, path.name)
    return found | {"zip": packed.getvalue()}


def test_every_sample_is_a_volume_before_it_is_damaged(samples: dict[str, bytes], tmp_path: Path) -> None:
    for number, (name, content) in enumerate(samples.items()):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(content)
        assert len(convert(path, tmp_path / "out" / str(number)).written) == 1, name


def accounted_for(content: bytes, folder: Path) -> None:
    """Convert and inspect one damaged file."""
    source, out = folder / "in", folder / "deep" / "out"
    source.mkdir(exist_ok=True)
    (source / "file").write_bytes(content)
    done = convert(source, out)
    inventory = inspect(source)
    for files in (done.files, inventory.files):
        assert files["seen"] == 1 == sum(n for name, n in files.items() if name != "seen")
    assert done.written or done.problems or done.files["unused"]
    assert {p.name for p in folder.iterdir()} <= {"in", "deep"}
    for path in out.iterdir():
        path.unlink()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_accounted_for(damage: str, samples: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in samples.items():
        for seed in range(3):
            rng = random.Random(f"{damage} {name} {seed}")
            accounted_for(bytes(DAMAGE[damage](rng, bytearray(content))), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not ROUNDS, reason="goes on as long as MEDREC_FUZZ says")
def test_it_stays_so_for_a_long_time(samples: dict[str, bytes], tmp_path: Path) -> None:
    start = random.SystemRandom().randrange(2**32)
    for seed in range(start, start + ROUNDS):
        print(seed)  # the one that fails is the last
        rng = random.Random(seed)
        content = bytearray(rng.choice(list(samples.values())))
        for _ in range(rng.randint(1, 3)):
            content = DAMAGE[rng.choice(list(DAMAGE))](rng, content) if len(content) > 400 else content
        accounted_for(bytes(content), tmp_path)


@pytest.mark.slow
def test_damaged_real_files_are_accounted_for(shared_data: Path, tmp_path: Path) -> None:
    folders = sorted(p for p in (shared_data / "conformance").rglob("*") if p.is_dir())
    for folder in [*folders, shared_data / "real_dicom" / "glioblastoma_mr", shared_data / "bad_input"]:
        paths = [p for p in sorted(folder.iterdir()) if p.is_file() and p.suffix in (".dcm", "", ".ima")]
        for path in paths[:1]:
            content = path.read_bytes()
            for damage in DAMAGE.values():
                rng = random.Random(f"{path.name} {damage.__name__}")
                accounted_for(bytes(damage(rng, bytearray(content))), tmp_path)
