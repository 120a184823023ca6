"""Outputs: what is written of a case can be read back, is the same each time, and shows the patient the right way."""

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medrec.errors import DataError
from medrec.findings import Rules, label, measure
from medrec.outputs import OUTPUTS, as_json, html, nifti
from medrec.outputs.scene import scene
from medrec.outputs.views import Window, cut, grey, letters, outline, scale_bar_mm, window
from medrec.prediction import (
    Decision,
    Envelope,
    Familiarity,
    InputRule,
    Measured,
    ModelCard,
    Network,
    Prediction,
    Preprocessing,
    Training,
)
from medrec.report import DISCLAIMER, Case, Report, SeriesUse, Status, Verdict, decide, verdict_text
from medrec.uncertainty import Held, Uncertainty
from medrec.volume import LPS_TO_RAS, Volume, to_world

DIGEST = "0123456789abcdef" * 4
SPACING_MM = (1.0, 1.0, 5.0)
SHAPE = (24, 28, 6)
SIGNED_PERMUTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


# ---------------------------------------------------------------- cases


def card(**changes: object) -> ModelCard:
    plain = ModelCard(
        name="toy",
        version="1.0.0",
        title="Toy model",
        finding="bright region",
        intended_use="Tests.",
        limits=("Knows phantoms only.",),
        mimics=("anything bright",),
        data="Phantoms.",
        licence="CC0",
        inputs={
            "flair": InputRule(required=True, match={"SeriesDescription": "flair"}),
            "t1": InputRule(match={"SeriesDescription": "t1"}),
        },
        grid="flair",
        envelope=Envelope(max_tilt_from_axial_deg=30, min_coverage_mm=10, slice_distance_mm=(1, 8)),
        preprocessing=Preprocessing(size_px=32),
        segmentation=Network(kind="toy", weights="toy.safetensors", sha256=DIGEST),
        decision=Decision(minimum_volume_mm3=20),
        training=Training(segmentation_steps=1, classification_steps=1),
        measured=(Measured(what="Dice", value=0.871, low=0.8, high=0.9, on="phantoms"),),
        trained_on=(DIGEST,),
    )
    return plain.model_copy(update=changes)


def volume(voxels: np.ndarray, affine: np.ndarray, name: str = "flair") -> Volume:
    return Volume(np.ascontiguousarray(voxels, np.float32), affine, "", name, DIGEST)


def affine_lps(spacing_mm: tuple[float, ...] = SPACING_MM) -> np.ndarray:
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = (-12.0, -14.0, -15.0)
    return affine


