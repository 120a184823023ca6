"""A series is what it is called, by how it was made; what contradicts it is said."""

from pathlib import Path

import numpy as np
import pytest

from medrec.contrast import FLUID_BRIGHT_RATIO, bright_against_dark, contradiction, fluid_is_dark, proved
from medrec.dicom import Archive, Pseudonyms
from medrec.series import Series, Timing, group
from medrec.stacks import stacks
from medrec.volume import Volume

# Echo, repetition and inversion times of ordinary protocols, in ms.
FLAIR_2D = Timing(90, 9000, 2500, ("SE", "IR"))
FLAIR_3D = Timing(388, 5000, 1800, ("SE", "IR"))
T2_TSE = Timing(92, 4000, None, ("SE",))
T1_SE = Timing(9.5, 500, None, ("SE",))
MPRAGE = Timing(2.9, 2300, 900, ("GR", "IR"))
T1_FLAIR = Timing(20, 2000, 800, ("SE", "IR"))
STIR = Timing(60, 4500, 150, ("SE", "IR"))
UNKNOWN = Timing()


@pytest.mark.parametrize(
    ("timing", "contrast"),
    [(FLAIR_2D, "flair"), (FLAIR_3D, "flair"), (T1_SE, "t1"), (MPRAGE, "t1"), (T1_FLAIR, "t1"), (T2_TSE, "t2")],
)
def test_ordinary_protocols_prove_what_they_are(timing, contrast) -> None:
    assert contradiction(timing, contrast) is None
    assert proved(timing, contrast)


@pytest.mark.parametrize(
    ("timing", "contrast"),
    [
        (T1_SE, "flair"), (MPRAGE, "flair"), (T1_FLAIR, "flair"), (STIR, "flair"),
        (T2_TSE, "t1"), (FLAIR_2D, "t1"), (FLAIR_2D, "t2"), (T1_SE, "t2"),
    ],
)  # fmt: skip
def test_other_protocols_contradict_the_name(timing, contrast) -> None:
    assert str(contradiction(timing, contrast)).startswith("called ")
    assert not proved(timing, contrast)


@pytest.mark.parametrize("contrast", ["flair", "t1", "t2"])
def test_nothing_is_proved_or_refuted_where_nothing_is_told(contrast) -> None:
    assert contradiction(UNKNOWN, contrast) is None
    assert not proved(UNKNOWN, contrast)


def test_a_t2_without_inversion_time_is_not_proved_to_be_flair() -> None:
    assert not proved(T2_TSE, "flair")


# By the image


def head(fluid: float, lesion: float = 1.0) -> np.ndarray:
    """(k, j, i): a disc of brain at 100 with two ventricles and a lesion, in noise of 5%."""
    j, i = np.mgrid[-64:64, -64:64]
    image = np.where(j**2 + i**2 < 55**2, 100.0, 0.0)
    image[(np.abs(np.abs(i) - 8) < 5) & (np.abs(j) < 15)] = 100 * fluid
    image[(i - 15) ** 2 + (j - 20) ** 2 < 8**2] = 100 * lesion
    noise = np.random.default_rng(0).normal(0, 5, (4, 128, 128))
    return np.maximum(image + noise * (image > 0), 0).astype(np.float32)


@pytest.mark.parametrize("lesion", [1.0, 1.6, 2.2])
def test_a_head_with_dark_ventricles_looks_like_flair_with_and_without_a_lesion(lesion: float) -> None:
    ratio = bright_against_dark(head(0.2, lesion))
    assert ratio is not None
    assert ratio < FLUID_BRIGHT_RATIO


def test_a_head_with_bright_ventricles_does_not() -> None:
    ratio = bright_against_dark(head(2.5))
    assert ratio is not None
    assert ratio > FLUID_BRIGHT_RATIO


def test_nothing_is_said_of_an_empty_or_tiny_image() -> None:
    assert bright_against_dark(np.zeros((3, 64, 64), np.float32)) is None
    assert bright_against_dark(head(0.2)[:, ::16, ::16]) is None


def real(folder: Path) -> Volume:
    archive = Archive(folder, Pseudonyms(b"k" * 32), {})
    (study,) = group(archive.index().files)
    series = stacks(study.series[0])[0]
    assert isinstance(series, Series)
    loaded = archive.load(series)
    assert isinstance(loaded, tuple)
    return loaded[0]


@pytest.mark.slow
def test_real_flair_has_dark_fluid_and_a_real_t2_has_not(shared_data: Path) -> None:
    tumour = shared_data / "real_dicom" / "glioblastoma_mr"
    flair, t2 = next(tumour.glob("*FLAIR*")), next(tumour.glob("*T2*"))
    assert fluid_is_dark(real(flair)) is True
    assert fluid_is_dark(real(t2)) is False
    for patient in sorted((shared_data / "brain_mr" / "dicom").iterdir())[::20]:
        assert fluid_is_dark(real(patient / "2")) is True, patient.name
