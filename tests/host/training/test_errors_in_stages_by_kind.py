"""ComfyUI's models are as they were after errors in stages that only some runs have, and such runs work again."""

import comfy.model_management
import comfy.sd
import pytest
import torch
from concept_sliders.comfy_host.borrow import Loan
from concept_sliders.comfy_host.denoiser import Denoiser
from concept_sliders.comfy_host.text_encoders import TextEncoder
from concept_sliders.nodes import run_progress
from concept_sliders.nodes.training import TrainSlider, TrainTextEncoderSlider, TrainVisualSlider
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.training import loop
from concept_sliders.training import run as training_run
from concept_sliders.training.concept import Concept
from concept_sliders.training.early_stop import EarlyStop
from concept_sliders.training.loop import Training
from concept_sliders.training.pairs.image_sets import pairs_from_batches
from concept_sliders.training.recipe import GRADIENT_CHECKPOINTING
from concept_sliders.training.text_encoder_samples import EncoderSamples
from concept_sliders.training.visual_samples import VisualSamples

CONCEPT = Concept("portrait of a person", "very old person", "very young person", eta=2.0)


class Injected(Exception):
    """An error that nobody expects."""


@pytest.fixture(scope="module")
def pocket():
    with torch.inference_mode():
        return load_pocket()[:3]


def textual(pocket, **settings):
    latent = {"samples": torch.zeros(2, 8, 8, 8)}
    settings = {"rollout_steps": 2, "steps": 21, "rank": 1, "patience": 9, **settings}
    return TrainSlider.execute(*pocket[:2], (CONCEPT,), latent, "age", **settings)


def visual(pocket, method="ADDifT"):
    pairs = pairs_from_batches(*(torch.full((1, 64, 64, 3), shade) for shade in (0.2, 0.8)))
    return TrainVisualSlider.execute(*pocket, pairs, "shade", method=method, steps=3, rank=1)


def encoder(pocket):
    return TrainTextEncoderSlider.execute(pocket[1], (CONCEPT,), "age", steps=3, rank=1)


def short_of_memory(pocket):
    """A run that finds room for one image only; it makes do, which is the stage."""
    unet = pocket[0].model.diffusion_model

    def full(module, args):
        if len(args[0]) > 1 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("no room")

    handle = unet.register_forward_pre_hook(full)
    try:
        return textual(pocket)
    finally:
        handle.remove()


def twice(pocket):
    return textual(pocket, memory=GRADIENT_CHECKPOINTING)


def with_images(pocket):
    """Of as many steps as a run with previews has at least."""
    return textual(pocket, vae=pocket[2], patience=0, steps=100)


STAGES = [
    (textual, EarlyStop, "effect", 1),
    (textual, Loan, "take", 1),
    (textual, Training, "_take_snapshot", 3),
    (with_images, comfy.sd.VAE, "decode", 1),
    (with_images, run_progress, "draw_strip", 1),
    (with_images, Loan, "_load", 2),  # after the preview
    (twice, loop, "checkpointed", 2),
    (short_of_memory, Training, "_use_less_memory", 1),
    (short_of_memory, Training, "_backward_part", 2),  # the first in parts
    (visual, Denoiser, "predict", 1),  # of the teacher
    (visual, VisualSamples, "__next__", 2),
    (visual, comfy.sd.VAE, "encode", 2),
    (encoder, TextEncoder, "parts", 2),
    (encoder, TextEncoder, "__call__", 2),
    (encoder, EncoderSamples, "__next__", 2),
    (encoder, training_run, "weights_hash", 1),
]


def tensors(pocket):
    parts = {"model": pocket[0].model, "clip": pocket[1].cond_stage_model, "vae": pocket[2].first_stage_model}
    return {
        f"{part} {name}": tensor
        for part, model in parts.items()
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }


@pytest.mark.parametrize(
    ("run", "owner", "name", "at"), STAGES, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_the_models_are_as_they_were_after_an_error_in(pocket, monkeypatch, run, owner, name, at):
    calls, real = [], getattr(owner, name)
    before = {n: (id(t), t.data_ptr(), t.is_inference(), t.clone()) for n, t in tensors(pocket).items()}

    def failing(*args, **kwargs):
        calls.append(name)
        if len(calls) == at:
            raise Injected(name)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)
    with torch.inference_mode(), pytest.raises(Injected):
        run(pocket)
    for n, tensor in tensors(pocket).items():
        identity, pointer, inference, numbers = before[n]
        assert (id(tensor), tensor.data_ptr(), tensor.is_inference()) == (identity, pointer, inference), n
        assert torch.equal(tensor, numbers), n
    for part in (pocket[0].model, pocket[1].cond_stage_model):
        assert not any(module._forward_hooks or "forward" in vars(module) for module in part.modules())
    assert not comfy.model_management.in_training
    monkeypatch.undo()
    with torch.inference_mode():
        assert (encoder if run is encoder else visual)(pocket).args[0].sliders
