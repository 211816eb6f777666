"""What images are measured with: vision encoders, a joint text encoder, LPIPS, a probe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from .lpips import Lpips

EmbedImages = Callable[[Tensor], Tensor]  # (n, H, W, 3) in 0..1 -> (n, E)
EmbedTexts = Callable[[Sequence[str]], Tensor]  # n texts -> (n, E)
ReadAttributes = Callable[[Tensor], Mapping[str, Tensor]]  # (n, H, W, 3) in 0..1 -> (n,) for each attribute


@dataclass(frozen=True)
class Instruments:
    """Holds what is at hand. Each may be missing, but not all.

    encoders: by the names that tables call them; embeddings of unit length. joint: the name of the encoder that a
    CLIP score takes, and the text encoder that was trained together with it. lpips: the distance; without it that of
    the first encoder serves. probe: reads attributes whose numbers are known.
    Raises ValueError if there is nothing to measure with, or `joint` names no encoder.
    """

    encoders: Mapping[str, EmbedImages] = field(default_factory=dict)
    joint: tuple[str, EmbedTexts] | None = None
    lpips: Lpips | None = None
    probe: ReadAttributes | None = None

    def __post_init__(self) -> None:
        if not self.encoders and self.lpips is None and self.probe is None:
            raise ValueError("Measuring takes a vision encoder, a network for LPIPS or a probe; got none of them.")
        if self.joint is not None and self.joint[0] not in self.encoders:
            raise ValueError(
                f"The joint encoder {self.joint[0]!r} is not among {', '.join(self.encoders) or 'none'}."
            )
