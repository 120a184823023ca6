"""What a round of deliveries did."""

from collections import Counter
from dataclasses import dataclass

from medrec.store import DeliveryRow, State


@dataclass(frozen=True, slots=True)
class Delivered:
    """The deliveries that were looked at, where they stand now, and what a person should know."""

    rows: tuple[DeliveryRow, ...]
    problems: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many stand where."""
        counted = Counter(row.state for row in self.rows)
        return {state.value: counted[state] for state in State if counted[state]}
