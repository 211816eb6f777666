"""Auditions against predictions combined by hand, and against guidance, of which they are a generalisation."""

import gc

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import BasicGuider, DualCFGGuider, DualModelGuider
from comfy_extras.nodes_perpneg import PerpNegGuider
from concept_sliders.comfy_host import audition as module
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.audition import Contrast, audition
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.tiny import STEPS, condition, difference, random_slider, sample, tiny_model, traces

POSITIVE, NEGATIVE = 2, 3  # seeds of the prompts that `sample` uses
MORE, LESS = (4, 6), (5, 7)  # and of a concept's ends with two phrases to preserve
SAMPLERS = ("euler", "dpmpp_2m", "dpmpp_sde", "euler_ancestral_cfg_pp", "lcm", "uni_pc")
KINDS = (
    "SD 1 inpainting",
    "SDXL refiner",
    "Stable Cascade C",
    "SD3",
    "Flux",
    "Qwen-Image",
    "Wan 2.1 image to video",
    "Lumina 2",
)


def contrast(family="SD15", more=MORE, less=LESS, eta=0.5) -> Contrast:
    return Contrast(tuple(condition(family, s) for s in more), tuple(condition(family, s) for s in less), eta)


def as_guidance(family="SD15", eta=1.0) -> Contrast:
    """The contrast between the run's own prompts: an audition of it is more guidance."""
    return contrast(family, (POSITIVE,), (NEGATIVE,), eta)


def whole_run(model, positive, negative, cfg, empty, noise, sampler="euler", sigmas=None, **options):
    sigmas = (
        comfy.samplers.calculate_sigmas(model.model.model_sampling, "normal", STEPS) if sigmas is None else sigmas
    )
    chosen = comfy.samplers.sampler_object(sampler)
    with torch.inference_mode():
        return comfy.sample.sample_custom(
            model, noise, cfg, chosen, sigmas, positive, negative, empty, seed=5, **options
        ).clone()


def one_step(model, family, seed, cfg=1.0, negative=NEGATIVE):
    """What the model makes of pure noise in a single step: its denoised latent."""
    shape = {"SD15": (1, 4, 8, 8), "SDXL": (1, 4, 8, 8), "Flux": (1, 16, 8, 8)}[family]
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    sigmas = torch.tensor([float(model.model.model_sampling.percent_to_sigma(0.3)), 0.0])
    positive = condition(family, seed) if isinstance(seed, int) else seed
    return whole_run(model, positive, condition(family, negative), cfg, torch.zeros(shape), noise, sigmas=sigmas)


def counted(model):
    """A clone that writes down sigma and the number of batch entries of every pass."""
    clone, passes = model.clone(), []

    def note(apply_model, args):
        passes.append((float(args["timestep"][0]), len(args["input"])))
        return apply_model(args["input"], args["timestep"], **args["c"])

    clone.set_model_unet_function_wrapper(note)
    return clone, passes


@pytest.mark.parametrize("family", ["SD15", "SDXL", "Flux"])
def test_a_step_is_the_sum_of_separate_predictions(family):
    model, strength, eta = tiny_model(family), -1.5, 0.5
    more, less = (sum(one_step(model, family, seed) for seed in seeds) / 2 for seeds in (MORE, LESS))
    expected = one_step(model, family, POSITIVE, 3.0) + strength * eta * (more - less)
    heard = audition(model, [contrast(family, eta=eta)], strength)
    assert difference(one_step(heard, family, POSITIVE, 3.0), expected) < 1e-5
    assert difference(one_step(model, family, POSITIVE, 3.0), expected) > 1e-3


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_with_the_prompts_of_the_run_it_is_guidance(sampler):
    """c + s (p - n) added to n + g (p - n): the bare model at guidance g + s, whatever the sampler."""
    model = tiny_model("SD15")
    shape, noise = (2, 4, 8, 8), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    prompts = condition("SD15", POSITIVE), condition("SD15", NEGATIVE)
    heard = whole_run(audition(model, [as_guidance()], 2.0), *prompts, 3.0, torch.zeros(shape), noise, sampler)
    assert difference(heard, whole_run(model, *prompts, 5.0, torch.zeros(shape), noise, sampler)) < 1e-3
    assert difference(heard, whole_run(model, *prompts, 3.0, torch.zeros(shape), noise, sampler)) > 1e-2


