"""A night for its reviewer: what needs eyes comes first, nothing is asked for, nobody erased is left on the page."""

import base64
import io
import json
import re
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import RunNight, a_night, copy_home
from hypothesis import given
from hypothesis import strategies as st
from mlflow.tracking import MlflowClient
from PIL import Image
from test_night import LEFT, small_study
from test_outputs import HOSTILE, Page, affine_lps, bare, case_of, nothing_marked, volume
from test_privacy import keeping

from medrec import delivery, overview, privacy, verification
from medrec.config import load
from medrec.dicom import Pseudonyms
from medrec.dicom.identity import patient_of
from medrec.errors import WorldError
from medrec.home import Home
from medrec.outputs import sheet, thumbnail
from medrec.overview import Place
from medrec.phantom import Lesion, uid
from medrec.report import Case, Status, Verdict
from medrec.shown import SHEET
from medrec.store import Store
from medrec.tracking import Tracker, last_sheet
from medrec.worklist import NOT_REVIEWED, ORDER, Overdue, Reviews, Row, as_facts, ordered, row, table

SVG = "{http://www.w3.org/2000/svg}"
SMALL = Lesion((-28.0, -14.0, 12.0), (9.0, 8.0, 9.0))
BATCH = "20261122T010203Z-ab12"


# ---------------------------------------------------------------- rows and their order


def a_row(number: int = 1, kind: Verdict | Status = Verdict.FINDING, **changes: object) -> Row:
    plain = Row(f"case{number}", f"{number:08d}", kind, "", "", "", (), "toy 1", NOT_REVIEWED, f"{number:032x}")
    return replace(plain, **changes)  # type: ignore[arg-type]


rows = st.builds(
    a_row,
    st.integers(0, 10**8 - 1),
    st.sampled_from(ORDER),
    longest_mm=st.floats(0, 200),
    longest_px=st.floats(0, 900),
    probability=st.floats(0, 1),
    flags=st.lists(st.just("odd"), max_size=2).map(tuple),
)


@given(st.lists(rows, max_size=12, unique_by=lambda r: r.case), st.randoms())
def test_the_order_is_the_same_whatever_came_first_and_eyes_are_needed_less_and_less(found, random) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)
    now = ordered(shuffled)
    assert now == ordered(found)
    assert sorted(now, key=lambda r: r.case) == sorted(found, key=lambda r: r.case)
    assert [ORDER.index(r.kind) for r in now] == sorted(ORDER.index(r.kind) for r in now)
    sizes = [r.longest_mm for r in now if r.kind is Verdict.FINDING]
    assert sizes == sorted(sizes, reverse=True)


def test_every_verdict_and_every_result_has_its_place() -> None:
    assert {*ORDER} == {*Verdict, *Status} - {Status.ANALYSED, Status.ALREADY_DONE, Status.WAITING}
    assert [str(k) for k in ORDER] == ["inconclusive", "failed", "finding", "nothing marked", "refused"]


def line(case: Case) -> dict[str, object]:
    facts = case.report
    told = {"case": facts.case, "study": facts.study, "status": facts.status.value, "reason": facts.reason}
    return {**told, "verdict": facts.verdict.value if facts.verdict else None}


def of(case: Case) -> Row:
    return row(line(case), json.loads(json.dumps(case.report.facts())), NOT_REVIEWED, None)


def test_a_row_says_the_size_that_geometry_gives() -> None:
    found = of(case_of())  # 4 x 6 x 2 voxels of 1 x 1 x 5 mm: 240 mm3; from corner to corner of 4 x 6 mm
    assert found.size == f"{np.hypot(4, 6):.1f} × {np.hypot(4, 6) * 4 / 6:.1f} mm, 0.24 ml"
    assert (found.where, found.study, found.model) == ("on the left", "study-7f", "toy 1.0.0")
    nominal = of(Case(replace(case_of().report, geometry_nominal=True), None, {}, None, None))
    assert re.findall(r"m[ml] (\w+)", nominal.size) == ["nominal", "nominal"]


