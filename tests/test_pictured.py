"""A night over single images: masks of the file's size in the right place, pixels unless calibrated, all on record."""

import base64
import hashlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import a_night, copy_home
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from test_pictures import card, disc
from test_stills import image

from medrec import bundle, burned, config, privacy, verification
from medrec.accounts import Summary
from medrec.config import Configuration
from medrec.dicom import Pseudonyms
from medrec.dicom.identity import patient_of
from medrec.home import Home
from medrec.learning import pictures
from medrec.phantom import uid
from medrec.pictured import facts_of
from medrec.pictures import PictureCard, PicturePrediction, Region, scale_at
from medrec.replay import replay
from medrec.routing import RoutedPictures, rules_of, select_pictures
from medrec.series import Reason, ScanFile, Skipped, group
from medrec.statistics import dice
from medrec.store import Store

TOY = {"Modality": "^US$", "BodyPartExamined": "^TOY$"}
MM = (0.5, 0.25)  # between rows, between columns


def toy() -> PictureCard:
    network = {"kind": "unet", "settings": {"channels": [8, 16], "res_units": 1}, "sha256": "0" * 64}
    classifier = {"kind": "densenet", "settings": {"blocks": [2], "growth": 4, "first": 4, "dropout": 0.0}}
    return card(
        input={"match": TOY},
        segmentation=network | {"weights": "toy_outline.safetensors"},
        classification=network | classifier | {"weights": "toy_class.safetensors"},
        training={"segmentation_steps": 120, "classification_steps": 10, "batch": 8, "learning_rate": 0.01},
    )


def speckled(lesion: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 30, lesion.shape)
    return np.asarray(np.where(lesion, 190, 50) + noise, np.uint16)


def region(box: tuple[int, int, int, int], unit: int = 3) -> Sequence:
    item = Dataset()
    item.RegionSpatialFormat = 1
    item.RegionLocationMinY0, item.RegionLocationMinX0, item.RegionLocationMaxY1, item.RegionLocationMaxX1 = box
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = unit
    item.PhysicalDeltaY, item.PhysicalDeltaX = MM[0] / 10, MM[1] / 10
    return Sequence([item])


LESIONS = {
    "tall": disc((120, 80), 40, 30, 14),
    "scaled": disc((90, 130), 45, 80, 18),
    "inverted": disc((100, 100), 70, 60, 15),
}


def a_still(name: str, stored: np.ndarray, study: str, patient: str = "P1", **changes: object) -> bytes:
    return image(
        stored,
        SOPInstanceUID=uid("toy", name),
        StudyInstanceUID=uid("toy", study),
        SeriesInstanceUID=uid("toy", study, "series"),
        PatientID=patient,
        BodyPartExamined="TOY",
        **changes,
    )


