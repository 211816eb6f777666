"""Strengths, laid out over the batches of layers."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

# Gates change the set of active sliders a few times during sampling; keeping more would only hold memory
KEPT_SETS = 4


class Spread:
    """Strengths, (rows, sliders), spread over the channels and the batch of each layer that asks."""

    def __init__(self) -> None:
        self.strengths = torch.zeros(1, 0)
        self._kept: dict[tuple, Tensor] = {}
        self._spread: OrderedDict[tuple, dict[tuple, Tensor]] = OrderedDict()

    def at(self, strengths: Tensor) -> Tensor:
        """Set the strengths, on the CPU; returns those before. What was spread of them last is spread still."""
        before, self.strengths = self.strengths, strengths
        key = (strengths.shape, strengths.numpy().tobytes())
        self._kept = self._spread.setdefault(key, {})
        self._spread.move_to_end(key)
        while len(self._spread) > KEPT_SETS:
            self._spread.popitem(last=False)
        return before

    def over(self, columns: tuple[int, ...], x: Tensor, name: str) -> Tensor:
        """The factor of each channel of A x: (1, sum of ranks), or (batch of x, sum of ranks)."""
        rows = self.strengths.shape[0]
        batch = x.shape[0] if rows > 1 else 1
        if batch % rows:
            raise ValueError(
                f"Layer {name} runs on a batch of {batch}, which cannot be shared out over strengths for {rows} rows."
            )
        key = (columns, batch, x.device, x.dtype)
        if key not in self._kept:
            with torch.inference_mode(False), torch.no_grad():  # or training could not use it
                s = self.strengths[:, list(columns)]  # (rows, sliders) -> (rows, sum of ranks)
                self._kept[key] = s.repeat_interleave(batch // rows, dim=0).to(x.device, x.dtype)
        return self._kept[key]


def differing(strengths: Tensor) -> set[int]:
    """The sliders whose strengths, (rows, sliders), differ between rows."""
    return set(torch.nonzero((strengths != strengths[:1]).any(dim=0)).flatten().tolist())