def test_refused_failed_and_cleared_away_say_why() -> None:
    refused = of(bare(Status.REFUSED))
    assert (refused.kind, refused.reason[:13], refused.size) == (Status.REFUSED, "missing slice", "")
    gone = row(line(case_of()), None, NOT_REVIEWED, None)
    assert (gone.kind, gone.flags) == (Verdict.FINDING, ("its report is not here any more",))


def test_the_worklist_is_read_back_by_mlflow_as_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    client = MlflowClient()
    experiment = client.create_experiment("e", str(tmp_path / "artifacts"))
    run = client.create_run(experiment).info.run_id
    found = (a_row(1, size="3.0 × 2.0 mm, 1.2 ml"), a_row(2, Status.REFUSED, reason="truncated", run_id=None))
    client.log_text(run, table(found), overview.WORKLIST)
    for key, value in overview.TABLES.items():
        client.set_tag(run, key, value)
    read = client.load_table(experiment, overview.WORKLIST, [run])
    assert list(read["study"].astype(str).str.zfill(8)) == [r.study for r in found]
    assert list(read["verdict"]) == ["finding", "refused"]
    assert list(read["to note"]) == ["", "truncated"]


# ---------------------------------------------------------------- thumbnails


def drawn(case: Case, folder: Path) -> ET.Element:
    thumbnail.write(case, folder)
    return ET.fromstring((folder / thumbnail.NAME).read_text())


def pixels(svg: ET.Element) -> np.ndarray:
    (image,) = svg.iter(f"{SVG}image")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image.attrib["href"].partition(",")[2]))))


def test_a_thumbnail_shows_the_lesion_on_the_side_where_a_radiologist_looks_for_it(tmp_path: Path) -> None:
    svg = drawn(case_of(), tmp_path)
    grey = pixels(svg).astype(float)  # 24 x 28 pixels; the box is i 16..20, j 8..14, brighter by 200
    assert grey.shape == (28, 24)
    column = (grey.mean(0) * np.arange(24)).sum() / grey.mean(0).sum()
    assert column > 12  # the patient's left is on the viewer's right
    assert [t.text for t in svg.iter(f"{SVG}text")] == ["R", "L"]
    scale = float(re.findall(r"[\d.]+", next(svg.iter(f"{SVG}g")).attrib["transform"])[0])
    path = next(svg.iter(f"{SVG}path")).attrib["d"]
    assert scale == pytest.approx(thumbnail.LONGEST_PX / 28, rel=1e-4)
    assert path == "M16 8h4M16 14h4M16 8v6M20 8v6"


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 5.0), (0.5, 1.5, 3.0), (2.0, 0.7, 1.0)])
def test_a_thumbnail_has_the_true_aspect_of_its_slice(spacing: tuple[float, ...], tmp_path: Path) -> None:
    found = drawn(case_of(affine=affine_lps(spacing)), tmp_path).attrib
    assert float(found["width"]) / float(found["height"]) == pytest.approx(
        24 * spacing[0] / (28 * spacing[1]), rel=1e-4
    )


def test_a_thumbnail_stays_small_whatever_the_study(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 4096, (512, 512, 4)).astype(np.float32)
    labels = np.broadcast_to((np.indices((512, 512)).sum(0) % 2)[:, :, None], voxels.shape).astype(np.int32)
    plain = case_of()
    noisy = Case(plain.report, plain.card, {"flair": volume(voxels, affine_lps((0.5, 0.5, 2.0)))}, None, labels)
    thumbnail.write(noisy, tmp_path)
    assert (tmp_path / thumbnail.NAME).stat().st_size < 60_000


