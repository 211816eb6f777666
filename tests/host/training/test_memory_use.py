"""What a training run does without: a second copy of the model, and the text encoder."""

import gc
import weakref

import comfy.model_management
import torch
from concept_sliders.bench._live import Live, peak_memory
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.tests.support.tiny import FAMILIES, condition
from concept_sliders.tests.support.typed_models import typed_model
from concept_sliders.training.concept import Concept
from concept_sliders.training.recipe import GRADIENT_CHECKPOINTING, TextualRecipe
from concept_sliders.training.run import RunOptions, train_textual

CONCEPT = Concept("portrait of a person", "very old person", "very young person", eta=2.0)
CPU = torch.device("cpu")


def pocket():
    """(MODEL, CLIP, the conditionings of the recipe's prompts)."""
    with torch.inference_mode():
        model, clip, *_ = load_pocket()
        prompts = (*CONCEPT.prompts(), "")
        return model, clip, {p: clip.encode_from_tokens_scheduled(clip.tokenize(p)) for p in prompts}


def train(model, conditionings, run_options=None, latents=(1, 8, 8, 8), **settings):
    settings = {"steps": 2, "rank": 1, "rollout_steps": 2, "samples_per_rollout": 2, **settings}
    with torch.inference_mode():
        recipe = TextualRecipe(concepts=(CONCEPT,), **settings)
        return train_textual(model, conditionings, recipe, torch.zeros(latents), "age", run_options)


def bytes_of(model):
    return sum(p.numel() * p.element_size() for p in model.model.parameters())


def test_the_memory_that_is_followed_is_what_is_alive():
    with Live() as live:
        kept = torch.ones(1000)
        view = kept[10:] + 0
        assert live.now == 4000 + 3960
        x = torch.ones(10, requires_grad=True)
        y = (x * kept[:10]).exp()
        held = live.now
        del kept, view
        assert live.now == held - 3960  # autograd still has the first
        y.sum().backward()
        del y
    assert live.peak >= held


def test_no_second_copy_of_the_model_is_there_at_any_time():
    """Neither whole nor in parts: all that a run holds, activations and optimiser with it, is far less."""
    model, _, conditionings = pocket()
    with peak_memory(CPU) as peak:
        train(model, conditionings, memory=GRADIENT_CHECKPOINTING)
    assert 0 < peak.bytes < 0.5 * bytes_of(model)


def test_weights_in_eight_bits_are_not_there_in_more():
    """What ComfyUI casts as it goes would be four times the model, were it kept for backward."""
    family = "SDXL"
    model = typed_model(family, torch.float8_e4m3fn, torch.float32)
    conditionings = {p: condition(family, n) for n, p in enumerate((*CONCEPT.prompts(), ""))}
    with peak_memory(CPU) as peak:
        train(model, conditionings, latents=(1, 4, 4, 4), memory=GRADIENT_CHECKPOINTING)
    assert 0 < peak.bytes < 2 * bytes_of(model)
    assert FAMILIES[family][2] == 4


def test_training_goes_without_the_text_encoder_once_prompts_are_encoded():
    """It is not loaded again, and need not even be there."""
    model, clip, conditionings = pocket()
    patcher = clip.patcher
    comfy.model_management.free_memory(1e30, CPU)

    def loaded():
        return [each.model for each in comfy.model_management.current_loaded_models]

    assert patcher not in loaded()
    seen = []
    train(model, conditionings, RunOptions(progress=lambda *_: seen.append(loaded())))
    assert len(seen) == 2 and all(model in now and patcher not in now for now in seen)

    seen.clear()
    encoder = weakref.ref(clip.cond_stage_model)
    del clip, patcher
    gc.collect()
    assert encoder() is None
    assert train(model, conditionings).progress.steps == 2
