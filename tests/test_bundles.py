"""Bundles: out as MONAI reads them, in by an approved digest only, and nothing in them is run."""

import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load
from typer.testing import CliRunner

from medrec import config
from medrec.cli import app
from medrec.errors import ConfigError, DataError, WeightsError
from medrec.home import Home
from medrec.models import bundles, inference
from medrec.registry import Registry
from medrec.retraining import Outcome
from medrec.store import Store


def shipped() -> config.CardFiles:
    return next(m for m in config.load().cards if m.card.name == "phantom")


def test_monai_s_own_parser_builds_the_networks_and_they_answer_the_same(tmp_path: Path) -> None:
    from monai.bundle import ConfigParser

    model = shipped()
    data = bundles.pack(model.card, model.weights, "read me")
    assert data == bundles.pack(model.card, model.weights, "read me")
    zipfile.ZipFile(io.BytesIO(data)).extractall(tmp_path)
    root = tmp_path / "phantom"
    parser = ConfigParser()
    parser.read_config(root / "configs" / "inference.json")
    parser.read_meta(root / "configs" / "metadata.json")
    ours = inference.load(model.card, model.weights, "cpu")
    x = torch.randn(2, 3, 96, 96)
    for place, own in (("segmentation", ours._segmentation[0]), ("classification", ours._classification)):
        network = parser.get_parsed_content(f"{place}_def")
        state = load((root / parser.get(f"{place}_weights")).read_bytes())
        network.load_state_dict({k: v.float() for k, v in state.items()})
        with torch.inference_mode():
            assert own is not None
            assert torch.equal(network.eval()(x), own(x))
    assert parser.get("_meta_::version") == model.card.version
    card, files = bundles.unpack(data, tmp_path)
    assert card.digest == model.card.digest
    assert set(files) == set(model.weights)


def repacked(data: bytes, **changed: bytes | None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(out, "w") as after:
        for name in before.namelist():
            content = changed.get(Path(name).name.replace(".", "_"), before.read(name))
            if content is not None:
                after.writestr(name, content)
    return out.getvalue()


def test_what_is_no_bundle_of_ours_or_was_changed_is_refused_by_name(tmp_path: Path) -> None:
    model = shipped()
    data = bundles.pack(model.card, model.weights, "")
    with pytest.raises(DataError, match="no bundle"):
        bundles.unpack(b"not a zip file", tmp_path)
    with pytest.raises(DataError, match="holds no card"):
        bundles.unpack(repacked(data, card_json=None), tmp_path)
    with pytest.raises(DataError, match="no bundle"):
        bundles.unpack(repacked(data, card_json=b"{"), tmp_path)
    with pytest.raises(WeightsError, match="not those that its card pins"):
        bundles.unpack(repacked(data, phantom_segmentation_safetensors=b"pickled"), tmp_path)
    evil = json.dumps({"network_def": "$__import__('pathlib').Path('/tmp/medrec-evil').touch()"}).encode()
    bundles.unpack(repacked(data, inference_json=evil), tmp_path)  # is never looked at
    assert not Path("/tmp/medrec-evil").exists()


def test_a_bundle_comes_in_by_its_approved_digest_and_is_promoted_only_through_the_gate(
    first: tuple[Home, Path, Outcome],
    taught: tuple[Home, Path, list[object]],
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
