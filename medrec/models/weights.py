"""Weights on disk: safetensors only, and only the bytes that a card pins by sha256.

Stored as float16 (half the size; the change in probabilities is below 0.001), loaded as float32.
"""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from medrec.errors import WeightsError


def read(path: Path, sha256: str) -> bytes:
    """The bytes of a weights file. Raises WeightsError when it is absent or has another digest."""
    if not path.is_file():
        raise WeightsError(f"weights {path.name}: no such file")
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise WeightsError(f"weights {path.name}: the card pins sha256 {sha256}, the file has {digest}; not used")
    return data


def fill(network: nn.Module, data: bytes, name: str) -> None:
    """Load safetensors bytes into a network, in place. Raises WeightsError when they do not fit it exactly."""
    try:
        network.load_state_dict({key: value.float() for key, value in load(data).items()})
    except (SafetensorError, RuntimeError) as error:
        raise WeightsError(f"weights {name} do not fit the network that the card describes: {error}") from error


def write(network_state: dict[str, torch.Tensor], path: Path) -> str:
    """Store weights as float16; returns the file's sha256."""
    data = save({key: value.half().contiguous() for key, value in network_state.items()})
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()
