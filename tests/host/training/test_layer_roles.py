"""Layers by their role mean the same on every family."""

import pytest
import torch
from concept_sliders.comfy_host.borrow import borrowed
from concept_sliders.comfy_host.denoiser import Denoiser
from concept_sliders.comfy_host.match import layer_names
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.training.layer_choice import CHOICES, choose_layers

# They attend to the prompt and to the image in one
JOINT = (
    "Stable Cascade",
    "SD3",
    "Flux",
    "Chroma",
    "AuraFlow",
    "HunyuanImage",
    "HunyuanVideo",
    "Lumina",
    "Z-Image",
    "Qwen",
    "HiDream",
    "OmniGen",
    "Boogu",
    "Krea",
    "Lens",
    "Ernie",
    "Ideogram",
    "MageFlow",
    "JoyImage",
    "Mochi",
    "CogVideoX",
    "LongCat-Image",
    "Hunyuan3D 2",
    "MiniMax",
    "PixelDiT",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_roles(family):
    with torch.inference_mode():
        paths = list(layer_names(FAMILIES[family].build()))
    taken = {}
    for choice in CHOICES:
        if choice == "cross-attention" and family.startswith(JOINT) and family != "Hunyuan3D 2.1":
            with pytest.raises(ValueError, match="attends to the prompt and to the image at once"):
                choose_layers(paths, choice)
            taken[choice] = set()
        else:
            taken[choice] = set(choose_layers(paths, choice))
    assert taken["all"] == set(paths)
    assert taken["self-attention"] | taken["cross-attention"] == taken["attention"]
    assert not taken["self-attention"] & taken["cross-attention"]
    left = taken["all"] - taken["all but cross-attention"] - taken["cross-attention"]
    assert all(any(word in path for word in ("time", "t_embedder", "t_block", "tmlp")) for path in left)
    assert len(taken["attention"]) >= 2  # in and out


def inputs_of(model, paths, conditioning, x):
    """The tensor that each of these layers is given, at its first call, in one evaluation of the model."""
    given, handles = {}, []
    for path in paths:
        module = model.model.get_submodule(path)

        def note(module, args, path=path):
            given.setdefault(path, args[0].detach().clone())

        handles.append(module.register_forward_pre_hook(note))
    try:
        with torch.inference_mode(), borrowed(model), torch.no_grad():
            Denoiser(model, {"": conditioning})(x, torch.tensor(0.7), [""])
    finally:
        for handle in handles:
            handle.remove()
    return given


@pytest.mark.parametrize(
    "family", ["SD 1", "SD 2", "SDXL", "PixArt Alpha", "PixArt Sigma", "Hunyuan-DiT", "Cosmos", "Wan 2.1", "LTXV"]
)
def test_layers_are_fed_by_what_their_role_says(family):
    """Keys and values of cross-attention by the prompt alone, all other attention by the image."""
    made = FAMILIES[family]
    with torch.inference_mode():
        model = made.build()
        paths = list(layer_names(model))
    one, other = made.conditioning(1), made.conditioning(1)
    other[0][0] = other[0][0] + 1.0  # another prompt; what comes with it is the same
    x, another = (torch.randn(made.empty(1).shape, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    base, prompted, pictured = (inputs_of(model, paths, c, y) for c, y in ((one, x), (other, x), (one, another)))

    def fed_by(changed, path):
        return path in base and not torch.equal(base[path], changed[path])

    cross, own = (choose_layers(paths, choice) for choice in ("cross-attention", "self-attention"))
    prompt_alone = [path for path in cross if path in base and not fed_by(pictured, path)]
    assert len(prompt_alone) >= 1 and all(fed_by(prompted, path) for path in prompt_alone)
    image = [path for path in cross if fed_by(pictured, path)]
    assert len(image) >= len(prompt_alone) / 2  # queries and outputs
    met = [path for path in own if path in base]
    assert len(met) >= 2 and all(fed_by(pictured, path) for path in met)
