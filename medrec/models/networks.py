"""The networks that a card may name, MONAI's and those of `lite`, by a short name each.

A card gives numbers only; which class they build is decided here, so that a card can never name code.
"""

from collections.abc import Callable, Mapping

from monai.networks.nets import DenseNet, UNet
from torch import nn

from medrec.errors import ConfigError
from medrec.models.lite import LiteClassifier, LiteUNet

Settings = Mapping[str, int | float | tuple[int, ...]]


def _unet(channels_in: int, channels: tuple[int, ...] = (16, 32, 64, 128, 256), res_units: int = 2) -> nn.Module:
    """Residual U-Net that halves the resolution at each level after the first; one logit per pixel."""
    strides = (2,) * (len(channels) - 1)
    return UNet(2, channels_in, 1, channels, strides, num_res_units=res_units)


def _unet3d(channels_in: int, channels: tuple[int, ...] = (16, 32, 64, 128), res_units: int = 1) -> nn.Module:
    """The same for whole volumes: one logit per voxel."""
    return UNet(3, channels_in, 1, channels, (2,) * (len(channels) - 1), num_res_units=res_units)


def _densenet(
    channels_in: int, blocks: tuple[int, ...] = (3, 6, 12, 8), growth: int = 16, first: int = 32, dropout: float = 0.1
) -> nn.Module:
    """DenseNet with one logit per slice."""
    return DenseNet(
        2, channels_in, 1, init_features=first, growth_rate=growth, block_config=blocks, dropout_prob=dropout
    )


def _densenet3d(
    channels_in: int, blocks: tuple[int, ...] = (2, 4, 6), growth: int = 12, first: int = 16, dropout: float = 0.1
) -> nn.Module:
    """The same for whole volumes: one logit per study."""
    return DenseNet(
        3, channels_in, 1, init_features=first, growth_rate=growth, block_config=blocks, dropout_prob=dropout
    )


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "unet": _unet,
    "unet3d": _unet3d,
    "densenet": _densenet,
    "densenet3d": _densenet3d,
    "lite_unet": LiteUNet,
    "lite_classifier": LiteClassifier,
}


def build(kind: str, settings: Settings, channels_in: int) -> nn.Module:
    """A network with fresh weights: (n, channels_in, y, x) to logits (n, 1, y, x) or (n, 1).

    `unet3d` and `densenet3d` are for cards with `preprocessing.depth`: (n, channels_in, z, y, x) to logits
    (n, 1, z, y, x) or (n, 1).

    Raises ConfigError when the card names an unknown network or a setting that it does not have.
    """
    if kind not in NETWORKS:
        raise ConfigError([f"kind: no network {kind!r}; there are {sorted(NETWORKS)}"])
    try:
        network: nn.Module = NETWORKS[kind](channels_in, **settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError([f"settings of {kind}: {error}"]) from error
    return network
