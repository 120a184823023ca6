"""Known answers come before patients, and each way of being wrong stops the night."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import ready_home, tiny_configuration, tiny_studies

import flows
from medrec import config, pipeline, sentinels
from medrec.config import Configuration
from medrec.errors import SentinelError
from medrec.home import Home
from medrec.models import inference
from medrec.night import Night, Request
from medrec.pipeline import Setting
from medrec.prediction import Prediction, Predictor
from medrec.store import Store
from medrec.volume import Volume


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    model = sentinels.model()
    return inference.load(model.card, model.weights, "cpu")


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting("batch", Home(Path("nowhere")), None, config.load(), "cpu")  # type: ignore[arg-type]


def test_the_known_answers_come_out(predictor: Predictor, setting: Setting) -> None:
    told = sentinels.watch(predictor, setting)
    assert list(told) == [s.name for s in sentinels.SENTINELS]
    assert " ml on the left at (2" in told["a lesion on the left"]
    assert " ml on the right at (-2" in told["its mirror image"]
    assert told["a study that broke off"].startswith("refused: missing slice")


class Changed:
    """A predictor that answers otherwise."""

    def __init__(self, predictor: Predictor, change: Callable[[Prediction], Prediction]) -> None:
        self.card, self._predictor, self._change = predictor.card, predictor, change

    def predict(self, inputs: Mapping[str, Volume]) -> Prediction:
        return self._change(self._predictor.predict(inputs))


def mirrored(prediction: Prediction) -> Prediction:
    return replace(prediction, mask=prediction.mask[::-1], probability=prediction.probability[::-1])


def larger(prediction: Prediction) -> Prediction:
    near = prediction.probability > 0.02
    return replace(prediction, mask=np.roll(near, 1, 0) | np.roll(near, -1, 0) | near)


def moved(prediction: Prediction) -> Prediction:
    return replace(prediction, mask=np.roll(prediction.mask, 2, 2), probability=np.roll(prediction.probability, 2, 2))


def nothing(prediction: Prediction) -> Prediction:
    return replace(prediction, mask=np.zeros_like(prediction.mask), slice_probability=None)


@pytest.mark.parametrize("change", [mirrored, larger, moved, nothing])
def test_a_wrong_answer_is_named(
    predictor: Predictor, setting: Setting, change: Callable[[Prediction], Prediction]
) -> None:
    with pytest.raises(SentinelError) as caught:
        sentinels.watch(Changed(predictor, change), setting)
    assert [w.split(":")[0] for w in caught.value.wrong] == ["a lesion on the left", "its mirror image"]
    assert "wanted finding: 14.1 ml on the left at (28, -14, 12) mm, got " in caught.value.wrong[0]


def test_a_cut_study_that_passes_is_named(
    predictor: Predictor, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentinels, "CUT", ())
    with pytest.raises(SentinelError, match="a study that broke off: wanted refused: missing slice, got finding"):
        sentinels.watch(predictor, setting)


def test_an_error_on_the_way_is_a_wrong_answer(
    predictor: Predictor, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "predict", lambda *_: 1 / 0)
    with pytest.raises(SentinelError, match="internal error"):
        sentinels.watch(predictor, setting)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    return tiny_configuration(tmp_path_factory.mktemp("tiny") / "own")


def test_a_wrong_answer_stops_the_night_before_a_patient_is_touched(
    tiny: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_studies(tmp_path / "studies", 1)
    home = ready_home(tmp_path / "home")
    monkeypatch.setattr(sentinels, "CUT", ())
    monkeypatch.setattr(flows, "embedded", lambda home: None)
    with pytest.raises(SentinelError):
        flows.run_nightly(Request(tmp_path / "studies", home, tiny), lambda *_: None)
    with Store.open(home.store_url) as store:
        assert store.cases() == ()
    assert list(home.reports.iterdir()) == []


def test_a_night_says_what_came_of_its_sentinels(tiny: Configuration, tmp_path: Path) -> None:
    tiny_studies(tmp_path / "studies", 1)
    with Night(Request(tmp_path / "studies", ready_home(tmp_path / "home"), tiny)) as night:
        night.index()
        night.prove()
        assert list(night.summary().sentinels) == [s.name for s in sentinels.SENTINELS]