def test_who_was_not_analysed_has_no_thumbnail(tmp_path: Path) -> None:
    thumbnail.write(bare(Status.REFUSED), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert drawn(nothing_marked(), tmp_path).findall(f".//{SVG}path") == []


# ---------------------------------------------------------------- the page


def some() -> tuple[Row, ...]:
    kinds = [*ORDER, Verdict.FINDING]
    return ordered(
        a_row(n, k, size="3.0 × 2.0 mm nominal", flags=("odd",) * n, reason="why") for n, k in enumerate(kinds)
    )


def test_the_sheet_is_well_formed_asks_for_nothing_and_follows_the_rule(tmp_path: Path) -> None:
    thumbnail.write(case_of(), tmp_path)
    picture = (tmp_path / thumbnail.NAME).read_bytes()
    found = some()
    text = sheet.page("night 2026-11-22 01:02", found, {r.case: picture for r in found}, 2, [Overdue("c", "s" * 9, 3)])
    page = Page(text)
    links = [a[n] or "" for _, a in page.elements for n in ("href", "src", "srcset", "action") if n in a]
    assert len(links) == len(found)
    assert all(link.startswith("data:image/svg+xml;base64,") for link in links)
    assert not page.all("script")
    assert not re.search(r"@import|url\(|https?:", text)
    assert page.all("meta")[1]["content"].startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    places = [page.text.index(r.study) for r in found]
    assert places == sorted(places)
    assert page.text.index("for 3 days") < places[0]
    assert "2 studies wait" in page.text
    assert "What needs eyes most comes first" in page.text
    assert not re.search("normal", page.text, re.IGNORECASE)
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert all(b - a <= 1 for a, b in pairwise(headings))  # none is skipped, for screen readers
    assert all(i.get("alt") for i in page.all("img"))


def test_hostile_text_stays_text_on_the_sheet_and_in_the_description() -> None:
    bad = a_row(1, Verdict.INCONCLUSIVE, reason=HOSTILE, flags=(HOSTILE,), model=HOSTILE, where=HOSTILE, review=HOSTILE)
    page = Page(sheet.page("night", [bad], {}))
    assert not page.all("script")
    assert not page.all("img")
    assert page.text.count("<script>alert(1)</script>") >= 4
    told = overview.description({**SUMMARY, "cases": [{}]}, [bad], Place("#/r", "x"))
    assert not re.search(r"(?<!\\)<", told)
    assert "](http" not in told.replace("\\", "")


def test_pictures_that_do_not_fit_are_left_out_at_the_end_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "PICTURES_BYTES", 3_000)
    found = ordered(a_row(n, longest_mm=float(n)) for n in range(1, 5))
    text = sheet.page("night", found, {r.case: b"<svg>" + b" " * 1000 + b"</svg>" for r in found})
    page = Page(text)
    assert [i["alt"][:14] for i in page.all("img")] == ["study 00000004", "study 00000003"]  # type: ignore[index]
    assert "2 pictures are left out" in page.text
    assert "00000001" in page.text


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("name", ["sheet.css", "report.css"])
def test_every_text_colour_has_the_contrast_of_wcag_aa(name: str) -> None:
    css = (Path(sheet.__file__).with_name(name)).read_text()
    css = re.sub(r"#([0-9a-f])([0-9a-f])([0-9a-f])\b(?![0-9a-f])", r"#\1\1\2\2\3\3", css)
    screen, _, paper = css.partition("@media print")
    for part in (screen.partition("/* The record */")[0], paper):
        value = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", part.partition("}")[0] + "".join(part.split(":root")[1:2])))
        accents = re.findall(r"--accent: (#[0-9a-f]{6})", part)
        for ground in (value["ground"], value["raised"]):
            for ink in (value["ink"], value["dim"], *accents):
                high, low = sorted((luminance(ink), luminance(ground)), reverse=True)
                assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


# ---------------------------------------------------------------- the description

SUMMARY: dict[str, object] = {"batch": BATCH, "files": {"seen": 1, "analysed": 1, "unused": 0, "refused": 0}}


