"""Training on the model ComfyUI has loaded: what it learns, and that it leaves no trace."""

import comfy.model_management
import comfy.sd
import comfy.utils
import pytest
import torch
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.borrow import borrowed
from concept_sliders.comfy_host.denoiser import Denoiser
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.sliders.formats.slider_files import load_slider, save_slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.training.concept import Concept
from concept_sliders.training.objectives import textual_change, textual_target
from concept_sliders.training.recipe import TextualRecipe
from concept_sliders.training.run import RunOptions, train_textual

CONCEPT = Concept(
    "portrait of a person", "very old person", "very young person", ("with glasses", "without glasses"), eta=2.0
)
LATENTS = torch.zeros(2, 8, 16, 16)


@pytest.fixture(scope="module")
def pocket():
    """MODEL, CLIP and VAE, loaded in inference mode as nodes load them."""
    with torch.inference_mode():
        return load_pocket()[:3]


@pytest.fixture(scope="module")
def conditionings(pocket):
    with torch.inference_mode():
        clip = pocket[1]
        return {p: clip.encode_from_tokens_scheduled(clip.tokenize(p)) for p in (*CONCEPT.prompts(), "")}


def recipe(**changes):
    settings = {"steps": 4, "rollout_steps": 4, "samples_per_rollout": 4, "learning_rate": 2e-3, **changes}
    return TextualRecipe(concepts=(CONCEPT,), **settings)


def train(pocket, conditionings, run_options=None, **changes):
    with torch.inference_mode():
        return train_textual(pocket[0], conditionings, recipe(**changes), LATENTS, "age", run_options)


def state(model):
    """Every weight: the very objects, where they lie, and copies of their values."""
    return {
        name: (id(p), p.data_ptr(), p.is_inference(), p.detach().clone())
        for name, p in (*model.named_parameters(), *model.named_buffers())
    }


def assert_untouched(model, before):
    after = state(model)
    assert after.keys() == before.keys()
    for name, (identity, pointer, inference, values) in before.items():
        assert after[name][:3] == (identity, pointer, inference), name
        assert torch.equal(after[name][3], values), name
    assert not any(module._forward_hooks for module in model.modules())


def test_weights_are_the_same_objects_with_the_same_bits_after_success(pocket, conditionings):
    before = state(pocket[0].model)
    assert any(inference for _, _, inference, _ in before.values())
    trained = train(pocket, conditionings)
    assert trained.progress.steps == 4 and not trained.progress.stopped
    assert_untouched(pocket[0].model, before)


@pytest.mark.parametrize("failing", [1, 3])
def test_weights_are_untouched_after_an_error(pocket, conditionings, failing):
    before = state(pocket[0].model)

    def fail(progress, preview):
        if progress.steps == failing:
            raise MemoryError("no room")

    with pytest.raises(MemoryError):
        train(pocket, conditionings, RunOptions(progress=fail))
    assert_untouched(pocket[0].model, before)


def test_an_error_inside_the_model_leaves_no_trace(pocket, conditionings):
    before = state(pocket[0].model)
    broken = {**conditionings, "": [[torch.zeros(1, 40, 7), {"pooled_output": torch.zeros(1, 128)}]]}
    with pytest.raises(RuntimeError):
        train(pocket, broken)
    assert_untouched(pocket[0].model, before)


def test_cancelling_keeps_what_was_learned(pocket, conditionings):
    before, done = state(pocket[0].model), []
    run_options = RunOptions(
        should_stop=lambda: len(done) == 2, progress=lambda progress, preview: done.append(progress.steps)
    )
    trained = train(pocket, conditionings, run_options, steps=50)
    assert trained.progress.stopped and trained.progress.steps == 2
    assert trained.slider.info.recipe["steps_done"] == 2
    assert any(layer.up.any() for layer in trained.slider.layers.values())
    assert_untouched(pocket[0].model, before)


def test_a_cancel_that_comfyuis_layers_notice_keeps_what_was_learned(pocket, conditionings):
    before = state(pocket[0].model)

    def cancel_at_the_second(progress, preview):
        comfy.model_management.interrupt_current_processing(progress.steps == 2)

    trained = train(pocket, conditionings, RunOptions(progress=cancel_at_the_second), steps=50)
    assert trained.progress.stopped and trained.progress.steps == 2
    assert not comfy.model_management.processing_interrupted()
    assert_untouched(pocket[0].model, before)


def test_cancelling_before_the_first_step_gives_nothing(pocket, conditionings):
    assert train(pocket, conditionings, RunOptions(should_stop=lambda: True)) is None


def test_no_second_copy_of_a_weight_is_made(pocket, conditionings):
    model, seen = pocket[0].model, []
    pointers = {name: p.data_ptr() for name, p in model.named_parameters()}

    def watch(progress, preview):
        seen.append({name: p.data_ptr() for name, p in model.named_parameters()})

    train(pocket, conditionings, RunOptions(progress=watch), steps=1)
    assert seen == [pointers]


