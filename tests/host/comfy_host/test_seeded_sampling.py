"""A batch whose entries have seeds of their own: each is ComfyUI's image of its seed, with every sampler."""

import comfy.sample
import pytest
import torch
from concept_sliders.comfy_host.seeded_sampling import (
    SAMPLERS,
    SamplerSettings,
    _noise_by_seed,
    first_entry,
    sample_seeds,
)
from concept_sliders.comfy_host.text_encoders import encode_prompts
from concept_sliders.tests.support.family_checks import Subject


@pytest.fixture(autouse=True)
def as_a_node():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def prompts(pocket):
    with torch.inference_mode():
        return list(encode_prompts(pocket[1], ("portrait of a person", "")).values())


def test_each_entry_is_what_ksampler_makes_of_its_seed_alone(pocket, prompts):
    model, latent = pocket[0], torch.zeros(1, 8, 8, 8)
    settings, seeds = SamplerSettings(4, 3.0, "euler", "simple"), (7, 2**63, 7)
    found = sample_seeds(model, *prompts, latent, seeds, settings)
    for row, seed in zip(found, seeds):
        noise = comfy.sample.prepare_noise(latent, seed)
        alone = comfy.sample.sample(
            *(model, noise, 4, 3.0, "euler", "simple", *prompts, latent), disable_pbar=True, seed=seed
        )
        torch.testing.assert_close(row, alone[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_entries_of_one_seed_are_one_image_with_every_sampler(pocket, prompts, sampler):
    settings = SamplerSettings(3, 1.0, sampler, "simple")
    one, other, same = sample_seeds(pocket[0], *prompts, torch.zeros(1, 8, 4, 4), (5, 6, 5), settings)
    assert torch.isfinite(one).all()
    torch.testing.assert_close(one, same, rtol=1e-4, atol=1e-4)
    assert float((one - other).abs().mean()) > 0.01


def test_noise_within_sampling_is_not_the_initial_noise_again():
    later = _noise_by_seed((4, 8, 8), (7, 9, 7))(torch.tensor(1.0), torch.tensor(0.5))
    initial = [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (7, 9)]
    assert torch.equal(later[0], later[2]) and not torch.equal(later[0], later[1])
    assert not any(torch.equal(first, noise) for first in initial for noise in later)


def test_each_part_of_a_video_with_sound_has_the_noise_of_its_seed(tmp_path):
    subject = Subject("LTX 2", tmp_path)
    prompt, settings = subject.family.conditioning(0), SamplerSettings(2, 1.0, "euler_ancestral", "simple")
    latent = first_entry(subject.family.empty(2))
    found = sample_seeds(subject.model, prompt, prompt, latent, (5, 6, 5), settings)
    for part, empty in zip(found.unbind(), latent.unbind(), strict=True):
        one, other, same = part
        assert one.shape == empty.shape[1:] and float((one - other).abs().mean()) > 0.01
        torch.testing.assert_close(one, same, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(ValueError, match=r"steps must lie between 1 and 10000; got 0"):
        SamplerSettings(steps=0)
    with pytest.raises(ValueError, match=r"sampler must be one of euler, .*; got 'eular'"):
        SamplerSettings(sampler="eular")
