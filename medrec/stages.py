"""The stages of one analysis as digests, so that a replay can say which is the first that differs.

Owns `digests` and the order of the stages. Invariants: a digest covers values, shape and type, and nothing that depends
on when or where a case was made.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import numpy.typing as npt

from medrec.report import AnyCase, Case, PictureCase, Report

# In the order of the pipeline: the first that differs is where to look.
ORDER = ("pixels", "volumes", "prediction", "findings", "prior", "report")
# What belongs to a night or an installation, not to what was found.
CIRCUMSTANCES = ("created", "batch", "study", "patient", "case", "config_sha256", "code_version", "device")


def digests(case: AnyCase) -> dict[str, str]:
    """SHA-256 of each stage of a case by its name; those it did not reach are absent."""
    found = _of_pictures(case) if isinstance(case, PictureCase) else _of_volumes(case)
    return found | {"report": _text(essence(case.report))}


def _of_pictures(case: PictureCase) -> dict[str, str]:
    if not case.pictures:
        return {}
    parts: dict[str, npt.NDArray[np.generic]] = {}
    for n, picture in enumerate(case.pictures):
        said = picture.prediction
        positive = np.array([np.nan if said.positive is None else said.positive])
        parts |= {f"probability {n}": said.probability, f"mask {n}": said.mask, f"class {n}": positive}
    return {
        "pixels": _text([p.pixels_sha256 for p in case.pictures]),
        "volumes": _arrays({f"{n}": p.brightness for n, p in enumerate(case.pictures)}),
        "prediction": _arrays(parts),
        "findings": _text([asdict(i) for i in case.report.images]),
    }


def _of_volumes(case: Case) -> dict[str, str]:
    found = {}
    if case.volumes:
        found["pixels"] = _text({n: v.pixels_sha256 for n, v in case.volumes.items()})
        found["volumes"] = _arrays({n: a for n, v in case.volumes.items() for a in (v.voxels, v.affine_ijk_to_lps)})
    if case.prediction is not None:
        answer = {"probability": case.prediction.probability, "mask": case.prediction.mask}
        if case.prediction.slice_probability is not None:
            answer["slices"] = case.prediction.slice_probability
        if case.prediction.positive is not None:
            answer["class"] = np.array([case.prediction.positive], np.float32)
        found["prediction"] = _arrays(answer)
        found["findings"] = _text([asdict(f) for f in case.report.findings])
    if case.report.prior is not None:
        found["prior"] = _text(asdict(case.report.prior))
    return found


def essence(report: Report, without: tuple[str, ...] = ()) -> dict[str, object]:
    """The facts of a report that must come out the same whenever and wherever it is made again."""
    return {k: v for k, v in report.facts().items() if k not in (*CIRCUMSTANCES, *without)}


def _text(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _arrays(arrays: Mapping[str, npt.NDArray[np.generic]]) -> str:
    digest = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        digest.update(f"{name} {values.shape} {values.dtype.str}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
