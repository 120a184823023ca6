"""What may be written into the ledger: every kind of record, what it must say, and what must have come before it.

Owns `KINDS` and nothing else that is stored. Another part of medrec adds its records by adding a line here and calling
`Store.append`. Invariants: a record says all that its kind asks for, and finds itself by its subjects; a record that
may only follow another (a review its report, a promotion its evaluation) never stands before it.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of record.

    `facts` must be there; `subjects` are those of them that say what the record is about: text, or a list of texts.
    About each subject one record of a kind in `after` must stand before (nothing is asked for when it is empty), and
    none of a kind in `never_after`.
    """

    facts: tuple[str, ...]
    subjects: tuple[str, ...] = ()
    after: frozenset[str] = frozenset()
    never_after: frozenset[str] = frozenset()


CASE_KINDS = frozenset({"case analysed", "case refused", "case failed"})
FAILED = "case failed"
# facts["case"] is no longer in force since facts["by"].
SUPERSEDED = "case superseded"
# facts["cases"] are gone with their reports, because facts["patient"], whose name this no longer is, asked for it.
ERASED = "patient erased"
# facts["files"] were taken away by a rule of retention.
PRUNED = "files pruned"
# facts["patients"] by side: who was locked, who is learnt from, who stands apart. Each is the word PATIENT keyed with
# the patient's salt: the same after a rotation, and nobody's once the salt is forgotten.
DIVIDED, PATIENT = "patients divided", "patient"
MATCHED = "lesions matched"
# facts["label"] was given to an image of facts["study"] (keyed); `what` is "mask" or "class", `origin` how it was made.
LABEL = "label"
# facts["request"] asks for a label of the study of facts["case"], "blind" or "any" (`wants`); `why` in words of ours.
WANTED = "label wanted"
# An answer that anybody may have typed; what it says is keyed with the patient's salt, since it may hold a name.
CLAIMED = "review claimed"
# facts["summary"] is the digest of a night's summary, which changes when a patient is erased or the key is rotated.
NIGHT_FINISHED, NIGHT_REWRITTEN = "night finished", "night rewritten"
# What the version facts["card"] said of a study, beside facts["beside"] that is in force: `said` is keyed.
SHADOWED = "shadow compared"
# Only the store's own transactions write these, together with the rows that they are about.
WITH_ROWS = CASE_KINDS | {SUPERSEDED, ERASED, LABEL, WANTED, CLAIMED, NIGHT_FINISHED, NIGHT_REWRITTEN, SHADOWED}

# What a fact is called as a subject, where that is another word.
NOUNS = {"cases": "case", "by": "case", "cards": "card", "batches": "batch", "same_case": "case"}

_ANALYSED = frozenset({"case analysed"})
_GONE = frozenset({ERASED})
_ANY_CASE = CASE_KINDS

