"""Pictures: what is marked lies on the pixels where it was seen, for every size and shape of image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medrec.models import networks, still
from medrec.pictures import PictureCard, PicturePrediction

SIZE = 64


def card(**changes: object) -> PictureCard:
    network = {"kind": "unet", "settings": {"channels": [4, 8], "res_units": 1}, "sha256": "0" * 64}
    content: dict[str, object] = {
        "name": "toy",
        "version": "0.0.1",
        "title": "Toy",
        "finding": "bright disc",
        "intended_use": "None.",
        "limits": ["all"],
        "mimics": ["none"],
        "data": "made here",
        "licence": "Apache-2.0",
        "input": {"match": {"Modality": "^US$"}},
        "preprocessing": {"size_px": SIZE, "paint_out_marks": False},
        "segmentation": network | {"weights": "outline.safetensors"},
        "positive": "malignant",
        "class_column": "pathology",
        "decision": {"minimum_area_px": 5},
        "training": {"segmentation_steps": 5, "classification_steps": 5, "batch": 4},
        "measured": [],
        "trained_on": [],
    }
    return PictureCard.model_validate(content | changes)


def disc(shape: tuple[int, int], row: float, column: float, radius: float) -> np.ndarray:
    rows, columns = np.indices(shape)
    return np.asarray(np.hypot(rows - row, columns - column) <= radius)


class Bright(torch.nn.Module):
    """Marks what is bright."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1] * 20


class Wide(torch.nn.Module):
    """Says how much of what it sees is outlined, and remembers it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x
        return x[:, 1:].mean((2, 3))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(60, 300), st.integers(60, 300)),
    place=st.tuples(st.floats(0.2, 0.8), st.floats(0.2, 0.8)),
    size_px=st.sampled_from([64, 128, 160]),
)
def test_back_undoes_whole(shape: tuple[int, int], place: tuple[float, float], size_px: int) -> None:
    mask = disc(shape, place[0] * shape[0], place[1] * shape[1], 20)
    seen = still.whole(torch.from_numpy(mask.astype(np.float32))[None, None], size_px)
    back = still.back(seen, shape) > 0.5
    assert 2 * (back & mask).sum() / (back.sum() + mask.sum()) > (0.9 if size_px == 64 else 0.95)
    centre, truth = np.argwhere(back).mean(0), np.argwhere(mask).mean(0)
    assert np.abs(centre - truth).max() < 0.6


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(80, 300), st.integers(80, 300)),
    place=st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)),
    radius=st.floats(13, 30),
    scale=st.floats(1.3, 3.0),
)
def test_a_lesion_lies_in_the_middle_of_its_crop_in_the_size_that_the_scale_says(
    shape: tuple[int, int], place: tuple[float, float], radius: float, scale: float
) -> None:
    mask = disc(shape, radius + place[0] * (shape[0] - 2 * radius), radius + place[1] * (shape[1] - 2 * radius), radius)
    crop = still.to_classify(torch.zeros(1, 1, *shape), mask, scale, 128)[0, 1] > 0
    rows, columns = np.nonzero(crop.numpy())
    assert abs(rows.mean() - 63.5) < 2
    assert abs(columns.mean() - 63.5) < 2
    share = crop.float().mean() / (np.pi / 4 / scale**2)  # of a square `scale` times as wide as the disc
    assert 0.88 < share < 1.12


def test_the_mask_lies_on_the_lesion_and_the_classifier_sees_it_from_close_by() -> None:
    shape = (150, 90)
    lesion = disc(shape, 100, 30, 14)
    classifier = Wide()
    predictor = still.StillPredictor(card(), Bright(), classifier, "cpu")
    said = predictor.predict(np.where(lesion, 0.9, 0.1).astype(np.float32))
    assert said.mask.shape == shape
    assert 2 * (said.mask & lesion).sum() / (said.mask.sum() + lesion.sum()) > 0.93
    assert classifier.seen.shape == (2, 2, SIZE, SIZE)  # as it is, and mirrored
    expected = torch.tensor(2 * np.pi / 4 / 1.6**2 - 1).sigmoid()
    assert said.positive == pytest.approx(float(expected), abs=0.03)


def test_nothing_marked_is_classified_from_the_whole_image() -> None:
    classifier = Wide()
    said = still.StillPredictor(card(), Bright(), classifier, "cpu").predict(np.full((80, 120), 0.1, np.float32))
    assert not said.mask.any()
    assert classifier.seen[0, 1].max() == -1


def test_only_the_largest_region_stays_with_its_holes_filled_unless_it_is_too_small() -> None:
    ring = disc((60, 60), 30, 30, 12) & ~disc((60, 60), 30, 30, 5)
    small = disc((60, 60), 5, 5, 3)
    assert np.array_equal(still.largest(ring | small, 10), disc((60, 60), 30, 30, 12))
    assert not still.largest(small, 100).any()
    assert not still.largest(np.zeros((5, 5), bool), 1).any()


def test_the_same_image_gives_the_same_bits() -> None:
    torch.manual_seed(0)
    network = networks.build("lite_unet", {}, 1)
    predictor = still.StillPredictor(card(), network, None, "cpu")
    image = np.random.default_rng(0).random((90, 70)).astype(np.float32)
    first, second = predictor.predict(image), predictor.predict(image)
    assert np.array_equal(first.probability, second.probability)
    assert first.positive is None


def test_values_that_are_no_numbers_never_become_a_picture_without_a_mark() -> None:
    bad = np.full((2, 2), np.nan, np.float32)
    with pytest.raises(ArithmeticError):
        PicturePrediction(bad, bad > 0.5, None, 0)
    with pytest.raises(ArithmeticError):
        PicturePrediction(np.zeros((2, 2), np.float32), bad > 0.5, float("nan"), 0)


def test_a_classifier_looks_from_every_distance_of_its_card_and_the_answers_are_averaged() -> None:
    wide, image = Wide(), disc((90, 90), 45, 45, 12).astype(np.float32)
    rules = {"size_px": SIZE, "classify_px": 96, "crop": 1.6, "looks": [0.8, 1.0, 1.5], "paint_out_marks": False}
    classified = card(
        preprocessing=rules, classification={**card().networks["segmentation"].model_dump(), "weights": "c.safetensors"}
    )
    said = still.StillPredictor(classified, Bright(), wide, "cpu").predict(image).positive
    # The disc fills pi/4 of its box, which fills 1/(crop look)^2 of what is seen; the outline is -1 and 1.
    logits = [2 * np.pi / 4 / (1.6 * look) ** 2 - 1 for look in (0.8, 1.0, 1.5)]
    assert said == pytest.approx(float(np.mean([1 / (1 + np.exp(-x)) for x in logits])), abs=0.01)
    assert wide.seen.shape[2:] == (96, 96)
