"""A series is what it is called, by how it was made; what contradicts it is said."""

import pytest

from medrec.contrast import contradiction, proved
from medrec.series import Timing

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
