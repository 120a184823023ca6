"""Networks on the encoder of EfficientNet-Lite 0, which is cheap on a CPU and can start from what photographs taught.

The encoder is Tan and Le's (ICML 2019) in the Lite variant of the TensorFlow team: inverted residual blocks without
squeeze-and-excitation, ReLU6, padding as TensorFlow's "SAME". `Encoder.take_over` fills it with the published ImageNet
weights. Everything runs channels-last, which measures a third faster on a CPU.
"""

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

# Blocks, kernel, stride, expansion, channels in and out of each stage; the last stage (320 channels) is left out: it
# adds a quarter of the weights to a map that a U-Net reads only once.
STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
)
SEEN = (0, 1, 2, 4, 5)  # the stages whose maps are the last ones at their resolution: 1/2 to 1/32
CHANNELS = tuple(STAGES[n][5] for n in SEEN)
RARE = 0.05  # how common a pixel of the finding is before anything is learnt: else the first steps only unlearn


class _Convolution(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow does: at stride 2 the odd pixel goes behind."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(channels_in, channels_out, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride[0] > 1:
            both = self.kernel_size[0] - self.stride[0]
            before, after = both // 2, both - both // 2
            x = F.pad(x, (before, after, before, after))
        return super().forward(x)


def _normed(convolution: nn.Module, channels: int, active: bool = True) -> nn.Sequential:
    norm = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03)
    return nn.Sequential(convolution, norm, *([nn.ReLU6(inplace=True)] if active else []))


class _Block(nn.Module):
    """Inverted residual block: widen, filter each channel, narrow; added to its input where the shapes allow."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        self.expand = _normed(_Convolution(channels_in, wide, 1), wide) if expansion > 1 else nn.Identity()
        self.depth = _normed(_Convolution(wide, wide, kernel, stride, wide), wide)
        self.project = _normed(_Convolution(wide, channels_out, 1), channels_out, active=False)
        self._residual = stride == 1 and channels_in == channels_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.project(self.depth(self.expand(x)))
        return x + y if self._residual else y


class Encoder(nn.Module):
    """(n, channels, y, x) to five maps of `CHANNELS` at 1/2, 1/4, 1/8, 1/16 and 1/32 of the resolution."""

    def __init__(self, channels_in: int) -> None:
        super().__init__()
        self._channels_in = channels_in
        self.stem = _normed(_Convolution(channels_in, 32, 3, 2), 32)
        self.stages = nn.ModuleList(
            nn.Sequential(*(_Block(i if n == 0 else o, o, k, s if n == 0 else 1, e) for n in range(count)))
            for count, k, s, e, i, o in STAGES
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The maps, finest first."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return [maps[n] for n in SEEN]

    def early(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The maps at 1/4 and 1/8 of the resolution alone, at a part of the cost."""
        x = self.stem(x)
        maps = []
        for stage in self.stages[: SEEN[2] + 1]:
            x = stage(x)
            maps.append(x)
        return [maps[n] for n in SEEN[1:3]]

    def take_over(self, published: Mapping[str, torch.Tensor]) -> None:
        """Fill every layer from the published weights, in place; grey channels share what the colours had.

        Raises RuntimeError when the weights are of another network.
        """
        colours = published["_conv_stem.weight"].sum(1, keepdim=True)
        state = {"stem.0.weight": colours.expand(-1, self._channels_in, -1, -1) / self._channels_in}
        state |= _norm(published, "_bn0", "stem.1")
        places = [f"stages.{stage}.{n}" for stage, (count, *_) in enumerate(STAGES) for n in range(count)]
        for number, place in enumerate(places):
            for theirs, norm, ours in (("expand", 0, "expand"), ("depthwise", 1, "depth"), ("project", 2, "project")):
                convolution = published.get(f"_blocks.{number}._{theirs}_conv.weight")
                if convolution is not None:
                    state[f"{place}.{ours}.0.weight"] = convolution
                    state |= _norm(published, f"_blocks.{number}._bn{norm}", f"{place}.{ours}.1")
        counts = {k: v for k, v in self.state_dict().items() if k.endswith("num_batches_tracked")}
        self.load_state_dict(state | counts)


def _norm(published: Mapping[str, torch.Tensor], theirs: str, ours: str) -> dict[str, torch.Tensor]:
    return {f"{ours}.{k}": published[f"{theirs}.{k}"] for k in ("weight", "bias", "running_mean", "running_var")}


class _Up(nn.Module):
    """Twice the resolution, joined with the encoder's map of that resolution."""

    def __init__(self, channels_in: int, skipped: int, channels_out: int) -> None:
        super().__init__()
        self.first = _normed(_Convolution(channels_in + skipped, channels_out, 3), channels_out)
        self.second = _normed(_Convolution(channels_out, channels_out, 3), channels_out)

    def forward(self, x: torch.Tensor, skipped: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.second(self.first(torch.cat([F.interpolate(x, scale_factor=2.0), skipped], 1)))
        return y


class LiteUNet(nn.Module):
    """(n, channels_in, y, x) to logits (n, 1, y, x); works at `size_px` when that is not 0, whatever it is shown."""

    def __init__(self, channels_in: int, decoder: tuple[int, ...] = (128, 64, 40, 24), size_px: int = 0) -> None:
        super().__init__()
        if len(decoder) != 4 or size_px % 32:
            raise ValueError("decoder: four numbers of channels; size_px: a multiple of 32")
        self._size_px = size_px
        self.encoder = Encoder(channels_in)
        self.ups = nn.ModuleList(
            _Up(i, s, o) for i, s, o in zip((CHANNELS[4], *decoder[:3]), CHANNELS[3::-1], decoder, strict=True)
        )
        self.head = nn.Conv2d(decoder[3], 4, 1)  # four logits for the four pixels under one of the last map
        nn.init.zeros_(self.head.weight)
        self.head.bias = nn.Parameter(torch.full((4,), math.log(RARE / (1 - RARE))))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits in the resolution of `x`."""
        seen = _resized(x, self._size_px).contiguous(memory_format=torch.channels_last)
        *maps, y = self.encoder(seen)
        for up, skipped in zip(self.ups, reversed(maps), strict=True):
            y = up(y, skipped)
        logits = F.pixel_shuffle(self.head(y), 2)
        return F.interpolate(logits, x.shape[2:], mode="bilinear") if logits.shape[2:] != x.shape[2:] else logits


class LiteClassifier(nn.Module):
    """(n, channels_in, y, x) to one logit (n, 1)."""

    def __init__(self, channels_in: int, dropout: float = 0.2, size_px: int = 0) -> None:
        super().__init__()
        self._size_px = size_px
        self.encoder = Encoder(channels_in)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(sum(CHANNELS[2:]), 1))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A logit for each image."""
        maps = self.encoder(_resized(x, self._size_px).contiguous(memory_format=torch.channels_last))
        logits: torch.Tensor = self.head(torch.cat([m.mean((2, 3)) for m in maps[2:]], 1))
        return logits


def _resized(x: torch.Tensor, size_px: int) -> torch.Tensor:
    if not size_px or x.shape[2:] == (size_px, size_px):
        return x
    return F.interpolate(x, (size_px, size_px), mode="bilinear", antialias=True)
