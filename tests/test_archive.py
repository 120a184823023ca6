"""Folders: zip files of studies, what is read again and what is not, files that mean harm."""

import io
import resource
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEGLSLossless

from medrec.dicom import Archive, Pseudonyms, pixels, reading, selftest
from medrec.dicom.header import parse_head
from medrec.dicom.work import decode
from medrec.phantom import grid, write_dicom
from medrec.prediction import InputRule
from medrec.series import Reason, Refused, Skipped, group
from medrec.stacks import stacks
from medrec.volume import Volume

KEY = Pseudonyms(b"k" * 32)
RULES = {"flair": InputRule(required=True, match={"SeriesDescription": "(?i)flair"})}
SIZE = (12, 10, 5)
AFFINE = grid(SIZE, (1.5, 2.0, 5.0), (11.0, -17.0, 23.0))
VOXELS = np.random.default_rng(0).integers(0, 4000, SIZE).astype(np.int16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dicom(VOXELS, AFFINE, tmp_path / "in" / "DOE JANE", patient_name="DOE^JANE")
    return tmp_path / "in"


def archive(folder: Path, memory: Path | None = None) -> Archive:
    return Archive(folder, KEY, RULES, memory=memory)


def only_volume(source: Archive) -> Volume:
    (study,) = group(source.index().files)
    (series,) = (s for files in study.series for s in stacks(files))
    assert not isinstance(series, Skipped)
    loaded = source.load(series)
    assert not isinstance(loaded, Skipped)
    return loaded[0]


def refusals(folder: Path) -> list[Reason]:
    return [r.reason for r in archive(folder).index().refused]


# Zip files


def zipped(folder: Path, name: str = "study.zip", **extra: bytes) -> Path:
    """All files of the folder in one zip file instead."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as packed:
        for number, path in enumerate(paths):
            packed.write(path, f"../../{number % 2}/{number}")
        for member, content in extra.items():
            packed.writestr(member, content)
    for path in paths:
        path.unlink()
    return folder / name


@pytest.mark.parametrize("keep", [2**29, 0], ids=["kept in memory", "read a second time"])
def test_a_zipped_study_is_the_volume_of_its_files(folder: Path, keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = only_volume(archive(folder))
    zipped(folder)
    monkeypatch.setattr("medrec.dicom.archive.KEEP_BYTES", keep)
    packed = only_volume(archive(folder))
    assert np.array_equal(plain.voxels, packed.voxels)
    assert np.array_equal(plain.affine_ijk_to_lps, packed.affine_ijk_to_lps)
    assert plain.pixels_sha256 == packed.pixels_sha256


def test_a_zip_file_is_one_file_with_one_digest(folder: Path, tmp_path: Path) -> None:
    path = zipped(folder, notes=b"hello")
    index = archive(folder).index()
    assert index.seen == 1
    assert {f.sha256 for f in index.files} == {reading.parts_of(path, 0)[0].digest}
    assert sorted(f.member for f in index.files) == [1, 2, 3, 4, 5]
    assert [(r.reason, r.ordinal) for r in index.refused] == [(Reason.NOT_DICOM, 0)]
    assert {p.name for p in tmp_path.iterdir()} == {"in"}  # "../../" in a member's name leads nowhere


def test_a_second_copy_of_a_zip_file_is_unused(folder: Path) -> None:
    path = zipped(folder)
    (folder / "again.zip").write_bytes(path.read_bytes())
    index = archive(folder).index()
    assert (len(index.files), len(index.unused), index.seen) == (5, 1, 2)


def test_zip_files_that_mean_harm_are_refused_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_FILE_BYTES", 10 * 2**20)
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a", bytes(11 * 2**20))
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as packed:
        packed.writestr("a", b"x")
    with zipfile.ZipFile(folder / "nested.zip", "w") as packed:
        packed.writestr("b.zip", inner.getvalue())
    (folder / "cut.zip").write_bytes((folder / "nested.zip").read_bytes()[:60])
    secret = bytearray((folder / "nested.zip").read_bytes())
    secret[6] |= 1  # the bit that says "encrypted", in both headers
    secret[secret.rindex(b"PK\1\2") + 8] |= 1
    (folder / "secret.zip").write_bytes(secret)
    index = archive(folder).index()
    assert sorted(r.reason for r in index.refused) == [Reason.TOO_LARGE, *[Reason.PACKED] * 3]
    assert len(index.files) == 5
    assert any("password" in r.detail for r in index.refused)
    (folder / "lie.zip").write_bytes(
        (folder / "bomb.zip").read_bytes().replace(struct.pack("<I", 11 * 2**20), b"\1\0\0\0")
    )
    assert refusals(folder).count(Reason.PACKED) + refusals(folder).count(Reason.TOO_LARGE) >= 5


# Memory


@pytest.fixture
def read_paths(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The paths that are read, in their order."""
    paths: list[Path] = []
    original = reading.parts_of

    def watched(path: Path, ordinal: int) -> list[reading.Part | Refused]:
        paths.append(path)
        return original(path, ordinal)

    monkeypatch.setattr(reading, "parts_of", watched)
    monkeypatch.setattr("medrec.dicom.memory.SETTLED_NS", -(10**18))
    return paths


def test_an_unchanged_file_is_not_read_on_the_next_night(folder: Path, tmp_path: Path, read_paths: list[Path]) -> None:
    (folder / "notes").write_text("hello")
    zipped(folder, "more.zip", also=b"no scan")
    write_dicom(VOXELS, AFFINE, folder / "second", series_number=2)
    first = archive(folder, tmp_path).index()
    assert len(read_paths) == 6
    read_paths.clear()
    assert archive(folder, tmp_path).index() == first
    assert read_paths == []


def test_what_is_remembered_loads_as_what_was_read(folder: Path, tmp_path: Path, read_paths: list[Path]) -> None:
    first = only_volume(archive(folder, tmp_path))
    second = only_volume(archive(folder, tmp_path))
    assert len(read_paths) == 5
    assert np.array_equal(first.voxels, second.voxels)
    assert first.pixels_sha256 == second.pixels_sha256


def test_a_new_or_changed_file_is_read_and_others_are_renumbered(
    folder: Path, tmp_path: Path, read_paths: list[Path]
) -> None:
    archive(folder, tmp_path).index()
    read_paths.clear()
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    ds = pydicom.dcmread(paths[3])
    ds.SeriesNumber = 9
    ds.save_as(paths[3])
    paths[1].unlink()
    (folder / "0 first").write_text("new")
    index = archive(folder, tmp_path).index()
    assert sorted(read_paths) == [folder / "0 first", paths[3]]
    assert index == archive(folder).index()


def test_other_cards_or_another_key_forget_everything(folder: Path, tmp_path: Path, read_paths: list[Path]) -> None:
    archive(folder, tmp_path).index()
    rules = {"flair": InputRule(required=True, match={"SeriesDescription": "nothing"})}
    index = Archive(folder, KEY, rules, memory=tmp_path).index()
    assert len(read_paths) == 10
    assert not any(f.matches for f in index.files)
    Archive(folder, Pseudonyms(b"x" * 32), RULES, memory=tmp_path).index()
    assert len(read_paths) == 15


def test_a_file_that_changed_just_now_is_not_trusted(folder: Path, tmp_path: Path) -> None:
    archive(folder, tmp_path).index()
    assert [p.read_bytes() for p in tmp_path.glob("*.jsonl")] == [b""]


def test_the_memory_holds_no_name_and_a_broken_one_is_forgotten(
    folder: Path, tmp_path: Path, read_paths: list[Path]
) -> None:
    first = archive(folder, tmp_path).index()
    (kept,) = tmp_path.glob("*.jsonl")
    assert kept.stat().st_mode & 0o777 == 0o600
    content = kept.read_bytes() + kept.name.encode()
    ds = pydicom.dcmread(read_paths[0])
    for word in (b"DOE", b"JANE", ds.StudyInstanceUID.encode(), ds.SOPInstanceUID.encode(), str(folder).encode()):
        assert word not in content
    kept.write_bytes(kept.read_bytes()[:-40])
    assert archive(folder, tmp_path).index() == first


# Pixels where they lie


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_plain_pixels_are_read_as_pydicom_reads_them(data: st.DataObject) -> None:
    allocated = data.draw(st.sampled_from([8, 16, 32]))
    stored = data.draw(st.integers(1, allocated))
    signed = data.draw(st.booleans())
    syntax = data.draw(
        st.sampled_from([ImplicitVRLittleEndian, ExplicitVRBigEndian, selftest.uid.ExplicitVRLittleEndian])
    )
    ds = selftest.sample("1.2.840.10008.1.2.1")[0]
    ds.Rows, ds.Columns = 3, 5
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = allocated, stored, stored - 1, int(signed)
    ds.PixelData = data.draw(st.binary(min_size=15 * allocated // 8, max_size=15 * allocated // 8)) + b"\0" * (
        15 * allocated // 8 % 2
    )
    ds["PixelData"].VR = "OW" if allocated > 8 else "OB"
    if data.draw(st.booleans()):
        ds.RescaleSlope, ds.RescaleIntercept = data.draw(
            st.sampled_from([("2", "-5"), ("1", "-1024"), ("0.5", "0.25")])
        )
    ds.SOPClassUID, ds.StudyInstanceUID = "1.2.840.10008.5.1.4.1.1.4", "1.2.3"
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = syntax
    ds.set_original_encoding(syntax.is_implicit_VR, syntax.is_little_endian)
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    read, place = parse_head(out.getvalue())  # type: ignore[misc]
    native = pixels.native(read, place)
    if native is None:
        assert syntax == ExplicitVRBigEndian
        assert allocated == 8
        return
    expected_stored, expected = pixels.read(pydicom.dcmread(io.BytesIO(out.getvalue())))
    found_stored, found = native.read(out.getvalue())
    assert np.array_equal(found_stored, expected_stored[0])
    assert np.array_equal(found, expected[0])


def test_bits_that_are_not_where_bits_stored_says_are_refused(folder: Path) -> None:
    path = next(p for p in folder.rglob("*") if p.is_file())
    ds = pydicom.dcmread(path)
    ds.HighBit = 15  # twelve bits, at the top of the word
    ds.save_as(path)
    assert refusals(folder) == [Reason.BROKEN]


# Files that mean harm


def test_pixels_in_items_under_a_plain_transfer_syntax_are_refused(folder: Path) -> None:
    path = next(p for p in folder.rglob("*") if p.is_file())
    ds = pydicom.dcmread(path)
    ds.compress(JPEGLSLossless, generate_instance_uid=False)
    out = io.BytesIO()
    ds.save_as(out)
    path.write_bytes(out.getvalue().replace(b"1.2.840.10008.1.2.4.80", b"1.2.840.10008.1.2.1\0\0\0"))
    assert refusals(folder) == [Reason.BROKEN]


def test_a_file_that_deflates_to_terabytes_is_refused_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = next(p for p in folder.rglob("*") if p.is_file())
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    head = out.getvalue()
    start = 144 + int.from_bytes(head[140:144], "little")
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = squeeze.compress(bytes(2**24)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    bomb = squeeze.compress(b"") + 80 * block  # a full flush forgets what came before: the same bytes go on and on
    (folder / "bomb").write_bytes(head[:start] + bomb)
    started = time.monotonic()
    assert refusals(folder) == [Reason.TOO_LARGE]
    assert time.monotonic() - started < 30


def test_a_deflated_file_is_read(folder: Path) -> None:
    plain = only_volume(archive(folder))
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        ds = pydicom.dcmread(path)
        ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        ds.save_as(path, enforce_file_format=True)
    assert np.array_equal(only_volume(archive(folder)).voxels, plain.voxels)


def deep(levels: int) -> bytes:
    """So many sequences, each within the one before: implicit VR, undefined lengths."""
    opening = struct.pack("<HHI", 0x0040, 0xA730, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    closing = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return opening * levels + closing * levels


def test_sequences_of_any_depth_are_survived(folder: Path) -> None:
    path = next(p for p in folder.rglob("*") if p.is_file())
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    ds.set_original_encoding(True, True)
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    at = out.getvalue().rindex(struct.pack("<HH", 0x7FE0, 0x0010))
    for levels in (50, 5_000, 200_000):
        path.write_bytes(out.getvalue()[:at] + deep(levels) + out.getvalue()[at:])
        index = archive(folder).index()
        assert index.seen == 5
        assert len(index.files) + len(index.refused) == 5


def test_a_small_file_of_enormous_size_costs_nothing(folder: Path) -> None:
    path = next(p for p in folder.rglob("*") if p.is_file())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for values in ({"Rows": 60000, "Columns": 60000}, {"NumberOfFrames": "2000000000"}, {"BitsAllocated": 65528}):
        ds = pydicom.dcmread(path)
        for name, value in values.items():
            setattr(ds, name, value)
        ds.save_as(folder / "lie")
        (reason,) = refusals(folder)
        assert reason in (Reason.TOO_LARGE, Reason.TRUNCATED)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_a_parser_that_hangs_costs_one_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million private elements of one byte each, all different: minutes of parsing in a few megabytes."""
    monkeypatch.setattr("medrec.dicom.archive.PARSE_SECONDS", 0.7)
    path = next(p for p in folder.rglob("*") if p.is_file())
    content = path.read_bytes()
    at = content.rindex(b"\xe0\x7f\x10\x00")
    many = b"".join(
        struct.pack("<HH2sHH", 0x0029 + 2 * (n >> 16), n & 0xFFFF, b"LO", 2, 0x2020) for n in range(1_500_000)
    )
    (folder / "slow").write_bytes(content[:at] + many + content[at:])
    index = archive(folder).index()
    assert index.seen == 6
    assert len(index.files) == 5
    (refused,) = index.refused
    assert "longer" in refused.detail


def test_a_damaged_codestream_is_refused_or_has_its_size() -> None:
    ds = selftest.sample("1.2.840.10008.1.2.4.90")[0]
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    stream = bytes(ds.PixelData)
    for cut in range(20, len(stream), max(1, len(stream) // 15)):
        ds.PixelData = stream[:cut] + b"\xff" * 7 + stream[cut + 7 :]
        out = io.BytesIO()
        ds.save_as(out, enforce_file_format=True)
        found = decode(out.getvalue())
        assert isinstance(found, str) or found[0].shape == (1, 64, 64)
