"""Which series becomes which input: by the card's patterns, by geometry, never by the order of files."""

from dataclasses import replace

import numpy as np
import pytest
import yaml
from phantoms import AXIAL, SAGITTAL, stack

from medrec.config import packaged_configs
from medrec.phantom import grid
from medrec.pipeline import incomplete
from medrec.prediction import ModelCard
from medrec.routing import Routed, covered_share, select
from medrec.series import Reason, ScanFile, Series, Skipped, Timing, Traits, arrange, group

CARD = ModelCard.model_validate(yaml.safe_load((packaged_configs() / "models" / "brain_mr.yaml").read_text()))
SIZE = (12, 10, 6)


def series(
    name: str, inputs: set[str], rotation: tuple[float, float, float] = AXIAL, **changes: object
) -> list[ScanFile]:
    affine = grid(SIZE, (2.0, 2.0, 6.0), rotation)
    matches = frozenset(f"brain_mr/{i}" for i in inputs)
    return [
        replace(
            f, series=name, instance=f"{name} {f.instance}", sha256=f"{name}{f.sha256}"[:64], matches=matches, **changes
        )
        for f in stack(affine, SIZE)
    ]


def routed(*many: list[ScanFile]) -> Routed | Skipped | None:
    (study,) = group([f for files in many for f in files])
    return select(study, CARD)


def test_a_study_without_a_required_input_is_not_routed() -> None:
    assert routed(series("a", {"t1_pre"})) is None
    assert routed(series("a", set())) is None


def test_inputs_are_found_by_their_patterns() -> None:
    result = routed(series("a", {"flair"}), series("b", {"t1_post"}), series("c", set()))
    assert isinstance(result, Routed)
    assert {name: s.first.series for name, s in result.inputs.items()} == {"flair": "a", "t1_post": "b"}


def test_a_defective_required_input_refuses_the_study_by_its_defect() -> None:
    files = series("a", {"flair"})
    del files[3]
    result = routed(files, series("b", {"t1_pre"}))
    assert isinstance(result, Skipped)
    assert result.reason is Reason.MISSING_SLICE
    assert "FLAIR" in result.detail
    assert {f.series for f in result.files} == {"a"}


def test_a_defective_optional_input_is_left_out_and_named() -> None:
    broken = series("b", {"t1_pre"})
    del broken[3]
    result = routed(series("a", {"flair"}), broken)
    assert isinstance(result, Routed)
    assert set(result.inputs) == {"flair"}
    assert [s.reason for s in result.defective] == [Reason.MISSING_SLICE]


def test_of_two_that_fit_the_axial_one_as_acquired_is_used_and_the_other_named() -> None:
    result = routed(
        series("a", {"flair"}, SAGITTAL),
        series("b", {"flair"}, image_type=("DERIVED", "SECONDARY")),
        series("c", {"flair"}, series_number=9),
    )
    assert isinstance(result, Routed)
    assert result.inputs["flair"].first.series == "c"
    assert set(result.passed_over) == {"a", "b"}


def test_a_sagittal_stack_is_outside_the_card() -> None:
    result = routed(series("a", {"flair"}, SAGITTAL))
    assert isinstance(result, Skipped)
    assert result.reason is Reason.OUTSIDE_CARD
    assert "degrees" in result.detail


@pytest.mark.parametrize("frame", ["another", None])
def test_an_input_of_another_frame_of_reference_is_not_combined(frame: str | None) -> None:
    result = routed(series("a", {"flair"}), series("b", {"t1_pre"}, frame_of_reference=frame))
    assert isinstance(result, Routed)
    assert set(result.inputs) == {"flair"}
    assert "frame of reference" in result.passed_over["b"]


def test_the_order_of_files_does_not_change_the_choice() -> None:
    files = [*series("a", {"flair"}), *series("b", {"flair"}), *series("c", {"t1_pre", "t1_post"})]
    forward, backward = routed(files), routed(files[::-1])
    assert forward == backward
    assert isinstance(forward, Routed)
    names = [s.first.series for s in forward.inputs.values()]
    assert len(names) == len(set(names))  # one series is never two inputs


DESCRIPTIONS = {
    "FLAIR": "flair", "AX T2 FLAIR": "flair", "FLAIR_reg": "flair", "t2_tirm_tra_dark-fluid": "flair",
    "T1 pre": "t1_pre", "T1pre_reg": "t1_pre", "AX T1": "t1_pre", "t1_se_tra": "t1_pre", "SAG MPRAGE": "t1_pre",
    "T1 post": "t1_post", "T1post": "t1_post", "AX T1 +C": "t1_post", "T1 GD": "t1_post", "MPRAGE POST": "t1_post",
    "T2reg": None, "dT1": None, "ADCreg": None, "sRCBVreg": None, "DWI": None, "FLAIR mask": None,
}  # fmt: skip


@pytest.mark.parametrize("description", DESCRIPTIONS)
def test_descriptions_as_scanners_write_them_fit_what_they_are(description: str) -> None:
    import re

    found = [
        name
        for name, rule in CARD.inputs.items()
        if re.search(rule.match["SeriesDescription"], description)
        and not re.search(rule.exclude["SeriesDescription"], description)
    ]
    assert found == ([DESCRIPTIONS[description]] if DESCRIPTIONS[description] else [])


UNASKED = CARD.inputs["flair"].model_copy(update={"contrast": None})
LAX = CARD.model_copy(update={"inputs": {**CARD.inputs, "flair": UNASKED}})


