"""The one equation of the pack, acting on the layers of any PyTorch model.

A layer f on which N sliders act gives, for row b of a batch at noise level sigma,

    y[b] = f(x)[b] + B ( s[b](sigma) * (A x)[b] )

A: the sliders' down-projections, concatenated (sum of ranks x in). B: their up-projections, concatenated
(out x sum of ranks). s: each slider's strength in row b, repeated over its rank. For a convolution A has the
layer's kernel, stride, padding and dilation, and B is 1x1.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .slider import LowRank

_CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
}
# Gates change the set of active sliders a few times during sampling; keeping more would only hold memory
_KEPT_SETS = 4


@dataclass(frozen=True)
class _Joined:
    """The active sliders of one layer, concatenated.

    columns: the slider of each of the sum-of-ranks channels between down and up.
    """

    down: Tensor
    up: Tensor
    columns: tuple[int, ...]


class LayerBank:
    """The sliders that act on the layers of one model.

    layers: for each module, the (slider index, low-rank change) pairs that act on it. Changes whose tensors
        require gradients are read afresh at every call and receive gradients; all others are cast to the
        layer's dtype and device and concatenated once per set of active sliders.
    names: for each module, the name used in error messages.
    Raises ValueError if a module is neither linear nor an ungrouped convolution, or a change does not fit it.
    """

    def __init__(
        self,
        layers: Mapping[nn.Module, Sequence[tuple[int, LowRank]]],
        names: Mapping[nn.Module, str] | None = None,
    ) -> None:
        names = names or {}
        self._layers: list[tuple[nn.Module, str, tuple[tuple[int, LowRank], ...]]] = []
        for module, changes in layers.items():
            name = names.get(module, type(module).__name__)
            shape = weight_shape(module, name)
            self._layers.append(
                (module, name, tuple((i, change.fitted(shape, name)) for i, change in changes))
            )
        self._kept: OrderedDict[frozenset[int], dict[tuple, _Joined]] = OrderedDict()

    @contextmanager
    def acting(self, strengths: Tensor) -> Iterator[None]:
        """Let the sliders act on the model's layers within the block, and leave no trace after it.

        strengths: (rows, sliders). With one row it holds for every row of the batch; otherwise each layer's
            batch must be a multiple m of the rows, and each row stands for m consecutive entries of it.
        Sliders at zero in every row are left out; where all are, nothing is registered at all. A model that
        checkpoints activations runs its layers again in backward, so backward then belongs inside the block.
        Raises ValueError, from the layer, where the batch does not divide into the rows.
        """
        strengths = _fewest_rows(strengths.detach().to("cpu", torch.float32))
        active = frozenset(torch.nonzero(strengths.any(dim=0)).flatten().tolist())
        spread = _Spread(strengths)
        kept = self._kept_for(active)
        handles = []
        try:
            for index, (module, name, changes) in enumerate(self._layers):
                chosen = tuple((i, change) for i, change in changes if i in active)
                if chosen:
                    hook = _hook(index, name, chosen, spread, kept)
                    handles.append(module.register_forward_hook(hook, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _kept_for(self, active: frozenset[int]) -> dict[tuple, _Joined]:
        kept = self._kept.setdefault(active, {})
        self._kept.move_to_end(active)
        while len(self._kept) > _KEPT_SETS:
            self._kept.popitem(last=False)
        return kept


class _Spread:
    """The strengths of one call, spread over the channels and the batch of each layer that asks."""

    def __init__(self, strengths: Tensor) -> None:
        self._strengths = strengths  # (rows, sliders)
        self._kept: dict[tuple, Tensor] = {}

    def over(self, columns: tuple[int, ...], x: Tensor, name: str) -> Tensor:
        """The factor of each channel of A x: (1, sum of ranks), or (batch of x, sum of ranks)."""
        rows = self._strengths.shape[0]
        batch = x.shape[0] if rows > 1 else 1
        if batch % rows:
            raise ValueError(
                f"Layer {name} runs on a batch of {batch}, "
                f"which cannot be shared out over strengths for {rows} rows."
            )
        key = (columns, batch, x.device, x.dtype)
        if key not in self._kept:
            s = self._strengths[:, list(columns)]  # (rows, sliders) -> (rows, sum of ranks)
            self._kept[key] = s.repeat_interleave(batch // rows, dim=0).to(x.device, x.dtype)
        return self._kept[key]


def weight_shape(module: nn.Module, name: str) -> tuple[int, ...]:
    """The shape of a layer's weight, (out, in) or (out, in, *kernel), without touching the weight itself.

    Raises ValueError if sliders cannot act on this kind of layer.
    """
    if _is_linear(module):
        return (module.out_features, module.in_features)
    if can_act_on(module):
        return (module.out_channels, module.in_channels, *module.kernel_size)
    groups = getattr(module, "groups", 1)
    kind = type(module).__name__ + (f" in {groups} groups" if groups != 1 else "")
    raise ValueError(
        f"Layer {name} is a {kind}; sliders act on linear layers and ungrouped convolutions only."
    )


def can_act_on(module: nn.Module) -> bool:
    """Whether sliders can act on this module."""
    return _is_linear(module) or (isinstance(module, tuple(_CONVOLUTIONS)) and module.groups == 1)


def _is_linear(module: nn.Module) -> bool:
    # Quantised linear layers need not derive from nn.Linear
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def _fewest_rows(strengths: Tensor) -> Tensor:
    """One row where all are the same: it then fits every layer, whatever the layer's batch."""
    return strengths[:1] if bool((strengths == strengths[:1]).all()) else strengths


