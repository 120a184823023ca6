"""report.html: what a radiologist sees first and an auditor reads last, in one file that needs nothing else.

Fills `report.html.j2` with a case, `pictures.html.j2` with one of single images; every text goes through autoescape.
Refuses to grow: pictures are shrunk until the page fits `LIMIT_BYTES`. Invariants: no script, no request, no clock;
where the geometry is nominal, "nominal" stands beside every physical number, those within sentences included.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from medrec.errors import DataError
from medrec.outputs.gallery import gallery
from medrec.outputs.scene import Detail, scene
from medrec.report import DISCLAIMER, AnyCase, PictureCase, Report, Status, Verdict

NAME = "report.html"
LIMIT_BYTES = 5_000_000
# From the finest to the coarsest; the first that fits is taken.
DETAILS = (
    Detail(
        picture_px=1024,
        thumbnail_px=224,
        outline_characters=200_000,
        thumbnail_outline_characters=20_000,
        rows=500,
    ),
    Detail(
        picture_px=512,
        thumbnail_px=160,
        outline_characters=100_000,
        thumbnail_outline_characters=8_000,
        rows=300,
    ),
    Detail(
        picture_px=512,
        thumbnail_px=112,
        outline_characters=60_000,
        thumbnail_outline_characters=4_000,
        rows=200,
    ),
    Detail(
        picture_px=384,
        thumbnail_px=72,
        outline_characters=40_000,
        thumbnail_outline_characters=2_000,
        rows=100,
    ),
    Detail(picture_px=256, thumbnail_px=0, outline_characters=20_000, thumbnail_outline_characters=0, rows=50),
)
SIGNIFICANT = 6  # digits of a drawn coordinate: below a thousandth of a pixel
PHYSICAL = re.compile(r"(\d\s?(?:mm3|mm³|mm|ml))\b(?! \(?nominal)")


@dataclass(frozen=True, slots=True)
class Headline:
    """The largest word of the page, and what it means; `kind` also names its colour and glyph."""

    kind: str
    word: str
    meaning: str


HEADLINES: Mapping[Verdict | Status, Headline] = {
    Verdict.FINDING: Headline("finding", "Finding", ""),
    Verdict.NOTHING_MARKED: Headline("nothing-marked", "Nothing marked", ""),
    Verdict.INCONCLUSIVE: Headline("inconclusive", "Inconclusive", ""),
    Status.REFUSED: Headline(
        "refused",
        "Refused",
        "This study was NOT analysed. It cannot be read safely as it is; nothing is known of its content.",
    ),
    Status.FAILED: Headline(
        "failed",
        "Failed",
        "This study was NOT analysed. The analysis broke off; nothing is known of its content.",
    ),
    Status.ALREADY_DONE: Headline(
        "refused", "Already done", "This study was NOT analysed again; an earlier report stands."
    ),
    Status.WAITING: Headline("refused", "Waiting", "This study was NOT analysed yet; a later night takes it."),
}


def write(case: AnyCase, folder: Path) -> None:
    """Write the page into `folder`.

    Raises DataError when it cannot be made to fit `LIMIT_BYTES`.
    """
    (folder / NAME).write_bytes(render(case).encode())


def render(case: AnyCase) -> str:
    """The page, in the finest detail that fits."""
    for detail in DETAILS:
        page = _fill(case, detail)
        if len(page.encode()) <= LIMIT_BYTES:
            return page
    raise DataError(f"{NAME} of case {case.report.case} does not fit {LIMIT_BYTES} bytes, even without the montage")


def headline(report: Report) -> Headline:
    """The verdict's, or for a study without one its status's."""
    return HEADLINES[report.status if report.verdict is None else report.verdict]


@cache
def environment(nominal: bool = False) -> Environment:
    """The templates, compiled once, with numbers of nominal sizes or of real ones."""
    # Trusted files only: a template is code, and these travel with the package.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def quantity(value: float, unit: str) -> Markup:
        return _quantity(value, unit, nominal)

    def noted(text: str) -> str:
        return PHYSICAL.sub(r"\1 nominal", text) if nominal else text

    environment.filters |= {
        "mm": lambda mm: quantity(mm, "mm"),
        "ml": lambda mm3: quantity(mm3 / 1000, "ml"),
        "round_mm": lambda mm: Markup('{}&nbsp;<span class="u">mm{}</span>').format(f"{mm:g}", _suffix(nominal)),
        "noted": noted,
        "p": lambda p: f"{p:.2f}",
        "capital": lambda text: text[:1].upper() + text[1:],
        "num": lambda x: f"{x:.{SIGNIFICANT}g}",
        "grey": lambda x, shown: signed(x, max(0, 2 - math.floor(math.log10(shown.width)))),
        "one": lambda x: signed(x, 1),
        "mm_fine": lambda mm: _quantity(mm, "mm", nominal, 2),
        "measured": lambda x: signed(x, 2 if abs(x) < 10 else 1),
        "px": lambda px: _quantity(px, "px", nominal=False, digits=0),
        "short": lambda text: text if len(text) <= 16 else text[:12] + "…",
    }
    return environment


def _fill(case: AnyCase, detail: Detail) -> str:
    nominal, pictures = case.report.geometry_nominal, isinstance(case, PictureCase)
    page = (
        environment(nominal)
        .get_template("pictures.html.j2" if pictures else "report.html.j2")
        .render(
            report=case.report,
            card=case.card,
            nominal=nominal,
            headline=headline(case.report),
            scene=None if isinstance(case, PictureCase) else scene(case, detail),
            gallery=gallery(case, detail) if isinstance(case, PictureCase) else (),
            detail=detail,
            disclaimer=DISCLAIMER,
        )
    )
    return page.strip() + "\n"


def _quantity(value: float, unit: str, nominal: bool, digits: int | None = None) -> Markup:
    """A number with its unit: mm and ml to one decimal, below 1 ml to two, unless `digits` says otherwise."""
    if digits is None:
        digits = 2 if unit == "ml" and value < 1 else 1
    # The space is a real character, not a margin: what is copied or read aloud keeps it.
    return Markup('<span class="q">{}&nbsp;<span class="u">{}{}</span></span>').format(
        signed(value, digits), unit, _suffix(nominal)
    )


def _suffix(nominal: bool) -> Markup:
    return Markup(' <i class="nominal">nominal</i>') if nominal else Markup("")


def signed(value: float, digits: int) -> str:
    """A number with a true minus sign, and never minus nought."""
    text = f"{value:.{digits}f}"
    return (text[1:] if not math.fabs(float(text)) else text.replace("-", "−")) if text[0] == "-" else text
