"""How the text encoders read a concept's words: ends that they read alike, and words that say nothing to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from ..comfy_host.prompt_tokens import encoders_of, tokens_of, unread_embeddings
from ..comfy_host.text_encoders import CLIP
from .concept import Concept
from .ends import ONLY_IN


def check_words(clip: CLIP, concepts: Sequence[Concept]) -> tuple[str, ...]:
    """Return what the user should know of how the text encoders read the concepts, as sentences.

    So are named: embeddings that are left out, prompts and phrases that say nothing, phrases that are read alike, a
    concept among others whose ends are read alike, and encoders that read them alike where others do not.
    Raises ValueError if the ends of all concepts are read alike by all encoders, or one is no concept at all.
    """
    prompts = dict.fromkeys(
        p for each in concepts for p in ("", *each.prompts(), *each.preserve, each.more, each.less)
    )
    read = {prompt: tokens_of(clip, prompt) for prompt in prompts}
    said = [*_unread(clip, prompts)]
    for concept in concepts:
        parts = [concept.target, concept.more, concept.less, *concept.preserve]
        silent = [part for part in dict.fromkeys(parts) if part.strip() and read[part] == read[""]]
        said += [f"The text encoder knows no word of {part!r}: it says nothing." for part in silent]
        heard = [phrase for phrase in concept.preserve if phrase not in silent]
        said += [
            f"The text encoder cannot tell the phrases {one!r} and {other!r} apart."
            for one, other in combinations(heard, 2)
            if read[one] == read[other]
        ]
    blind = [_blind_encoders(concept, read) for concept in concepts]
    alike = [
        f"The text encoder cannot tell the ends {concept.more!r} and {concept.less!r} apart"
        for concept, (cannot, can) in zip(concepts, blind, strict=True)
        if cannot and not can
    ]
    if len(alike) == len(concepts):
        raise ValueError(" ".join([f"{alike[0]}, and there is nothing to learn: {ONLY_IN}.", *said]))
    said += [f"{each}: this concept teaches nothing." for each in alike]
    for concept, (cannot, can) in zip(concepts, blind, strict=True):
        if cannot and can:
            said.append(
                f"Of the text encoders, {', '.join(cannot)} cannot tell the ends {concept.more!r} and "
                f"{concept.less!r} apart; {', '.join(can)} can."
            )
    return tuple(dict.fromkeys(said))


def blind_encoders(clip: CLIP, concepts: Sequence[Concept]) -> tuple[str, ...]:
    """Return ComfyUI's names of the text encoders that read both ends of every concept alike."""
    prompts = dict.fromkeys(prompt for each in concepts for ends in each.ends() for prompt in ends)
    read = {prompt: tokens_of(clip, prompt) for prompt in prompts}
    blind = [_blind_encoders(concept, read) for concept in concepts]
    seeing = {name for _, can in blind for name in can}
    return tuple(dict.fromkeys(name for cannot, _ in blind for name in cannot if name not in seeing))


def _blind_encoders(concept: Concept, read: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """(the encoders that read both ends alike with every phrase, the others)."""
    ends = concept.ends()
    names = list(dict.fromkeys(name for more, less in ends for name in (*read[more], *read[less])))
    cannot = [n for n in names if all(read[more].get(n) == read[less].get(n) for more, less in ends)]
    return cannot, [name for name in names if name not in cannot]


def _unread(clip: CLIP, prompts: Iterable[str]) -> list[str]:
    """A sentence for every embedding that is left out."""
    everywhere = encoders_of(clip)
    return [
        f"ComfyUI has not found the embedding {name!r}, and leaves it out."
        if encoders == everywhere
        else f"The embedding {name!r} is not one for {', '.join(encoders)}, which leave it out."
        for name, encoders in unread_embeddings(clip, prompts).items()
    ]
