"""The kinds of change that a layer's tensors can be, and whether the tensors make sense as one.

Parts are named by the endings that the stock LoRA loader reads, so that what is kept can be handed to it as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite

import torch
from torch import Tensor

from ..changes import Adapter, Change, LowRank, check_shapes

DOWN, UP, MID = "lora_down.weight", "lora_up.weight", "lora_mid.weight"
ALPHA, DORA, DIFF, BIAS = "alpha", "dora_scale", "diff", "diff_b"
# Names of our own for what PEFT keeps in another form than the stock loader
PEFT_BIAS, PEFT_MAGNITUDE = "lora_B.bias", "lora_magnitude_vector"
_LARGEST_KERNEL = 11  # a middle convolution is multiplied out: a hostile one must not take all memory

_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_GLORA = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")
_PRODUCTS = {  # the two ways to give each factor of LoKr
    "lokr_w1": ("lokr_w1_a", "lokr_w1_b"),
    "lokr_w2": ("lokr_w2_a", "lokr_w2_b"),
}
# What each kind is made of: kind -> (parts that name it, further parts). One layer has one of them, and BIAS.
_KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "LoRA": ((DOWN, UP), (MID, ALPHA, DORA, PEFT_BIAS, PEFT_MAGNITUDE)),
    "LoHa": (_LOHA, ("hada_t1", "hada_t2", ALPHA, DORA)),
    "LoKr": ((*_PRODUCTS, *_PRODUCTS["lokr_w1"], *_PRODUCTS["lokr_w2"]), ("lokr_t2", ALPHA, DORA)),
    "OFT": (("oft_blocks",), ("rescale", ALPHA)),
    "GLoRA": (_GLORA, (ALPHA, DORA)),
    "difference": (("diff",), ()),
    "norm": (("w_norm", "b_norm"), ()),
    "bias": ((BIAS,), ()),
}
PARTS = frozenset(part for own, more in _KINDS.values() for part in (*own, *more))


def kind_of(change: Change) -> str:
    """What a change is called: "LoRA", "DoRA", "LoHa", "LoKr", "OFT", "BOFT", "GLoRA", "difference", ..."""
    if isinstance(change, LowRank):
        return "LoRA"
    kind = _named(change.parts)
    if DORA in change.parts:
        return "DoRA" if kind == "LoRA" else f"{kind} with DoRA"
    if kind == "OFT" and change.parts["oft_blocks"].ndim == 4:
        return "BOFT"
    return f"{kind} with a bias" if BIAS in change.parts and kind != "bias" else kind


def change_from(name: str, parts: Mapping[str, Tensor]) -> Change:
    """The change that these tensors of one layer make; alpha / rank is folded in where it is one product.

    name: the layer's, for messages.
    Raises ValueError if they are of no kind, of several, incomplete, or do not fit each other.
    """
    parts = {part: _numbers(name, part, tensor) for part, tensor in parts.items()}
    kind = _named(parts)
    if not kind:
        raise ValueError(f"layer {name} has only {', '.join(parts)}, which changes nothing.")
    known = {*_KINDS[kind][0], *_KINDS[kind][1], *(() if kind == "norm" else (BIAS,))}
    if strange := [part for part in parts if part not in known]:
        raise ValueError(f"layer {name} is a {kind} change and also has {strange[0]}; it can be one of them.")
    return _MAKERS[kind](name, parts)


def _named(parts: Mapping[str, Tensor]) -> str:
    return next((kind for kind, (own, _) in _KINDS.items() if any(part in parts for part in own)), "")


def _numbers(name: str, part: str, tensor: Tensor) -> Tensor:
    """The tensor in a type that every later step can count with; the same numbers."""
    if part == ALPHA:
        number = tensor.item() if tensor.numel() == 1 and not tensor.is_complex() else float("nan")
        if not isfinite(number):
            raise ValueError(f"layer {name}: alpha must be one finite number; got {_shown(tensor)}.")
        return torch.tensor(number, dtype=torch.float64)
    if not tensor.is_floating_point():
        raise ValueError(f"layer {name}: {part} must be floating-point numbers; got {tensor.dtype}.")
    if not tensor.numel():
        raise ValueError(f"layer {name}: {part} is empty, of shape {tuple(tensor.shape)}.")
    if tensor.element_size() == 1:  # 8-bit floats: half precision holds them all but the scales' own type
        return tensor.to(torch.float32 if tensor.dtype == torch.float8_e8m0fnu else torch.float16)
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _shown(tensor: Tensor) -> str:
    return str(tensor.tolist()) if tensor.numel() < 5 else f"{tensor.numel()} numbers"


def _need(name: str, parts: Mapping[str, Tensor], wanted: tuple[str, ...], why: str) -> None:
    if missing := [part for part in wanted if part not in parts]:
        has = ", ".join(part for part in parts if part in PARTS)
        raise ValueError(f"layer {name} has {has} but no {missing[0]}; {why} needs both.")


def _fit(name: str, fits: bool, what: str, parts: Mapping[str, Tensor]) -> None:
    if not fits:
        shapes = ", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in parts.items() if tensor.ndim)
        raise ValueError(f"layer {name}: the parts of its {what} do not fit each other: {shapes}.")


def _kept(parts: Mapping[str, Tensor]) -> Adapter:
    # In one order, whatever the file's: equal changes then have equal fingerprints
    return Adapter({part: t.float() if part == ALPHA else t for part, t in sorted(parts.items())})


def _lora(name: str, parts: dict[str, Tensor]) -> Change:
    _need(name, parts, (DOWN, UP), "a slider layer")
    check_shapes(name, parts[DOWN], parts[UP])
    if MID in parts:
        parts[DOWN] = _with_middle(name, parts.pop(MID), parts[DOWN])
    rank = parts[DOWN].shape[0]
    out, inner = parts[UP].shape[0], parts[DOWN].shape[1]
    if PEFT_BIAS in parts:
        _fit(name, BIAS not in parts, "bias", parts)
        # PEFT scales the bias of its up-projection as it scales the product
        scale = parts[ALPHA].item() / rank if ALPHA in parts else 1.0
        parts[BIAS] = _scaled(parts.pop(PEFT_BIAS), scale)
    if PEFT_MAGNITUDE in parts:
        _fit(name, DORA not in parts and parts[PEFT_MAGNITUDE].numel() == out, "DoRA", parts)
        parts[DORA] = parts.pop(PEFT_MAGNITUDE).reshape(out, *(1 for _ in parts[DOWN].shape[1:]))
    if DORA in parts:
        parts[DORA] = _magnitudes(name, parts, out, inner)
    if BIAS in parts:
        _fit(name, parts[BIAS].shape == (out,), "LoRA with a bias", parts)
    if DORA in parts or BIAS in parts:
        return _kept(parts)
    scale = parts[ALPHA].item() / rank if ALPHA in parts else 1.0
    return LowRank(parts[DOWN], _scaled(parts[UP], scale))


def _magnitudes(name: str, parts: Mapping[str, Tensor], out: int, inner: int) -> Tensor:
    """DoRA's magnitudes, (out, 1, ...) or (1, in, 1, ...); those of one dimension are of the outputs."""
    magnitudes = parts[DORA]
    if magnitudes.ndim == 1:
        magnitudes = magnitudes.reshape(-1, *(1 for _ in parts[DOWN].shape[1:]))
    one_way = magnitudes.ndim >= 2 and magnitudes.numel() == max(magnitudes.shape)
    _fit(name, one_way and (magnitudes.shape[0] == out or magnitudes.shape[1] == inner), "DoRA", parts)
    return magnitudes