@pytest.mark.parametrize("count", [0, 1, 30, 31, 1000])
def test_a_night_of_many_studies_is_described_within_what_mlflow_keeps(count: int) -> None:
    """MLflow cuts a tag after 8,000 characters; `audit verify` would call it changed."""
    found = [a_row(n, flags=("this flag is of the length that one usually has in a night",)) for n in range(count)]
    text = overview.description({**SUMMARY, "cases": [{}] * count}, found, Place("#/experiments/1/runs", "f" * 32))
    assert len(text) <= 8000
    assert text.count("| [0") + text.count("more") >= min(count, 1)
    assert "/artifacts/contact-sheet.html?workflowType=machine_learning)" in text
    assert text.endswith("*Research use; not a medical device.*")


# ---------------------------------------------------------------- in a home


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home after a night with two patients' pictures and a refused study."""
    place = tmp_path_factory.mktemp("sheet")
    small_study(place / "in" / "a", patient_id="one", study_uid=uid("sheet", "a"))
    small_study(place / "in" / "b", (SMALL, LEFT), patient_id="two", study_uid=uid("sheet", "b"))
    small_study(place / "in" / "c", patient_id="three", study_uid=uid("sheet", "c"), series_description="KNEE")
    a_night(place / "in", place / "home")
    return place


@pytest.fixture
def home(finished: Path, tmp_path: Path) -> Home:
    return copy_home(finished / "home", tmp_path / "home")


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    with Store.open(home.store_url) as store:
        yield store


def problems(home: Home, store: Store) -> list[str]:
    found = [*verification.verify(home, store), *verification.verify_mlflow(home, store, "medrec")]
    return [str(p) for p in found]


def night(home: Home) -> Path:
    """The artifacts of the only night."""
    (found,) = home.mlflow_artifacts.glob(f"runs/*/artifacts/{SHEET}")
    return found.parent


def shown(home: Home) -> list[str]:
    return [str(i["src"]) for i in Page((night(home) / SHEET).read_text()).all("img")]


def picture(home: Home, case: str) -> str:
    data = base64.b64encode((home.reports / case / thumbnail.NAME).read_bytes()).decode()
    return f"data:image/svg+xml;base64,{data}"


def case_of_patient(home: Home, store: Store, patient_id: str) -> tuple[str, str]:
    patient = patient_of(Pseudonyms.load(home.key), patient_id)
    (case,) = store.of_patient(patient)
    return patient, case


def test_a_night_leaves_sheet_and_worklist_and_both_are_on_record(home: Home, store: Store) -> None:
    one, two = (case_of_patient(home, store, who)[1] for who in ("one", "two"))
    assert {p.name for p in night(home).iterdir()} == {"batch.json", SHEET, overview.WORKLIST}
    assert sorted(shown(home)) == sorted(picture(home, case) for case in (one, two))
    record = [r for _, r in store.of_kinds("batch delivered")][-1]
    assert set(record.facts["files"]) == {SHEET, overview.WORKLIST}  # type: ignore[call-overload]
    rows = json.loads((night(home) / overview.WORKLIST).read_text())["data"]
    assert [r[2] for r in rows] == ["finding", "finding", "refused"]
    client = MlflowClient(f"sqlite:///{home.mlflow_database}")
    for number, *_, run in rows:
        assert client.get_run(run).data.tags["medrec.study"].startswith(rows[number - 1][1])
    for data in (p.read_text() for p in night(home).iterdir()):
        assert not re.search(r"\bone\b.*\btwo\b", data)
    assert problems(home, store) == []


def test_the_last_nights_sheet_is_found_without_looking_for_it(home: Home, store: Store) -> None:
    (batch,) = store.batches()
    found = last_sheet(home)
    assert found == f"/#/experiments/1/runs/{batch.mlflow_run_id}/artifacts/{SHEET}?workflowType=machine_learning"
    (night(home) / SHEET).unlink()
    assert last_sheet(home) is None


@pytest.mark.parametrize("name", [SHEET, overview.WORKLIST])
def test_a_changed_or_missing_page_of_a_night_is_noticed(name: str, home: Home, store: Store) -> None:
    path = night(home) / name
    path.write_text(path.read_text().replace("inding", "othing marked"))
    assert any(f"artifact {name} was changed" in p for p in problems(home, store))
    path.unlink()
    assert any(f"artifact {name} is gone" in p for p in problems(home, store))


