"""Labels from files of every kind: to the voxel where geometry says, or refused in words; nothing is ever lost."""

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import yaml
from phantoms import DOUBLE_OBLIQUE, array_grid, ellipsoid
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from test_cli import medrec
from test_pictured import a_still, disc, speckled, toy
from test_pictures import card as picture_card
from typer.testing import CliRunner

from medrec import config, labels, privacy, verification
from medrec.cli import app, labelling
from medrec.dicom import Pseudonyms, marked
from medrec.dicom.decoders import PixelError
from medrec.errors import ConfigError, DataError
from medrec.home import Home
from medrec.labels import Origin
from medrec.labels.adding import Added, Wish, add
from medrec.labels.ingest import ingest
from medrec.learning import material
from medrec.phantom import uid
from medrec.phantom_dicom import write_dicom
from medrec.pictures import Card
from medrec.splits import Side
from medrec.store import Store

SIZE = (24, 20, 12)
# Rotated about all axes, and each axis with a spacing of its own: whatever is mixed up lands elsewhere.
AFFINE = array_grid(SIZE, (2.0, 3.0, 5.0), DOUBLE_OBLIQUE)
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
CENTRE = tuple(AFFINE[:3, :3] @ (9, 12, 5) + AFFINE[:3, 3])
LESION = ellipsoid(SIZE, AFFINE, CENTRE, (9.0, 12.0, 14.0))  # type: ignore[arg-type]
AT = "2026-01-01T00:00:00Z"
STILL = disc((60, 90), 25, 60, 11)
Place = tuple[Home, Path, tuple[Card, ...]]


def write_sources(folder: Path) -> None:
    """Two volumes of two patients and two stills of a third; names of files and folders say who they are."""
    rng = np.random.default_rng(4)
    for name in ("Ada", "Bea"):
        voxels = rng.integers(50, 900, SIZE).astype(np.int16)
        write_dicom(voxels, AFFINE, folder / name / "2", patient_id=f"ID-{name}")
    (folder / "us").mkdir()
    for name in ("one", "two"):
        stored = speckled(STILL, len(name) + ord(name[0]))
        (folder / "us" / f"{name}.dcm").write_bytes(a_still(name, stored, "us", "ID-Cleo"))


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Sources, and a home that knows them; read only."""
    root = tmp_path_factory.mktemp("labelling")
    write_sources(root / "in")
    home = Home(root / "home")
    home.create()
    cards: tuple[Card, ...] = (*(c.card for c in config.load().cards if c.card.name == "phantom"), toy())
    with Store.open(home.store_url) as store:
        done = ingest(root / "in", home, store, cards, AT)
    assert done.files == {"seen": 26, "known": 26, "unused": 0, "refused": 0}
    assert (done.images, done.new, dict(done.cards)) == (4, 4, {"phantom": 2, "toy": 2})
    return home, root / "in", cards


@pytest.fixture
def place(ready: Place, tmp_path: Path) -> Place:
    """A home of the test's own."""
    import shutil

    shutil.copytree(ready[0].root, tmp_path / "home")
    return Home(tmp_path / "home"), ready[1], ready[2]


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    with Store.open(place[0].store_url) as store:
        yield store


Adding = Callable[..., Added]


@pytest.fixture
def adding(place: Place, store: Store) -> Adding:
    """`medrec labels add`, as the command line calls it."""

    def run(path: Path, by: str = "dr. a", origin: Origin = Origin.BLIND, **wished: object) -> Added:
        wish = Wish(by, origin, AT, **({"cards": place[2]} | wished))  # type: ignore[arg-type]
        return add(path, place[0], store, wish)

    return run


def mask_of(home: Home, store: Store, added: Added) -> np.ndarray:
    (answer,) = added.added
    assert answer.label is not None
    assert answer.label in store.labels()
    return labels.mask(home, answer.label)


def why(added: Added) -> str:
    """Why the only file was refused; nothing else happened."""
    assert (added.added, added.already) == ([], 0)
    (answer,) = added.refused
    return answer.refused


def files_of(folder: Path) -> list[pydicom.FileDataset]:
    return [pydicom.dcmread(p) for p in sorted(folder.rglob("*")) if p.is_file()]


def in_order(folder: Path) -> list[pydicom.FileDataset]:
    """A series' files in the order of k, by geometry."""
    return sorted(files_of(folder), key=lambda ds: float(AFFINE[:3, 2] @ np.array(ds.ImagePositionPatient, float)))


# Volumes: NIfTI


def nifti(path: Path, mask: np.ndarray, affine: np.ndarray = AFFINE, dtype: type = np.uint8, **codes: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(mask.astype(dtype), LPS_TO_RAS @ affine)
    image.header.set_xyzt_units("mm")
    if codes:
        image.set_sform(LPS_TO_RAS @ affine, codes["sform"])
        image.set_qform(LPS_TO_RAS @ affine, codes["qform"])
    nib.save(image, path)
    return path


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SAL", "IAR"], ids=lambda axes: f"written as {axes}")
def test_a_nifti_mask_lands_on_the_same_voxels_however_its_axes_run(
    adding: Adding, place: Place, store: Store, tmp_path: Path, axes: str
) -> None:
    image = nib.Nifti1Image(LESION.astype(np.uint8), LPS_TO_RAS @ AFFINE)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes)
    )
    (tmp_path / "m").mkdir()
    nib.save(image.as_reoriented(turn), tmp_path / "m" / "Ada.nii.gz")
    assert np.array_equal(mask_of(place[0], store, adding(tmp_path / "m")), LESION)


@pytest.mark.parametrize("name", ["Ada.nii", "Ada_seg.nii.gz", "ID-Ada.nii.gz", "Ada/mask.nii.gz", "x/Ada/label2.nii"])
def test_a_mask_is_found_by_its_patient_study_series_or_folder(adding: Adding, tmp_path: Path, name: str) -> None:
    nifti(tmp_path / "m" / name, LESION)
    study = adding(tmp_path / "m").added[0].label
    assert study is not None
    nifti(tmp_path / "n" / f"{uid('study', 'ID-Ada')}.nii.gz", LESION)
    again = adding(tmp_path / "n", by="dr. b").added[0].label
    assert again is not None
    assert again.image == study.image


