"""Sliders on tiny models of the host's own classes, against the host's own weight patches."""

import comfy.lora
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.supported_models
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from concept_sliders.sliders.bank import weight_shape
from concept_sliders.sliders.files import load_slider, save_slider
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.runtime import acting_on, apply_sliders, layer_names, resolve
from concept_sliders.sliders.slider import LowRank, Slider
from concept_sliders.sliders.stack import Stack
from safetensors.torch import load_file

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "context_dim": 16,
    "legacy": False,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "dtype": torch.float32,
}
FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 8,
    "context_in_dim": 16,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
    "dtype": torch.float32,
}
FAMILIES = {
    "SD15": (comfy.supported_models.SD15, UNET, 4, 0),
    "SDXL": (
        comfy.supported_models.SDXL,
        # SDXL has heads of 64 channels
        {
            **UNET,
            "model_channels": 64,
            "use_linear_in_transformer": True,
            "num_classes": "sequential",
            "adm_in_channels": 2816,
        },
        4,
        1280,
    ),
    "Flux": (comfy.supported_models.Flux, FLUX, 16, 8),
}
STEPS = 6


def tiny_model(family: str, seed: int = 0) -> ModelPatcher:
    config_class, unet_config, _, _ = FAMILIES[family]
    model = config_class(dict(unet_config)).get_model({}, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.diffusion_model.parameters():
        spread = 0.7 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        offset = 1.0 if parameter.ndim == 1 else 0.0  # norms stay near 1
        parameter.data.normal_(0.0, spread, generator=generator).add_(offset)
    return ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def random_slider(model: ModelPatcher, seed: int = 1, names=None, rank: int = 2, size: float = 0.3) -> Slider:
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for path, name in (names or layer_names(model)).items():
        fresh = LowRank.fresh(weight_shape(model.model.get_submodule(path), name), rank, generator)
        layers[name] = LowRank(fresh.down, torch.empty_like(fresh.up).normal_(0.0, size, generator=generator))
    return Slider(f"random {seed}", layers)


def condition(family: str, seed: int):
    pooled = FAMILIES[family][3]
    generator = torch.Generator().manual_seed(seed)
    extra = {"pooled_output": torch.randn(1, pooled, generator=generator)} if pooled else {}
    return [[torch.randn(1, 7, 16, generator=generator), extra]]


def sample(
    model: ModelPatcher,
    family: str,
    rows: int = 1,
    sampler="euler",
    start=None,
    last=None,
    latent=None,
    noise=None,
):
    """A latent of the model after `STEPS` steps with CFG 3; every row has the same noise."""
    channels = FAMILIES[family][2]
    if latent is None:
        latent = torch.zeros(rows, channels, 8, 8)
    if noise is None:
        noise = torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(7)).repeat(
            rows, 1, 1, 1
        )
    with torch.inference_mode():
        return comfy.sample.sample(
            model,
            noise,
            STEPS,
            3.0,
            sampler,
            "normal",
            condition(family, 2),
            condition(family, 3),
            latent,
            start_step=start,
            last_step=last,
            disable_noise=start is not None,
            seed=5,
        ).clone()


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def traces(model: ModelPatcher) -> list[str]:
    return [
        n
        for n, m in model.model.named_modules()
        if m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m)
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strength", [1.0, -0.7])
def test_equals_the_stock_loader(family, strength, tmp_path):
    model = tiny_model(family)
    slider = random_slider(model)
    save_slider(slider, tmp_path / "s.safetensors", torch.float32)
    tensors = load_file(tmp_path / "s.safetensors")
    stock, _ = comfy.sd.load_lora_for_models(model, None, tensors, strength, 0.0)
    ours = apply_sliders(model, Stack.of(load_slider(tmp_path / "s.safetensors"), strength))
    bare, by_stock, by_us = (sample(m, family) for m in (model, stock, ours))
    assert difference(by_us, by_stock) < 1e-4
    assert difference(by_us, bare) > 1e-2
    assert traces(model) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_names_are_read_back_by_the_host(family):
    model = tiny_model(family)
    key_map = comfy.lora.model_lora_keys_unet(model.model, {})
    names = layer_names(model)
    assert len(set(names.values())) == len(names) > 10
    assert all(key_map[name] == f"{path}.weight" for path, name in names.items())


