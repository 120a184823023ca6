"""What is kept of each case in a few numbers, so that what changes is seen later without its pixels.

Owns `Observed`. Site and device are keyed pseudonyms, the scanner is words of ours; the numbers are of images, geometry
and answers. Invariants: nothing of identity; every number is finite; the digest that the ledger keeps covers all of it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from medrec.report import AnyCase, Case, PictureCase, Status, Verdict
from medrec.series import ScanFile
from medrec.volume import Volume, foreground, tilt_from_axial_deg

VOXELS = 200_000  # of a volume that are looked at: more move no number that is kept
DIGITS = 5
# Numbers that a model's answer decides, by their name or its beginning: they change with its version.
ANSWERS = (
    *("finding", "inconclusive", "lesions", "volume ", "unclear outline", "networks disagree", "highest slice"),
    *("positive slices", "slices called otherwise", "outlined ", "probability of "),
)
UNSURE = (0.25, 0.75)  # probabilities between them are no clear answer


@dataclass(frozen=True, slots=True)
class Observed:
    """`site` and `device` are pseudonyms, `scanner` words; "" where no header said it. `values` by their name."""

    site: str
    device: str
    scanner: str
    values: Mapping[str, float]

    def to_json(self) -> str:
        """All of it as text, the same for the same content."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Observed":
        """What `to_json` wrote."""
        return cls(**json.loads(text))

    @property
    def digest(self) -> str:
        """SHA-256 of `to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def is_answer(name: str) -> bool:
    """Whether a number is of what a model said, and not of what came in."""
    return name.startswith(ANSWERS)


def of_case(case: AnyCase, files: Iterable[ScanFile]) -> Observed | None:
    """What is kept of a case; None of one that failed for a reason of ours, which says nothing of the scan.

    `files` are its inputs, or those that were refused.
    """
    if case.report.status is Status.FAILED:
        return None
    values = {"refused": float(case.report.status is Status.REFUSED)}
    if case.report.status is Status.ANALYSED:
        values |= _answers(case) | (_of_volumes(case) if isinstance(case, Case) else _of_pictures(case))
    kept = {name: _rounded(v) for name, v in values.items() if np.isfinite(v)}
    every = sorted(files, key=lambda f: f.ordinal)
    site, device, scanner = (
        next((str(v) for f in every if (v := getattr(f, name))), "") for name in ("site", "device", "scanner")
    )
    return Observed(site, device, scanner, kept)


def _answers(case: AnyCase) -> dict[str, float]:
    verdict = case.report.verdict
    return {"finding": float(verdict is Verdict.FINDING), "inconclusive": float(verdict is Verdict.INCONCLUSIVE)}


def _of_volumes(case: Case) -> dict[str, float]:
    card, report = case.card, case.report
    if card is None or card.grid not in case.volumes:
        return {}
    grid = case.volumes[card.grid]
    spacing = grid.spacing_mm
    values = {
        "pixel mm": float(np.sqrt(spacing[0] * spacing[1])),
        "slice distance mm": float(spacing[2]),
        "coverage mm": float(spacing[2] * grid.voxels.shape[2]),
        "tilt degrees": tilt_from_axial_deg(grid.affine_ijk_to_lps),
        "lesions": float(len(report.findings)),
        "volume log10(1 + ml)": float(np.log10(1 + sum(f.volume_mm3 for f in report.findings) / 1000)),
    }
    values |= {f"{_word(name)} is there": float(name in case.volumes) for name in card.inputs if name != card.grid}
    for name, volume in case.volumes.items():
        values |= {f"{_word(name)} {what}": v for what, v in _of_image(volume).items()}
    return values | _doubts(case)


def _doubts(case: Case) -> dict[str, float]:
    """How sure the networks are, and whether the one that calls slices agrees with those that outline."""
    if case.prediction is None:
        return {}
    probability, mask = case.prediction.probability, case.prediction.mask
    unclear = int(((probability > UNSURE[0]) & (probability < UNSURE[1])).sum())
    values = {"unclear outline": unclear / (unclear + int(mask.sum()) + 1)}
    if case.prediction.agreement is not None:
        values["networks disagree"] = 1 - case.prediction.agreement
    called = case.prediction.slice_probability
    if called is not None:
        marked = mask.any((0, 1))
        values |= {"highest slice probability": float(called.max()), "positive slices": float((called >= 0.5).mean())}
        values["slices called otherwise"] = float(((called >= 0.5) != marked).mean())
    return values


def _of_image(volume: Volume) -> dict[str, float]:
    """What does not depend on the scanner's scale: shape of the intensities, noise and sharpness."""
    step = max(1, int(np.ceil((volume.voxels.size / VOXELS) ** (1 / 3))))
    tissue = foreground(volume.voxels[::step, ::step, ::step])
    values = volume.voxels[::step, ::step, ::step][tissue]
    if values.size < 2 or not (spread := float(values.std())) > 0:
        return {}
    scaled = (values - values.mean()) / spread
    middle = volume.voxels[:, :, volume.voxels.shape[2] // 2]
    return {
        "skew": float((scaled**3).mean()),
        "bright end": float(np.percentile(scaled, 95)),
        "tissue share": float(tissue.mean()),
        "noise": _noise(middle) / spread,
        "edges": float(np.abs(np.diff(middle, axis=0)).mean()) / spread,
    }


def _noise(picture: npt.NDArray[np.float32]) -> float:
    """Standard deviation of the noise: from second differences, which smooth tissue has none of (Immerkaer 1996)."""
    if min(picture.shape) < 3:
        return 0.0
    rows = picture[:-2] - 2 * picture[1:-1] + picture[2:]
    both = rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]
    return float(np.median(np.abs(both)) / (0.6745 * 6))  # the mask's weights have a sum of squares of 36


def _of_pictures(case: PictureCase) -> dict[str, float]:
    images = case.report.images
    brightness = [p.brightness for p in case.pictures]
    values = {
        "images": float(len(images)),
        "outlined share": float(np.mean([i.outlined for i in images])),
        "outlined px log10(1 + area)": float(np.mean([np.log10(1 + i.area_px) for i in images])),
        "rows px": float(np.mean([i.size_px[0] for i in images])),
        "brightness": float(np.mean([b.mean() for b in brightness])),
        "contrast": float(np.mean([b.std() for b in brightness])),
        "noise": float(np.mean([_noise(b) for b in brightness])),
        "calipers": float(np.mean([i.calipers for i in images])),
    }
    for name in sorted({name for i in images for name in i.probabilities}):
        values[f"probability of {name}"] = max(i.probabilities.get(name, 0.0) for i in images)
    return values


def _word(name: str) -> str:
    return name.replace("_", " ").upper()


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
