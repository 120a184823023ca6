"""What a network looks at: its first filters, its maps at three depths, and where a call comes from (Grad-CAM).

Works on any network that `medrec.models.networks` builds, by hooks; nothing of it is changed. Grad-CAM (Selvaraju et
al., ICCV 2017): the maps of a deep layer, weighted by how much each pushes the answer up.
"""

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

Image = npt.NDArray[np.float32]
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
SHOWN_FILTERS = 16
SHOWN_MAPS = 6


def convolutions(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every convolution of a network with its name, in the order in which they are defined."""
    return [(name, m) for name, m in network.named_modules() if isinstance(m, CONVOLUTIONS)]


def filters(network: nn.Module) -> list[Image]:
    """The first layer's filters (rows, columns), of the first input channel; the middle one of a 3D filter."""
    layer = convolutions(network)[0][0]
    weight = network.get_parameter(f"{layer}.weight").detach().float().numpy()
    first = weight[:SHOWN_FILTERS, 0]
    return [np.asarray(f if f.ndim == 2 else f[f.shape[0] // 2], np.float32) for f in first]


def maps(network: nn.Module, x: torch.Tensor) -> dict[str, list[Image]]:
    """The strongest maps of an image (1, c, …) at early, middle and late depth, each (rows, columns)."""
    every = convolutions(network)
    places = {"early": 0, "middle": len(every) // 2, "late": max(0, len(every) - 2)}
    seen: dict[str, torch.Tensor] = {}
    with _hooked({every[n][1]: depth for depth, n in places.items()}, seen), torch.inference_mode():
        network(x)
    return {depth: _strongest(seen[depth][0]) for depth in places if depth in seen}


def grad_cam(network: nn.Module, x: torch.Tensor, answer: Callable[[torch.Tensor], torch.Tensor]) -> Image:
    """Where in an image (1, c, …) an answer comes from: (rows, columns) in 0..1, of the size of the image.

    `answer` turns the network's output into the one number whose origin is asked for. The layer is the deepest: the one
    with the smallest maps that are still maps.
    """
    sizes: dict[str, torch.Tensor] = {}
    every = {m: name for name, m in convolutions(network)}
    with _hooked(every, sizes), torch.inference_mode():
        network(x)
    usable = [n for n, t in sizes.items() if min(t.shape[2:]) > 1]
    name = min(reversed(usable), key=lambda n: float(np.prod(sizes[n].shape[2:])))
    layer = {n: m for m, n in every.items()}[name]
    kept: dict[str, torch.Tensor] = {}
    with _hooked({layer: "maps"}, kept), torch.enable_grad():
        value = answer(network(x.clone().requires_grad_()))
        (gradient,) = torch.autograd.grad(value, kept["maps"])
    weights = gradient.flatten(2).mean(2)
    cam = torch.einsum("nc,nc...->n...", weights, kept["maps"]).relu()[:, None]
    mode = "bilinear" if cam.ndim == 4 else "trilinear"
    full = F.interpolate(cam, x.shape[2:], mode=mode)[0, 0].detach().numpy()
    flat = full if full.ndim == 2 else full[full.shape[0] // 2]
    return np.asarray(flat / (flat.max() or 1), np.float32)


def _strongest(found: torch.Tensor) -> list[Image]:
    flat = found if found.ndim == 3 else found[:, found.shape[1] // 2]
    order = flat.flatten(1).std(1).argsort(descending=True)[:SHOWN_MAPS]
    return [flat[n].float().numpy() for n in order]


@contextmanager
def _hooked(layers: "dict[nn.Module, str]", seen: dict[str, torch.Tensor]) -> Any:
    def keep(name: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        return lambda module, inputs, output: seen.__setitem__(name, output)

    handles = [layer.register_forward_hook(keep(name)) for layer, name in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
