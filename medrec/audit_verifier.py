#!/usr/bin/env python3
"""Verify a bundle of `medrec audit export` with Python's standard library alone; nothing of medrec is needed.

    python3 verify.py BUNDLE [HEAD ...]

Each HEAD is a digest that somebody else kept (from an MLflow run, a DICOM SR, a signed anchor): it must be that of a
record. Checked are the chain of records, the order of their kinds, the files beside them and the anchors' heads. Says
what does not match, and exits with 1. What is not checked here: signatures of anchors and of reviews, promotions and
audits, which openssl verifies (see README.txt in the bundle), and `medrec audit verify` too.
"""

import hashlib
import json
import sys
from pathlib import Path

CASES = ("case analysed", "case refused", "case failed")


def verify(bundle: Path, heads: list[str]) -> list[str]:
    """All that does not match, in plain words."""
    problems: list[str] = []
    digests, bodies = [], []
    previous = "0" * 64
    for number, line in enumerate((bundle / "ledger.jsonl").read_bytes().split(b"\n")[:-1], 1):
        body = _read(line)
        if body.get("previous") != previous:
            problems.append(f"record {number}: it does not follow the one before it")
        previous = hashlib.sha256(line).hexdigest()
        digests.append(previous)
        bodies.append(body)
    told = json.loads((bundle / "bundle.json").read_bytes())
    if (told["records"], told["head"]) != (len(digests), previous):
        problems.append(f"the bundle was made of {told['records']} records with another end: some are gone or changed")
    anchors = [json.loads(path.read_bytes()) for path in sorted((bundle / "anchors").glob("*-*.json"))]
    for anchor in anchors:
        if anchor["records"] and digests[anchor["records"] - 1 : anchor["records"]] != [anchor["head"]]:
            problems.append(f"anchor of {anchor['at']}: record {anchor['records']} is not the one that was anchored")
    problems += [f"head {head}: no record has this digest" for head in heads if head not in digests]
    return problems + _files(bundle, bodies)


def _read(line: bytes) -> dict:  # type: ignore[type-arg]
    try:
        body = json.loads(line)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


# What is kept for a patient's next study alone.
STAYS = ("/coarse.nii.gz", "/visit.json")


def _files(bundle: Path, bodies: list[dict]) -> list[str]:  # type: ignore[type-arg]
    """Only the last record of a case speaks of its files; erased and pruned ones are gone."""
    latest: dict[str, dict[str, str]] = {}
    excused: set[str] = set()
    for body in bodies:
        kind, facts = body.get("kind"), body.get("facts", {})
        if kind in CASES:
            latest[facts["case"]] = facts["files"]
            excused -= set(facts["files"])
        elif kind == "patient erased":
            for case in facts["cases"]:
                latest.pop(case, None)
        elif kind == "files pruned":
            excused |= set(facts["files"])
    problems = []
    for case, files in latest.items():
        for name, digest in sorted(files.items()):
            path = bundle / "files" / name
            if not path.exists():
                # What goes back to the patient's study carries a name, and is never in a bundle.
                problems += (
                    []
                    if name in excused or name.startswith("outbox/") or name.endswith(STAYS)
                    else [f"{name} of case {case}: it is not in the bundle"]
                )
            elif _digest(path) != digest:
                problems.append(f"{name} of case {case}: its bytes are not those that were recorded")
    return problems


def _digest(path: Path) -> str:
    """SHA-256 of a file; of a folder that of a list of its files."""
    if not path.is_dir():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    lines = [f"{_digest(inside)} {inside.name}\n" for inside in sorted(path.iterdir())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def main() -> int:
    """What the command line calls."""
    if len(sys.argv) < 2:
        print(__doc__)
        return 2
    problems = verify(Path(sys.argv[1]), sys.argv[2:])
    print("\n".join(problems) or "every record and every file is as it was written")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
