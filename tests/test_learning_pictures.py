"""Training on pictures: patients stay on one side, views and classes weigh alike, outlines move with their images."""

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_pictures import card, disc
from test_stills import image

from medrec.errors import ConfigError, ScanError
from medrec.learning import pictures, training
from medrec.pictures import PictureCard

CARD = card()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight stills of six patients in two folds: a bright disc, malignant when it is large."""
    out = tmp_path_factory.mktemp("pictures")
    (out / "dicom").mkdir()
    (out / "masks").mkdir()
    rng = np.random.default_rng(0)
    with (out / "images.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "sop_instance_uid", "patient_id", "pathology", "fold"])
        for n in range(8):
            large = n % 2 == 0
            patient = max(0, n - 2)  # the first three are one patient's
            large = large or patient == 0
            lesion = disc((70, 50), 35, 25, 16 if large else 8)
            pixels = np.where(lesion, 200, 60) + rng.integers(0, 20, (70, 50))
            uid = f"1.2.3.{n + 1}"
            data = image(pixels.astype(np.uint16), SOPInstanceUID=uid, PatientID=f"P{patient}")
            (out / "dicom" / f"file{n}").write_bytes(data)
            Image.fromarray((lesion * 255).astype(np.uint8)).save(out / "masks" / f"i{n}.png")
            table.writerow([f"i{n}", uid, f"P{patient}", "malignant" if large else "benign", 1 if patient < 3 else 2])
    return out


def load(labelled: Path, card: PictureCard = CARD) -> list[pictures.LabelledPicture]:
    return list(pictures.load(card, labelled / "dicom", labelled / "images.csv", labelled / "masks"))


def test_each_image_is_read_with_its_mask_class_and_fold(labelled: Path) -> None:
    found = load(labelled)
    assert [p.image for p in found] == [f"i{n}" for n in range(8)]
    assert len({p.patient for p in found}) == 6
    for p in found:
        assert p.pixels[p.mask].mean() > p.pixels[~p.mask].mean() + 0.3
        assert p.positive == (p.mask.sum() > 400)


def test_a_patient_in_two_folds_a_missing_column_and_a_mask_of_another_size_are_refused(
    labelled: Path, tmp_path: Path
) -> None:
    rows = (labelled / "images.csv").read_text().splitlines()
    (tmp_path / "split.csv").write_text("\n".join([*rows[:2], rows[2][:-1] + "2", *rows[3:]]))
    with pytest.raises(ConfigError, match="more than one fold"):
        list(pictures.load(CARD, labelled / "dicom", tmp_path / "split.csv", labelled / "masks"))
    (tmp_path / "short.csv").write_text("image,fold\ni1,1\n")
    with pytest.raises(ConfigError, match="patient_id"):
        list(pictures.load(CARD, labelled / "dicom", tmp_path / "short.csv", labelled / "masks"))
    for n in range(8):
        Image.fromarray(np.zeros((50, 70), np.uint8)).save(tmp_path / f"i{n}.png")
    with pytest.raises(ScanError, match="not used"):
        list(pictures.load(CARD, labelled / "dicom", labelled / "images.csv", tmp_path))


def test_patients_weigh_the_same_whatever_their_views_and_so_do_the_classes(labelled: Path) -> None:
    found = load(labelled)
    made = pictures.Pictures.to_classify(found, CARD)
    positive = made.targets[:, 0] > 0
    assert made.weight[positive].sum() == pytest.approx(float(made.weight[~positive].sum()))
    assert made.images.shape[1:] == (2, 64, 64)
    three_views, one_view = made.weight[:3], made.weight[4]
    assert float(three_views.sum()) == pytest.approx(float(one_view))  # both are patients with a large disc


def test_a_graded_class_is_moved_by_its_share_towards_what_that_grade_usually_is(labelled: Path) -> None:
    found = [replace(p, graded=grade) for p, grade in zip(load(labelled), "aabbb   ", strict=True)]
    found = [
        replace(p, graded=p.graded.strip(), positive=yes)
        for p, yes in zip(found, [1, 0, 1, 1, 0, 1, 0, 1], strict=True)
    ]
    told = card(softened={"column": "birads", "share": 0.4})
    expected = [0.8, 0.2, 1 - 0.4 / 3, 1 - 0.4 / 3, 0.8 / 3, 1, 0, 1]  # "a" is half positive, "b" two thirds
    assert pictures.softened(found, told).tolist() == pytest.approx(expected)
    assert pictures.softened(found, CARD).tolist() == [1, 0, 1, 1, 0, 1, 0, 1]


def test_outlines_move_with_their_pictures_and_classes_stay() -> None:
    x = torch.full((6, 1, 64, 64), -1.0)
    x[:, :, 20:44, 24:40] = 1.0
    y = (x > 0).float()
    a, b = (pictures.varied(x, y, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a[0], b[0])
    assert {float(v) for v in a[1].unique()} <= {0.0, 1.0}
    for picture, mask in zip(a[0][:, 0], a[1][:, 0], strict=True):
        assert picture[mask > 0.5].mean() > picture[mask < 0.5].mean() + 0.5
    classes = torch.tensor([[1.0], [0.0]]).repeat(3, 1)
    varied, same = pictures.varied(torch.cat([x, y * 2 - 1], 1), classes, torch.Generator().manual_seed(3))
    assert torch.equal(same, classes)
    assert varied[:, 1].min() >= -1
    assert varied[:, 1].max() <= 1


def test_class_loss_wants_the_right_side() -> None:
    right, wrong = torch.tensor([[4.0], [-4.0]]), torch.tensor([[-4.0], [4.0]])
    target = torch.tensor([[1.0], [0.0]])
    loss: training.Loss = pictures.class_loss
    assert loss(right, target) < 0.2
    assert loss(wrong, target) > 3


@pytest.mark.slow
def test_the_command_trains_measures_and_pins(labelled: Path, tmp_path: Path) -> None:
    network = {"kind": "densenet", "settings": {"blocks": [1, 1], "growth": 4, "first": 8}, "sha256": "0" * 64}
    draft = card(classification=network | {"weights": "class.safetensors"}).model_dump(mode="json", exclude_none=True)
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(draft))
    words = ["--dicom", labelled / "dicom", "--table", labelled / "images.csv", "--masks", labelled / "masks"]
    command = [sys.executable, "-m", "medrec.learning.pictures", tmp_path / "toy.yaml", *words]
    command += ["--test-fold", "2", "--out", tmp_path / "out"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    trained = PictureCard.model_validate(yaml.safe_load((tmp_path / "out" / "toy.yaml").read_text()))
    assert all((tmp_path / "out" / n.weights).is_file() for n in trained.networks.values())
    assert len(trained.trained_on) == 5  # images of the three patients of the other fold
    assert {m.what for m in trained.measured} >= {"Dice, mean by image", "AUC of malignant by patient"}
