"""The one room that sees a name: DICOM headers, pixels and pseudonyms.

What leaves is digests, ordinals, keyed pseudonyms, numbers, allow-listed words and the names of card patterns that a
header's free text fits. Refuses files that are not whole DICOM images, each with a named reason. Invariants: no path,
no UID, no free text and no text of pydicom's (which quotes values) gets out.

`header` reads values safely, `frames` finds slices inside of a file (`csa` helps it), `decoders` and `pixels` make
numbers, `parsing` makes a `ScanFile`, `pseudonyms` names it. `work` does that in processes that may be killed
(`isolation`). `reading` turns a folder into bytes, `memory` knows which files need not be read again, `decoding` makes
a volume of a series, `archive` holds them together; `selftest` proves the decoders.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medrec.dicom.archive import Archive, Index
    from medrec.dicom.pseudonyms import Pseudonyms

__all__ = ["Archive", "Index", "Pseudonyms"]


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: a worker process needs neither, and starts in a third of the time."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from medrec.dicom import archive, pseudonyms

    return getattr(pseudonyms if name == "Pseudonyms" else archive, name)