def _hook(
    index: int,
    name: str,
    chosen: tuple[tuple[int, LowRank], ...],
    spread: _Spread,
    kept: dict[tuple, _Joined],
) -> Callable[..., Tensor]:
    learning = any(change.down.requires_grad or change.up.requires_grad for _, change in chosen)

    def joined_for(x: Tensor) -> _Joined:
        if learning:
            return _join(chosen, x)
        # Tensors made in inference mode cannot be saved for backward, so training must never meet them
        key = (index, x.device, x.dtype, torch.is_inference_mode_enabled())
        if key not in kept:
            kept[key] = _join(chosen, x)
        return kept[key]

    def add_change(module: nn.Module, args: tuple, kwargs: dict, y: Tensor) -> Tensor:
        x = args[0] if args else kwargs["input"]
        joined = joined_for(x)
        change = _linear_change if _is_linear(module) else _convolution_change
        return y + change(module, x, joined, spread.over(joined.columns, x, name)).to(y.dtype)

    return add_change


def _join(chosen: tuple[tuple[int, LowRank], ...], x: Tensor) -> _Joined:
    down = torch.cat([change.down.to(x.device, x.dtype) for _, change in chosen], dim=0)
    up = torch.cat([change.up.to(x.device, x.dtype) for _, change in chosen], dim=1)
    return _Joined(down, up, tuple(i for i, change in chosen for _ in range(change.rank)))


def _linear_change(module: nn.Module, x: Tensor, joined: _Joined, s: Tensor) -> Tensor:
    hidden = F.linear(x, joined.down)  # (b, ..., in) -> (b, ..., r)
    s = s.reshape(-1, *(1 for _ in hidden.shape[1:-1]), s.shape[1])  # (b, r) -> (b, 1, ..., r)
    return F.linear((hidden * s).view_as(hidden), joined.up)  # (b, ..., r) -> (b, ..., out)


def _convolution_change(module: nn.Module, x: Tensor, joined: _Joined, s: Tensor) -> Tensor:
    convolve = next(function for kind, function in _CONVOLUTIONS.items() if isinstance(module, kind))
    padding = module.padding
    if module.padding_mode != "zeros":
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
        padding = 0
    # (b, in, ...) -> (b, r, ...)
    hidden = convolve(x, joined.down, None, module.stride, padding, module.dilation)
    s = s.reshape(*s.shape, *(1 for _ in hidden.shape[2:]))  # (b, r) -> (b, r, 1, ...)
    return convolve(hidden * s, joined.up)  # (b, r, ...) -> (b, out, ...)
