"""Memory that runs out costs time, not a report; and a device that computes otherwise is not used."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from test_models import POSES, head, volume
from tiny import ready_home, tiny_configuration, tiny_studies

import flows
from medrec.config import CardFiles, Configuration
from medrec.errors import ConfigError, WeightsError, WorldError
from medrec.models import inference
from medrec.night import Night, Request
from medrec.volume import Volume


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    return tiny_configuration(tmp_path_factory.mktemp("tiny") / "own")


@pytest.fixture
def model(tiny: Configuration) -> CardFiles:
    return tiny.cards[0]


@pytest.fixture(scope="module")
def scan() -> dict[str, Volume]:
    return {"flair": volume(head(*POSES["oblique"]))}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device with room for as many slices as the last number says; every batch that was tried is noted."""
    room = [8]
    said = inference.TorchPredictor._said

    def cramped(
        self: inference.TorchPredictor, network: object, stack: torch.Tensor, at_once: int, device: str
    ) -> Iterator[torch.Tensor]:
        if at_once > room[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return said(self, network, stack, at_once, "cpu")  # type: ignore[arg-type]

    monkeypatch.setattr(inference.TorchPredictor, "_said", cramped)
    return room


@pytest.mark.parametrize("room", [8, 4, 2, 1])
def test_fewer_slices_at_a_time_give_the_same_answer_and_say_so(
    model: CardFiles, scan: dict[str, Volume], small: list[int], room: int
) -> None:
    predictor = inference.load(model.card, model.weights, "cpu")
    whole = predictor.predict(scan)
    small[0] = room
    answer = predictor.predict(scan)
    assert np.abs(answer.probability - whole.probability).max() < 1e-5
    assert answer.device == ("" if room == 8 else f"cpu, {room} slices at a time: its memory ran out")
    small[0] = 8
    assert predictor.predict(scan).device == ""  # the next study begins at the top again


def test_a_full_gpu_leaves_the_study_to_the_cpu_and_takes_the_next_one(
    model: CardFiles, scan: dict[str, Volume], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = inference.load(model.card, model.weights, "cpu")
    whole = predictor.predict(scan)
    predictor.device = "cuda"  # there is none here: what goes to it runs on the CPU, while it has room
    room, said = [0], inference.TorchPredictor._said

    def cramped(
        self: inference.TorchPredictor, network: object, stack: torch.Tensor, at_once: int, device: str
    ) -> Iterator[torch.Tensor]:
        if device == "cuda" and at_once > room[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return said(self, network, stack, at_once, "cpu")  # type: ignore[arg-type]

    monkeypatch.setattr(inference.TorchPredictor, "_said", cramped)
    answer = predictor.predict(scan)
    assert answer.device == "cpu: the memory of cuda ran out"
    assert np.abs(answer.probability - whole.probability).max() < 1e-5
    room[0] = 8
    assert predictor.predict(scan).device == ""


def test_no_room_for_one_slice_is_a_world_that_is_down(
    model: CardFiles, scan: dict[str, Volume], small: list[int]
) -> None:
    predictor = inference.load(model.card, model.weights, "cpu")
    small[0] = 0
    with pytest.raises(WorldError, match="no room for one slice"):
        predictor.predict(scan)


def test_other_errors_are_not_taken_for_want_of_memory(
    model: CardFiles, scan: dict[str, Volume], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, calls = inference.load(model.card, model.weights, "cpu"), []

    def broken(*_: object) -> Iterator[torch.Tensor]:
        calls.append(1)
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(inference.TorchPredictor, "_said", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        predictor.predict(scan)
    assert len(calls) == 1


def test_the_step_is_in_the_report(tiny: Configuration, tmp_path: Path, small: list[int]) -> None:
    small[0] = 2
    tiny_studies(tmp_path / "in", 1)
    home = ready_home(tmp_path / "home")
    with Night(Request(tmp_path / "in", home, tiny)) as night:
        night.index()
        flows.without_prefect(night, lambda *_: None)
        (line,) = night.close().cases
    report = (home.root / (line.report or "")).with_name("report.json").read_text()
    assert "cpu, 2 slices at a time: its memory ran out" in report


def test_a_device_that_computes_otherwise_is_refused(model: CardFiles) -> None:
    plain = inference.load(model.card, model.weights, "cpu")
    other = inference.load(model.card, model.weights, "cpu")
    inference.hold_against(other, plain)
    with torch.no_grad():
        for weights in other._segmentation[0].parameters():
            weights.neg_()
    with pytest.raises(WeightsError, match="computes otherwise"):
        inference.hold_against(other, plain)
    with torch.no_grad():
        next(other._segmentation[0].parameters()).fill_(float("nan"))
    with pytest.raises(WeightsError, match="off by nan"):
        inference.hold_against(other, plain)


@pytest.mark.parametrize("wanted", ["cuda:99", "tpu", "cuda:x"])
def test_a_device_that_is_not_here_is_a_mistake(wanted: str) -> None:
    with pytest.raises(ConfigError, match="there is no"):
        inference.device_name(wanted)


def test_a_card_that_does_not_say_how_it_runs_keeps_its_digest(model: CardFiles) -> None:
    plain = model.card.model_copy(update={"running": model.card.running.model_copy(update={"mirrored": False})})
    assert b"running" not in model.card.content
    assert plain.digest != model.card.digest


def test_several_studies_load_the_networks_once(
    tiny: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loads = inference.load, []

    def counted(*arguments: object) -> object:
        loads.append(1)
        return load(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(inference, "load", counted)
    tiny_studies(tmp_path / "in", 4)
    with Night(Request(tmp_path / "in", ready_home(tmp_path / "home"), tiny)) as night:
        night.index()
        flows.without_prefect(night, lambda *_: None)
        assert [c.status for c in night.close().cases] == ["analysed"] * 4
    assert loads == [1]
