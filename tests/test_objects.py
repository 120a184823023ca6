"""What goes back to a study: in the right place, of the right patient, valid, and the same however often it is made."""

import io
import logging
import os
import shutil
import stat
import subprocess
import sys
import warnings
from itertools import product
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import Dataset
from returned import SIZE, Made, changed, lump, made, ras

from medrec.config import Configuration
from medrec.errors import WorldError
from medrec.objects import NotReturnableError, Written, accept, make, place, reject
from medrec.phantom import grid
from medrec.prediction import Coded, Returned
from medrec.report import Status

MM = (1.1, 0.8, 2.7)
OBLIQUE, DOUBLE_OBLIQUE = (12.0, 0.0, 0.0), (11.0, -17.0, 23.0)
TILT = np.array([[1.1, 0, 0, -9], [0, 0.8, 0.9, 4], [0, 0, 2.7, -13], [0, 0, 0, 1]])
EVERY_WAY = {
    **{"".join("-+"[not f] + a for f, a in zip(flips, "ijk", strict=True)): grid(SIZE, MM, flip=flips)
       for flips in product((False, True), repeat=3)},
    "oblique": grid(SIZE, MM, OBLIQUE),
    "double oblique": grid(SIZE, MM, DOUBLE_OBLIQUE, (False, False, True)),
    "sagittal": grid(SIZE, MM, (90.0, 0.0, 90.0)),
    "coronal": grid(SIZE, MM, (90.0, 0.0, 0.0)),
}  # fmt: skip
ALL = Returned(objects=("seg", "sr", "pdf"), site=Coded(value="12738006", scheme="SCT", meaning="Brain"))


def read(objects: tuple[Written, ...]) -> dict[str, pydicom.FileDataset]:
    return {one.name: pydicom.dcmread(io.BytesIO(one.content)) for one in objects if one.instance}


def texts(sr: Dataset) -> list[str]:
    """Every text and code meaning of a report."""
    found = [str(e.value) for e in sr.iterall() if e.keyword in ("TextValue", "CodeMeaning", "CodeValue")]
    return found


def program(name: str) -> str:
    """Debian's, or the one that came with a package of the test environment; never pynetdicom's of the same name."""
    path = shutil.which(name, path=f"/usr/bin:/usr/sbin:{Path(sys.executable).parent}")
    if path is None:
        pytest.fail(f"{name} is not installed: .ci/run says which package holds it")
    return path


def errors_of(objects: tuple[Written, ...], folder: Path) -> list[str]:
    found = []
    for one in (o for o in objects if o.instance):
        (folder / one.name).write_bytes(one.content)
        result = subprocess.run([program("dciodvfy"), "-new", folder / one.name], capture_output=True, text=True)
        lines = (result.stdout + result.stderr).splitlines()
        found += [f"{one.name}: {line}" for line in lines if line.startswith("Error")]
    return found


def by_highdicom(seg: Written) -> tuple[npt.NDArray[np.float64], float]:
    """Centroid (LPS mm) and volume (mm3) of all segments, by the geometry that highdicom reads."""
    volume = hd.seg.Segmentation.from_dataset(pydicom.dcmread(io.BytesIO(seg.content))).get_volume(
        combine_segments=True
    )
    inside = volume.map_indices_to_reference(np.argwhere(volume.array > 0).astype(float))
    return inside.mean(0), float((volume.array > 0).sum() * volume.voxel_volume)


def by_frames(seg: Written) -> npt.NDArray[np.float64]:
    """Centroid (LPS mm) by the position of each frame (DICOM PS3.3 C.7.6.2.1.1), by nothing but pydicom."""
    ds = pydicom.dcmread(io.BytesIO(seg.content))
    frames = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns)
    (shared,) = ds.SharedFunctionalGroupsSequence
    row, column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    down_mm, across_mm = (float(x) for x in shared.PixelMeasuresSequence[0].PixelSpacing)
    points = []
    for frame, group in zip(frames, ds.PerFrameFunctionalGroupsSequence, strict=True):
        corner = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        rows, columns = np.nonzero(frame)
        points.append(corner + np.outer(columns, row * across_mm) + np.outer(rows, column * down_mm))
    centre: npt.NDArray[np.float64] = np.concatenate(points).mean(0)
    return centre


@pytest.fixture
def usual(tmp_path: Path, configuration: Configuration) -> Made:
    return made(tmp_path / "in", configuration, EVERY_WAY["double oblique"], returned=ALL, patient_name="Äßé^山田")


