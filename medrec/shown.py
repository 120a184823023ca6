"""What MLflow is shown of cases, nights and models, in its words: tags, parameters, metrics, names, descriptions.

Pure: `tracking` writes it and reads it back, `mirror` compares. Invariant: what is shown of a case is a function of row
and report, so that it can be told again years later; no text of a report is markup there.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medrec.report import DISCLAIMER
from medrec.store import CaseRow

BATCH, CASE, REPORT = "medrec.batch", "medrec.case", "medrec.report_sha256"
NOTE = "mlflow.note.content"
PARENT = "mlflow.parentRunId"
WORKER, SUPERSEDED_BY = "medrec.worker", "medrec.superseded_by"
HEAD, RECORDS = "medrec.ledger_head", "medrec.ledger_records"
ARTIFACTS = ("report.html", "report.json")
VERSION = "medrec.registered_version"
MODEL, CARD, CHAMPION, CHALLENGER = "medrec-", "medrec.card_sha256", "champion", "challenger"
# The tag of a training's run that names its card by digest; all tags of ours begin with OURS.
TRAINED, OURS = "medrec.trained_card", "medrec."
SHOWN_IMAGES = 50  # in a case's description
MOST = 7_900  # characters; MLflow cuts a tag after 8,000, and a text that was cut is not the one that was told
MARKUP = re.compile(r"([\\\\`*_{}\[\]<>|#~!&])")
# Unicode's direction marks, embeddings, overrides and isolates (UAX 9).
TURNING = "\u061c\u200e\u200f" + "".join(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))


@dataclass(frozen=True, slots=True)
class ShownRun:
    """A run as MLflow shows it now; `place` is where its artifacts lie."""

    run_id: str
    name: str
    status: str
    place: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]

    def told(self) -> dict[str, str]:
        """A digest of each tag of ours, parameter and metric, by what it is called: for the ledger to keep."""
        tags = {k: v for k, v in self.tags.items() if k.startswith(OURS) or k == NOTE}
        kinds = (("tag", tags), ("parameter", self.params), ("metric", self.metrics))
        every = {f"{kind} {name}": str(value) for kind, of in kinds for name, value in of.items()}
        return {name: hashlib.sha256(value.encode()).hexdigest() for name, value in every.items()}


@dataclass(frozen=True, slots=True)
class Registered:
    """A version of a registered model: the digest of its card, SHA-256 of its files, and its aliases."""

    card: str
    name: str
    version: str
    files: Mapping[str, str]
    tags: Mapping[str, str]
    aliases: tuple[str, ...]

    def facts(self) -> dict[str, object]:
        """What the ledger keeps of it."""
        told = {"card": self.card, "name": self.name, "version": self.version, "aliases": list(self.aliases)}
        return {**told, "files": dict(self.files), "tags": dict(self.tags)}


def inert(text: str) -> str:
    """Text as MLflow's Markdown shows it letter by letter: no markup, no control characters, no turned direction."""
    plain = "".join(c if c.isprintable() and c not in TURNING else " " for c in text)
    return MARKUP.sub(r"\\\1", plain)


def tags_of(row: CaseRow, facts: Mapping[str, Any], report_sha256: str) -> dict[str, str]:
    """The tags of a case that are told by its row and report alone, and that nobody else may change."""
    return {
        CASE: row.case,
        REPORT: report_sha256,
        BATCH: row.batch,
        "medrec.study": row.study,
        "medrec.patient": row.patient,
        "medrec.status": row.status.value,
        "medrec.verdict": row.verdict.value if row.verdict else row.status.value,
        NOTE: description(facts),
    }


def params_of(facts: Mapping[str, Any]) -> dict[str, str]:
    """The parameters of a case, from its report."""
    return {
        "model": facts["model_name"] or "none",
        "model_version": facts["model_version"] or "none",
        "card_sha256": facts["card_sha256"] or "none",
        "config_sha256": facts["config_sha256"],
        "code_version": facts["code_version"],
        **{f"weights_sha256.{name}": digest for name, digest in facts["weights_sha256"].items()},
    }