def test_a_t1_called_flair_is_refused_by_name() -> None:
    files = series("a", {"flair"}, timing=Timing(echo_ms=9.5, repetition_ms=500))
    (study,) = group(files)
    result = select(study, CARD)
    assert isinstance(result, Skipped)
    assert result.reason is Reason.WRONG_CONTRAST
    assert "9.5 ms" in result.detail
    assert isinstance(select(study, LAX), Routed), "a card that does not ask is not answered"


def test_a_stray_image_is_left_out_and_named() -> None:
    stray = replace(series("a", {"flair"})[0], instance="stray", sha256="5" * 64, ordinal=99, rows=7)
    result = routed([*series("a", {"flair"}), stray])
    assert isinstance(result, Routed)
    assert len(result.inputs["flair"].slices) == 6
    assert [d.files for d in result.defective] == [(stray,)]


def test_one_of_several_volumes_at_a_place_is_not_chosen_for_a_model() -> None:
    echoes = [
        replace(
            f,
            instance=f"{f.instance} {e}",
            sha256=f"{e}{f.sha256}"[:64],
            ordinal=f.ordinal + e,
            traits=Traits(echo_ms=e),
        )
        for e in (10, 90)
        for f in series("a", {"flair"})
    ]
    result = routed(echoes)
    assert isinstance(result, Skipped)
    assert result.reason is Reason.SAME_POSITION
    assert "echo time" in result.detail


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"photometric": "MONOCHROME1"}, Reason.NOT_GREYSCALE),
        ({"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, Reason.OUTSIDE_CARD),
    ],
)
def test_what_can_be_converted_is_not_always_fit_for_a_model(change: dict[str, object], reason: Reason) -> None:
    result = routed(series("a", {"flair"}, **change))
    assert isinstance(result, Skipped)
    assert result.reason is reason


def test_a_stack_covers_its_share_of_another() -> None:
    whole, half = (arrange(series("a", set())[:n]) for n in (6, 3))
    assert isinstance(whole, Series)
    assert isinstance(half, Series)
    assert covered_share(half, whole) == pytest.approx(0.5)
    assert covered_share(whole, half) == pytest.approx(1.0)
    side = arrange(series("s", set(), SAGITTAL))
    assert isinstance(side, Series)
    assert covered_share(side, whole) is None


def test_missing_end_slices_are_noticed_by_what_headers_promise() -> None:
    files = [replace(f, promised_images=6) for f in series("a", {"flair"})]
    for kept, told in ((6, ()), (5, ("incomplete: the headers promise 6 slices, 5 are here",))):
        result = routed(files[:kept])
        assert isinstance(result, Routed)
        assert incomplete(result, CARD) == told


def test_missing_end_slices_are_noticed_beside_a_longer_sibling() -> None:
    for kept, count in ((6, 0), (5, 0), (4, 1), (3, 1)):
        result = routed(series("a", {"flair"})[:kept], series("b", {"t1_pre"}))
        assert isinstance(result, Routed)
        found = incomplete(result, CARD)
        assert len(found) == count
        assert all("of the extent of T1 PRE" in text for text in found)


def tilted(name: str, inputs: set[str], degrees: float) -> list[ScanFile]:
    lean = 6.0 * np.tan(np.radians(degrees))
    files = series(name, inputs)
    return [replace(f, position_mm=(x, y + lean * k, z)) for k, f in enumerate(files) for x, y, z in [f.position_mm]]


def test_a_tilted_gantry_is_refused_unless_the_card_takes_it() -> None:
    refused = routed(tilted("a", {"flair"}, 12.0))
    assert isinstance(refused, Skipped)
    assert refused.reason is Reason.TILTED
    assert "12.0 degrees" in refused.detail
    willing = CARD.model_copy(update={"envelope": CARD.envelope.model_copy(update={"max_gantry_tilt_deg": 15.0})})
    (study,) = group(tilted("a", {"flair"}, 12.0))
    taken = select(study, willing)
    assert isinstance(taken, Routed)
    assert taken.inputs["flair"].gantry_tilt_deg == pytest.approx(12.0, abs=1e-3)


@pytest.mark.parametrize(
    ("image_type", "kind"),
    [
        (("DERIVED", "PRIMARY", "PROJECTION IMAGE", "MIP"), "projection"),
        (("DERIVED", "SECONDARY", "SCREEN SAVE"), "screenshot"),
        (("DERIVED", "PRIMARY", "SUBTRACTION"), "subtracted"),
        (("DERIVED", "PRIMARY", "DIFFUSION", "ADC"), "map"),
    ],
)
def test_a_processed_series_of_a_refused_kind_is_no_input(image_type: tuple[str, ...], kind: str) -> None:
    result = routed(series("a", {"flair"}, image_type=image_type))
    assert isinstance(result, Skipped)
    assert (result.reason, kind in result.detail) == (Reason.OUTSIDE_CARD, True)


@pytest.mark.parametrize(
    "image_type", [("DERIVED", "PRIMARY", "MPR"), ("DERIVED", "SECONDARY"), ("DERIVED", "SECONDARY", "REG")]
)
def test_derived_alone_or_resampled_or_registered_is_no_refusal(image_type: tuple[str, ...]) -> None:
    assert isinstance(routed(series("a", {"flair"}, image_type=image_type)), Routed)


def test_a_secondary_capture_is_a_screenshot() -> None:
    result = routed(series("a", {"flair"}, screen_copy=True))
    assert isinstance(result, Skipped)
    assert "screenshot" in result.detail
