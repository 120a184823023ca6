"""The paired report of a challenger and the champion: in sentences, and one page that needs nothing else.

Owns `Pair`. Invariants: no script, no request, no clock; no study is named; every interval is by patient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from medrec import statistics
from medrec.outputs.monitoring import STYLE
from medrec.report import DISCLAIMER

ROWS = 500
SIDE_PX = 320
FEWEST = 2  # patients of whom an interval can be told


@dataclass(frozen=True, slots=True)
class Pair:
    """One study as both saw it; `dice` is None where they read different series."""

    patient: str
    champion_ml: float
    challenger_ml: float
    dice: float | None
    champion_verdict: str | None
    challenger_verdict: str | None

    @property
    def changed(self) -> bool:
        """Whether the verdict would be another one."""
        return self.champion_verdict != self.challenger_verdict


def sentences(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """What promoting the challenger would change, with 95% intervals."""
    patients = sorted({p.patient for p in pairs})
    told = [f"{len(pairs)} studies of {len(patients)} patients were seen by both"]
    if len(patients) < FEWEST:
        return (*told, "too few for an interval")
    names = [p.patient for p in pairs]
    changed = sum(p.changed for p in pairs)
    share = statistics.share(sum(any(p.changed for p in pairs if p.patient == n) for n in patients), len(patients))
    told.append(f"another verdict in {changed} studies; share of patients {share}")
    difference = [p.challenger_ml - p.champion_ml for p in pairs]
    told.append(f"volume, challenger less champion: {statistics.mean_of_images(difference, names)} ml")
    both = [(p.dice, p.patient) for p in pairs if p.dice is not None]
    if len({n for _, n in both}) >= FEWEST:
        agreement = statistics.mean_of_images([d for d, _ in both], [n for _, n in both])
        told.append(f"Dice between both: {agreement}, least {min(d for d, _ in both):.3f}")
    return tuple(told)


def page(name: str, pairs: Sequence[Pair]) -> str:
    """The page as text."""
    items = "".join(f"<li>{escape(text)}</li>" for text in sentences(pairs))
    ordered = sorted(pairs, key=lambda p: (not p.changed, 1.0 if p.dice is None else p.dice))
    rows = "".join(_row(number, p) for number, p in enumerate(ordered[:ROWS], 1))
    head = (
        "<tr><th></th><th>champion ml</th><th>challenger ml</th><th>Dice</th><th>champion</th><th>challenger</th></tr>"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Shadow</title><style>{STYLE}</style>'
        f"<h1>{escape(name)} beside the champion</h1><ul>{items}</ul>{_scatter(pairs)}"
        f"<p class=note>Studies in which both differ most come first; none is named.</p><table>{head}{rows}</table>"
        f"<footer>{DISCLAIMER}</footer></html>"
    )


def _row(number: int, pair: Pair) -> str:
    overlap = "" if pair.dice is None else f"{pair.dice:.3f}"
    cells = [str(number), f"{pair.champion_ml:.2f}", f"{pair.challenger_ml:.2f}", overlap]
    said = [pair.champion_verdict or "", pair.challenger_verdict or ""]
    mark = ' class="bad"' if pair.changed else ""
    numbers = "".join(f'<td class="n">{c}</td>' for c in cells)
    return f"<tr>{numbers}" + "".join(f"<td{mark}>{escape(s)}</td>" for s in said) + "</tr>"


def _scatter(pairs: Sequence[Pair]) -> str:
    """Volumes of both, on cube-root axes; on the line they are equal."""
    most = max((max(p.champion_ml, p.challenger_ml) for p in pairs), default=0.0) or 1.0

    def at(ml: float) -> float:
        return float((max(ml, 0.0) / most) ** (1 / 3) * (SIDE_PX - 20)) + 10

    dots = "".join(
        f'<circle cx="{at(p.champion_ml):.1f}" cy="{SIDE_PX - at(p.challenger_ml):.1f}" r="3" fill-opacity=".5"/>'
        for p in pairs
    )
    line = f'<path d="M10 {SIDE_PX - 10}L{SIDE_PX - 10} 10" stroke="#999"/>'
    label = f"Volumes up to {most:.1f} ml: champion to the right, challenger upwards"
    size = f'width="{SIDE_PX}" height="{SIDE_PX}"'
    return f'<svg {size} role="img" aria-label="{label}"><title>{label}</title>{line}{dots}</svg><p>{label}.</p>'
