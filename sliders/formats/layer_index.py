"""Finds a file's layers among those of a model, by what their names end in.

Trainers write the path of a layer in a model, such as "layers.0.attention.to_q", and around it what is their own: in
front of it the names of what the model was wrapped in ("lora_unet_", "transformer.base_model.model.", "pipe.dit."),
dots, underscores or both between its words, and sometimes one more of them at its end. So a name is read as the path
that remains when wrappers in front are taken off, if a layer of the model that is there has that path.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

# What names begin with before the path. Where only dots tell words apart from parts of words, dots are asked for:
# "transformer_blocks" begins with no wrapper.
_FRONTS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?:lora|lycoris)[._]+",
        r"(?:lora|lycoris)_(?:prior_)?(?:unet|transformer|dit|model)[._]+",
        r"base_model[._]model[._]+",
        r"diffusion_model[._]+",
        r"(?:unet|transformer|dit|pipe|model|module|network)\.+",
    )
)
# What stands within a path and is no layer of the model: compiled and distributed modules, diffusers' processors
_WITHIN = re.compile(
    r"(?:^|(?<=[._]))_?(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)[._]+|(?<=\.)processor\."
)
_JOINERS = re.compile(r"[._]+")
_ENCODER = re.compile(r"(?:lora_te|text_encoder)_?(\d?)[._]+(.+)", re.DOTALL)
_NUMBER, _BLOCK = re.compile(r"(?:^|[._])\d+(?:[._]|$)"), re.compile(r"\.\d+\.")

# ComfyUI's names in underscores, beside which it has others of the same layers
_UNDERSCORED = ("lora_unet_", "lora_transformer_", "lora_prior_unet_", "lycoris_")

Target = Any  # what a name stands for in ComfyUI's key maps: a key, or (key, part), or (key, part, order)


class LayerIndex:
    """The layers of one model by their paths.

    key_map: from layer names to weights, as ComfyUI has it. paths_in: `model_paths` for a diffusion model,
    `encoder_paths` for text encoders.
    """

    def __init__(self, key_map: Mapping[str, Target], paths_in: Callable[[str], list[str]]) -> None:
        self.key_map = key_map
        self._paths_in = paths_in

    def readings(self, name: str) -> tuple[Target, ...]:
        """Return what a layer's name in a file can stand for; one that ComfyUI has itself stands for one thing."""
        if name in self.key_map:
            return (self.key_map[name],)
        return _distinct(target for path in self._paths_in(name) for target in _looked_up(path, self._by_path))

    def readings_of_ends(self, name: str) -> tuple[Target, ...]:
        """Return what a name can stand for if only the end of a layer's path in the model is the same."""
        encoder = _ENCODER.fullmatch(name)
        paths = model_paths(encoder[2] if encoder else name)
        return _distinct(target for path in paths for target in _looked_up(path, self._by_end))

    @cached_property
    def _by_path(self) -> dict[str, tuple[Target, ...]]:
        # ComfyUI's names have one wrapper, or none
        return _gathered((self._paths_in(name)[:2][-1], target) for name, target in self._dotted)

    @cached_property
    def _by_end(self) -> dict[str, tuple[Target, ...]]:
        """Layers of blocks, which have numbers, by their paths without the names of the modules around the blocks."""
        return _gathered(
            (joined(name[dot.end() :]), target)
            for name, target in self._dotted
            for dot in re.finditer(r"\.", name)
            if _is_front(name[: dot.end()], name[dot.end() :]) and _BLOCK.search(name, dot.end())
        )

    @property
    def _dotted(self) -> Iterable[tuple[str, Target]]:
        """The key map without the names in underscores, whose words cannot be told apart."""
        return ((name, target) for name, target in self.key_map.items() if not name.startswith(_UNDERSCORED))


def model_paths(name: str) -> list[str]:
    """Return what the path of a diffusion model's layer can be by its name, joined by underscores, the longest first.

    "lora_unet.blocks_0.to_q_" -> ["lora_unet_blocks_0_to_q", "unet_blocks_0_to_q", "blocks_0_to_q"]
    """
    cuts = [0]
    for cut in cuts:  # grows: wrappers stand one in another
        ends = (match.end() for front in _FRONTS if (match := front.match(name, cut)))
        cuts += [end for end in ends if end not in cuts and end < len(name)]
    return [joined(name[cut:]) for cut in sorted(cuts)]


def encoder_paths(name: str) -> list[str]:
    """Return what the path of a text encoder's layer can be by its name, with the encoder's number in front.

    The first encoder is numbered or not.
    """
    if (match := _ENCODER.fullmatch(name)) is None:
        return [joined(name)]
    numbers = ("1", "") if match[1] == "1" else (match[1],)
    return [f"te{number}_{path}" for path in model_paths(match[2]) for number in numbers]


def common_fronts(names: Iterable[str]) -> list[str]:
    """Return what all names of a file may have in front of the path, the shortest first.

    It ends in a dot, and has no number in it: blocks are numbered, what models are wrapped in is not.
    """
    first, *others = names
    cuts = [dot.end() for dot in re.finditer(r"\.", first) if _is_front(first[: dot.end()], first[dot.end() :])]
    return [first[:cut] for cut in cuts if all(other.startswith(first[:cut]) for other in others)]


def _is_front(front: str, path: str) -> bool:
    """Return True if a path may go on after this: a block's number belongs to it, and the name before the number."""
    return not _NUMBER.search(front) and not path[:1].isdigit()


def joined(path: str) -> str:
    """Return a path with single underscores between its words, and none around them."""
    return _JOINERS.sub("_", _WITHIN.sub("", path)).strip("_")


def _looked_up(path: str, index: Mapping[str, tuple[Target, ...]]) -> tuple[Target, ...]:
    """Return the layers with a path, or with one that is another way to write it."""
    return next((index[other] for other in _ways_to_write(path) if other in index), ())


def _ways_to_write(path: str) -> Iterable[str]:
    yield path
    if path.endswith("_weight"):
        yield path.removesuffix("_weight")
    elif path.endswith("_to_out_0"):
        yield path.removesuffix("_0")  # an output projection is a list of layers in diffusers, and in some models not
    elif path.endswith("_to_out"):
        yield f"{path}_0"


def _gathered(pairs: Iterable[tuple[str, Target]]) -> dict[str, tuple[Target, ...]]:
    found: dict[str, list[Target]] = {}
    for path, target in pairs:
        targets = found.setdefault(path, [])
        if target not in targets:
            targets.append(target)
    return {path: tuple(targets) for path, targets in found.items()}


def _distinct(targets: Iterable[Target]) -> tuple[Target, ...]:
    found: list[Target] = []
    for target in targets:
        if target not in found:
            found.append(target)
    return tuple(found)
