"""Retraining cannot fool itself: nobody is on both sides, a kill costs nothing, a worse model is not promoted."""

import hashlib
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import yaml
from conftest import a_night, copy_home
from mlflow.tracking import MlflowClient
from teaching import Shot, shot, shots, teach
from test_pictures import card as picture_card
from typer.testing import CliRunner

from medrec import config, keeping, verification
from medrec.cli import app
from medrec.dicom import Pseudonyms, stills
from medrec.errors import ConfigError, DataError
from medrec.home import Home
from medrec.labels import Origin
from medrec.registry import Registry
from medrec.retraining import Outcome, Request, Retraining
from medrec.splits import Side
from medrec.store import Store

AT = "2026-01-02T00:00:00Z"
COUNT = 24
GATE = {
    "primary": "dice", "alpha": 0.4, "uses": 3, "minimum_patients": 6, "acceptance": {"dice": 0.2},
    "safety": {"false_positives": 5.0},
}  # fmt: skip


def draft(**changed: object) -> dict[str, object]:
    """A card as a person writes it: no weights, no digests."""
    content = picture_card().model_dump(mode="json", exclude_defaults=True)
    for name in ("sha256", "weights"):
        del content["segmentation"][name]
    content |= {
        "gate": GATE, "robustness": {"floor": 0.05}, "split": {"test": 0.4, "validation": 0.2},
        "early_stop": {"every": 10, "patience": 3},
        "training": {"segmentation_steps": 60, "classification_steps": 10, "batch": 8, "learning_rate": 0.02},
    }  # fmt: skip
    del content["measured"], content["trained_on"]
    return content | changed


@pytest.fixture
def home(taught: tuple[Home, Path, list[Shot]], tmp_path: Path) -> Home:
    shutil.copytree(taught[0].root, tmp_path / "home")
    return Home(tmp_path / "home")


def write(folder: Path, **changed: object) -> Path:
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(draft(**changed)))
    return path


def retrain(
    home: Home,
    card: Path,
    *folders: Path,
    page: bool = False,
    own: config.Configuration | None = None,
    new: int | None = None,
) -> Outcome:
    request = Request(str(card), home, own or config.load(), "dr. a", folders, new)
    with Retraining(request) as retraining:
        if not retraining.is_due():
            return retraining.outcome
        retraining.gather()
        retraining.divide()
        retraining.train()
        retraining.evaluate()
        if page:
            retraining.describe()
        return retraining.close()


def records(home: Home, *kinds: str) -> list[dict[str, object]]:
    with Store.open(home.store_url) as store:
        return [dict(r.facts) for _, r in store.of_kinds(*kinds)]


def test_a_first_model_is_trained_measured_on_locked_patients_and_eligible(
    first: tuple[Home, Path, Outcome], taught: tuple[Home, Path, list[Shot]]
) -> None:
    home, _, outcome = first
    assert outcome.eligible, outcome.lines
    with Store.open(home.store_url) as store:
        sides = store.sides()
        kept = Registry(home, store).load("toy", outcome.card)
        known = {k.patient: k.pixels_sha256 for k in store.known("toy")}
    locked = {p for p, s in sides.items() if s is Side.TEST}
    assert len(sides) == COUNT
    assert 9 <= len(locked) <= 11
    assert set(kept.card.trained_on) == {known[p] for p in sides if p not in locked}
    measured = json.loads((kept.folder / "evaluation.json").read_text())["measured"]  # type: ignore[operator]
    assert {"dice", "surface_distance", "lesion_sensitivity", "false_positives"} <= set(measured)
    table = [line for line in outcome.lines if line.startswith("robustness, dice ")]
    assert [line.split()[2].rstrip(":") for line in table] == [
        "as", "intensity", "contrast", "noise", "blur", "rotation", "scale",
    ]  # fmt: skip
    assert outcome.mlflow_run_id
    client = MlflowClient(f"sqlite:///{home.mlflow_database}")
    assert client.get_metric_history(outcome.mlflow_run_id, "toy_segmentation.loss")
    params = client.get_run(outcome.mlflow_run_id).data.params
    assert {"data", "environment", "seed"} <= set(params)
    assert not any(s.path.name in line for s in taught[2] for line in outcome.lines)  # no patient's name