def box(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A lesion of 4 x 6 x 2 voxels in the upper i half, which is the patient's left when i runs to the left."""
    mask = np.zeros(shape, bool)
    mask[16:20, 8:14, 2:4] = True
    return mask


def case_of(
    mask: np.ndarray | None = None,
    affine: np.ndarray | None = None,
    others: tuple[str, ...] = (),
    slice_probability: np.ndarray | None = None,
    outside: tuple[str, ...] = (),
) -> Case:
    """An analysed case around a mask (i, j, k), the box by default."""
    mask = box() if mask is None else mask
    affine = affine_lps() if affine is None else affine
    rng = np.random.default_rng(1)
    volumes = {
        name: volume(100 * (n + 1) + 10 * rng.random(mask.shape) + 200 * mask, affine, name)
        for n, name in enumerate(("flair", *others))
    }
    model, probability = card(), mask.astype(np.float32) * np.float32(0.9)
    if slice_probability is None:
        slice_probability = np.where(mask.any((0, 1)), 0.9, 0.1).astype(np.float32)
    labels = label(mask, affine, Rules(model.decision.minimum_volume_mm3))
    findings = measure(labels, probability, affine, 0.0)
    verdict, flags = decide(findings, slice_probability, outside, model.decision)
    report = Report(
        case="case-1",
        study="study-7f3a",
        patient="patient-19b0",
        batch="night-1",
        created="2025-11-22T03:14:07+00:00",
        status=Status.ANALYSED,
        reason="",
        verdict=verdict,
        verdict_text=verdict_text(verdict, findings, model, False),
        flags=flags,
        findings=findings,
        slice_probability=tuple(float(p) for p in slice_probability),
        spacing_mm=tuple(float(mm) for mm in volumes["flair"].spacing_mm),
        shape=mask.shape,
        geometry_nominal=False,
        lossy=False,
        series=(
            SeriesUse(2, "MR", ("flair",), mask.shape[2], "flair", "used"),
            SeriesUse(3, "MR", (), 4, None, "missing slice: 5.40 mm between slices 2 and 3"),
        ),
        inputs=tuple(volumes),
        refused_inputs={},
        pixels_sha256=dict.fromkeys(volumes, DIGEST),
        model_name=model.name,
        model_version=model.version,
        card_sha256=model.digest,
        weights_sha256={"segmentation": DIGEST},
        licence=model.licence,
        config_sha256=DIGEST,
        code_version="0.1.0",
        device="cpu",
    )
    prediction = Prediction(probability, mask, slice_probability)
    return Case(report, model, volumes, prediction, labels)


def nothing_marked() -> Case:
    quiet = np.array([0.1, 0.1, 0.1, 0.1, 0.3, 0.1], np.float32)
    return case_of(np.zeros(SHAPE, bool), slice_probability=quiet)


def inconclusive() -> Case:
    return case_of(outside=("slices lie 9.0 mm apart, the card allows 8.0 mm",))


def disagreeing() -> Case:
    return case_of(np.zeros(SHAPE, bool), slice_probability=np.full(6, 0.99, np.float32))


def with_facts(case: Case, /, **facts: object) -> Case:
    return Case(
        replace(case.report, **facts),  # type: ignore[arg-type]
        case.card,
        case.volumes,
        case.prediction,
        case.labels,
    )


def bare(status: Status) -> Case:
    report = replace(
        case_of().report,
        status=status,
        verdict=None,
        verdict_text="",
        reason="missing slice: 5.40 mm between slices 2 and 3",
        flags=(),
        findings=(),
        slice_probability=(),
        spacing_mm=(),
        shape=(),
        inputs=(),
        refused_inputs={},
        pixels_sha256={},
        weights_sha256={},
        model_name="",
        model_version="",
        card_sha256="",
        licence="",
    )
    return Case(report, None, {}, None, None)


CASES: dict[str, Callable[[], Case]] = {
    "finding": case_of,
    "several inputs": lambda: case_of(others=("t1",)),
    "nothing marked": nothing_marked,
    "inconclusive": inconclusive,
    "networks disagree": disagreeing,
    "no classifier": lambda: with_facts(case_of(), slice_probability=()),
    "refused": lambda: bare(Status.REFUSED),
    "failed": lambda: bare(Status.FAILED),
}


# ---------------------------------------------------------------- reading a page


class Page(HTMLParser):
    """Reads a page strictly: every element closes where it must; keeps elements, visible text and the title."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.seen: list[str] = []
        self.title = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"an attribute is given twice in {tag}"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"{tag} closes what was never opened"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "title":
            self.title += data
        elif "style" not in self.open:
            self.seen.append(data)

    @property
    def text(self) -> str:
        """What a reader sees, with single spaces."""
        return re.sub(r"\s+", " ", "".join(self.seen))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every element of this name."""
        return [attrs for name, attrs in self.elements if name == tag]


def page_of(case: Case) -> Page:
    return Page(html.render(case))


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


@pytest.fixture(params=["finding", "several inputs", "nothing marked", "inconclusive", "networks disagree"])
def analysed(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


# ---------------------------------------------------------------- the patient the right way round


def stored(
    voxels: np.ndarray, affine: np.ndarray, order: tuple[int, ...], signs: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The same patient on a grid whose axes are permuted and reversed."""
    turned, mapping = np.transpose(voxels, order), np.zeros((4, 4))
    mapping[3, 3] = 1
    for new, old in enumerate(order):
        mapping[old, new] = signs[new]
        if signs[new] < 0:
            turned = np.flip(turned, new)
            mapping[old, 3] = voxels.shape[old] - 1
    return turned, affine @ mapping


@pytest.mark.parametrize(("order", "signs"), SIGNED_PERMUTATIONS)
def test_letters_and_pixels_do_not_depend_on_how_the_patient_is_stored(
    order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    patient = np.arange(4 * 5 * 6).reshape(4, 5, 6)  # along L, P and S
    turned, affine = stored(patient, affine_lps((1.0, 2.0, 3.0)), order, signs)
    # Each plane cuts the patient's second voxel along its axis, wherever that one is stored.
    views = {}
    for axis in range(3):
        index = 1 if signs[axis] > 0 else turned.shape[axis] - 2
        view = cut(affine, turned.shape, axis, index)
        views[view.plane] = view
    edges = {plane: (v.left, v.right, v.top, v.bottom) for plane, v in views.items()}
    assert edges == {
        "axial": ("R", "L", "A", "P"),
        "coronal": ("R", "L", "H", "F"),
        "sagittal": ("A", "P", "H", "F"),
    }
    assert (views["axial"].pixels(turned) == patient[:, :, 1].T).all()
    assert (views["coronal"].pixels(turned) == patient[:, 1, ::-1].T).all()
    assert (views["sagittal"].pixels(turned) == patient[1, :, ::-1].T).all()


def tilted(degrees: float) -> np.ndarray:
    """An axial stack turned about the left-right axis, so that its rows lead posterior and towards the head."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    affine = np.eye(4)
    affine[:3, 1], affine[:3, 2] = (0, c, s), (0, -s, c)
    return affine


def test_an_oblique_stack_gets_two_letters_where_it_leans() -> None:
    view = cut(tilted(30), (8, 8, 8), 2, 0)
    assert (view.plane, view.left, view.right, view.top, view.bottom) == ("axial", "R", "L", "AF", "PH")


def test_a_slight_tilt_keeps_single_letters() -> None:
    view = cut(tilted(10), (8, 8, 8), 2, 0)
    assert (view.top, view.bottom) == ("A", "P")


def test_a_direction_is_named_by_its_largest_part_first() -> None:
    assert letters(np.array([0.6, -0.8, 0.0])) == "AL"


def columns_of_lesion(case: Case) -> np.ndarray:
    shown = scene(case, html.DETAILS[0])
    assert shown is not None
    assert case.labels is not None
    return np.nonzero(shown.plain.view.pixels(case.labels))[1]


def test_a_lesion_on_the_patients_left_is_on_the_viewers_right() -> None:
    case = case_of()
    assert case.report.findings[0].side == "left"
    assert columns_of_lesion(case).min() > SHAPE[0] / 2


def test_a_mirrored_patient_shows_the_lesion_on_the_opposite_half() -> None:
    case = case_of(box()[::-1])
    assert case.report.findings[0].side == "right"
    assert columns_of_lesion(case).max() < SHAPE[0] / 2


def test_a_mirrored_storage_of_the_same_patient_changes_nothing() -> None:
    mask, affine = stored(box(), affine_lps(), (0, 1, 2), (-1, 1, 1))
    assert columns_of_lesion(case_of(mask, affine)).min() > SHAPE[0] / 2


# ---------------------------------------------------------------- true size


def test_a_coronal_view_of_thick_slices_has_its_true_aspect() -> None:
    view = cut(affine_lps(), SHAPE, 1, 0)
    assert view.plane == "coronal"
    assert view.shape_px == (6, 24)
    assert (view.width_mm, view.height_mm) == (24.0, 30.0)
    assert "0 0 24 30" in [svg.get("viewbox") for svg in page_of(case_of()).all("svg")]


@pytest.mark.parametrize("spacing_mm", [(0.5, 0.5, 5.0), (1.5, 0.7, 3.0)])
def test_a_scale_bar_spans_as_many_pixels_as_its_length_holds(spacing_mm: tuple[float, ...]) -> None:
    page = page_of(case_of(affine=affine_lps(spacing_mm)))
    key, bar = page.all("image")[0], next(p for p in page.all("path") if p.get("class") == "bar")
    length = float(re.fullmatch(r"M\S+ \S+h(\S+)", bar["d"] or "")[1])  # type: ignore[index]
    share = length / float(key["width"] or "")
    assert share * SHAPE[0] * spacing_mm[0] == pytest.approx(float(bar["data-mm"] or ""))


@pytest.mark.parametrize(("width_mm", "bar_mm"), [(240, 50), (300, 100), (24, 5), (0.1, 0.1)])
def test_a_scale_bar_is_round_and_takes_about_a_third(width_mm: float, bar_mm: float) -> None:
    assert scale_bar_mm(width_mm) == bar_mm


def test_every_view_has_letters_and_a_scale_bar(analysed: Case) -> None:
    page = page_of(analysed)
    frames = sum("frame" in (d.get("class") or "") for d in page.all("div"))
    for mark in ("edge top", "edge right", "edge bottom", "edge left", "length"):
        assert sum(s.get("class") == mark for s in page.all("span")) == frames


def test_drawn_diameters_are_as_long_as_the_finding_says() -> None:
    case = case_of(affine=affine_lps((0.8, 1.3, 5.0)))
    shown = scene(case, html.DETAILS[0])
    assert shown is not None
    assert shown.marked is not None
    drawn = {d.kind: math.dist(*d.ends_mm) for d in shown.marked.diameters}
    finding = case.report.findings[0]
    assert drawn["longest"] == pytest.approx(finding.longest_axial_mm)
    assert drawn["perpendicular"] == pytest.approx(finding.perpendicular_mm)


# ---------------------------------------------------------------- outlines and grey levels


def strokes(path: str) -> Iterator[tuple[int, int, str, int]]:
    for x, y, way, length in re.findall(r"M(\d+) (\d+)([hv])(\d+)", path):
        yield int(x), int(y), way, int(length)


def test_one_pixel_is_outlined_along_its_own_edges() -> None:
    mask = np.zeros((3, 4), bool)
    mask[1, 2] = True
    assert sorted(strokes(outline(mask, 1000).path)) == [
        (2, 1, "h", 1),
        (2, 1, "v", 1),
        (2, 2, "h", 1),
        (3, 1, "v", 1),
    ]


def test_a_lesion_at_the_border_is_closed() -> None:
    edge = outline(np.ones((3, 4), bool), 1000)
    assert sum(length for *_, length in strokes(edge.path)) == 2 * (3 + 4)


def test_an_outline_that_is_too_long_gets_coarser_and_still_covers_the_mask() -> None:
    chessboard = np.indices((16, 16)).sum(0) % 2 == 0
    edge = outline(chessboard, 100)
    assert edge.step_px == 2
    assert sum(length for *_, length in strokes(edge.path)) == 4 * 8


def test_the_window_does_not_count_blanked_background() -> None:
    voxels = np.zeros((10, 10, 10), np.float32)
    voxels.ravel()[:201] = np.arange(100, 301)
    shown = window(voxels)
    assert (shown.lower, shown.upper) == pytest.approx((102, 299))


def test_an_empty_volume_has_a_window_too() -> None:
    assert window(np.zeros((2, 2, 2), np.float32)).width > 0


def test_grey_levels_end_at_the_window_and_nan_is_black() -> None:
    pixels = np.array([[-5, 0, 50, 100, 900, np.nan]], np.float32)
    assert grey(pixels, Window(0, 100)).tolist() == [[0, 0, 128, 255, 255, 0]]


def test_each_input_states_its_own_window() -> None:
    text = page_of(case_of(others=("t1",))).text
    assert re.search(r"flair: window 100 to 30\d ", text)
    assert re.search(r"t1, same slice ?window 200 to 40\d ", text)


# ---------------------------------------------------------------- NIfTI


def test_the_mask_round_trips_to_the_same_centroid(tmp_path: Path) -> None:
    affine = tilted(20) @ affine_lps((0.9, 1.1, 4.0))
    case = case_of(affine=affine)
    nifti.write(case, tmp_path)
    image = nibabel.load(tmp_path / nifti.NAME)
    mask = np.asarray(image.dataobj)
    centroid = (LPS_TO_RAS @ np.array([*to_world(image.affine, np.argwhere(mask)).mean(0), 1]))[:3]
    assert centroid == pytest.approx(case.report.findings[0].centroid_lps_mm, abs=1e-4)
    assert mask.dtype == np.uint8
    assert (mask == (case.labels > 0)).all()


def test_both_nifti_transforms_agree_and_are_scanner_millimetres(tmp_path: Path) -> None:
    affine = tilted(20) @ affine_lps((0.9, 1.1, 4.0))
    nifti.write(case_of(affine=affine), tmp_path)
    header = nibabel.load(tmp_path / nifti.NAME).header
    (sform, scode), (qform, qcode) = header.get_sform(coded=True), header.get_qform(coded=True)
    assert (scode, qcode, header.get_xyzt_units()[0]) == (1, 1, "mm")
    assert np.allclose(sform, LPS_TO_RAS @ affine, atol=1e-5)
    assert np.allclose(sform, qform, atol=1e-4)


def test_a_study_without_labels_gets_no_mask(tmp_path: Path) -> None:
    nifti.write(bare(Status.REFUSED), tmp_path)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- JSON


def test_the_facts_round_trip_through_json(case: Case, tmp_path: Path) -> None:
    as_json.write(case, tmp_path)
    text = (tmp_path / as_json.NAME).read_text("utf-8")
    facts = json.loads(text)
    assert facts == json.loads(json.dumps(case.report.facts()))
    assert list(facts) == sorted(facts)
    assert text.endswith("}\n")


def test_nan_is_an_error_in_json(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="finite"):
        as_json.write(with_facts(case_of(), slice_probability=(math.nan,)), tmp_path)


# ---------------------------------------------------------------- every writer


@pytest.mark.parametrize("name", list(OUTPUTS))
def test_a_writer_writes_exactly_the_file_of_its_name(name: str, tmp_path: Path) -> None:
    OUTPUTS[name](case_of(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", list(OUTPUTS))
def test_the_same_case_gives_the_same_bytes_at_another_time(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    for now in (1e9, 2e9):
        monkeypatch.setattr("time.time", lambda now=now: now)
        OUTPUTS[name](case_of(), tmp_path)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]


# ---------------------------------------------------------------- the page


def test_a_page_is_well_formed_and_needs_nothing_else(case: Case) -> None:
    text = html.render(case)
    page = Page(text)
    links = [a[n] or "" for _, a in page.elements for n in ("href", "src", "srcset", "action") if n in a]
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert not page.all("script")
    assert not re.search(r"@import|url\(|https?:", text)
    policy = [m["content"] or "" for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert len(policy) == 1
    assert policy[0].startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")


def test_a_page_references_only_what_it_holds(case: Case) -> None:
    page = page_of(case)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {(u["href"] or "")[1:] for u in page.all("use")} <= set(ids)


def test_the_title_names_the_study_and_its_verdict(case: Case) -> None:
    page = page_of(case)
    said = case.report.verdict or case.report.status
    assert case.report.study in page.title
    assert said.value in page.title.lower()


def test_the_disclaimer_stands_at_top_and_bottom(case: Case) -> None:
    text = page_of(case).text.strip()
    assert text.index(DISCLAIMER) < 200
    assert text.endswith(DISCLAIMER)


def test_no_page_ever_says_normal(case: Case) -> None:
    assert not re.search(r"normal", page_of(case).text, re.IGNORECASE)


def test_nothing_marked_never_sounds_like_an_all_clear() -> None:
    text = page_of(nothing_marked()).text.lower()
    assert "does not exclude tumour" in text
    assert not re.search(r"\bno tumour\b(?!-free)|\bnegative\b|\bclear\b", text)


def test_nothing_marked_shows_the_slice_with_the_highest_probability() -> None:
    shown = scene(nothing_marked(), html.DETAILS[0])
    assert shown is not None
    assert (shown.key_slice, shown.marked) == (4, None)
    assert "slice 5 of 6, the slice with the highest slice probability" in page_of(nothing_marked()).text


def test_without_a_classifier_nothing_marked_shows_the_middle_slice() -> None:
    case = with_facts(nothing_marked(), slice_probability=())
    assert "slice 4 of 6, the middle slice" in page_of(case).text


def test_the_key_image_is_the_slice_where_the_largest_lesion_is_longest() -> None:
    mask = box()
    mask[14:22, 8:14, 3] = True
    text = page_of(case_of(mask)).text
    assert "slice 4 of 6" in text


def test_the_table_counts_slices_from_one_and_rounds() -> None:
    text = page_of(case_of()).text
    # 4 x 6 x 2 voxels of 1 x 1 x 5 mm are 240 mm3. The diagonal of 4 x 6 mm is 7.21 mm, the chord at right
    # angles to it 4 * 7.21 / 6 = 4.81 mm, and the diagonal of 4 x 6 x 10 mm 12.33 mm.
    assert re.search(r"1 ?0\.24 ml ?7\.2 mm × 4\.8 mm ?12\.3 mm ?left ?3–4", text)
    assert "5.5, −3.5, −2.5 mm" in text


@pytest.mark.parametrize("name", ["finding", "several inputs", "nothing marked", "inconclusive"])
def test_nominal_stands_beside_every_physical_number(name: str) -> None:
    text = page_of(with_facts(CASES[name](), geometry_nominal=True)).text
    numbers = re.findall(r"\d ?(?:mm|ml)\b.{0,10}", text)
    assert len(numbers) > 10
    assert [n for n in numbers if not re.search(r"(mm|ml) \(?nominal", n)] == []


def test_a_sentence_that_says_nominal_itself_does_not_say_it_twice() -> None:
    text = "One bright region of 0.2 ml (nominal) on the left."
    assert text in page_of(with_facts(case_of(), geometry_nominal=True, verdict_text=text)).text


def test_a_true_geometry_is_not_called_nominal() -> None:
    assert "nominal" not in page_of(case_of()).text


@pytest.mark.parametrize("status", [Status.REFUSED, Status.FAILED])
def test_a_study_without_analysis_says_so_and_why(status: Status) -> None:
    page = page_of(bare(status))
    assert "This study was NOT analysed." in page.text
    assert "missing slice: 5.40 mm between slices 2 and 3" in page.text
    assert status.value.capitalize() in page.text
    assert [b["class"] for b in page.all("body")] == [status.value]
    assert not page.all("image")


def test_a_refused_study_with_a_card_and_images_renders_unmarked() -> None:
    case = case_of()
    report = replace(bare(Status.REFUSED).report, series=())
    page = page_of(Case(report, case.card, case.volumes, None, None))
    assert page.all("image")
    assert not [p for p in page.all("path") if p.get("class") == "outline"]


def test_every_fact_of_the_record_is_on_the_page() -> None:
    case = case_of()
    text, report = page_of(case).text, case.report
    for name in (
        "case",
        "study",
        "patient",
        "batch",
        "created",
        "card_sha256",
        "config_sha256",
        "code_version",
    ):
        assert getattr(report, name) in text
    for fact in ("toy 1.0.0", "pseudonymised", "CC0", "0.80 to 0.90", DIGEST):
        assert fact in text
    assert case.card is not None
    for fact in (case.card.intended_use, *case.card.limits, *case.card.mimics, case.card.data):
        assert fact in text


def test_lossy_input_is_stated() -> None:
    assert "Lossy input:" in page_of(with_facts(case_of(), lossy=True)).text
    assert "Lossy input:" not in page_of(case_of()).text


HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>\"' onload='x' {{ 7*7 }}"


def hostile_case() -> Case:
    case = case_of(others=("t1",))
    names = ["case", "study", "patient", "batch", "created", "reason", "verdict_text", "model_name"]
    names += ["licence", "device", "code_version", "config_sha256"]
    facts: dict[str, object] = dict.fromkeys(names, HOSTILE)
    facts |= {"flags": (HOSTILE,), "pixels_sha256": {HOSTILE: HOSTILE}, "weights_sha256": {HOSTILE: HOSTILE}}
    facts |= {"series": (SeriesUse(1, HOSTILE, (HOSTILE,), 1, HOSTILE, HOSTILE),)}
    facts |= {"findings": tuple(replace(f, side=HOSTILE) for f in case.report.findings)}
    mean = dict.fromkeys(("title", "finding", "intended_use", "data", "licence"), HOSTILE)
    bad = card(**mean, limits=(HOSTILE,), mimics=(HOSTILE,))
    case = with_facts(case, **facts)
    return Case(case.report, bad, case.volumes, case.prediction, case.labels)


def test_hostile_text_is_inert() -> None:
    page = page_of(hostile_case())
    assert not page.all("script")
    assert not page.all("img")
    assert not [n for _, attrs in page.elements for n in attrs if n.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") > 20
    assert "49" not in re.findall(r"onload='x' (\S+)", page.text)


@pytest.mark.slow
def test_a_large_noisy_study_stays_within_five_megabytes() -> None:
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 4096, (512, 512, 88)).astype(np.float32)
    labels = np.broadcast_to((np.indices((512, 512)).sum(0) % 2)[:, :, None], voxels.shape).astype(np.int32)
    small = case_of()
    report = replace(small.report, slice_probability=(0.5,) * 88, shape=voxels.shape)
    grid = volume(voxels, affine_lps((0.5, 0.5, 2.0)))
    text = html.render(Case(report, small.card, {"flair": grid}, None, labels))
    assert len(text.encode()) <= 5_000_000
    assert len([d for d in Page(text).all("div") if d.get("class") == "frame small"]) == 88


def test_too_many_lesions_are_cut_off_with_a_word() -> None:
    case = case_of()
    many = tuple(replace(case.report.findings[0], number=n) for n in range(1, 700))
    assert "199 smaller lesions are listed in report.json only" in page_of(with_facts(case, findings=many)).text


def test_a_verdict_is_told_by_more_than_its_colour() -> None:
    pages = [page_of(make()) for make in (case_of, nothing_marked, inconclusive)]
    words = {
        Verdict.FINDING: "Finding",
        Verdict.NOTHING_MARKED: "Nothing marked",
        Verdict.INCONCLUSIVE: "Inconclusive",
    }
    for page, word in zip(pages, words.values(), strict=True):
        assert f" {word} " in page.text
    glyphs = [[e for e in p.elements if e[0] in {"circle", "rect", "path"}][:2] for p in pages]
    assert glyphs[0] != glyphs[1] != glyphs[2]


def test_a_model_without_measured_numbers_says_so() -> None:
    case = case_of()
    unmeasured = Case(case.report, card(measured=()), case.volumes, case.prediction, case.labels)
    assert "No measured numbers are recorded" in page_of(unmeasured).text
    assert "No measured numbers are recorded" not in page_of(case).text


def test_an_interval_stands_behind_the_volume_and_says_in_its_place_what_it_is_worth() -> None:
    held = Held(patients=85, share=0.929, low=0.853, high=0.974, on="patients of folds")
    unsure = Uncertainty(low=0.67, high=1.42, held=held, by_size=(("below 79 ml marked", held),))
    known = Familiarity(
        weights="f.safetensors", sha256=DIGEST, limit=1.2, alarms=held, risk_coverage=((1.0, 0.83), (0.5, 0.87))
    )
    case = case_of()
    told = replace(case.report, volume_interval_ml=(35.2, 61.8), strangeness=0.46)
    page = page_of(Case(told, card(uncertainty=unsure, familiarity=known), case.volumes, case.prediction, case.labels))
    volume_ml = sum(f.volume_mm3 for f in case.report.findings) / 1000
    assert re.search(rf"Volume ?{volume_ml:.2f}\s+ml \[35 to 62\]", page.text)
    assert "92.9% [85.3% to 97.4%] of 85 patients of folds" in page.text
    assert "lies at 0.46 of the distance that the card allows" in page.text
    assert "0.83" in page.text
    plain = page_of(case).text
    assert "Interval of a volume" not in plain
    assert "Studies unlike its own" not in plain


def test_the_verdict_names_the_interval_after_the_volume_and_only_there() -> None:
    model = card(uncertainty=Uncertainty(low=0.5, high=2, held=Held(patients=20, share=1, low=0.8, high=1, on="x")))
    found = case_of().report.findings
    said = verdict_text(Verdict.FINDING, found, model, True, interval_ml=(3.21, 8.0))
    assert "ml (nominal) [90% interval 3.2 to 8.0]" in said
    assert said.count("interval") == 1
    assert "interval" not in verdict_text(Verdict.FINDING, found, model, True)
    assert "interval" not in verdict_text(Verdict.NOTHING_MARKED, (), model, True, interval_ml=(0.0, 1.0))


@pytest.mark.parametrize("axis", range(3))
def test_a_plane_is_the_same_however_its_volume_lies_in_memory(axis: int) -> None:
    voxels = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    view = cut(np.diag([-1.0, 1.0, 2.0, 1.0]), voxels.shape, axis, 2)
    shown = view.pixels(voxels)
    assert sorted(shown.ravel()) == sorted(np.take(voxels, 2, axis).ravel())
    assert np.array_equal(shown, view.pixels(np.asfortranarray(voxels)))
