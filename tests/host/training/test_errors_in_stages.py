"""ComfyUI's model is as it was, whatever stage of a training fails; and kinds of sliders in training."""

import comfy.model_management
import comfy.sd
import comfy.utils
import pytest
import torch
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.denoiser import Denoiser
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.sliders.formats.slider_files import load_slider, save_slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.tiny import difference
from concept_sliders.training import loop, resume
from concept_sliders.training import run as training_run
from concept_sliders.training.concept import Concept
from concept_sliders.training.loop import Training
from concept_sliders.training.previews import PreviewSampler
from concept_sliders.training.recipe import TextualRecipe
from concept_sliders.training.run import RunOptions, train_textual
from concept_sliders.training.textual_samples import TextualSamples
from concept_sliders.training.trainable_layers import TrainableLayers

import nodes

CONCEPT = Concept("portrait of a person", "very old person", "very young person", eta=2.0)
LATENTS = torch.zeros(1, 8, 8, 8)


class Injected(Exception):
    """An error that nobody expects."""


@pytest.fixture(scope="module")
def pocket():
    with torch.inference_mode():
        model, clip, *_ = load_pocket()
        prompts = (*CONCEPT.prompts(), "")
        return model, {p: clip.encode_from_tokens_scheduled(clip.tokenize(p)) for p in prompts}


def train(pocket, run_options=None, **settings):
    settings = {"rollout_steps": 2, "samples_per_rollout": 3, "steps": 4, "learning_rate": 2e-3, **settings}
    with torch.inference_mode():
        recipe = TextualRecipe(concepts=(CONCEPT,), **settings)
        return train_textual(pocket[0], pocket[1], recipe, LATENTS, "age", run_options)


STAGES = [
    (TrainableLayers, "__init__", 1),
    (TrainableLayers, "acting", 1),
    (TrainableLayers, "acting", 4),
    (TrainableLayers, "finished", 1),
    (TextualSamples, "__next__", 1),
    (TextualSamples, "_roll_out", 2),
    (Denoiser, "__call__", 1),  # in a rollout
    (Denoiser, "__call__", 3),  # in the first step
    (Denoiser, "conditions", 1),
    (Training, "_backward_part", 2),
    (loop, "is_broken", 1),  # between backward and the optimiser
    (PreviewSampler, "predict", 1),
    (resume, "write_state", 1),
    (training_run, "weights_hash", 1),
    (torch.Tensor, "backward", 2),
    (torch.optim.AdamW, "step", 1),
]


@pytest.mark.parametrize(("owner", "name", "at"), STAGES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_the_model_is_as_it_was_after_an_error_in(pocket, tmp_path, monkeypatch, owner, name, at):
    model, calls, real = pocket[0].model, [], getattr(owner, name)
    before = {n: (id(t), t.data_ptr(), t.is_inference(), t.clone()) for n, t in tensors(model)}

    def failing(*args, **kwargs):
        calls.append(name)
        if len(calls) == at:
            raise Injected(name)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)
    with pytest.raises(Injected):
        train(pocket, RunOptions(preview_every=1, checkpoints=tmp_path, checkpoint_every=2))
    for n, tensor in tensors(model):
        identity, pointer, inference, numbers = before[n]
        assert (id(tensor), tensor.data_ptr(), tensor.is_inference()) == (identity, pointer, inference), n
        assert torch.equal(tensor, numbers), n
    assert not any(module._forward_hooks or "forward" in vars(module) for module in model.modules())
    assert not comfy.model_management.in_training
    monkeypatch.undo()
    assert train(pocket).progress.steps == 4


def tensors(model):
    return [*model.named_parameters(), *model.named_buffers()]


def sampled(patcher, conditionings):
    prompt, empty = conditionings[CONCEPT.target], conditionings[""]
    with torch.inference_mode():
        latent = {"samples": LATENTS}
        return nodes.common_ksampler(patcher, 3, 3, 3.0, "euler", "simple", prompt, empty, latent)[0]["samples"]


@pytest.mark.parametrize(
    "settings", [{"full_rank": True}, {"alpha": 1.0}, {"convolutions": False}, {"pattern": "attn1"}]
)
def test_kinds_of_sliders_act_from_their_files_as_in_the_stock_loader(pocket, tmp_path, settings):
    slider = train(pocket, **settings).slider
    file = tmp_path / "slider.safetensors"
    save_slider(slider, file, torch.float32)
    again = load_slider(file)
    with torch.inference_mode():
        stock, _ = comfy.sd.load_lora_for_models(pocket[0], None, comfy.utils.load_torch_file(str(file)), 1.5, 0.0)
    ours = sampled(apply_sliders(pocket[0], Stack.of(again, 1.5)), pocket[1])
    assert difference(ours, sampled(stock, pocket[1])) < 1e-4
    assert difference(ours, sampled(pocket[0], pocket[1])) > 1e-4
    if "pattern" in settings:
        assert all("attn1" in name for name in slider.layers)
    if "full_rank" in settings:
        assert all("diff" in layer.parts for layer in slider.layers.values())


def test_full_rank_and_low_rank_start_from_the_bare_model(pocket):
    for settings in ({"full_rank": True}, {}):
        slider = train(pocket, steps=1, learning_rate=1e-12, **settings).slider
        acted = sampled(apply_sliders(pocket[0], Stack.of(slider, 1.0)), pocket[1])
        assert difference(acted, sampled(pocket[0], pocket[1])) < 1e-5


def test_a_pattern_that_no_layer_has_is_an_error(pocket):
    with pytest.raises(ValueError, match="The pattern 'nowhere' is in the path of none of the"):
        train(pocket, pattern="nowhere")