KINDS: Mapping[str, Kind] = {
    **{kind: Kind(("case", "status", "files"), ("case",), never_after=_GONE) for kind in sorted(CASE_KINDS)},
    SUPERSEDED: Kind(("case", "by"), ("case", "by"), after=_ANY_CASE),
    ERASED: Kind(("cases", "models", "by"), ("cases",), after=_ANY_CASE),
    PRUNED: Kind(("cases", "files", "rule"), ("cases",), after=_ANY_CASE),
    # `to` is a word of ours ("mlflow", the name of a configured PACS); `what` are digests or ids of what went there.
    "delivery": Kind(("case", "to", "what"), ("case",), after=_ANY_CASE, never_after=_GONE),
    "delivery recalled": Kind(("case", "to", "what", "by"), ("case",), after=frozenset({"delivery"})),
    # Where a delivery to a PACS stands, when it is not "sent": that is a `delivery`.
    "delivery state": Kind(("case", "to", "what", "state"), ("case",), after=_ANY_CASE, never_after=_GONE),
    "case accepted": Kind(("case", "by"), ("case",), after=_ANALYSED, never_after=_GONE),
    "case recalled": Kind(("case", "reason"), ("case",), after=_ANALYSED, never_after=_GONE),
    # Lesion `lesion` of `case` is lesion `same_lesion` of the earlier `same_case`, and is tracked as that.
    MATCHED: Kind(("case", "lesion", "same_case", "same_lesion", "by", "why"), ("case", "same_case"), _ANALYSED, _GONE),
    "match lifted": Kind(("case", "lesion", "by", "why"), ("case",), frozenset({MATCHED}), _GONE),
    NIGHT_FINISHED: Kind(("batch", "started_at", "finished_at", "summary"), ("batch",)),
    NIGHT_REWRITTEN: Kind(("batch", "summary", "why"), ("batch",)),
    "batch delivered": Kind(("batch", "to", "what", "tags", "head"), ("batch",)),
    # `report` is the SHA-256 of the report that was read. A signed one says more: see `medrec.signing.SIGNED`.
    "review": Kind(("case", "report", "by", "decision"), ("case",), after=_ANALYSED, never_after=_GONE),
    CLAIMED: Kind(("case", "review", "decision", "said", "problem"), ("case",), after=_ANALYSED, never_after=_GONE),
    # `shown` is what MLflow was told of where the review of a case stands.
    "review shown": Kind(("case", "to", "shown"), ("case",), after=_ANALYSED, never_after=_GONE),
    WANTED: Kind(("request", "case", "card", "wants", "why", "by"), ("case",), _ANALYSED, _GONE),
    # Of the `of` cases that a month finished, `drawn` were set aside for blind labels; `share_ppm` was asked for.
    "blind sample drawn": Kind(("month", "of", "drawn", "share_ppm"), ("month",)),
    # All `people` who may sign from now on, in the place of those whose digest is `before`; `register` is theirs.
    "people changed": Kind(("before", "people", "register", "by"), ("register",)),
    "ledger audited": Kind(("head", "records", "by"), ("head",)),
    # What one `part` of medrec shows in MLflow's run called monitoring: digests of metrics and of pages, by name.
    "monitoring delivered": Kind(("part", "to", "what", "shown", "files"), ("part",)),
    LABEL: Kind(("study", "label", "by", "origin", "card", "what", "content", "source"), ("label", "study")),
    # `model` is a card's name.
    DIVIDED: Kind(("model", "patients", "by"), ("model",)),
    "gate declared": Kind(("model", "gate", "by"), ("model",)),
    # `models` are the versions in MLflow with their files; `fresh` says that it held none of ours before.
    "models registered": Kind(("cards", "models", "fresh"), ("cards",)),
    # A trained or imported version's run there; `shown` and `files` are digests of what it shows, by name.
    "training delivered": Kind(
        ("card", "to", "what", "name", "shown", "files"), ("card",), frozenset({"model trained", "model imported"})
    ),
    # `card` is the digest of the model's card. A model that came as a bundle was not trained here.
    "model trained": Kind(("card", "weights"), ("card",)),
    "model imported": Kind(("card", "weights", "bundle", "by"), ("card",)),
    # Noted before the answer is known: `use` is its number, `alpha` what it spends.
    "test set used": Kind(("model", "card", "patients", "use", "alpha", "by"), ("model",)),
    "model evaluated": Kind(("card", "evaluation"), ("card",)),
    "model eligible": Kind(("card", "evaluation"), ("card",), after=frozenset({"model evaluated"})),
    "model promoted": Kind(
        ("card", "by"), ("card",), after=frozenset({"model eligible"}), never_after=frozenset({"model disabled"})
    ),
    # `card` goes; the record also says `to` which one comes back in its place, and `why`.
    "model rolled back": Kind(("card", "by"), ("card",), after=frozenset({"model promoted"})),
    # `card` runs beside the champion for `nights` nights; ended early when `nights` is 0.
    "shadow ordered": Kind(
        ("card", "nights", "by"),
        ("card",),
        after=frozenset({"model eligible"}),
        never_after=frozenset({"model disabled"}),
    ),
    SHADOWED: Kind(("card", "beside", "batch", "study", "said"), ("card",)),
    "shadow failed": Kind(("card", "batch", "studies", "why"), ("card",)),
    # Of a model's studies at a site, by a scanner, something changed: `number` is of the record that raised it.
    "drift found": Kind(("model", "site", "scanner", "feature", "number", "text"), ("model",)),
    "model disabled": Kind(("card", "by", "why"), ("card",)),
    "configuration changed": Kind(("configuration",), ("configuration",)),
    # `how` is the command; `found` says whether there was such a person.
    "identity looked up": Kind(("cases", "by", "how", "found"), ("cases",)),
    "hold placed": Kind(("case", "by", "why"), ("case",)),
    "hold lifted": Kind(("case", "by", "why"), ("case",), after=frozenset({"hold placed"})),
    "key rotated": Kind(("by", "mapping", "key"), ("mapping",)),
    "home restored": Kind(("by", "from_head"), ("from_head",)),
}


def missing(kind: str, facts: Mapping[str, object]) -> tuple[str, ...]:
    """The facts that a record of this kind must hold and does not. Raises ValueError for an unknown kind."""
    if kind not in KINDS:
        raise ValueError(f"the ledger has no kind of record called {kind!r}; there are: {', '.join(sorted(KINDS))}")
    return tuple(name for name in KINDS[kind].facts if name not in facts)


def subjects(kind: str, facts: Mapping[str, object]) -> tuple[str, ...]:
    """What a record is about, as "case 0f3a…": () for an unknown kind and for facts of another shape."""
    found: list[str] = []
    for name in KINDS[kind].subjects if kind in KINDS else ():
        value = facts.get(name)
        values = value if isinstance(value, list) else [value]
        noun = NOUNS.get(name, name)
        found += [f"{noun} {v}" for v in values if isinstance(v, str)]
    return tuple(dict.fromkeys(found))


def misplaced(kind: str, before: Mapping[str, frozenset[str] | set[str]], about: tuple[str, ...]) -> str:
    """Why a record may not stand here, "" when it may; `before` holds the kinds of earlier records by subject."""
    rule = KINDS.get(kind)
    if rule is None:
        return ""
    own = about[:1] if kind == SUPERSEDED else about  # its successor's record may be written together with it
    for subject in own:
        earlier = before.get(subject, frozenset())
        if rule.after and not rule.after & earlier:
            return f"{kind!r} of {subject} without {_either(rule.after)} before it"
        if banned := rule.never_after & earlier:
            return f"{kind!r} of {subject} after {_either(banned)}"
    return ""


def _either(kinds: frozenset[str] | set[str]) -> str:
    return " or ".join(repr(k) for k in sorted(kinds))
