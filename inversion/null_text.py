"""Null-text optimisation (arXiv 2211.09794, algorithm 1): the negative embedding of one step of sampling.

For a step t, with z* the latents of DDIM inversion and z the latents that guided sampling has reached, N times

    null_t <- null_t - rate * d/d null_t  || z*_{t-1} - z_{t-1}(z_t, null_t, prompt) ||^2

Here x stands for z, d_cond for the prediction with the prompt and d_uncond for that with the null embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from ..comfy_host.predictor import classifier_free
from .ddim import append_dims, euler_step

# What the model is given of a prompt, an entry for each image: such as (B, tokens, width), and pooled (B, width)
Embedding = tuple[Tensor, ...]
# d(x, sigma) of embeddings: latents (n, C, ...), embeddings of n images, their indices (n,) -> (n, C, ...)
PredictUncond = Callable[[Tensor, Embedding, Tensor], Tensor]

_SMALLEST = 1e-30
_NOT_READ = (
    "Inversion: this model does not read the embedding of the negative prompt, so there is nothing to fit. Choose "
    "the method 'plain' or 'negative prompt'."
)


@dataclass(frozen=True)
class GuidedStep:
    """Describes a step of sampling under guidance, and where it is to arrive.

    x: (B, C, ...) the latents of sampling at `sigma`. target: (B, C, ...) those of the inversion at `next_sigma`.
    d_cond: (B, C, ...) the prediction at x with the prompt. guidance: scale of classifier-free guidance.
    loss_scale: what squared distances are divided by, see `loss_scale`.
    """

    x: Tensor
    sigma: Tensor
    next_sigma: Tensor
    target: Tensor
    d_cond: Tensor
    guidance: float
    loss_scale: float = 1.0

    def arrive(self, d_uncond: Tensor, images: Tensor | slice = slice(None)) -> Tensor:
        """Returns the latents at `next_sigma` of some images, given d_uncond: (n, C, ...) -> (n, C, ...)."""
        d = classifier_free(self.d_cond[images], d_uncond, self.guidance)
        return euler_step(self.x[images], self.sigma, self.next_sigma, d)

    def losses(self, arrived: Tensor, images: Tensor | slice = slice(None)) -> Tensor:
        """Returns the mean squared distance of each image from its target: (n, C, ...) -> (n,)."""
        return rearrange((arrived - self.target[images]).square(), "n ... -> n (...)").mean(1) / self.loss_scale

    def gradient(self, arrived: Tensor, images: Tensor) -> Tensor:
        """Returns the derivative of each image's loss by its d_uncond: (n, C, ...) -> (n, C, ...)."""
        by_d_uncond = (self.next_sigma - self.sigma) * (1 - self.guidance)
        return 2 * by_d_uncond * (arrived - self.target[images]) / (arrived[0].numel() * self.loss_scale)


def loss_scale(sigma: Tensor, is_flow: bool) -> float:
    """Returns what squared latents at a sigma are divided by to be of the clean latents' size.

    The published losses are of DDIM's latents, which are ComfyUI's divided by sqrt(1 + sigma^2). The latents of flow
    models keep their size.
    """
    return 1.0 if is_flow else 1 + float(sigma) ** 2


@dataclass(frozen=True)
class OptimisedEmbedding:
    """Holds the result for one step. losses: for each image, before every step that Adam made for it."""

    embedding: Embedding
    losses: tuple[tuple[float, ...], ...]


def optimise_embedding(
    predict: PredictUncond, embedding: Embedding, step: GuidedStep, inner_steps: int, rate: float, tolerance: float
) -> OptimisedEmbedding:
    """Optimises the embedding of every image so that the step arrives at its target, by a new Adam.

    inner_steps: of Adam for each image, at most. rate: Adam's step size. tolerance: as in the published code, an
    image whose loss is below it makes the step of that loss and is then done.
    Images do not affect each other. The graph of an inner step is freed before the next.
    Raises FloatingPointError for a loss or a gradient that is not finite, ValueError if the model does not read the
    embedding.
    """
    null = tuple(part.detach().clone().requires_grad_() for part in embedding)
    adam = torch.optim.Adam(null, lr=rate)
    losses: list[list[float]] = [[] for _ in step.x]
    images = torch.arange(len(step.x), device=step.x.device)  # those that are not done
    for _ in range(inner_steps):
        now, gradients = _losses_and_gradients(predict, null, step, images)
        _update(adam, null, gradients, images)
        for image, loss in zip(images.tolist(), now.tolist()):
            losses[image].append(loss)
        at = f"at sigma {float(step.sigma):.3g}"
        if not torch.isfinite(now).all():
            raise FloatingPointError(f"the loss {at} is {float(now.sum()):.3g}")
        if not all(torch.isfinite(part).all() for part in null):
            raise FloatingPointError(f"the gradient of the loss {at} is not finite")
        images = images[now >= tolerance]
        if not len(images):
            break
    return OptimisedEmbedding(tuple(part.detach() for part in null), tuple(map(tuple, losses)))


def _losses_and_gradients(
    predict: PredictUncond, null: Embedding, step: GuidedStep, images: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Returns the losses of some images, (n,), and their gradient by each part of the embeddings, as that part."""
    with torch.enable_grad():
        d_uncond = predict(step.x[images], tuple(part[images] for part in null), images)
    if not d_uncond.requires_grad:
        raise ValueError(_NOT_READ)
    with torch.no_grad():
        arrived = step.arrive(d_uncond.detach(), images)
        losses, by_d_uncond = step.losses(arrived, images), step.gradient(arrived, images)
        # Scaled to a largest value of 1 for backward: layers in half precision would round it to 0
        size = rearrange(by_d_uncond, "n ... -> n (...)").abs().amax(1).clamp(min=_SMALLEST)
        by_d_uncond /= append_dims(size, by_d_uncond.ndim)
    found = torch.autograd.grad(d_uncond, null, by_d_uncond, allow_unused=True)
    if found[0] is None:
        raise ValueError(_NOT_READ)
    gradients = [torch.zeros_like(part) for part in null]
    for gradient, by_part in zip(gradients, found):
        if by_part is not None:
            gradient[images] = by_part[images] * append_dims(size, by_part.ndim)
    return losses, gradients


@torch.no_grad()
def _update(adam: torch.optim.Adam, null: Embedding, gradients: Sequence[Tensor], images: Tensor) -> None:
    """Makes a step of Adam for some images; its momentum would move the others, too: they are put back."""
    done = torch.ones(len(null[0]), dtype=torch.bool, device=images.device)
    done[images] = False
    before = [part.detach().clone() for part in null]
    for part, gradient in zip(null, gradients):
        part.grad = gradient
    adam.step()
    for part, old in zip(null, before):
        part[done] = old[done]
