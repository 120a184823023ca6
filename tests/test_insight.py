"""What a network looks at is found where it is."""

import numpy as np
import torch
from torch import nn

from medrec.learning import insight
from medrec.models import networks


class Corner(nn.Module):
    """Answers with what is bright after a blur: its origin is known."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3, padding=1)
        self.last = nn.Conv2d(2, 2, 3, stride=2, padding=1)
        for layer in (self.first, self.last):
            nn.init.constant_(layer.weight, 1 / 9)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x)).mean((1, 2, 3))[:, None]


def test_grad_cam_points_at_what_the_answer_comes_from() -> None:
    x = torch.zeros(1, 1, 32, 32)
    x[:, :, 20:28, 4:12] = 1
    cam = insight.grad_cam(Corner(), x, lambda y: y.sum())
    assert cam.shape == (32, 32)
    assert cam.max() == 1
    row, column = np.unravel_index(int(cam.argmax()), cam.shape)
    assert 19 <= row <= 28
    assert 3 <= column <= 12
    assert cam[:10].max() == 0


def test_maps_and_filters_of_every_network_can_be_looked_at() -> None:
    settings = {"densenet": {"blocks": (1, 1), "growth": 4, "first": 8}, "unet": {"channels": (4, 8), "res_units": 1}}
    for kind in ("unet", "unet3d", "densenet", "lite_unet", "lite_classifier"):
        size = (1, 2, 16, 32, 32) if kind == "unet3d" else (1, 2, 64, 64)
        network = networks.build(kind, settings.get(kind, {}), 2).eval()
        x = torch.randn(size)
        assert set(insight.maps(network, x)) == {"early", "middle", "late"}, kind
        assert all(f.ndim == 2 for f in insight.filters(network)), kind
        cam = insight.grad_cam(network, x, lambda y: y.sum())
        assert cam.shape == size[-2:], kind
        assert np.isfinite(cam).all(), kind
