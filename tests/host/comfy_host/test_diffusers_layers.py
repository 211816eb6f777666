"""diffusers' names of families of which ComfyUI's loader knows its own names only."""

from collections.abc import Sequence
from functools import cache

import pytest
import torch
from concept_sliders.comfy_host.match import match_slider
from concept_sliders.sliders.changes import Adapter, LowRank
from concept_sliders.sliders.formats.keys import read_layers
from concept_sliders.sliders.slider import Slider
from concept_sliders.tests.support.diffusers_models import DIFFUSERS
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.spellings import SPELLINGS


@cache
def model_of(family):
    return FAMILIES[family].build()


def ones(name, shape):
    """A change of one weight by 1 everywhere: of a norm a difference, else a product."""
    if len(shape) == 1:
        return Adapter({"diff": torch.ones(shape)})
    return LowRank(torch.ones(1, *shape[1:]), torch.ones(shape[0], 1, *(1 for _ in shape[2:])))


def added_to(model, match):
    """What a match adds to each of the model's weights."""
    found = {}
    for path, changes in match.layers.items():
        for change in changes:
            own = model.model.get_submodule(path).weight
            if isinstance(change, LowRank):
                by = (change.up.flatten(1) @ change.down.flatten(1)).view_as(own)
            else:
                by = change.difference(torch.zeros_like(own), path)
            found[f"{path}.weight"] = found.get(f"{path}.weight", 0) + by
    return found


@pytest.mark.parametrize("family", DIFFUSERS)
def test_the_weights_of_diffusers_model_are_all_of_the_models_each_once(family):
    model = model_of(family)
    layers = {f"transformer.{name}": ones(name, shape) for name, shape in DIFFUSERS[family].items()}
    match = match_slider(model, Slider("all", layers))
    assert (match.unmatched, match.misfits) == ((), {})
    found = added_to(model, match)
    own = {key for key in model.model.state_dict() if key.startswith("diffusion_model.") and key.endswith(".weight")}
    assert found.keys() == own
    assert [key for key, by in found.items() if not torch.equal(by, torch.ones_like(by))] == []


@pytest.mark.parametrize("who", SPELLINGS)
@pytest.mark.parametrize("family", DIFFUSERS)
def test_in_every_spelling(family, who):
    shapes = {SPELLINGS[who](name): shape for name, shape in DIFFUSERS[family].items() if len(shape) > 1}
    tensors = {}
    for name, shape in shapes.items():
        change = ones(name, shape)
        tensors |= {f"{name}.lora_down.weight": change.down, f"{name}.lora_up.weight": change.up}
    match = match_slider(model_of(family), Slider("x", read_layers(tensors)[0]))
    assert (match.unmatched, match.misfits, match.matched) == ((), {}, len(shapes))


# Names, and the rows of a weight that they stand for: in this order
PLACES: dict[str, dict[str, tuple[str, Sequence[int]]]] = {
    "CogVideoX": {
        "transformer_blocks.0.attn1.to_k": ("blocks.0.k", range(64)),
        "norm_out.linear": ("norm_out.linear", range(128)),  # shift before scale, as in ComfyUI
    },
    "Mochi": {
        "transformer_blocks.0.attn1.to_k": ("blocks.0.attn.qkv_x", range(64, 128)),
        "transformer_blocks.1.attn1.add_v_proj": ("blocks.1.attn.qkv_y", range(128, 192)),
        "transformer_blocks.1.norm1_context.linear_1": ("blocks.1.mod_y", range(32)),
        "transformer_blocks.0.ff_context.net.0.proj": ("blocks.0.mlp_y.w1", [*range(256, 512), *range(256)]),
        "norm_out.linear": ("final_layer.mod", [*range(64, 128), *range(64)]),
    },
    "Cosmos": {
        "transformer_blocks.0.attn2.to_v": ("blocks.block0.blocks.1.block.attn.to_v.0", range(64)),
        "transformer_blocks.0.norm3.linear_2": ("blocks.block0.blocks.2.adaLN_modulation.2", range(192)),
    },
    "Cosmos Predict 2": {
        "transformer_blocks.0.attn1.to_q": ("blocks.0.self_attn.q_proj", range(64)),
        "transformer_blocks.0.norm2.linear_1": ("blocks.0.adaln_modulation_cross_attn.1", range(8)),
    },
    "Lumina 2": {
        "layers.0.attn.to_q": ("layers.0.attention.qkv", range(64)),
        "layers.0.attn.to_k": ("layers.0.attention.qkv", range(64, 96)),
        "context_refiner.0.attn.to_v": ("context_refiner.0.attention.qkv", range(96, 128)),
        "noise_refiner.0.feed_forward.linear_3": ("noise_refiner.0.feed_forward.w3", range(256)),
    },
    "Ideogram 4": {
        "layers.0.attention.to_v": ("layers.0.attention.qkv", range(128, 192)),
        "layers.0.attention.to_out.0": ("layers.0.attention.o", range(64)),
    },
    "Stable Audio": {
        "transformer_blocks.0.attn1.to_k": ("transformer.layers.0.self_attn.to_qkv", range(64, 128)),
        "transformer_blocks.0.attn2.to_v": ("transformer.layers.0.cross_attn.to_kv", range(64, 128)),
        "global_proj.2": ("to_global_embed.2", range(64)),
    },
    "LTX 2": {
        "av_cross_attn_video_a2v_gate.linear": ("av_ca_a2v_gate_adaln_single.linear", range(64)),
        "audio_time_embed.linear": ("audio_adaln_single.linear", range(192)),
    },
    "ACE-Step 1.5": {"layers.0.cross_attn.to_out.0": ("decoder.layers.0.cross_attn.o_proj", range(64))},
    "HunyuanVideo 1.5": {
        "context_embedder_2.linear_3": ("byt5_in.fc3", range(64)),
        "time_embed.timestep_embedder.linear_2": ("time_in.out_layer", range(64)),
    },
    "Wan 2.1 VACE": {
        "vace_blocks.0.attn2.to_out.0": ("vace_blocks.0.cross_attn.o", range(64)),
        "vace_blocks.0.proj_out": ("vace_blocks.0.after_proj", range(64)),
    },
    "Anima": {"transformer_blocks.0.attn1.to_q": ("blocks.0.self_attn.q_proj", range(64))},
}


@pytest.mark.parametrize(("family", "name"), [(family, name) for family, names in PLACES.items() for name in names])
def test_the_rows_that_a_name_stands_for(family, name):
    (path, rows), model = PLACES[family][name], model_of(family)
    inner = model.model.get_submodule(f"diffusion_model.{path}").weight.shape[1:]
    change = LowRank(torch.ones(1, *inner), 1.0 + torch.arange(len(rows))[:, None])
    ((key, by),) = added_to(model, match_slider(model, Slider("x", {f"transformer.{name}": change}))).items()
    expected = torch.zeros_like(by)
    expected[list(rows)] = 1.0 + torch.arange(len(rows))[:, None]
    assert key == f"diffusion_model.{path}.weight" and torch.equal(by, expected)


def test_the_names_in_a_message_are_those_that_the_layers_have():
    """A change of diffusers' queries, keys and values that is of another model's size is left out by its own name."""
    model, name = model_of("Lumina 2"), "transformer.layers.0.attn.to_k"
    layers = {f"transformer.{n}": ones(n, s) for n, s in DIFFUSERS["Lumina 2"].items() if len(s) > 1}
    layers[name] = LowRank(torch.ones(1, 64), torch.ones(64, 1))
    match = match_slider(model, Slider("x", layers))
    assert set(match.misfits) == {name} and "(32, 64)" in match.misfits[name]
