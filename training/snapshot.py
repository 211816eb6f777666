"""The state a run falls back on when it breaks down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class RandomState:
    """What drawing samples changes. generator: its state. samples: theirs."""

    generator: Tensor
    samples: dict[str, Any]


class Snapshot:
    """Copies of what an optimiser step changes, on the same device, and what had been drawn by then.

    steps: how many had been done. It takes as much memory as the parameters and the optimiser's own tensors.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer):
        self._parameters, self._optimizer = parameters, optimizer
        self._copies: dict[tuple[int, str], Tensor] = {}
        self._scaler: dict[str, Any] = {}
        self.steps, self.drawn = 0, None

    @torch.no_grad()
    def keep(self, steps: int, drawn: RandomState, scaler: dict[str, Any]) -> None:
        """This is a good state. scaler: that of the scaler of gradients."""
        live = self._live()
        if live.keys() == self._copies.keys():
            torch._foreach_copy_(list(self._copies.values()), list(live.values()))  # one call, not thousands
        else:  # an optimiser has no tensors of its own before its first step
            self._copies.clear()
            self._copies = {key: tensor.detach().clone() for key, tensor in live.items()}
        self.steps, self.drawn, self._scaler = steps, drawn, dict(scaler)

    @torch.no_grad()
    def put_back(self) -> dict[str, Any]:
        """The parameters and the optimiser are as they were. Returns what `keep` was given of the scaler."""
        for key, tensor in self._live().items():
            if key in self._copies:
                tensor.copy_(self._copies[key])
            else:
                self._optimizer.state.pop(self._parameters[key[0]], None)
        return self._scaler

    def _live(self) -> dict[tuple[int, str], Tensor]:
        """The tensors that change, by parameter and name; a parameter itself under no name."""
        live: dict[tuple[int, str], Tensor] = {}
        for index, parameter in enumerate(self._parameters):
            live[index, ""] = parameter
            own = self._optimizer.state.get(parameter, {})
            live |= {(index, name): value for name, value in own.items() if isinstance(value, Tensor)}
        return live
