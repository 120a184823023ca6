"""Training: patients stay on one side, a kill costs nothing, a mask that does not fit is refused."""

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from medrec.config import packaged_configs
from medrec.errors import ConfigError, ScanError
from medrec.learning import cases, evaluation, phantoms, training
from medrec.learning.__main__ import FOLDS, of_fold, split
from medrec.learning.augmentation import Augmentation
from medrec.models import networks
from medrec.phantom import grid
from medrec.prediction import ModelCard, Training
from medrec.volume import LPS_TO_RAS, Volume


def draft() -> dict[str, object]:
    content: dict[str, object] = yaml.safe_load((packaged_configs() / "models" / "phantom.yaml").read_text())
    content["preprocessing"] = {"size_px": 32, "neighbours": 1}
    content["segmentation"] |= {"settings": {"channels": [4, 8, 16], "res_units": 1}}  # type: ignore[operator]
    content["classification"] |= {"settings": {"blocks": [1, 1], "growth": 4, "first": 8}}  # type: ignore[operator]
    content["training"] |= {"segmentation_steps": 6, "classification_steps": 6, "batch": 4}  # type: ignore[operator]
    return content


CARD = ModelCard.model_validate(draft())


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("labelled")
    phantoms.write(out, 6, seed=2)
    return out


@pytest.fixture(scope="module")
def loaded(labelled: Path) -> list[cases.LabelledCase]:
    return list(cases.load(CARD, labelled / "dicom", labelled / "studies.csv", labelled / "masks"))


def test_labelled_studies_are_read_with_their_masks_on_their_grids(loaded: list[cases.LabelledCase]) -> None:
    assert len(loaded) == 6
    for case in loaded:
        assert case.mask.shape == case.inputs["flair"].voxels.shape
    assert sum(case.mask.any() for case in loaded) == 4  # phantoms have 0, 1, 2, 3, 0, 1 lesions


def test_patients_are_held_back_by_what_the_table_calls_them(labelled: Path, loaded: list[cases.LabelledCase]) -> None:
    held = cases.named(labelled / "studies.csv", "-[13]$")
    assert len(held) == 2
    assert held < {c.study for c in loaded}
    with pytest.raises(ConfigError, match="no regular expression"):
        cases.named(labelled / "studies.csv", "(")


def test_bright_lesions_lie_under_their_masks(loaded: list[cases.LabelledCase]) -> None:
    for case in loaded:
        if case.mask.any():
            sample = cases.sample(case, CARD)
            inside = sample.images[:, 0][sample.target > 0.5].float().mean()
            outside = sample.images[:, 0][sample.target <= 0.5].float().mean()
            assert inside > outside + 0.5


@pytest.mark.parametrize("flip", [(True, False, False), (False, True, True)])
def test_a_mask_with_turned_axes_is_turned_and_one_on_another_grid_refused(
    tmp_path: Path, flip: tuple[bool, bool, bool]
) -> None:
    size, affine = (12, 14, 6), np.array(grid((12, 14, 6), (2.0, 2.0, 5.0)))
    volume = Volume(np.ones(size, np.float32), affine, "arbitrary", "s", "0" * 64)
    mask = np.zeros(size, np.uint8)
    mask[2:5, 3:9, 1] = 1
    turned = np.array(grid(size, (2.0, 2.0, 5.0), flip=flip))
    axes = tuple(n for n, f in enumerate(flip) if f)
    nib.save(nib.Nifti1Image(np.flip(mask, axes), LPS_TO_RAS @ turned), tmp_path / "m.nii.gz")
    assert np.array_equal(cases.read_mask(tmp_path / "m.nii.gz", volume), mask > 0)
    shifted = turned.copy()
    shifted[0, 3] += 1
    nib.save(nib.Nifti1Image(np.flip(mask, axes), LPS_TO_RAS @ shifted), tmp_path / "shifted.nii.gz")
    nib.save(nib.Nifti1Image(mask[:-1], LPS_TO_RAS @ affine), tmp_path / "smaller.nii.gz")
    for name in ("shifted", "smaller"):
        with pytest.raises(ScanError, match="not used"):
            cases.read_mask(tmp_path / f"{name}.nii.gz", volume)


