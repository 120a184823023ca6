"""A class of a whole study of volumes: from a table of labels to a report that says it, without an outline."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import a_night
from test_learning import draft
from test_retraining import retrain
from typer.testing import CliRunner

from medrec.cli import app
from medrec.home import Home
from medrec.phantom import random_head, render, uid, write_dicom
from medrec.prediction import Decision, ModelCard
from medrec.report import Verdict, decide

GATE = {"primary": "auc", "alpha": 0.4, "uses": 1, "minimum_patients": 5, "acceptance": {"auc": 0.0}}
cli = CliRunner()


def classes_alone() -> dict[str, object]:
    """A card that tells "lesion" from "none" for a whole study, and outlines nothing."""
    content = draft() | {
        "name": "called",
        "preprocessing": {"size_px": 32, "depth": 8},
        "classification": {"kind": "densenet3d", "settings": {"blocks": [1, 1], "growth": 8, "first": 8}},
        "class_column": "seen",
        "positive": "lesion",
        "classes": ["lesion", "none"],
        "training": {
            "segmentation_steps": 1,
            "classification_steps": 60,
            "batch": 8,
            "learning_rate": 0.01,
            "average": 0.9,
        },
        "gate": GATE,
        "split": {"test": 0.5, "validation": 0.3},
        "early_stop": {"every": 20, "patience": 5},
    }
    del content["segmentation"], content["decision"], content["returned"]
    for name in ("version", "measured", "trained_on"):
        del content[name]
    return content


def heads(folder: Path, count: int, first: int = 0) -> None:
    """Every other head with three lesions, the others with none; the table says which."""
    rows = ["study_instance_uid,seen"]
    for n in range(first, first + count):
        head = random_head(np.random.default_rng(n), 3 * (n % 2))
        voxels, _ = render(head)
        study = uid("called", str(n))
        write_dicom(voxels, head.affine, folder / "dicom" / f"p{n}", patient_id=f"P{n}", study_uid=study,
                    patient_name=f"A^B{n}")  # fmt: skip
        rows.append(f"{study},{'lesion' if n % 2 else 'none'}")
    (folder / "classes.csv").write_text("\n".join(rows) + "\n")


@pytest.mark.slow
def test_a_class_of_studies_is_learnt_from_a_table_and_said_by_the_night(tmp_path: Path) -> None:
    heads(tmp_path, 18)
    (tmp_path / "called.yaml").write_text(yaml.safe_dump(classes_alone()))
    at_home, home = ["--home", str(tmp_path / "home")], Home(tmp_path / "home")
    card = ["--card", str(tmp_path / "called.yaml")]
    known = cli.invoke(app, ["ingest", str(tmp_path / "dicom"), *card, *at_home])
    assert known.exit_code == 0, known.output
    words = ["--by", "dr. a", "--origin", "blind", *card, *at_home]
    added = cli.invoke(app, ["labels", "add", str(tmp_path / "classes.csv"), *words])
    assert added.exit_code == 0, added.output
    outcome = retrain(home, tmp_path / "called.yaml", page=True)
    assert outcome.eligible, outcome.lines
    assert any(line.startswith("auc: ") for line in outcome.lines)
    assert not any(line.startswith("dice") for line in outcome.lines)

    promoted = cli.invoke(app, ["models", "promote", outcome.card[:12], "--by", "b", "--reason", "c", *at_home])
    assert promoted.exit_code == 0, promoted.output
    heads(tmp_path / "new", 2, first=100)
    night = a_night(tmp_path / "new" / "dicom", home.root)
    reports = [json.loads((home.reports / c.case / "report.json").read_text()) for c in night.cases]
    own = [r for r in reports if r["model_name"] == "called"]
    assert len(own) == 2
    for report in own:
        says = report["probabilities"]["lesion"]
        assert report["verdict"] == ("finding" if says >= 0.5 else "nothing marked")
        assert f"the class lesion a probability of {says:.2f}: this is no diagnosis" in report["verdict_text"]
        folder = home.reports / report["case"]
        assert not (folder / "segmentation.nii.gz").exists()  # it would say that nothing is there
        page = (folder / "report.html").read_text()
        assert "Probability of the class lesion" in page
        assert "This model outlines nothing." in page
        again = cli.invoke(app, ["replay", report["case"], "--input", str(tmp_path / "new" / "dicom"), *at_home])
        assert again.exit_code == 0, again.output
    assert cli.invoke(app, ["audit", "verify", *at_home]).exit_code == 0


def test_a_card_that_outlines_nothing_says_what_it_tells() -> None:
    whole = {"version": "1.0.0", "measured": [], "trained_on": []}
    weights = {"weights": "a.safetensors", "sha256": "0" * 64}
    content = classes_alone() | whole
    content["classification"] |= weights  # type: ignore[operator]
    card = ModelCard.model_validate(content)
    assert card.tells_class
    assert "segmentation" not in json.loads(card.content)
    for without, wanted in {
        "classification": "neither|no network",
        "positive": "name positive, class_column",
        "class_column": "name positive, class_column",
    }.items():
        with pytest.raises(ValueError, match=wanted):
            ModelCard.model_validate({k: v for k, v in content.items() if k != without})
    with pytest.raises(ValueError, match="maybe is not among them"):
        ModelCard.model_validate(content | {"positive": "maybe"})
    with pytest.raises(ValueError, match="anything to be returned"):
        ModelCard.model_validate(content | {"returned": {"objects": ["seg"]}})


def test_a_card_that_outlines_must_say_what_is_too_small() -> None:
    content = draft()
    del content["decision"]
    with pytest.raises(ValueError, match="how large a region must be"):
        ModelCard.model_validate(content)


def test_a_study_that_is_called_positive_is_a_finding_unless_it_is_in_doubt() -> None:
    rules = Decision()
    assert decide((), None, (), rules, called=True) == (Verdict.FINDING, ())
    assert decide((), None, (), rules, called=False) == (Verdict.NOTHING_MARKED, ())
    assert decide((), None, ("too short",), rules, called=True) == (Verdict.INCONCLUSIVE, ("too short",))
