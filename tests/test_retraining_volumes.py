"""Volumes: trained from labels, promoted, used by the night, and refused by name once they are disabled."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import a_night
from test_learning import draft
from test_retraining import retrain
from typer.testing import CliRunner

from medrec import config
from medrec.cli import app
from medrec.dicom import Archive, Pseudonyms
from medrec.home import Home
from medrec.labels import Known, Label, Origin
from medrec.labels.masks import keep
from medrec.learning import cases, phantoms, volumes
from medrec.models import inference, networks, weights
from medrec.prediction import ModelCard, Preprocessing, Training
from medrec.routing import Routed, rules_of, select
from medrec.series import group
from medrec.store import Store

AT = "2026-01-01T00:00:00Z"
GATE = {"primary": "dice", "alpha": 0.4, "uses": 1, "minimum_patients": 5, "acceptance": {"dice": 0.0}}


def teach(home: Home, card: ModelCard, folder: Path) -> None:
    """Make the phantoms below `folder` known and label them, as `medrec labels add` would."""
    home.create()
    pseudonyms = Pseudonyms.load(home.key)
    loaded = cases.load(card, folder / "dicom", folder / "studies.csv", folder / "masks")
    masks = {c.pixels_sha256(card): c.mask for c in loaded}
    archive = Archive(folder / "dicom", pseudonyms, rules_of([card]))
    with Store.open(home.store_url) as store:
        for study in group(archive.index().files):
            routed = select(study, card)
            assert isinstance(routed, Routed)
            volume = cases.inputs_of(routed, card, archive)["flair"]
            patient, image = study.patients[0], volume.series
            store.remember_study(study.study, patient, AT)
            affine = tuple(float(v) for v in volume.affine_ijk_to_lps.ravel())
            store.know(Known(image, study.study, patient, image, None, "MR", (card.name,), volume.voxels.shape, affine,
                             (), (), "0" * 64, volume.pixels_sha256, AT))  # fmt: skip
            digest = keep(home, masks[volume.pixels_sha256])
            store.add_label(Label("", card.name, study.study, patient, image, "mask", digest, {}, Origin.BLIND, "dr. a",
                                  AT, "1" * 64, "0" * 64, volume.pixels_sha256))  # fmt: skip


@pytest.mark.slow
def test_a_promoted_model_of_volumes_is_used_by_the_night_and_a_disabled_one_refused_by_name(tmp_path: Path) -> None:
    phantoms.write(tmp_path, 7, seed=4)
    content = draft() | {"gate": GATE, "split": {"test": 0.72, "validation": 0.2}}
    content["version"] = "1.0.0"
    content["training"] |= {"segmentation_steps": 12, "classification_steps": 4}  # type: ignore[operator]
    card = ModelCard.model_validate(content)
    home = Home(tmp_path / "home")
    teach(home, card, tmp_path)
    (tmp_path / "phantom.yaml").write_text(yaml.safe_dump(content))
    home.remember_input(tmp_path / "dicom")
    packaged = next(m.card for m in config.load().cards if m.card.name == "phantom")
    # The packaged phantom model is the champion, and saw none of these heads: the challenger cannot be better.
    outcome = retrain(home, tmp_path / "phantom.yaml")
    assert (outcome.status, outcome.version) == ("not eligible", "1.0.1"), outcome.lines
    with Store.open(
        home.store_url
    ) as store:  # a person of the laboratory forges nothing: here the gate's word is given
        store.append("model eligible", AT, {"card": outcome.card, "evaluation": "0" * 64})
    cli, at_home = CliRunner(), ["--home", str(home.root)]
    words = ["--by", "dr. b", "--reason", "test", *at_home]
    assert cli.invoke(app, ["models", "promote", outcome.card[:12], *words]).exit_code == 0
    head = min((tmp_path / "dicom").iterdir())
    night = a_night(head, home.root)
    report = json.loads((home.reports / night.cases[0].case / "report.json").read_text())
    assert (report["model_version"], report["card_sha256"]) == ("1.0.1", outcome.card)
    assert cli.invoke(app, ["models", "rollback", "phantom", *words]).exit_code == 0
    again = a_night(head, home.root)
    assert again.cases[0].status == "already done"  # a champion applies to studies without a finished case
    assert cli.invoke(app, ["models", "disable", packaged.digest[:12], *words]).exit_code == 0
    other = sorted((tmp_path / "dicom").iterdir())[1]
    refused = a_night(other, home.root)
    assert refused.cases[0].status == "refused"
    assert refused.cases[0].reason.startswith("the model is disabled: phantom 1.0.0: disabled by dr. b")
    shown = cli.invoke(app, ["models", "show", outcome.card[:12], *at_home])
    assert shown.exit_code == 0


def test_whole_volumes_are_learnt_and_come_back_to_their_slices(tmp_path: Path) -> None:
    content = draft()
    content["preprocessing"] = {"size_px": 32, "depth": 8}
    content["segmentation"] |= {"kind": "unet3d", "settings": {"channels": [4, 8], "res_units": 1}}  # type: ignore[operator]
    content["training"] |= {"segmentation_steps": 40, "batch": 2, "learning_rate": 0.02}  # type: ignore[operator]
    del content["classification"]
    card = ModelCard.model_validate(content)
    torch.manual_seed(0)
    samples = []
    for k in (11, 14, 9):
        target = torch.zeros(k, 32, 32)
        target[3:7, 8:20, 10:22] = 1
        samples.append(cases.Sample((torch.randn(k, 1, 32, 32) * 0.1 + target[:, None] * 4).half(), target.half()))
    trained = volumes.train(card, samples, tmp_path, "cpu", samples[:1])
    network = networks.build("unet3d", trained.segmentation.settings, 1)
    path = tmp_path / trained.segmentation.weights
    weights.fill(network, weights.read(path, trained.segmentation.sha256), path.name)
    predictor = inference.TorchPredictor(card, [network], None, "cpu")
    with torch.inference_mode():
        ((said,), _) = predictor._run(samples[1].images.float(), 8, "cpu")
    assert said.shape == (14, 32, 32)
    inside, outside = said[3:7, 8:20, 10:22].mean(), said[9:].mean()
    assert inside > outside + 0.2


def test_a_card_of_whole_volumes_has_neither_neighbours_nor_slices_to_call() -> None:
    with pytest.raises(ValueError, match="has none"):
        Preprocessing(size_px=32, depth=8, neighbours=1)
    with pytest.raises(ValueError, match="it is of the study: name positive"):
        ModelCard.model_validate(draft() | {"preprocessing": {"size_px": 32, "depth": 8}})


def test_slices_of_one_volume_share_every_draw() -> None:
    x = torch.ones(4, 2, 8, 32, 32)
    made = volumes.Volumes(x.half(), torch.ones(4, 1, 8, 32, 32).half())
    images, marks = made.batches(Training(segmentation_steps=1, classification_steps=1, batch=4), "cpu")(
        torch.Generator().manual_seed(1)
    )
    assert images.shape == (4, 2, 8, 32, 32)
    assert marks.shape == (4, 1, 8, 32, 32)
    assert np.ptp(images[0, 0].mean((1, 2)).numpy()) < 0.2  # noise alone tells the slices apart