@pytest.mark.parametrize("name", ["Dora.nii.gz", "Dora/mask.nii.gz", "Dora/2.nii.gz", "mask.nii.gz"])
def test_a_mask_whose_name_fits_nobody_is_nobodys(adding: Adding, tmp_path: Path, name: str) -> None:
    nifti(tmp_path / "m" / name, LESION)
    assert "goes by its name: ingest" in why(adding(tmp_path / "m"))


def test_a_mask_whose_name_fits_two_images_is_refused_until_its_folder_says_which(
    adding: Adding, tmp_path: Path
) -> None:
    nifti(tmp_path / "m" / "2.nii.gz", LESION)
    assert "fits 2 known images" in why(adding(tmp_path / "m"))
    nifti(tmp_path / "n" / "Bea" / "2.nii.gz", LESION)
    assert len(adding(tmp_path / "n").added) == 1


def test_a_table_says_of_what_a_mask_is(adding: Adding, store: Store, tmp_path: Path) -> None:
    nifti(tmp_path / "m" / "case_007.nii.gz", LESION)
    (tmp_path / "t.csv").write_text(f"mask,study_instance_uid\ncase_007,{uid('study', 'ID-Bea')}\n")
    added = adding(tmp_path / "m", table=tmp_path / "t.csv")
    assert len(added.added) == 1
    (label,) = store.labels()
    nifti(tmp_path / "n" / "Bea.nii.gz", LESION)
    adding(tmp_path / "n", by="dr. b")
    assert store.labels()[0].image == label.image


def moved(mm: Sequence[float]) -> np.ndarray:
    affine = AFFINE.copy()
    affine[:3, 3] += mm
    return affine


def mirrored() -> np.ndarray:
    return np.diag([-1.0, 1.0, 1.0, 1.0]) @ AFFINE


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "one slice less": (lambda p: nifti(p, LESION[:, :, :-1]), "24 x 20 x 11 voxels, its series 24 x 20 x 12"),
    "another resolution": (lambda p: nifti(p, np.repeat(LESION, 2, 0)), "48 x 20 x 12 voxels"),
    "moved by half a voxel": (lambda p: nifti(p, LESION, moved(AFFINE[:3, 0] / 2)), "1.00 mm off the grid"),
    "moved by a slice": (lambda p: nifti(p, LESION, moved(AFFINE[:3, 2])), "5.00 mm off the grid"),
    "mirrored affine": (lambda p: nifti(p, LESION, mirrored()), "off the grid"),
    "left for right, RAS for LPS": (lambda p: nifti(p, LESION, LPS_TO_RAS @ AFFINE), "off the grid"),
    "wider slices": (lambda p: nifti(p, LESION, AFFINE @ np.diag([1.0, 1.0, 1.1, 1.0])), "off the grid"),
    "no place": (lambda p: nifti(p, LESION, sform=0, qform=0), "neither sform nor qform"),
    "empty": (lambda p: nifti(p, LESION & False), "nothing is marked"),
    "all ones": (lambda p: nifti(p, LESION | True), "all of it is marked"),
    "inverted": (lambda p: nifti(p, ~LESION), "background"),
    "probabilities": (lambda p: nifti(p, LESION * 0.7, dtype=np.float32), "probabilities"),
    "not a number": (lambda p: nifti(p, np.where(LESION, np.nan, 0), dtype=np.float32), "no whole numbers"),
    "negative": (lambda p: nifti(p, LESION * -1.0, dtype=np.int16), "not between 0 and"),
    "three values": (lambda p: nifti(p, LESION * np.arange(1, 13) % 4), "say with --segment which"),
    "garbage": (lambda p: p.write_bytes(bytes(range(256)) * 20), "no NIfTI file"),
    "cut off": (lambda p: p.write_bytes(nifti(p, LESION).read_bytes()[:200]), "truncated or broken"),
    "nothing": (lambda p: p.write_bytes(b""), "no NIfTI file"),
}


@pytest.mark.parametrize("defect", SPOILT)
def test_a_bad_mask_is_refused_in_words_and_what_was_in_force_stays(
    adding: Adding, store: Store, tmp_path: Path, defect: str
) -> None:
    nifti(tmp_path / "good" / "Ada.nii.gz", LESION)
    adding(tmp_path / "good")
    before = store.labels()
    (tmp_path / "m").mkdir()
    make, words = SPOILT[defect]
    make(tmp_path / "m" / "Ada.nii.gz")
    assert words in why(adding(tmp_path / "m", by="dr. b"))
    assert store.labels(superseded=True) == before
    assert len(list(store.ledger())) == 1


def test_an_affine_with_a_second_place_is_refused(adding: Adding, tmp_path: Path) -> None:
    image = nib.Nifti1Image(LESION.astype(np.uint8), LPS_TO_RAS @ AFFINE)
    image.set_sform(LPS_TO_RAS @ AFFINE, 1)
    image.set_qform(LPS_TO_RAS @ moved((0, 0, 3)), 1)
    nib.save(image, tmp_path / "Ada.nii.gz")
    assert "sform and qform" in why(adding(tmp_path / "Ada.nii.gz"))


