"""Networks see every scanner's head in one frame, and what they mark lies where it was seen."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from medrec.config import CardFiles, load, packaged_configs
from medrec.errors import ConfigError, WeightsError
from medrec.models import inference, networks, preprocessing, weights
from medrec.phantom import Head, Lesion, grid, render
from medrec.pictures import card_of
from medrec.prediction import ModelCard, Prediction
from medrec.volume import HU, Volume

LESION = Lesion((28.0, -14.0, 12.0), (16.0, 14.0, 15.0))


def head(
    spacing_mm: tuple[float, float, float], rotation: tuple[float, float, float], flip: tuple[bool, bool, bool]
) -> Head:
    size = (int(200 / spacing_mm[0]), int(230 / spacing_mm[1]), int(140 / spacing_mm[2]))
    return Head((LESION,), size, grid(size, spacing_mm, rotation, flip), seed=5)


def volume(of: Head) -> Volume:
    return Volume(render(of)[0].astype(np.float32), of.affine, "arbitrary", "s", "0" * 64)


@pytest.fixture(scope="module")
def model() -> CardFiles:
    return next(c for c in load().cards if c.card.name == "phantom")


@pytest.fixture(scope="module")
def predictor(model: CardFiles) -> inference.TorchPredictor:
    return inference.load(model.card, model.weights, "cpu")


POSES = {
    "plain": ((2.0, 2.0, 5.0), (0.0, 0.0, 0.0), (False, False, False)),
    "feet to head reversed": ((2.0, 2.0, 5.0), (0.0, 0.0, 0.0), (False, False, True)),
    "columns run to the right": ((2.0, 2.0, 5.0), (0.0, 0.0, 0.0), (True, False, False)),
    "rows run forward": ((2.0, 2.0, 5.0), (0.0, 0.0, 0.0), (False, True, False)),
    "all reversed": ((2.0, 2.0, 5.0), (0.0, 0.0, 0.0), (True, True, True)),
    "turned in plane": ((2.0, 2.0, 5.0), (0.0, 0.0, 90.0), (False, False, False)),
    "oblique": ((2.0, 2.0, 5.0), (9.0, -5.0, 6.0), (False, False, False)),
    "pixels not square": ((1.6, 2.4, 4.0), (0.0, 0.0, 0.0), (False, False, False)),
    "fine pixels": ((1.0, 1.0, 6.0), (4.0, 0.0, 0.0), (False, False, False)),
}


@pytest.mark.parametrize("name", POSES)
def test_a_lesion_is_marked_where_it_lies_whatever_the_scanners_axes(
    name: str, predictor: inference.TorchPredictor
) -> None:
    of = head(*POSES[name])
    prediction = predictor.predict({"flair": volume(of)})
    marked = np.argwhere(prediction.mask)
    world = marked @ of.affine[:3, :3].T + of.affine[:3, 3]
    assert np.abs(world.mean(0) - LESION.centre_lps_mm).max() < 2.5  # half a slice
    truth = render(of)[1]
    overlap = 2 * (truth & prediction.mask).sum() / (truth.sum() + prediction.mask.sum())
    assert overlap > 0.85


def test_an_ensemble_says_the_mean_of_what_its_networks_say(model: CardFiles) -> None:
    def outlining(seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        return networks.build("unet", {"channels": (4, 8), "res_units": 1}, 3)

    scan = {"flair": volume(head(*POSES["oblique"]))}
    first, second = outlining(1), outlining(2)
    alone = [inference.TorchPredictor(model.card, [n], None, "cpu").predict(scan).probability for n in (first, second)]
    both = inference.TorchPredictor(model.card, [first, second], None, "cpu").predict(scan).probability
    assert np.abs(alone[0] - alone[1]).max() > 0.05
    assert np.abs(both - (alone[0] + alone[1]) / 2).max() < 1e-6


def test_a_card_names_each_file_of_weights_once_and_pins_those_of_its_ensemble(model: CardFiles) -> None:
    content = model.card.model_dump(mode="json")
    with pytest.raises(ValueError, match="same file"):
        ModelCard.model_validate(content | {"ensemble": [content["segmentation"]]})
    other = content["segmentation"] | {"weights": "other.safetensors", "sha256": "0" * 64}
    more = ModelCard.model_validate(content | {"ensemble": [other]})
    assert list(more.networks) == ["segmentation", "ensemble.0", "classification"]
    assert more.weights_digest != model.card.weights_digest


def test_slice_probabilities_follow_the_order_of_the_slices(predictor: inference.TorchPredictor) -> None:
    up = volume(head(*POSES["plain"]))
    step = np.eye(4)
    step[2, 2], step[2, 3] = -1, up.voxels.shape[2] - 1
    down = Volume(up.voxels[:, :, ::-1].copy(), up.affine_ijk_to_lps @ step, "arbitrary", "s", "0" * 64)
    a, b = (predictor.predict({"flair": v}).slice_probability for v in (up, down))
    assert a is not None
    assert b is not None
    assert np.abs(a - b[::-1]).max() < 1e-5
    assert a.max() > 0.9
    assert a.min() < 0.1


def test_the_same_volume_gives_the_same_bits(predictor: inference.TorchPredictor) -> None:
    scan = volume(head(*POSES["oblique"]))
    first, second = predictor.predict({"flair": scan}), predictor.predict({"flair": scan})
    assert np.array_equal(first.probability, second.probability)


def test_scaling_the_intensities_changes_no_mark(predictor: inference.TorchPredictor) -> None:
    scan = volume(head(*POSES["plain"]))
    other = Volume(scan.voxels * 7, scan.affine_ijk_to_lps.copy(), "arbitrary", "s", "0" * 64)
    a, b = (predictor.predict({"flair": v}).mask for v in (scan, other))
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.99


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(20, 50), st.integers(20, 50), st.integers(2, 5)),
    flip=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    quarter=st.integers(0, 3),
    corner=st.tuples(st.integers(0, 8), st.integers(0, 8)),
)
def test_back_undoes_cut(
    size: tuple[int, int, int], flip: tuple[bool, bool, bool], quarter: int, corner: tuple[int, int]
) -> None:
    affine = np.array(grid(size, (2.0, 2.0, 5.0), (0.0, 0.0, 90.0 * quarter), flip))
    smooth = np.zeros(size, np.float32)
    smooth[corner[0] :, corner[1] :] = 1.0
    smooth[-4:, :] = 0.0
    scan = Volume(smooth, affine, "arbitrary", "s", "0" * 64)
    frame = preprocessing.frame_of(scan, 128)
    back = frame.back(frame.cut(smooth))
    inside = frame.back(torch.ones(frame.shape[2], 128, 128)) > 0.5
    wrong = np.abs(back - smooth)[inside] > 0.51  # only the voxels on an edge may be smoothed
    assert wrong.sum() == 0


def test_a_stack_gets_its_neighbours_and_repeats_its_ends() -> None:
    stack = torch.arange(4.0).reshape(4, 1, 1, 1).repeat(1, 2, 1, 1)
    stack[:, 1] += 10
    seen = preprocessing.with_neighbours(stack, 1)[:, :, 0, 0]
    assert seen.tolist() == [[0, 0, 1, 10], [0, 1, 2, 11], [1, 2, 3, 12], [2, 3, 3, 13]]


def test_networks_see_ct_in_a_window_as_they_would_see_the_same_picture_whose_air_is_at_zero(model: CardFiles) -> None:
    plain = volume(head(*POSES["oblique"]))
    low, high = np.float32(-200), np.float32(plain.voxels.max() - 500)
    ct = replace(plain, voxels=plain.voxels + low, unit=HU)
    cut = replace(plain, voxels=np.minimum(plain.voxels, high - low))
    windowed = model.card.preprocessing.model_copy(update={"window": (float(low), float(high))})
    card = model.card.model_copy(update={"preprocessing": windowed})
    seen, _ = preprocessing.images({"flair": ct}, card)
    assert torch.allclose(seen, preprocessing.images({"flair": cut}, model.card)[0], atol=1e-4)
    assert card.digest != model.card.digest
    assert b"window" not in model.card.content  # cards from before keep their digest


def test_weights_with_another_digest_are_not_used(model: CardFiles, tmp_path: Path) -> None:
    name, path = next(iter(model.weights.items()))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(WeightsError, match="not used"):
        weights.read(tmp_path / name, model.card.segmentation.sha256)
    with pytest.raises(WeightsError, match="no such file"):
        weights.read(tmp_path / "gone.safetensors", "0" * 64)


def test_weights_of_another_network_do_not_load(model: CardFiles) -> None:
    other = networks.build("unet", {"channels": (4, 8), "res_units": 1}, 3)
    with pytest.raises(WeightsError, match="do not fit"):
        weights.fill(other, model.weights[model.card.segmentation.weights].read_bytes(), "x")


def test_what_is_written_reads_back_within_half_precision(tmp_path: Path) -> None:
    network = networks.build("unet", {"channels": (4, 8), "res_units": 1}, 3)
    digest = weights.write(network.state_dict(), tmp_path / "w.safetensors")
    again = networks.build("unet", {"channels": (4, 8), "res_units": 1}, 3)
    weights.fill(again, weights.read(tmp_path / "w.safetensors", digest), "w")
    for key, value in network.state_dict().items():
        assert torch.allclose(value.float(), again.state_dict()[key].float(), atol=1e-3)


def test_an_unknown_network_or_setting_is_a_mistake_of_the_card() -> None:
    with pytest.raises(ConfigError, match="no network"):
        networks.build("os.system", {}, 1)
    with pytest.raises(ConfigError, match="settings"):
        networks.build("unet", {"evil": 1}, 1)


def test_values_that_are_no_numbers_never_become_nothing_marked() -> None:
    bad = np.full((2, 2, 2), np.nan, np.float32)
    with pytest.raises(ArithmeticError):
        Prediction(bad, bad > 0.5, None)


@pytest.mark.parametrize("path", sorted((packaged_configs() / "models").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_card_is_small_measured_and_says_what_it_was_trained_on(path: Path) -> None:
    card = card_of(yaml.safe_load(path.read_text()))
    files = next(c for c in load().cards if c.card.name == card.name).weights.values()
    assert sum(p.stat().st_size for p in files) <= 12e6
    assert all(m.low <= m.value <= m.high for m in card.measured)
    assert card.measured
    assert card.trained_on
    assert card.limits
    assert card.mimics


def test_a_kept_card_gives_the_networks_their_channels_in_the_same_order() -> None:
    for model in load().cards:
        again = card_of(json.loads(model.card.content))
        assert list(again.inputs) == list(model.card.inputs)
        assert again.digest == model.card.digest
