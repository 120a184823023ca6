"""A study of single images: decoded, screened for text, outlined, measured.

Owns what `pipeline` does differently where a card is one of pictures. Reading and screening (`prepare`) know nothing of
networks, so that they can run beside the prediction of another study. Invariants: an image that cannot be read, or
that shows nothing at all, is refused by name and takes no other image with it; a mask has the size of its image; sizes
are pixels, and millimetres only where the file calibrates all that is outlined.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medrec import burned, findings
from medrec.dicom import Archive
from medrec.dicom.stills import Still
from medrec.pictures import IMAGE, PictureCard, PicturePrediction, PicturePredictor, scale_at
from medrec.report import ImageFacts, PictureCase, Pictured, Report, Verdict, called
from medrec.routing import RoutedPictures
from medrec.series import Reason, Refused, Skipped

FLAT = 1 / 255  # an image whose greys differ by less shows nothing


@dataclass(frozen=True, slots=True, eq=False)
class PreparedPictures:
    """Images in the order of the inputs, what may be shown of them, what is to be said of that, and who is left out."""

    stills: tuple[Still, ...]
    shown: tuple[npt.NDArray[np.float32], ...]
    said: tuple[str, ...]
    refused: tuple[Refused, ...]
    lossy: bool

    @property
    def defective(self) -> tuple[Skipped, ...]:
        """Series that could not be used after all: images stand for themselves, so that there are none."""
        return ()

    @property
    def pixels_sha256(self) -> Mapping[str, str]:
        """Digests of the decoded images, by their number: the ledger keeps no digest of a file as a name."""
        return {f"{IMAGE} {n}": s.pixels_sha256 for n, s in enumerate(self.stills, 1)}


def prepare(routed: RoutedPictures, archive: Archive) -> PreparedPictures | Skipped:
    """Decode and screen the images; those that cannot be seen are refused.

    Raises WorldError when a file changed or vanished since it was indexed.
    """
    stills: list[Still] = []
    refused: list[Refused] = []
    for file, found in zip(routed.pictures, archive.stills(routed.pictures), strict=True):
        if isinstance(found, Still) and np.ptp(found.pixels) < FLAT:
            found = Refused(file.sha256, file.ordinal, Reason.BAD_PIXELS, "the image shows one grey only")
        if isinstance(found, Refused):
            refused.append(found)
        else:
            stills.append(found)
    if not stills:
        return Skipped(IMAGE, refused[0].reason, refused[0].detail, routed.pictures)
    shown, said = burned.screened_pictures([s.pixels for s in stills])
    lossy = any(f.lossy for f in routed.pictures)
    return PreparedPictures(tuple(stills), shown, said, tuple(refused), lossy)


def predict(prepared: PreparedPictures, predictor: PicturePredictor) -> tuple[PicturePrediction, ...]:
    """What the networks say of each image. Raises ArithmeticError when that is no number."""
    return tuple(predictor.predict(still.pixels) for still in prepared.stills)


def facts_of(still: Still, said: PicturePrediction, card: PictureCard) -> ImageFacts:
    """What is reported of one image."""
    spacing_mm = scale_at(said.mask, still.regions)
    inside = findings_of(said, (1.0, 1.0))
    mm = findings_of(said, spacing_mm) if spacing_mm is not None else None
    names = {} if said.positive is None or card.positive is None else {card.positive: round(said.positive, 4)}
    rows, columns = still.pixels.shape
    return ImageFacts(
        input=still.sha256,
        size_px=(rows, columns),
        probabilities=names,
        outlined=inside is not None,
        area_px=int(said.mask.sum()),
        longest_px=round(inside.longest_axial_mm, 2) if inside else 0.0,
        perpendicular_px=round(inside.perpendicular_mm, 2) if inside else 0.0,
        centroid_px=_centroid(said.mask) if inside else None,
        box_px=_box(said.mask) if inside else None,
        probability=round(inside.probability, 4) if inside else 0.0,
        area_mm2=round(mm.volume_mm3, 2) if mm else None,
        longest_mm=round(mm.longest_axial_mm, 2) if mm else None,
        perpendicular_mm=round(mm.perpendicular_mm, 2) if mm else None,
        calipers=said.marks,
    )


def findings_of(said: PicturePrediction, spacing: tuple[float, float]) -> findings.Finding | None:
    """The outlined region measured as a slice of pixels that are `spacing` (rows, columns) apart; None without one."""
    if not said.mask.any():
        return None
    affine = np.diag([spacing[1], spacing[0], 1.0, 1.0])
    (found,) = findings.measure(said.mask.T[..., None].astype(np.int32), said.probability.T[..., None], affine, None)
    return found


def verdict(images: tuple[ImageFacts, ...], card: PictureCard) -> Verdict:
    """A finding where anything is outlined, or called positive by a card that outlines nothing."""
    found = any(i.outlined for i in images) or called(images, card)
    return Verdict.FINDING if found else Verdict.NOTHING_MARKED


def flags(prepared: PreparedPictures, images: tuple[ImageFacts, ...], card: PictureCard) -> tuple[str, ...]:
    """What a reader must know beside the verdict."""
    hides = card.preprocessing.paint_out_marks
    seen = "was painted out where its shape gives it away" if hides else "stayed as it was"
    told = [f"{s}; in what the networks saw it {seen}" if s == burned.COVERED_PICTURES else s for s in prepared.said]
    marked = sum(i.calipers >= 2 for i in images)
    if marked:
        hidden = "hidden from" if hides else "seen by"
        told.append(f"calipers are drawn into {marked} of {len(images)} images; they were {hidden} the networks")
    if set(prepared.pixels_sha256.values()) & set(card.trained_on):
        told.append("the model was trained on these very images: how well it does here says nothing of other patients")
    return tuple(told)


def case_of(
    report: Report, card: PictureCard, prepared: PreparedPictures | None, said: tuple[PicturePrediction, ...]
) -> PictureCase:
    """The case with what its writers draw; without pictures where nothing was analysed."""
    if prepared is None:
        return PictureCase(report, card, ())
    pairs = zip(prepared.stills, prepared.shown, said, strict=True)
    return PictureCase(
        report, card, tuple(Pictured(s.sha256, s.pixels_sha256, s.pixels, shown, p) for s, shown, p in pairs)
    )


def _centroid(mask: npt.NDArray[np.bool_]) -> tuple[float, float]:
    row, column = (float(x) for x in np.argwhere(mask).mean(0))
    return round(row, 2), round(column, 2)


def _box(mask: npt.NDArray[np.bool_]) -> tuple[tuple[int, int], tuple[int, int]]:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return (int(rows[0]), int(columns[0])), (int(rows[-1]), int(columns[-1]))
