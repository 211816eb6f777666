"""Sliders on cond or on uncond alone, and in guiders that ask for more than a positive and a negative prompt."""

import comfy.lora
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy_extras.nodes_custom_sampler import Guider_Basic, Guider_DualCFG, Guider_DualModel
from comfy_extras.nodes_perpneg import Guider_PerpNeg, PerpNeg
from comfy_extras.nodes_sag import SelfAttentionGuidance
from concept_sliders.comfy_host import mode_choice
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.tiny import (
    STEPS,
    condition,
    difference,
    random_slider,
    sample,
    tensors_of,
    tiny_model,
    traces,
)

FAMILY = "SD15"
MODES = mode_choice.MODES[1:]
POSITIVE, NEGATIVE, OTHER = (condition(FAMILY, seed) for seed in (2, 3, 4))


@pytest.fixture
def model():
    return tiny_model(FAMILY)


def run(guider, size: int = 8, batch_size: int = 1) -> torch.Tensor:
    sigmas = comfy.samplers.calculate_sigmas(guider.model_patcher.get_model_object("model_sampling"), "normal", STEPS)
    noise = torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(7)).repeat(batch_size, 1, 1, 1)
    sampler = comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, seed=5).clone()


class Asked:
    """Which prompt is which chunk of each evaluation, by its words; and what the bare and the changed model say."""

    def __init__(self, prompts, bare, changed, expected_on):
        self.prompts, self.bare, self.changed, self.expected_on = prompts, bare, changed, expected_on
        self.seen, self.worst = set(), 0.0

    def __call__(self, apply_model, args):
        given = apply_model(args["input"], args["timestep"], **args["c"])
        chunks = len(args["cond_or_uncond"])
        for x, t, words, y in zip(
            *(value.chunk(chunks) for value in (args["input"], args["timestep"], args["c"]["c_crossattn"], given)),
            strict=True,
        ):
            name = next(name for name, prompt in self.prompts.items() if torch.equal(prompt[0][0][0], words[0]))
            self.seen.add(name)
            of = self.changed if name in self.expected_on else self.bare
            self.worst = max(self.worst, difference(y, of.model.apply_model(x, t, c_crossattn=words)))
        return given


def dual_cfg(model, nested):
    guider = Guider_DualCFG(model)
    guider.set_conds(POSITIVE, OTHER, NEGATIVE)
    guider.set_cfg(3.0, 2.0, nested=nested)
    return guider


def perp_neg(model):
    guider = Guider_PerpNeg(model)
    guider.set_conds(POSITIVE, NEGATIVE, OTHER)
    guider.set_cfg(3.0, 0.7)
    return guider


def plain(model):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(POSITIVE, NEGATIVE)
    guider.set_cfg(3.0)
    return guider


def basic(model):
    guider = Guider_Basic(model)
    guider.set_conds(POSITIVE)
    return guider


def old_perp_neg(model):
    """The deprecated node: it asks for the empty prompt by itself, under no name."""
    return plain(PerpNeg.execute(model, OTHER, 0.7).args[0])