@pytest.mark.parametrize("way", EVERY_WAY)
def test_a_segmentation_lies_where_the_mask_lies(way: str, tmp_path: Path, configuration: Configuration) -> None:
    one = made(tmp_path / "in", configuration, EVERY_WAY[way])
    seg = make(one.case, one.source)[0]
    centre, volume = by_highdicom(seg)
    assert np.abs(centre - one.centroid_lps_mm).max() < 0.01
    assert np.abs(by_frames(seg) - one.centroid_lps_mm).max() < 0.01
    assert volume == pytest.approx(one.volume_mm3, rel=1e-3)


def test_frames_of_an_enhanced_object_are_told_by_number(tmp_path: Path, configuration: Configuration) -> None:
    one = made(tmp_path / "in", configuration, EVERY_WAY["oblique"], multi_frame=True, returned=ALL)
    objects = make(one.case, one.source)
    seg = read(objects)["seg.dcm"]
    assert np.abs(by_frames(objects[0]) - one.centroid_lps_mm).max() < 0.01
    source = pydicom.dcmread(tmp_path / "in" / "enhanced")
    for group in seg.PerFrameFunctionalGroupsSequence:
        (image,) = group.DerivationImageSequence[0].SourceImageSequence
        assert image.ReferencedSOPInstanceUID == source.SOPInstanceUID
        told = source.PerFrameFunctionalGroupsSequence[image.ReferencedFrameNumber - 1].PlanePositionSequence[0]
        here = group.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(np.array(told.ImagePositionPatient, float), np.array(here, float), atol=1e-5)
    (series,) = seg.ReferencedSeriesSequence
    assert len(series.ReferencedInstanceSequence) == 1
    assert errors_of(objects, tmp_path) == []


def test_a_tilted_stack_is_written_slice_by_slice(tmp_path: Path, configuration: Configuration) -> None:
    one = made(tmp_path / "in", configuration, TILT)
    assert np.abs(by_frames(make(one.case, one.source)[0]) - one.centroid_lps_mm).max() < 0.01


def test_dcmqi_reads_the_segmentation_where_the_mask_lies(usual: Made, tmp_path: Path) -> None:
    objects = make(usual.case, usual.source)
    (tmp_path / "seg.dcm").write_bytes(objects[0].content)
    command = [program("segimage2itkimage"), "--inputDICOM", tmp_path / "seg.dcm", "--outputDirectory", tmp_path]
    subprocess.run([*command, "--outputType", "nii"], check=True, capture_output=True)
    image = nib.load(tmp_path / "1.nii.gz")
    inside = np.argwhere(np.asarray(image.dataobj) > 0)
    centre = nib.affines.apply_affine(image.affine, inside).mean(0)
    assert np.abs(centre - ras(usual.centroid_lps_mm)).max() < 0.01
    assert len(inside) * abs(np.linalg.det(image.affine[:3, :3])) == pytest.approx(usual.volume_mm3, rel=1e-3)


def test_dcmqi_reads_the_measurements_of_the_report(usual: Made, tmp_path: Path) -> None:
    (tmp_path / "sr.dcm").write_bytes(make(usual.case, usual.source)[1].content)
    out = tmp_path / "sr.json"
    command = [program("tid1500reader"), "--inputDICOM", tmp_path / "sr.dcm", "--outputMetadata", out]
    subprocess.run(command, check=True, capture_output=True)
    import json

    (group,) = json.loads(out.read_text())["Measurements"]
    values = {m["quantity"]["CodeMeaning"]: float(m["value"]) for m in group["measurementItems"]}
    (finding,) = usual.case.report.findings
    assert values["Volume"] == pytest.approx(usual.volume_mm3, rel=1e-3)
    assert values["Long axis"] == pytest.approx(finding.longest_axial_mm, abs=1e-3)
    assert group["TrackingUniqueIdentifier"].startswith("2.25.")


def test_everything_written_is_valid(usual: Made, tmp_path: Path) -> None:
    objects = make(usual.case, usual.source)
    assert [one.name for one in objects] == ["seg.dcm", "sr.dcm", "report.dcm", "pages.json"]
    assert errors_of(objects, tmp_path) == []


