"""Models whose weights are paged, and training on them."""

import comfy.model_management
import torch
from concept_sliders.tests.support.gradients import PROMPT
from concept_sliders.tests.support.tiny import FAMILIES, condition
from concept_sliders.training.concept import Concept
from concept_sliders.training.recipe import TextualRecipe
from concept_sliders.training.run import train_textual


class Buffer:
    """One buffer for all weights, as ComfyUI's for casting: every layer's weight overwrites the last one's.

    As in ComfyUI's paging the tensors handed out are each of its own making on that memory: autograd cannot see
    that they change.
    """

    def __init__(self, size):
        self.memory, self.fetched = torch.empty(size), 0

    def __call__(self, weight):
        self.fetched += 1
        self.memory.fill_(1e3)
        fetched = torch.empty(0).set_(self.memory.untyped_storage(), 0, weight.shape)
        return fetched.copy_(weight.detach())


def paged(model):
    """Let every layer of the model fetch its weight into one buffer, and its bias into another; the first of them."""
    comfy.model_management.load_models_gpu([model])  # which decides for every layer how it fetches
    largest = max(p.numel() for p in model.model.parameters())
    weights, biases = Buffer(largest), Buffer(largest)
    for module in model.model.modules():
        if hasattr(module, "comfy_cast_weights"):
            module.comfy_cast_weights, module.weight_function, module.bias_function = True, [weights], [biases]
    return weights


def trained(model, family, run_options=None, **settings):
    """Trains a slider for three steps and returns it."""
    settings = {
        "rank": 2,
        "steps": 3,
        "rollout_steps": 2,
        "samples_per_rollout": 2,
        "learning_rate": 1e-3,
        **settings,
    }
    recipe = TextualRecipe(concepts=(Concept(PROMPT, "old", "young", eta=4.0),), **settings)
    conditionings = {p: condition(family, seed) for seed, p in enumerate(recipe.prompts())}
    with torch.inference_mode():
        latents = torch.zeros(2, FAMILIES[family][2], 8, 8)
        return train_textual(model, conditionings, recipe, latents, "trained", run_options)
