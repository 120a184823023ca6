"""Drafts: README's is one, every mistake is named, and what was trained has the recipe of its draft."""

from pathlib import Path

import pytest
import yaml

from medrec import config, drafts
from medrec.errors import ConfigError
from medrec.prediction import ModelCard


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    """The draft in README, as a file."""
    blocks = (Path(__file__).parent.parent / "README.md").read_text().split("```yaml\n")[1:]
    (draft,) = (b.split("```")[0] for b in blocks if b.startswith("name: "))
    path = tmp_path / "kidney.yaml"
    path.write_text(draft)
    return path


def test_the_draft_in_readme_is_a_whole_one_and_its_alternatives_are(readme: Path) -> None:
    card = drafts.read(str(readme), config.load())
    assert isinstance(card, ModelCard)
    assert (card.name, card.version, card.trained_on) == ("kidney", "1.0.0", ())
    assert card.gate is not None
    text = readme.read_text().replace("neighbours: 1}", "depth: 32, window: [-160, 240]}").replace("unet,", "unet3d,")
    readme.write_text(text)
    volumes = drafts.read(str(readme), config.load())
    assert isinstance(volumes, ModelCard)
    assert (volumes.preprocessing.depth, volumes.preprocessing.window) == (32, (-160, 240))


def test_what_was_trained_has_the_recipe_of_its_draft_and_another_draft_has_not(readme: Path) -> None:
    card = drafts.read(str(readme), config.load())
    assert isinstance(card, ModelCard)
    weights = card.segmentation.model_copy(update={"sha256": "1" * 64})
    trained = card.model_copy(update={"version": "2.0.0", "segmentation": weights, "trained_on": ("2" * 64,)})
    assert trained.digest != card.digest
    assert drafts.recipe(trained) == drafts.recipe(card)
    readme.write_text(readme.read_text().replace("segmentation_steps: 2000", "segmentation_steps: 2001"))
    assert drafts.recipe(drafts.read(str(readme), config.load())) != drafts.recipe(card)


def test_every_mistake_is_named_at_once_with_its_place(readme: Path) -> None:
    content = yaml.safe_load(readme.read_text())
    del content["title"]
    content["gate"]["primary"] = "beauty"
    content["preprocessing"]["window"] = [240, -160]
    readme.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as error:
        drafts.read(str(readme), config.load())
    told = "\n".join(error.value.problems)
    for words in ("title: Field required", "gate.primary", "preprocessing: window: the first number must be below"):
        assert f"kidney.yaml: {words}" in told
    for broken in ("a: [", "- 1", "\x00"):
        readme.write_text(broken)
        with pytest.raises(ConfigError, match=r"kidney\.yaml"):
            drafts.read(str(readme), config.load())
    with pytest.raises(ConfigError, match="neither a file nor a configured model"):
        drafts.read("kidneys", config.load())
