"""What ComfyUI's text encoders read of a prompt: tokens, encoder by encoder, and the embeddings that are found."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

from comfy.sd import CLIP
from comfy.sd1_clip import SDTokenizer, escape_important, load_embed, token_weights, unescape_important
from torch import Tensor

_EMBEDDING = "embedding:"


def tokens_of(clip: CLIP, prompt: str) -> dict[str, Hashable]:
    """Return what each text encoder reads of a prompt, by ComfyUI's name for it: "l", "g", "t5xxl", ...

    Prompts that are equal here have the same encoding. Embeddings of another width than the encoder's are left out
    here, as ComfyUI leaves them out when it encodes.
    """
    tokenizers = dict(_tokenizers(clip))
    read = {}
    for name, chunks in clip.tokenize(prompt).items():
        if name in tokenizers:
            chunks = [_as_encoded(chunk, tokenizers[name]) for chunk in chunks]
        read[name] = _comparable(chunks)
    return read


def unread_embeddings(clip: CLIP, prompts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the embeddings in prompts that ComfyUI leaves out, each with the names of the encoders that lack it.

    An encoder lacks an embedding if there is no file of it, or the file's is of another width.
    """
    lacking: dict[str, list[str]] = {}
    for encoder, tokenizer in _tokenizers(clip):
        for name in dict.fromkeys(name for prompt in prompts for name in _embeddings_in(prompt, tokenizer)):
            if not _has(tokenizer, name):
                lacking.setdefault(name.strip(","), []).append(encoder)
    return {name: tuple(encoders) for name, encoders in lacking.items()}


def encoders_of(clip: CLIP) -> tuple[str, ...]:
    """Return ComfyUI's names of the text encoders that know embeddings."""
    return tuple(name for name, _ in _tokenizers(clip))


def _tokenizers(clip: CLIP) -> Iterator[tuple[str, SDTokenizer]]:
    """The tokenizer of each text encoder, by the name under which `CLIP.tokenize` gives its tokens."""
    for attribute, tokenizer in vars(clip.tokenizer).items():
        if isinstance(tokenizer, SDTokenizer):
            yield attribute.removeprefix("clip_"), tokenizer


def _embeddings_in(prompt: str, tokenizer: SDTokenizer) -> Iterator[str]:
    """The names after "embedding:", where ComfyUI's tokenizer looks for them."""
    if tokenizer.embedding_directory is None:
        return
    texts = [prompt]
    if not tokenizer.disable_weights:
        texts = [unescape_important(text) for text, _ in token_weights(escape_important(prompt), 1.0)]
    for text in texts:
        for part in re.split(rf"(?<=\s)(?={_EMBEDDING})", text):
            if part.startswith(_EMBEDDING):
                name, *_ = re.split(r"[\s<\[]", part.removeprefix(_EMBEDDING))
                yield name


def _has(tokenizer: SDTokenizer, name: str) -> bool:
    for each in dict.fromkeys((name, name.strip(","))):
        found = load_embed(each, tokenizer.embedding_directory, tokenizer.embedding_size, tokenizer.embedding_key)
        if found is not None:
            return bool(found.shape[-1] == tokenizer.embedding_size)
    return False


def _as_encoded(chunk: Sequence[tuple[Any, float]], tokenizer: SDTokenizer) -> list[tuple[Any, float]]:
    """Return the tokens of a chunk as they are encoded: padding at the end, for embeddings of another width."""
    kept = [
        (token, weight)
        for token, weight in chunk
        if not isinstance(token, Tensor) or token.shape[-1] == tokenizer.embedding_size
    ]
    return kept + [(tokenizer.pad_token, 1.0)] * (len(chunk) - len(kept))


def _comparable(value: Any) -> Hashable:
    """Return a value that is equal for equal tokens."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().cpu().float().numpy().tobytes()
    if isinstance(value, dict):
        return tuple((key, _comparable(each)) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(_comparable, value))
    return value
