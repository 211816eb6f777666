"""Sliders together with other features of ComfyUI: LoRAs, hooks, merges, regions, control, short memory, dtypes."""

import comfy.cldm.cldm
import comfy.controlnet
import comfy.hooks
import comfy.lora
import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_model_merging import ModelMergeSimple
from concept_sliders.comfy_host import mode_choice
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.model_state import state_of
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.tiny import (
    FAMILIES,
    condition,
    difference,
    one_evaluation,
    random_slider,
    sample,
    tensors_of,
    tiny_model,
)
from concept_sliders.tests.support.tiny_families.family import randomise
from concept_sliders.tests.support.tiny_families.unets import UNET

from nodes import ControlNetApplyAdvanced

MODES = mode_choice.MODES[1:]
FAMILY = "SD15"
VALUES = (-1.0, 0.0, 0.8)


@pytest.fixture
def model():
    return tiny_model(FAMILY)


def sample_with(model, positive, negative, batch_size=1, cfg=3.0):
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7)).repeat(batch_size, 1, 1, 1)
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, 6, cfg, "euler", "normal", positive, negative, torch.zeros_like(noise), seed=5
        ).clone()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stock_first", [True, False])
def test_stock_bypass_loader(model, mode, stock_first):
    ours, theirs = random_slider(model, 1), random_slider(model, 2)
    expected = sample(apply_sliders(model, Stack.of(ours) + Stack.of(theirs, 0.5), "unmerged"), FAMILY)

    def bypass(m):
        return comfy.sd.load_bypass_lora_for_models(m, None, tensors_of(theirs), 0.5, 0.0)[0]

    both = (
        apply_sliders(bypass(model), Stack.of(ours), mode)
        if stock_first
        else bypass(apply_sliders(model, Stack.of(ours), mode))
    )
    assert difference(sample(both, FAMILY), expected) < 1e-4
    assert not any(module._forward_hooks for module in model.model.modules())


@pytest.mark.parametrize("mode", MODES)
def test_stock_weight_hooks(model, mode):
    """Hooks rewrite weights between evaluations: sliders then act unmerged, on whatever the weights are."""
    ours, theirs = random_slider(model, 1), random_slider(model, 2)
    expected = sample(apply_sliders(model, Stack.of(ours) + Stack.of(theirs, 0.5), "unmerged"), FAMILY)
    hooks = comfy.hooks.create_hook_lora(tensors_of(theirs), strength_model=0.5, strength_clip=0.0)
    conditions = [comfy.hooks.set_hooks_for_conditioning(condition(FAMILY, seed), hooks) for seed in (2, 3)]
    bare = sample(model, FAMILY)
    assert difference(sample_with(apply_sliders(model, Stack.of(ours), mode), *conditions), expected) < 1e-4
    assert difference(sample(model, FAMILY), bare) < 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_stock_weight_hooks_with_keyframes(model, mode):
    """The hook's strength changes during the run; a gate of ours at the same places is the same."""
    ours, theirs = random_slider(model, 1), random_slider(model, 2)
    hooks = comfy.hooks.create_hook_lora(tensors_of(theirs), strength_model=0.5, strength_clip=0.0)
    keyframes = comfy.hooks.HookKeyframeGroup()
    for strength, start in ((0.0, 0.0), (1.0, 0.4)):
        keyframes.add(comfy.hooks.HookKeyframe(strength, start, guarantee_steps=0))
    hooks.set_keyframes_on_hooks(keyframes)
    conditions = [comfy.hooks.set_hooks_for_conditioning(condition(FAMILY, seed), hooks) for seed in (2, 3)]
    bare = sample(model, FAMILY)
    gated = Stack.of(ours) + Stack.of(theirs, 0.5, Gate(0.4))
    expected = sample(apply_sliders(model, gated, "unmerged"), FAMILY)
    assert difference(expected, sample(apply_sliders(model, Stack.of(ours), "unmerged"), FAMILY)) > 1e-3
    for _ in range(2):
        assert difference(sample_with(apply_sliders(model, Stack.of(ours), mode), *conditions), expected) < 1e-4
    assert difference(sample(model, FAMILY), bare) < 1e-6


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("place", ["model1", "model2"])
def test_model_merge_nodes_take_the_sliders_of_their_first_model_alone(model, place, mode):
    """They read weights and patches of the second: what was applied to it is not there. Known limit."""
    other, stack = tiny_model(FAMILY, seed=1), Stack.of(random_slider(model))

    def merge(one, two):
        return ModelMergeSimple().merge(one, two, 0.6)[0]

    before = merge(
        *(apply_sliders(m, stack, mode) if place == name else m for m, name in ((model, "model1"), (other, "model2")))
    )
    after = apply_sliders(merge(model, other), stack, mode)
    expected = sample(after if place == "model1" else merge(model, other), FAMILY)
    assert difference(sample(before, FAMILY), expected) < 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_merged_models(model, mode):
    other = tiny_model(FAMILY, seed=1)
    blend = model.clone()
    for key, patch in other.get_key_patches("diffusion_model.").items():
        blend.add_patches({key: patch}, 0.4, 0.6)
    by_hand = tiny_model(FAMILY)
    for mine, theirs in zip(by_hand.model.parameters(), other.model.parameters(), strict=True):
        mine.data.mul_(0.6).add_(theirs.data, alpha=0.4)
    stack = Stack.of(random_slider(model))
    expected = sample(apply_sliders(by_hand, stack, "unmerged"), FAMILY)
    assert difference(sample(apply_sliders(blend, stack, mode), FAMILY), expected) < 1e-4


