"""What is done in processes that may be killed (`isolation`): parsing headers, decoding pixels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medrec.dicom import header, parsing, pixels
from medrec.dicom.decoders import PixelError
from medrec.dicom.parsing import Compiled, Incomplete, Parsed
from medrec.dicom.pseudonyms import Pseudonyms
from medrec.series import Reason, Refused

if TYPE_CHECKING:
    from medrec.dicom.marked import Marked
    from medrec.dicom.stills import Still

Decoded = tuple[npt.NDArray[Any], npt.NDArray[np.float32]]  # stored values, rescaled values: (slices, rows, columns)


@dataclass(frozen=True, slots=True)
class Beginning:
    """The first bytes of a file of `size` bytes, or all of them."""

    data: bytes
    size: int
    digest: str
    ordinal: int


def parse(
    files: Sequence[Beginning], pseudonyms: Pseudonyms, rules: Mapping[str, Compiled]
) -> list[Parsed | Refused | str | Incomplete]:
    """What each file is."""
    return [_parse(f, pseudonyms, rules) for f in files]


def _parse(
    file: Beginning, pseudonyms: Pseudonyms, rules: Mapping[str, Compiled]
) -> Parsed | Refused | str | Incomplete:
    try:
        return parsing.read(file.data, file.size, file.digest, file.ordinal, pseudonyms, rules)
    except Exception as error:  # a crafted file may raise anything; its text may hold a name
        detail = f"its header cannot be read ({type(error).__name__})"
        return Refused(file.digest, file.ordinal, Reason.BROKEN, detail)


def still(data: bytes, pseudonyms: Pseudonyms) -> "Still | str":
    """The image of a whole file of one, or a phrase that says why there is none; "" where that would quote the file."""
    from medrec.dicom import stills  # brings pydantic, which nobody else here needs

    try:
        return stills.read(data, pseudonyms)
    except PixelError as error:
        return str(error)
    except Exception:  # decoders raise anything; the text may quote a header, so it is dropped
        return ""


def marked(data: bytes, pseudonyms: Pseudonyms, wanted: Sequence[str]) -> "Marked | str":
    """What a whole file marks on a series, or a phrase that says why nothing; "" where that would quote the file."""
    from medrec.dicom.marked import read  # only where labels are added

    try:
        return read(data, pseudonyms, wanted)
    except PixelError as error:
        return str(error)
    except Exception:  # parsers and decoders raise anything; the text may quote a header, so it is dropped
        return ""


def decode(data: bytes) -> Decoded | str:
    """The pixels of a whole file, or a phrase that says why there are none; "" where that would quote the file."""
    try:
        ds = header.parse(data)
        return "not DICOM" if ds is None else pixels.read(ds)
    except PixelError as error:
        return str(error)
    except Exception:  # decoders raise anything; the text may quote a header, so it is dropped
        return ""