GUIDERS = {
    "plain": (plain, {"uncond"}),
    "basic": (basic, set()),
    "dual": (lambda model: dual_cfg(model, False), {"uncond", "other"}),
    "nested": (lambda model: dual_cfg(model, True), {"uncond", "other"}),
    "perpendicular": (perp_neg, {"uncond", "other"}),
    "old perpendicular": (old_perp_neg, {"uncond", "other"}),
    "self-attention": (lambda model: plain(SelfAttentionGuidance.execute(model, 0.5, 2.0).args[0]), {"uncond"}),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cond_or_uncond", ["cond", "uncond"])
@pytest.mark.parametrize("name", GUIDERS)
def test_every_guider_has_its_positive_and_its_other_prompts(model, name, cond_or_uncond, mode):
    """Each chunk of each evaluation is that of the changed model for these prompts, and of the bare one elsewhere."""
    make, others = GUIDERS[name]
    slider = random_slider(model)
    changed = tiny_model(FAMILY)
    changed.add_patches(
        comfy.lora.load_lora(tensors_of(slider), comfy.lora.model_lora_keys_unet(changed.model, {})), 0.8
    )
    changed.patch_model()
    asked = Asked(
        {"cond": POSITIVE, "uncond": NEGATIVE, "other": OTHER},
        tiny_model(FAMILY),
        changed,
        {"cond"} if cond_or_uncond == "cond" else others,
    )
    acted = apply_sliders(model, Stack.of(slider, 0.8).restricted_to(cond_or_uncond), mode)
    acted.set_model_unet_function_wrapper(asked)
    run(make(acted), size=16)
    assert asked.seen == {"cond"} | others
    assert asked.worst < 1e-4
    assert not acted.attachments


@pytest.mark.parametrize("cond_or_uncond", ["cond", "uncond"])
def test_regions_stay_cond_or_uncond(model, cond_or_uncond):
    """ComfyUI puts a copy of every positive region among the negative prompts, under the same id."""
    regions = [[tensor, {**options, "area": (8, 4, 0, x)}] for x, ((tensor, options),) in ((0, POSITIVE), (4, OTHER))]
    stack, seen = Stack.of(random_slider(model)).restricted_to(cond_or_uncond), []

    def spy(apply_model, args):
        on = 0 if cond_or_uncond == "cond" else 1
        bare = model.model.apply_model(args["input"], args["timestep"], c_crossattn=args["c"]["c_crossattn"])
        given = apply_model(args["input"], args["timestep"], **args["c"])
        chunks = len(args["cond_or_uncond"])
        for chunk, y, without in zip(args["cond_or_uncond"], given.chunk(chunks), bare.chunk(chunks), strict=True):
            seen.append(chunk)
            assert (difference(y, without) > 1e-6) == (chunk == on)
        return given

    acted = apply_sliders(model, stack, "unmerged")
    acted.set_model_unet_function_wrapper(spy)
    guider = comfy.samplers.CFGGuider(acted)
    guider.set_conds(regions, NEGATIVE)
    guider.set_cfg(3.0)
    run(guider)
    assert seen.count(0) == 2 * STEPS
    assert seen.count(1) == 3 * STEPS


def stock(model, slider, strength):
    return comfy.sd.load_lora_for_models(model, None, tensors_of(slider), strength, 0.0)[0]


def two_models(positive, negative):
    guider = Guider_DualModel(positive, negative)
    guider.set_conds(POSITIVE, NEGATIVE)
    guider.set_cfg(3.0)
    return run(guider)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("on", [(0.8, 0.0), (0.0, 0.8), (0.8, -0.5)])
def test_a_guider_of_two_models(mode, on):
    """Each model's own sliders act on it, and those of the other do not."""
    models = [tiny_model(FAMILY), tiny_model(FAMILY, seed=1)]
    sliders = [random_slider(models[0], seed) for seed in (1, 2)]
    bare = two_models(*models)
    by_stock, ours = (
        two_models(*(make(m, s, v) if v else m for m, s, v in zip(models, sliders, on, strict=True)))
        for make in (stock, lambda m, s, v: apply_sliders(m, Stack.of(s, v), mode))
    )
    assert difference(ours, by_stock) < 1e-4
    assert difference(ours, bare) > 1e-3
    assert torch.equal(two_models(*models), bare)
    assert all(traces(m) == [] for m in models)


@pytest.mark.parametrize(("cond_or_uncond", "acts"), [("uncond", True), ("cond", False)])
def test_the_second_model_of_two_is_the_negative_one(cond_or_uncond, acts):
    models = [tiny_model(FAMILY), tiny_model(FAMILY, seed=1)]
    slider = random_slider(models[0])
    expected = two_models(models[0], stock(models[1], slider, 1.0) if acts else models[1])
    ours = two_models(models[0], apply_sliders(models[1], Stack.of(slider).restricted_to(cond_or_uncond), "unmerged"))
    assert difference(ours, expected) < 1e-4


@pytest.mark.parametrize("on", [(0.8, 0.0), (0.0, 0.8), (0.8, -0.5)])
def test_two_clones_of_one_model_in_that_guider_are_as_with_stock_patches(model, on):
    """They share their weights: ComfyUI runs both with the patches of the first."""
    sliders = [random_slider(model, seed) for seed in (1, 2)]
    by_stock, ours = (
        two_models(*(make(model, s, v) if v else model for s, v in zip(sliders, on, strict=True)))
        for make in (stock, lambda m, s, v: apply_sliders(m, Stack.of(s, v)))
    )
    assert difference(ours, by_stock) < 1e-4


def test_the_plain_sampler_is_a_plain_guider(model):
    acted = apply_sliders(model, Stack.of(random_slider(model)).restricted_to("uncond"))
    assert torch.equal(sample(acted, FAMILY), run(plain(acted)))


def test_a_gated_sweep_on_uncond_where_prompts_are_asked_apart(model):
    """Prompts of seven and of eight tokens are too unlike in length for one batch of ComfyUI's."""
    longer, asked = [[torch.cat([NEGATIVE[0][0], NEGATIVE[0][0][:, :1]], dim=1), {}]], []
    values = (-0.5, 0.0, 0.8)
    stack = Stack.of(random_slider(model), 1.0, Gate(0.4)).restricted_to("uncond")

    def spy(apply_model, args):
        asked.append(len(args["cond_or_uncond"]))
        return apply_model(args["input"], args["timestep"], **args["c"])

    def run_of(stack):
        acted = apply_sliders(model, stack)
        acted.set_model_unet_function_wrapper(spy)
        guider = comfy.samplers.CFGGuider(acted)
        guider.set_conds(POSITIVE, longer)
        guider.set_cfg(3.0)
        return run(guider, batch_size=stack.batch_size)

    batch = run_of(stack.swept(0, values))
    alone = [run_of(stack.scaled(value)) for value in values]
    assert set(asked) == {1}
    assert all(difference(batch[n, None], each) < 1e-4 for n, each in enumerate(alone))
    assert difference(alone[0], alone[1]) > 1e-3 < difference(alone[2], alone[1])
