"""Sliders over all modules of a model that have parameters: a file of each kind of change, and a factor for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from comfy.model_patcher import ModelPatcher
from concept_sliders.comfy_host.parameters import COMFY_PARAMETERS
from concept_sliders.comfy_host.prompt_layers import prepares_prompts
from concept_sliders.sliders.changes import Dense, LowRank
from concept_sliders.sliders.equation.hooks import SliderHooks
from concept_sliders.sliders.equation.layer_kinds import can_act_on, is_linear, weight_shape
from concept_sliders.tests.support.adapter_files import parts_of, random
from concept_sliders.tests.support.family_checks import Subject
from concept_sliders.tests.support.layer_type_files import convolution_parts
from torch import Tensor, nn

LINEAR = ("LoRA", "DoRA", "LoHa", "LoKr", "OFT", "BOFT", "GLoRA", "difference")
ODD_LINEAR = ("LoRA", "DoRA", "LoHa", "GLoRA", "difference")  # sizes that the factors of the others do not divide
CONVOLUTION = ("LoRA", "DoRA", "LoCon", "LoHa", "LoKr", "difference")
# The stock loader knows LoCon's middle and LoKr on two-dimensional convolutions only
OTHER_CONVOLUTION = ("LoRA", "DoRA", "LoHa", "difference")
TURNS = len(LINEAR)  # files in which every module has had every kind of change that it can have
_SIZE = 0.3  # of all changes together, beside one of `parts_of`: the model must not fall into noise


def modules_of(subject: Subject) -> dict[str, nn.Module]:
    """The diffusion model's modules that have parameters, by path."""
    modules = subject.model.model.named_modules()
    return {p: m for p, m in modules if p.startswith("diffusion_model") and any(_parameters(m))}


def _parameters(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, own) for name, own in module._parameters.items() if own is not None)


def kinds_for(module: nn.Module, path: str) -> tuple[str, ...]:
    """The kinds of changes that a module's weight can have; none if only differences of its parameters."""
    if is_linear(module):
        return LINEAR if all(size % 8 == 0 for size in weight_shape(module, path)) else ODD_LINEAR
    if not hasattr(module, "kernel_size") or "weight" not in module._parameters:
        return ()
    return CONVOLUTION if isinstance(module, nn.Conv2d) and module.groups == 1 else OTHER_CONVOLUTION


def file_of(modules: Mapping[str, nn.Module], turn: int) -> dict[str, Tensor]:
    """A file that changes every parameter of these modules, each module by the kind whose turn it is.

    turn: from 0 to `TURNS` - 1. The kinds take turns from module to module as well.
    """
    torch.manual_seed(turn)
    tensors: dict[str, Tensor] = {}
    for index, (path, module) in enumerate(modules.items()):
        left = dict(_parameters(module))
        if kinds := kinds_for(module, path):
            parts = _weight_parts(kinds[(index + turn) % len(kinds)], module, path)
            tensors |= {f"{path}.{part}": tensor for part, tensor in parts.items()}
            del left["weight"]
        for name, own in left.items():
            spelling = {"weight": f"{path}.diff", "bias": f"{path}.diff_b"}.get(name, f"{path}.{name}.diff")
            tensors[spelling] = _SIZE * random(*own.shape)
    return tensors


def _weight_parts(kind: str, module: nn.Module, path: str) -> dict[str, Tensor]:
    """The tensors of a change of a layer's weight, small enough for all layers to have one."""
    if is_linear(module):
        out, inner = weight_shape(module, path)
        parts = {part: t for part, t in parts_of(kind, out, inner).items() if part != "diff_b"}
    else:
        parts = convolution_parts(kind, tuple(module.weight.shape))
    if kind == "BOFT":
        parts["alpha"] = torch.tensor(0.0)  # the stock loader needs to be told
    if kind == "DoRA":  # magnitudes near those that the weight has
        weight: Tensor = module.weight  # type: ignore[assignment]
        norms = weight.detach().float().flatten(1).norm(dim=1).view_as(parts["dora_scale"])
        parts["dora_scale"] = norms * (1 + random(*norms.shape))
    first = next(part for part in parts if part not in ("alpha", "dora_scale"))
    parts[first] = _SIZE * parts[first]
    return parts


@contextmanager
def changed(subject: Subject, differences: Mapping[str, Tensor], strength: float) -> Iterator[ModelPatcher]:
    """The model with its own numbers changed by hand. differences: by the parameter's name."""
    own = dict(subject.model.model.named_parameters())
    kept = {name: own[name].clone() for name in differences}
    try:
        with torch.inference_mode():
            for name, by in differences.items():
                own[name].add_(by, alpha=strength)
        yield subject.model
    finally:
        with torch.inference_mode():
            for name, number in kept.items():
                own[name].copy_(number)


class Factors:
    """A factor f = 1 for every parameter of a model, of its change: W' = W + f * delta.

    values: by the parameter's name. Prompts are prepared before the model is evaluated: such modules have none.
    """

    def __init__(self, subject: Subject) -> None:
        model, generator = subject.model.model, torch.Generator().manual_seed(3)
        self._modules = {p: m for p, m in modules_of(subject).items() if not prepares_prompts(model, p)}
        self.values: dict[str, Tensor] = {}
        self._deltas: dict[str, Tensor] = {}
        self._changes: dict[nn.Module, list[tuple[int, LowRank | Dense]]] = {m: [] for m in self._modules.values()}
        for path, module in self._modules.items():
            for name, own in _parameters(module):
                key = f"{path}.{name}"
                self.values[key] = factor = torch.ones((), requires_grad=True)
                if name == "weight" and can_act_on(module):
                    down = LowRank.fresh(weight_shape(module, path), 2, generator).down
                    up = torch.empty(len(own), 2, *(1 for _ in down.shape[2:])).normal_(0.0, 0.2, generator=generator)
                    self._deltas[key] = (up.flatten(1) @ down.flatten(1)).view_as(own)
                    self._changes[module].append((0, LowRank(down, factor * up)))
                else:
                    self._deltas[key] = torch.empty(own.shape).normal_(0.0, 0.1, generator=generator)
                    self._changes[module].append((0, Dense({name: factor * self._deltas[key]})))

    def unmerged(self) -> AbstractContextManager[None]:
        """Within the block the changes act as those of sliders do."""
        names = {module: path for path, module in self._modules.items()}
        return SliderHooks(self._changes, names, COMFY_PARAMETERS).acting(torch.ones(1, 1))

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Within the block the changed parameters themselves are in the model."""
        own = [(module, name, each) for module in self._modules.values() for name, each in _parameters(module)]
        try:
            for (module, name, each), key in zip(own, self.values, strict=True):
                module._parameters[name] = each + self.values[key] * self._deltas[key]  # type: ignore[assignment]
            yield
        finally:
            for module, name, each in own:
                module._parameters[name] = each  # type: ignore[assignment]
