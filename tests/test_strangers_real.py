"""The shipped models on real images that are not theirs: none of these may get a plain verdict."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medrec.config import CardFiles, load
from medrec.dicom import Archive, Pseudonyms
from medrec.learning import cases
from medrec.learning.cases import LabelledCase
from medrec.models import inference, still
from medrec.phantom import Head, Lesion, grid, render
from medrec.pictures import PictureCard
from medrec.prediction import InputRule, ModelCard
from medrec.routing import Routed, rules_of, select
from medrec.series import group
from medrec.volume import Volume, foreground

PATIENTS = 9

pytestmark = pytest.mark.slow


def packaged(name: str) -> CardFiles:
    return next(c for c in load().cards if c.card.name == name)


@pytest.fixture(scope="module")
def brain() -> inference.TorchPredictor:
    model = packaged("brain_mr")
    assert isinstance(model.card, ModelCard)
    return inference.load(model.card, model.weights, "cpu")


@pytest.fixture(scope="module")
def patients(
    shared_data: Path, brain: inference.TorchPredictor, tmp_path_factory: pytest.TempPathFactory
) -> list[LabelledCase]:
    """Every ninth of the 85, by the names of their folders."""
    folder = tmp_path_factory.mktemp("dicom")
    data = shared_data / "brain_mr"
    for patient in sorted((data / "dicom").iterdir())[::9][:PATIENTS]:
        (folder / patient.name).symlink_to(patient)
    found = [c for p in sorted(folder.iterdir())
             for c in cases.load(brain.card, p.resolve(), data / "studies.csv", data / "masks")]  # fmt: skip
    assert len(found) == PATIENTS
    return found


def series(folder: Path, called: str) -> Volume:
    """The one series of a folder, taken for FLAIR whatever it says."""
    card = packaged("brain_mr").card
    assert isinstance(card, ModelCard)
    anything = card.model_copy(update={"inputs": {"flair": InputRule(required=True, match={"Modality": "^(MR|CT)$"})}})
    archive = Archive(next(folder.glob(f"*{called}*")), Pseudonyms(b"t" * 32), rules_of([anything]))
    (study,) = group(archive.index().files)
    routed = select(study, anything)
    assert isinstance(routed, Routed)
    loaded = archive.load(routed.inputs["flair"])
    assert isinstance(loaded, tuple)
    return loaded[0]


def words(brain: inference.TorchPredictor, flair: Volume) -> str | None:
    said = brain.strangeness({"flair": flair})
    assert said is not None
    return said.words


def test_patients_of_the_set_are_seldom_strangers(
    brain: inference.TorchPredictor, patients: list[LabelledCase]
) -> None:
    assert sum(words(brain, c.inputs["flair"]) is not None for c in patients) <= 2


@pytest.mark.parametrize("called", ["FLAIR", "T2", "T1pre", "T1post"])
def test_a_treated_glioblastoma_is_a_stranger_in_every_sequence(
    called: str, brain: inference.TorchPredictor, shared_data: Path
) -> None:
    said = words(brain, series(shared_data / "real_dicom" / "glioblastoma_mr", called))
    assert said is not None
    assert "unlike what the model learnt from" in said


def test_most_t1_images_that_are_called_flair_are_told(
    brain: inference.TorchPredictor, patients: list[LabelledCase]
) -> None:
    called = [words(brain, c.inputs[n]) for c in patients for n in ("t1_pre", "t1_post") if n in c.inputs]
    told = [w for w in called if w is not None]
    assert len(told) > 0.6 * len(called)
    assert any("looks like T1" in w for w in told)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "noise": lambda v: np.abs(v + np.random.default_rng(1).normal(0, 0.3 * np.median(v[foreground(v)]), v.shape)),
    "inverted": lambda v: np.where(foreground(v), v.max() - v, v),
    "gamma": lambda v: 1000 * (v / v.max()) ** 0.4,
    "coarse": lambda v: np.repeat(np.repeat(v[::4, ::4], 4, 0), 4, 1)[: v.shape[0], : v.shape[1]],
}


@pytest.mark.parametrize("change", CHANGES)
def test_spoilt_images_are_strangers(
    change: str, brain: inference.TorchPredictor, patients: list[LabelledCase]
) -> None:
    flairs = [c.inputs["flair"] for c in patients[:6]]
    said = [words(brain, replace(f, voxels=CHANGES[change](f.voxels).astype(np.float32))) for f in flairs]
    assert sum(s is not None for s in said) >= 5


def test_phantoms_and_other_parts_of_the_body_are_strangers(brain: inference.TorchPredictor, shared_data: Path) -> None:
    for spacing_mm in (2.0, 0.9):
        size = (round(200 / spacing_mm), round(230 / spacing_mm), 28)
        head = Head((Lesion((28.0, -14.0, 12.0), (16.0, 14.0, 15.0)),), size, grid(size, (spacing_mm, spacing_mm, 5.0)))
        phantom = Volume(render(head)[0].astype(np.float32), head.affine, "arbitrary", "s", "0" * 64)
        assert words(brain, phantom) is not None
    slices = [pydicom.dcmread(p).pixel_array for p in sorted((shared_data / "label_import" / "ct").iterdir())]
    belly = np.repeat(np.clip(np.stack(slices, -1), 0, None), 8, 2).transpose(1, 0, 2).astype(np.float32)
    assert words(brain, Volume(belly, np.diag([0.8, 0.8, 5.0, 1.0]), "arbitrary", "s", "0" * 64)) is not None


def test_an_ultrasound_image_that_is_none_is_a_stranger(shared_data: Path) -> None:
    model = packaged("breast_us")
    assert isinstance(model.card, PictureCard)
    breast = still.load(model.card, model.weights, "cpu")
    files = sorted((shared_data / "breast_us" / "dicom").rglob("*.dcm"))[::60]
    images = [pydicom.dcmread(p).pixel_array / 255 for p in files]
    usual = [breast.strangeness(i.astype(np.float32)) for i in images]
    assert sum(s is not None and s.words is not None for s in usual) <= 0.12 * len(usual)
    rng = np.random.default_rng(1)
    belly = pydicom.dcmread(sorted((shared_data / "label_import" / "ct").iterdir())[0]).pixel_array.astype(np.float32)
    belly = np.clip(belly / 2000, 0, 1)
    for other in (1 - images[0], rng.random((300, 400)), belly):
        said = breast.strangeness(other.astype(np.float32))
        assert said is not None
        assert said.words is not None