def test_regions_have_their_batch_entries(model):
    """Two regions with prompts of their own: every chunk of ComfyUI's batch has every batch entry."""
    regions = []
    for seed, x in ((2, 0), (4, 4)):
        ((tensor, options),) = condition(FAMILY, seed)
        regions.append([tensor, {**options, "area": (8, 4, 0, x), "strength": 1.0}])
    entries_equal_single_runs(model, regions, condition(FAMILY, 3))


def controlled(start: float = 0.0, end: float = 1.0) -> tuple[list, list]:
    """Both prompts with a ControlNet of ComfyUI's own class, with random weights, for a part of sampling."""
    config = {name: value for name, value in UNET.items() if name != "out_channels"}
    network = comfy.cldm.cldm.ControlNet(hint_channels=3, num_head_channels=8, **config)
    randomise(network, 4)
    control = comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(4))
    prompts = condition(FAMILY, 2), condition(FAMILY, 3)
    return ControlNetApplyAdvanced().apply_controlnet(*prompts, control, image, 1.0, start, end)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("part", [(0.0, 1.0), (0.3, 0.7)])
def test_under_a_controlnet_sliders_act_as_the_stock_loaders_do(model, mode, part):
    slider = random_slider(model)
    with torch.inference_mode():
        bare = sample_with(model, *controlled(*part))
        assert difference(bare, sample(model, FAMILY)) > 1e-2
        acted = sample_with(apply_sliders(model, Stack.of(slider, 0.7), mode), *controlled(*part))
        stock, _ = comfy.sd.load_lora_for_models(model, None, tensors_of(slider), 0.7, 0.0)
        assert difference(acted, sample_with(stock, *controlled(*part))) < 1e-4
        assert difference(sample_with(model, *controlled(*part)), bare) == 0.0


def test_control_has_its_batch_entries(model):
    with torch.inference_mode():
        entries_equal_single_runs(model, *controlled())


def test_batches_split_for_want_of_memory(model, monkeypatch):
    """With no memory to spare ComfyUI runs every conditioning by itself."""
    chunks = []

    def spy(apply_model, args):
        chunks.append(len(args["cond_or_uncond"]))
        return apply_model(args["input"], args["timestep"], **args["c"])

    swept = apply_sliders(model, Stack.of(random_slider(model)).swept(0, VALUES))
    swept.set_model_unet_function_wrapper(spy)
    together = sample(swept, FAMILY, batch_size=3)
    assert set(chunks) == {2}
    chunks.clear()
    monkeypatch.setattr(ModelPatcher, "get_free_memory", lambda self, device: 0)
    assert difference(sample(swept, FAMILY, batch_size=3), together) < 1e-4
    assert set(chunks) == {1}