def write_studies(folder: Path) -> None:
    """Two studies of two patients: four stills, and two files that are none."""
    stored = {name: speckled(lesion, n) for n, (name, lesion) in enumerate(LESIONS.items())}
    turned = 255 - stored["inverted"]
    frames = np.stack([stored["tall"]] * 3)
    files = {
        "a/z": a_still("tall", stored["tall"], "a"),
        "a/1": a_still("scaled", stored["scaled"], "a", SequenceOfUltrasoundRegions=region((0, 0, 89, 129))),
        "b/turned.bin": a_still("inverted", turned, "b", "P2", PhotometricInterpretation="MONOCHROME1"),
        "b/flat": a_still("flat", np.full((64, 64), 80, np.uint16), "b", "P2"),
        "b/cine": a_still("cine", frames, "b", "P2", NumberOfFrames=3),
        "b/screen": a_still("screen", stored["tall"], "b", "P2", SOPClassUID="1.2.840.10008.5.1.4.1.1.7"),
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    """A configuration with the toy card alone, trained on discs in a second or two."""
    folder = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(1)
    seen = []
    for n in range(24):
        lesion = disc((64, 64), *rng.integers(18, 46, 2), rng.integers(6, 14))
        pixels = speckled(lesion, 100 + n).astype(np.float32) / 255
        seen.append(pictures.LabelledPicture(f"{n}", f"{n}", "1", pixels, lesion, bool(n % 2), f"{n:064x}"))
    (folder / "models").mkdir()
    trained = pictures.train(toy(), seen, folder / "models", "cpu")
    (folder / "models" / "toy.yaml").write_text(yaml.safe_dump(trained.model_dump(mode="json", exclude_defaults=True)))
    everything = config.load(folder)
    return replace(everything, cards=tuple(c for c in everything.cards if c.card.name == "toy"))


@pytest.fixture(scope="module")
def place(own: Configuration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Studies in `in`, and the home of a night over them."""
    place = tmp_path_factory.mktemp("stills")
    write_studies(place / "in")
    (place / "summary.json").write_text(a_night(place / "in", place / "home", own).to_json())
    return place


@pytest.fixture
def summary(place: Path) -> dict[str, object]:
    return dict(json.loads((place / "summary.json").read_text()))


@pytest.fixture
def store(place: Path) -> Iterator[Store]:
    with Store.open(Home(place / "home").store_url) as store:
        yield store


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def the_report(place: Path, store: Store, patient: str) -> tuple[str, dict[str, object], Path]:
    (case,) = store.of_patient(patient_of(Pseudonyms.load(place / "home" / "key"), patient))
    folder = place / "home" / "reports" / case
    return case, json.loads((folder / "report.json").read_text()), folder


def test_every_mask_has_its_files_size_and_lies_where_the_lesion_is(place: Path, store: Store) -> None:
    truth = {"a/z": "tall", "a/1": "scaled", "b/turned.bin": "inverted"}
    masks = {p.stem: np.asarray(Image.open(p)) for p in (place / "home" / "reports").rglob("masks/*.png")}
    assert masks.keys() == {digest_of(place / "in" / path) for path in truth}
    for path, name in truth.items():
        mask = masks[digest_of(place / "in" / path)]
        assert mask.shape == LESIONS[name].shape
        assert set(np.unique(mask)) == {0, 255}
        assert dice(mask > 0, LESIONS[name]) > 0.85  # a place that is off by a quarter of the lesion has less


def test_every_file_ends_in_one_place(summary: dict[str, object], place: Path) -> None:
    assert summary["files"] == {"seen": 6, "analysed": 3, "unused": 0, "refused": 3}
    why = {r["sha256"]: r["reason"] for r in summary["refusals"]}  # type: ignore[attr-defined]
    assert why[digest_of(place / "in/b/cine")].startswith(Reason.CINE)
    assert why[digest_of(place / "in/b/flat")] == "pixels cannot be decoded: the image shows one grey only"
    assert "screenshot" in why[digest_of(place / "in/b/screen")]


def test_sizes_are_pixels_and_millimetres_only_where_a_region_calibrates(place: Path, store: Store) -> None:
    _, facts, _ = the_report(place, store, "P1")
    images = {i["input"]: i for i in facts["images"]}  # type: ignore[attr-defined]
    plain, scaled = images[digest_of(place / "in/a/z")], images[digest_of(place / "in/a/1")]
    assert plain["size_px"] == [120, 80]
    assert plain["area_px"] == pytest.approx(np.pi * 14**2, rel=0.3)
    assert 2 * np.sqrt(plain["area_px"] / np.pi) < plain["longest_px"] < 40  # no shape is shorter than a disc
    assert [plain[n] for n in ("area_mm2", "longest_mm", "perpendicular_mm")] == [None] * 3
    assert scaled["area_mm2"] == pytest.approx(scaled["area_px"] * MM[0] * MM[1], rel=1e-3)
    assert scaled["longest_mm"] == pytest.approx(36 * MM[0], rel=0.3)  # across the rows, which are further apart
    assert 0 < plain["probabilities"]["malignant"] < 1
    assert "no diagnosis" in facts["verdict_text"]  # type: ignore[operator]
    assert "normal" not in json.dumps(facts)


def test_measures_of_an_outline_are_those_of_geometry() -> None:
    mask = np.zeros((50, 60), bool)
    mask[10:20, 5:45] = True  # 10 rows of 40 pixels
    said = PicturePrediction(mask.astype(np.float32) * 0.75, mask, 0.25, 0)
    still = type("Still", (), {"sha256": "a" * 64, "pixels": mask, "regions": (Region(0, 0, 49, 59, MM),)})()
    facts = facts_of(still, said, toy())  # type: ignore[arg-type]
    assert (facts.area_px, facts.box_px, facts.centroid_px) == (400, ((10, 5), (19, 44)), (14.5, 24.5))
    assert facts.longest_px == pytest.approx(np.hypot(10, 40), abs=0.01)
    assert facts.longest_mm == pytest.approx(np.hypot(10 * MM[0], 40 * MM[1]), abs=0.01)
    assert facts.area_mm2 == pytest.approx(400 * MM[0] * MM[1])
    assert facts.probability == 0.75
    assert facts.probabilities == {"malignant": 0.25}


def test_a_scale_is_believed_only_where_one_region_holds_all_that_is_outlined() -> None:
    mask = np.zeros((40, 40), bool)
    mask[10:20, 10:20] = True
    whole, beside = Region(0, 0, 39, 39, MM), Region(0, 25, 39, 39, (1.0, 1.0))
    assert scale_at(mask, (whole,)) == MM
    assert scale_at(mask, (Region(0, 0, 39, 22, MM), beside)) == MM
    assert scale_at(mask, (Region(0, 0, 15, 39, MM),)) is None
    assert scale_at(mask, (whole, Region(12, 12, 14, 14, MM))) is None
    assert scale_at(mask, (replace(whole, spacing_mm=None),)) is None
    assert scale_at(mask, ()) is None
    assert scale_at(np.zeros((40, 40), bool), (whole,)) is None


def test_the_page_shows_each_image_with_its_outline_and_asks_for_nothing_else(place: Path, store: Store) -> None:
    _, facts, folder = the_report(place, store, "P1")
    page = unescape((folder / "report.html").read_text())
    assert page.count("data:image/png;base64,") == 2
    assert page.count('class="outline"') == 2
    assert "the file gives no scale" in page or "by the file's own calibration" in page
    assert "Probability of the class malignant" in page
    assert "no diagnosis" in page
    assert uid("toy", "a") not in page
    for digest in facts["inputs"]:  # type: ignore[attr-defined]
        assert digest in page


def test_a_second_night_does_nothing_and_the_home_verifies(place: Path, own: Configuration, store: Store) -> None:
    again = a_night(place / "in", place / "home", own)
    assert {c.status for c in again.cases} == {"already done"}
    assert again.files == json.loads((place / "summary.json").read_text())["files"]
    home = Home(place / "home")
    found = [*verification.verify(home, store), *verification.verify_mlflow(home, store, "medrec")]
    assert found == []


def test_a_case_is_made_again_bit_for_bit(place: Path, store: Store) -> None:
    case, _, _ = the_report(place, store, "P2")
    made = replay(case, place / "in", Home(place / "home"), store)
    assert made.agrees, made.first_difference
    assert made.exact
    assert [s.stage for s in made.stages] == [
        "kept report", "card", "inputs", "pixels", "weights", "volumes", "prediction", "findings", "report",
    ]  # fmt: skip


def test_a_changed_or_an_added_mask_is_noticed(place: Path, tmp_path: Path) -> None:
    home = copy_home(place / "home", tmp_path / "home")
    with Store.open(home.store_url) as store:
        mask = next(home.reports.rglob("masks/*.png"))
        Image.fromarray(255 - np.asarray(Image.open(mask))).save(mask)
        assert any("masks of case" in str(p) for p in verification.verify(home, store))


def test_the_ledger_knows_no_digest_of_a_file(place: Path, store: Store) -> None:
    digests = [digest_of(p) for p in (place / "in").rglob("*") if p.is_file()]
    for record in store.ledger():
        assert not [d for d in digests if d.encode() in record.body]


def test_a_bundle_holds_the_masks_and_verifies_without_medrec(place: Path, store: Store, tmp_path: Path) -> None:
    bundle.export(Home(place / "home"), store, tmp_path / "out")
    check = [sys.executable, "-I", str(tmp_path / "out" / "verify.py"), str(tmp_path / "out")]
    assert subprocess.run(check, capture_output=True).returncode == 0
    one = next((tmp_path / "out").rglob("masks/*.png"))
    one.write_bytes(one.read_bytes() + b"x")
    changed = subprocess.run(check, capture_output=True, text=True)
    assert changed.returncode == 1
    assert "masks of case" in changed.stdout


def test_an_erased_patients_images_are_gone(place: Path, own: Configuration, tmp_path: Path) -> None:
    home = copy_home(place / "home", tmp_path / "home")
    with Store.open(home.store_url) as store:
        patient = patient_of(Pseudonyms.load(home.key), "P1")
        (case,) = privacy.erase(patient, home, store, own).cases
        assert not (home.reports / case).exists()
        assert [*verification.verify(home, store)] == []
    everything = b"".join(str(p).encode() + p.read_bytes() for p in home.root.rglob("*") if p.is_file())
    assert digest_of(place / "in/a/z").encode() not in everything


def test_where_text_cannot_be_looked_for_no_pixel_is_shown(
    place: Path, own: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_here() -> None:
        raise burned.NoDetectorError

    monkeypatch.setattr(burned, "_detector", none_here)
    shutil.copytree(place / "in" / "a", tmp_path / "in")
    summary: Summary = a_night(tmp_path / "in", tmp_path / "home", own)
    (case,) = summary.cases
    folder = (tmp_path / "home" / str(case.report)).parent
    facts = json.loads((folder / "report.json").read_text())
    assert burned.WITHHELD in facts["flags"]
    assert case.verdict == "finding"
    assert len([*folder.glob("masks/*.png")]) == 2
    black = [i for i in (folder / "report.html").read_text().split('"') if i.startswith("data:image/png;base64,")]
    assert len(black) == 2
    for uri in black:
        assert len(uri) < 600  # nothing compresses like black
    small = (folder / "thumbnail.svg").read_text()
    assert "<path" in small  # what was outlined is said; no pixel is shown
    (jpeg,) = [i for i in small.split('"') if i.startswith("data:image/jpeg;base64,")]
    assert not np.asarray(Image.open(io.BytesIO(base64.b64decode(jpeg.partition(",")[2])))).any()


# Routing


def a_file(name: str, **changed: object) -> ScanFile:
    fields: dict[str, object] = {
        "sha256": hashlib.sha256(name.encode()).hexdigest(), "ordinal": sum(name.encode()), "study": "s", "series": "r",
        "instance": name, "patient": "p", "frame_of_reference": None, "modality": "US", "series_number": 1,
        "rows": 9, "columns": 9, "position_mm": None, "orientation": None, "spacing_mm": None, "image_type": (),
        "lossy": False, "transfer_syntax": "", "matches": frozenset(rules_of([toy()])), "words": (), "content": name,
    }  # fmt: skip
    return ScanFile(**(fields | changed))  # type: ignore[arg-type]


def routed(*files: ScanFile) -> RoutedPictures | Skipped | None:
    (study,) = group(files)
    return select_pictures(study, toy())


def test_copies_of_an_image_are_one_input_and_contradicting_ones_are_none() -> None:
    first, same = a_file("one", instance="x", content="c"), a_file("two", instance="x", content="c")
    other, alone = a_file("three", instance="x", content="d"), a_file("four")
    found = routed(first, same, alone)
    assert isinstance(found, RoutedPictures)
    assert len(found.pictures) == 2
    assert [d.reason for d in found.defective] == [Reason.DUPLICATE]
    against = routed(first, other, alone)
    assert isinstance(against, RoutedPictures)
    assert against.pictures == (alone,)
    assert [d.reason for d in against.defective] == [Reason.CONFLICTING_COPIES]


def test_a_study_whose_images_all_cannot_be_read_is_refused_by_its_defect() -> None:
    refused = routed(a_file("one", photometric="RGB"), a_file("two", photometric="RGB"))
    assert isinstance(refused, Skipped)
    assert refused.reason is Reason.NOT_GREYSCALE
    assert len(refused.files) == 2
    assert routed(a_file("one", matches=frozenset())) is None


def test_the_packaged_card_asks_for_breast_ultrasound_alone(configuration: Configuration) -> None:
    (breast,) = (c.card for c in configuration.cards if c.card.name == "breast_us")
    assert isinstance(breast, PictureCard)
    assert dict(breast.input.match) == {"Modality": "^US$", "BodyPartExamined": "(?i)breast"}
