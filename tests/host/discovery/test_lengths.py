"""How far directions go: sampling runs are ComfyUI's own, and scales follow what comes of them."""

import comfy.sample
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.borrow import borrowed, for_autograd
from concept_sliders.comfy_host.decoder import Decoder
from concept_sliders.comfy_host.denoiser import Denoiser
from concept_sliders.comfy_host.image_encoder import ImageEncoder
from concept_sliders.comfy_host.joint_encoders import image_embedding
from concept_sliders.comfy_host.text_encoders import encode_prompts
from concept_sliders.discovery.lengths import Lengths, SamplingRuns, sampled_lengths
from concept_sliders.discovery.lessons import decoded_embedding
from concept_sliders.discovery.recipe import DiscoveryRecipe
from concept_sliders.discovery.trajectories import Sampling, noise_of
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.training.trainable_layers import TrainableLayers

PROMPT, SHAPE, STEPS, GUIDANCE = "portrait of a person", (8, 16, 16), 3, 3.0
DIRECTIONS = torch.eye(4)[:2]
GUESS = Lengths(torch.tensor([2.0, 1.0]), torch.zeros(2, 4), False)


class Straight:
    """Runs in which a slider's change is in proportion to its strength."""

    def __init__(self, changes):
        self.changes = changes

    def change(self, index, strength):
        if self.changes[index] is None:
            raise InterruptProcessingException()
        return strength * torch.tensor(self.changes[index])


def measured(changes, targets, told=lambda done, total: None):
    return sampled_lengths(lambda: Straight(changes), GUESS, DIRECTIONS, torch.tensor(targets), told)


def test_strength_1_goes_as_far_along_the_direction_as_it_should():
    told = []
    found = measured([[0.5, 0.2, 0.0, 0.0], [0.0, -0.4, 0.0, 0.1]], [0.8, 0.3], lambda *counts: told.append(counts))
    assert found.sampled and told == [(1, 2), (2, 2)]
    assert found.scales.tolist() == pytest.approx([1.6, 0.75])  # the second goes the wrong way, and is left so
    assert found.changes[0].tolist() == pytest.approx([0.8, 0.32, 0, 0])
    assert found.changes[1].tolist() == pytest.approx([0, -0.3, 0, 0.075])


def test_one_that_hardly_goes_its_own_way_is_not_stretched_until_it_does():
    found = measured([[0.01, 0.5, 0.0, 0.0], [0.0, 9.0, 0.0, 0.0]], [0.8, 0.3])
    assert found.scales.tolist() == pytest.approx([2.0 * 1.5, 1.0 / 4])


def test_a_cancel_leaves_the_guess():
    assert measured([[0.5, 0.0, 0.0, 0.0], None], [0.8, 0.3]) is GUESS


def test_a_run_with_one_slider_on_is_what_comfyui_samples_with_it():
    with torch.inference_mode():
        model, clip, vae, vision = load_pocket()
        encoded = encode_prompts(clip, (PROMPT, ""))
        noise = torch.stack([noise_of(SHAPE, 0, number) for number in range(2)])
        recipe, generator = DiscoveryRecipe(prompts=(PROMPT,)), torch.Generator().manual_seed(0)
        decoder, encoder = Decoder(model, vae), ImageEncoder(vision)
        with borrowed(model, others=[decoder.patcher, vision.patcher]):
            denoiser = Denoiser(model, {prompt: for_autograd(each) for prompt, each in encoded.items()})
            layers = TrainableLayers(model, recipe, generator, count=2)
            with torch.no_grad():
                for change in layers.by_name.values():
                    change.up.copy_(0.3 * torch.randn(change.up.shape, generator=generator))
            phi = decoded_embedding(decoder, encoder)
            runs = SamplingRuns(denoiser, layers, phi, [PROMPT], noise, Sampling(STEPS, GUIDANCE))
            change, slider = runs.change(1, 0.7), Slider("second", layers.finished(1))
        embed = image_embedding(vision)

        def embedded(stack):
            given = (
                apply_sliders(model, stack),
                noise,
                STEPS,
                GUIDANCE,
                "euler",
                "simple",
                encoded[PROMPT],
                encoded[""],
            )
            return embed(vae.decode(comfy.sample.sample(*given, torch.zeros_like(noise), disable_pbar=True)))

        expected = (embedded(Stack.of(slider, 0.7)) - embedded(Stack())).mean(0)
    assert expected.norm() > 0.05
    torch.testing.assert_close(change, expected, rtol=0.02, atol=5e-3)
