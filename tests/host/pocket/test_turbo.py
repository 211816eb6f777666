"""The few-step student that comes with the pack: a LoRA of ComfyUI's, four steps, no guidance."""

import folder_paths
import pytest
import torch
from concept_sliders.nodes import model_folders  # noqa: F401  (registers the pack's folders)
from concept_sliders.pocket.measuring.figures import gradient_energy
from concept_sliders.pocket.measuring.probe import load_probe
from concept_sliders.pocket.measuring.sampling import FEW_STEPS, Sampling, sampled
from concept_sliders.pocket.models.loading import FOLDER, LORAS, TURBO, load_pocket, with_turbo

import nodes

PEOPLE = 8
PROMPTS = {
    "age": ("portrait of a very young person", "portrait of a very old person"),
    "smile": ("portrait of a frowning person", "portrait of a laughing person"),
    "sky": ("portrait of a person, night sky", "portrait of a person, noon sky"),
}


@pytest.fixture(scope="module")
def turbo():
    with torch.inference_mode():
        model, clip, vae, _ = load_pocket()
        return with_turbo(model), clip, vae


@pytest.mark.parametrize("attribute", PROMPTS)
def test_it_follows_opposing_prompts_in_four_steps(turbo, attribute):
    ends = [load_probe().read(sampled(turbo, [prompt] * PEOPLE, FEW_STEPS)) for prompt in PROMPTS[attribute]]
    low, high = (end[attribute].mean() for end in ends)
    assert high - low > 0.65
    assert all((end["spoiled"] > 0.5).float().mean() < 0.2 for end in ends)


def test_its_images_are_as_sharp_as_those_of_the_guided_model(turbo):
    with torch.inference_mode():
        parent = load_pocket()[:3]
    prompts = ["portrait of a person"] * PEOPLE
    energy = [
        gradient_energy(images)
        for images in (sampled(turbo, prompts, FEW_STEPS), sampled(parent, prompts, Sampling()))
    ]
    assert energy[0] == pytest.approx(energy[1], rel=0.2)


def test_comfyuis_own_node_loads_it_by_its_name(turbo):
    assert folder_paths.get_full_path("loras", TURBO) == str(FOLDER / LORAS / TURBO)
    with torch.inference_mode():
        model, clip, vae, _ = load_pocket()
        (loaded,) = nodes.LoraLoaderModelOnly().load_lora_model_only(model, TURBO, 1.0)
        images = [sampled((each, clip, vae), ["portrait of a person"] * 2, FEW_STEPS) for each in (loaded, turbo[0])]
    assert torch.equal(*images)
