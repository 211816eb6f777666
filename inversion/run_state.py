"""The state of an inversion between two steps, and where it is kept when the run is cancelled, to be resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor

from ..comfy_host.borrow import ModelPatcher
from ..comfy_host.identity import digest_of
from ..comfy_host.memory import to_device
from .null_text import Embedding, OptimisedEmbedding
from .settings import InversionSettings

Group = range  # indices of images that the model is evaluated on together


class Sampled:
    """Follows a group of images through guided sampling, from the noise, with the embeddings optimised on the way.

    x: (n, C, ...) the latents so far. embedding: that of the last step, for the next to start from.
    """

    def __init__(self, x: Tensor, embedding: Embedding) -> None:
        self.x, self.embedding = x, embedding
        self.steps = 0  # made
        self.losses: list[tuple[float, float]] = []  # of each step optimised: first and last, the mean of the images
        self._embeddings: list[Embedding] = []

    @property
    def optimised(self) -> int:
        """Number of steps whose embedding is optimised: those made, or one more."""
        return len(self._embeddings)

    def add(self, found: OptimisedEmbedding) -> None:
        """Adds the embedding of the next step."""
        self.embedding = found.embedding
        self._embeddings.append(found.embedding)
        first, last = (sum(losses[at] for losses in found.losses) / len(found.losses) for at in (0, -1))
        self.losses.append((first, last))

    def move(self, x: Tensor) -> None:
        """Makes a step of sampling, to x."""
        self.x, self.steps = x, self.steps + 1

    def on(self, device: torch.device) -> Sampled:
        """Returns a copy with its tensors on a device."""
        copy = Sampled(*to_device((self.x, self.embedding), device))
        copy.steps, copy.losses = self.steps, list(self.losses)
        copy._embeddings = to_device(self._embeddings, device)
        return copy

    def loss_text(self) -> str:
        return ", loss {:.3g} to {:.3g}".format(*self.losses[-1]) if self.losses else ""

    def embeddings(self, steps: int) -> tuple[Tensor, ...]:
        """Returns each part of the embeddings of all steps, (steps, n, ...); missing ones are the last one found."""
        each = [*self._embeddings, *[self.embedding] * (steps - self.optimised)]
        return tuple(torch.stack(part).float().cpu() for part in zip(*each))

    def error(self, clean: Tensor, steps: int) -> Tensor:
        """Returns the distance from the clean latents as a share of their size, (n,); NaN if steps are missing."""
        distance, size = (rearrange(each, "n ... -> n (...)").norm(dim=1) for each in (self.x - clean, clean))
        error = (distance / size).cpu()
        return error if self.steps == steps else torch.full_like(error, float("nan"))


@dataclass
class RunState:
    """Holds all that a run has worked out between two steps.

    group_size: most images that the model is evaluated on together. inverted: the latents that DDIM inversion has
    reached, for each group, (n, C, ...) each, from the clean ones on. trajectory: (steps + 1, B, C, ...) from the
    noise to the clean latents, once DDIM inversion is done. sampled: the sampling of each group.
    """

    group_size: int
    inverted: dict[Group, list[Tensor]] = field(default_factory=dict)
    trajectory: Tensor | None = None
    sampled: dict[Group, Sampled] = field(default_factory=dict)

    def on(self, device: torch.device) -> RunState:
        """Returns a copy with its tensors on a device."""
        inverted, trajectory = to_device((self.inverted, self.trajectory), device)
        sampled = {group: each.on(device) for group, each in self.sampled.items()}
        return RunState(self.group_size, inverted, trajectory, sampled)


def mean_losses(groups: Sequence[Sampled]) -> tuple[tuple[float, float], ...]:
    """Returns (first, last) for every step that any group has optimised, the mean over the groups' images."""
    found = []
    for step in range(max(group.optimised for group in groups)):
        losses = [(*group.losses[step], len(group.x)) for group in groups if group.optimised > step]
        count = sum(images for *_, images in losses)
        first, last = (sum(each[at] * each[2] for each in losses) / count for at in (0, 1))
        found.append((first, last))
    return tuple(found)


def errors(groups: Sequence[Sampled], clean: Tensor, steps: int) -> Tensor:
    """Returns the errors of all images, (B,). clean: (B, C, ...), of the groups one after the other."""
    parts = clean.split([len(group.x) for group in groups])
    return torch.cat([group.error(part, steps) for group, part in zip(groups, parts)])


@dataclass(frozen=True)
class _Cancelled:
    """Keeps the last run that was cancelled in one node, as an attachment of the model's patcher.

    It is freed with the model, and clones of the model have none of it.
    """

    digest: str
    state: RunState | None

    def on_model_patcher_clone(self) -> _Cancelled:
        return _Cancelled("", None)


def take_state(patcher: ModelPatcher, node_id: str, digest: str) -> RunState | None:
    """Returns the state of a cancelled run if it was this very one, and forgets whatever is kept for the node.

    digest: from `digest_of_inputs`.
    """
    kept = patcher.get_attachment(_key(node_id))
    patcher.remove_attachments(_key(node_id))
    return kept.state if kept is not None and kept.digest == _with_patches(patcher, digest) else None


def keep_state(patcher: ModelPatcher, node_id: str, digest: str, state: RunState) -> None:
    """Keeps the state of a cancelled run on the model, in place of any other run of the node."""
    patcher.set_attachments(_key(node_id), _Cancelled(_with_patches(patcher, digest), state))


def was_cancelled(patcher: ModelPatcher, node_id: str) -> bool:
    """Returns True if the last run of the node on this model was cancelled, and can be resumed."""
    kept = patcher.get_attachment(_key(node_id))
    return kept is not None and kept.state is not None


def digest_of_inputs(
    latents: Tensor, positive: list[object], negative: list[object], settings: InversionSettings
) -> str:
    """Returns a hash of what an inversion is made from, beside the model: latents (B, C, ...), CONDITIONING."""
    return digest_of(settings.as_dict(), latents, positive, negative)


def _key(node_id: str) -> str:
    return f"concept_sliders.cancelled_inversion.{node_id}"


def _with_patches(patcher: ModelPatcher, digest: str) -> str:
    return f"{digest} {patcher.patches_uuid}"