def test_unets_have_the_names_other_tools_read():
    names = layer_names(tiny_model("SD15"))
    assert names["diffusion_model.input_blocks.1.0.in_layers.2"] == "lora_unet_down_blocks_0_resnets_0_conv1"
    attention = names["diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"]
    assert attention == "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def test_parts_of_fused_layers_and_swapped_halves(tmp_path):
    model = tiny_model("Flux")
    generator = torch.Generator().manual_seed(0)
    outputs = {"transformer.norm_out.linear": 128}
    for block in ("transformer_blocks", "single_transformer_blocks"):
        outputs.update({f"transformer.{block}.0.attn.to_{part}": 64 for part in "qkv"})
    layers = {
        name: LowRank(torch.randn(2, 64, generator=generator), 0.1 * torch.randn(out, 2, generator=generator))
        for name, out in outputs.items()
    }
    slider = Slider("parts", layers)
    save_slider(slider, tmp_path / "s.safetensors", torch.float32)
    stock, _ = comfy.sd.load_lora_for_models(model, None, load_file(tmp_path / "s.safetensors"), 1.0, 0.0)
    ours = sample(apply_sliders(model, Stack.of(slider)), "Flux")
    assert difference(ours, sample(stock, "Flux")) < 1e-4
    assert difference(ours, sample(model, "Flux")) > 1e-2


def test_zero_changes_no_bit():
    model = tiny_model("SD15")
    slider = random_slider(model)
    bare = sample(model, "SD15")
    assert torch.equal(sample(apply_sliders(model, Stack()), "SD15"), bare)
    assert torch.equal(sample(apply_sliders(model, Stack.of(slider, 0.0)), "SD15"), bare)


def test_rows_are_the_single_runs():
    model = tiny_model("SD15")
    stack = Stack.of(random_slider(model, 1), 0.5) + Stack.of(random_slider(model, 2), 0.0)
    values = (-1.0, 0.0, 1.0)
    batch = sample(apply_sliders(model, stack.swept(1, values)), "SD15", rows=3)
    for row, value in enumerate(values):
        alone = sample(apply_sliders(model, stack.swept(1, (value,))), "SD15")
        assert difference(batch[row : row + 1], alone) < 1e-4


def test_rows_that_are_not_the_batch():
    model = tiny_model("SD15")
    swept = apply_sliders(model, Stack.of(random_slider(model)).swept(0, (0.0, 1.0)))
    with pytest.raises(ValueError, match="2 rows.*has 3"):
        sample(swept, "SD15", rows=3)
    assert traces(model) == []


def test_applying_twice_adds_up():
    model = tiny_model("SD15")
    one, two = Stack.of(random_slider(model, 1), 0.5), Stack.of(random_slider(model, 2), -0.8)
    twice = apply_sliders(apply_sliders(model, one), two)
    assert len(acting_on(twice).stack) == 2
    assert difference(sample(twice, "SD15"), sample(apply_sliders(model, one + two), "SD15")) < 1e-6
    doubled = apply_sliders(apply_sliders(model, one), one)
    assert difference(sample(doubled, "SD15"), sample(apply_sliders(model, one.scaled(2)), "SD15")) < 1e-4


def test_clones_do_not_disturb_each_other():
    model = tiny_model("SD15")
    bare = sample(model, "SD15")
    one = apply_sliders(model, Stack.of(random_slider(model, 1)))
    two = apply_sliders(model, Stack.of(random_slider(model, 2)))
    first_one, first_two = sample(one, "SD15"), sample(two, "SD15")
    assert difference(first_one, first_two) > 1e-2
    assert torch.equal(sample(one, "SD15"), first_one)
    assert torch.equal(sample(two.clone(), "SD15"), first_two)
    assert torch.equal(sample(model, "SD15"), bare)


