"""What one training step learns from, and where such samples come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One thing to learn: at (x, sigma), with the slider at `strengths`, the prediction at `prompt` is `target`.

    x, target: (B, C, ...), the target in the linear form d = (x - denoised) / sigma. sigma: a scalar.
    strengths: (B, 1), of the slider. mask: where the loss counts, in [0, 1], broadcast to x; None is everywhere.
    """

    x: Tensor
    sigma: Tensor
    target: Tensor
    strengths: Tensor
    prompt: str
    mask: Tensor | None = None


class SampleSource(Protocol):
    """An endless source of samples. All its randomness comes from one generator, which its owner keeps.

    state, restore: what it holds beside the generator, as tensors and plain values, so that a run can be continued.
    """

    def __next__(self) -> Sample: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...
