"""Gradients of a slider's layers on given samples."""

import torch
from concept_sliders.comfy_host.borrow import borrowed, for_autograd
from concept_sliders.comfy_host.denoiser import Denoiser
from concept_sliders.training.concept import Concept
from concept_sliders.training.loop import Training
from concept_sliders.training.recipe import TextualRecipe
from concept_sliders.training.samples import Sample
from concept_sliders.training.trainable_layers import TrainableLayers

PROMPT = "portrait of a person"

RECIPE = TextualRecipe(concepts=(Concept(PROMPT, "old person", "young person", eta=4.0),), rank=2, layers="all")


class Samples:
    """Always the same sample."""

    def __init__(self, batch_size, shape, device="cpu"):
        generator = torch.Generator().manual_seed(0)
        x, target = (torch.randn(batch_size, *shape, generator=generator).to(device) for _ in range(2))
        strengths = torch.tensor([[1.0], [-1.0]]).repeat(batch_size // 2, 1)
        self.sample = Sample(x, torch.tensor(0.6), target, strengths, PROMPT)

    def __next__(self):
        return self.sample

    def state(self):
        return {}

    def restore(self, state):
        pass


def gradients(model, conditionings, samples, prepare=None, recipe=RECIPE, shapes=None):
    """Returns the gradients of one training step, and the `Training` that took it."""
    with borrowed(model):
        layers = TrainableLayers(model, recipe, torch.Generator().manual_seed(1))
        for change in layers.by_name.values():  # at zero the down-projections would learn nothing yet
            torch.nn.init.constant_(change.up, 0.01)
        plain = {prompt: for_autograd(conditioning) for prompt, conditioning in conditionings.items()}
        training = Training(Denoiser(model, plain, shapes), layers, samples, recipe, torch.Generator())
        if prepare:
            prepare(training)
        training._backward(samples.sample)
        return [p.grad.clone() for p in layers.parameters() if p.grad is not None], training


def close(one, other):
    """Asserts that two lists of gradients differ by less than 1e-4 of the largest entry."""
    assert len(one) == len(other) > 0
    scale = max(float(g.abs().max()) for g in one)
    assert all(float((a - b).abs().max()) < 1e-4 * scale for a, b in zip(one, other, strict=True))