@pytest.mark.parametrize("name", KINDS)
def test_families_of_every_kind(name):
    family = FAMILIES[name]
    model, (positive, negative) = family.build(), (family.conditioning(seed) for seed in (POSITIVE, NEGATIVE))
    negative[0][1]["prompt_type"] = "positive"  # SDXL's refiner adds another score of beauty to negative prompts
    heard = audition(model, [Contrast((positive,), (negative,), 1.0)], 2.0)
    runs = [
        whole_run(m, positive, negative, cfg, family.empty(), family.noise())
        for m, cfg in ((heard, 1.0), (model, 3.0), (model, 1.0))
    ]
    assert difference(runs[0], runs[1]) < 1e-3
    assert difference(runs[0], runs[2]) > 1e-4


def test_gate_and_ramp_are_those_of_sliders():
    model, gate = tiny_model("SD15"), Gate(0.2, 0.8, 0.3)
    sigma_at = model.model.model_sampling.percent_to_sigma

    def guidance(args):
        scale = 3.0 + 2.0 * gate.factor_at(float(args["sigma"][0]), sigma_at)
        return args["uncond"] + scale * (args["cond"] - args["uncond"])

    changing = model.clone()
    changing.set_model_sampler_cfg_function(guidance)
    heard = sample(audition(model, [as_guidance()], 2.0, gate), "SD15")
    assert difference(heard, sample(changing, "SD15")) < 1e-4
    assert difference(heard, sample(model, "SD15")) > 1e-3


def test_outside_the_gate_there_are_no_passes():
    model = tiny_model("SD15")
    bare, bare_passes = counted(model)
    heard, passes = counted(audition(model, [contrast()], 1.0, Gate(0.3, 0.7)))
    sample(bare, "SD15"), sample(heard, "SD15")
    start, end = (model.model.model_sampling.percent_to_sigma(p) for p in (0.3, 0.7))
    inside = sum(end <= sigma <= start for sigma, _ in bare_passes)
    assert 0 < inside < STEPS
    assert (
        sum(batch_size for _, batch_size in passes)
        == sum(batch_size for _, batch_size in bare_passes) + 2 * len(MORE) * inside
    )
    assert len(passes) == len(bare_passes) + inside  # each time in one batch


@pytest.mark.parametrize(("strength", "gate"), [(0.0, Gate()), (1.0, Gate(0.0, 1e-4)), (1.0, Gate(0.9999, 1.0))])
def test_off_it_is_the_bare_model_to_the_bit(strength, gate):
    model = tiny_model("SD15")
    heard, passes = counted(audition(model, [contrast()], strength, gate))
    bare, bare_passes = counted(model)
    window = {"start": 1, "last": STEPS - 1, "noise": torch.ones(1, 4, 8, 8)}
    assert torch.equal(sample(heard, "SD15", **window), sample(bare, "SD15", **window))
    assert passes == bare_passes


def test_two_of_them_add_up_and_clones_keep_them():
    model = tiny_model("SD15")
    one, other = contrast(), contrast(more=(8,), less=(9,), eta=0.25)
    bare = one_step(model, "SD15", POSITIVE, 3.0)
    changes = [one_step(audition(model, [c]), "SD15", POSITIVE, 3.0) - bare for c in (one, other)]
    both = audition(audition(model, [one]).clone(), [other]).clone()
    assert difference(one_step(both, "SD15", POSITIVE, 3.0), bare + changes[0] + changes[1]) < 1e-5
    together = audition(model, [one, other])
    assert difference(one_step(together, "SD15", POSITIVE, 3.0), bare + changes[0] + changes[1]) < 1e-5
    assert torch.equal(one_step(model, "SD15", POSITIVE, 3.0), bare)


@pytest.mark.parametrize("cond_or_uncond", ["both", "cond"])
@pytest.mark.parametrize("first", ["sliders", "audition"])
def test_sliders_act_in_its_predictions_as_in_a_positive_prompt(cond_or_uncond, first):
    model = tiny_model("SD15")
    stack = Stack.of(random_slider(model)).restricted_to(cond_or_uncond)
    with_slider = apply_sliders(model, stack)
    change = sum(one_step(with_slider, "SD15", s) for s in MORE) - sum(one_step(with_slider, "SD15", s) for s in LESS)
    expected = one_step(with_slider, "SD15", POSITIVE, 3.0) + 0.5 * change / 2
    steps = [lambda m: apply_sliders(m, stack), lambda m: audition(m, [contrast()])]
    for step in steps if first == "sliders" else reversed(steps):
        model = step(model)
    assert difference(one_step(model, "SD15", POSITIVE, 3.0), expected) < 1e-5