def description(facts: Mapping[str, Any]) -> str:
    """The Markdown that MLflow shows with a case: the verdict first."""
    headline = facts["verdict"] or facts["status"]
    lines = [f"## {headline.upper()}", "", inert(facts["verdict_text"] or facts["reason"] or "")]
    lines += [f"- {inert(flag)}" for flag in facts["flags"]]
    if facts["findings"]:
        unit = " (nominal)" if facts["geometry_nominal"] else ""
        lines += [
            "",
            f"| lesion | volume ml{unit} | longest axial x perpendicular mm{unit} | side |",
            "|---|---|---|---|",
        ]
        for f in facts["findings"]:
            size = f"{f['longest_axial_mm']:.1f} x {f['perpendicular_mm']:.1f}"
            lines.append(f"| {f['number']} | {f['volume_mm3'] / 1000:.1f} | {size} | {f['side']} |")
    if images := facts.get("images", ()):
        lines += ["", "| image | outlined | longest x perpendicular pixels | classes |", "|---|---|---|---|"]
        for number, i in enumerate(images[:SHOWN_IMAGES], 1):
            size = f"{i['longest_px']:.0f} x {i['perpendicular_px']:.0f}" if i["outlined"] else ""
            classes = ", ".join(f"{inert(name)} {p:.2f}" for name, p in sorted(i["probabilities"].items()))
            lines.append(f"| {number} | {'yes' if i['outlined'] else 'no'} | {size} | {classes} |")
    return fitting(lines, ("", "Open **report.html** under Artifacts.", "", f"*{DISCLAIMER}*"))


def fitting(lines: Sequence[str], end: Sequence[str] = ()) -> str:
    """Lines as one text that MLflow keeps whole: what is too much is left out before `end`, and counted."""
    text = "\n".join((*lines, *end))
    if len(text) <= MOST:
        return text
    kept, room = 0, MOST - len("\n".join(end)) - 40
    while (room := room - len(lines[kept]) - 1) >= 0:
        kept += 1
    return "\n".join((*lines[:kept], f"… and {len(lines) - kept} more lines", *end))


def metrics_of(facts: Mapping[str, Any], row: CaseRow) -> dict[str, float]:
    """The metrics of a case, from its report and row."""
    metrics = {"seconds": row.seconds_ms / 1000}
    if facts["status"] != "analysed":
        return metrics
    if (strangeness := facts.get("strangeness")) is not None:  # reports of older releases do not say
        metrics["strangeness"] = float(strangeness)
    if interval := facts.get("volume_interval_ml"):
        metrics |= {"volume_low_ml": float(interval[0]), "volume_high_ml": float(interval[1])}
    if images := facts.get("images", ()):
        metrics |= {"images": float(len(images)), "images_outlined": float(sum(i["outlined"] for i in images))}
        for name in sorted({name for i in images for name in i["probabilities"]}):
            metrics[f"probability_{name}_max"] = max(i["probabilities"].get(name, 0.0) for i in images)
        return metrics
    found = facts["findings"]
    metrics |= {"lesions": float(len(found)), "volume_ml": sum(f["volume_mm3"] for f in found) / 1000}
    if found:
        metrics["longest_axial_mm"] = max(f["longest_axial_mm"] for f in found)
        metrics["largest_ml"] = found[0]["volume_mm3"] / 1000
    if facts["slice_probability"]:
        metrics["slice_probability_max"] = max(facts["slice_probability"])
    return metrics


def night_name(batch: str, outcome: str = "") -> str:
    """What a night is called in MLflow's list, while it runs and, with its outcome, when it has ended."""
    return f"night {_moment(batch)}" + (f": {outcome}" if outcome else "")


def _moment(batch: str) -> str:
    """A batch's id begins with the moment of its start, UTC: 20261122T010203Z-ab12 to 2026-11-22 01:02."""
    return f"{batch[:4]}-{batch[4:6]}-{batch[6:8]} {batch[9:11]}:{batch[11:13]}"


def run_name(row: CaseRow) -> str:
    """What a case is called in MLflow's list."""
    return f"{row.study[:8]} {row.verdict or row.status}"
