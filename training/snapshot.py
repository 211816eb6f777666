"""Snapshots of a run in memory: the state that it falls back on when it breaks down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class RandomState:
    """Which sample comes next. generator: the random generator's state. samples: the state of the samples' source."""

    generator: Tensor
    samples: dict[str, Any]


class Snapshot:
    """Copies of the parameters, of their average and of the optimiser's state, on the same device.

    steps: how many had been done when it was taken. It takes as much memory as what it copies.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, average: Sequence[Tensor]
    ):
        self._parameters, self._optimizer, self._average = parameters, optimizer, average
        self._copies: dict[tuple[int, str], Tensor] = {}
        self._scaler: dict[str, Any] = {}
        self._random_state: RandomState | None = None
        self.steps = 0

    def take(self, steps: int, random_state: RandomState, scaler: dict[str, Any]) -> None:
        """Copy the present state over that of before. scaler: the state of the scaler of gradients."""
        live = self._live()
        if live.keys() == self._copies.keys():
            with torch.no_grad():
                torch._foreach_copy_(list(self._copies.values()), list(live.values()))  # one call, not thousands
        else:  # an optimiser has no tensors of its own before its first step
            self._copies.clear()
            self._copies = {key: tensor.detach().clone() for key, tensor in live.items()}
        self.steps, self._random_state, self._scaler = steps, random_state, dict(scaler)

    def restore(self) -> tuple[RandomState, dict[str, Any]]:
        """Copy it back. Returns the random state and the scaler's state that it was taken with.

        Raises ValueError if none was taken.
        """
        if self._random_state is None:
            raise ValueError("There is no snapshot to restore.")
        with torch.no_grad():
            for key, tensor in self._live().items():
                if key in self._copies:
                    tensor.copy_(self._copies[key])
                else:
                    self._optimizer.state.pop(self._parameters[key[0]], None)
        return self._random_state, self._scaler

    def _live(self) -> dict[tuple[int, str], Tensor]:
        """The tensors that change, by the parameter's index and a name; the parameter itself has the name ""."""
        live: dict[tuple[int, str], Tensor] = {}
        for index, parameter in enumerate(self._parameters):
            live[index, ""], live[index, "average"] = parameter, self._average[index]
            own = self._optimizer.state.get(parameter, {})
            live |= {(index, name): value for name, value in own.items() if isinstance(value, Tensor)}
        return live
