"""What MLflow is shown of cases, nights and models, in its words: tags, parameters, metrics, names, descriptions.

Pure: `tracking` writes it and reads it back, `mirror` compares. Invariant: what is shown of a case is a function of row
and report, so that it can be told again years later; no text of a report is markup there.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medrec.audit import salted
from medrec.report import DISCLAIMER
from medrec.store import CaseRow

BATCH, CASE, REPORT = "medrec.batch", "medrec.case", "medrec.report_sha256"
NOTE = "mlflow.note.content"
PARENT = "mlflow.parentRunId"
WORKER, SUPERSEDED_BY = "medrec.worker", "medrec.superseded_by"
HEAD, RECORDS = "medrec.ledger_head", "medrec.ledger_records"
ARTIFACTS = ("report.html", "report.json")
SUMMARY = "batch.json"  # a night's
VERSION = "medrec.registered_version"
MODEL, CARD, CHAMPION, CHALLENGER = "medrec-", "medrec.card_sha256", "champion", "challenger"
# The tag of the run in which a home shows what it watches; its value is the home's worker.
MONITORING, MONITORING_NAME = "medrec.monitoring", "monitoring"
# The tag of a training's run that names its card by digest; all tags of ours begin with OURS.
TRAINED, OURS = "medrec.trained_card", "medrec."
PRIOR = "medrec.prior"  # the case of the earlier study that one was held against
# What people answer with, and what medrec says of where the review stands.
STATUS, COMMENT, REVIEWER = "review.status", "review.comment", "review.by"
PENDING, REVIEW = "pending", "medrec.review"
SHOWN_IMAGES = 50  # in a case's description
VIEW = "workflowType=machine_learning"
SHEET = "contact-sheet.html"  # a night's
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


def keyed(summary: str, digest: str) -> str:
    """What the ledger keeps of a digest of what a night showed: keyed with the salt in the night's summary.

    Pages and descriptions say what patients were found to have. An erasure writes summary and pages anew under another
    salt, after which nobody can tell by the older record whether a guess is what had been shown.
    """
    return salted(str(json.loads(summary).get("salt", "")), digest)


def inert(text: str) -> str:
    """Text as MLflow's Markdown shows it letter by letter: no markup, no control characters, no turned direction."""
    plain = "".join(c if c.isprintable() and c not in TURNING else " " for c in text)
    return MARKUP.sub(r"\\\1", plain)


def tags_of(row: CaseRow, facts: Mapping[str, Any], report_sha256: str) -> dict[str, str]:
    """The tags of a case that are told by its row and report alone, and that nobody else may change."""
    prior = facts.get("prior") or {}
    compared = {PRIOR: prior["case"] or "none"} if prior else {}
    return compared | {
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
    lines += _compared(facts)
    if images := facts.get("images", ()):
        lines += ["", "| image | outlined | longest x perpendicular pixels | classes |", "|---|---|---|---|"]
        for number, i in enumerate(images[:SHOWN_IMAGES], 1):
            size = f"{i['longest_px']:.0f} x {i['perpendicular_px']:.0f}" if i["outlined"] else ""
            classes = ", ".join(f"{inert(name)} {p:.2f}" for name, p in sorted(i["probabilities"].items()))
            lines.append(f"| {number} | {'yes' if i['outlined'] else 'no'} | {size} | {classes} |")
    return fitting(lines, ("", "Open **report.html** under Artifacts.", "", f"*{DISCLAIMER}*"))


def _compared(facts: Mapping[str, Any]) -> list[str]:
    """What changed since an earlier study, as lines of Markdown; none where there is no such study."""
    prior = facts.get("prior")
    if not prior:
        return []
    ago = f"{prior['days']} days ago" if prior["days"] else "an earlier study"
    if prior["reason"]:
        return ["", f"Not compared with {ago}: {inert(prior['reason'])}"]
    unit = " (nominal)" if facts["geometry_nominal"] else ""
    head = f"| lesion | then | ml then{unit} | ml now{unit} | compared with {ago} |"
    lines = ["", *([inert(prior["caution"]), ""] if prior["caution"] else []), head, "|---|---|---|---|---|"]
    for c in prior["changes"]:
        numbers = [" + ".join(map(str, c[name])) for name in ("now", "before")]
        volumes = [f"{c[f'volume_{name}_mm3'] / 1000:.1f}" for name in ("before", "now")]
        share = c["volume_change_percent"]
        word = c["word"] + (f" ({share:+.0f}%)" if share is not None else "")
        lines.append(f"| {' | '.join((*numbers, *volumes, word))} |")
    return lines


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
    for name, p in facts.get("probabilities", {}).items():
        metrics[f"probability_{name}"] = p
    if (prior := facts.get("prior")) and not prior["reason"]:
        metrics |= {f"lesions_{word}": _called(prior, word) for word in ("grown", "shrunk", "new", "gone")}
        metrics["prior_days"] = float(prior["days"] or 0)
        metrics["prior_similarity"] = prior["similarity"]
        metrics["volume_change_ml"] = sum(c["volume_change_mm3"] for c in prior["changes"]) / 1000
    if facts["slice_probability"]:
        metrics["slice_probability_max"] = max(facts["slice_probability"])
    return metrics


def _called(prior: Mapping[str, Any], word: str) -> float:
    return float(sum(c["word"] == word for c in prior["changes"]))


def night_name(batch: str, outcome: str = "") -> str:
    """What a night is called in MLflow's list, while it runs and, with its outcome, when it has ended."""
    return f"night {_moment(batch)}" + (f": {outcome}" if outcome else "")


def _moment(batch: str) -> str:
    """A batch's id begins with the moment of its start, UTC: 20261122T010203Z-ab12 to 2026-11-22 01:02."""
    return f"{batch[:4]}-{batch[4:6]}-{batch[6:8]} {batch[9:11]}:{batch[11:13]}"


def shown_at(runs: str, run_id: str, artifact: str) -> str:
    """Where MLflow's web interface shows an artifact, in the view for runs and not in the one for language models."""
    return f"{runs}/{run_id}/artifacts/{artifact}?{VIEW}"


def run_name(row: CaseRow) -> str:
    """What a case is called in MLflow's list."""
    return f"{row.study[:8]} {row.verdict or row.status}"
