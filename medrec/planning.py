"""What is to be done with which studies: one case for each study and each model that fits, under a key of its own.

Owns `Planned`. Invariants: the same inputs, card and weights give the same key, whatever the order of the files; a file
alone does not tell which case was its once the patient's salt is gone.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from medrec.audit import salted
from medrec.config import CardFiles, Configuration
from medrec.report import Status
from medrec.routing import Routed, RoutedPictures, route
from medrec.series import Reason, Skipped, Study, Visit
from medrec.store import CaseRow, Store

KEY_DIGITS = 24  # 96 bits: two cases never share a key by chance


@dataclass(frozen=True, slots=True)
class Planned:
    """What one model is to do with one study; `routed` says with which series, or why with none."""

    case: str
    study: Study
    model: CardFiles | None
    routed: Routed | RoutedPictures | Skipped

    @property
    def inputs(self) -> tuple[str, ...]:
        """sha256 of the files that are used, or that would have been."""
        return tuple(sorted({f.sha256 for f in self.routed.files}))

    @property
    def patient(self) -> str:
        """Whose the case is; of a study that names several patients nobody knows, and it stands under its own name."""
        return _patient(self.study)

    @property
    def inputs_sha256(self) -> str:
        """One digest for all inputs."""
        return digest_of(list(self.inputs))


def plan(
    studies: Iterable[Study],
    configuration: Configuration,
    salt_of: Callable[[str], str] = lambda patient: "",
    disabled: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Planned, ...]:
    """What is to be done: a case for each study and each model that fits.

    In the order of the studies' pseudonyms, but for those of one patient, which come together and the earliest first.

    `disabled` says why a model must not be used, by the digest of its card: its studies are refused by name. Keys of
    cases are made with the patient's salt: when it is gone, a file no longer tells which case was its.
    """
    every_card = digest_of([c.card.digest for c in configuration.cards])
    planned: list[Planned] = []
    for study in studies:
        found: list[tuple[CardFiles | None, Routed | RoutedPictures | Skipped]] = []
        if len(study.patients) > 1:
            detail = f"its files name {len(study.patients)} different patients"
            found.append((None, Skipped(study.study, Reason.MIXED_PATIENTS, detail, study.files)))
        else:
            routes = [(model, route(study, model.card)) for model in configuration.cards]
            found += [(model, _usable(model, fit, disabled)) for model, fit in routes if fit is not None]
        if not found:
            detail = "no series of the study fits a required input of any card"
            found.append((None, Skipped(study.study, Reason.NO_ROUTE, detail, study.files)))
        for model, fit in found:
            inputs = sorted({f.sha256 for f in fit.files})
            card = every_card if model is None else model.card.digest
            weights = "" if model is None else model.card.weights_digest
            key = salted(salt_of(_patient(study)), digest_of([inputs, card, weights]))
            planned.append(Planned(key[:KEY_DIGITS], study, model, fit))
    return _in_order(planned)


def _in_order(planned: list[Planned]) -> tuple[Planned, ...]:
    """A patient's studies together, those that are dated before those that are not, the earliest first."""
    first: dict[str, int] = {}
    for place, one in enumerate(planned):
        first.setdefault(one.patient, place)
    return tuple(sorted(planned, key=lambda p: (first[p.patient], _moment(p.study.visit))))


def _moment(visit: Visit) -> tuple[bool, int, int]:
    return visit.day is None, visit.day or 0, -1 if visit.minute is None else visit.minute


def precedes(one: Planned, other: Planned) -> bool:
    """Whether a case is of an earlier study of the same patient and model: the other is to be compared with it."""
    if one.patient != other.patient or one.model is None or other.model is None:
        return False
    return one.model.card.name == other.model.card.name and one.study.visit.before(other.study.visit) is True


def _usable(
    model: CardFiles, route: Routed | RoutedPictures | Skipped, disabled: Mapping[str, str]
) -> Routed | RoutedPictures | Skipped:
    """The route, unless somebody took the model out of use: the kill switch."""
    why = disabled.get(model.card.digest)
    if why is None or isinstance(route, Skipped):
        return route
    detail = f"{model.card.name} {model.card.version}: {why}"
    return Skipped(route.files[0].study, Reason.DISABLED, detail, route.files)


def _patient(study: Study) -> str:
    return study.patients[0] if len(study.patients) == 1 else study.study


def already_done(planned: Planned, store: Store, reanalyse: bool) -> CaseRow | None:
    """The case that makes this one needless: the same key, or an earlier model's on the same inputs.

    With `reanalyse` only the same key counts. A failed case is never done.
    """
    same = store.case(planned.case)
    if same is not None and same.status is not Status.FAILED:
        return same
    if reanalyse or planned.model is None:
        return None
    return store.analysed(planned.study.study, planned.model.card.name, planned.inputs_sha256)


def digest_of(content: object) -> str:
    """SHA-256 of the content as compact JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