def test_a_sweep_of_sliders_stays_a_sweep():
    model = tiny_model("SD15")
    swept = Stack.of(random_slider(model)).swept(0, (-1.0, 1.0))
    both = sample(audition(apply_sliders(model, swept), [contrast()]), "SD15", batch_size=2)
    for entry, value in enumerate((-1.0, 1.0)):
        alone = apply_sliders(model, Stack.of(random_slider(model), value))
        assert difference(both[entry], sample(audition(alone, [contrast()]), "SD15")[0]) < 1e-4


def _guiders(model):
    positive, negative, third = (condition("SD15", seed) for seed in (POSITIVE, NEGATIVE, 11))
    return {
        "basic": BasicGuider.execute(model, positive),
        "dual": DualCFGGuider.execute(model, positive, third, negative, 3.0, 2.0, "regular"),
        "dual, nested": DualCFGGuider.execute(model, positive, third, negative, 3.0, 2.0, "nested"),
        "perpendicular": PerpNegGuider.execute(model, positive, negative, third, 3.0, 1.0),
        "two models": DualModelGuider.execute(model, positive, 3.0, model, negative),
        "two models, no guidance": DualModelGuider.execute(model, positive, 1.0),
    }


@pytest.mark.parametrize("name", _guiders(tiny_model("SD15")))
def test_every_guider_of_comfyui(name):
    """The same change in one step, however the guider comes to its sum."""
    model = tiny_model("SD15")
    change = one_step(audition(model, [contrast()]), "SD15", POSITIVE) - one_step(model, "SD15", POSITIVE)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    sigmas = torch.tensor([float(model.model.model_sampling.percent_to_sigma(0.3)), 0.0])
    with torch.inference_mode():
        bare, heard = (
            _guiders(m)[name][0].sample(
                noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas
            )
            for m in (model, audition(model, [contrast()]))
        )
    assert difference(heard - bare, change) < 1e-3


def test_settings_of_the_runs_prompt_are_taken_over_and_its_region_is_not():
    model, family = tiny_model("Flux"), "Flux"
    region = {"guidance": 9.0, "area": (4, 4, 0, 0), "start_percent": 0.1, "strength": 0.5}

    def told(seed, extra):
        ((words, about),) = condition(family, seed)
        return [[words, {**about, **extra}]]

    more, less = (
        sum(one_step(model, family, told(s, {"guidance": 9.0})) for s in seeds) / 2 for seeds in (MORE, LESS)
    )
    bare = one_step(model, family, told(POSITIVE, region))
    heard = one_step(audition(model, [contrast(family)]), family, told(POSITIVE, region))
    assert difference(heard, bare + 0.5 * (more - less)) < 1e-5


def test_inside_a_mask_only():
    model = tiny_model("SD15")
    latent, noise = torch.ones(1, 4, 8, 8), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1.0
    prompts = condition("SD15", POSITIVE), condition("SD15", NEGATIVE)
    heard = whole_run(audition(model, [as_guidance()], 2.0), *prompts, 3.0, latent, noise, noise_mask=mask)
    assert difference(heard, whole_run(model, *prompts, 5.0, latent, noise, noise_mask=mask)) < 1e-4
    assert difference(heard[..., :4], latent[..., :4]) < 1e-5


def test_an_error_in_the_middle_leaves_nothing():
    model = tiny_model("SD15")
    before = sample(model, "SD15")
    heard = audition(model, [contrast()])
    options, expected = repr(heard.model_options), sample(heard, "SD15")

    def break_off(step, *_):
        if step == 2:
            raise RuntimeError("cancelled")

    noise = torch.randn(1, 4, 8, 8)
    with pytest.raises(RuntimeError, match="cancelled"):
        whole_run(
            heard, condition("SD15", 2), condition("SD15", 3), 3.0, torch.zeros(1, 4, 8, 8), noise, callback=break_off
        )
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is module._Run]
    assert repr(heard.model_options) == options and traces(model) == []
    assert torch.equal(sample(heard, "SD15"), expected) and torch.equal(sample(model, "SD15"), before)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="finite number, got nan"):
        audition(tiny_model("SD15"), [contrast()], float("nan"))
    with pytest.raises(ValueError, match="got 2 and 1"):
        contrast(less=(5,))