def _with_middle(name: str, middle: Tensor, down: Tensor) -> Tensor:
    """The down-projection and the convolution after it as one: (rank, in, 1, ...) -> (rank, in, *kernel)."""
    rank, kernel = down.shape[0], middle.shape[2:]
    fits = middle.shape[:2] == (rank, rank) and down.numel() == rank * down.shape[1]
    _fit(name, fits and all(size <= _LARGEST_KERNEL for size in kernel), "LoCon", {MID: middle, DOWN: down})
    exact = torch.einsum("om...,mi->oi...", middle.float(), down.flatten(1).float())
    return _narrowed(exact, down.dtype)


def _scaled(tensor: Tensor, scale: float) -> Tensor:
    return tensor if scale == 1.0 else _narrowed(tensor.float() * scale, tensor.dtype)


def _narrowed(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """The file's precision is kept where that loses nothing, as with scales that are powers of two."""
    narrow = exact.to(dtype)
    return narrow if torch.equal(narrow.float(), exact) else exact


def _loha(name: str, parts: dict[str, Tensor]) -> Change:
    _need(name, parts, _LOHA, "LoHa")
    w1a, w1b, w2a, w2b = (parts[part] for part in _LOHA)
    fits = all(t.ndim == 2 for t in (w1a, w1b, w2a, w2b))
    if "hada_t1" in parts or "hada_t2" in parts:
        _need(name, parts, ("hada_t1", "hada_t2"), "a LoHa convolution")
        t1, t2 = parts["hada_t1"], parts["hada_t2"]
        fits = fits and t1.ndim == t2.ndim == 4 and t1.shape[2:] == t2.shape[2:]
        fits = fits and t1.shape[:2] == (w1a.shape[0], w1b.shape[0]) and t2.shape[:2] == (w2a.shape[0], w2b.shape[0])
        fits = fits and w1a.shape[1] == w2a.shape[1] and w1b.shape[1] == w2b.shape[1]
    else:
        fits = fits and w1a.shape[1] == w1b.shape[0] and w2a.shape[1] == w2b.shape[0]
        fits = fits and w1a.shape[0] == w2a.shape[0] and w1b.shape[1] == w2b.shape[1]
    _fit(name, fits, "LoHa", parts)
    return _kept(parts)


def _lokr(name: str, parts: dict[str, Tensor]) -> Change:
    for whole, (a, b) in _PRODUCTS.items():
        halves = a in parts or b in parts
        if whole in parts:
            _fit(name, not halves and 2 <= parts[whole].ndim <= 5, "LoKr", parts)
            continue
        _need(name, parts, (a, b) if halves else (whole,), "LoKr")
        _fit(name, parts[a].ndim == parts[b].ndim == 2, "LoKr", parts)
        if whole == "lokr_w2" and "lokr_t2" in parts:
            t2 = parts["lokr_t2"]
            _fit(name, t2.ndim == 4 and t2.shape[:2] == (parts[a].shape[0], parts[b].shape[0]), "LoKr", parts)
        else:
            _fit(name, parts[a].shape[1] == parts[b].shape[0], "LoKr", parts)
    _fit(name, "lokr_t2" not in parts or "lokr_w2_a" in parts, "LoKr", parts)
    return _kept(parts)


def _oft(name: str, parts: dict[str, Tensor]) -> Change:
    blocks = parts["oft_blocks"]
    _fit(name, blocks.ndim in (3, 4) and blocks.shape[-1] == blocks.shape[-2], "OFT", parts)
    if "rescale" in parts and bool((parts["rescale"] == 1).all()):
        del parts["rescale"]
    if "rescale" in parts and blocks.ndim == 3:
        raise ValueError(
            f"layer {name}: an OFT change with a rescale is not supported; the host leaves the rescale out."
        )
    if blocks.ndim == 4 and ALPHA not in parts:
        parts[ALPHA] = torch.tensor(0.0)  # no constraint: what the stock loader needs to be told
    return _kept(parts)


def _glora(name: str, parts: dict[str, Tensor]) -> Change:
    _need(name, parts, _GLORA, "GLoRA")
    _fit(name, glora_rank(parts) > 0, "GLoRA", parts)
    return _kept(parts)


def glora_rank(parts: Mapping[str, Tensor]) -> int:
    """The rank of a GLoRA change in either of its two layouts; 0 if the parts do not fit each other."""
    if any(parts[part].ndim < 2 for part in _GLORA):
        return 0
    a1, a2, b1, b2 = (parts[part].shape[:2] for part in _GLORA)
    ranks = []
    if b2[1] == b1[0] == a1[0] == a2[1] and a1[1] == a2[0]:
        ranks.append(a1[0])
    if b2[0] == b1[1] == a1[1] == a2[0] and a1[0] == a2[1]:
        ranks.append(a2[0])
    return min(ranks, default=0)  # for square weights both fit; the rank is below the size


def _plain(name: str, parts: dict[str, Tensor]) -> Change:
    if "b_norm" in parts and "w_norm" not in parts:
        parts = {BIAS: parts["b_norm"]}  # the stock loader reads b_norm beside w_norm only
    for part in (BIAS, "w_norm", "b_norm"):
        _fit(name, part not in parts or parts[part].ndim == 1, "difference", parts)
    if {BIAS, "diff"} <= parts.keys():
        shape = parts["diff"].shape
        outputs = shape[:2] if len(shape) > 2 else shape[:1]  # those of a transposed convolution come second
        _fit(name, parts[BIAS].shape[0] in outputs, "difference", parts)
    return _kept(parts)


_MAKERS: dict[str, Callable[[str, dict[str, Tensor]], Change]] = {
    "LoRA": _lora,
    "LoHa": _loha,
    "LoKr": _lokr,
    "OFT": _oft,
    "GLoRA": _glora,
    "difference": _plain,
    "norm": _plain,
    "bias": _plain,
}


def folded(name: str, change: Adapter) -> dict[str, Tensor]:
    """A change's parts with its scale in them: in alpha where the kind has one, else in the difference.

    Raises ValueError, naming the layer, where no tensors of its kind are the scaled change.
    """
    parts, scale, kind = dict(change.parts), change.scale, _named(change.parts)
    if scale == 1.0:
        return parts
    if kind == "OFT" or DORA in parts:
        raise ValueError(
            f"Layer {name} is {kind_of(change)}, and a file cannot hold it at a strength of {scale:g}, only at 1: "
            "it is no sum with the model's weight. Save it at strength 1."
        )
    for part in (BIAS, "diff", "w_norm", "b_norm"):
        if part in parts:
            parts[part] = parts[part].float() * scale
    rank = alpha_rank(parts)
    if rank:
        alpha = parts[ALPHA].item() if ALPHA in parts else rank
        parts[ALPHA] = torch.tensor(alpha * scale, dtype=torch.float32)
    elif kind == "LoKr":
        parts["lokr_w1"] = parts["lokr_w1"].float() * scale  # given whole, it takes no notice of alpha
    return parts


def alpha_rank(parts: Mapping[str, Tensor]) -> int:
    """What alpha is divided by, or 0 where the stock loader takes no notice of alpha as a scale."""
    for part in (DOWN, "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if part in parts:
            return parts[part].shape[0]
    return glora_rank(parts) if "a1.weight" in parts else 0