def entries_equal_single_runs(model, positive, negative):
    slider = random_slider(model)
    batch = sample_with(apply_sliders(model, Stack.of(slider).swept(0, VALUES)), positive, negative, batch_size=3)
    for entry, value in enumerate(VALUES):
        alone = sample_with(apply_sliders(model, Stack.of(slider, value)), positive, negative)
        assert difference(batch[entry : entry + 1], alone) < 1e-4


def typed_model(weights: torch.dtype, compute: torch.dtype | None) -> ModelPatcher:
    """The tiny model with its weights stored in one dtype, and computed in another where that differs."""
    config_class, unet_config, _, _ = FAMILIES[FAMILY]
    config = config_class(dict(unet_config))
    config.set_inference_dtype(weights, compute)
    typed = config.get_model({}, device=torch.device("cpu"))
    for own, source in zip(typed.parameters(), tiny_model(FAMILY).model.parameters(), strict=True):
        own.data = source.data.to(weights)
    return ModelPatcher(typed, torch.device("cpu"), torch.device("cpu"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("weights", "compute"),
    [(torch.bfloat16, None), (torch.float16, None), (torch.float16, torch.float32)],
)
def test_half_precision(weights, compute, mode):
    """Within the resolution of the dtype of the same sliders on the same weights in float32."""
    typed, single = typed_model(weights, compute), tiny_model(FAMILY)
    for own, source in zip(single.model.parameters(), typed.model.parameters(), strict=True):
        own.data = source.data.float()
    stack = Stack.of(random_slider(single, 1), 0.7) + Stack.of(random_slider(single, 2), -0.5)
    exact = one_evaluation(single, stack, "unmerged")
    bare_error = difference(one_evaluation(typed, Stack(), mode), one_evaluation(single, Stack(), mode))
    error = difference(one_evaluation(typed, stack, mode), exact)
    assert error < 3 * max(bare_error, torch.finfo(weights).eps)
    assert difference(one_evaluation(typed, Stack(), mode), exact) > 10 * error
    assert state_of(typed.model).merged.uses == (mode == "merged")


@pytest.mark.parametrize("mode", MODES)
def test_fp8_weights_stay_as_they_are(mode):
    """Weights of eight bits cannot hold a small change: sliders act unmerged there, and lose nothing."""
    typed, single = typed_model(torch.float8_e4m3fn, torch.float32), tiny_model(FAMILY)
    for own, source in zip(single.model.parameters(), typed.model.parameters(), strict=True):
        own.data = source.data.float()
    stack = Stack.of(random_slider(single), 0.7)
    assert difference(one_evaluation(typed, stack, mode), one_evaluation(single, stack, "unmerged")) < 1e-4
    assert state_of(typed.model).merged.uses == 0


def test_many_runs_leave_nothing_behind(model):
    """Random stacks, one after the other: each result is that of a fresh model, and what is kept is bounded."""
    generator = torch.Generator().manual_seed(0)
    sliders = [random_slider(model, seed) for seed in range(6)]
    for turn in range(40):
        strengths = torch.randn(6, generator=generator) * (torch.rand(6, generator=generator) < 0.5)
        mode = MODES[turn % 2]
        stack = sum((Stack.of(s, float(v)) for s, v in zip(sliders, strengths, strict=True)), Stack())
        used = one_evaluation(model, stack, mode)
        if turn % 5 == 0:
            assert difference(used, one_evaluation(tiny_model(FAMILY), stack, mode)) < 1e-5
    state = state_of(model.model)
    assert len(state._hooks) <= 2
    assert state.merged.size_bytes <= sum(p.numel() * p.element_size() for p in model.model.parameters())