def test_together_with_stock_patches(tmp_path):
    model = tiny_model("SD15")
    ours, theirs = random_slider(model, 1), random_slider(model, 2)
    save_slider(theirs, tmp_path / "t.safetensors", torch.float32)
    patched, _ = comfy.sd.load_lora_for_models(model, None, load_file(tmp_path / "t.safetensors"), 0.5, 0.0)
    both = apply_sliders(model, Stack.of(ours) + Stack.of(theirs, 0.5))
    assert difference(sample(apply_sliders(patched, Stack.of(ours)), "SD15"), sample(both, "SD15")) < 1e-4


def merged(model: ModelPatcher, family: str, slider: Slider) -> ModelPatcher:
    """A second model, its weights rewritten to W + up @ down."""
    copy = tiny_model(family)
    for path, changes in resolve(model, slider).layers.items():
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
    options = {"noise_sampler": noise_of_sigma} if name in ("dpmpp_2m_sde", "euler_ancestral", "lcm") else {}
    sampler = comfy.samplers.ksampler(name, options)
    positive, negative = condition("SD15", 2), condition("SD15", 3)
    with torch.inference_mode():
        return comfy.sample.sample_custom(
            model, noise, 3.0, sampler, sigmas, positive, negative, latent, seed=5
        ).clone()


@pytest.fixture
def run_of():
    """(sigmas, noise, empty latent) of one picture."""
    sigmas = comfy.samplers.calculate_sigmas(tiny_model("SD15").model.model_sampling, "normal", STEPS)
    return (
        sigmas,
        torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7)),
        torch.zeros(1, 4, 8, 8),
    )


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "heun", "dpmpp_2m_sde", "euler_ancestral"])
def test_gate_switches_on_exactly_its_step(name, run_of):
    """One gated run against one run that changes over to a merged model, sigma by sigma.

    Only so can samplers be compared that remember earlier steps or evaluate between steps.
    """
    model = tiny_model("SD15")
    slider = random_slider(model)
    other = merged(model, "SD15", slider)
    window = Gate(0.3, 0.7)
    sigma_at = model.model.model_sampling.percent_to_sigma
    sigma_start, sigma_end = sigma_at(window.start), sigma_at(window.end)
    seen = []

    def by_sigma(apply_model, args):
        inside = bool(sigma_end <= args["timestep"][0] <= sigma_start)
        seen.append(inside)
        run = other.model.apply_model if inside else apply_model
        return run(args["input"], args["timestep"], **args["c"])

    switching = model.clone()
    switching.set_model_unet_function_wrapper(by_sigma)
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
@pytest.mark.parametrize("start, end", [(0.0, 0.37), (0.41, 1.0), (0.2, 0.8), (0.0, 1.0)])
def test_window_is_that_of_conditioning_ranges(family, start, end):
    """On every step of every schedule, and on the borders themselves."""
    model = tiny_model(family)
    acting = acting_on(apply_sliders(model, Stack.of(random_slider(model), 1.0, Gate(start, end))))
    sampling, x = model.model.model_sampling, torch.zeros(1, 4, 8, 8)
    borders = [sampling.percent_to_sigma(p) for p in (start, end)]
    sigmas = [comfy.samplers.calculate_sigmas(sampling, name, 20) for name in comfy.samplers.SCHEDULER_NAMES]
    entry = {"timestep_start": borders[0], "timestep_end": borders[1], "model_conds": {}, "uuid": None}
    for sigma in torch.cat([*sigmas, torch.tensor(borders)]).unsqueeze(1):
        expected = comfy.samplers.get_area_and_mult(entry, x, sigma) is not None
        assert bool(acting.strengths(model.model, x, sigma, {"sigmas": sigma}).item()) == expected


