"""monitoring.html: what changed, in words first, and every number that is watched, in one file that needs nothing else.

Invariants: no script, no request, no clock; every text is escaped; no study is named.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from html import escape

from medrec.drift import Group, Line, Panel
from medrec.report import DISCLAIMER

WIDTH_PX, HEIGHT_PX = 260, 44
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;width:100%}td,th{padding:.15rem .6rem;border-bottom:1px solid #ddd;text-align:left}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums}svg{display:block}.bad{color:#a00;font-weight:600}"
    "p.note,footer{color:#555;font-size:.9rem}"
)


def page(
    panel: Panel,
    name: Callable[[Group], str],
    alarms: Sequence[tuple[str, str]],
    checks: Mapping[str, Sequence[str]],
    at: str,
) -> str:
    """The page as text: `alarms` are (when, words), the latest last; `name` says what a group is called."""
    groups: dict[Group, list[Line]] = defaultdict(list)
    for line in panel.lines:
        groups[line.stream.group].append(line)
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Monitoring</title><style>{STYLE}</style>'
    parts = [head, f"<h1>Monitoring</h1><p>{escape(at)}</p>", _alarms(alarms), _checks(checks), _how(panel)]
    parts += [_group(name(group), lines, panel.limit) for group, lines in groups.items()]
    return "\n".join((*parts, f"<footer>{DISCLAIMER}</footer></html>"))


def _alarms(alarms: Sequence[tuple[str, str]]) -> str:
    if not alarms:
        return "<h2>What changed</h2><p>Nothing that was noticed.</p>"
    items = "".join(f"<li><b>{escape(when[:10])}</b> {escape(words)}</li>" for when, words in reversed(alarms))
    return f"<h2>What changed</h2><ul>{items}</ul>"


def _checks(checks: Mapping[str, Sequence[str]]) -> str:
    rows = []
    for name, problems in checks.items():
        said = "".join(f"<br>{escape(p)}" for p in problems[:20])
        state = f'<span class="bad">{len(problems)} to look at</span>{said}' if problems else "nothing to say"
        rows.append(f"<tr><td>{escape(name)}</td><td>{state}</td></tr>")
    return f"<h2>Checks</h2><table>{''.join(rows)}</table>"


def _how(panel: Panel) -> str:
    return (
        '<h2>What is watched</h2><p class="note">Evidence reaches the limit, and is an alarm, at most once in '
        f"{panel.limit:,.0f} values by chance alone (a year has {panel.values_a_year:,.0f}), however many numbers are "
        "watched, as long as studies of one site and scanner come in no pattern. A number is learnt first; after an "
        "alarm it is learnt anew.</p>"
    )


def _group(name: str, lines: Sequence[Line], limit: float) -> str:
    rows = "".join(_row(line, limit) for line in lines)
    head = "<tr><th>number</th><th>studies</th><th>evidence</th><th>last values</th></tr>"
    return f"<h3>{escape(name)}</h3><table>{head}{rows}</table>"


def _row(line: Line, limit: float) -> str:
    said = "learning" if line.evidence is None else f"{line.evidence / limit:.2%} of the limit"
    cells = f'<td>{escape(line.stream.feature)}</td><td class="n">{line.studies}</td><td class="n">{said}</td>'
    return f"<tr>{cells}<td>{_curve([v for _, v in line.points])}</td></tr>"


def _curve(values: Sequence[float]) -> str:
    """The values as dots from left to right, between the least and the greatest."""
    low, high = min(values), max(values)
    scale = (HEIGHT_PX - 8) / (high - low) if high > low else 0.0
    step = (WIDTH_PX - 8) / max(1, len(values) - 1)
    dots = "".join(
        f'<circle cx="{4 + n * step:.1f}" cy="{HEIGHT_PX - 4 - (v - low) * scale:.1f}" r="1.5"/>'
        for n, v in enumerate(values)
    )
    label = f"{len(values)} values from {low:.4g} to {high:.4g}"
    size = f'width="{WIDTH_PX}" height="{HEIGHT_PX}"'
    return f'<svg {size} role="img" aria-label="{label}"><title>{label}</title>{dots}</svg>'
