"""Trajectories: the same however they are batched, kept whole, and gone on with from what is kept."""

import pytest
import torch
from concept_sliders.discovery.trajectories import Sampling, Trajectories, clean_latents, kept, noise_of, sampled


class Toy:
    """d = (x - denoised) / sigma of a model whose clean image is a constant for each prompt."""

    device = torch.device("cpu")
    CLEAN = {"a face": 2.0, "": -1.0}

    def __init__(self):
        self.asked = []

    def predict(self, x, sigma, prompts, layers=None, strengths=None):
        self.asked.append((len(x), tuple(prompts)))
        return torch.stack([(x - self.CLEAN[prompt]) / sigma for prompt in prompts])

    def sigmas(self, steps, scheduler="simple"):
        return torch.linspace(10, 0, steps + 1)

    def scale_noise(self, sigma, noise, latents=None):
        return sigma * noise


def embed(clean):
    return clean.flatten(1)[:, :3]


def test_each_step_has_the_clean_image_predicted_at_the_prompt_and_guidance_moves_the_latents_alone():
    found = sampled(Toy(), embed, "a face", (1, 2, 2), range(3), Sampling(steps=4, guidance=3.0))
    assert found.x.shape == (3, 4, 1, 2, 2) and found.embeddings.shape == (3, 4, 3) and len(found) == 3
    assert found.sigmas.tolist() == [10, 7.5, 5, 2.5]
    torch.testing.assert_close(found.embeddings, torch.full((3, 4, 3), 2.0))
    # guided, the clean image is -1 + 3 (2 + 1) = 8, towards which each step goes a share of the way
    torch.testing.assert_close(found.x[:, 1], found.x[:, 0] * 0.75 + 8 * 0.25)


def test_without_guidance_the_empty_prompt_is_not_asked_for():
    toy = Toy()
    sampled(toy, embed, "a face", (1, 2, 2), range(2), Sampling(steps=2))
    assert toy.asked == [(2, ("a face",))] * 2


def test_trajectories_do_not_depend_on_how_they_are_batched():
    def made(at_once):
        make = lambda numbers: sampled(Toy(), embed, "a face", (1, 2, 2), numbers, Sampling(steps=3))  # noqa: E731
        return Trajectories.joined(list(kept(None, make, 5, at_once)))

    torch.testing.assert_close(made(5).x, made(2).x)


def test_no_two_of_any_seeds_begin_with_the_same_noise():
    drawn = [noise_of((1, 2, 2), seed, number) for seed in range(3) for number in range(3)]
    assert not any(torch.equal(one, other) for at, one in enumerate(drawn) for other in drawn[:at])
    assert torch.equal(drawn[4], noise_of((1, 2, 2), 1, 1))


def test_what_is_kept_is_not_sampled_again_and_more_cost_the_difference(tmp_path):
    toy = Toy()

    def run(count):
        make = lambda numbers: sampled(toy, embed, "a face", (1, 2, 2), numbers, Sampling(steps=2))  # noqa: E731
        return Trajectories.joined(list(kept(tmp_path, make, count, 2)))

    first = run(4)
    asked = len(toy.asked)
    again = run(4)
    assert len(toy.asked) == asked and again.prompt == "a face"
    torch.testing.assert_close(again.x, first.x, atol=1e-2, rtol=1e-3)  # half precision on disk
    assert torch.equal(again.embeddings, first.embeddings) and torch.equal(again.sigmas, first.sigmas)
    assert len(run(6)) == 6 and len(toy.asked) == asked + 2


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "000000-000002.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00garbage")
    with pytest.raises(ValueError, match=r"samples in .*000000-000002.* cannot be read"):
        list(kept(tmp_path, lambda numbers: pytest.fail("sampled"), 2, 2))


def test_clean_latents_undo_the_linear_form():
    x, clean, sigma = torch.randn(2, 3), torch.randn(2, 3), torch.tensor(1.5)
    torch.testing.assert_close(clean_latents(x, sigma, (x - clean) / sigma), clean)