def test_the_same_seed_gives_the_same_slider_and_another_seed_another(pocket, conditionings):
    one, same, other = (train(pocket, conditionings, seed=seed).slider.layers for seed in (7, 7, 8))
    assert all(torch.equal(one[n].up, same[n].up) and torch.equal(one[n].down, same[n].down) for n in one)
    assert any(not torch.equal(one[n].up, other[n].up) for n in one)


def test_predictions_in_one_batch_equal_equation_8_asked_one_by_one(pocket, conditionings):
    x = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor(0.6)
    with borrowed(pocket[0]), torch.no_grad():
        denoiser = Denoiser(pocket[0], conditionings)
        alone = {p: denoiser(x, sigma, [p])[0] for p in CONCEPT.prompts()}
        more, less = zip(*CONCEPT.ends(), strict=True)
        together = denoiser(x, sigma, [CONCEPT.target, *more, *less])
    steps = [alone[m] - alone[n] for m, n in CONCEPT.ends()]
    written = alone[CONCEPT.target] + 2.0 * (steps[0] + steps[1]) / 2
    batched = textual_target(together[0], textual_change(together[1:3], together[3:]), 2.0)
    torch.testing.assert_close(batched, written, rtol=1e-4, atol=1e-4)


def test_the_prediction_is_the_noise_in_what_the_model_was_trained_for(pocket, conditionings):
    """Of v-prediction, asked without ComfyUI's sampling around it: x_0 = x / (1 + s^2) - v s / sqrt(1 + s^2)."""
    x = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    (context, options), *_ = conditionings[CONCEPT.target]
    with borrowed(pocket[0]), torch.no_grad():
        d = Denoiser(pocket[0], conditionings)(x, torch.tensor(0.5), [CONCEPT.target])[0]
        unet = pocket[0].model.diffusion_model
        timestep = pocket[0].model.model_sampling.timestep(torch.tensor([0.5])).float()
        given = {"context": context.clone(), "y": options["pooled_output"].clone()}
        v = unet(x / 1.25**0.5, timestep, **given)
    denoised = x / 1.25 - v * 0.5 / 1.25**0.5
    torch.testing.assert_close(d, (x - denoised) / 0.5, rtol=1e-3, atol=1e-4)


def test_training_brings_the_prediction_closer_to_its_target(pocket, conditionings):
    losses = train(pocket, conditionings, steps=40, rollout_steps=6, samples_per_rollout=6).progress.losses
    untrained = train(
        pocket, conditionings, steps=40, rollout_steps=6, samples_per_rollout=6, learning_rate=1e-9
    ).progress.losses
    assert sum(losses[-10:]) < 0.8 * sum(untrained[-10:])


def test_a_run_that_breaks_down_at_once_says_where(pocket, conditionings):
    before = state(pocket[0].model)
    with pytest.raises(FloatingPointError, match=r"step 2 of 60, sigma [\d.]+: the loss is"):
        train(pocket, conditionings, steps=60, learning_rate=1e30)
    assert_untouched(pocket[0].model, before)


def test_a_preview_shows_three_strengths(pocket, conditionings):
    previews = []
    run_options = RunOptions(progress=lambda progress, preview: previews.append(preview), preview_every=2)
    train(pocket, conditionings, run_options)
    assert previews[0] is None and previews[2] is None
    less, base, more = previews[1]
    assert base.shape == (8, 16, 16) and not torch.equal(less, base) and not torch.equal(more, base)


def test_a_trained_slider_gives_the_stock_loaders_image(pocket, conditionings, tmp_path):
    """Trained, saved, and read by the stock LoRA loader: the same latents as by our runtime."""
    model, _clip, _ = pocket
    slider = train(pocket, conditionings, steps=6).slider
    save_slider(slider, tmp_path / "age.safetensors", torch.float32)
    stock_file = comfy.utils.load_torch_file(str(tmp_path / "age.safetensors"), safe_load=True)
    with torch.inference_mode():
        stock, _ = comfy.sd.load_lora_for_models(model, None, stock_file, 1.5, 0.0)
        ours = apply_sliders(model, Stack.of(load_slider(tmp_path / "age.safetensors"), 1.5))
        images = [sampled(patcher, conditionings) for patcher in (model, stock, ours)]
    plain, by_stock, by_us = images
    assert (by_us - plain).abs().max() > 1e-3
    torch.testing.assert_close(by_us, by_stock, rtol=1e-3, atol=1e-3)


def sampled(patcher, conditionings):
    import nodes

    prompt, empty = conditionings[CONCEPT.target], conditionings[""]
    latent = {"samples": torch.zeros(1, 8, 16, 16)}
    return nodes.common_ksampler(patcher, 3, 4, 3.0, "euler", "simple", prompt, empty, latent)[0]["samples"]
