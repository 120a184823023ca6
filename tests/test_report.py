"""The verdict is careful: one of three, with its doubts, and never a word that calms."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from medrec.findings import Finding
from medrec.prediction import Decision, ModelCard
from medrec.report import Report, Status, Verdict, decide, verdict_text

DECISION = Decision(minimum_volume_mm3=500, slice_threshold=0.5, sure_slice_threshold=0.9, sure_slices=3)
CARD = ModelCard.model_validate(
    {
        "name": "toy",
        "version": "1.0.0",
        "title": "A card for tests",
        "finding": "FLAIR-hyperintense region",
        "intended_use": "tests",
        "limits": [],
        "mimics": [],
        "data": "none",
        "licence": "none",
        "inputs": {"flair": {"required": True, "match": {"SeriesDescription": "FLAIR"}}},
        "grid": "flair",
        "envelope": {"max_tilt_from_axial_deg": 30, "min_coverage_mm": 60, "slice_distance_mm": [1, 8]},
        "preprocessing": {"size_px": 32},
        "segmentation": {"kind": "unet", "weights": "toy.safetensors", "sha256": "0" * 64},
        "decision": DECISION.model_dump(),
        "training": {"segmentation_steps": 1, "classification_steps": 1},
        "measured": [],
        "trained_on": [],
    }
)
NOTHING = np.full(20, 0.1, np.float32)


def finding(first=5, last=9, volume_mm3=4000.0, side="left", number=1):
    zero = (0.0, 0.0, 0.0)
    return Finding(
        number=number,
        volume_mm3=volume_mm3,
        longest_axial_mm=20.0,
        perpendicular_mm=15.0,
        axial_slice=7,
        longest_axial_ends_ijk=(zero, zero),
        perpendicular_ends_ijk=(zero, zero),
        longest_3d_mm=22.0,
        centroid_lps_mm=zero,
        box_lps_mm=(zero, zero),
        side=side,
        first_slice=first,
        last_slice=last,
        probability=0.8,
    )


def slices(**values):
    """Per-slice probabilities of 0.1, but for some: s5=0.7 is slice 5."""
    probability = NOTHING.copy()
    for name, value in values.items():
        probability[int(name[1:])] = value
    return probability


# The table of verdicts


@pytest.mark.parametrize(
    ("findings", "probability", "outside", "verdict", "doubt"),
    [
        ([finding()], slices(s7=0.8), [], Verdict.FINDING, None),
        ([finding()], slices(s5=0.5), [], Verdict.FINDING, None),  # at the threshold, on the first slice
        ([finding()], slices(s9=0.6), [], Verdict.FINDING, None),  # on the last slice
        ([finding()], None, [], Verdict.FINDING, None),  # a card without a classifier
        ([], NOTHING, [], Verdict.NOTHING_MARKED, None),
        ([], None, [], Verdict.NOTHING_MARKED, None),
        ([], slices(s3=0.99, s4=0.99), [], Verdict.NOTHING_MARKED, None),  # two sure slices are not three
        ([], slices(s3=0.99, s4=0.99, s6=0.99), [], Verdict.NOTHING_MARKED, None),  # not neighbours
        ([], slices(s3=0.89, s4=0.89, s5=0.89), [], Verdict.NOTHING_MARKED, None),  # not sure enough
        # The two networks disagree, one way and the other.
        ([finding()], NOTHING, [], Verdict.INCONCLUSIVE, "no slice of it"),
        ([finding()], slices(s4=0.9, s10=0.9), [], Verdict.INCONCLUSIVE, "no slice of it"),  # beside it
        ([], slices(s3=0.9, s4=0.95, s5=0.99), [], Verdict.INCONCLUSIVE, "3 neighbouring slices"),
        ([], slices(s17=0.9, s18=0.9, s19=0.9), [], Verdict.INCONCLUSIVE, "3 neighbouring slices"),  # at the end
        ([], np.ones(20, np.float32), [], Verdict.INCONCLUSIVE, "20 neighbouring slices"),
        # Outside of the card, whatever the networks say.
        ([finding()], slices(s7=0.8), ["tilted by 40 degrees"], Verdict.INCONCLUSIVE, "tilted"),
        ([], NOTHING, ["covers 30 mm"], Verdict.INCONCLUSIVE, "covers 30 mm"),
        ([], None, ["covers 30 mm"], Verdict.INCONCLUSIVE, "covers 30 mm"),
    ],
)
def test_verdict_of(findings, probability, outside, verdict, doubt):
    given, doubts = decide(findings, probability, outside, DECISION)
    assert given is verdict
    assert bool(doubts) == (verdict is Verdict.INCONCLUSIVE), "a doubt is given exactly where there is no verdict"
    assert doubt is None or any(doubt in d for d in doubts)


def test_every_doubt_is_told_and_not_the_first_alone():
    _, doubts = decide([finding()], NOTHING, ["tilted by 40 degrees", "covers 30 mm"], DECISION)
    assert len(doubts) == 3


def test_the_thresholds_come_from_the_card():
    lenient = Decision(minimum_volume_mm3=500, slice_threshold=0.05, sure_slice_threshold=0.96, sure_slices=1)
    assert decide([finding()], NOTHING, [], lenient)[0] is Verdict.FINDING
    assert decide([], slices(s3=0.97), [], lenient)[0] is Verdict.INCONCLUSIVE


def test_deciding_changes_nothing():
    outside = ["covers 30 mm"]
    decide([finding()], NOTHING, outside, DECISION)
    assert outside == ["covers 30 mm"]


# The words

SOME = [[], [finding()], [finding(), finding(volume_mm3=700.0, side="right", number=2)]]
CALMING = ("normal", "no tumour", "no tumor", "healthy", "free of", "excluded", "benign", "no finding", "negative")


def all_texts():
    """Every text that can be printed, but for a finding without findings, which `decide` never says."""
    for verdict, findings in product(Verdict, SOME):
        if verdict is not Verdict.FINDING or findings:
            yield verdict_text(verdict, findings, CARD, False)


def test_no_verdict_ever_calms():
    for text in all_texts():
        assert not [word for word in CALMING if word in text.lower().replace("no tumour-free patients", "")], text
    assert not [word for v in Verdict for word in CALMING if word in v.value]


def test_every_verdict_is_whole_sentences():
    for text in all_texts():
        assert text.endswith(".")
        assert text[0].isupper() or text[0].isdigit()


def test_nothing_marked_says_what_that_does_not_mean():
    text = verdict_text(Verdict.NOTHING_MARKED, [], CARD, False)
    assert "at least 0.5 ml" in text
    assert "does not exclude tumour" in text
    assert "no tumour-free patients were tested" in text


def test_a_finding_is_called_what_the_card_calls_it_with_its_volume_and_side():
    one = verdict_text(Verdict.FINDING, SOME[1], CARD, False)
    assert "One FLAIR-hyperintense region" in one
    assert "4.0 ml" in one
    assert "left" in one
    two = verdict_text(Verdict.FINDING, SOME[2], CARD, False)
    assert "2 FLAIR-hyperintense regions" in two
    assert "4.7 ml" in two
    assert "tumour" not in one + two


def test_inconclusive_says_so_before_anything_else():
    for findings in SOME:
        assert verdict_text(Verdict.INCONCLUSIVE, findings, CARD, False).startswith("No verdict")


# The facts


def report(**changes):
    made = Report(
        case="case",
        study="study",
        patient="patient",
        batch="batch",
        created="2026-01-02T03:04:05Z",
        status=Status.ANALYSED,
        reason="",
        verdict=Verdict.FINDING,
        verdict_text="One region.",
        flags=(),
        findings=(finding(),),
        slice_probability=(0.25, 0.5),
        spacing_mm=(1.0, 1.0, 5.0),
        shape=(4, 4, 2),
        geometry_nominal=False,
        lossy=False,
        series=(),
        inputs=("0" * 64,),
        refused_inputs={},
        pixels_sha256={"flair": "0" * 64},
        model_name="toy",
        model_version="1.0.0",
        card_sha256="0" * 64,
        weights_sha256={"segmentation": "0" * 64},
        licence="none",
        config_sha256="0" * 64,
        code_version="0",
        device="cpu",
    )
    return replace(made, **changes)


def test_facts_survive_json():
    facts = report().facts()
    again = json.loads(json.dumps(facts, allow_nan=False))
    assert again["verdict"] == "finding"
    assert again["status"] == "analysed"
    assert again["findings"][0]["volume_mm3"] == 4000.0
    assert again["findings"][0]["box_lps_mm"] == [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert set(again) == set(Report.__slots__)


def test_facts_are_a_copy():
    made = report()
    made.facts()["pixels_sha256"]["flair"] = "changed"
    assert made.pixels_sha256 == {"flair": "0" * 64}


def test_a_refused_study_has_no_verdict():
    facts = report(status=Status.REFUSED, verdict=None, findings=(), reason="missing slice").facts()
    assert facts["verdict"] is None
    assert json.loads(json.dumps(facts))["status"] == "refused"
