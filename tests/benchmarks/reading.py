"""How fast scans are read, beside others' programs: python tests/benchmarks/reading.py [RESULTS.json]

One CT of 512 x 512 x 300 and a folder of 1,000 mixed files are made; dcm2niix, SimpleITK and MONAI take part where
they are installed. "in process" is from a folder to a Volume, digests of files and pixels included, with its worker
processes started before.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pydicom
from paired import json_path, measure, tell
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, generate_uid

from medrec.dicom import Archive, Pseudonyms
from medrec.series import Series, group
from medrec.stacks import stacks

ROUNDS = 5
MEDREC = Path(sys.executable).parent / "medrec"


def ct(folder: Path, slices: int, side: int, syntax: str = ExplicitVRLittleEndian, seed: int = 0) -> Path:
    """A CT of smooth noise, one file a slice, named in no order."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    base = np.kron(rng.integers(-900, 900, (side // 8, side // 8)), np.ones((8, 8), int)).astype(np.int16)
    ds = pydicom.FileDataset("", {}, file_meta=FileMetaDataset(), preamble=bytes(128))
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = (generate_uid() for _ in range(3))
    ds.Modality, ds.PatientID, ds.PatientName, ds.SeriesNumber = "CT", "1", "PHANTOM", 1
    ds.StudyDate, ds.Manufacturer, ds.SeriesDescription = "20260101", "medrec phantom", "CT"
    ds.ImageType, ds.KVP, ds.ConvolutionKernel, ds.PatientPosition = ["ORIGINAL", "PRIMARY", "AXIAL"], "120", "B", "HFS"
    ds.Rows = ds.Columns = side
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelSpacing, ds.SliceThickness, ds.ImageOrientationPatient = ["0.7", "0.7"], "1.25", list("100010")
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = "1", "-1024", "HU"
    for k in range(slices):
        one = deepcopy(ds)
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        one.InstanceNumber, one.ImagePositionPatient = k + 1, ["-179", "-179", f"{1.25 * k:.2f}"]
        one.PixelData = (np.roll(base, k, 0) + rng.integers(0, 16, base.shape, np.int16)).tobytes()
        if syntax != ExplicitVRLittleEndian:
            one.compress(syntax, generate_instance_uid=False)
        one.save_as(folder / f"{(7919 * k) % 10007:05d}", enforce_file_format=True)
    return folder


def mixed(folder: Path, count: int = 1000) -> Path:
    """Series of many sizes and encodings, text files and broken ones."""
    parts = [
        (64, ExplicitVRLittleEndian),
        (128, JPEGLSLossless),
        (256, ExplicitVRLittleEndian),
        (128, JPEG2000Lossless),
    ]
    for number, (side, syntax) in enumerate(parts):
        ct(folder / str(number), count // 5, side, syntax, number)
    whole = next((folder / "0").iterdir()).read_bytes()
    (folder / "other").mkdir()
    for number in range(count // 5):
        (folder / "other" / f"{number}").write_bytes(b"text" * 50 if number % 2 else whole[: 300 + number])
    return folder


def headers(folder: Path, count: int = 10_000) -> Path:
    """Many small files: what is left of a file's cost when its pixels are few."""
    return ct(folder, count, 64)


def in_process(folder: Path) -> list[object]:
    """From a folder to its volumes."""
    archive = Archive(folder, Pseudonyms(b"k" * 32), {})
    studies = group(archive.index().files)
    found = [s for study in studies for files in study.series for s in stacks(files)]
    return [archive.load(s) for s in found if isinstance(s, Series)]


def index_only(folder: Path) -> int:
    """Every header."""
    return Archive(folder, Pseudonyms(b"k" * 32), {}).index().seen


def plain_pydicom(folder: Path) -> np.ndarray:
    """The loop that everybody writes."""
    slices = sorted((pydicom.dcmread(p) for p in folder.iterdir()), key=lambda d: float(d.ImagePositionPatient[2]))
    return np.stack([d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in slices])


def plain_headers(folder: Path) -> int:
    """Headers with pydicom alone, no digest."""
    return sum(1 for p in folder.iterdir() if pydicom.dcmread(p, stop_before_pixels=True))


def quietly(*command: object) -> Callable[[], object]:
    """A command with nothing on the console, into an empty folder that stands for {out}."""

    def run() -> None:
        with tempfile.TemporaryDirectory() as out:
            words = [str(w).format(out=out) for w in command]
            subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)

    return run


def simple_itk(folder: Path) -> object:
    """GDCM through SimpleITK, sorted by position."""
    import SimpleITK as sitk  # noqa: N813

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def monai_reader(folder: Path) -> object:
    """MONAI's PydicomReader."""
    from monai.data import PydicomReader

    reader = PydicomReader()
    return reader.get_data(reader.read(str(folder)))


def others(folder: Path) -> dict[str, Callable[[], object]]:
    """Programs of others that are installed."""
    found: dict[str, Callable[[], object]] = {"plain pydicom loop": lambda: plain_pydicom(folder)}
    if shutil.which("dcm2niix"):
        command = ("dcm2niix", "-z", "n", "-b", "n", "-p", "n", "-o", "{out}", "-f", "%s_%p", folder)
        found = {"dcm2niix": quietly(*command), **found}
    if find_spec("SimpleITK"):
        found["SimpleITK"] = lambda: simple_itk(folder)
    if find_spec("monai"):
        found["MONAI PydicomReader"] = lambda: monai_reader(folder)
    return found


def main() -> None:
    """Make the data, let all take turns, print the tables."""
    out = json_path()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        one = ct(root / "ct", 300, 512)
        in_process(ct(root / "warm", 4, 64))  # starts the worker processes
        ours = {
            "medrec in process": lambda: in_process(one),
            "medrec convert": quietly(MEDREC, "convert", one, "-o", "{out}"),
        }
        rivals = others(one)
        against = "dcm2niix" if "dcm2niix" in rivals else "plain pydicom loop"
        tell("CT 512 x 512 x 300", measure({**ours, **rivals}, ROUNDS), against, out)
        many = mixed(root / "mixed")
        both = {
            "medrec in process": lambda: in_process(many),
            "medrec convert": quietly(MEDREC, "convert", many, "-o", "{out}"),
        }
        if against == "dcm2niix":
            both["dcm2niix"] = others(many)["dcm2niix"]
        tell("1,000 mixed files", measure(both, ROUNDS), next(reversed(both)), out)
        small = headers(root / "small")
        seconds = measure(
            {"medrec index": lambda: index_only(small), "pydicom headers": lambda: plain_headers(small)}, 3
        )
        tell("10,000 headers", seconds, "pydicom headers", out)
        print(f"{10_000 / min(seconds['medrec index']):.0f} files a second, digests included, {os.cpu_count()} cores")
        for name, syntax in (("JPEG-LS", JPEGLSLossless), ("JPEG 2000", JPEG2000Lossless)):
            packed = ct(root / name, 100, 512, syntax)
            runs = {
                "medrec in process": lambda p=packed: in_process(p),
                "plain pydicom loop": lambda p=packed: plain_pydicom(p),
            }
            tell(f"{name} 512 x 512 x 100", measure(runs, 3), "plain pydicom loop", out)


if __name__ == "__main__":
    main()