def test_a_header_that_promises_terabytes_costs_nothing(adding: Adding, tmp_path: Path) -> None:
    path = nifti(tmp_path / "Ada.nii", LESION)
    data = bytearray(path.read_bytes())
    data[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()  # NIfTI-1, dim[1..3]
    path.write_bytes(data)
    assert "30000 x 30000 x 30000 voxels" in why(adding(path))


def test_an_empty_mask_says_that_nothing_is_there_when_somebody_says_so(
    adding: Adding, place: Place, store: Store, tmp_path: Path
) -> None:
    nifti(tmp_path / "Ada.nii.gz", LESION & False)
    assert not mask_of(place[0], store, adding(tmp_path / "Ada.nii.gz", nothing_there=True)).any()


# Layouts


@pytest.mark.parametrize(
    ("names", "segment"),
    [({"0": "background", "1": "oedema", "2": "core"}, "core"), ({"background": 0, "oedema": 1, "core": 2}, "2"),
     ({"background": 0, "whole": [1, 2], "core": 2}, "core")],
    ids=["MSD", "nnU-Net", "nnU-Net with regions"],
)  # fmt: skip
def test_layouts_of_nnunet_and_msd_are_read_by_what_their_values_are_called(
    adding: Adding, place: Place, store: Store, tmp_path: Path, names: dict[str, object], segment: str
) -> None:
    values = np.where(LESION, 2, 0)
    values[3, 3, 3] = 1
    nifti(tmp_path / "d" / "labelsTr" / "Ada.nii.gz", values)
    nifti(tmp_path / "d" / "imagesTr" / "Ada_0000.nii.gz", values)
    (tmp_path / "d" / "dataset.json").write_text(json.dumps({"labels": names}))
    assert "say with --segment" in why(adding(tmp_path / "d"))
    assert mask_of(place[0], store, adding(tmp_path / "d", segments=("all",))).sum() == LESION.sum() + 1
    added = adding(tmp_path / "d", segments=(segment,))
    assert np.array_equal(mask_of(place[0], store, added), LESION)
    assert added.unused == 2
    nifti(tmp_path / "d" / "labelsTr" / "Ada.nii.gz", np.where(LESION, 7, 0))
    assert "value 7, which dataset.json does not name" in why(adding(tmp_path / "d", segments=(segment,)))
    nifti(tmp_path / "d" / "labelsTr" / "Ada.nii.gz", values)
    assert "'liver'" in why(adding(tmp_path / "d", segments=("liver",)))


# DICOM SEG


def description(number: int, label: str) -> hd.seg.SegmentDescription:
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
    )


def seg(
    path: Path,
    sources: list[pydicom.FileDataset],
    masks: Sequence[np.ndarray] = (LESION,),
    kind: hd.seg.SegmentationTypeValues = hd.seg.SegmentationTypeValues.BINARY,
    **changes: object,
) -> pydicom.Dataset:
    """By highdicom, from masks (i, j, k); only frames that mark something are in it."""
    frames = np.stack([m.transpose(2, 1, 0) for m in masks], axis=-1)
    made = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=frames.astype(np.float32 if kind is hd.seg.SegmentationTypeValues.FRACTIONAL else np.uint8),
        segmentation_type=kind,
        segment_descriptions=[description(n, f"Lesion {n}") for n in range(1, len(masks) + 1)],
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="another",
        manufacturer_model_name="tool",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=True,
        **changes,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path)
    return made


def test_a_sparse_segmentation_lands_on_its_slices_in_any_order(
    adding: Adding, place: Place, store: Store, tmp_path: Path
) -> None:
    made = seg(tmp_path / "seg", in_order(place[1] / "Ada"))
    assert made.NumberOfFrames == LESION.any((0, 1)).sum() < SIZE[2]
    assert np.array_equal(mask_of(place[0], store, adding(tmp_path / "seg")), LESION)
    turned = pydicom.dcmread(tmp_path / "seg")
    order = np.random.default_rng(0).permutation(made.NumberOfFrames)
    turned.PixelData = pydicom.pixels.pack_bits(turned.pixel_array[order].ravel())
    turned.PerFrameFunctionalGroupsSequence = [turned.PerFrameFunctionalGroupsSequence[int(n)] for n in order]
    turned.save_as(tmp_path / "turned")
    assert np.array_equal(mask_of(place[0], store, adding(tmp_path / "turned")), LESION)


def test_of_several_segments_those_count_that_are_named_and_overlaps_are_no_trouble(
    adding: Adding, place: Place, store: Store, tmp_path: Path
) -> None:
    other = np.roll(LESION, 2, 0)
    seg(tmp_path / "seg", in_order(place[1] / "Bea"), (LESION, other))
    assert "2 segments, numbers 1, 2: say with --segment" in why(adding(tmp_path / "seg"))
    for wanted, truth in (
        (("2",), other),
        (("all",), LESION | other),
        (("lesion 1",), LESION),
        (("1", "2"), LESION | other),
    ):
        assert np.array_equal(mask_of(place[0], store, adding(tmp_path / "seg", segments=wanted)), truth)
    assert "none that is called 'liver'" in why(adding(tmp_path / "seg", segments=("liver",)))


def test_a_fractional_segmentation_is_a_label_only_where_it_says_yes_or_no(
    adding: Adding, place: Place, store: Store, tmp_path: Path
) -> None:
    fractional = hd.seg.SegmentationTypeValues.FRACTIONAL
    how = {"fractional_type": hd.seg.SegmentationFractionalTypeValues.PROBABILITY}
    seg(tmp_path / "soft", in_order(place[1] / "Ada"), (LESION * 0.6,), fractional, **how)
    assert "fractional" in why(adding(tmp_path / "soft"))
    seg(tmp_path / "hard", in_order(place[1] / "Ada"), (LESION,), fractional, **how)
    assert np.array_equal(mask_of(place[0], store, adding(tmp_path / "hard")), LESION)


def spoil(path: Path, change: Callable[[pydicom.FileDataset], None]) -> None:
    ds = pydicom.dcmread(path)
    change(ds)
    ds.save_as(path)


def frames(ds: Dataset) -> list[Dataset]:
    return list(ds.PerFrameFunctionalGroupsSequence)


def _wrong_series(ds: Dataset) -> None:
    ds.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()
    for frame in frames(ds):
        frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = generate_uid()