def test_a_fractional_segmentation_holds_the_probabilities(tmp_path: Path, configuration: Configuration) -> None:
    fractional = Returned(objects=("seg",), segmentation="fractional")
    one = made(tmp_path / "in", configuration, EVERY_WAY["oblique"], returned=fractional)
    objects = make(one.case, one.source)
    assert errors_of(objects, tmp_path) == []
    seg = read(objects)["seg.dcm"]
    assert (seg.SegmentationType, seg.SegmentationFractionalType) == ("FRACTIONAL", "PROBABILITY")
    assert set(np.unique(seg.pixel_array)) == {0, round(0.9 * 255)}
    assert np.abs(by_frames(objects[0]) - one.centroid_lps_mm).max() < 0.01


def test_two_lesions_are_two_segments_each_with_its_measurements(tmp_path: Path, configuration: Configuration) -> None:
    mask = lump()
    mask[18:20, 14:17, 8:10] = True
    one = made(tmp_path / "in", configuration, EVERY_WAY["+i+j+k"], mask, returned=ALL)
    found = read(make(one.case, one.source))
    seg, sr = found["seg.dcm"], found["sr.dcm"]
    assert [s.SegmentNumber for s in seg.SegmentSequence] == [1, 2]
    tracked = [s.TrackingUID for s in seg.SegmentSequence]
    told = [str(e.value) for e in sr.iterall() if e.keyword == "UID"]
    assert len(set(tracked)) == 2
    assert set(tracked) <= set(told)
    values = [float(e.value) for e in sr.iterall() if e.keyword == "NumericValue"]
    assert values[0] == pytest.approx(lump().sum() * 1.1 * 0.8 * 2.7, rel=1e-6)
    assert values[4] == pytest.approx(12 * 1.1 * 0.8 * 2.7, rel=1e-6)


def test_nothing_marked_is_said_in_words_and_never_coded(tmp_path: Path, configuration: Configuration) -> None:
    one = made(tmp_path / "in", configuration, EVERY_WAY["oblique"], np.zeros(SIZE, bool), returned=ALL)
    objects = make(one.case, one.source)
    assert [o.name for o in objects] == ["sr.dcm", "report.dcm", "pages.json"]
    assert errors_of(objects, tmp_path) == []
    said = texts(read(objects)["sr.dcm"])
    assert any(s.startswith("Nothing marked. No region of at least") for s in said)
    assert not [s for s in said if "normal" in s.lower() or "absent" in s.lower() or "negative" in s.lower()]


def test_an_inconclusive_report_gives_its_reasons_and_no_tumour(usual: Made) -> None:
    said = texts(read(make(usual.case, usual.source))["sr.dcm"])
    doubted = changed(usual.case, flags=("coverage incomplete: the slices span 32 mm",))
    assert "coverage incomplete: the slices span 32 mm" in texts(read(make(doubted, usual.source))["sr.dcm"])
    assert not [s for s in said if "neoplasm" in s.lower() or "tumor" in s.lower()]
    assert {"49755003", "52988006", "12738006"} <= set(said)


def test_refused_and_failed_studies_return_nothing(usual: Made) -> None:
    for status in (Status.REFUSED, Status.FAILED):
        assert make(changed(usual.case, status=status, verdict=None), usual.source) == ()


def test_an_unreviewed_report_says_so_to_people_and_machines(usual: Made) -> None:
    for ds in read(make(usual.case, usual.source)).values():
        assert ds.SeriesDescription.startswith("AI, unreviewed")
    sr = read(make(usual.case, usual.source))["sr.dcm"]
    assert (sr.VerificationFlag, sr.PreliminaryFlag, sr.CompletionFlag) == ("UNVERIFIED", "PRELIMINARY", "COMPLETE")


