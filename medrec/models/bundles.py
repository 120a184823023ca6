"""A card with its weights as a MONAI Bundle, and back.

Out: a zip file with `configs/metadata.json`, `configs/inference.json` (each network as MONAI's parser builds it),
`models/*.safetensors`, `docs/README.md` and `medrec/card.json`. The same version gives the same bytes. In: only card
and weights are read, never a `_target_` or a `$` expression, and weights only as safetensors that the card pins.
Whether a bundle may come in at all is decided by its digest, before this room sees it.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from pydantic import ValidationError

from medrec.errors import DataError, WeightsError
from medrec.models import networks, preprocessing, still, weights
from medrec.pictures import Card, PictureCard, card_of
from medrec.prediction import Network

CARD = "medrec/card.json"
LARGEST_BYTES = 256 * 2**20
MOMENT = (1980, 1, 1, 0, 0, 0)  # a zip file's first: the same version gives the same bytes
# How MONAI builds the networks that a card names by a short word.
TARGETS = {
    "unet": ("monai.networks.nets.UNet", 2),
    "unet3d": ("monai.networks.nets.UNet", 3),
    "densenet": ("monai.networks.nets.DenseNet", 2),
    "densenet3d": ("monai.networks.nets.DenseNet", 3),
    "lite_unet": ("medrec.models.lite.LiteUNet", 0),
    "lite_classifier": ("medrec.models.lite.LiteClassifier", 0),
}
# What `medrec.models.networks` builds where a card does not say: blocks, growth, first.
DENSE = {"densenet": ([3, 6, 12, 8], 16, 32), "densenet3d": ([2, 4, 6], 12, 16)}
RENAMED = {"res_units": "num_res_units", "blocks": "block_config", "growth": "growth_rate", "first": "init_features",
           "dropout": "dropout_prob"}  # fmt: skip


def pack(card: Card, files: Mapping[str, Path], readme: str) -> bytes:
    """The bundle of a version as the bytes of a zip file. Raises WeightsError for weights that are not the card's."""
    contents = {
        CARD: card.content,
        "configs/metadata.json": _json(_metadata(card)),
        "configs/inference.json": _json(_inference(card)),
        "docs/README.md": readme.encode(),
        "LICENSE": f"{card.licence}\n".encode(),
    }
    for part in card.networks.values():
        contents[f"models/{part.weights}"] = weights.read(files[part.weights], part.sha256)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(contents.items()):
            archive.writestr(zipfile.ZipInfo(f"{card.name}/{name}", MOMENT), data)
    return packed.getvalue()


def unpack(data: bytes, out: Path) -> tuple[Card, dict[str, Path]]:
    """Card and weights of a bundle, the latter written to `out` under the names in the card.

    Raises DataError for what is no bundle of ours, WeightsError for weights that are not what the card pins.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(i.file_size for i in archive.infolist()) > LARGEST_BYTES:
                raise DataError(f"the bundle unpacks to more than {LARGEST_BYTES // 2**20} MiB")
            names = archive.namelist()
            (found,) = [n for n in names if n == CARD or n.endswith(f"/{CARD}")]
            root = found.removesuffix(CARD)
            card = card_of(json.loads(archive.read(found)))
            blobs = {p.weights: archive.read(f"{root}models/{p.weights}") for p in card.networks.values()}
    except (zipfile.BadZipFile, KeyError, ValidationError, json.JSONDecodeError, NotImplementedError, RuntimeError):
        raise DataError("this is no bundle that medrec can take in: card or weights are missing or broken") from None
    except ValueError:
        raise DataError(
            f"the bundle holds no card ({CARD}): medrec takes in bundles that say what they are for, and how their "
            "inputs are found; write a card for its network first"
        ) from None
    files = {}
    for part in card.networks.values():
        if hashlib.sha256(blobs[part.weights]).hexdigest() != part.sha256:
            raise WeightsError(f"weights {part.weights} of the bundle are not those that its card pins; not used")
        network = networks.build(part.kind, part.settings, _channels(card, part))
        weights.fill(network, blobs[part.weights], part.weights)
        files[part.weights] = out / part.weights
        files[part.weights].write_bytes(blobs[part.weights])
    return card, files


def _metadata(card: Card) -> dict[str, Any]:
    """What MONAI's bundle specification asks for."""
    places = {
        place: {
            "inputs": {"image": _format(f"{_channels(card, part)} channels", _channels(card, part), _axes(part))},
            "outputs": {"pred": _format("logits", 1, _axes(part))},
        }
        for place, part in card.networks.items()
    }
    return {
        "version": card.version,
        "changelog": {card.version: "exported by medrec"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "task": card.title,
        "description": card.intended_use,
        "authors": "see data_source",
        "copyright": card.licence,
        "data_source": card.data,
        "intended_use": card.intended_use,
        "network_data_format": next(iter(places.values())),
        "network_data_formats": places,
        "medrec_card_sha256": card.digest,
    }


def _format(what: str, channels: int, dimensions: int) -> dict[str, Any]:
    return {
        "type": what,
        "format": "magnitude",
        "num_channels": channels,
        "spatial_shape": ["*"] * dimensions,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": {},
    }


def _axes(part: Network) -> int:
    return TARGETS[part.kind][1] or 2


def _inference(card: Card) -> dict[str, Any]:
    config: dict[str, Any] = {"bundle_root": "."}
    for place, part in card.networks.items():
        key = place.replace(".", "_")
        config[f"{key}_def"] = _definition(card, part)
        config[f"{key}_weights"] = f"models/{part.weights}"
    first = next(iter(card.networks)).replace(".", "_")
    return config | {"network_def": f"@{first}_def"}


def _definition(card: Card, part: Network) -> dict[str, Any]:
    target, dimensions = TARGETS[part.kind]
    channels = _channels(card, part)
    settings: dict[str, Any] = {k: list(v) if isinstance(v, tuple) else v for k, v in part.settings.items()}
    if not dimensions:
        return {"_target_": target, "channels_in": channels, **settings}
    own: dict[str, Any] = {RENAMED.get(k, k): v for k, v in settings.items()}
    base = {"_target_": target, "spatial_dims": dimensions, "in_channels": channels, "out_channels": 1}
    if part.kind in DENSE:
        blocks, growth, first = DENSE[part.kind]
        return base | {"block_config": blocks, "growth_rate": growth, "init_features": first, "dropout_prob": 0.1} | own
    deep: tuple[list[int], int] = {"unet": ([16, 32, 64, 128, 256], 2), "unet3d": ([16, 32, 64, 128], 1)}[part.kind]
    usual: dict[str, Any] = {"channels": list(deep[0]), "num_res_units": deep[1]}
    own = usual | own
    levels: list[int] = own["channels"]
    return base | own | {"strides": [2] * (len(levels) - 1)}


def _channels(card: Card, part: Network) -> int:
    if isinstance(card, PictureCard):
        return still.CHANNELS_TO_CLASSIFY if part == card.classification else still.CHANNELS_TO_OUTLINE
    return preprocessing.channels(card)


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()
