"""The pocket model's latents: a fixed block transform, as JPEG's, that needs no training.

A picture in [-1, 1] becomes one luma and two chroma planes, each cut into 4x4 blocks, each block into
its discrete cosine coefficients: (B, 3, H, W) -> (B, 24, H/4, W/4), all sixteen of luma and the four
lowest of each chroma plane. The transform is orthonormal up to the last step, which divides every
coefficient by the square root of its spread over the world, so that noise drowns none of them early.
"""

from math import cos, pi, sqrt

import torch
import torch.nn.functional as F

BLOCK = 4
CHROMA_KEPT = 2  # coefficients a side
CHANNELS = BLOCK * BLOCK + 2 * CHROMA_KEPT * CHROMA_KEPT

# Standard deviation of each latent channel before scaling, over 4,096 drawings.
SPREAD = (
    2.390,
    0.640,
    0.364,
    0.213,
    0.673,
    0.405,
    0.259,
    0.148,
    0.397,
    0.277,
    0.194,
    0.116,
    0.220,
    0.170,
    0.123,
    0.088,
    1.053,
    0.194,
    0.209,
    0.096,
    0.415,
    0.068,
    0.094,
    0.040,
)


def _dct_matrix(n: int) -> torch.Tensor:
    """(n, n) orthonormal DCT-II; row k holds frequency k."""
    rows = [[cos(pi * (2 * i + 1) * k / (2 * n)) for i in range(n)] for k in range(n)]
    return torch.tensor(rows) * torch.tensor([sqrt(1 / n)] + [sqrt(2 / n)] * (n - 1))[:, None]


def _analysis() -> torch.Tensor:
    """(24, 3, 4, 4) filters of the encoder, before scaling."""
    dct = _dct_matrix(BLOCK)
    blocks = torch.einsum("ui,vj->uvij", dct, dct)  # (4, 4, 4, 4): frequency u, v of pixel i, j
    colors = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    colors = F.normalize(colors, dim=1)  # luma and two chroma axes, orthonormal
    filters = [colors[0][:, None, None] * blocks[u, v] for u in range(BLOCK) for v in range(BLOCK)]
    kept = range(CHROMA_KEPT)
    filters += [color[:, None, None] * blocks[u, v] for color in colors[1:] for u in kept for v in kept]
    return torch.stack(filters)


class BlockCodec(torch.nn.Module):
    """`encode` and `decode` as the host's VAE calls them."""

    def __init__(self, spread=SPREAD):
        super().__init__()
        spread = torch.tensor(spread)
        filters = _analysis()
        scale = spread.sqrt()[:, None, None, None] * spread.mean().sqrt()
        self.analysis = torch.nn.Parameter(filters / scale, requires_grad=False)
        self.synthesis = torch.nn.Parameter(filters * scale, requires_grad=False)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 24, H/4, W/4)."""
        return F.conv2d(pixels, self.analysis.to(pixels), stride=BLOCK)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, 24, h, w) -> (B, 3, 4h, 4w)."""
        return F.conv_transpose2d(latents, self.synthesis.to(latents), stride=BLOCK)
