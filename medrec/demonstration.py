"""`medrec demo`: phantom studies with known lesions through the real night, and what came out beside what is known."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medrec.accounts import CaseLine, Summary
from medrec.phantom import Known, demo_studies

HEADER = ("study", "lesion", "known", "measured", "off by", "came out", "right")
VOLUME_TOLERANCE = 0.15  # of the known volume: half a voxel all around a 10 mm sphere is more


@dataclass(frozen=True, slots=True)
class Row:
    """One known lesion, or one known study without any, beside what came out."""

    study: str
    lesion: str
    known_ml: float | None
    measured_ml: float | None
    expected: str
    came_out: str
    right: bool

    def cells(self) -> tuple[str, ...]:
        """The row as `HEADER` names it."""
        difference = ""
        if self.known_ml and self.measured_ml is not None:
            difference = f"{100 * (self.measured_ml / self.known_ml - 1):+.1f}%"
        return (
            self.study,
            self.lesion,
            _ml(self.known_ml),
            _ml(self.measured_ml),
            difference,
            self.came_out,
            "yes" if self.right else f"NO: {self.expected}",
        )


def make(folder: Path) -> tuple[Known, ...]:
    """Write the phantom studies below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return demo_studies(folder)


def compare(known: tuple[Known, ...], summary: Summary, home: Path) -> list[Row]:
    """What is known of each study beside what the night says of it, matched by the digests of the files."""
    case_of = {digest: case for case in summary.cases for digest in case.inputs}
    refusal_of = {r["sha256"]: r["reason"] or "" for r in summary.refusals}
    rows: list[Row] = []
    for study in known:
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in study.files]
        case = next((case_of[d] for d in digests if d in case_of), None)
        if case is None or case.verdict is None:
            reason = case.reason if case is not None else refusal_of.get(digests[0], "not accounted for")
            came_out = f"refused: {reason.split(':')[0]}"
            rows.append(Row(study.name, "", None, None, study.expected, came_out, came_out == study.expected))
        else:
            rows += _analysed(study, case, home)
    return rows


def _analysed(study: Known, case: CaseLine, home: Path) -> list[Row]:
    assert case.report is not None
    facts: dict[str, Any] = json.loads(((home / case.report).parent / "report.json").read_text())
    right = case.verdict == study.expected and len(facts["findings"]) == len(study.lesions)
    if not study.lesions:
        total_ml = sum(f["volume_mm3"] for f in facts["findings"]) / 1000
        return [Row(study.name, "none", 0.0, total_ml, study.expected, str(case.verdict), right)]
    rows = []
    for lesion in study.lesions:
        known_ml = lesion.volume_mm3 / 1000
        found = next((f for f in facts["findings"] if f["side"] == lesion.side), None)
        measured_ml = found["volume_mm3"] / 1000 if found is not None else None
        near = measured_ml is not None and abs(measured_ml / known_ml - 1) <= VOLUME_TOLERANCE
        rows.append(
            Row(study.name, lesion.side, known_ml, measured_ml, study.expected, str(case.verdict), right and near)
        )
    return rows


def _ml(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} ml"
