"""A folder of scans: every file accounted for, and series turned into volumes.

Owns `Archive` and `Index`, the only objects that know paths. Each file's bytes are read from one place and checked
against their digest when they are read again.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medrec.dicom import header, parsing, pixels
from medrec.dicom.decoders import PixelError
from medrec.dicom.pseudonyms import Pseudonyms
from medrec.errors import ConfigError, WorldError
from medrec.prediction import InputRule
from medrec.series import Reason, Refused, ScanFile, Series, Skipped
from medrec.volume import Volume, affine_of

MAX_FILE_BYTES = 2 * 2**30  # the largest that native pixel data in one element can sensibly be
Decoded = tuple[npt.NDArray[Any], npt.NDArray[np.float32]]  # stored values, rescaled values


@dataclass(frozen=True, slots=True)
class Index:
    """Where each file of a folder went; `seen` is their number, and the three groups hold each of them once.

    `unused` are digests of whole files that hold nothing to analyse: objects without an image, and identical copies.
    """

    files: tuple[ScanFile, ...]
    refused: tuple[Refused, ...]
    unused: tuple[str, ...]

    @property
    def seen(self) -> int:
        """Number of files in the folder."""
        return len(self.files) + len(self.refused) + len(self.unused)


class Archive:
    """A folder of scans, or one file of them: the only object that knows paths."""

    def __init__(
        self, folder: Path, pseudonyms: Pseudonyms, rules: Mapping[str, InputRule], *, or_file: bool = False
    ) -> None:
        """`rules` are the inputs that cards ask for, by the name under which `ScanFile.matches` lists them."""
        if not (folder.is_dir() or (or_file and folder.is_file())):
            raise ConfigError([f"--input: {folder} is not a folder"])
        self._folder = folder
        self._pseudonyms = pseudonyms
        self._rules = {name: parsing.compiled(rule) for name, rule in rules.items()}
        self._paths: dict[int, Path] = {}

    def count(self) -> int:
        """Number of files that `scan` will go through."""
        return sum(1 for _ in walk(self._folder))

    def scan(self) -> Iterator[ScanFile | Refused | str]:
        """Read each file of the folder once, in the order of its path; a `str` is the digest of an unused file.

        Raises WorldError when a folder cannot be listed: files would be missed without a word.
        """
        seen: set[str] = set()
        for ordinal, path in enumerate(walk(self._folder)):
            self._paths[ordinal] = path
            found = self._file(path, ordinal)
            digest = found if isinstance(found, str) else found.sha256
            if digest in seen and isinstance(found, ScanFile):
                yield digest
            else:
                seen.add(digest)
                yield found

    def index(self) -> Index:
        """All that `scan` yields, sorted into its three groups."""
        found = tuple(self.scan())
        return Index(
            tuple(f for f in found if isinstance(f, ScanFile)),
            tuple(f for f in found if isinstance(f, Refused)),
            tuple(f for f in found if isinstance(f, str)),
        )

    def load(self, series: Series) -> tuple[Volume, tuple[Refused, ...]] | Skipped:
        """Decode a series; broken copies of slices that have a whole one are refused and listed beside the volume.

        Voxels are rescaled by DICOM's rule (PS3.3 C.11.1.1.2: stored value x slope + intercept), slice by slice.
        Raises WorldError when a file has changed since it was indexed.
        """
        refused: dict[int, Refused] = {}
        stored, values = [], []
        opened: dict[int, Decoded] = {}  # a file with several slices is decoded once
        for number, copies in enumerate(series.slices, 1):
            decoded: list[Decoded] = []
            for file in copies:
                if file.ordinal in refused:
                    continue
                try:
                    decoded.append(self._slice(file, opened))
                except WorldError:
                    raise
                except PixelError as error:
                    refused[file.ordinal] = Refused(file.sha256, file.ordinal, Reason.BAD_PIXELS, str(error))
                except Exception:  # decoders raise anything; the text may quote a header, so it is dropped
                    refused[file.ordinal] = Refused(file.sha256, file.ordinal, Reason.BAD_PIXELS, f"slice {number}")
            if not decoded:
                why = next(r.detail for f in copies if (r := refused.get(f.ordinal)) is not None)
                place = f"slice {number} of {len(series.slices)}"
                detail = place if why == f"slice {number}" else f"{place}: {why}"
                return Skipped(series.first.series, Reason.BAD_PIXELS, detail, series.files)
            if any(not np.array_equal(decoded[0][1], other[1]) for other in decoded[1:]):
                detail = f"slice {number} exists in versions with different pixels"
                return Skipped(series.first.series, Reason.CONFLICTING_COPIES, detail, series.files)
            stored.append(decoded[0][0])
            values.append(decoded[0][1])
        opened.clear()
        volume = Volume(
            voxels=np.ascontiguousarray(np.stack(values).transpose(2, 1, 0)),
            affine_ijk_to_lps=affine_of(series),
            unit="HU" if series.first.modality == "CT" else "scanner units",
            series=series.first.series,
            pixels_sha256=_pixel_digest(stored),
        )
        return volume, tuple(refused.values())

    def _file(self, path: Path, ordinal: int) -> ScanFile | Refused | str:
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                digest = _digest_of_large(path)
                return Refused(digest, ordinal, Reason.TOO_LARGE, f"more than {MAX_FILE_BYTES // 2**30} GiB")
            data = path.read_bytes()
        except OSError as error:
            return Refused("", ordinal, Reason.UNREADABLE, os.strerror(error.errno or 0))
        digest = hashlib.sha256(data).hexdigest()
        try:
            return parsing.scan_file(data, digest, ordinal, self._pseudonyms, self._rules)
        except Exception as error:  # a crafted file may raise anything; its text may hold a name
            return Refused(digest, ordinal, Reason.BROKEN, f"its header cannot be read ({type(error).__name__})")

    def _slice(self, file: ScanFile, opened: dict[int, Decoded]) -> Decoded:
        """(stored values, rescaled values) of one slice, both (rows, columns)."""
        if file.ordinal in opened:
            stored, values = opened[file.ordinal]
        else:
            stored, values = self._pixels(file)
            if len(stored) > 1:
                opened[file.ordinal] = stored, values
        if stored.shape[1:] != (file.rows, file.columns):
            raise PixelError("the pixels have another size than the header says")
        return stored[file.frame], values[file.frame]

    def _pixels(self, file: ScanFile) -> Decoded:
        """(stored values, rescaled values) of a file, both (slices, rows, columns)."""
        try:
            data = self._paths[file.ordinal].read_bytes()
        except OSError as error:
            raise WorldError(f"file {file.ordinal} of the input is gone: {os.strerror(error.errno or 0)}") from None
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise WorldError(f"file {file.ordinal} of the input changed while it was being analysed")
        ds = header.parse(data)
        if ds is None:
            raise PixelError("not DICOM")
        return pixels.read(ds)


def walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder, in the order of its path. Raises WorldError when a folder cannot be listed."""

    def fail(error: OSError) -> None:
        raise WorldError(f"a folder below the input cannot be listed: {os.strerror(error.errno or 0)}")

    if folder.is_file():
        yield folder
        return
    seen: set[tuple[int, int]] = set()
    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        place = Path(root).stat()
        if (place.st_dev, place.st_ino) in seen:  # a link back to a folder that was walked already
            folders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        folders.sort()
        for name in sorted(names):
            path = Path(root, name)
            if path.is_symlink() and not path.exists():
                yield path  # a link to nothing is refused as unreadable, not overlooked
            elif path.is_file():
                yield path


def _digest_of_large(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pixel_digest(slices: list[npt.NDArray[Any]]) -> str:
    """sha256 of stored values (little-endian int32) in slice order, with their shape: headers play no part."""
    digest = hashlib.sha256(f"{len(slices)} {slices[0].shape}".encode())
    for stored in slices:
        digest.update(np.ascontiguousarray(stored, "<i4" if stored.dtype.kind in "iu" else "<f8").tobytes())
    return digest.hexdigest()