def test_the_page_of_a_version_is_one_file_that_shows_its_own_filters_maps_and_measured_activations(
    first: tuple[Home, Path, Outcome],
) -> None:
    (path,) = first[0].models.rglob("page.html")
    text = path.read_text()
    assert "http" not in text
    assert "<script" not in text
    for part in (
        "early: maps of",
        "middle: maps of",
        "late: maps of",
        "Grad-CAM",
        "none at all",
        "tanh",
        "worst: Dice",
    ):
        assert part in text, part
    assert text.count("data:image/png;base64,") > 20
    rows = re.findall(r"<tr><td>([^<]*)</td><td>([\d.]+)</td><td>([\d.]+)</td>", text)
    assert [name for name, *_ in rows] == ["PReLU (as designed)", "ReLU", "tanh", "none at all"]
    assert len({last for _, _, last in rows}) > 1  # the activation makes a difference that was measured
    card = (path.parent / "card.md").read_text()
    assert "| dice |" in card
    assert "ELIGIBLE" in card
    client = MlflowClient(f"sqlite:///{first[0].mlflow_database}")
    assert {"page.html", "card.md"} <= {a.path for a in client.list_artifacts(str(first[2].mlflow_run_id))}


def problems(home: Home) -> list[str]:
    with Store.open(home.store_url) as store:
        found = [*verification.verify(home, store), *verification.verify_mlflow(home, store, "medrec")]
    return [str(p) for p in found]


