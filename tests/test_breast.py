"""The breast ultrasound card: its weights outline what was outlined by a person, and it says whom it learnt from."""

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from medrec import config
from medrec.dicom import Pseudonyms, stills
from medrec.models import still
from medrec.pictures import PictureCard
from medrec.statistics import dice

CARD = config.packaged_configs() / "models" / "breast_us.yaml"
EVERY = 12  # of the images of one fold: 30 of 365


@pytest.fixture(scope="module")
def predictor() -> still.StillPredictor:
    card = PictureCard.model_validate(yaml.safe_load(CARD.read_text()))
    files = {n.weights: config.PACKAGED_WEIGHTS / n.weights for n in card.files.values()}
    return still.load(card, files, "cpu")  # raises when a digest is not the card's


def test_its_weights_are_within_what_a_card_may_weigh(predictor: still.StillPredictor) -> None:
    files = {config.PACKAGED_WEIGHTS / n.weights for n in predictor.card.files.values()}
    assert sum(f.stat().st_size for f in files) <= 12_000_000


def test_it_outlines_lesions_and_names_every_image_that_it_learnt_from(
    predictor: still.StillPredictor, shared_data: Path
) -> None:
    folder = shared_data / "breast_us"
    with (folder / "images.csv").open(newline="") as file:
        names = sorted(row["image"] for row in csv.DictReader(file) if row["fold"] == "4")[::EVERY]
    found = []
    for name in names:
        picture = stills.read((folder / "dicom" / f"{name}.dcm").read_bytes(), Pseudonyms(bytes(32)))
        assert picture.pixels_sha256 in predictor.card.trained_on
        said = predictor.predict(picture.pixels)
        assert said.mask.shape == picture.pixels.shape
        found.append(dice(said.mask, np.asarray(Image.open(folder / "masks" / f"{name}.png")) > 0))
    assert len(found) >= 30
    assert np.mean(found) > 0.85  # a plain U-Net reached 0.870 on a fold it never saw, a wrong place gives next to 0
