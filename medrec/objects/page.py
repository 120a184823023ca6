"""The report as a PDF for people who have nothing but a PACS viewer: facts and key pictures on pages of A4.

Drawn from the same facts and pictures as report.html. Invariants: the same case gives the same bytes; the fonts are
inside; the patient stands on every page, because pages are printed; "nominal" stands beside every physical number.
"""

import base64
import io
import re
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

import reportlab
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
PICTURE_HEIGHT_LIMIT = 95 * mm
RED, GREY = colors.Color(0.85, 0.1, 0.1), colors.Color(0.35, 0.35, 0.35)
_STROKE = re.compile(r"M(\d+) (\d+)([hv])(\d+)")  # what `medrec.outputs.views.outline` writes
PLAIN, BOLD = "Vera", "VeraBd"


def render(case: Case, who: Mapping[str, str]) -> bytes:
    """The pages; `who` are lines of a person's identity by their label."""
    _fonts()
    packed = io.BytesIO()
    document = BaseDocTemplate(packed, pagesize=A4, invariant=1, title="medrec report", author="medrec", lang="en")
    frame = Frame(MARGIN, 2 * MARGIN, A4[0] - 2 * MARGIN, A4[1] - 4 * MARGIN, 0, 0, 0, 0)

    def every_page(canvas: Canvas, _: object) -> None:
        _head_and_foot(canvas, case, who)

    document.addPageTemplates(PageTemplate("page", [frame], onPage=every_page))
    document.build(_story(case))
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


def _head_and_foot(canvas: Canvas, case: Case, who: Mapping[str, str]) -> None:
    canvas.setFont(BOLD, 9)
    canvas.drawString(MARGIN, A4[1] - MARGIN, shown("   ".join(f"{k}: {v}" for k, v in who.items() if v))[:150])
    canvas.setFont(PLAIN, 7)
    canvas.setFillColor(GREY)
    facts = case.report
    canvas.drawString(MARGIN, 1.3 * MARGIN, f"case {facts.case}, {facts.created}, made by a network, unreviewed")
    canvas.drawString(MARGIN, MARGIN, DISCLAIMER)
    canvas.drawRightString(A4[0] - MARGIN, MARGIN, f"page {canvas.getPageNumber()}")


def _story(case: Case) -> list[Flowable]:
    report, card = case.report, case.card
    assert card is not None
    assert report.verdict is not None
    story: list[Flowable] = [
        _text(report.verdict.upper(), 20, BOLD),
        _text(report.verdict_text, 11),
        *(_text(f"• {flag}", 9) for flag in report.flags),
        Spacer(1, 4 * mm),
    ]
    drawn = scene(case, DETAIL)
    if drawn is not None:
        story.append(_Pictures([p for p in (drawn.plain, drawn.marked) if p is not None]))
    if report.findings:
        story.append(_lesions(case))
    story += [
        Spacer(1, 4 * mm),
        _text(f"Marked is a {card.finding}; it can also be: {', '.join(card.mimics)}.", 8),
        *(_text(f"• {limit}", 8) for limit in card.limits),
        _text(f"Model {card.name} {card.version}, card {card.digest}, weights {card.weights_digest}.", 7),
        _text(f"Licence of the weights: {card.licence}. medrec {report.code_version}.", 7),
    ]
    return story


def _text(text: str, size: float, font: str = PLAIN) -> Paragraph:
    style = ParagraphStyle(font, fontName=font, fontSize=size, leading=1.35 * size, spaceAfter=0.3 * size)
    return Paragraph(escape(shown(text)), style)


def _lesions(case: Case) -> Table:
    unit = " nominal" if case.report.geometry_nominal else ""
    rows = [["lesion", f"ml{unit}", f"longest x perpendicular mm{unit}", f"longest 3D mm{unit}", "side"]]
    for f in case.report.findings[: DETAIL.rows]:
        size = f"{f.longest_axial_mm:.1f} x {f.perpendicular_mm:.1f}"
        rows.append([str(f.number), f"{f.volume_mm3 / 1000:.2f}", size, f"{f.longest_3d_mm:.1f}", f.side])
    if len(case.report.findings) > DETAIL.rows:
        rows.append([f"and {len(case.report.findings) - DETAIL.rows} more", "", "", "", ""])
    line = ("LINEBELOW", (0, 0), (-1, -1), 0.3, GREY)
    return Table(rows, style=[("FONT", (0, 0), (-1, -1), PLAIN, 8), line], hAlign="LEFT", repeatRows=1)


class _Pictures(Flowable):  # type: ignore[misc]
    """Pictures side by side at one scale, in true aspect, with outline, diameters, letters and a scale bar."""

    def __init__(self, pictures: list[Picture]) -> None:
        super().__init__()
        self._pictures = pictures
        room = A4[0] - 2 * MARGIN - 6 * mm
        widest = room / 2 / max(p.view.width_mm for p in pictures)
        self._scale = min(widest, PICTURE_HEIGHT_LIMIT / max(p.view.height_mm for p in pictures))

    def wrap(self, width: float, height: float) -> tuple[float, float]:
        """Their size on the page, in points."""
        return width, max(p.view.height_mm for p in self._pictures) * self._scale + 4 * mm

    def draw(self) -> None:
        """Draw them from left to right."""
        left = 0.0
        for picture in self._pictures:
            self.canv.saveState()
            self.canv.translate(left, 2 * mm)
            self._one(self.canv, picture)
            self.canv.restoreState()
            left += picture.view.width_mm * self._scale + 6 * mm

    def _one(self, canvas: Canvas, picture: Picture) -> None:
        view, scale = picture.view, self._scale
        width, height = view.width_mm * scale, view.height_mm * scale
        image = io.BytesIO(base64.b64decode(picture.image.partition(",")[2]))
        canvas.drawImage(ImageReader(image), 0, 0, width, height)
        canvas.setStrokeColor(RED)
        canvas.setLineWidth(0.7)
        if picture.outline is not None:
            step = picture.outline.step_px
            across, down = view.spacing_mm[1] * scale * step, view.spacing_mm[0] * scale * step
            for x, y, kind, run in _STROKE.findall(picture.outline.path):
                x0, y0 = int(x) * across, height - int(y) * down
                x1, y1 = (x0 + int(run) * across, y0) if kind == "h" else (x0, y0 - int(run) * down)
                canvas.line(x0, y0, x1, y1)
        canvas.setStrokeColor(colors.yellow)
        for diameter in picture.diameters:
            (x0, y0), (x1, y1) = diameter.ends_mm
            canvas.line(x0 * scale, height - y0 * scale, x1 * scale, height - y1 * scale)
        _labels(canvas, picture, width, height, scale)


def _labels(canvas: Canvas, picture: Picture, width: float, height: float, scale: float) -> None:
    view, bar = picture.view, picture.bar_mm
    canvas.setFillColor(colors.white)
    canvas.setStrokeColor(colors.white)
    canvas.setFont(BOLD, 8)
    canvas.drawString(2, height / 2, view.left)
    canvas.drawRightString(width - 2, height / 2, view.right)
    canvas.drawCentredString(width / 2, height - 9, view.top)
    canvas.drawCentredString(width / 2, 3, view.bottom)
    canvas.line(4, 5, 4 + bar * scale, 5)
    canvas.drawString(4, 8, f"{bar:g} mm")
