"""Bundles: out as MONAI reads them, in by an approved digest only, and nothing in them is run."""

import io
import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from medrec import config
from medrec.errors import DataError, WeightsError
from medrec.models import bundles, inference


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
