"""Masks in the home: packed, compressed, by the digest of what they mark, readable by their owner only.

Invariant: `mask_sha256` is of shape and marks, not of the compressed bytes: the same mask has one name on every
machine, and a file that does not unpack to its own name is refused.
"""

import hashlib
import json
import os
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medrec.errors import DataError, WorldError
from medrec.home import Home
from medrec.store import Label, Store


def mask_sha256(marks: npt.NDArray[np.bool_]) -> str:
    """Digest of a mask: its shape and its marks."""
    return hashlib.sha256(_packed(marks)).hexdigest()


def mask_file(home: Home, digest: str) -> Path:
    """Where the mask of this digest lies."""
    return home.labels / f"{digest}.mask"


def keep(home: Home, marks: npt.NDArray[np.bool_]) -> str:
    """Put a mask into the home, once; returns its digest. Raises WorldError when it cannot be written."""
    packed = _packed(marks)
    digest = hashlib.sha256(packed).hexdigest()
    path = mask_file(home, digest)
    if path.exists():
        return digest
    draft = path.with_name(f".{digest}.{os.getpid()}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(zlib.compress(packed, 6))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise WorldError(f"a mask cannot be kept in the home: {os.strerror(error.errno or 0)}") from None
    return digest


def forget_unnamed(home: Home, store: Store) -> None:
    """Take away masks that no label names: of an erased patient, or of an adding that was killed.

    The caller holds the home's labelling, so that none is just being added.
    """
    named = {label.mask_sha256 for label in store.labels(superseded=True)}
    for path in home.labels.glob("*.mask"):
        if path.stem not in named:
            path.unlink()


def mask(home: Home, label: Label) -> npt.NDArray[np.bool_]:
    """The marks of a label: (i, j, k) bool on its volume's grid, or (rows, columns) of its picture.

    Raises DataError for a label without mask, or one whose file is gone or was changed.
    """
    if label.mask_sha256 is None:
        raise DataError(f"label {label.label} says classes and has no mask")
    try:
        packed = zlib.decompress(mask_file(home, label.mask_sha256).read_bytes())
    except (OSError, zlib.error):
        raise DataError(f"the mask of label {label.label} is gone or cannot be read; add the label again") from None
    if hashlib.sha256(packed).hexdigest() != label.mask_sha256:
        raise DataError(f"the mask of label {label.label} was changed since it was added; add the label again")
    head, _, bits = packed.partition(b"\n")
    shape = tuple(json.loads(head))
    marks = np.unpackbits(np.frombuffer(bits, np.uint8), count=int(np.prod(shape)))
    return marks.reshape(shape).astype(bool)


def _packed(marks: npt.NDArray[np.bool_]) -> bytes:
    return json.dumps(list(marks.shape)).encode() + b"\n" + np.packbits(marks, axis=None).tobytes()
