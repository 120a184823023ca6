"""The story of one case, told to a person: who or what decided, on which pixels, with which weights, and since when."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from medrec.audit import AuditRecord, plain
from medrec.errors import DataError
from medrec.store import Store

Facts = Mapping[str, Any]
SHORT = 12  # digits of a digest that a person compares


def tell(key: str, store: Store) -> Iterator[str]:
    """One line for each thing that happened to a case, oldest first. Raises DataError when there is no such case."""
    records = store.about(f"case {key}")
    if not records:
        raise DataError(f"the ledger knows no case {key}")
    for number, record in records:
        yield f"{record.at}  {plain(sentence(record, key))}  [record {number}, {record.digest[:SHORT]}…]"
        yield from (f"    {plain(line)}" for line in details(record))


def sentence(record: AuditRecord, key: str) -> str:
    """What a record says, in words."""
    facts = record.facts
    if record.kind == "case superseded":
        return f"superseded by case {facts['by']}" if facts["case"] == key else f"superseded case {facts['case']}"
    told = SENTENCES.get(record.kind)
    return told(facts) if told else record.kind


def details(record: AuditRecord) -> Iterator[str]:
    """What a case's own record pins, one line each."""
    facts = record.facts
    if not record.kind.startswith("case ") or "status" not in facts:
        return
    if facts.get("model"):
        yield f"model {facts['model']} {facts['version']}, card {_short(facts.get('card'))}"
    if facts.get("prior"):
        yield f"held against case {facts['prior']}, of the patient's study before"
    for name in ("weights", "pixels", "stages", "files"):
        pinned = facts.get(name)
        if isinstance(pinned, dict):
            yield from (f"{name}: {what} {_short(digest)}" for what, digest in sorted(pinned.items()))
    inputs = facts.get("inputs")
    count = len(inputs) if isinstance(inputs, list) else 0
    yield f"{count} input files, configuration {_short(facts.get('configuration'))}"
    where = f"medrec {facts.get('code')}, environment {_short(facts.get('environment'))}"
    yield f"{where}, device {facts.get('device') or 'none'}, {facts.get('threads') or 0} threads"


def _finished(facts: Facts) -> str:
    what = facts["verdict"] or facts["reason"]
    return f"{facts['status']} in night {facts['batch']}: {what}"


SENTENCES: Mapping[str, Callable[[Facts], str]] = {
    "case analysed": _finished,
    "case refused": _finished,
    "case failed": _finished,
    "delivery state": lambda f: f"{f['what']} to {f['to']}: {f['state']}" + (f" ({f['why']})" if f.get("why") else ""),
    "case accepted": lambda f: f"accepted by {f['by']}",
    "case recalled": lambda f: f"taken back ({f['reason']})",
    "delivery": lambda f: f"delivered to {f['to']} as {', '.join(map(str, f['what']))}",
    "delivery recalled": lambda f: f"recalled from {f['to']} by {f['by']}",
    "review": lambda f: (
        f"reviewed by {f['by']}: {f['decision']} (report {_short(f['report'])})"
        + (f", signed with the key {str(f['key'])[-8:]}" if "signature" in f else "")
    ),
    "review claimed": lambda f: (
        f"an answer that nobody signed: {f['decision']}" + (f" ({f['problem']})" if f["problem"] else "")
    ),
    "review shown": lambda f: f"{f['to']} was told: {f['shown']}",
    "label wanted": lambda f: f"a label is wanted ({f['wants']}), because of: {f['why']}; asked for by {f['by']}",
    "patient erased": lambda f: f"erased by {f['by']}, because the patient asked for it",
    "files pruned": lambda f: f"{len(f['files'])} files taken away by the rule {f['rule']}",
    "identity looked up": lambda f: f"identity looked up by {f['by']} with {f['how']}",
    "lesions matched": lambda f: (
        f"lesion {f['lesion']} of case {f['case'][:SHORT]} is lesion {f['same_lesion']} of case "
        f"{f['same_case'][:SHORT]}, says {f['by']}: {f['why']}"
    ),
    "match lifted": lambda f: f"lesion {f['lesion']} is no longer another's, says {f['by']}: {f['why']}",
    "hold placed": lambda f: f"put on hold by {f['by']}: {f['why']}",
    "hold lifted": lambda f: f"hold lifted by {f['by']}: {f['why']}",
}


def _short(digest: object) -> str:
    return f"{str(digest)[:SHORT]}…" if digest else "none"
