"""A card that knows whom its networks learnt from tells strangers, from the file to the report."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import a_night
from tiny import SIZE, tiny_folder

from medrec import config
from medrec.config import packaged_configs
from medrec.errors import WeightsError
from medrec.home import Home
from medrec.learning import knowing, material, tasks
from medrec.learning.cases import LabelledCase
from medrec.learning.pictures import LabelledPicture
from medrec.models import bundles, inference, networks, still, strangers, weights
from medrec.phantom import Head, grid, render, write_dicom
from medrec.pictures import PictureCard
from medrec.prediction import Familiarity, ModelCard
from medrec.volume import Volume

AFFINE = Head((), SIZE, grid(SIZE, (14.0, 14.0, 11.0))).affine


def scan(seed: int, strange: bool = False) -> np.ndarray:
    """A tiny head; a strange one holds noise instead of tissue."""
    voxels = render(Head((), SIZE, grid(SIZE, (14.0, 14.0, 11.0)), seed=seed))[0]
    return np.where(voxels > 100, np.random.default_rng(seed).integers(100, 2000, SIZE), voxels) if strange else voxels


def of_head(voxels: np.ndarray) -> Volume:
    return Volume(voxels.astype(np.float32), AFFINE, "arbitrary", "s", "0" * 64)


def learnt(count: int) -> Iterator[LabelledCase]:
    for n in range(count):
        inputs = {"flair": of_head(scan(n)), "t1": of_head(4095 - scan(n))}
        yield LabelledCase(f"s{n}", f"p{n}", inputs, np.zeros(SIZE, bool))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration whose card `tiny` knows whom it learnt from."""
    place = tiny_folder(tmp_path_factory.mktemp("own") / "config")
    path = place / "models" / "tiny.yaml"
    card = ModelCard.model_validate(yaml.safe_load(path.read_text()))
    files = {n.weights: path.parent / n.weights for n in card.networks.values()}
    known = knowing.rows(inference.load(card, files, "cpu"), learnt(40))
    familiar = knowing.familiar(card, known, path.parent)
    assert familiar is not None
    assert familiar.alarms.patients == 40
    path.write_text(knowing.written(path.read_text(), card.model_copy(update={"familiarity": familiar})))
    return place


@pytest.fixture(scope="module")
def predictor(folder: Path) -> inference.TorchPredictor:
    (model,) = config.load(folder).cards
    assert isinstance(model.card, ModelCard)
    return inference.load(model.card, model.weights, "cpu")


def test_patients_like_those_of_the_training_are_no_strangers_and_others_are(
    predictor: inference.TorchPredictor,
) -> None:
    usual = [predictor.predict({"flair": of_head(scan(100 + n))}).strangeness for n in range(20)]
    assert sum(s is not None and s.words is not None for s in usual) <= 2
    rng = np.random.default_rng(1)
    for voxels in (scan(7, strange=True), rng.integers(0, 4000, SIZE), 4095 - scan(7)):
        strange = predictor.predict({"flair": of_head(voxels)}).strangeness
        assert strange is not None
        assert strange.share_of_limit > 1
        assert "unlike what the model learnt from" in str(strange.words)


def test_a_night_gives_a_stranger_no_verdict_and_says_why_and_another_card_keeps_its_report(
    folder: Path, tmp_path: Path
) -> None:
    write_dicom(scan(100), AFFINE, tmp_path / "in" / "usual", patient_name="USUAL^A", patient_id="USUAL")
    write_dicom(scan(7, strange=True), AFFINE, tmp_path / "in" / "odd", patient_name="ODD^B", patient_id="ODD")
    summary = a_night(tmp_path / "in", tmp_path / "home", config.load(folder))
    found = [
        json.loads((tmp_path / "home" / str(c.report)).with_name("report.json").read_text()) for c in summary.cases
    ]
    usual, odd = sorted(found, key=lambda facts: float(facts["strangeness"]))
    assert usual["strangeness"] <= 1 < odd["strangeness"]
    assert odd["verdict"] == "inconclusive"
    assert any("unlike what the model learnt from" in flag for flag in odd["flags"])
    assert not any("unlike" in flag for flag in usual["flags"])
    (model,) = config.load(folder).cards
    assert model.card.familiarity is not None
    assert odd["weights_sha256"]["familiarity"] == model.card.familiarity.sha256
    kept = tmp_path / "home" / "kept" / f"{model.card.familiarity.sha256}.safetensors"
    assert kept.is_file()  # so that the report can be made again


