"""What a tiny model of one family is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from comfy.nested_tensor import NestedTensor
from torch import Tensor, nn

CPU = torch.device("cpu")
OPERATIONS = comfy.ops.manual_cast  # what makes the layers of smaller parts
TOKENS = 7
TEXT = 16  # the width of a prompt's encoding, unless a family says otherwise
POOLED = {"pooled_output": (1, 8)}


def all_tokens(tokens: int, generator: torch.Generator) -> Tensor:
    """(1, tokens): a mask that takes all of a prompt."""
    return torch.ones(1, tokens, dtype=torch.long)


def still(*shape: int) -> Tensor:
    """The same random numbers for every prompt, such as an image's latent; in inference mode, as nodes make them."""
    with torch.inference_mode():
        return torch.randn(shape, generator=torch.Generator().manual_seed(13))


def seen(tokens: int, width: int) -> SimpleNamespace:
    """What CLIP vision makes of an image, as far as models read it."""
    return SimpleNamespace(penultimate_hidden_states=still(1, tokens, width))


@dataclass(frozen=True)
class Family:
    """A tiny model with random weights of ComfyUI's own classes, and what its text encoder would give it.

    config: ComfyUI's configuration class. unet: its settings, with hidden sizes of 32 to 128 and a block or two.
    latent: (C, ...), without the batch. context: (tokens, width) of a prompt's encoding. extra: what comes with
    it, by the names of CONDITIONING; a tuple stands for random numbers of that shape, a function is given the number
    of tokens and a source of random numbers. guidance: the scale of
    classifier-free guidance, 1 for none. state: tensors of a checkpoint that the configuration looks at.
    parts: makers of smaller parts, by path, where ComfyUI's class has one size only. sound: the latent of the
    sound that belongs to a video, where ComfyUI nests both.
    """

    config: type
    unet: Mapping[str, Any]
    latent: tuple[int, ...] = (4, 8, 8)
    context: tuple[int, int] = (TOKENS, TEXT)
    extra: Mapping[str, Any] = field(default_factory=dict)
    guidance: float = 3.0
    state: Mapping[str, Tensor] = field(default_factory=dict)
    parts: Mapping[str, Callable[[], nn.Module]] = field(default_factory=dict)
    sound: tuple[int, ...] = ()

    def build(self, seed: int = 0) -> ModelPatcher:
        """The model, in float32 on the CPU; the same seed gives the same weights."""
        config = self.config({"dtype": torch.float32, **self.unet})
        config.unet_config.update(self.unet)  # some configurations set sizes of their own
        model = config.get_model(dict(self.state), device=CPU)
        for path, make in self.parts.items():
            model.diffusion_model.set_submodule(path, make().eval().requires_grad_(False))
        randomise(model.diffusion_model, seed)
        return ModelPatcher(model, CPU, CPU)

    def conditioning(self, seed: int, more_tokens: int = 0) -> list:
        """CONDITIONING of one prompt. more_tokens: than `context` has."""
        generator, (tokens, width) = torch.Generator().manual_seed(seed), self.context
        extra = {}
        for name, value in self.extra.items():
            if isinstance(value, tuple):
                value = torch.randn(value, generator=generator)
            extra[name] = value(tokens + more_tokens, generator) if callable(value) else value
        return [[torch.randn(1, tokens + more_tokens, width, generator=generator), extra]]

    def empty(self, batch_size: int = 1) -> Tensor | NestedTensor:
        """An empty latent of that many batch entries."""
        return self._latents(torch.zeros(batch_size, *shape) for shape in (self.latent, self.sound) if shape)

    def noise(self, batch_size: int = 1) -> Tensor | NestedTensor:
        """The same noise in every batch entry."""
        generator = torch.Generator().manual_seed(7)
        shapes = (shape for shape in (self.latent, self.sound) if shape)
        noises = (torch.randn(1, *shape, generator=generator) for shape in shapes)
        return self._latents(noise.repeat(batch_size, *(1 for _ in noise.shape[1:])) for noise in noises)

    def _latents(self, parts: Iterable[Tensor]) -> Tensor | NestedTensor:
        return NestedTensor(parts) if self.sound else next(iter(parts))


def randomise(module: nn.Module, seed: int) -> None:
    """Give a module weights that keep the size of what goes through them; norms near 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in module.named_buffers():
        if name == "pos_embed":  # SD3's lies in its checkpoint, and is nothing before
            buffer.normal_(0.0, 0.1, generator=generator)
        elif name.endswith("inv_freq"):  # so do Stable Audio's rotary frequencies
            buffer.copy_(10_000.0 ** -(torch.arange(buffer.numel()) / buffer.numel()))
    for parameter in module.parameters():
        spread = 0.7 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        offset = 1.0 if parameter.ndim == 1 else 0.0
        parameter.data.normal_(0.0, spread, generator=generator).add_(offset)