def test_an_audit_finds_nothing_after_a_training_a_promotion_and_a_loss_of_mlflow_and_names_what_is_touched(
    first: tuple[Home, Path, Outcome], tmp_path: Path
) -> None:
    home = copy_home(first[0].root, tmp_path / "home")
    assert problems(home) == []
    words = ["--by", "dr. b", "--reason", "passed", "--home", str(home.root)]
    assert CliRunner().invoke(app, ["models", "promote", first[2].card[:12], *words]).exit_code == 0
    client = MlflowClient(f"sqlite:///{home.mlflow_database}")
    assert set(client.get_registered_model("medrec-toy").aliases) == {"champion", "challenger"}
    assert problems(home) == []
    (tmp_path / "in").mkdir()
    a_night(tmp_path / "in", home.root)
    assert problems(home) == []
    keeping.backup(home, tmp_path / "backup.tar")
    other = Home(tmp_path / "other")
    keeping.restore(tmp_path / "backup.tar", other)
    assert problems(other) == []
    run = str(first[2].mlflow_run_id)
    client.log_metric(run, "locked.dice", 0.99)
    client.set_tag(run, "medrec.status", "approved")
    client.delete_registered_model_alias("medrec-toy", "challenger")
    (home.root / "mlartifacts/runs" / run / "artifacts/page.html").write_text("better")
    for name in ("evaluation.json", "toy_segmentation.safetensors"):
        path = next(home.models.rglob(name))
        path.write_bytes(path.read_bytes() + b" ")
    told = "\n".join(problems(home))
    assert "its evaluation.json was changed" in told
    assert "its toy_segmentation.safetensors was changed" in told
    for what in ("metric locked.dice was", "tag medrec.status was", "challenger was moved", "page.html was changed"):
        assert what in told
    shutil.copytree(other.root, tmp_path / "restored", ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts"))
    home = Home(tmp_path / "restored")
    a_night(tmp_path / "in", home.root)
    assert problems(home) == []
    client = MlflowClient(f"sqlite:///{home.mlflow_database}")
    assert set(client.get_registered_model("medrec-toy").aliases) == {"champion", "challenger"}


def test_the_same_card_on_the_same_labels_is_neither_trained_nor_asked_again(
    first: tuple[Home, Path, Outcome], taught: tuple[Home, Path, list[Shot]], tmp_path: Path
) -> None:
    shutil.copytree(first[0].root, tmp_path / "home")
    home = Home(tmp_path / "home")
    again = retrain(home, first[1], taught[1])
    assert (again.card, again.status) == (first[2].card, "already done")
    assert len(records(home, "test set used")) == 1
    assert records(home, "model promoted") == []
    everything = config.load()
    settings = everything.settings.model_copy(update={"promote": "automatic"})
    retrain(home, first[1], taught[1], own=replace(everything, settings=settings))
    (promoted,) = records(home, "model promoted")
    assert promoted["why"] == "automatic promotion, by the configuration"


def test_a_worse_challenger_is_not_eligible_cannot_be_promoted_and_uses_are_counted(
    first: tuple[Home, Path, Outcome], taught: tuple[Home, Path, list[Shot]], tmp_path: Path
) -> None:
    shutil.copytree(first[0].root, tmp_path / "home")
    home = Home(tmp_path / "home")
    cli = CliRunner()
    at_home = ["--home", str(home.root)]
    words = ["--by", "dr. b", "--reason", "passed its gate", *at_home]
    assert cli.invoke(app, ["models", "promote", first[2].card[:12], *words]).exit_code == 0
    recipe = {"segmentation_steps": 1, "classification_steps": 1, "batch": 4, "learning_rate": 1e-6}
    bad = {"training": recipe, "robustness": None}
    worse = retrain(home, write(tmp_path, **bad), taught[1])
    assert not worse.eligible
    assert worse.version == "0.0.2"
    assert any("use 2" in line for line in worse.lines)
    before = next(n for n, line in enumerate(worse.lines) if "4 of 5 trials" in line)
    assert before < next(n for n, line in enumerate(worse.lines) if "p = " in line)
    refused = cli.invoke(app, ["models", "promote", worse.card[:12], *words])
    assert isinstance(refused.exception, DataError)
    assert "did not pass its gate" in str(refused.exception)
    third = bad | {"training": recipe | {"segmentation_steps": 2}}
    assert retrain(home, write(tmp_path, **third), taught[1]).status == "not eligible"
    fourth = bad | {"training": recipe | {"segmentation_steps": 3}}
    spent = retrain(home, write(tmp_path, **fourth), taught[1])
    assert any("locked patients are used up (3 uses, alpha 0.4, were planned)" in line for line in spent.lines)
    assert len(records(home, "test set used")) == 3
    assert cli.invoke(app, ["models", "list", *at_home]).exit_code == 0
    with Store.open(home.store_url) as store:
        states = {v.version: v.words for v in Registry(home, store).versions()}
    assert states == {"0.0.1": "promoted, champion", "0.0.2": "evaluated", "0.0.3": "evaluated", "0.0.4": "trained"}


def test_a_killed_training_ends_with_the_weights_of_one_that_was_not(
    first: tuple[Home, Path, Outcome], home: Home, taught: tuple[Home, Path, list[Shot]], tmp_path: Path
) -> None:
    shutil.rmtree(home.root)
    shutil.copytree(taught[0].root, home.root)
    program = f"""
import os, signal
from pathlib import Path
from medrec import config
from medrec.home import Home
from medrec.learning import training
from medrec.retraining import Request, Retraining
training.CHECKPOINT_SECONDS = -1.0
def killed(what, done, total):
    if done == 30:
        os.kill(os.getpid(), signal.SIGKILL)
home, images = Home(Path({str(home.root)!r})), Path({str(taught[1])!r})
request = Request({str(first[1])!r}, home, config.load(), "dr. a", (images,))
with Retraining(request) as r:
    r.gather(); r.divide(); r.train(killed)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.returncode == -9, done.stderr
    left = list(home.training.rglob("*.checkpoint"))
    assert len(left) == 1
    resumed = retrain(home, first[1], taught[1])
    assert resumed.card == first[2].card  # its digest covers the weights'
    assert list(home.training.iterdir()) == []


def test_the_same_pixels_under_another_patient_stand_on_one_side_and_are_reported(
    home: Home, taught: tuple[Home, Path, list[Shot]], tmp_path: Path
) -> None:
    folder = tmp_path / "again"
    copies = shots(folder, 10, prefix="OTHER")  # the same pixels as of P0 to P9
    touched = []
    for one in copies[:5]:  # and some of them recompressed, as it were
        pixels = stills.read(one.path.read_bytes(), Pseudonyms.load(home.key)).pixels * 255
        noisy = np.clip(pixels * 1.02 + np.random.default_rng(3).integers(-1, 2, pixels.shape), 0, 255).round()
        touched.append(shot(one.path, noisy, one.path.name, one.mask, one.malignant))
    teach(home, "toy", [*touched, *copies[5:]])
    request = Request(str(write(tmp_path)), home, config.load(), "dr. a", (taught[1], folder))
    with Retraining(request) as retraining:
        retraining.gather()
        retraining.divide()
        told = [line for line in retraining.outcome.lines if "share an image" in line]
        assert len(told) == 10
        sides = dict(retraining._sides)
        images = {i.image: i.patient for i in retraining._items}
    names = Pseudonyms.load(home.key)
    for n in range(10):
        pair = [stills.read((f / name).read_bytes(), names).patient
                for f, name in ((taught[1], f"P{n}"), (folder, f"OTHER{n}"))]  # fmt: skip
        assert sides[pair[0]] is sides[pair[1]]
    assert len(images) == COUNT + 10


def test_a_locked_patient_whose_files_come_back_under_another_id_stays_locked(
    first: tuple[Home, Path, Outcome], taught: tuple[Home, Path, list[Shot]], tmp_path: Path
) -> None:
    shutil.copytree(first[0].root, tmp_path / "home")
    home = Home(tmp_path / "home")
    names = Pseudonyms.load(home.key)
    with Store.open(home.store_url) as store:
        before = store.sides()
    still_of = {s.path.name: stills.read(s.path.read_bytes(), names).patient for s in taught[2]}
    victims = [s for s in taught[2] if before[still_of[s.path.name]] is Side.TEST][:3]
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    made = []
    for one in victims:  # the same UIDs and pixels, another PatientID; the old file is gone
        ds = pydicom.dcmread(one.path)
        ds.PatientID = f"NEW{one.path.name}"
        ds.save_as(renamed / one.path.name)
        made.append(one._replace(path=renamed / one.path.name))
    teach(home, "toy", made)
    with Retraining(Request(str(first[1]), home, config.load(), "dr. a", (renamed,))) as retraining:
        retraining.gather()
        with pytest.raises(DataError, match="every labelled patient is locked"):
            retraining.divide()
        assert len(retraining._sides) == 3
        assert set(retraining._sides) & set(before) == set()


def test_accepted_answers_never_teach_and_edited_ones_never_test(
    taught: tuple[Home, Path, list[Shot]], tmp_path: Path
) -> None:
    home, made = Home(tmp_path / "home"), taught[2]
    teach(home, "toy", made[:8], Origin.ACCEPTED_AI)
    teach(home, "toy", made[8:16], Origin.EDITED_AI)
    teach(home, "toy", made[16:])
    with Retraining(Request(str(write(tmp_path)), home, config.load(), "dr. a", (taught[1],))) as retraining:
        retraining.gather()
        assert len(retraining._items) == 16
        retraining.divide()
        blind = {i.patient for i in retraining._items if i.blind}
        locked = {p for p, s in retraining._sides.items() if s is Side.TEST}
        assert len(blind) == 8
        assert locked
        assert locked <= blind
        assert any("16 labels are a model's answers" in line for line in retraining.outcome.lines)


def test_a_gate_may_be_tightened_and_not_loosened_once_it_is_declared(
    first: tuple[Home, Path, Outcome], taught: tuple[Home, Path, list[Shot]], tmp_path: Path
) -> None:
    shutil.copytree(first[0].root, tmp_path / "home")
    looser = write(tmp_path, gate=GATE | {"acceptance": {"dice": 0.01}})
    with pytest.raises(ConfigError, match="may be tightened only"):
        retrain(Home(tmp_path / "home"), looser, taught[1])
    assert len(records(Home(tmp_path / "home"), "model trained")) == 1


def test_a_model_that_breaks_under_another_scanner_s_noise_is_not_eligible(
    taught: tuple[Home, Path, list[Shot]], home: Home, tmp_path: Path
) -> None:
    outcome = retrain(home, write(tmp_path, robustness={"floor": 0.999}), taught[1])
    assert not outcome.eligible
    assert any(line.startswith("not robust: dice, noise") for line in outcome.lines)


def test_classes_alone_are_learnt_measured_and_calibrated(home: Home, tmp_path: Path) -> None:
    made = shots(tmp_path / "dicom", 24, 200, "C")
    teach(home, "classes", made, what=("class",))
    network = {"kind": "densenet", "settings": {"blocks": [1, 1], "growth": 4, "first": 8}}
    gate = GATE | {"primary": "auc", "acceptance": {"auc": 0.1, "brier": 1.0}, "safety": {}}
    recipe = {"segmentation_steps": 1, "classification_steps": 30, "batch": 8, "learning_rate": 0.01}
    changed = {"name": "classes", "segmentation": None, "classification": network, "robustness": None}
    # What earlier networks of the card knew is no matter: its file need not be there.
    held = {"patients": 20, "share": 0.05, "low": 0.0, "high": 0.2}
    changed["familiarity"] = {"weights": "old.safetensors", "sha256": "0" * 64, "limit": 1.0, "alarms": held}
    card = write(tmp_path, **changed, gate=gate, training=recipe)
    outcome = retrain(home, card, tmp_path / "dicom", page=True)
    assert outcome.status in ("eligible", "not eligible")
    told = "\n".join(outcome.lines)
    for measure in ("auc: ", "sensitivity: ", "Brier score: ", "calibration slope: ", "calibration intercept: "):
        assert measure in told
    assert "dice" not in told


def test_a_schedule_waits_for_new_labels(
    first: tuple[Home, Path, Outcome], taught: tuple[Home, Path, list[Shot]], tmp_path: Path
) -> None:
    shutil.copytree(first[0].root, tmp_path / "home")
    home = Home(tmp_path / "home")
    assert retrain(home, first[1], taught[1], new=2).status == "waiting"
    teach(home, "toy", shots(tmp_path / "more", 1, 100))
    with Retraining(Request(str(first[1]), home, config.load(), "dr. a", (taught[1],), 2)) as retraining:
        assert retraining.is_due()  # a mask and a class


def test_rollback_and_the_kill_switch_are_on_record_and_disabling_is_for_good(
    first: tuple[Home, Path, Outcome], tmp_path: Path
) -> None:
    shutil.copytree(first[0].root, tmp_path / "home")
    home = Home(tmp_path / "home")
    with Store.open(home.store_url) as store:
        registry = Registry(home, store)
        registry.promote(first[2].card, "dr. a", "first", AT)
        with pytest.raises(DataError, match="no earlier version"):
            registry.rollback("toy", "dr. a", "try", AT)
        for problem in (("", "why"), ("who", " ")):
            with pytest.raises(ConfigError):
                registry.disable("toy", *problem, AT)
        assert registry.disable("toy", "dr. b", "misses small ones", AT).why_disabled is not None
        with pytest.raises(DataError, match="disabled already"):
            registry.disable("toy", "dr. b", "again", AT)
        with pytest.raises(DataError):
            registry.promote(first[2].card, "dr. a", "again", AT)
    kinds = [r["by"] for r in records(home, "model promoted", "model disabled")]
    assert kinds == ["dr. a", "dr. b"]


def test_weights_that_were_changed_in_the_home_are_not_used(first: tuple[Home, Path, Outcome], tmp_path: Path) -> None:
    shutil.copytree(first[0].root, tmp_path / "home")
    home = Home(tmp_path / "home")
    (card,) = home.models.rglob("card.yaml")
    card.write_text(card.read_text().replace("minimum_area_px: 5", "minimum_area_px: 6"))
    from medrec.errors import WeightsError

    with Store.open(home.store_url) as store, pytest.raises(WeightsError, match="was changed"):
        Registry(home, store).promote(first[2].card, "dr. a", "why", AT)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"gate": GATE | {"primary": "beauty"}}, "gate.primary"),
        ({"segmentation": {"kind": "unet", "weights": "../x.safetensors"}}, "segmentation.weights"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_mistakes_of_a_card_are_named_before_anything_is_read(
    home: Home, tmp_path: Path, changed: dict[str, object], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        retrain(home, write(tmp_path, **changed), tmp_path)


@pytest.mark.slow
def test_the_command_runs_the_flow_and_prints_one_object(
    first: tuple[Home, Path, Outcome], taught: tuple[Home, Path, list[Shot]], tmp_path: Path
) -> None:
    shutil.copytree(first[0].root, tmp_path / "home")
    words = [first[1], "--by", "dr. a", "--input", taught[1], "--home", tmp_path / "home", "--json"]
    command = [str(Path(sys.executable).parent / "medrec"), "retrain", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "already done"
    with sqlite3.connect(tmp_path / "home" / "prefect" / "prefect.db") as database:
        (count,) = database.execute("SELECT count(*) FROM task_run").fetchone()
    assert count == 5  # gather, divide, train, evaluate, describe


def test_without_images_or_labels_nothing_starts(home: Home, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="nothing to learn toy from"):
        retrain(home, write(tmp_path), tmp_path / "empty")
    with pytest.raises(ConfigError, match="--input"):
        retrain(home, write(tmp_path))


def test_a_bundle_comes_in_by_its_approved_digest_and_is_promoted_only_through_the_gate(
    first: tuple[Home, Path, Outcome],
    taught: tuple[Home, Path, list[Shot]],
    tmp_path: Path,
) -> None:
    cli, giving = CliRunner(), ["--home", str(first[0].root)]
    file = tmp_path / "toy.zip"
    assert cli.invoke(app, ["models", "export", first[2].card[:12], "-o", str(file), *giving]).exit_code == 0
    home = Home(tmp_path / "home")
    shutil.copytree(taught[0].root, home.root)
    words = ["--by", "dr. b", "--reason", "from the other hospital", "--home", str(home.root)]
    refused = cli.invoke(app, ["models", "import", str(file), *words])
    assert isinstance(refused.exception, ConfigError)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert digest in str(refused.exception)
    own = tmp_path / "config"
    own.mkdir()
    settings = yaml.safe_load((config.packaged_configs() / "medrec.yaml").read_text()) | {"bundles": [digest]}
    (own / "medrec.yaml").write_text(yaml.safe_dump(settings))
    done = cli.invoke(app, ["models", "import", str(file), *words, "--config", str(own)])
    assert done.exit_code == 0, done.exception
    early = cli.invoke(app, ["models", "promote", first[2].card[:12], *words])
    assert isinstance(early.exception, DataError)
    asked = ["models", "evaluate", first[2].card[:12], "--by", "dr. b", "--input", str(taught[1]), *words[4:]]
    assert cli.invoke(app, asked).exit_code == 0
    with Store.open(home.store_url) as store:
        (version,) = [v for v in Registry(home, store).versions() if v.name == "toy"]
    assert version.state == "eligible"  # the same key gives the same locked patients, whom the model never saw