def test_a_card_without_it_has_the_digest_that_it_had_before() -> None:
    """Digests of the packaged cards of release 0.1.0's successors, as they were before this field was there."""
    card = ModelCard.model_validate(yaml.safe_load((packaged_configs() / "models" / "phantom.yaml").read_text()))
    assert card.digest.startswith("06d8940e2eb42343")
    assert card.weights_digest.startswith("55c226a0a0ceee61")


def test_a_file_of_other_bytes_or_of_another_network_is_not_used(folder: Path, tmp_path: Path) -> None:
    (model,) = config.load(folder).cards
    card = model.card
    assert isinstance(card, ModelCard)
    assert card.familiarity is not None
    spoilt = {**model.weights, card.familiarity.weights: tmp_path / card.familiarity.weights}
    data = bytearray(model.weights[card.familiarity.weights].read_bytes())
    data[-1] ^= 1
    spoilt[card.familiarity.weights].write_bytes(data)
    with pytest.raises(WeightsError, match="not used"):
        inference.load(card, spoilt, "cpu")
    torch.manual_seed(3)
    other = networks.build("unet", {"channels": (4, 12), "res_units": 1}, 3)
    sha256 = weights.write(other.state_dict(), tmp_path / "w.safetensors")
    changed = {"settings": {"channels": (4, 12), "res_units": 1}, "sha256": sha256}
    wrong = card.model_copy(update={"segmentation": card.segmentation.model_copy(update=changed)})
    loaded = inference.load(wrong, {**model.weights, card.segmentation.weights: tmp_path / "w.safetensors"}, "cpu")
    with pytest.raises(WeightsError, match="numbers describe the training patients"):
        loaded.predict({"flair": of_head(scan(1))})


def test_a_bundle_takes_it_along(folder: Path, tmp_path: Path) -> None:
    (model,) = config.load(folder).cards
    card, files = bundles.unpack(bundles.pack(model.card, model.weights, "text"), tmp_path)
    assert card.digest == model.card.digest
    assert card.familiarity is not None
    strangers.read(files[card.familiarity.weights].read_bytes(), "x")


def test_too_few_patients_give_no_limit(predictor: inference.TorchPredictor, tmp_path: Path) -> None:
    known = knowing.rows(predictor, learnt(19))
    assert knowing.familiar(predictor.card, known, tmp_path) is None


def test_patients_held_back_give_the_limit_where_there_are_enough(
    predictor: inference.TorchPredictor, tmp_path: Path
) -> None:
    known = knowing.rows(predictor, learnt(45))
    watching = {f"p{n}" for n in range(22)}
    found = knowing.familiar(predictor.card, known, tmp_path, watching, dict.fromkeys(watching, 0.8))
    assert found is not None
    assert found.alarms.patients == 22
    assert knowing.APART in found.alarms.on
    assert [value for _, value in found.risk_coverage] == [0.8] * 5


def test_an_input_in_anothers_place_is_named(folder: Path, tmp_path: Path) -> None:
    """Two inputs that look different: who swaps them is told."""
    text = yaml.safe_load((folder / "models" / "tiny.yaml").read_text())
    text["inputs"] = {**text["inputs"], "t1": {"match": {"SeriesDescription": "T1"}}}
    del text["familiarity"], text["classification"]
    draft = ModelCard.model_validate(text)
    torch.manual_seed(1)
    network = networks.build("unet", {"channels": (4, 8), "res_units": 1}, 4)
    sha256 = weights.write(network.state_dict(), tmp_path / "s.safetensors")
    card = draft.model_copy(update={"segmentation": draft.segmentation.model_copy(update={"sha256": sha256})})
    files = {card.segmentation.weights: tmp_path / "s.safetensors"}
    known = knowing.rows(inference.load(card, files, "cpu"), learnt(40))
    familiar = knowing.familiar(card, known, tmp_path)
    assert familiar is not None
    assert familiar.margin is not None
    files[familiar.weights] = tmp_path / familiar.weights
    loaded = inference.load(card.model_copy(update={"familiarity": familiar}), files, "cpu")
    said = loaded.predict({"flair": of_head(4095 - scan(200)), "t1": of_head(scan(200))}).strangeness
    assert said is not None
    assert said.mistaken == "T1"
    assert "looks like T1" in str(said.words)


