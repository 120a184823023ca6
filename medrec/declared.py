"""What a card declares before anything is trained: how patients are divided, and what a new model must show.

Owns `Split`, `EarlyStop`, `Gate`, `Robustness` and the list of measures that they may name. Data only: `medrec.gate`
decides, `medrec.splits` divides. Invariant: a gate that no result could ever pass is a mistake in the card.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medrec.fields import Count, Frozen, NotNegative, Share

MeasureName = Literal[
    "dice", "surface_distance", "lesion_sensitivity", "false_positives", "auc", "sensitivity", "brier"
]
# The measures of which less is better.
LESS_IS_BETTER = frozenset({"surface_distance", "false_positives", "brier"})
# The measures that are one number for all patients together, read from a probability for each.
POOLED = frozenset({"auc", "sensitivity"})


class Split(Frozen):
    """Which share of the patients is locked for tests, and which share of the others watches the training."""

    test: Share = 0.2
    validation: Share = 0.2


class EarlyStop(Frozen):
    """A training ends when its watching patients have seen nothing better for `patience` looks, `every` steps apart.

    The weights of the best look are kept.
    """

    every: Count = 50
    patience: Count = 10


class Robustness(Frozen):
    """What is left of a measure when the images are changed (see `medrec.learning.robustness`): `floor` or better."""

    measure: MeasureName = "dice"
    floor: float


class Gate(Frozen):
    """What a model must show on the locked patients before it may take another's place.

    A challenger must be better by more than `margin` in `primary`, or in one of `also` (whose values are margins), and
    may be worse in none of `safety` by as much as the margin there. Every model must reach `acceptance`, with the
    worse end of its interval. `alpha` is the chance, over all `uses` of the locked patients together, that a model that
    is no better passes; each use spends an equal part. `specificity` is where `sensitivity` is read.
    """

    primary: MeasureName
    margin: NotNegative = 0
    also: dict[MeasureName, NotNegative] = Field(default_factory=dict)
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    uses: Count = 5
    minimum_patients: Annotated[int, Field(ge=5)] = 20
    acceptance: dict[MeasureName, float] = Field(min_length=1)
    safety: dict[MeasureName, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    specificity: Share = 0.9

    @model_validator(mode="after")
    def _can_be_passed(self) -> "Gate":
        if self.primary in self.also:
            raise ValueError(f"also: {self.primary} is the primary measure already")
        unguarded = sorted(set(self.endpoints) - set(self.safety)) if self.also else []
        if unguarded:
            raise ValueError(
                f"safety: {', '.join(unguarded)}: with several endpoints each needs a safety margin as well, so that a "
                "model that is better in one is not worse in another"
            )
        # Of n patients who are all better, chance does the same once in 2^n.
        if 2.0**-self.minimum_patients > self.alpha_per_use / len(self.endpoints):
            raise ValueError(
                f"minimum_patients: {self.minimum_patients} patients can never show anything at "
                f"{self.alpha_per_use / len(self.endpoints):.2g} (alpha over uses and endpoints)"
            )
        return self

    @property
    def endpoints(self) -> dict[MeasureName, float]:
        """The measures in which a challenger may be better, the primary one first, with their margins."""
        return {self.primary: self.margin, **self.also}

    @property
    def alpha_per_use(self) -> float:
        """The part of alpha that one use of the locked patients spends (Bonferroni over the planned uses)."""
        return self.alpha / self.uses

    @property
    def measures(self) -> tuple[MeasureName, ...]:
        """Every measure that is needed to decide."""
        return tuple(dict.fromkeys((*self.endpoints, *self.safety, *self.acceptance)))


def looser(before: Gate, now: Gate) -> tuple[str, ...]:
    """In what a gate asks for less than it did before: to be refused, because results are known by then.

    Asking for more is allowed.
    """
    found = []
    if now.primary != before.primary or set(now.also) - set(before.also):
        found.append(f"other endpoints ({', '.join(before.endpoints)} before, {', '.join(now.endpoints)} now)")
    found += [
        f"margin of {m}: {before.endpoints[m]:g} before, {v:g} now"
        for m, v in now.endpoints.items()
        if m in before.endpoints and v < before.endpoints[m]
    ]
    if now.alpha > before.alpha:
        found.append(f"alpha: {before.alpha:g} before, {now.alpha:g} now")
    if now.alpha_per_use > before.alpha_per_use:
        found.append(f"alpha for each use: {before.alpha_per_use:g} before, {now.alpha_per_use:g} now")
    if now.minimum_patients < before.minimum_patients:
        found.append(f"minimum_patients: {before.minimum_patients} before, {now.minimum_patients} now")
    if now.specificity < before.specificity:
        found.append(f"specificity: {before.specificity:g} before, {now.specificity:g} now")
    for measure, margin in before.safety.items():
        if now.safety.get(measure, float("inf")) > margin:
            found.append(f"safety margin of {measure}: {margin:g} before, {now.safety.get(measure, 'none')} now")
    for measure, limit in before.acceptance.items():
        new = now.acceptance.get(measure)
        if new is None or (new > limit if measure in LESS_IS_BETTER else new < limit):
            found.append(f"acceptance of {measure}: {limit:g} before, {'none' if new is None else f'{new:g}'} now")
    return tuple(found)
