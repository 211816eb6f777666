"""Slider files with adapters of every kind, for one layer of each type that a model has."""

import torch
from concept_sliders.sliders.equation.layer_kinds import can_act_on, is_linear, weight_shape
from concept_sliders.tests.support.adapter_files import parts_of, random
from concept_sliders.tests.support.family_checks import Subject

LINEAR = ("DoRA", "LoHa", "LoKr", "OFT", "BOFT", "GLoRA", "difference", "bias")

CONVOLUTION = ("DoRA", "LoCon", "LoHa", "LoKr", "difference")

# The stock loader knows LoCon's middle and LoKr on two-dimensional convolutions only
OTHER_CONVOLUTION = ("DoRA", "LoHa", "difference")

TYPES = {
    "Linear": is_linear,
    "Conv1d": lambda m: isinstance(m, torch.nn.Conv1d),
    "Conv2d": lambda m: isinstance(m, torch.nn.Conv2d),
    "Conv3d": lambda m: isinstance(m, torch.nn.Conv3d),
    "GroupNorm": lambda m: isinstance(m, torch.nn.GroupNorm),
    "LayerNorm": lambda m: isinstance(m, torch.nn.LayerNorm),
    "RMSNorm": lambda m: isinstance(m, torch.nn.RMSNorm),
    "Embedding": lambda m: isinstance(m, torch.nn.Embedding),
}


def convolution_parts(kind: str, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """The tensors of a change of a convolution's weight, (out, in, *kernel)."""
    out, inner, *kernel = shape
    ones, flat = (1,) * len(kernel), inner * int(torch.tensor(kernel).prod())
    low = {"lora_up.weight": random(out, 2, *ones), "lora_down.weight": random(2, inner, *kernel)}
    return {
        "LoRA": low,
        "DoRA": {**low, "dora_scale": 1 + random(out, 1, *ones).abs()},
        "LoCon": {
            "lora_up.weight": random(out, 2, *ones),
            "lora_down.weight": random(2, inner, *ones),
            "lora_mid.weight": random(2, 2, *kernel),
        },
        "LoHa": {f"hada_w{i}_{ab}": random(*((out, 2) if ab == "a" else (2, flat))) for i in (1, 2) for ab in "ab"},
        "LoKr": {"lokr_w1": random(2, 1), "lokr_w2": random(out // 2, inner, *kernel)},
        "difference": {"diff": random(*shape)},
    }[kind]


def modules_called(subject: Subject) -> list[str]:
    """The paths of modules with a weight whose forward runs in an evaluation, in the model's order."""
    called, modules = set(), dict(subject.model.model.named_modules())
    own = ((path, module) for path, module in modules.items() if path.startswith("diffusion_model."))
    weighted = [path for path, module in own if getattr(module, "weight", None) is not None]
    hooks = [modules[p].register_forward_hook(lambda *_, path=p: called.add(path)) for p in weighted]
    subject.sampled(subject.model, steps=1)
    for hook in hooks:
        hook.remove()
    return [path for path in weighted if path in called]


def layers_by_type(subject: Subject) -> dict[str, list[str]]:
    """The paths of the layers that run in an evaluation, by type; with sizes that the kinds' factors divide."""
    found: dict[str, list[str]] = {}
    for path in modules_called(subject):
        module = subject.model.model.get_submodule(path)
        kind = next((name for name, is_it in TYPES.items() if is_it(module)), None)
        if kind is None or getattr(module, "groups", 1) != 1 or ".llm_adapter." in path:
            continue
        sizes = weight_shape(module, path) if can_act_on(module) else ()
        if all(size % 8 == 0 for size in sizes) if kind == "Linear" else not sizes or sizes[0] % 2 == 0:
            found.setdefault(kind, []).append(path)
    return found


def parts_for(kind: str, module: torch.nn.Module, path: str) -> dict[str, torch.Tensor] | None:
    """The tensors of a change of this kind for a layer; None where the layer has nothing of the sort."""
    if kind == "norm":
        parts = {"w_norm": random(*module.weight.shape)}
        return parts if getattr(module, "bias", None) is None else {**parts, "b_norm": random(*module.bias.shape)}
    if kind == "embedding":
        return {"diff": random(*module.weight.shape)}
    if not is_linear(module):
        return convolution_parts(kind, weight_shape(module, path))
    parts = parts_of(kind, *weight_shape(module, path))
    if module.bias is None:
        parts.pop("diff_b", None)
    if kind == "BOFT":
        parts["alpha"] = torch.tensor(0.0)  # the stock loader needs to be told
    return parts or None


def files_of(subject: Subject, kinds: dict[str, tuple[str, ...]]) -> list[dict[str, torch.Tensor]]:
    """Files that have all kinds between them, each kind on a layer of its own. kinds: by the type of layer."""
    torch.manual_seed(1)
    files: list[dict[str, torch.Tensor]] = []
    for type_, paths in layers_by_type(subject).items():
        for number, kind in enumerate(kinds.get(type_, ())):
            turn, place = divmod(number, len(paths))
            path = paths[place]
            parts = parts_for(kind, subject.model.model.get_submodule(path), path)
            while len(files) <= turn:
                files.append({})
            files[turn] |= {f"{path}.{part}": tensor for part, tensor in (parts or {}).items()}
    return [file for file in files if file]


PRODUCTS = {"Linear": LINEAR, "Conv2d": CONVOLUTION, **dict.fromkeys(("Conv1d", "Conv3d"), OTHER_CONVOLUTION)}

OTHERS = {**dict.fromkeys(("GroupNorm", "LayerNorm", "RMSNorm"), ("norm",) * 3), "Embedding": ("embedding",)}