def test_every_object_is_of_the_same_patient_and_study(usual: Made, tmp_path: Path) -> None:
    source = pydicom.dcmread(next((tmp_path / "in").iterdir()))
    for ds in read(make(usual.case, usual.source)).values():
        for keyword in ("StudyInstanceUID", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate"):
            assert ds[keyword].value == source[keyword].value
        assert str(ds.PatientName) == "Äßé^山田"
        assert ds.SeriesInstanceUID != source.SeriesInstanceUID


def test_the_report_points_at_the_segmentation_and_both_at_the_series(usual: Made, tmp_path: Path) -> None:
    found = read(make(usual.case, usual.source))
    seg, sr, slices = found["seg.dcm"], found["sr.dcm"], [pydicom.dcmread(p) for p in (tmp_path / "in").iterdir()]
    (series,) = seg.ReferencedSeriesSequence
    assert {i.ReferencedSOPInstanceUID for i in series.ReferencedInstanceSequence} == {s.SOPInstanceUID for s in slices}
    told = {str(e.value) for e in sr.iterall() if e.keyword == "ReferencedSOPInstanceUID"}
    assert told == {s.SOPInstanceUID for s in slices} | {seg.SOPInstanceUID}
    assert seg.FrameOfReferenceUID == slices[0].FrameOfReferenceUID


def test_writing_again_gives_the_same_bytes_and_other_content_another_uid(usual: Made) -> None:
    first, again = make(usual.case, usual.source), make(usual.case, usual.source)
    assert first == again
    other = make(changed(usual.case, verdict_text="Something else."), usual.source)
    assert other[1].instance != first[1].instance
    found = [one for one in (*first, *other) if one.instance]
    assert len({one.instance for one in found}) == len({one.content for one in found})


def test_dates_come_from_the_case_and_not_from_the_clock(usual: Made) -> None:
    for ds in read(make(usual.case, usual.source)).values():
        dates = {e.value for e in ds if e.keyword in ("ContentDate", "SeriesDate", "InstanceCreationDate")}
        assert dates == {"20260102"}
        now = [e for e in ds.iterall() if e.VR in ("DT", "DA") and str(e.value)[:4] not in ("2020", "2026", "")]
        assert now == []


def test_a_correction_names_the_report_before_it(usual: Made, tmp_path: Path) -> None:
    first = make(usual.case, usual.source)
    place(first, tmp_path / "outbox" / "before")
    second = make(changed(usual.case, case="d" * 24), usual.source, tmp_path / "outbox" / "before")
    sr = read(second)["sr.dcm"]
    (study,) = sr.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == first[1].instance
    assert second[1].instance != first[1].instance
    assert errors_of(second, tmp_path) == []


def test_a_source_without_frame_of_reference_is_refused_by_name(usual: Made) -> None:
    del usual.source.header.FrameOfReferenceUID
    with pytest.raises(NotReturnableError, match="FrameOfReferenceUID"):
        make(usual.case, usual.source)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientBirthDate", "born 1970"),
        ("StudyDate", "20209999"),
        ("StudyTime", "noon"),
        ("StudyTime", "999999"),
        ("PatientSex", "W"),
        ("PatientWeight", "70kg"),
        ("PatientWeight", "-1"),
        ("TimezoneOffsetFromUTC", "+9999"),
        ("StudyID", "x" * 17),
        ("StudyDescription", "two\r\nlines"),
        ("StudyDescription", "a\\b"),
        ("ReferringPhysicianName", "A\\B"),
    ],
)
def test_a_malformed_header_value_is_left_empty(keyword: str, value: str, usual: Made, tmp_path: Path) -> None:
    usual.source.header[keyword] = pydicom.DataElement(keyword, "UT", value)
    objects = make(usual.case, usual.source)
    assert errors_of(objects, tmp_path) == []
    assert all(not ds.get(keyword) for ds in read(objects).values())


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientID", "A\\B"),
        ("PatientName", "two\nlines"),
        ("AccessionNumber", "1\a2"),
        ("PatientID", f"2.25.1{'0' * 38}"),
    ],
)
def test_a_patient_who_is_not_told_in_one_line_gets_nothing_back(keyword: str, value: str, usual: Made) -> None:
    usual.source.header[keyword] = pydicom.DataElement(keyword, "UT", value)  # as it stands, whatever it holds
    with pytest.raises(NotReturnableError, match=f"the {keyword} of the source") as caught:
        make(usual.case, usual.source)
    assert value not in str(caught.value)