def test_a_page_that_was_added_to_a_night_or_another_description_is_noticed(home: Home, store: Store) -> None:
    (night(home) / "contact-sheet-2.html").write_text("all clear")
    assert any("artifact contact-sheet-2.html was added" in p for p in problems(home, store))
    client = MlflowClient(f"sqlite:///{home.mlflow_database}")
    client.set_tag(night(home).parent.name, "mlflow.note.content", "all clear")
    assert any("its tag mlflow.note.content was changed" in p for p in problems(home, store))


def test_an_erased_patients_picture_leaves_the_sheet_and_the_others_stay(home: Home, store: Store) -> None:
    patient, case = case_of_patient(home, store, "one")
    _, other = case_of_patient(home, store, "two")
    gone, study = picture(home, case), store.case(case).study  # type: ignore[union-attr]
    jpeg = re.findall(r'base64,([^"]*)', base64.b64decode(gone.partition(",")[2]).decode())[0][-400:]
    assert gone in shown(home)
    before = [r.facts for _, r in store.of_kinds("batch delivered")][-1]
    old_digest = verification.sha256_of(night(home) / SHEET)
    assert privacy.erase(patient, home, store, load()).left == ()
    assert shown(home) == [picture(home, other)]
    assert problems(home, store) == []
    left = [p for p in home.root.rglob("*") if p.is_file()]
    for text in (gone, jpeg, study[:8], study, case):
        named = [p for p in left if text.encode() in p.read_bytes()]
        assert [p.name for p in named if not p.name.startswith("medrec.db")] == []
    # Nobody can tell by the older record whether a guess of the whole page is right: it was keyed with what is gone.
    assert old_digest not in json.dumps(before)
    assert {k for _, r in store.of_kinds("night rewritten") for k in r.facts} == {"batch", "summary", "why"}


def test_while_mlflow_is_away_verify_says_what_it_still_shows_and_the_next_time_takes_it_away(
    home: Home, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient, case = case_of_patient(home, store, "one")
    gone = picture(home, case)

    def away(*_: object, **__: object) -> None:
        raise WorldError("MLflow cannot be reached")

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "forget", away)
        assert privacy.erase(patient, home, store, load()).left != ()
    assert any("it shows what was erased or renamed since" in p for p in problems(home, store))
    assert privacy.erase(patient, home, store, load()).left == ()
    assert gone not in shown(home)
    assert problems(home, store) == []


def test_a_pruned_report_leaves_its_line_and_no_picture(home: Home, store: Store) -> None:
    _, held = case_of_patient(home, store, "two")
    privacy.hold(held, "court", store)
    privacy.prune(home, store, keeping(10), datetime.now(UTC) + timedelta(days=11))
    assert shown(home) == [picture(home, held)]
    assert "Its report is not here any more" in Page((night(home) / SHEET).read_text()).text
    assert problems(home, store) == []


def test_after_a_rotation_the_pages_say_the_new_names_only(home: Home, store: Store) -> None:
    before = {row.study for row in store.cases()}
    privacy.rotate(home, store, load())
    text = "".join(p.read_text() for p in night(home).iterdir())
    assert [s for s in before if s[:8] in text] == []
    assert all(row.study[:8] in text for row in store.cases())
    assert len(shown(home)) == 2
    assert problems(home, store) == []


def test_reviews_and_overdue_ones_are_shown_where_they_are_known(home: Home, store: Store) -> None:
    _, case = case_of_patient(home, store, "one")
    (batch,) = store.batches()
    late = Overdue("c" * 64, "deadbeefdeadbeef", 9)
    summary = {**json.loads(str(batch.summary)), "overdue": as_facts([late])}
    found = overview.of_night(summary, home, store, Place("#/r", "x"), Reviews({case: "accepted by Dr A"}))
    page = Page(found.files[SHEET]).text
    assert page.count("accepted by Dr A") == 1
    assert page.count(NOT_REVIEWED) == 1
    assert page.index("deadbeef") < page.index("accepted by")
    assert "for 9 days" in page
    assert "**1 overdue** from earlier nights: deadbeef (9 d)" in found.description
    assert delivery.outcome(summary) == "2 finding, 1 refused"


