"""The contact sheet: a night's studies on one page, each with its thumbnail, verdict, size and flags.

Fills `sheet.html.j2` with rows of `worklist`; every text goes through autoescape, thumbnails are images (which run
nothing) as data URIs, because MLflow shows a page sealed off from everything else. Refuses to grow: what comes last
goes without its picture once `PICTURES_BYTES` are used, and says so. Invariants: no script, no request, no clock.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medrec.outputs.html import HEADLINES, Headline, environment
from medrec.report import DISCLAIMER
from medrec.worklist import RULE, Overdue, Row, counted, noted

# MLflow previews up to 50 MiB; a browser wants less. Some 1,500 brains fit, or 1,000 larger pictures.
PICTURES_BYTES = 24_000_000
FLAGS = 4  # of a study; the report holds all


@dataclass(frozen=True, slots=True)
class Card:
    """One study on the page; `picture` is a data URI, "" where there is none."""

    number: int
    row: Row
    headline: Headline
    picture: str
    flags: tuple[str, ...]
    more: int


def page(
    night: str,
    rows: Sequence[Row],
    thumbnails: Mapping[str, bytes],
    waiting: int = 0,
    overdue: Sequence[Overdue] = (),
) -> str:
    """The page of a night, whose rows are in order; `thumbnails` are SVG files by case."""
    cards = _cards(rows, thumbnails)
    template = environment().get_template("sheet.html.j2")
    filled = template.render(
        night=night,
        cards=cards,
        counts=[(HEADLINES[kind], n) for kind, n in counted(rows)],
        total=len(rows),
        waiting=waiting,
        overdue=overdue,
        left_out=sum(c.row.case in thumbnails and not c.picture for c in cards),
        rule=RULE,
        disclaimer=DISCLAIMER,
    )
    return filled.strip() + "\n"


def _cards(rows: Sequence[Row], thumbnails: Mapping[str, bytes]) -> list[Card]:
    cards, used = [], 0
    for number, row in enumerate(rows, 1):
        picture = _uri(thumbnails.get(row.case, b""))
        picture = picture if used + len(picture) <= PICTURES_BYTES else ""
        used += len(picture)
        said = noted(row)
        cards.append(Card(number, row, HEADLINES[row.kind], picture, said[:FLAGS], max(0, len(said) - FLAGS)))
    return cards


def _uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii") if svg else ""
