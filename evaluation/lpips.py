"""LPIPS, the learned perceptual distance of images (arXiv 1801.03924), version 0.1.

d(x, y) = sum_l mean_hw sum_c w_lc (f_l(x) - f_l(y))^2, with f_l the features of layer l of AlexNet or VGG16, of
unit length at every place. The weights w come with the pack, under the licence beside them; the network is a file
of the user's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

HEADS = Path(__file__).with_name("lpips_heads")
SMALLEST = 32  # pixels of a side: below it AlexNet has nothing left to pool
BATCH = 8  # pairs of images evaluated at a time
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and spread, for values in [-1, 1]
TINY = 1e-10  # added to lengths


@dataclass(frozen=True)
class Convolution:
    """One convolution with a ReLU after it.

    index: in torchvision's `features`. shape: of its weight. pooled: size of the max pooling of stride 2 before it,
    or 0 for none. tapped: True if LPIPS reads what comes out.
    """

    index: int
    shape: tuple[int, int, int, int]
    stride: int = 1
    padding: int = 1
    pooled: int = 0
    tapped: bool = False


def _vgg16() -> tuple[Convolution, ...]:
    convolutions, index, inputs = [], 0, 3
    for block, (width, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        for number in range(count):
            pooled = 2 if block and not number else 0
            last = number == count - 1
            convolutions.append(Convolution(index, (width, inputs, 3, 3), pooled=pooled, tapped=last))
            index, inputs = index + 2, width
        index += 1  # the pooling
    return tuple(convolutions)


NETWORKS = {
    "alex": (
        Convolution(0, (64, 3, 11, 11), stride=4, padding=2, tapped=True),
        Convolution(3, (192, 64, 5, 5), padding=2, pooled=3, tapped=True),
        Convolution(6, (384, 192, 3, 3), pooled=3, tapped=True),
        Convolution(8, (256, 384, 3, 3), tapped=True),
        Convolution(10, (256, 256, 3, 3), tapped=True),
    ),
    "vgg": _vgg16(),
}


class Lpips:
    """LPIPS on one network.

    weights: torchvision's of AlexNet or VGG16, `features.0.weight` and so on; what else is in them is not read.
    device: it runs on.
    Raises ValueError if they are of another network.
    """

    def __init__(self, weights: Mapping[str, Tensor], device: torch.device | str = "cpu"):
        self.name, self.device = _network_of(weights), torch.device(device)
        self._weights = {
            name: value.to(self.device).float() for name, value in weights.items() if name.startswith("features.")
        }
        heads = load_file(HEADS / f"{self.name}.safetensors")
        self._heads = [heads[f"lin{level}"].to(self.device)[:, None, None] for level in range(len(heads))]

    @torch.no_grad()
    def __call__(self, images: Tensor, others: Tensor) -> Tensor:
        """Return the distances (n,) of images and others, (n, H, W, 3) in 0..1.

        Raises ValueError for sizes that differ, or sides below 32 pixels.
        """
        if images.shape != others.shape or min(images.shape[1:3]) < SMALLEST:
            raise ValueError(
                f"LPIPS takes images of one size, of {SMALLEST} pixels a side or more; got {tuple(images.shape)} and "
                f"{tuple(others.shape)}."
            )
        pairs = zip(images.split(BATCH), others.split(BATCH))
        return torch.cat([self._distances(*pair) for pair in pairs]).cpu()

    def _distances(self, images: Tensor, others: Tensor) -> Tensor:
        count = len(images)
        distances = torch.zeros(count, device=self.device)
        for features, head in zip(self._features(torch.cat([images, others])), self._heads, strict=True):
            unit = features / (features.norm(dim=1, keepdim=True) + TINY)  # (2n, C, h, w)
            distances += (head * (unit[:count] - unit[count:]).square()).sum(1).mean((1, 2))
        return distances

    def _features(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the features that LPIPS reads, (n, C, h, w) each, of images (n, H, W, 3) in 0..1."""
        x = images[..., :3].permute(0, 3, 1, 2).to(self.device).float() * 2 - 1  # BHWC -> BCHW
        shift, scale = (torch.tensor(values, device=self.device)[:, None, None] for values in (SHIFT, SCALE))
        x = (x - shift) / scale
        for each in NETWORKS[self.name]:
            weight, bias = (self._weights[f"features.{each.index}.{part}"] for part in ("weight", "bias"))
            if each.pooled:
                x = F.max_pool2d(x, each.pooled, stride=2)
            x = F.relu(F.conv2d(x, weight, bias, stride=each.stride, padding=each.padding))
            if each.tapped:
                yield x


def _network_of(weights: Mapping[str, Tensor]) -> str:
    """Return "alex" or "vgg". Raises ValueError for anything else."""
    for name, network in NETWORKS.items():
        found = (weights.get(f"features.{each.index}.weight") for each in network)
        if all(w is not None and tuple(w.shape) == each.shape for w, each in zip(found, network)):
            return name
    raise ValueError(
        "LPIPS takes torchvision's weights of AlexNet or VGG16, with features.0.weight of the shape (64, 3, 11, 11) "
        f"or (64, 3, 3, 3); got {', '.join(sorted(weights)[:4]) or 'no weights'}."
    )