@pytest.mark.parametrize("kind", ["unet", "lite_unet", "unet3d", "densenet"])
def test_every_network_tells_numbers_of_a_fixed_count(kind: str) -> None:
    torch.manual_seed(1)
    small = {"unet": {"channels": (4, 8, 8, 8), "res_units": 1}, "unet3d": {"channels": (4, 8, 8), "res_units": 1}}
    network = networks.build(kind, small.get(kind, {}), 2).eval()
    shape = (1, 2, 16, 64, 64) if kind == "unet3d" else (3, 2, 64, 64)
    first = strangers.averages(network, torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    again = strangers.averages(network, torch.randn(shape, generator=torch.Generator().manual_seed(2)))
    assert len(first) == len(again) >= 8
    assert not np.allclose(first, again)


def test_an_image_unlike_the_others_gets_no_plain_verdict(tmp_path: Path) -> None:
    fields = yaml.safe_load((packaged_configs() / "models" / "breast_us.yaml").read_text())
    for name in ("classification", "positive", "class_column", "classes", "softened", "familiarity"):
        fields.pop(name, None)
    fields |= {"preprocessing": {"size_px": 64}, "segmentation": {**fields["segmentation"], "settings": {}}}
    fields["segmentation"] |= {"kind": "unet", "settings": {"channels": [4, 8, 8, 8], "res_units": 1}}
    draft = PictureCard.model_validate(fields)
    assert draft.segmentation is not None
    torch.manual_seed(1)
    network = networks.build("unet", {"channels": (4, 8, 8, 8), "res_units": 1}, 1)
    sha256 = weights.write(network.state_dict(), tmp_path / "s.safetensors")
    card = draft.model_copy(update={"segmentation": draft.segmentation.model_copy(update={"sha256": sha256})})
    files = {draft.segmentation.weights: tmp_path / "s.safetensors"}

    def speckle(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return (0.3 * rng.random((70, 90)) + np.linspace(0.4, 0.1, 70)[:, None]).astype(np.float32)

    one = LabelledPicture("i", "p", "", speckle(0), np.zeros((70, 90), bool), False, "0" * 64)
    every = [replace(one, image=str(n), patient=str(n), pixels=speckle(n)) for n in range(30)]
    familiar = knowing.familiar(card, knowing.rows(still.load(card, files, "cpu"), every), tmp_path)
    assert isinstance(familiar, Familiarity)
    assert familiar.margin is None
    files[familiar.weights] = tmp_path / familiar.weights
    loaded = still.load(card.model_copy(update={"familiarity": familiar}), files, "cpu")
    usual, strange = loaded.predict(speckle(99)).strangeness, loaded.predict(1 - speckle(99)).strangeness
    assert usual is not None
    assert strange is not None
    assert usual.words is None
    assert strange.words is not None


def test_a_cards_text_keeps_every_other_word_when_its_limits_are_written(folder: Path) -> None:
    text = (folder / "models" / "tiny.yaml").read_text() + "# a comment at the end\n"
    card = ModelCard.model_validate(yaml.safe_load(text))
    once = knowing.written(text, card)
    assert "# a comment at the end" in once
    assert once.count("familiarity:") == 1
    again = knowing.written(once, card)
    assert [x for x in again.splitlines() if "version:" not in x] == [
        x for x in once.splitlines() if "version:" not in x
    ]
    assert ModelCard.model_validate(yaml.safe_load(once)).familiarity == card.familiarity


class Told(tasks.Task):
    """A task whose images are phantoms with lesions, of so many patients, instead of labels in a home."""

    def payloads(self, images: frozenset[str]) -> Iterator[LabelledCase]:
        for case in learnt(45):
            truth = np.zeros(SIZE, bool)
            truth[4:10, 4:10, 4:10] = True
            if case.patient in images:
                yield replace(case, mask=truth)


@pytest.mark.parametrize(("watching", "told"), [(25, True), (19, False)])
def test_a_retraining_tells_its_limits_from_those_who_watched_where_they_are_enough(
    watching: int, told: bool, folder: Path, tmp_path: Path
) -> None:
    (model,) = config.load(folder).cards
    assert isinstance(model.card, ModelCard)
    everyone = frozenset(f"p{n}" for n in range(45))
    task = Told(knowing.forgotten(model.card), material.Sources((), Home(tmp_path), material.Wanted({}, {})), "cpu")
    card = knowing.completed(task, model.weights, everyone, frozenset(sorted(everyone)[:watching]), tmp_path)
    assert isinstance(card, ModelCard)
    assert card.familiarity is not None
    assert (tmp_path / card.familiarity.weights).is_file()
    assert (card.uncertainty is not None) is told
    assert (len(card.familiarity.risk_coverage) > 0) is told
    assert (knowing.APART in card.familiarity.alarms.on) is told
    assert (knowing.ALONE in card.familiarity.alarms.on) is not told
