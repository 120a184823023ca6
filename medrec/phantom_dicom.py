"""Writes arrays as MR images in DICOM, valid and invented throughout.

Uses none of our other rooms, so that it can test the rooms that read. Knows arrays and affines, not heads.
Invariants: the same call writes the same bytes; file names and numbers carry no order unless asked.
"""

import hashlib
from collections.abc import Collection
from copy import deepcopy
from pathlib import Path
from typing import Literal
from uuid import NAMESPACE_OID, uuid5

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage


def write_dicom(
    voxels: npt.NDArray[np.int16],
    affine_ijk_to_lps: npt.ArrayLike,
    folder: Path,
    *,
    patient_name: str = "PHANTOM^ONE",
    patient_id: str = "PHANTOM-1",
    study_uid: str | None = None,
    series_description: str = "FLAIR",
    series_number: int = 1,
    manufacturer: str = "medrec phantom",
    instance_numbers: Literal["shuffled", "ordered"] = "shuffled",
    leave_out: Collection[int] = (),
    transfer_syntax: UID = ExplicitVRLittleEndian,
    study_date: str = "20200102",
    birth_date: str = "",
    sex: str = "O",
) -> tuple[Path, ...]:
    """Write voxels (i, j, k) as single-frame MR Image Storage; the paths come in the order of k.

    Values need 0..4095 (12 bits). UIDs follow from patient, study and series number. Series of one study
    share a frame of reference. Slices in `leave_out` are not written.
    """
    affine = np.asarray(affine_ijk_to_lps, float)
    study_uid = study_uid or uid("study", patient_id)
    count = voxels.shape[2]
    numbers = np.arange(1, count + 1)
    if instance_numbers == "shuffled":
        numbers = np.random.default_rng(series_number).permutation(numbers)
    common = _common(affine)
    common.PatientName, common.PatientID = patient_name, patient_id
    common.StudyInstanceUID, common.FrameOfReferenceUID = study_uid, uid(study_uid, "frame of reference")
    common.SeriesInstanceUID = uid(study_uid, "series", str(series_number))
    common.SeriesDescription, common.SeriesNumber = series_description, series_number
    common.Manufacturer = manufacturer
    common.StudyDate, common.PatientBirthDate, common.PatientSex = study_date, birth_date, sex
    folder.mkdir(parents=True, exist_ok=True)
    return tuple(
        _write_slice(common, voxels[:, :, k], affine, k, int(numbers[k]), folder, transfer_syntax)
        for k in range(count)
        if k not in leave_out
    )


def uid(*words: str) -> str:
    """The UID that belongs to these words, always the same."""
    # DICOM PS3.5 B.2: a UUID as an integer below 2.25 needs no registered root.
    return f"2.25.{uuid5(NAMESPACE_OID, '/'.join(('medrec phantom', *words))).int}"


def _common(affine: npt.NDArray[np.float64]) -> Dataset:
    """What all slices share, type 1 and 2 attributes of the MR Image IOD (DICOM PS3.3 A.4) among it."""
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.concatenate([affine[:3, 0] / spacing_mm[0], affine[:3, 1] / spacing_mm[1]])
    ds = Dataset()
    ds.SpecificCharacterSet, ds.SOPClassUID = "ISO_IR 192", MRImageStorage
    ds.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber, ds.StudyID = "20200102", "030405", "", "1"
    ds.Modality, ds.ReferringPhysicianName, ds.BodyPartExamined = "MR", "", "HEAD"
    ds.PatientBirthDate, ds.PatientSex, ds.PatientPosition, ds.PositionReferenceIndicator = "", "O", "HFS", ""
    ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions = ["SE", "IR"], "SK", ""
    ds.MRAcquisitionType = "2D"
    ds.RepetitionTime, ds.EchoTime, ds.InversionTime, ds.EchoTrainLength = "9000", "120", "2500", "16"
    ds.MagneticFieldStrength = "3"
    ds.SliceThickness = f"{spacing_mm[2]:.6g}"
    # DICOM PS3.3 10.7.1.3: first the distance of rows (along j), then that of columns (along i).
    ds.PixelSpacing = [f"{spacing_mm[1]:.9g}", f"{spacing_mm[0]:.9g}"]
    ds.ImageOrientationPatient = [f"{c:.9f}" for c in cosines]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    return ds


def _write_slice(
    common: Dataset,
    pixels: npt.NDArray[np.int16],
    affine: npt.NDArray[np.float64],
    k: int,
    number: int,
    folder: Path,
    transfer_syntax: UID,
) -> Path:
    ds = deepcopy(common)
    ds.SOPInstanceUID = uid(common.SeriesInstanceUID, str(k))
    ds.InstanceNumber = number
    ds.ImagePositionPatient = [f"{x:.6f}" for x in affine[:3, :3] @ (0, 0, k) + affine[:3, 3]]
    ds.Columns, ds.Rows = pixels.shape
    # Rows of the image run along i, so that j comes first in the file.
    ds.PixelData = pixels.T.astype("<u2" if transfer_syntax.is_little_endian else ">u2").tobytes()
    ds.file_meta = FileMetaDataset()
    compressed = transfer_syntax.is_compressed
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if compressed else transfer_syntax
    ds.file_meta.ImplementationClassUID = UID(uid("implementation"))
    ds.file_meta.ImplementationVersionName = "MEDREC_PHANTOM"
    if compressed:
        ds.compress(transfer_syntax, generate_instance_uid=False)
    path = folder / hashlib.sha256(ds.SOPInstanceUID.encode()).hexdigest()[:12]
    ds.save_as(path, enforce_file_format=True)
    return path
