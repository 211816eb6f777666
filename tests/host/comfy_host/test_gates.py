"""Gates against sampling in parts: the bare model for some sigmas, the changed one for the rest."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.lora
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.supported_models
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from concept_sliders.comfy_host.acting_stack import acting_on
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.batch_entries import Evaluation
from concept_sliders.comfy_host.match import match_slider
from concept_sliders.comfy_host.mode_choice import MODES
from concept_sliders.comfy_host.model_state import Run, state_of
from concept_sliders.sliders.gate import Gate, percent_of
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.tiny import STEPS, condition, difference, random_slider, sample, tiny_model, traces


def merged(model: ModelPatcher, family: str, slider: Slider) -> ModelPatcher:
    """A second model, its weights rewritten to W + up @ down."""
    copy = tiny_model(family)
    for path, changes in match_slider(model, slider).layers.items():
        weight = copy.model.get_submodule(path).weight
        for change in changes:
            weight.data += (change.up.flatten(1) @ change.down.flatten(1)).reshape(weight.shape)
    return copy


def noise_of_sigma(sigma, sigma_next) -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(int(float(sigma_next) * 1e4)))


def sample_custom(
    model: ModelPatcher, name: str, sigmas: torch.Tensor, noise: torch.Tensor, latent: torch.Tensor
) -> torch.Tensor:
    """A run over these sigmas, with noise within it that depends on sigma alone."""
    sampler = comfy.samplers.sampler_object(name)
    if "noise_sampler" in inspect.signature(getattr(sampler, "sampler_function", int)).parameters:
        sampler.extra_options = {**sampler.extra_options, "noise_sampler": noise_of_sigma}
    positive, negative = condition("SD15", 2), condition("SD15", 3)
    with torch.inference_mode():
        return comfy.sample.sample_custom(
            model, noise, 3.0, sampler, sigmas, positive, negative, latent, seed=5
        ).clone()


@pytest.fixture
def run_of():
    """(sigmas, noise, empty latent) of one image."""
    sigmas = comfy.samplers.calculate_sigmas(tiny_model("SD15").model.model_sampling, "normal", STEPS)
    return (
        sigmas,
        torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7)),
        torch.zeros(1, 4, 8, 8),
    )


def changing_over(model: ModelPatcher, slider: Slider, window: Gate) -> tuple[ModelPatcher, list[bool]]:
    """The model, changing over to a merged one within the gate, sigma by sigma; and whether each evaluation did."""
    other, sigma_at, seen = merged(model, "SD15", slider), model.model.model_sampling.percent_to_sigma, []
    sigma_start, sigma_end = sigma_at(window.start), sigma_at(window.end)

    def by_sigma(apply_model, args):
        seen.append(bool(sigma_end < args["timestep"][0] <= sigma_start))
        run = other.model.apply_model if seen[-1] else apply_model
        return run(args["input"], args["timestep"], **args["c"])

    switching = model.clone()
    switching.set_model_unet_function_wrapper(by_sigma)
    return switching, seen


@pytest.mark.parametrize("name", comfy.samplers.SAMPLER_NAMES)
def test_gate_switches_on_exactly_its_step(name, run_of):
    """One gated run against one run that changes over to a merged model, sigma by sigma.

    Only so can samplers be compared that remember earlier steps or evaluate between steps.
    """
    model = tiny_model("SD15")
    slider = random_slider(model)
    window = Gate(0.2, 0.8)
    switching, seen = changing_over(model, slider, window)
    gated = sample_custom(apply_sliders(model, Stack.of(slider, 1.0, window)), name, *run_of)
    assert difference(gated, sample_custom(switching, name, *run_of)) < 1e-4
    assert any(seen) and not all(seen)
    assert difference(gated, sample_custom(model, name, *run_of)) > 1e-3
    assert traces(model) == []


@pytest.mark.parametrize("name", ["euler", "lcm", "euler_ancestral"])
@pytest.mark.parametrize("bare_steps", [1, 2, 5])
def test_gate_equals_split_sampling(name, bare_steps, run_of):
    """Two samplers in a row: the bare model for some steps, and the sliders for the rest."""
    model = tiny_model("SD15")
    slider = random_slider(model)
    sigmas, noise, empty = run_of
    half = sample_custom(model, name, sigmas[: bare_steps + 1], noise, empty)
    with_slider = apply_sliders(model, Stack.of(slider))
    split = sample_custom(with_slider, name, sigmas[bare_steps:], torch.zeros_like(noise), half)
    around = sigmas[bare_steps - 1 : bare_steps + 1]
    percents = [1.0 - model.model.model_sampling.timestep(sigma).item() / 999.0 for sigma in around]
    gated = apply_sliders(model, Stack.of(slider, 1.0, Gate(sum(percents) / 2)))
    assert difference(sample_custom(gated, name, *run_of), split) < 1e-4
    assert difference(split, sample_custom(with_slider, name, *run_of)) > 1e-4


@pytest.mark.parametrize("family", ["SD15", "Flux"])
@pytest.mark.parametrize(("start", "end"), [(0.0, 0.37), (0.41, 1.0), (0.2, 0.8), (0.0, 1.0)])
def test_window_is_that_of_conditioning_ranges_but_for_the_lower_border(family, start, end):
    """On every step of every schedule, and on the borders themselves."""
    model = tiny_model(family)
    acting = acting_on(apply_sliders(model, Stack.of(random_slider(model), 1.0, Gate(start, end))))
    sampling, x = model.model.model_sampling, torch.zeros(1, 4, 8, 8)
    borders = [sampling.percent_to_sigma(p) for p in (start, end)]
    sigmas = [comfy.samplers.calculate_sigmas(sampling, name, 20) for name in comfy.samplers.SCHEDULER_NAMES]
    entry = {"timestep_start": borders[0], "timestep_end": borders[1], "model_conds": {}, "uuid": None}
    for sigma in torch.cat([*sigmas, torch.tensor(borders)]).unsqueeze(1):
        expected = comfy.samplers.get_area_and_mult(entry, x, sigma) is not None
        expected = expected and (end == 1.0 or float(sigma) != torch.tensor(borders[1]))
        assert bool(acting.strengths(Evaluation(model.model, x, sigma, {"sigmas": sigma}, Run())).item()) == expected


@contextmanager
def strengths_of(acted: ModelPatcher) -> Iterator[list[torch.Tensor]]:
    """The strengths of each evaluation, (batch entries, sliders)."""
    acting, found = acting_on(acted), []
    real = acting.strengths
    acting.strengths = lambda evaluation: found.append(real(evaluation)) or found[-1]  # type: ignore[method-assign]
    yield found


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2", "dpmpp_2s_ancestral"])
@pytest.mark.parametrize("family", ["SD15", "Flux"])
def test_of_two_gates_that_meet_one_acts_in_every_evaluation(family, sampler):
    """Each border on a step's own sigma. Samplers of second order also evaluate between the steps."""
    model, steps = tiny_model(family), 8
    sampling = model.model.model_sampling
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", steps)
    slider, sigma_at = random_slider(model), Run().percent_to_sigma(sampling, sigmas.dtype)
    borders = [percent_of(float(sigma), sigma_at) for sigma in sigmas[:-1]]
    firsts = []  # how many evaluations the first of the two had
    for border in (border for border in borders if 0.0 < border < 1.0):
        acted = apply_sliders(model, Stack.of(slider, 1.0, Gate(0.0, border)) + Stack.of(slider, 1.0, Gate(border)))
        with strengths_of(acted) as found:
            sample(acted, family, sampler=sampler, steps=steps)
        assert all(float(each.sum()) == 1.0 for each in found)
        firsts.append(sum(bool(each[0, 0]) for each in found))
    assert firsts == sorted(firsts)
    assert len(set(firsts)) > 4


