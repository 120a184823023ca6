"""The report as a PDF for people who have nothing but a PACS viewer: facts and key pictures on pages of A4.

Drawn from the same facts and pictures as report.html. Owns `Pages`, which hold all that is drawn but whose it is and
who has reviewed it: kept beside the objects, so that an accepted report is drawn again in its new words. Invariants:
the same pages give the same bytes; the fonts are inside; the patient and the review stand on every page, because pages
are printed; "nominal" stands beside every physical number.
"""

import base64
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import reportlab
from pydantic import TypeAdapter
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import BaseDocTemplate, Flowable, Frame, PageTemplate, Paragraph, Spacer, Table

from medrec.outputs.scene import Detail, Picture, scene
from medrec.report import DISCLAIMER, Case

DETAIL = Detail(picture_px=768, thumbnail_px=0, outline_characters=60_000, thumbnail_outline_characters=0, rows=200)
MARGIN = 15 * mm
WIDTH = A4[0] - 2 * MARGIN
LINE = 4 * mm
PICTURE_HEIGHT_LIMIT = 95 * mm
RED, GREY = colors.Color(0.85, 0.1, 0.1), colors.Color(0.35, 0.35, 0.35)
_STROKE = re.compile(r"M(\d+) (\d+)([hv])(\d+)")  # what `medrec.outputs.views.outline` writes
PLAIN, BOLD = "Vera", "VeraBd"
UNREVIEWED = "made by a network, unreviewed"


@dataclass(frozen=True, slots=True)
class Drawing:
    """One picture: its PNG in base64, size in mm, outline (a path in steps of `step_mm`, down and across), diameters.

    `letters` are those of the left, right, upper and lower edge.
    """

    png: str
    width_mm: float
    height_mm: float
    outline: str
    step_mm: tuple[float, float]
    diameters_mm: tuple[tuple[tuple[float, float], tuple[float, float]], ...]
    letters: tuple[str, str, str, str]
    bar_mm: float


@dataclass(frozen=True, slots=True)
class Pages:
    """What stands on the pages of a case; no identity."""

    case: str
    created: str
    verdict: str
    text: str
    flags: tuple[str, ...]
    drawings: tuple[Drawing, ...]
    lesions: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    small: tuple[str, ...]


_JSON = TypeAdapter(Pages)


def pack(pages: Pages) -> bytes:
    """Pages as JSON."""
    return _JSON.dump_json(pages)


def unpack(content: bytes) -> Pages:
    """What `pack` made. Raises ValueError when it is something else."""
    return _JSON.validate_json(content)


def of(case: Case) -> Pages:
    """What is drawn of an analysed case."""
    report, card = case.report, case.card
    assert card is not None
    assert report.verdict is not None
    drawn = scene(case, DETAIL)
    return Pages(
        case=report.case,
        created=report.created,
        verdict=report.verdict.upper(),
        text=report.verdict_text,
        flags=report.flags,
        drawings=tuple(_drawing(p) for p in (drawn.plain, drawn.marked) if p is not None) if drawn is not None else (),
        lesions=_lesions(case),
        notes=(f"Marked is a {card.finding}; it can also be: {', '.join(card.mimics)}.", *card.limits),
        small=(
            f"Model {card.name} {card.version}, card {card.digest}, weights {card.weights_digest}.",
            f"Licence of the weights: {card.licence}. medrec {report.code_version}.",
        ),
    )


def _drawing(picture: Picture) -> Drawing:
    view, outline = picture.view, picture.outline
    step = 0 if outline is None else outline.step_px
    return Drawing(
        png=picture.image.partition(",")[2],
        width_mm=float(view.width_mm),
        height_mm=float(view.height_mm),
        outline="" if outline is None else outline.path,
        step_mm=(float(view.spacing_mm[0] * step), float(view.spacing_mm[1] * step)),
        diameters_mm=tuple(d.ends_mm for d in picture.diameters),
        letters=(view.left, view.right, view.top, view.bottom),
        bar_mm=float(picture.bar_mm),
    )


def _lesions(case: Case) -> tuple[tuple[str, ...], ...]:
    """The table, its head first; () without lesions."""
    findings = case.report.findings
    if not findings:
        return ()
    unit = " nominal" if case.report.geometry_nominal else ""
    rows = [("lesion", f"ml{unit}", f"longest x perpendicular mm{unit}", f"longest 3D mm{unit}", "side")]
    for f in findings[: DETAIL.rows]:
        size = f"{f.longest_axial_mm:.1f} x {f.perpendicular_mm:.1f}"
        rows.append((str(f.number), f"{f.volume_mm3 / 1000:.2f}", size, f"{f.longest_3d_mm:.1f}", f.side))
    if len(findings) > DETAIL.rows:
        rows.append((f"and {len(findings) - DETAIL.rows} more", "", "", "", ""))
    return tuple(rows)


def render(pages: Pages, who: Mapping[str, str], said: str = UNREVIEWED) -> bytes:
    """The PDF; `who` are lines of a person's identity by their label, `said` is who has reviewed it."""
    _fonts()
    packed = io.BytesIO()
    document = BaseDocTemplate(packed, pagesize=A4, invariant=1, title="medrec report", author="medrec", lang="en")
    frame = Frame(MARGIN, 2 * MARGIN, WIDTH, A4[1] - 4 * MARGIN, 0, 0, 0, 0)

    def every_page(canvas: Canvas, _: object) -> None:
        _head_and_foot(canvas, pages, who, said)

    document.addPageTemplates(PageTemplate("page", [frame], onPage=every_page))
    document.build(_story(pages))
    return packed.getvalue()


