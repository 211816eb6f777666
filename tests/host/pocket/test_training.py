"""Training of the pocket models: every stage runs from nothing, goes on bit for bit, and stores what loads."""

import argparse
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from comfy.sd import load_lora_for_models
from comfy.utils import load_torch_file
from concept_sliders.pocket.models.loading import load_pocket, weights_of
from concept_sliders.pocket.models.unet import TIMESTEPS, build_unet, noise_levels
from concept_sliders.pocket.train import STAGES, Maker
from concept_sliders.pocket.training import turbo, unet
from concept_sliders.pocket.training.run import Plan, fit
from concept_sliders.pocket.world import pool
from torch import nn

PLAN = Plan(steps=6, batch=4, rate=1e-2, warm_up=2, save=2)


def batch(rng: np.random.Generator, size: int):
    return (torch.from_numpy(rng.standard_normal((size, 3), np.float32)),)


def loss(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (model(x + 0.1 * torch.randn_like(x)) - x.sum(1, keepdim=True)).square().mean()


def layer() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.BatchNorm1d(1))


def test_a_run_that_was_interrupted_goes_on_bit_for_bit(tmp_path):
    straight = fit(layer(), batch, loss, PLAN, tmp_path / "straight.pt", seed=1)
    calls = iter(range(5))

    def interrupted(model, x):
        next(calls)
        return loss(model, x)

    with pytest.raises(StopIteration):
        fit(layer(), batch, interrupted, PLAN, tmp_path / "resumed.pt", seed=1)
    resumed = fit(layer(), batch, loss, PLAN, tmp_path / "resumed.pt", seed=1)
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
            self.sigmas = sigmas

        def forward(self, noisy, timesteps, ids):
            return noisy / sigmas[timesteps][:, None, None, None]  # alpha / sigma = 1 / level

    timesteps = torch.tensor([0, 500, 999])
    assert unet.v_loss(Knowing(), torch.zeros(3, 8, 4, 4), timesteps, None) < 1e-10


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The folder of a run of two steps a stage."""
    monkeypatch.setattr(pool, "SHARD", 64)
    monkeypatch.setattr(pool, "ProcessPoolExecutor", ThreadPoolExecutor)  # shares the smaller shard
    monkeypatch.setattr("concept_sliders.pocket.train.HELD_OUT", 64)
    options = argparse.Namespace(
        folder=tmp_path, weights=tmp_path / "weights", pool=tmp_path / "pool", seed=1, steps=2, drawings=64
    )
    for stage in STAGES:
        getattr(Maker(options), stage)()
    return tmp_path / "weights"


def test_every_stage_stores_weights_that_load(made):
    for part in ("vae", "text", "vision", "probe", "unet", "turbo"):
        assert all(value.isfinite().all() for value in weights_of(made, part).values())


def test_comfyuis_lora_loader_applies_the_students_lora_to_every_layer(made):
    with torch.inference_mode():
        model, clip, *_ = load_pocket(made)
        lora = load_torch_file(str(made / "turbo.safetensors"))
        patched, _ = load_lora_for_models(model, clip, lora, 1.0, 0.0)
    layers = [n for n, m in model.model.diffusion_model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert set(patched.patches) == {f"diffusion_model.{name}.weight" for name in layers}


def test_v_and_the_clean_latents_tell_each_other():
    x, v = torch.randn(2, 3, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.1, 1.0, 9.0])
    torch.testing.assert_close(turbo.v_of(x, turbo.denoised(x, v, sigma), sigma), v, atol=1e-4, rtol=1e-4)


def test_sigmas_between_timesteps_are_comfyuis():
    model = build_unet()
    timesteps = torch.tensor([0.0, 12.5, 749.25, 999.0])
    torch.testing.assert_close(turbo.sigma_at(timesteps), model.model_sampling.sigma(timesteps))


def test_the_student_is_right_where_one_step_lands_as_the_teachers_several_do():
    """A teacher that knows the clean latents walks along a straight line, so the student's v is the true one."""
    clean = torch.randn(4, 8, 4, 4, generator=torch.Generator().manual_seed(0))

    class Knowing(nn.Module):
        def forward(self, inputs, timesteps, ids):
            sigma = turbo.sigma_at(timesteps)
            x = inputs * (1 + sigma.square()).sqrt()[:, None, None, None]
            return turbo.v_of(x, clean.repeat(len(x) // 4, 1, 1, 1), sigma)

    trained = SimpleNamespace(teacher=Knowing(), student=Knowing())
    ids = torch.zeros(4, 1)
    assert turbo.distillation_loss(trained, clean, torch.arange(4), ids, ids) < 1e-4
