"""Configuration: every mistake at once, with file and field; the user's own folder wins."""

import shutil
from pathlib import Path

import pytest
import yaml
from conftest import RunNight, a_night
from test_night import small_study

from medrec import config
from medrec.errors import ConfigError


def test_the_packaged_configuration_loads_and_its_weights_are_the_pinned_ones() -> None:
    loaded = config.load()
    assert {c.card.name for c in loaded.cards} >= {"brain_mr", "phantom"}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    (folder / "models").mkdir(parents=True)
    return folder


def card(own: Path, name: str = "brain_mr", **changes: object) -> Path:
    content = yaml.safe_load((config.packaged_configs() / "models" / f"{name}.yaml").read_text()) | changes
    path = own / "models" / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def problems(own: Path) -> list[str]:
    with pytest.raises(ConfigError) as error:
        config.load(own)
    return list(error.value.problems)


def test_all_mistakes_of_all_files_are_named_at_once(own: Path) -> None:
    (own / "medrec.yaml").write_text("device: quantum\nthread: 3\n")
    card(own, version="one", grid="t9", data=None)
    (own / "models" / "broken.yaml").write_text("name: [")
    found = problems(own)
    for part in (
        "medrec.yaml: device",
        "medrec.yaml: thread",
        "brain_mr.yaml: version",
        "brain_mr.yaml: data",
        "broken.yaml",
    ):
        assert any(part in p for p in found), (part, found)


def test_a_grid_that_is_no_input_is_a_mistake(own: Path) -> None:
    card(own, grid="t9")
    assert any("grid" in p and "t9" in p for p in problems(own))


def test_weights_that_are_not_the_pinned_ones_are_refused(own: Path) -> None:
    path = card(own)
    weights = yaml.safe_load(path.read_text())["segmentation"]["weights"]
    data = bytearray((config.PACKAGED_WEIGHTS / weights).read_bytes())
    data[-1] ^= 1
    (own / "models" / weights).write_bytes(data)
    assert any(weights in p and "not the weights" in p for p in problems(own))


def test_missing_weights_are_named(own: Path) -> None:
    content = yaml.safe_load(card(own).read_text())
    card(own, segmentation=content["segmentation"] | {"weights": "nowhere.safetensors"})
    assert any("nowhere.safetensors" in p for p in problems(own))


def test_a_pattern_that_is_none_is_named(own: Path) -> None:
    content = yaml.safe_load(card(own).read_text())
    content["inputs"]["flair"]["match"]["SeriesDescription"] = "("
    card(own, inputs=content["inputs"])
    assert any("not a regular expression" in p for p in problems(own))


def test_an_unknown_model_in_the_settings_is_named(own: Path) -> None:
    (own / "medrec.yaml").write_text("models: [liver]\n")
    assert any("liver" in p for p in problems(own))


def test_two_cards_of_one_name_are_a_mistake(own: Path) -> None:
    shutil.copy(card(own), own / "models" / "second.yaml")
    assert any("two cards are named brain_mr" in p for p in problems(own))


def test_the_users_folder_wins_and_keeps_the_rest(own: Path) -> None:
    card(own, version="9.9.9")
    loaded = {c.card.name: c.card.version for c in config.load(own).cards}
    assert loaded["brain_mr"] == "9.9.9"
    assert "phantom" in loaded


def test_the_digest_follows_content_not_layout(own: Path) -> None:
    before = config.load().sha256
    path = own / "models" / "brain_mr.yaml"
    path.write_text("# a comment\n" + (config.packaged_configs() / "models" / "brain_mr.yaml").read_text())
    assert config.load(own).sha256 == before
    card(own, version="9.9.9")
    assert config.load(own).sha256 != before


# Licences


def test_the_packaged_configuration_accepts_every_licence_of_its_cards_by_name() -> None:
    loaded = config.load()
    assert config.unaccepted(loaded) == []
    names = {config.licence_name(c.card.licence) for c in loaded.cards} - set(config.FREE_LICENCES)
    assert set(loaded.settings.accept_licences) == names  # and none besides


def test_a_configuration_of_ones_own_accepts_nothing_that_it_does_not_name(own: Path) -> None:
    (own / "medrec.yaml").write_text("device: cpu\n")
    found = config.unaccepted(config.load(own))
    assert len(found) == 2
    assert 'accept_licences: ["CC BY-NC-SA 4.0"]' in found[0]
    assert "non-commercial" in found[0]
    (own / "medrec.yaml").write_text('accept_licences: ["CC BY-NC-SA 4.0", "free use with citation"]\n')
    assert config.unaccepted(config.load(own)) == []
    (own / "medrec.yaml").write_text("models: [phantom]\n")
    assert config.unaccepted(config.load(own)) == []


def test_a_night_with_a_card_whose_licence_is_not_accepted_does_not_start(own: Path, tmp_path: Path) -> None:
    (own / "medrec.yaml").write_text("models: [brain_mr]\n")
    (tmp_path / "in").mkdir()
    with pytest.raises(ConfigError) as error:
        a_night(tmp_path / "in", tmp_path / "home", config.load(own))
    assert ["brain_mr" in p and "accept_licences" in p for p in error.value.problems] == [True]


def test_a_report_says_under_which_licence_its_weights_are(tmp_path: Path, run_night: RunNight) -> None:
    small_study(tmp_path / "in")
    case = run_night(tmp_path / "in").cases[0]
    page = (tmp_path / "home" / str(case.report)).read_text()
    assert "<dt>Licence</dt><dd>Apache-2.0</dd>" in page