def test_a_table_without_its_columns_is_a_mistake(tmp_path: Path, labelled: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="study_instance_uid"):
        list(cases.load(CARD, labelled / "dicom", tmp_path / "t.csv", labelled / "masks"))


def test_the_side_of_a_patient_depends_on_pixels_alone_and_about_a_fifth_validates() -> None:
    digests = [f"{n:064x}" for n in range(5000)]
    sides = [cases.is_validation(d) for d in digests]
    assert sides == [cases.is_validation(d) for d in digests]
    assert 0.18 < np.mean(sides) < 0.22


def slices() -> training.Slices:
    torch.manual_seed(0)
    images, targets = torch.randn(12, 3, 32, 32), torch.zeros(12, 1, 32, 32)
    targets[:6, :, 8:16, 8:16] = 1
    images[:6, :, 8:16, 8:16] += 3
    return training.Slices(images.half(), targets.half(), torch.arange(6), ((0, 12),))


def fitted(steps: int, checkpoint: Path, stop_at: int | None = None) -> dict[str, torch.Tensor]:
    class KilledError(Exception):
        pass

    def watch(step: int, network: torch.nn.Module) -> None:
        if step == stop_at:
            raise KilledError

    torch.manual_seed(1)
    network = networks.build("unet", {"channels": (4, 8), "res_units": 1}, 3)
    settings = Training(seed=3, batch=4, segmentation_steps=steps, classification_steps=steps)
    try:
        batches = training.varied(slices(), settings, 3, "cpu")
        result = training.fit(
            network, batches, training.outline_loss(), steps, settings, checkpoint, "cpu", watch, watch_every=1
        )
    except KilledError:
        return {}
    return dict(result.state_dict())


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    whole = fitted(8, tmp_path / "whole")
    assert fitted(8, tmp_path / "killed", stop_at=5) == {}
    resumed = fitted(8, tmp_path / "killed")
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_drawn_by_patient_each_patient_weighs_the_same_however_many_slices_it_has() -> None:
    many, few, none = (
        cases.Sample(torch.full((n, 1, 4, 4), v).half(), torch.zeros(n, 4, 4).half())
        for n, v in ((90, 1.0), (6, 2.0), (4, 3.0))
    )
    many.target[10:13] = 1
    few.target[2] = 1
    all_slices = training.Slices.of([many, few, none], 0)
    x, y = all_slices.draw(3000, torch.Generator().manual_seed(0), "patients")
    values = x[:, 0, 0, 0]
    for value in (1.0, 2.0, 3.0):
        assert 0.28 < (values == value).float().mean() < 0.39
    first, second = y[:1500].flatten(1).any(1), y[1500:].flatten(1).any(1)
    assert torch.equal(first, values[:1500] < 2.5)  # each of the first half that can show the finding does
    assert 0.03 < second.float().mean() < 0.13  # (3/90 + 1/6 + 0) / 3 of the others


def test_a_rehearsal_never_sees_the_patients_held_back(loaded: list[cases.LabelledCase]) -> None:
    learn, held_back = split(loaded, CARD, rehearsal=False)
    inner_learn, inner_held_back = split(loaded, CARD, rehearsal=True)
    assert sorted(c.study for c in [*learn, *held_back]) == sorted(c.study for c in loaded)
    assert sorted(c.study for c in [*inner_learn, *inner_held_back]) == sorted(c.study for c in learn)
    assert not {c.study for c in inner_learn} & {c.study for c in inner_held_back}


def test_every_patient_is_measured_in_one_fold_and_learnt_from_in_the_others(loaded: list[cases.LabelledCase]) -> None:
    everyone = {c.study for c in loaded}
    measured = []
    for fold in range(FOLDS):
        learn, held = of_fold(loaded, CARD, fold)
        assert {c.study for c in learn} | {c.study for c in held} == everyone
        assert len(learn) + len(held) == len(loaded)
        measured += [c.study for c in held]
    assert sorted(measured) == sorted(everyone)
    assert of_fold(loaded[::-1], CARD, 0)[1] == of_fold(loaded, CARD, 0)[1]  # whatever the order of the files
    assert len(of_fold(loaded, CARD, None)[0]) == len(loaded)


