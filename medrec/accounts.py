"""What a night answers for: a line for each case, a place for each file, and the summary that is printed and kept.

Owns `CaseLine`, `Summary` and `Account`. Invariant: a file is in one place only.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from medrec import delivery
from medrec.pace import slowest
from medrec.report import Status
from medrec.series import Refused, ScanFile


@dataclass(frozen=True, slots=True)
class CaseLine:
    """One case in the summary; `seconds` is what it took this night, waiting for its turns left out."""

    case: str
    study: str
    inputs: tuple[str, ...]
    status: str
    reason: str
    verdict: str | None
    report: str | None
    mlflow_run_id: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Summary:
    """What a night did: the JSON that --json prints.

    `stages` are seconds by stage, which overlap; `sentinels` what came of studies with known answers; `reviews` where
    reports stand with their reviewers, `overdue` the cases on which nobody decided in time (`worklist.as_facts`).
    """

    batch: str
    files: dict[str, int]
    refusals: tuple[dict[str, str | None], ...]
    cases: tuple[CaseLine, ...]
    warnings: tuple[str, ...]
    deliveries: dict[str, int] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    sentinels: dict[str, str] = field(default_factory=dict)
    reviews: dict[str, int] = field(default_factory=dict)
    overdue: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> str:
        """One JSON object, on several lines."""
        return json.dumps(asdict(self), indent=1, allow_nan=False)

    @property
    def outcome(self) -> str:
        """What came of the studies, in a few words."""
        return delivery.outcome(asdict(self))

    @property
    def slowest(self) -> str:
        """The stage that took longest, and each one's share, in words."""
        return slowest(self.stages)

    @property
    def exit_code(self) -> int:
        """0 when everything is accounted for, 1 when a study failed for a reason of ours."""
        return 1 if any(c.status == Status.FAILED for c in self.cases) else 0


@dataclass(slots=True)
class Account:
    """Where each file went, by its ordinal: the first entry that is not `unused` stays.

    A zip file (`packed`) of which a part was analysed counts as analysed, whatever became of the rest.
    """

    analysed: dict[int, str] = field(default_factory=dict)
    refused: dict[int, tuple[str, str]] = field(default_factory=dict)
    packed: set[int] = field(default_factory=set)
    waiting: set[int] = field(default_factory=set)
    left_out: set[int] = field(default_factory=set)

    def use(self, files: Iterable[ScanFile]) -> None:
        """They were analysed."""
        for file in files:
            self.analysed[file.ordinal] = file.sha256

    def refuse(self, files: Iterable[ScanFile | Refused], reason: str) -> None:
        """They were not used, for a reason that is told; the first one stays."""
        for file in files:
            self.refused.setdefault(file.ordinal, (file.sha256, reason))

    def settled(self) -> tuple[set[int], dict[int, tuple[str, str]]]:
        """Ordinals of files that were analysed, and digest and reason of those that were refused: no file in both."""
        analysed = {o for o in self.analysed if o not in self.refused or o in self.packed}
        return analysed, {o: why for o, why in self.refused.items() if o not in analysed}
