"""How often reviewers agree with a model's reports: the share that signed answers accept, by version and month.

Pure but for reading the store. Claims do not count. A site is not known here, and none is made up.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medrec.statistics import Interval, share
from medrec.store import Store
from medrec.store.answers import WORDS, Decision

PART = "agreement"  # what its metrics in MLflow begin with
Points = Mapping[str, Sequence[tuple[int, float]]]
"""Values of a metric by its name: (step, value)."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of the cases of a model's version that were decided in a month ("2026-11"), those whose report was accepted."""

    model: str
    version: str
    month: str
    accepted: int
    decided: int

    @property
    def share(self) -> Interval:
        """The share that was accepted, with its interval."""
        return share(self.accepted, self.decided)


def agreement(store: Store) -> tuple[Agreement, ...]:
    """By model, version and month of the decision. Signed answers that differ do not agree with the report."""
    counted: dict[tuple[str, str, str], list[bool]] = defaultdict(list)
    states = store.review_states()
    for row in store.cases():
        state = states.get(row.case)
        if state is not None and state.signed:
            key = row.model or "", row.version or "", state.at[:7]
            counted[key].append(state.word == WORDS[Decision.ACCEPT])
    return tuple(Agreement(*key, sum(said), len(said)) for key, said in sorted(counted.items()))


def points(found: Sequence[Agreement]) -> Points:
    """As metrics: the step is the month as a number, 202611."""
    told: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for one in found:
        name = re.sub(r"[^\w.-]", "_", f"{PART}.{one.model}.{one.version}")
        interval, step = one.share, int(one.month.replace("-", ""))
        values = {"": interval.value, ".low": interval.low, ".high": interval.high, ".decided": float(one.decided)}
        for end, value in values.items():
            told[name + end].append((step, value))
    return told