def test_closed_gate_is_the_bare_model():
    model = tiny_model("SD15")
    stack = Stack.of(random_slider(model)).gated(Gate(0.0, 0.3)).gated(Gate(0.6, 1.0))
    assert torch.equal(sample(apply_sliders(model, stack), "SD15"), sample(model, "SD15"))


def test_ramp_follows_the_closed_form():
    model = tiny_model("SD15")
    acting = acting_on(apply_sliders(model, Stack.of(random_slider(model), 2.0, Gate(0.2, 1.0, 0.4))))
    for percent in (0.1, 0.2, 0.3, 0.5, 0.6, 0.9):
        sigma = torch.tensor([model.model.model_sampling.percent_to_sigma(percent)])
        found = acting.strengths(
            Evaluation(model.model, torch.zeros(1, 4, 8, 8), sigma, {"sigmas": sigma}, Run())
        ).item()
        assert found == pytest.approx(2.0 * min(max((percent - 0.2) / 0.4, 0.0), 1.0), abs=1e-4)


@pytest.mark.parametrize("strength", [1.0, -0.8])
def test_a_gate_by_hand_with_its_ramps(strength, run_of):
    """Every evaluation against weights merged by hand at its own strength: rising, full, falling, and outside."""
    model, seen = tiny_model("SD15"), []
    slider, window = random_slider(model), Gate(0.1, 0.9, 0.3)
    by_hand = merged(model, "SD15", slider)
    whole = {name: p.clone() for name, p in by_hand.model.named_parameters()}
    own = dict(tiny_model("SD15").model.named_parameters())

    def check(apply_model, args):
        sigma = float(args["timestep"][0])
        percent = 1.0 - model.model.model_sampling.timestep(args["timestep"][0]).item() / 999.0
        inside = window.start <= percent <= window.end
        rise, fall = (percent - window.start) / window.ramp, (window.end - percent) / window.ramp
        factor = min(1.0, rise, fall) if inside else 0.0
        for name, p in by_hand.model.named_parameters():
            p.data.copy_(torch.lerp(own[name], whole[name], strength * factor))
        given = apply_model(args["input"], args["timestep"], **args["c"])
        expected = by_hand.model.apply_model(args["input"], args["timestep"], c_crossattn=args["c"]["c_crossattn"])
        seen.append((sigma, factor))
        # ComfyUI's percents are those of 1000 steps: that much of a strength is between two of them
        assert difference(given, expected) < 2e-3
        return given

    acted = apply_sliders(model, Stack.of(slider, strength, window))
    acted.set_model_unet_function_wrapper(check)
    sigmas = comfy.samplers.calculate_sigmas(model.model.model_sampling, "normal", 16)
    sample_custom(acted, "euler", sigmas, *run_of[1:])
    factors = [factor for _, factor in seen]
    assert factors[0] == 0.0
    assert 1.0 in factors
    top = factors.index(1.0)
    assert 0.0 < factors[top - 1] < 1.0
    assert any(0.0 < factor < 1.0 for factor in factors[top:])


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m_sde", "uni_pc", "lcm"])
def test_gates_switch_in_both_modes(name, mode, run_of):
    """A sampler of each sort: one evaluation a step, several, with a memory, with a corrector, with noise."""
    model = tiny_model("SD15")
    slider, window = random_slider(model), Gate(0.2, 0.8)
    switching, seen = changing_over(model, slider, window)
    gated = sample_custom(apply_sliders(model, Stack.of(slider, 1.0, window), mode), name, *run_of)
    assert difference(gated, sample_custom(switching, name, *run_of)) < 1e-4
    assert any(seen) and not all(seen)
    assert (state_of(model.model).merged.uses > 0) == (mode == "merged")
