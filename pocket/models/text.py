"""The pocket model's text encoder: ComfyUI's CLIP text model, small, over the words of the captions."""

from collections.abc import Sequence

import comfy.sd1_clip
import torch
from torch import Tensor

from ..world.captions import vocabulary, words_of

LENGTH = 40  # tokens a prompt is padded to
WIDTH = 128
START, END = 0, 1
CONFIG = {
    "num_hidden_layers": 3,
    "hidden_size": WIDTH,
    "num_attention_heads": 4,
    "intermediate_size": 384,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": LENGTH,
    "eos_token_id": END,
}


class WordTokenizer:
    """One token a word, with the calls ComfyUI's SDTokenizer makes of a tokenizer.

    Words that no caption of the pocket world holds are left out: the model has never seen them.
    """

    def __init__(self):
        words = ["<start>", "<end>", "<unused>", *vocabulary()]
        self.ids = {word: index for index, word in enumerate(words)}

    @classmethod
    def from_pretrained(cls, path, **options):
        return cls()

    def get_vocab(self) -> dict[str, int]:
        return self.ids

    def __call__(self, text: str) -> dict[str, list[int]]:
        known = [self.ids[word] for word in words_of(text) if word in self.ids]
        return {"input_ids": [START, *known, END]}


def prompt_ids(tokenizer: WordTokenizer, texts: Sequence[str]) -> Tensor:
    """(N, LENGTH) token ids of N prompts."""
    return torch.tensor([padded_ids(tokenizer, text) for text in texts])


def padded_ids(tokenizer: WordTokenizer, text: str) -> list[int]:
    """(LENGTH,) token ids as ComfyUI's tokenizer lays them out."""
    ids = tokenizer(text)["input_ids"][:LENGTH]
    ids[-1] = END
    return ids + [END] * (LENGTH - len(ids))


class PocketSDTokenizer(comfy.sd1_clip.SDTokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(
            tokenizer_path="",
            max_length=LENGTH,
            embedding_directory=embedding_directory,
            embedding_size=WIDTH,
            tokenizer_class=WordTokenizer,
            tokenizer_data=tokenizer_data or {},
        )


class PocketTokenizer(comfy.sd1_clip.SD1Tokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=PocketSDTokenizer)


class PocketTextModel(comfy.sd1_clip.SDClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        special = {"start": START, "end": END, "pad": END}
        super().__init__(
            device=device,
            dtype=dtype,
            max_length=LENGTH,
            textmodel_json_config=dict(CONFIG),
            special_tokens=special,
            model_options=model_options or {},
        )
        words = len(WordTokenizer().ids)  # ComfyUI's class always makes room for CLIP's 49,408
        embedding = self.operations.Embedding(words, WIDTH, dtype=dtype, device=device)
        self.transformer.set_input_embeddings(embedding.requires_grad_(False))


class PocketClipModel(comfy.sd1_clip.SD1ClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device=device, dtype=dtype, model_options=model_options or {}, clip_model=PocketTextModel)
