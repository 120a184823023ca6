"""What a patient's slice could as well have looked like: pose, contrast, coil, noise, absent inputs.

Works on whole batches, on the device where they lie. Every draw comes from the generator that is handed in.
"""

import torch
from torch.nn import functional as F

ROTATION_RAD = 0.35
SCALE = (0.8, 1.2)
STRETCH = (0.9, 1.1)
SHIFT = 0.1  # of the square's side
CONTRAST = (0.7, 1.4)
BRIGHTNESS = 0.3
SATURATED_SHARE = 0.3
BIAS_FIELD = 0.25
NOISE = 0.1
DROPPED_SHARE = 0.15  # of the optional inputs: patients without them come too
# What "strong" adds, each to a share of the images: the curve of brightness bent between these values, which hold
# tissue and lesions of the normalised images, and a coarser resolution.
BENT_SHARE = 0.4
BENT_BETWEEN = (-2.0, 4.0)
BENT_BY = 0.6  # the exponent's logarithm, at most
COARSE_SHARE = 0.2
COARSE_TO = (0.4, 0.9)


class Augmentation:
    """Randomly varied copies of a batch; `grid_channels` are those of the grid input and its neighbours."""

    def __init__(self, generator: torch.Generator, grid_channels: int, strong: bool = False) -> None:
        self._generator = generator
        self._grid = grid_channels
        self._strong = strong

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (n, channels, s, s) and targets (n, 1, s, s) in 0..1 to varied images and binary targets."""
        x, y = self._pose(x, y)
        if self._strong:
            x = self._coarse(self._bent(x))
        return self._drop(self._intensity(x)), y

    def of_volumes(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for volumes (n, inputs, z, s, s) and targets (n, 1, z, s, s): all slices share every draw.

        `grid_channels` is then the number of slices.
        """
        n, inputs, depth, *square = x.shape
        posed, target = self._pose(x.reshape(n, inputs * depth, *square), y.reshape(n, depth, *square))
        parts = [self._coarse(self._bent(p)) if self._strong else p for p in posed.split(depth, 1)]
        images = torch.stack([self._intensity(p) for p in parts], 1)
        kept = self._uniform(0, 1, n, inputs, 1, 1, 1) >= DROPPED_SHARE
        kept[:, 0] = True
        images, marks = images * kept.to(x.device), target.reshape(y.shape)
        flip = self._uniform(0, 1, n) < 0.5
        images[flip], marks[flip] = images[flip].flip(2), marks[flip].flip(2)
        return images, marks

    def _uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=self._generator) * (high - low) + low

    def _pose(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        n = len(x)
        angle, scale = self._uniform(-ROTATION_RAD, ROTATION_RAD, n), self._uniform(*SCALE, n)
        stretched = scale * self._uniform(*STRETCH, n)
        mirror = self._uniform(0, 1, n).round() * 2 - 1
        theta = torch.zeros(n, 2, 3)
        theta[:, 0, 0], theta[:, 0, 1] = scale * angle.cos() * mirror, stretched * angle.sin()
        theta[:, 1, 0], theta[:, 1, 1] = -scale * angle.sin() * mirror, stretched * angle.cos()
        theta[:, :, 2] = self._uniform(-SHIFT, SHIFT, n, 2)
        grid = F.affine_grid(theta, [n, 1, *x.shape[2:]], align_corners=False).to(x.device)
        moved = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
        return moved, (F.grid_sample(y, grid, align_corners=False) > 0.5).float()

    def _bent(self, x: torch.Tensor) -> torch.Tensor:
        """Brightness bent by an exponent, for some of the images."""
        low, high = BENT_BETWEEN
        exponent = self._uniform(-BENT_BY, BENT_BY, len(x), 1, 1, 1).exp().to(x.device)
        chosen = (self._uniform(0, 1, len(x), 1, 1, 1) < BENT_SHARE).to(x.device)
        bent = ((x - low) / (high - low)).clamp(min=0) ** exponent * (high - low) + low
        return torch.where(chosen, bent, x)

    def _coarse(self, x: torch.Tensor) -> torch.Tensor:
        """Some images as from fewer pixels, as many for all of them."""
        chosen = (self._uniform(0, 1, len(x)) < COARSE_SHARE).nonzero()[:, 0].to(x.device)
        scale = float(self._uniform(*COARSE_TO, 1))
        if not len(chosen):
            return x
        small = F.interpolate(x[chosen], scale_factor=scale, mode="bilinear", antialias=True)
        x = x.clone()
        x[chosen] = F.interpolate(small, x.shape[2:], mode="bilinear")
        return x

    def _intensity(self, x: torch.Tensor) -> torch.Tensor:
        n, others = len(x), x.shape[1] - self._grid

        def per_input(low: float, high: float) -> torch.Tensor:
            """One draw for the grid input and its neighbours, one for each of the others."""
            shared = self._uniform(low, high, n, 1, 1, 1).expand(-1, self._grid, -1, -1)
            return torch.cat([shared, self._uniform(low, high, n, others, 1, 1)], 1).to(x.device)

        x = x * per_input(*CONTRAST) + per_input(-BRIGHTNESS, BRIGHTNESS)
        saturated = self._uniform(0, 1, n, 1, 1, 1).to(x.device) < SATURATED_SHARE
        x = torch.where(saturated, torch.minimum(x, self._uniform(1, 4, n, 1, 1, 1).to(x.device)), x)
        coarse = self._uniform(-BIAS_FIELD, BIAS_FIELD, n, 1, 3, 3)
        field = F.interpolate(coarse, x.shape[2:], mode="bicubic", align_corners=False).to(x.device)
        x = x + field * (x + 1.5)
        return x + noise_like(x, self._generator) * self._uniform(0, NOISE, n, 1, 1, 1).to(x.device)

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        others = x.shape[1] - self._grid
        kept = self._uniform(0, 1, len(x), others, 1, 1).to(x.device) >= DROPPED_SHARE
        return torch.cat([x[:, : self._grid], x[:, self._grid :] * kept], 1)


def noise_like(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Normal noise in the shape of `x`, drawn where `x` lies: on a GPU from a stream that the generator seeds."""
    if x.device.type != "cpu":
        seed = int(torch.randint(2**31, (), generator=generator))
        generator = torch.Generator(x.device).manual_seed(seed)
    return torch.randn(x.shape, generator=generator, device=x.device)
