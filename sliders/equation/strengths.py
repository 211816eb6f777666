"""Strengths of batch entries, laid out over the batches and channels of layers."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

# Gates change the set of active sliders a few times during sampling; keeping more would only hold memory
KEPT_SETS = 4


class LayerStrengths:
    """The strengths of one evaluation, (B, sliders), expanded to each layer's batch and channels on demand.

    What was expanded of the last few strengths is kept.
    """

    def __init__(self) -> None:
        self.strengths = torch.zeros(1, 0)
        self._expanded: dict[tuple[object, ...], Tensor] = {}
        self._kept: OrderedDict[tuple[object, ...], dict[tuple[object, ...], Tensor]] = OrderedDict()

    def set(self, strengths: Tensor) -> Tensor:
        """Set the strengths, on the CPU, and return those before."""
        before, self.strengths = self.strengths, strengths
        key = (strengths.shape, strengths.numpy().tobytes())
        self._expanded = self._kept.setdefault(key, {})
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT_SETS:
            self._kept.popitem(last=False)
        return before

    def expanded(self, sliders: tuple[int, ...], x: Tensor, name: str) -> Tensor:
        """Return the strength of each channel: (1, channels), or (batch of x, channels) if batch entries differ.

        sliders: the slider of each channel, such as those of A x. x: the layer's input, (batch, ...).
        Raises ValueError, naming the layer, if its batch is no multiple of B.
        """
        count = self.strengths.shape[0]
        batch = x.shape[0] if count > 1 else 1
        if batch % count:
            raise ValueError(
                f"Layer {name} runs on a batch of {batch}, which cannot be shared out over strengths for {count} "
                "batch entries."
            )
        key = (sliders, batch, x.device, x.dtype)
        if key not in self._expanded:
            with torch.inference_mode(False), torch.no_grad():  # an inference tensor could not be saved for backward
                s = self.strengths[:, list(sliders)]  # (B, sliders) -> (B, channels)
                self._expanded[key] = s.repeat_interleave(batch // count, dim=0).to(x.device, x.dtype)
        return self._expanded[key]


def differing(strengths: Tensor) -> set[int]:
    """Return the sliders whose strengths, (B, sliders), differ between batch entries."""
    return set(torch.nonzero((strengths != strengths[:1]).any(dim=0)).flatten().tolist())
