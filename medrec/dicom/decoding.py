"""One series decoded: its slices in order, each from its whole copies, and the digest of all stored values.

Plain pixels are read where they lie; everything else is decoded in processes that may be killed, several files at a
time.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from medrec.dicom import isolation, work
from medrec.dicom.decoders import PixelError
from medrec.dicom.pixels import Native
from medrec.dicom.work import Decoded
from medrec.series import Reason, Refused, ScanFile, Series, Skipped
from medrec.volume import HU, Volume, affine_of

# What a file may take to decode: JPEG 2000, the slowest, manages ten times this many bytes of pixels a second.
DECODE_SECONDS = 30.0
DECODE_BYTES_A_SECOND = 2**21
COMPRESSED_AT_MOST = 20  # times: more is a picture of nothing, and quickly decoded
FILES_AHEAD = 2 * isolation.WORKERS
Key = tuple[int, int]  # ordinal and member of a file


class Decoding:
    """The decoding of one series; `read` gives the bytes of a file, `natives` where plain pixels lie in theirs.

    `opened` keeps the last file that holds several slices: it may hold several series too.
    """

    def __init__(
        self,
        series: Series,
        natives: Mapping[Key, Native],
        read: Callable[[ScanFile], bytes],
        opened: dict[Key, Decoded],
    ) -> None:
        self._opened = opened
        self._series = series
        self._natives = natives
        self._read = read
        self._refused: dict[Key, Refused] = {}
        self._under_way: dict[Key, Future[Decoded | str]] = {}
        self._done: dict[Key, Decoded] = {}
        self._coming = iter(_files(series))
        self._last_use = {_key(f): n for n, copies in enumerate(series.slices, 1) for f in copies}

    def volume(self) -> tuple[Volume, tuple[Refused, ...]] | Skipped:
        """The series as a volume, with the copies of slices that are broken, or why it is none."""
        series = self._series
        shape = (series.first.rows, series.first.columns)
        values = np.empty((len(series.slices), *shape), np.float32)
        digest = _PixelDigest(len(series.slices), shape)
        with digest:
            for number, copies in enumerate(series.slices, 1):
                found = self._slice(number, copies)
                if isinstance(found, Skipped):
                    return found
                stored, values[number - 1] = found
                digest.add(stored)
        volume = Volume(
            voxels=values.transpose(2, 1, 0),
            affine_ijk_to_lps=affine_of(series),
            unit=HU if series.first.modality == "CT" else "scanner units",
            series=series.first.series,
            pixels_sha256=digest.hexdigest(),
        )
        return volume, tuple(self._refused.values())

    def _slice(
        self, number: int, copies: tuple[ScanFile, ...]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]] | Skipped:
        """(stored values, rescaled values) of one slice, both (rows, columns)."""
        series = self._series
        frames = [(f, d) for f in copies if (d := self._decoded(f, number)) is not None]
        for file in copies:
            if self._last_use[_key(file)] == number:
                self._done.pop(_key(file), None)
        if not frames:
            why = next(r.detail for f in copies if (r := self._refused.get(_key(f))) is not None)
            place = f"slice {number} of {len(series.slices)}"
            detail = place if why == f"slice {number}" else f"{place}: {why}"
            return Skipped(series.first.series, Reason.BAD_PIXELS, detail, series.files)
        file, (stored, values) = frames[0]
        if any(not np.array_equal(values[file.frame], other[f.frame]) for f, (_, other) in frames[1:]):
            detail = f"slice {number} exists in versions with different pixels"
            return Skipped(series.first.series, Reason.CONFLICTING_COPIES, detail, series.files)
        return stored[file.frame], values[file.frame]

    def _decoded(self, file: ScanFile, number: int) -> Decoded | None:
        """The pixels of a file; None where there are none, which is noted."""
        key = _key(file)
        if key in self._done or key in self._refused or key in self._opened:
            return self._done.get(key) or self._opened.get(key)
        native = self._natives.get(key)
        found: Decoded | str = self._plain(file, native) if native is not None else self._isolated(file)
        if not isinstance(found, str) and found[0].shape[1:] != (file.rows, file.columns):
            found = "the pixels have another size than the header says"
        # Whole numbers that are not rescaled are finite.
        if not isinstance(found, str) and (native is None or native.slope) and not np.isfinite(found[1]).all():
            found = "the pixels hold values that are not numbers"
        if isinstance(found, str):
            detail = found or f"slice {number}"
            self._refused[key] = Refused(file.sha256, file.ordinal, Reason.BAD_PIXELS, detail)
            return None
        if len(found[0]) > 1:
            self._opened.clear()
            self._opened[key] = found
        else:
            self._done[key] = found
        return found

    def _plain(self, file: ScanFile, native: Native) -> Decoded | str:
        try:
            stored, values = native.read(self._read(file))
        except PixelError as error:
            return str(error)
        return stored[None], values[None]

    def _isolated(self, file: ScanFile) -> Decoded | str:
        while _key(file) not in self._under_way or len(self._under_way) < FILES_AHEAD:
            coming = next(self._coming, None)
            if coming is None:
                break
            if _key(coming) not in self._natives and _key(coming) not in self._opened:
                self._under_way[_key(coming)] = self._start(coming)
        try:
            return isolation.result(self._under_way.pop(_key(file)))
        except isolation.Lost:
            pass  # was it the file, or the machine?
        try:
            return isolation.result(self._start(file))
        except isolation.Lost as lost:
            return lost.why

    def _start(self, file: ScanFile) -> "Future[Decoded | str]":
        data = self._read(file)
        expanded = max(4 * file.rows * file.columns, COMPRESSED_AT_MOST * len(data))
        return isolation.start(work.decode, data, seconds=DECODE_SECONDS + expanded / DECODE_BYTES_A_SECOND)


class _PixelDigest:
    """sha256 of stored values (little-endian int32) in slice order, with their shape: headers play no part.

    Computed beside the decoding, by a thread.
    """

    def __init__(self, slices: int, shape: tuple[int, int]) -> None:
        self._digest = hashlib.sha256(f"{slices} {shape}".encode())
        self._thread = ThreadPoolExecutor(1, "digest")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> "_PixelDigest":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown(cancel_futures=kind is not None)

    def add(self, stored: npt.NDArray[Any]) -> None:
        whole = np.ascontiguousarray(stored, "<i4" if stored.dtype.kind in "iu" else "<f8")
        self._waiting.append(self._thread.submit(self._digest.update, whole.data))
        if len(self._waiting) > 64:  # slices in memory
            self._waiting.popleft().result()

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _key(file: ScanFile) -> Key:
    return file.ordinal, file.member


def _files(series: Series) -> Iterator[ScanFile]:
    """Every file of the series, in the order of the first slice that needs it."""
    yield from {_key(f): f for copies in series.slices for f in copies}.values()
