"""Masks as people keep them in files: NIfTI volumes and PNG pictures, and the layouts of nnU-Net and MSD around them.

What counts of a mask with several values is said by name or number, or it is refused. Nothing is read before its size
is known to fit (`placing`), so that a small file that stands for terabytes costs nothing.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image

from medrec.dicom.marked import EVERY
from medrec.errors import DataError
from medrec.labels.placing import TOLERANCE_MM, Marks, fits, values_on
from medrec.store import Known

NIFTI, PNG, TABLE = (".nii", ".nii.gz"), (".png",), (".csv",)
LABELS, IMAGES = ("labelsTr", "labelsTs"), ("imagesTr", "imagesTs")  # nnU-Net raw, and the MSD, which it came from
DATASET = "dataset.json"
IN_MM = ("unknown", "mm")
LARGEST_VALUE = 65535
Names = Mapping[str, tuple[int, ...]]  # what the values of a mask are called


def kind_of(path: Path) -> str:
    """The ending by which a file is read, "" for one that may be DICOM."""
    name = path.name.lower()
    return next((end for end in (*NIFTI, *PNG, *TABLE) if name.endswith(end)), "")


def stem_of(path: Path) -> str:
    """A file's name without its ending: .nii.gz is one."""
    return path.name[: -len(kind_of(path))] if kind_of(path) else path.stem


def nifti(path: Path, known: Known, wanted: Sequence[str]) -> Marks:
    """The marks (i, j, k) of a NIfTI mask on a volume's grid. Raises DataError."""
    try:
        image: Any = nib.load(path)
    except Exception:  # readers raise anything for a crafted file
        raise DataError("it is no NIfTI file, or a broken one") from None
    if not isinstance(image, nib.nifti1.Nifti1Pair):
        raise DataError("it is no NIfTI file")
    _check_place(image)
    try:
        values = values_on(image, known)
    except (OSError, EOFError, ValueError, MemoryError):
        raise DataError("its voxels cannot be read: it is truncated or broken") from None
    return picked(values, wanted, names_of(path))


def _check_place(image: Any) -> None:
    """NIfTI-1: qform and sform each give a place; without either there is none, and two that differ are a doubt."""
    header = image.header
    s, q = (header.get_sform(coded=True), header.get_qform(coded=True))
    if s[0] is None and q[0] is None:
        raise DataError("it has neither sform nor qform: it has no place in the patient")
    if s[0] is not None and q[0] is not None and np.abs(s[0] - q[0]).max() > 10 * TOLERANCE_MM:
        raise DataError("its sform and qform put it in two places: which is meant?")
    if header.get_xyzt_units()[0] not in IN_MM:
        raise DataError("its unit is not the millimetre")


def png(path: Path, known: Known, wanted: Sequence[str]) -> Marks:
    """The marks (rows, columns) of a PNG mask of a single image. Raises DataError."""
    if known.affine is not None:
        raise DataError("it is a picture, and its image is a volume: add a NIfTI mask or a DICOM Segmentation")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            fits((image.height, image.width), known)
            if getattr(image, "n_frames", 1) != 1:
                raise DataError("it holds several pictures")
            values = np.asarray(image)
    except DataError:
        raise
    except Exception:  # decoders raise anything for a crafted file
        raise DataError("it is no PNG file, or a broken one") from None
    return picked(_grey(values), wanted, names_of(path))


def _grey(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(rows, columns) of a picture whose colours are all grey and whose pixels are all opaque."""
    if values.ndim == 2:
        return values
    colours, alpha = (values[..., :-1], values[..., -1]) if values.shape[2] in (2, 4) else (values, None)
    if (alpha is not None and (alpha != alpha.max()).any()) or (colours != colours[..., :1]).any():
        raise DataError("it is coloured or transparent: a mask has one value for each pixel")
    return np.asarray(colours[..., 0])


def names_of(path: Path) -> Names:
    """What the values of a mask are called, by the dataset.json of the layout that it lies in; {} elsewhere."""
    described = path.parent.parent / DATASET
    if path.parent.name not in LABELS or not described.is_file():
        return {}
    try:
        labels: dict[str, Any] = json.loads(described.read_text(encoding="utf-8"))["labels"]
        if all(str(value).isdigit() for value in labels):  # MSD: names by value
            return {str(name): (int(value),) for value, name in labels.items()}
        return {str(n): tuple(v) if isinstance(v, list) else (int(v),) for n, v in labels.items()}  # nnU-Net
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"the {DATASET} beside it does not say what its values are") from None


def picked(values: npt.NDArray[Any], wanted: Sequence[str], names: Names) -> Marks:
    """Where a mask has a value that counts: its only one, or those that are `wanted` by name or number."""
    whole = _whole(values)
    found = [int(v) for v in np.flatnonzero(np.bincount(whole.ravel())) if v]
    if unknown := sorted(set(found) - {v for many in names.values() for v in many}) if names else []:
        raise DataError(f"it holds the value {unknown[0]}, which {DATASET} does not name")
    if set(names.get("ignore", ())) & set(found):
        raise DataError("parts of it are marked to be ignored: a label says yes or no of every voxel")
    there = {v: n for n, many in names.items() for v in many if v and n != "ignore"} if names else dict.fromkeys(found)
    if not wanted:
        if len(there) > 1:
            raise DataError(f"it knows the values {_listed(sorted(there))}: say with --segment which of them count")
        return np.asarray(whole > 0)
    chosen: set[int] = set()
    for one in wanted:
        own = {v for name, many in names.items() for v in many if name.casefold() == one.casefold()}
        own |= set(there) if one.casefold() == EVERY else set()
        own |= {int(one)} if one.isdigit() and (int(one) in there or not names) else set()
        if not own:
            raise DataError(f"no value of it is called {one!r}; there are {_listed(sorted(there)) or 'none'}")
        chosen |= own
    return np.isin(whole, sorted(chosen))


def _whole(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    if values.dtype.kind == "b":
        return values.astype(np.int64)
    if values.dtype.kind not in "iuf":
        raise DataError("its values are no numbers")
    if not np.isfinite(values).all() or (values.dtype.kind == "f" and (values != np.rint(values)).any()):
        raise DataError("its values are no whole numbers: it holds probabilities, and a label says yes or no")
    if values.min() < 0 or values.max() > LARGEST_VALUE:
        raise DataError(f"its values are not between 0 and {LARGEST_VALUE}")
    return values.astype(np.int64)


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:10])) + (" and more" if len(values) > 10 else "")