def test_closed_gate_is_the_bare_model():
    model = tiny_model("SD15")
    stack = Stack.of(random_slider(model)).gated(Gate(0.0, 0.3)).gated(Gate(0.6, 1.0))
    assert torch.equal(sample(apply_sliders(model, stack), "SD15"), sample(model, "SD15"))


def test_ramp_follows_the_closed_form():
    model = tiny_model("SD15")
    acting = acting_on(apply_sliders(model, Stack.of(random_slider(model), 2.0, Gate(0.2, 1.0, 0.4))))
    for percent in (0.1, 0.2, 0.3, 0.5, 0.6, 0.9):
        sigma = torch.tensor([model.model.model_sampling.percent_to_sigma(percent)])
        found = acting.strengths(model.model, torch.zeros(1, 4, 8, 8), sigma, {"sigmas": sigma}).item()
        assert found == pytest.approx(2.0 * min(max((percent - 0.2) / 0.4, 0.0), 1.0), abs=1e-4)


def test_slider_of_another_family():
    slider = random_slider(tiny_model("Flux"))
    message = "None of the .* layers of slider 'random 1'.*diffusion_model.*lora_unet.*another family"
    with pytest.raises(ValueError, match=message):
        apply_sliders(tiny_model("SD15"), Stack.of(slider))


def test_slider_of_another_width():
    model = tiny_model("SD15")
    path, name = next(iter(layer_names(model).items()))
    with pytest.raises(ValueError, match=f"Layer {name}.*down .*up .*model's weight there is"):
        apply_sliders(model, Stack.of(Slider("wide", {name: LowRank(torch.zeros(2, 3), torch.zeros(5, 2))})))


def test_some_layers_unmatched_is_reported(caplog):
    model = tiny_model("SD15")
    whole = random_slider(model)
    odd = Slider("odd", {**whole.layers, "lora_unet_nowhere": LowRank(torch.zeros(2, 3), torch.zeros(5, 2))})
    match = resolve(model, odd)
    assert match.unmatched == ("lora_unet_nowhere",)
    assert match.matched == len(whole.layers)
    assert f"{match.matched} of its {match.total} layers" in caplog.text


def test_text_encoder_layers_alone_leave_the_model_alone():
    model = tiny_model("SD15")
    name = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    text_only = Slider("words", {name: LowRank(torch.ones(2, 3), torch.ones(5, 2))})
    assert torch.equal(sample(apply_sliders(model, Stack.of(text_only)), "SD15"), sample(model, "SD15"))


def test_exception_in_the_middle_leaves_no_trace():
    model = tiny_model("SD15")
    bare = sample(model, "SD15")
    calls = []

    def stop_in_the_middle(apply_model, args):
        calls.append(1)
        if len(calls) == 3:
            model.model.diffusion_model.out.register_forward_pre_hook(interrupt)
        return apply_model(args["input"], args["timestep"], **args["c"])

    def interrupt(module, args):
        module._forward_pre_hooks.clear()
        raise KeyboardInterrupt

    acted = apply_sliders(model, Stack.of(random_slider(model)))
    acted.set_model_unet_function_wrapper(stop_in_the_middle)
    with pytest.raises(KeyboardInterrupt):
        sample(acted, "SD15")
    assert len(calls) == 3
    assert traces(model) == []
    assert torch.equal(sample(model, "SD15"), bare)


def test_gradients_after_inference_mode():
    """A stack that has run under inference mode can be differentiated through afterwards."""
    model = tiny_model("SD15")
    acted = apply_sliders(model, Stack.of(random_slider(model)))
    sample(acted, "SD15")
    wrapper = acting_on(acted)
    context = torch.randn(1, 7, 16, requires_grad=True)
    options = {"wrappers": {"apply_model": {"concept_sliders": [wrapper]}}}
    model.model.apply_model(
        torch.randn(1, 4, 8, 8), torch.tensor([1.0]), c_crossattn=context, transformer_options=options
    ).square().mean().backward()
    assert context.grad.abs().sum() > 0
