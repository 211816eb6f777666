"""Training of the pocket models: every stage runs from nothing, goes on bit for bit, and stores what loads."""

import argparse
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from comfy.samplers import CFGGuider, calculate_sigmas, sampler_object
from comfy.sd import load_lora_for_models
from comfy.utils import load_torch_file
from concept_sliders.pocket.measuring.sampling import conditioning
from concept_sliders.pocket.models.autoencoder import Autoencoder
from concept_sliders.pocket.models.loading import FOLDER, LORAS, TURBO, load_pocket, weights_of
from concept_sliders.pocket.models.unet import TIMESTEPS, build_unet, noise_levels
from concept_sliders.pocket.train import STAGES, Maker
from concept_sliders.pocket.training import run, turbo, unet
from concept_sliders.pocket.training.group_norm import with_row_group_norm
from concept_sliders.pocket.training.muon import orthogonal
from concept_sliders.pocket.training.places import place_weights
from concept_sliders.pocket.training.run import Plan, fit
from concept_sliders.pocket.world import pool
from concept_sliders.pocket.world.captions import caption_of_any_length
from concept_sliders.pocket.world.portrait import portraits
from torch import nn

PLAN = Plan(steps=6, batch=4, rate=1e-2, warm_up=2, save=2)


def batch(rng: np.random.Generator, size: int):
    return (torch.from_numpy(rng.standard_normal((size, 3), np.float32)),)


def loss(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (model(x + 0.1 * torch.randn_like(x)) - x.sum(1, keepdim=True)).square().mean()


def layer() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.BatchNorm1d(1))


@pytest.mark.parametrize("muon", [False, True])
def test_a_run_that_was_interrupted_goes_on_bit_for_bit(tmp_path, muon, monkeypatch):
    monkeypatch.setattr(run, "NARROW", 0)  # for a layer of one channel
    plan = replace(PLAN, muon=muon)
    straight = fit(layer(), batch, loss, plan, tmp_path / "straight.pt", seed=1)
    calls = iter(range(5))

    def interrupted(model, x):
        next(calls)
        return loss(model, x)

    with pytest.raises(StopIteration):
        fit(layer(), batch, interrupted, plan, tmp_path / "resumed.pt", seed=1)
    resumed = fit(layer(), batch, loss, plan, tmp_path / "resumed.pt", seed=1)
    for one, other in zip(straight.state_dict().values(), resumed.state_dict().values()):
        assert torch.equal(one, other)


