"""Names for discovered directions: by the encoder that found them, or by another one that looks at their images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from comfy.clip_vision import ClipVisionModel
from comfy.sd import CLIP
from torch import Tensor

from ..comfy_host.joint_encoders import image_embedding, text_embedding
from ..discovery.names import names_of, told_apart, trained_and_done, with_names
from ..discovery.run import Discovery
from ..evaluation.sweep import Sweep
from ..sliders.stack import Stack
from .measuring_inputs import JOINT


@dataclass(frozen=True)
class Naming:
    """Words, with their embeddings (W, D), of one space with the images'.

    embed: of images, (n, H, W, 3) to (n, D); None where the directions themselves are of that space.
    """

    words: tuple[str, ...]
    texts: Tensor
    embed: Callable[[Tensor], Tensor] | None

    def named(self, found: Discovery, sweep: Sweep | None) -> Stack:
        """Return the found stack with names; as it is where too few words are told apart, or images are missing.

        sweep: images of all directions at both ends; of a cancelled run there may be none.
        """
        changes: Tensor | None
        if self.embed is None:
            changes = trained_and_done(found.components.directions, found.changes)
        else:
            changes = None if sweep is None else _seen(sweep, self.embed, len(found.stack))
        if changes is None or len(self.words) < 2:
            return found.stack
        return with_names(found.stack, names_of(changes, self.texts, self.words))


def naming_by(
    clip: CLIP, clip_vision: ClipVisionModel, names_by: ClipVisionModel | None, words: str
) -> tuple[Naming | None, str]:
    """Return how directions get names, or None without any, and why they have none; "" if none are wanted.

    clip_vision: the encoder they are found by. names_by: another, that belongs with the text encoder. words: a list,
    separated by commas.
    """
    listed = list(dict.fromkeys(word.strip() for word in words.replace("\n", ",").split(",") if word.strip()))
    if not listed:
        return None, ""
    try:
        of_texts = text_embedding(clip, names_by or clip_vision, JOINT)
    except ValueError as error:
        return None, f"Directions have numbers for names. {error}"
    texts = of_texts(listed)
    apart = told_apart(texts)
    embed = image_embedding(names_by) if names_by is not None else None
    return Naming(tuple(listed[at] for at in apart), texts[apart], embed), ""


def unwanted_texts(clip: CLIP, clip_vision: ClipVisionModel, texts: list[str]) -> Tensor | None:
    """Return the embeddings of what no direction may be about, (W, D); None if there is nothing of it.

    Raises ValueError where the text encoder does not belong with the one that finds directions.
    """
    if not texts:
        return None
    try:
        of_texts = text_embedding(clip, clip_vision, JOINT)
    except ValueError as error:
        raise ValueError(f"Discover Sliders: leave_out takes encoders that belong together. {error}") from error
    return of_texts(texts)


def _seen(sweep: Sweep, embed: Callable[[Tensor], Tensor], count: int) -> Tensor | None:
    """The mean change of the images' embedding from one end of each direction to the other, (K, D)."""
    embeddings = embed(sweep.thumbnails)
    changes = [sweep.end_to_end(position, embeddings) for position in range(count)]
    whole = [change for change in changes if change is not None]
    return torch.stack(whole) if len(whole) == count else None