def test_an_erased_patients_overdue_review_leaves_other_nights(home: Home, store: Store) -> None:
    patient, case = case_of_patient(home, store, "one")
    study = store.case(case).study  # type: ignore[union-attr]
    later = "20990101T000000Z-aaaa"
    store.start_batch(later, "2099-01-01T00:00:00Z")
    told = {**SUMMARY, "batch": later, "cases": [], "refusals": [], "salt": "5a17"}
    text = json.dumps({**told, "overdue": as_facts([Overdue(case, study, 4)])}, indent=1)
    store.finish_batch(later, "2099-01-01T01:00:00Z", text)
    privacy.write_summary(home, later, text)
    delivery.deliver_batches(store, Tracker(home, "medrec"), home)
    pages = list(home.mlflow_artifacts.glob(f"runs/*/artifacts/{SHEET}"))
    assert sum(study[:8] in p.read_text() for p in pages) == 2
    assert problems(home, store) == []
    assert privacy.erase(patient, home, store, load()).left == ()
    assert sum(study[:8] in p.read_text() for p in pages) == 0
    assert problems(home, store) == []


def test_a_study_that_was_done_before_is_not_shown_again(
    finished: Path, home: Home, store: Store, run_night: RunNight
) -> None:
    again = run_night(finished / "in")  # in the same home
    run = next(b.mlflow_run_id for b in store.batches() if b.batch == again.batch)
    (folder,) = home.mlflow_artifacts.glob(f"runs/{run}/artifacts")
    text = (folder / SHEET).read_text()
    assert "No study was new in this night" in text
    assert "<img" not in text
    assert problems(home, store) == []


def test_a_run_that_mlflow_got_later_is_named_on_the_page_of_its_night(
    home: Home, store: Store, run_night: RunNight, finished: Path
) -> None:
    _, case = case_of_patient(home, store, "two")
    client = MlflowClient(f"sqlite:///{home.mlflow_database}")
    old = store.case(case).mlflow_run_id  # type: ignore[union-attr]
    client.delete_run(str(old))
    store.requeue("mlflow", "2026-03-01T02:00:00Z")
    tracker = Tracker(home, "medrec")
    assert delivery.deliver_cases(store, tracker)
    delivery.deliver_batches(store, tracker, home)
    new = store.case(case).mlflow_run_id  # type: ignore[union-attr]
    assert new != old
    text = (night(home) / SHEET).read_text()
    assert str(new) in text
    assert str(old) not in text


def test_a_sheet_costs_at_most_ten_milliseconds_a_study(home: Home, store: Store) -> None:
    _, case = case_of_patient(home, store, "one")
    (batch,) = store.batches()
    told = json.loads(str(batch.summary))
    one = next(c for c in told["cases"] if c["case"] == case)
    many = {**told, "cases": [one] * 200}
    overview.of_night(told, home, store, Place("#/r", "x"))
    begun = time.process_time()
    found = overview.of_night(many, home, store, Place("#/r", "x"))
    assert (time.process_time() - begun) / 200 < 0.010
    assert found.files[SHEET].count("<img") == 200


def test_a_night_of_a_thousand_studies_stays_far_below_what_mlflow_previews(home: Home) -> None:
    size = max(path.stat().st_size for path in home.reports.glob(f"*/{thumbnail.NAME}"))
    big = b"x" * max(size, 45_000)
    found = [a_row(n, flags=("f" * 200,) * 4, reason="r" * 200) for n in range(1000)]
    text = sheet.page("night", found, {r.case: big for r in found})
    assert len(text.encode()) < 40 * 2**20