def _fonts() -> None:
    folder = Path(reportlab.__file__).parent / "fonts"
    for name in (PLAIN, BOLD):
        if name not in pdfmetrics.getRegisteredFontNames():
            pdfmetrics.registerFont(TTFont(name, str(folder / f"{name}.ttf")))


def shown(text: str) -> str:
    """Text as the font can draw it: what it lacks becomes a box, so that nobody reads half a name."""
    known = pdfmetrics.getFont(PLAIN).face.charToGlyph
    return "".join(c if ord(c) in known else "\u25a1" for c in text)


def _head_and_foot(canvas: Canvas, pages: Pages, who: Mapping[str, str], said: str) -> None:
    canvas.setFont(BOLD, 9)
    rest = "   ".join(f"{k}: {v}" for k, v in list(who.items())[1:] if v)
    name = next((f"{k}: {v}" for k, v in who.items()), "")
    for number, line in enumerate((name, rest)):
        canvas.drawString(MARGIN, A4[1] - MARGIN - number * LINE, _fitted(line, BOLD, 9))
    canvas.setFont(PLAIN, 7)
    canvas.setFillColor(GREY)
    canvas.drawString(MARGIN, 1.3 * MARGIN, _fitted(f"case {pages.case}, {pages.created}, {said}", PLAIN, 7))
    canvas.drawString(MARGIN, MARGIN, DISCLAIMER)
    canvas.drawRightString(A4[0] - MARGIN, MARGIN, f"page {canvas.getPageNumber()}")


def _fitted(text: str, font: str, size: float) -> str:
    """A line as wide as the page allows; what was cut off is told by three dots, so that nobody takes half for all."""
    line = shown(text)
    if pdfmetrics.stringWidth(line, font, size) <= WIDTH:
        return line
    while line and pdfmetrics.stringWidth(f"{line}...", font, size) > WIDTH:
        line = line[:-1]
    return f"{line}..."


def _story(pages: Pages) -> list[Flowable]:
    story: list[Flowable] = [
        _text(pages.verdict, 20, BOLD),
        _text(pages.text, 11),
        *(_text(f"• {flag}", 9) for flag in pages.flags),
        Spacer(1, 4 * mm),
    ]
    if pages.drawings:
        story.append(_Pictures(pages.drawings))
    if pages.lesions:
        story.append(_table(pages.lesions))
    first, *limits = pages.notes
    story += [Spacer(1, 4 * mm), _text(first, 8), *(_text(f"• {limit}", 8) for limit in limits)]
    return [*story, *(_text(line, 7) for line in pages.small)]


def _text(text: str, size: float, font: str = PLAIN) -> Paragraph:
    style = ParagraphStyle(font, fontName=font, fontSize=size, leading=1.35 * size, spaceAfter=0.3 * size)
    return Paragraph(escape(shown(text)), style)


def _table(rows: tuple[tuple[str, ...], ...]) -> Table:
    line = ("LINEBELOW", (0, 0), (-1, -1), 0.3, GREY)
    return Table(
        [list(r) for r in rows], style=[("FONT", (0, 0), (-1, -1), PLAIN, 8), line], hAlign="LEFT", repeatRows=1
    )


class _Pictures(Flowable):  # type: ignore[misc]
    """Pictures side by side at one scale, in true aspect, with outline, diameters, letters and a scale bar."""

    def __init__(self, drawings: tuple[Drawing, ...]) -> None:
        super().__init__()
        self._drawings = drawings
        room = WIDTH - 6 * mm
        widest = room / 2 / max(d.width_mm for d in drawings)
        self._scale = min(widest, PICTURE_HEIGHT_LIMIT / max(d.height_mm for d in drawings))

    def wrap(self, width: float, height: float) -> tuple[float, float]:
        """Their size on the page, in points."""
        return width, max(d.height_mm for d in self._drawings) * self._scale + 4 * mm

    def draw(self) -> None:
        """Draw them from left to right."""
        left = 0.0
        for drawing in self._drawings:
            self.canv.saveState()
            self.canv.translate(left, 2 * mm)
            _draw(self.canv, drawing, self._scale)
            self.canv.restoreState()
            left += drawing.width_mm * self._scale + 6 * mm


def _draw(canvas: Canvas, drawing: Drawing, scale: float) -> None:
    width, height = drawing.width_mm * scale, drawing.height_mm * scale
    canvas.drawImage(ImageReader(io.BytesIO(base64.b64decode(drawing.png))), 0, 0, width, height)
    canvas.setStrokeColor(RED)
    canvas.setLineWidth(0.7)
    down, across = (step * scale for step in drawing.step_mm)
    for x, y, kind, run in _STROKE.findall(drawing.outline):
        x0, y0 = int(x) * across, height - int(y) * down
        x1, y1 = (x0 + int(run) * across, y0) if kind == "h" else (x0, y0 - int(run) * down)
        canvas.line(x0, y0, x1, y1)
    canvas.setStrokeColor(colors.yellow)
    for (x0, y0), (x1, y1) in drawing.diameters_mm:
        canvas.line(x0 * scale, height - y0 * scale, x1 * scale, height - y1 * scale)
    _labels(canvas, drawing, width, height, scale)


def _labels(canvas: Canvas, drawing: Drawing, width: float, height: float, scale: float) -> None:
    left, right, top, bottom = drawing.letters
    canvas.setFillColor(colors.white)
    canvas.setStrokeColor(colors.white)
    canvas.setFont(BOLD, 8)
    canvas.drawString(2, height / 2, left)
    canvas.drawRightString(width - 2, height / 2, right)
    canvas.drawCentredString(width / 2, height - 9, top)
    canvas.drawCentredString(width / 2, 3, bottom)
    canvas.line(4, 5, 4 + drawing.bar_mm * scale, 5)
    canvas.drawString(4, 8, f"{drawing.bar_mm:g} mm")