def test_the_learning_rate_rises_and_falls_to_zero():
    plan = Plan(steps=100, batch=1, rate=2.0, warm_up=10)
    rates = [plan.learning_rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == 2.0 and rates[55] == pytest.approx(1.0) and 0 < rates[-1] < 1e-2


def test_noise_levels_rise_between_their_ends():
    sigmas = noise_levels()
    assert len(sigmas) == TIMESTEPS and (sigmas.diff() > 0).all()
    assert sigmas[0].item() == pytest.approx(0.012, rel=1e-4) and sigmas[-1].item() == pytest.approx(20, rel=1e-4)


def test_the_loss_is_zero_for_a_network_that_knows_v():
    """For x_0 = 0 the noisy latents are sigma noise, so v = alpha noise = x_t alpha / sigma."""
    sigmas = noise_levels()

    class Knowing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.sigmas, self.places = sigmas, torch.ones(1, 1, 1, 1)

        def forward(self, noisy, timesteps, ids):
            return noisy / sigmas[timesteps][:, None, None, None]  # alpha / sigma = 1 / level

    timesteps = torch.tensor([0, 500, 999])
    assert unet.v_loss(Knowing(), torch.zeros(3, 8, 4, 4), timesteps, None) < 1e-10


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_group_norm_by_rows_is_group_norm(layout):
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(4, 8).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = (2 * torch.randn(3, 8, 5, 4, dtype=torch.float64) + 0.5).contiguous(memory_format=layout).requires_grad_()
    asked = torch.randn_like(x)

    def answers():
        result = norm(x)
        return result, *torch.autograd.grad(result, (x, norm.weight, norm.bias), asked)

    expected = answers()
    for value, reference in zip(with_row_group_norm(norm) and answers(), expected):
        torch.testing.assert_close(value, reference, rtol=1e-5, atol=1e-5)


def test_places_that_tell_of_attributes_weigh_more():
    vae = Autoencoder()
    vae.load_state_dict(weights_of(FOLDER, "vae"))
    weights = place_weights(vae, seed=1, people=6)
    assert weights.shape == (1, 1, 16, 16) and weights.mean().item() == pytest.approx(1)
    assert weights.min() >= 0.5 and weights[..., 4:12, 4:12].mean() > 1.5 * weights[..., :4, :].mean()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a run of two steps a stage."""
    tmp_path = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as monkeypatch:
        return _made(tmp_path, monkeypatch)


def _made(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "SHARD", 64)
    monkeypatch.setattr(pool, "ProcessPoolExecutor", ThreadPoolExecutor)  # shares the smaller shard
    monkeypatch.setattr("concept_sliders.pocket.train.HELD_OUT", 64)
    options = argparse.Namespace(
        folder=tmp_path,
        weights=tmp_path / "weights",
        pool=tmp_path / "pool",
        seed=1,
        steps=2,
        drawings=64,
        go_on=False,
    )
    for stage in STAGES:
        getattr(Maker(options), stage)()
    return tmp_path / "weights"


def test_every_stage_stores_weights_that_load(made):
    for part in ("vae", "text", "vision", "probe", "unet", f"{LORAS}/pocket_turbo"):
        assert all(value.isfinite().all() for value in weights_of(made, part).values())


def test_comfyuis_lora_loader_applies_the_students_lora_to_every_layer(made):
    with torch.inference_mode():
        model, clip, *_ = load_pocket(made)
        lora = load_torch_file(str(made / LORAS / TURBO))
        patched, _ = load_lora_for_models(model, clip, lora, 1.0, 0.0)
    layers = [n for n, m in model.model.diffusion_model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert set(patched.patches) == {f"diffusion_model.{name}.weight" for name in layers}


def test_the_student_begins_with_a_stored_lora_and_anew_where_it_has_none():
    text, model = weights_of(FOLDER, "text"), weights_of(FOLDER, "unet")
    trained, again = (turbo.Distilled(unet.build_student(text, 1, model)) for _ in range(2))
    with torch.no_grad():
        for parameter in trained.changes.parameters():
            parameter.normal_(0, 0.1)
    lora = {name: value for name, value in trained.lora().items() if ".middle_block." not in name}
    again.begin_with(lora)
    told = again.lora()
    assert lora and all(torch.equal(told[name], value) for name, value in lora.items())
    others = [value for name, value in told.items() if name not in lora and name.endswith("lora_up.weight")]
    assert others and not any(value.any() for value in others)


def test_blocks_that_stored_weights_lack_add_nothing_at_first():
    text, model = weights_of(FOLDER, "text"), weights_of(FOLDER, "unet")
    smaller = {name: value for name, value in model.items() if not name.startswith("output_blocks.1.1.")}
    assert len(smaller) < len(model)
    grown, silent = unet.build_student(text, 1, smaller), unet.build_student(text, 1, model)
    silent.unet.output_blocks[1][1].forward = lambda x, *_, **__: x
    given = torch.randn(2, 8, 16, 16), torch.tensor([100, 900]), torch.ones(2, 40, dtype=torch.long)
    with torch.no_grad():
        assert torch.allclose(grown(*given), silent(*given), atol=1e-5)
    with pytest.raises(ValueError, match=r"output_blocks\.9"):
        unet.build_student(text, 1, model | {"output_blocks.9.1.proj_out.weight": torch.zeros(1)})


def test_v_and_the_clean_latents_tell_each_other():
    x, v = torch.randn(2, 3, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.1, 1.0, 9.0])
    torch.testing.assert_close(turbo.v_of(x, turbo.denoised(x, v, sigma), sigma), v, atol=1e-4, rtol=1e-4)


def test_sigmas_between_timesteps_are_comfyuis():
    model = build_unet()
    timesteps = torch.tensor([0.0, 12.5, 749.25, 999.0])
    torch.testing.assert_close(turbo.sigma_at(timesteps), model.model_sampling.sigma(timesteps))


class Knowing(nn.Module):
    """Knows the clean latents, (4, 8, 16, 16), whatever it is asked."""

    def __init__(self, clean: torch.Tensor):
        super().__init__()
        self.clean = clean

    def forward(self, inputs, timesteps, ids):
        sigma = turbo.sigma_at(timesteps)
        x = inputs * (1 + sigma.square()).sqrt()[:, None, None, None]
        return turbo.v_of(x, self.clean.repeat(len(x) // 4, 1, 1, 1), sigma)


def test_the_student_is_right_where_one_step_lands_as_the_teachers_several_do():
    """A teacher that knows the clean latents walks along a straight line, so the student's v is the true one."""
    clean = torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    latents, ids = turbo.walk_for(Knowing(clean), portraits(4, seed=0), (1, 0), 4)
    torch.testing.assert_close(latents[:, -1].float(), clean, atol=2e-3, rtol=2e-3)
    trained, walked = SimpleNamespace(student=Knowing(clean)), latents.float()
    part = torch.arange(4)
    here, there = walked[part, part], walked[part, part + 1]
    assert turbo.distillation_loss(trained, here, there, part, ids) < 1e-4
    assert turbo.distillation_loss(trained, here, there + 1, part, ids) > 1e-2


def test_walks_are_those_of_comfyuis_sampler(monkeypatch):
    """Sixteen steps of Euler over `sgm_uniform`, guided; in single precision, also where training has less."""
    monkeypatch.setattr(turbo, "bfloat16", nullcontext)
    with torch.inference_mode():
        model, clip, *_ = load_pocket()
    teacher = unet.build_student(weights_of(FOLDER, "text"), 0, weights_of(FOLDER, "unet"))
    people = portraits(3, seed=0)
    walked, _ = turbo.walk_for(teacher, people, (1, 0), 2)
    rng = np.random.default_rng((1, 0))
    texts = [caption_of_any_length(people[i], rng) for i in rng.integers(len(people), size=2)]
    noise = torch.from_numpy(rng.standard_normal((2, 8, 16, 16), np.float32))
    with torch.inference_mode():
        sigmas = calculate_sigmas(model.get_model_object("model_sampling"), "sgm_uniform", 16)
        guider = CFGGuider(model)
        guider.set_conds(conditioning(clip, texts), conditioning(clip, [""]))
        guider.set_cfg(turbo.CFG)
        made = guider.sample(noise, torch.zeros_like(noise), sampler_object("euler"), sigmas)
    torch.testing.assert_close(walked[:, -1].float(), made, atol=0.02, rtol=0.02)


def test_walks_that_are_kept_are_not_walked_again(tmp_path):
    clean = torch.zeros(4, 8, 16, 16)
    people = portraits(4, seed=0)
    first = turbo.kept_walks(Knowing(clean), people, tmp_path, 1, 4)
    again = turbo.kept_walks(None, people, tmp_path, 1, 4)  # nobody to walk
    assert torch.equal(first.latents, again.latents) and torch.equal(first.ids, again.ids)


def test_an_orthogonal_matrix_has_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((48, 64), (96, 32)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)).double())
        assert values.min() > 0.6 and values.max() < 1.25


def test_muon_moves_every_direction_alike(tmp_path):
    """One step, of a gradient that is ten times as large along one row as along the others."""
    torch.manual_seed(0)
    network = nn.Linear(64, 24)
    begun = network.weight.detach().clone()

    def inputs(rng, size):
        return (torch.from_numpy(rng.standard_normal((size, 64), np.float32)),)

    def mostly_one_row(model, x):
        return (model(x) * torch.tensor([10**0.5] + [1.0] * 23)).square().mean()

    plan = replace(PLAN, batch=256, steps=1, weight_decay=0.0, muon=True)
    fit(network, inputs, mostly_one_row, plan, tmp_path / "run.pt", seed=1)
    moved = torch.linalg.svdvals(network.weight.detach() - begun)
    size = plan.learning_rate(0) * 0.2 * 64**0.5  # so that the root mean square is AdamW's 0.2 learning rates
    assert 0.6 * size < moved.min() and moved.max() < 1.25 * size