def _moved(ds: Dataset) -> None:
    for frame in frames(ds):
        at = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float) + AFFINE[:3, 1] / 2
        frame.PlanePositionSequence[0].ImagePositionPatient = [f"{x:.6f}" for x in at]


def _next_slice(ds: Dataset) -> None:
    for frame in frames(ds):
        at = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float) + AFFINE[:3, 2]
        frame.PlanePositionSequence[0].ImagePositionPatient = [f"{x:.6f}" for x in at]


def _no_place(ds: Dataset) -> None:
    for frame in frames(ds):
        del frame.PlanePositionSequence


SPOILT_SEG: dict[str, tuple[Callable[[pydicom.FileDataset], None], str]] = {
    "wrong UIDs": (_wrong_series, "no series or image that it refers to is known"),
    "another patient": (lambda ds: setattr(ds, "PatientID", "ID-Bea"), "study or patient is not that of the images"),
    "another study": (lambda ds: setattr(ds, "StudyInstanceUID", generate_uid()), "study or patient is not that"),
    "half a row beside": (_moved, "1.50 mm off the grid"),
    "named one slice, lies at the next": (_next_slice, "one of the two is wrong"),
    "no place": (_no_place, "does not say where it lies"),
    "frames promised": (lambda ds: setattr(ds, "NumberOfFrames", 40), "promises 40 frames and describes"),
    "cut off": (lambda ds: setattr(ds, "PixelData", ds.PixelData[:40]), "it cannot be read"),
    "no segment": (lambda ds: setattr(ds, "SegmentSequence", []), "it holds no segment"),
    "another kind": (lambda ds: setattr(ds, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.88.11"), "neither a DICOM Seg"),
}


@pytest.mark.parametrize("defect", SPOILT_SEG)
def test_a_bad_segmentation_is_refused_in_words(
    adding: Adding, place: Place, store: Store, tmp_path: Path, defect: str
) -> None:
    seg(tmp_path / "seg", in_order(place[1] / "Ada"))
    change, words = SPOILT_SEG[defect]
    spoil(tmp_path / "seg", change)
    assert words in why(adding(tmp_path / "seg"))
    assert store.labels() == ()


def nrrd(path: Path) -> np.ndarray:
    """(i, j, k) of the one NRRD file that is used here: gzip, little-endian short, space left-posterior-superior."""
    import gzip

    head, _, data = path.read_bytes().partition(b"\n\n")
    assert b"sizes: 512 512 3" in head
    assert b"space: left-posterior-superior" in head
    return np.frombuffer(gzip.decompress(data), "<i2").reshape((512, 512, 3), order="F")


def ct_card() -> Card:
    content = config.load().cards[0].card.model_dump(mode="json")
    content |= {"name": "liver", "inputs": {"ct": {"required": True, "match": {"Modality": "^CT$"}}}, "grid": "ct"}
    return type(config.load().cards[0].card).model_validate(content)


def test_segmentations_of_another_tool_are_what_that_tool_says_they_are(shared_data: Path, tmp_path: Path) -> None:
    folder, card = shared_data / "label_import", ct_card()
    home = Home(tmp_path / "home")
    home.create()
    with Store.open(home.store_url) as store:
        done = ingest(folder / "ct", home, store, (card,), AT)
        assert done.images == 1
        wish = Wish("dr. a", Origin.BLIND, AT, (card,))
        added = add(folder / "liver.dcm", home, store, wish)
        truth = nrrd(folder / "liver_seg.nrrd") > 0
        assert truth.sum() > 1000
        assert np.array_equal(mask_of(home, store, added), truth)
        assert "5 segments, numbers 1, 2, 3, 4, 5" in why(add(folder / "partial_overlaps.dcm", home, store, wish))
        found = {}
        for number in "12345":
            one = Wish("dr. a", Origin.BLIND, AT, (card,), (number,))
            found[number] = mask_of(home, store, add(folder / "partial_overlaps.dcm", home, store, one))
        ds = pydicom.dcmread(folder / "partial_overlaps.dcm")
        slices = sorted(
            {float(f.PlanePositionSequence[0].ImagePositionPatient[2]) for f in ds.PerFrameFunctionalGroupsSequence}
        )
        expected = {n: np.zeros(truth.shape, bool) for n in found}
        for frame, group in zip(ds.pixel_array, ds.PerFrameFunctionalGroupsSequence, strict=True):
            k = round(float(group.PlanePositionSequence[0].ImagePositionPatient[2]) + 128.69)
            number = str(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
            expected[number][:, :, k] |= frame.T > 0
        assert slices[0] >= -128.7
        assert any((expected[a] & expected[b]).any() for a in expected for b in expected if a < b)  # they do overlap
        for number, mask in found.items():
            assert np.array_equal(mask, expected[number])


def test_what_dcmqi_writes_is_read_as_it_was_meant(adding: Adding, place: Place, store: Store, tmp_path: Path) -> None:
    import sysconfig

    tool = Path(sysconfig.get_path("scripts")) / "itkimage2segimage"
    if not tool.exists():
        import dcmqi

        tool = next(Path(p) for p in (Path(dcmqi.__file__).parents[4] / "bin").glob("itkimage2segimage"))
    nifti(tmp_path / "mask.nii.gz", LESION)
    meta = {
        "@schema": "https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/schemas/seg-schema.json#",
        "ContentCreatorName": "Reader", "SeriesNumber": "300", "SeriesDescription": "x", "InstanceNumber": "1",
        "BodyPartExamined": "HEAD",
        "segmentAttributes": [[{
            "labelID": 1, "SegmentDescription": "Lesion", "SegmentAlgorithmType": "MANUAL",
            "SegmentedPropertyCategoryCodeSequence":
                {"CodeValue": "49755003", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Morphologic Abnormality"},
            "SegmentedPropertyTypeCodeSequence":
                {"CodeValue": "52988006", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Lesion"},
        }]],
    }  # fmt: skip
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    made = subprocess.run(
        [tool, "--inputImageList", tmp_path / "mask.nii.gz", "--inputDICOMDirectory", place[1] / "Ada" / "2",
         "--inputMetadata", tmp_path / "meta.json", "--outputDICOM", tmp_path / "seg.dcm"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert np.array_equal(mask_of(place[0], store, adding(tmp_path / "seg.dcm")), LESION)


# RTSTRUCT


def circle(k: float, centre: Sequence[float], radius_mm: float, points: int = 360) -> np.ndarray:
    """Corners (n, 3) in LPS mm of a circle in the plane of slice k around voxel (i, j)."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    ijk = np.stack([centre[0] + radius_mm / 2 * np.cos(angle), centre[1] + radius_mm / 3 * np.sin(angle)], 1)
    return np.column_stack([ijk, np.full(points, k)]) @ AFFINE[:3, :3].T + AFFINE[:3, 3]


def within(k: int, centre: Sequence[float], radius_mm: float) -> np.ndarray:
    """(i, j) bool: voxels of a slice whose centres lie in that circle."""
    i, j = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]), indexing="ij")
    return np.asarray(((i - centre[0]) * 2) ** 2 + ((j - centre[1]) * 3) ** 2 < radius_mm**2)


def structures(
    path: Path,
    sources: list[pydicom.FileDataset],
    rois: dict[str, list[tuple[int, np.ndarray]]],
    kind: str = "CLOSED_PLANAR",
) -> Path:
    """An RT Structure Set with outlines (slice that each was drawn on, corners) by the name of the structure."""
    first = sources[0]
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.Modality, ds.PatientID, ds.StudyInstanceUID = "RTSTRUCT", first.PatientID, first.StudyInstanceUID
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = first.FrameOfReferenceUID, [study]
    ds.ReferencedFrameOfReferenceSequence = [frame]
    ds.StructureSetROISequence, ds.ROIContourSequence = [], []
    for number, (name, outlines) in enumerate(rois.items(), 1):
        roi, contours = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        contours.ReferencedROINumber, contours.ContourSequence = number, []
        for k, points in outlines:
            one, image = Dataset(), Dataset()
            image.ReferencedSOPInstanceUID = sources[k].SOPInstanceUID
            one.ContourImageSequence, one.ContourGeometricType = [image], kind
            one.NumberOfContourPoints, one.ContourData = len(points), [f"{x:.4f}" for x in points.ravel()]
            contours.ContourSequence.append(one)
        ds.StructureSetROISequence.append(roi)
        ds.ROIContourSequence.append(contours)
    ds.save_as(path, enforce_file_format=True)
    return path


def test_outlines_mark_the_voxels_whose_centres_they_enclose(
    adding: Adding, place: Place, store: Store, tmp_path: Path
) -> None:
    sources = in_order(place[1] / "Ada")
    rings = {3: 11.0, 4: 16.3, 5: 13.1}
    outlines = [(k, circle(k, (9.2, 11.1), r)) for k, r in rings.items()]
    structures(tmp_path / "rt", sources, {"GTV": outlines})
    truth = np.zeros(SIZE, bool)
    for k, r in rings.items():
        truth[:, :, k] = within(k, (9.2, 11.1), r)
    assert truth.sum() > 200
    assert np.array_equal(mask_of(place[0], store, adding(tmp_path / "rt")), truth)


@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"])
def test_an_outline_within_another_is_a_hole_and_one_beside_it_a_second_part(
    adding: Adding, place: Place, store: Store, tmp_path: Path, kind: str
) -> None:
    parts = [((9.1, 11.1), 15.2), ((9.1, 11.1), 8.1), ((19.4, 11.2), 4.3)]
    structures(
        tmp_path / "rt", in_order(place[1] / "Ada"), {"GTV": [(4, circle(4, c, r)) for c, r in parts[::-1]]}, kind
    )
    outer, inner, beside = (within(4, c, r) for c, r in parts)
    assert inner.sum() > 20
    assert beside.sum() > 5
    assert np.array_equal(mask_of(place[0], store, adding(tmp_path / "rt"))[:, :, 4], (outer & ~inner) | beside)


def test_slices_without_an_outline_between_others_are_said_and_not_filled_in(
    adding: Adding, place: Place, tmp_path: Path
) -> None:
    outlines = [(k, circle(k, (9, 11), 12.0)) for k in (2, 6)]
    added = adding(structures(tmp_path / "rt", in_order(place[1] / "Ada"), {"GTV": outlines}))
    assert added.added[0].note.startswith("3 slices between its outlines have none")


SPOILT_RT: dict[str, tuple[dict[str, list[tuple[int, np.ndarray]]], str, str]] = {
    "several": ({"GTV": [(4, circle(4, (9, 11), 12.0))], "Eye": []}, "CLOSED_PLANAR", "2 structures, numbers 1, 2"),
    "between slices": ({"GTV": [(4, circle(4.4, (9, 11), 12.0))]}, "CLOSED_PLANAR", "between slices, 5.40"),
    "named one slice, lies at another": ({"G": [(5, circle(4, (9, 11), 12.0))]}, "CLOSED_PLANAR", "names slice 6 and"),
    "beyond the series": ({"GTV": [(4, circle(14, (9, 11), 12.0))]}, "CLOSED_PLANAR", "beyond the series"),
    "beyond the image": ({"GTV": [(4, circle(4, (9, 11), 40.0))]}, "CLOSED_PLANAR", "reaches beyond the image"),
    "crossing": (
        {"G": [(4, circle(4, (9, 11), 14.0)), (4, circle(4, (13, 11), 14.0))]},
        "CLOSED_PLANAR",
        "cross each other",
    ),
    "open": ({"GTV": [(4, circle(4, (9, 11), 12.0))]}, "OPEN_PLANAR", "closed planar outlines"),
    "two corners": ({"GTV": [(4, circle(4, (9, 11), 12.0, points=2))]}, "CLOSED_PLANAR", "fewer than three corners"),
    "none": ({"GTV": []}, "CLOSED_PLANAR", "nothing is marked in it"),
    "no structure": ({}, "CLOSED_PLANAR", "it holds no structure"),
}


@pytest.mark.parametrize("defect", SPOILT_RT)
def test_a_bad_structure_set_is_refused_in_words(adding: Adding, place: Place, tmp_path: Path, defect: str) -> None:
    rois, kind, words = SPOILT_RT[defect]
    assert words in why(adding(structures(tmp_path / "rt", in_order(place[1] / "Ada"), rois, kind)))


# Single images


def picture(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize("high", [1, 255])
def test_a_picture_mask_has_the_size_of_its_image(
    adding: Adding, place: Place, store: Store, tmp_path: Path, high: int
) -> None:
    picture(tmp_path / "m" / "one.png", STILL.astype(np.uint8) * high)
    assert np.array_equal(mask_of(place[0], store, adding(tmp_path / "m")), STILL)
    rgb = np.repeat(STILL.astype(np.uint8)[..., None] * high, 3, 2)
    picture(tmp_path / "m" / "one.png", rgb)
    assert np.array_equal(mask_of(place[0], store, adding(tmp_path / "m")), STILL)


COLOURED = np.zeros((60, 90, 3), np.uint8)
COLOURED[10:20, 10:20, 0] = 255
SPOILT_PICTURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "turned": (lambda p: picture(p, STILL.T.astype(np.uint8)), "90 x 60 pixels (rows x columns), its image 60 x 90"),
    "one row less": (lambda p: picture(p, STILL[1:].astype(np.uint8)), "59 x 90 pixels"),
    "coloured": (lambda p: picture(p, COLOURED), "coloured"),
    "soft edges": (lambda p: picture(p, (STILL * np.arange(90)).astype(np.uint8)), "--segment"),
    "empty": (lambda p: picture(p, np.zeros((60, 90), np.uint8)), "nothing is marked"),
    "all ones": (lambda p: picture(p, np.full((60, 90), 255, np.uint8)), "all of it"),
    "garbage": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)), "no PNG file"),
    "a JPEG": (lambda p: Image.fromarray(STILL.astype(np.uint8)).save(p, "JPEG"), "no PNG file"),
}


@pytest.mark.parametrize("defect", SPOILT_PICTURES)
def test_a_bad_picture_mask_is_refused_in_words(adding: Adding, tmp_path: Path, defect: str) -> None:
    (tmp_path / "m").mkdir()
    make, words = SPOILT_PICTURES[defect]
    make(tmp_path / "m" / "two.png")
    assert words in why(adding(tmp_path / "m"))


def test_a_picture_is_no_mask_of_a_volume_and_a_volume_none_of_a_picture(adding: Adding, tmp_path: Path) -> None:
    picture(tmp_path / "Ada.png", np.eye(24, 20, dtype=np.uint8))
    nifti(tmp_path / "one.nii.gz", LESION)
    assert "its image is a volume" in why(adding(tmp_path / "Ada.png"))
    assert "single one" in why(adding(tmp_path / "one.nii.gz"))


# Classes


def table(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_classes_are_given_by_image_or_by_study_and_every_mistake_is_told(
    adding: Adding, store: Store, tmp_path: Path
) -> None:
    added = adding(table(tmp_path / "t.csv", "image;pathology\none;benign\ntwo;malignant\nthree;benign\n\ntwo;\n"))
    assert [a.label.classes for a in added.added if a.label] == [{"pathology": "benign"}, {"pathology": "malignant"}]
    assert [(a.name, "ingest its study" in a.refused) for a in added.refused] == [("t.csv, line 4", True)]
    study = f"study_instance_uid,pathology\n{uid('toy', 'us')},benign\n"
    again = adding(table(tmp_path / "t.csv", study), by="dr. b")
    assert len(again.added) == 2
    assert {x.classes["pathology"] for x in store.labels("toy")} == {"benign"}
    assert len(store.labels(superseded=True)) == 4


SPOILT_TABLES = {
    "no key": ("pathology\nbenign\n", "none of its columns says of what"),
    "no class": ("image,grade\none,3\n", "no column of classes that a card names: pathology (toy)"),
    "empty": ("", "none of its columns"),
    "uneven": ("image,pathology\none\n", "line 2 has not as many values"),
    "unknown image": ("image,pathology\nthree,malignant\n", "fits no image"),
    "unknown class": (
        "image,pathology\none,malignant\ntwo,malignent\nx,benign\n",
        "write classes: [...] into the card",
    ),
    "only the others": ("image,pathology\none,benign\n", "write classes"),
    "contradiction": ("image,pathology\none,benign\none,malignant\n", "another row gives the same image another class"),
    "another's study": (f"image,study_instance_uid,pathology\none,{uid('x')},malignant\n", "its study_instance_uid is"),
    "no text": ("image,pathology\n\udcff,malignant\n", "no table of comma-separated values"),
}


@pytest.mark.parametrize("defect", SPOILT_TABLES)
def test_a_bad_table_is_refused_in_words(adding: Adding, store: Store, tmp_path: Path, defect: str) -> None:
    text, words = SPOILT_TABLES[defect]
    (tmp_path / "t.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    added = adding(tmp_path / "t.csv")
    assert all(words in a.refused for a in added.refused), added.refused
    assert added.refused
    assert store.labels() == ()


def test_where_a_card_lists_its_classes_another_word_is_refused_by_row(
    adding: Adding, place: Place, tmp_path: Path
) -> None:
    card = picture_card(**(toy().model_dump(mode="json") | {"classes": ["benign", "malignant"]}))
    rows = table(tmp_path / "t.csv", "image,pathology\none,malignent\ntwo,malignant\n")
    added = adding(rows, cards=(card,))
    assert len(added.added) == 1
    assert "'malignent' is no class of toy: its pathology is benign or malignant" in added.refused[0].refused
    with pytest.raises(ValueError, match="is not among them"):
        picture_card(**(toy().model_dump(mode="json") | {"classes": ["benign"]}))


# On record


def test_a_folder_of_everything_is_answered_for_file_by_file(adding: Adding, place: Place, tmp_path: Path) -> None:
    everything = tmp_path / "m"
    nifti(everything / "Ada.nii.gz", LESION)
    seg(everything / "b" / "seg", in_order(place[1] / "Bea"))
    picture(everything / "one.png", STILL.astype(np.uint8))
    table(everything / "t.csv", "image,pathology\none,malignant\n")
    (everything / "README.md").write_text("x")
    (everything / "noise").write_bytes(b"noise" * 99)
    nifti(everything / "Eve.nii.gz", LESION)
    (everything / "slice").write_bytes(
        next((place[1] / "Ada").rglob("*-*"), next((place[1] / "Ada" / "2").iterdir())).read_bytes()
    )
    added = adding(everything)
    assert (len(added.added), added.already, len(added.refused), added.unused) == (4, 0, 2, 2)
    told = json.loads(labelling._as_json(added))
    assert (len(told["added"]), told["already"], len(told["refused"]), told["unused"]) == (4, 0, 2, 2)
    assert "Eve" not in json.dumps(told)
    again = adding(everything)
    assert (len(again.added), again.already, len(again.refused), again.unused) == (0, 4, 2, 2)


def test_a_later_label_supersedes_and_both_are_verified(
    adding: Adding, place: Place, store: Store, tmp_path: Path
) -> None:
    nifti(tmp_path / "Ada.nii.gz", LESION)
    adding(tmp_path / "Ada.nii.gz", origin=Origin.EDITED_AI)
    nifti(tmp_path / "Ada.nii.gz", np.roll(LESION, 1, 1))
    adding(tmp_path / "Ada.nii.gz", by="dr. b")
    first, second = store.labels(superseded=True)
    assert (first.by, first.origin, first.superseded_by) == ("dr. a", Origin.EDITED_AI, second.label)
    assert second.source_sha256 == hashlib.sha256((tmp_path / "Ada.nii.gz").read_bytes()).hexdigest()
    assert np.array_equal(labels.mask(place[0], first), LESION)
    assert list(verification.verify(place[0], store)) == []


SPOILT_ROWS = {
    "origin": "UPDATE labels SET origin = 'blind' WHERE origin = 'edited-AI'",
    "by": "UPDATE labels SET \"by\" = 'somebody'",
    "mask": "UPDATE labels SET mask_sha256 = '0'",
    "in force again": "UPDATE labels SET superseded_by = NULL",
    "gone": "DELETE FROM labels WHERE superseded_by IS NULL",
    "another image": "UPDATE labels SET pixels_sha256 = 'x'",
}


@pytest.mark.parametrize("change", SPOILT_ROWS)
def test_a_changed_label_is_noticed(adding: Adding, place: Place, store: Store, tmp_path: Path, change: str) -> None:
    adding(nifti(tmp_path / "Ada.nii.gz", LESION), origin=Origin.EDITED_AI)
    adding(nifti(tmp_path / "Ada.nii.gz", np.roll(LESION, 1, 1)))
    with store._writing() as connection:
        connection.exec_driver_sql(SPOILT_ROWS[change])
    assert any(str(p).startswith("label ") for p in store.contradictions())


def test_a_locked_patient_gets_blind_labels_only(adding: Adding, store: Store, tmp_path: Path) -> None:
    first = adding(nifti(tmp_path / "Ada.nii.gz", LESION)).added[0].label
    assert first is not None
    store.divide("phantom", {first.patient: Side.TEST}, "dr. a", AT)
    nifti(tmp_path / "Ada.nii.gz", np.roll(LESION, 1, 1))
    for origin in (Origin.EDITED_AI, Origin.ACCEPTED_AI):
        assert "locked for testing" in why(adding(tmp_path / "Ada.nii.gz", origin=origin))
    assert store.labels() == (first,)
    assert len(adding(tmp_path / "Ada.nii.gz").added) == 1


def test_labels_follow_a_rotation_of_the_key_and_go_with_their_patient(
    adding: Adding, place: Place, store: Store, tmp_path: Path
) -> None:
    nifti(tmp_path / "m" / "Ada.nii.gz", LESION)
    nifti(tmp_path / "m" / "Bea.nii.gz", np.roll(LESION, 1, 1))
    picture(tmp_path / "m" / "one.png", STILL.astype(np.uint8))
    adding(tmp_path / "m")
    before = store.labels()
    privacy.rotate(place[0], store, config.load())
    ada, bea, one = store.labels()
    assert {x.image for x in before}.isdisjoint({ada.image, bea.image, one.image})
    assert list(verification.verify(place[0], store)) == []
    again = ingest(place[1], place[0], store, place[2], AT)
    assert (again.images, again.new) == (4, 0)
    assert adding(tmp_path / "m").already == 3
    privacy.erase(ada.patient, place[0], store, config.load())
    assert store.labels(superseded=True) == (bea, one)
    assert [k.patient for k in store.known("phantom")] == [bea.patient]
    assert {p.stem for p in place[0].labels.iterdir()} == {bea.mask_sha256, one.mask_sha256}
    assert list(verification.verify(place[0], store)) == []
    assert ingest(place[1], place[0], store, place[2], AT).reasons == {"erased at the patient's request": SIZE[2]}


def test_nothing_in_the_home_tells_names_uids_or_paths(
    adding: Adding, place: Place, store: Store, tmp_path: Path
) -> None:
    nifti(tmp_path / "m" / "Ada" / "mask.nii.gz", LESION)
    seg(tmp_path / "m" / "seg", in_order(place[1] / "Bea"))
    picture(tmp_path / "m" / "one.png", STILL.astype(np.uint8))
    adding(tmp_path / "m")
    store.close()
    everything = b"".join(str(p).encode() + p.read_bytes() for p in place[0].root.rglob("*") if p.is_file())
    source = in_order(place[1] / "Ada")[0]
    secrets = ("PHANTOM^ONE", "ID-Ada", "Ada", "ID-Cleo", "one.png", "mask.nii", source.StudyInstanceUID)
    for secret in (*secrets, source.SeriesInstanceUID, source.SOPInstanceUID):
        assert secret.encode() not in everything, secret


def test_what_was_asked_for_wrongly_is_all_told_at_once(adding: Adding, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        adding(tmp_path / "nowhere", by=" ", table=tmp_path / "none.csv")
    assert [p.split(":")[0] for p in error.value.problems] == ["PATH", "--by", "--table"]
    with pytest.raises(DataError, match="none of its columns"):
        adding(tmp_path, table=table(tmp_path / "t.csv", "a,b\n1,2\n"))


def test_an_image_that_two_cards_take_asks_for_the_card(place: Place, store: Store, tmp_path: Path) -> None:
    phantom = place[2][0]
    second = phantom.model_copy(update={"name": "second"})
    ingest(place[1], place[0], store, (phantom, second), AT)
    nifti(tmp_path / "Ada.nii.gz", LESION)
    wish = Wish("dr. a", Origin.BLIND, AT, (phantom, second))
    assert "taken by the cards phantom, second: say with --card" in why(
        add(tmp_path / "Ada.nii.gz", place[0], store, wish)
    )
    one = Wish("dr. a", Origin.BLIND, AT, (second,))
    assert [a.label.card for a in add(tmp_path / "Ada.nii.gz", place[0], store, one).added if a.label] == ["second"]
    other = Wish("dr. a", Origin.BLIND, AT, (phantom.model_copy(update={"name": "third"}),))
    assert "no image that is known to third" in why(add(tmp_path / "Ada.nii.gz", place[0], store, other))
    seg(tmp_path / "seg", in_order(place[1] / "Ada"))
    assert "known to phantom, second, not to third" in why(add(tmp_path / "seg", place[0], store, other))


def test_a_structure_set_of_millions_of_corners_is_not_read(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outlines = [(k, circle(k, (9, 11), 9.0)) for k in (3, 4)]
    path = structures(tmp_path / "rt", in_order(place[1] / "Ada"), {"GTV": outlines})
    pseudonyms = Pseudonyms.load(place[0].key)
    assert len(marked.read(path.read_bytes(), pseudonyms, ()).contours) == 2
    monkeypatch.setattr(marked, "MAX_POINTS", 700)  # two outlines of 360
    with pytest.raises(PixelError, match="more than 700 points"):
        marked.read(path.read_bytes(), pseudonyms, ())


def test_a_training_finds_what_was_added_on_the_very_pixels_and_learns_nothing_from_accepted_answers(
    adding: Adding, place: Place, store: Store, tmp_path: Path
) -> None:
    home, folder, (volumes, stills) = place
    nifti(tmp_path / "m" / "Ada.nii.gz", LESION)
    picture(tmp_path / "m" / "one.png", STILL.astype(np.uint8))
    picture(tmp_path / "m" / "two.png", STILL.astype(np.uint8))
    table(tmp_path / "m" / "t.csv", "image,pathology\none,malignant\ntwo,benign\n")
    adding(tmp_path / "m")
    adding(nifti(tmp_path / "Bea.nii.gz", np.roll(LESION, 1, 1)), origin=Origin.ACCEPTED_AI)
    adding(picture(tmp_path / "two.png", np.roll(STILL, 1, 0).astype(np.uint8)), origin=Origin.EDITED_AI)

    def read(card: Card) -> list[tuple[material.Item, material.Payload]]:
        problems: list[str] = []
        sources = material.Sources((folder,), home, material.Wanted.of(store, card))
        found = list(material.read(card, sources, problems))
        assert problems == []
        return found

    ((item, case),) = read(volumes)
    assert np.array_equal(case.mask, LESION)
    assert item.blind
    one, two = sorted(read(stills), key=lambda pair: not pair[0].blind)
    assert np.array_equal(one[1].mask, STILL)
    assert np.array_equal(two[1].mask, np.roll(STILL, 1, 0))
    assert [(pair[0].blind, pair[1].positive) for pair in (one, two)] == [(True, True), (False, False)]  # type: ignore[union-attr]


# What people type


def test_the_commands_speak_to_people_and_to_programs(ready: Place, tmp_path: Path) -> None:
    home = ("--home", "home")
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(toy().model_dump(mode="json", exclude_defaults=True)))
    known = medrec("ingest", ready[1] / "us", "--card", "toy.yaml", "--json", *home, cwd=tmp_path)
    assert known.returncode == 0, known.stderr
    assert json.loads(known.stdout)["cards"] == {"toy": 2}
    picture(tmp_path / "m" / "one.png", STILL.astype(np.uint8))
    picture(tmp_path / "m" / "three.png", STILL.astype(np.uint8))
    words = ("labels", "add", "m", "--by", "dr. a", "--origin", "blind", "--card", "toy.yaml", *home)
    added = medrec(*words, cwd=tmp_path)
    assert added.returncode == 1
    assert "refused: three.png: no image that is known to toy goes by its name" in added.stderr
    assert "1 labels added, 0 in force already, 1 refused" in added.stderr
    listed = CliRunner().invoke(app, ["labels", "list", "--all", "--json", "--home", str(tmp_path / "home")])
    (label,) = json.loads(listed.stdout)
    assert (label["card"], label["by"], label["origin"], label["what"]) == ("toy", "dr. a", "blind", "mask")
    wrong = medrec("labels", "add", "m", "--by", "x", "--origin", "seen", "--card", "nobody", *home, cwd=tmp_path)
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
    for part in ("--card: nobody: neither a file nor a configured model", "--origin: 'seen' is none of blind"):
        assert part in wrong.stderr