def test_no_warning_and_no_log_line_quotes_a_name(
    usual: Made, tmp_path: Path, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    usual.source.header.PatientName = usual.source.header.ReferringPhysicianName = "SECRETPERSON"
    warnings.simplefilter("always")
    logging.getLogger("highdicom").propagate = True
    place(make(usual.case, usual.source), tmp_path / "outbox")
    accept(tmp_path / "outbox", "DOE^REVIEWER", "2026-01-01T00:00:00Z")
    ko = reject(sorted((tmp_path / "outbox").glob("*.dcm")), "quality", "c", "2026-01-01T00:00:00Z")
    logging.getLogger("highdicom").propagate = False
    assert "SECRETPERSON" not in "".join(str(w.message) for w in recwarn) + caplog.text
    assert pydicom.dcmread(io.BytesIO(ko.content)).PatientName == "SECRETPERSON"


def test_a_long_id_is_carried_whole(usual: Made) -> None:
    usual.source.header.PatientID = "1234567890" * 7
    assert {ds.PatientID for ds in read(make(usual.case, usual.source)).values()} == {"1234567890" * 7}


def test_pages_show_verdict_patient_and_lesions(usual: Made, tmp_path: Path) -> None:
    pdf = read(make(usual.case, usual.source))["report.dcm"].EncapsulatedDocument
    (tmp_path / "report.pdf").write_bytes(pdf)
    result = subprocess.run([program("pdftotext"), "-layout", tmp_path / "report.pdf", "-"], capture_output=True)
    text = result.stdout.decode()
    assert "FINDING" in text
    assert "Name: Äßé" in text
    assert usual.case.report.verdict_text.split(" on ")[0] in text
    assert f"{usual.case.report.findings[0].longest_axial_mm:.1f} x" in text
    fonts = subprocess.run([program("pdffonts"), tmp_path / "report.pdf"], capture_output=True, text=True).stdout
    assert all("yes yes" in line for line in fonts.splitlines()[2:] if "Vera" in line)


def text_of(pdf: Dataset, folder: Path) -> str:
    (folder / "report.pdf").write_bytes(pdf.EncapsulatedDocument)
    command = [program("pdftotext"), "-layout", folder / "report.pdf", "-"]
    return subprocess.run(command, capture_output=True, check=True).stdout.decode()


def test_accepted_pages_name_the_reviewer_and_are_else_the_same(usual: Made, tmp_path: Path) -> None:
    first = make(usual.case, usual.source)
    place(first, tmp_path / "outbox")
    accepted = accept(tmp_path / "outbox", "DOE^REVIEWER", "2026-02-03T04:05:06Z")
    assert accepted == accept(tmp_path / "outbox", "DOE^REVIEWER", "2026-02-03T04:05:06Z")
    assert errors_of(accepted, tmp_path) == []
    before, after = (text_of(read(objects)["report.dcm"], tmp_path) for objects in (first, accepted))
    assert "made by a network, unreviewed" in before
    accepted_by = "made by a network, accepted by DOE REVIEWER on 2026-02-03"
    assert after.split() == before.replace("made by a network, unreviewed", accepted_by).split()
    assert read(accepted)["report.dcm"].SeriesDescription.startswith("AI, reviewed")
    (tmp_path / "outbox" / "pages.json").unlink()  # written by a medrec that kept none: they would say "unreviewed"
    assert "report.dcm" not in {one.name for one in accept(tmp_path / "outbox", "DOE", "2026-02-03T04:05:06Z")}


def test_a_name_too_long_for_a_page_takes_no_room_from_the_id_and_says_that_it_goes_on(
    usual: Made, tmp_path: Path
) -> None:
    usual.source.header.PatientName = "LONG " * 60
    usual.source.header.PatientID = "ID-AFTER-A-LONG-NAME"
    text = text_of(read(make(usual.case, usual.source))["report.dcm"], tmp_path)
    (line,) = {line for line in text.splitlines() if line.strip().startswith("Name:")}
    assert line.rstrip().endswith("...")
    assert "ID: ID-AFTER-A-LONG-NAME" in text


def test_the_outbox_is_private_and_whole_or_not_there(usual: Made, tmp_path: Path) -> None:
    objects = make(usual.case, usual.source)
    folder = tmp_path / "outbox" / "case"
    (folder.parent / ".draft-case").mkdir(parents=True)
    (folder.parent / ".draft-case" / "half.dcm").write_bytes(b"left by a killed night")
    place(objects, folder)
    assert sorted(p.name for p in folder.parent.rglob("*")) == ["case", "pages.json", "report.dcm", "seg.dcm", "sr.dcm"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {0o600}


def test_a_full_disk_leaves_nothing_half(usual: Made, tmp_path: Path) -> None:
    full = Path("/dev/full")
    assert full.exists()

    class Full(bytes):
        pass

    objects = make(usual.case, usual.source)
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    pid = os.fork()
    if pid == 0:  # the limit would hold for pytest's own files as well
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(objects[0].content) + 100, before[1]))
        try:
            place(objects, tmp_path / "outbox" / "case")
        except WorldError as error:
            os._exit(0 if "too large" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert list((tmp_path / "outbox").iterdir()) == []
