"""The probe: reads the attributes of the pocket world back from a picture.

A small convolutional network, trained on drawings whose numbers are known (`train_probe`). It needs
nothing of ComfyUI, so the same probe measures drawings, samples and edited photographs alike.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn

from ..world.portrait import BINARY, CONTINUOUS, STYLES

WEIGHTS = Path(__file__).parents[1] / "models" / "weights" / "probe.safetensors"
SIZE = 128  # pixels a side of what the network sees
BATCH = 128  # pictures read at a time
NUMBERS = (*CONTINUOUS, "brow")  # in [0, 1]
COLUMNS = (*NUMBERS, *BINARY, *STYLES)


@dataclass(frozen=True)
class Readings:
    """What the probe read from B pictures.

    `readings["age"]` is (B,): a continuous attribute or the brow in [0, 1], or the probability of a binary one or
    of one style ("pastel"). `readings["style"]` is (B, 3), in the order of `STYLES`.
    """

    values: torch.Tensor  # (B, 16), the columns of COLUMNS

    def __getitem__(self, name: str) -> torch.Tensor:
        if name == "style":
            return self.values[:, -len(STYLES) :]
        if name not in COLUMNS:
            raise KeyError(f"The probe reads style, {', '.join(COLUMNS)}; got {name!r}.")
        return self.values[:, COLUMNS.index(name)]

    def __len__(self) -> int:
        return len(self.values)

    def same_person(self, other: "Readings") -> torch.Tensor:
        """(B,) bool: woman or man, hat, and style are the same in both."""
        same = self["style"].argmax(1) == other["style"].argmax(1)
        for name in ("woman", "hat"):
            same = same & ((self[name] > 0.5) == (other[name] > 0.5))
        return same

    def mean(self) -> dict[str, float]:
        """Mean of each column over the pictures."""
        return dict(zip(COLUMNS, self.values.mean(0).tolist()))

    def table(self) -> str:
        """Markdown: mean and standard deviation of each column over the pictures."""
        spread = self.values.std(0, correction=0).tolist()
        rows = [f"| {name} | {mean:.3f} | {s:.3f} |" for (name, mean), s in zip(self.mean().items(), spread)]
        return "\n".join(["| attribute | mean | spread |", "|---|---|---|", *rows])


class Probe(nn.Module):
    """(B, 3, 128, 128) in [-1, 1] -> (B, 16): numbers, then logits of the binary attributes and the styles."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            *_block(3, 24, kernel=4, stride=2),  # 64 x 64
            *_block(24, 48, kernel=4, stride=2),  # 32 x 32
            *_block(48, 80, kernel=3, stride=2),  # 16 x 16
            *_block(80, 112, kernel=3, stride=2),  # 8 x 8
            *_block(112, 128, kernel=3, stride=2),  # 4 x 4
            nn.Flatten(),  # faces stand in the middle, so places may keep weights of their own
            nn.Linear(128 * 16, 96),
            nn.SiLU(),
            nn.Linear(96, len(COLUMNS)),
        )

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.layers(pictures)

    @torch.no_grad()
    def read(self, images: torch.Tensor) -> Readings:
        """Read (B, H, W, 3) pictures in [0, 1], of any size; readings are on the CPU."""
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"The probe reads pictures of shape (B, H, W, 3), got {tuple(images.shape)}.")
        like = next(self.parameters())
        rows = [self._read_batch(part.to(like)) for part in images.split(BATCH)]
        return Readings(torch.cat(rows).cpu())

    def _read_batch(self, images: torch.Tensor) -> torch.Tensor:
        pictures = images.permute(0, 3, 1, 2).clamp(0, 1) * 2 - 1  # BHWC -> BCHW
        if pictures.shape[-2:] != (SIZE, SIZE):
            pictures = F.interpolate(pictures, (SIZE, SIZE), mode="bilinear", antialias=True)
        numbers, binary, style = split_columns(self(pictures))
        return torch.cat([numbers.clamp(0, 1), binary.sigmoid(), style.softmax(1)], 1)


def split_columns(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(B, 16) -> (B, 9) numbers, (B, 4) binary, (B, 3) style."""
    return values.split([len(NUMBERS), len(BINARY), len(STYLES)], 1)


def load_probe(path: Path = WEIGHTS) -> Probe:
    """The shipped probe, or one of a training run, ready to read.

    Raises FileNotFoundError if `path` holds no weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No probe at {path}: train one with pocket/train.py.")
    with safe_open(str(path), framework="pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    probe = Probe()
    probe.load_state_dict(weights)
    return probe.eval().requires_grad_(False)


def _block(inputs: int, outputs: int, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    """Convolution, normalisation, nonlinearity; an even kernel with stride 2 halves the sides exactly."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.SiLU()