def test_dice_of_each_slice_notices_a_small_lesion_that_dice_of_the_batch_overlooks() -> None:
    target = torch.zeros(2, 1, 64, 64)
    target[0, :, :50, :50], target[1, :, :12, :12] = 1, 1
    found = (target * 2 - 1) * 12
    missed = found.clone()
    missed[1] = -12
    cost = {
        k: training.outline_loss(k)(missed, target) - training.outline_loss(k)(found, target) for k in ("batch", "both")
    }
    assert cost["both"] > cost["batch"] + 0.05


def test_strong_augmentation_follows_its_seed_and_keeps_the_target() -> None:
    x = torch.zeros(8, 5, 64, 64)
    x[:, :, 20:40, 24:36] = 3.0
    y = (x[:, :1] > 0).float()
    a, b = (Augmentation(torch.Generator().manual_seed(7), 3, strong=True)(x, y) for _ in range(2))
    assert torch.equal(a[0], b[0])
    assert torch.isfinite(a[0]).all()
    for image, mask in zip(a[0][:, 1], a[1][:, 0], strict=True):
        assert image[mask > 0.5].mean() > image[mask < 0.5].mean() + 0.5


def test_augmentation_moves_image_and_target_together_and_follows_its_seed() -> None:
    x = torch.zeros(8, 5, 64, 64)
    x[:, :, 20:40, 24:36] = 6.0
    y = (x[:, :1] > 0).float()
    a, b = (Augmentation(torch.Generator().manual_seed(5), 3)(x, y) for _ in range(2))
    assert torch.equal(a[0], b[0])
    moved, target = a
    assert (target.sum((1, 2, 3)) > 0).all()
    for image, mask in zip(moved[:, 1], target[:, 0], strict=True):
        assert image[mask > 0.5].mean() > image[mask < 0.5].mean() + 0.5
    assert {float(v) for v in target.unique()} <= {0.0, 1.0}


def test_slice_loss_asks_whether_a_slice_holds_the_finding() -> None:
    target = torch.zeros(2, 1, 100, 100)
    target[0, :, :10, :10] = 1
    right, wrong = torch.tensor([[9.0], [-9.0]]), torch.tensor([[-9.0], [9.0]])
    loss = training.slice_loss(0.005)
    assert loss(right, target) < 0.01
    assert loss(wrong, target) > 5


@pytest.mark.slow
def test_the_command_trains_measures_and_pins(labelled: Path, tmp_path: Path) -> None:
    (tmp_path / "phantom.yaml").write_text(yaml.safe_dump(draft()))
    words = ["--dicom", labelled / "dicom", "--table", labelled / "studies.csv", "--masks", labelled / "masks"]
    command = [sys.executable, "-m", "medrec.learning", tmp_path / "phantom.yaml", *words, "--out", tmp_path / "out"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    card = ModelCard.model_validate(yaml.safe_load((tmp_path / "out" / "phantom.yaml").read_text()))
    assert (tmp_path / "out" / card.segmentation.weights).is_file()
    assert len(card.trained_on) in range(1, 6)
    assert {m.what for m in card.measured} >= {"Dice, mean by patient", "slice AUC of slice position alone"}


def test_measured_numbers_of_a_perfect_model_are_one() -> None:
    truth = np.array([False, True, True, False])
    scores = [evaluation.CaseScore(str(n), 1.0, 5.0, 5.0, truth.astype(float), truth) for n in range(5)]
    values = {m.what: m.value for m in evaluation.measured(scores, "five")}
    assert values["Dice, mean by patient"] == 1
    assert values["slice AUC of the classifier"] == 1
    assert values["slice AUC of slice position alone"] == 1  # the middle slices are the positive ones here
