"""Directions in a prompt's encoding: what the model varies by itself, found and turned without any training.

After ELROND (arXiv 2602.10216): differences between samples of one prompt are sent back through the model to the
prompt's encoding, and the gradients' principal components are directions that the encoding can be shifted along.

For samples i and j that ended at the clean latents z_i and z_j, x a latent on the way to z_i, and x0(x, c) what is
predicted there at the encoding c,

    g = d/dc < x0(x, c), z_j - z_i >

is the change of the encoding that moves image i towards image j most. Of the paper the abstract was at hand; that the
difference is of latents, gradients are of unit length, and what strength 1 is, are choices made here: by strength 1
the mean change of what is sampled is as long as the samples' standard deviation along that change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..comfy_host.autograd import differentiable
from ..comfy_host.errors import InterruptProcessingException, is_out_of_memory
from ..comfy_host.memory import free_unused
from ..comfy_host.refetched_weights import refetched
from ..comfy_host.shifted_encoding import encoding_of, shift_encoding
from .components import principal_components, varies
from .lengths import ADDS_UP, seen_steps
from .trajectories import Embed, Trajectories, clean_latents

if TYPE_CHECKING:
    from ..comfy_host.predictor import DiffusionPredictor

AT_ONCE = 8  # gradients, of one step, that are worked out together
MEASURED = 16  # samples that a direction's length is measured on
TRIAL = 0.1  # of the encoding's length: the shift that lengths are measured by
FARTHEST = 1.0  # of the encoding's length: the most that strength 1 shifts by


@dataclass(frozen=True)
class PromptDirections:
    """prompt: that they were found on. shifts: (K, tokens, width), what strength 1 adds to its encoding, the widest
    first. explained: (K,), each one's share of the gradients' variance.
    """

    prompt: str
    shifts: Tensor
    explained: Tensor

    def __len__(self) -> int:
        return len(self.shifts)


class PromptSearch:
    """Looks for directions of one prompt.

    conditioning: of the prompt, see `borrow.for_autograd`. of: its samples.
    """

    def __init__(self, denoiser: DiffusionPredictor, conditioning: list[Any], of: Trajectories):
        self.denoiser, self.conditioning, self.of = denoiser, conditioning, of
        encoding, self._options = encoding_of(conditioning)
        self.encoding = encoding.to(denoiser.device).float()  # (1, tokens, width)

    def directions(
        self,
        count: int,
        gradients: int,
        spread: float,
        generator: torch.Generator,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> PromptDirections:
        """Return the first `count` directions by so many gradients; 0 proposes a number.

        spread: strength 1 in standard deviations. report: told how many gradients there are. A cancel takes those
        that there are, if they are more than the directions.
        Raises ValueError for a model that does not read the encoding, or samples that do not differ.
        """
        if not varies(self.of.clean[:, -1]):
            raise ValueError(
                f"Discover Prompt Directions: all {len(self.of)} samples are the same image: there is nothing to "
                "tell apart. Use a prompt that leaves more open, less guidance, or another model."
            )
        found: list[Tensor] = []
        try:
            while len(found) < gradients:
                found += self.gradients(min(AT_ONCE, gradients - len(found)), generator).flatten(1)
                report(len(found), gradients)
        except InterruptProcessingException:
            if len(found) <= max(count, 1):
                raise
        components = principal_components(torch.stack(found), count)
        tokens = self.encoding.shape[1]
        units = rearrange(components.directions, "k (tokens width) -> k tokens width", tokens=tokens)
        lengths = torch.tensor([spread * self.length(unit) for unit in units])
        return PromptDirections(self.of.prompt, lengths[:, None, None] * units, components.explained)

    def gradients(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the gradients g of so many pairs of samples at one step, of unit length: (count, tokens, width)."""
        of = self.of
        step = int(torch.randint(len(of.sigmas), (), generator=generator))
        pairs = torch.stack([torch.randperm(len(of), generator=generator)[:2] for _ in range(count)])
        ends = of.clean[pairs, -1]  # (count, 2, C, ...)
        return self._gradients(of.x[pairs[:, 0], step], of.sigmas[step], ends[:, 1] - ends[:, 0])

    def _gradients(self, x: Tensor, sigma: Tensor, differences: Tensor) -> Tensor:
        """`gradients` of latents (B, C, ...) and differences alike, in halves where memory does not hold them."""
        at_once = self.denoiser.at_once or len(x)
        if len(x) > at_once:
            parts = zip(x.split(at_once), differences.split(at_once))
            return torch.cat([self._gradients(some, sigma, towards) for some, towards in parts])
        try:
            return self._gradients_together(x, sigma, differences)
        except (RuntimeError, MemoryError) as error:
            if len(x) == 1 or not is_out_of_memory(error):
                raise
        self.denoiser.at_once = len(x) // 2
        free_unused()
        return self._gradients(x, sigma, differences)

    def _gradients_together(self, x: Tensor, sigma: Tensor, differences: Tensor) -> Tensor:
        device = self.denoiser.device
        x, sigma, differences = x.to(device), sigma.to(device), differences.to(device)
        encoding = self.encoding.repeat(len(x), 1, 1).requires_grad_()
        with differentiable(), refetched(self.denoiser.model):
            conditions = self.denoiser.conditions([[encoding, self._options]], x)
            clean = clean_latents(x, sigma, self.denoiser.evaluate(x, sigma, [conditions])[0])
            (gradient,) = torch.autograd.grad((clean * differences).sum(), encoding, allow_unused=True)
        if gradient is None:
            raise ValueError("This model does not read the prompt's encoding, so there are no directions in it.")
        return F.normalize(gradient.flatten(1), dim=1).reshape(gradient.shape).float().cpu()

    def length(self, unit: Tensor) -> float:
        """Return how far along a unit direction, (tokens, width), images change by a standard deviation.

        By single predictions at a small shift, which a sampling run adds up.
        """
        whole, trial = float(self.encoding.norm()), TRIAL * float(self.encoding.norm())
        of = self.of.part(slice(MEASURED))
        change = self.changes(trial * unit, of, lambda clean: clean.flatten(1).float()).mean(0)
        ends = of.clean[:, -1].flatten(1)
        deviation = ((ends - ends.mean(0)) @ F.normalize(change, dim=0)).std()
        return min(float(trial * deviation / (ADDS_UP * change.norm()).clamp(min=1e-12)), FARTHEST * whole)

    @torch.no_grad()
    def changes(self, shift: Tensor, of: Trajectories, phi: Embed) -> Tensor:
        """Return how a shift, (tokens, width), changes phi of what is predicted for these samples, (N, D).

        The mean over a few steps. phi: of clean latents.
        """
        device, steps = self.denoiser.device, seen_steps(of)
        total = torch.zeros(())
        for step in steps:
            x, sigma = of.x[:, step].to(device), of.sigmas[step].to(device)
            shifted = self.denoiser.conditions(shift_encoding(self.conditioning, shift.to(device), [1.0]), x)
            after = clean_latents(x, sigma, self.denoiser.evaluate(x, sigma, [shifted])[0])
            total = total + phi(after).cpu() - phi(of.clean[:, step].to(device)).cpu()
        return total / len(steps)


def changes_of(directions: PromptDirections, search: PromptSearch, phi: Embed) -> Tensor:
    """Return how strength 1 of each direction changes the embedding of single predictions on average: (K, D)."""
    of = search.of.part(slice(MEASURED))
    return torch.stack([search.changes(shift, of, phi).mean(0) for shift in directions.shifts])
