"""Previews of a slider while it learns: real VAEs, videos, their share of the time, and what is told of the run."""

import comfy.model_management
import comfy.utils
import pytest
import torch
from concept_sliders.comfy_host.borrow import borrowed
from concept_sliders.comfy_host.preview_images import decoded_images, rough_images
from concept_sliders.nodes.image_strip import draw_strip
from concept_sliders.nodes.run_progress import IMAGE_WIDTH, Clock
from concept_sliders.nodes.training import TrainSlider, TrainVisualSlider
from concept_sliders.pocket.models.autoencoder import CHANNELS
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.tiny_vae import image_vae, video_vae
from concept_sliders.training.concept import Concept
from concept_sliders.training.pairs.image_sets import pairs_from_batches
from concept_sliders.training.progress import Progress
from concept_sliders.training.recipe import TextualRecipe
from concept_sliders.training.run import RunOptions, train_textual

CONCEPT = Concept("portrait of a person", "very old person", "very young person", eta=2.0)
BY_OTHER_CODE = (ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, ZeroDivisionError)
SETTINGS = {"rank": 1, "start_percent": 0.0, "end_percent": 1.0, "name": "age"}


@pytest.fixture(scope="module")
def pocket():
    with torch.inference_mode():
        return load_pocket()[:3]


@pytest.fixture(scope="module")
def vae():
    with torch.inference_mode():
        return image_vae(CHANNELS)


@pytest.fixture
def strips():
    """The previews that ComfyUI's progress bar is given."""
    shown = []

    def hook(value, total, preview, node_id=None):
        if preview is not None:
            shown.append(preview[1])

    comfy.utils.set_progress_bar_global_hook(hook)
    yield shown
    comfy.utils.set_progress_bar_global_hook(None)


def test_train_slider_goes_on_after_a_preview_through_a_vae_of_comfyui(pocket, vae, strips):
    latent = {"samples": torch.zeros(1, CHANNELS, 8, 8)}
    with torch.inference_mode():
        assert any(p.is_inference() for p in vae.first_stage_model.parameters())
        out = TrainSlider.execute(
            pocket[0], pocket[1], (CONCEPT,), latent, vae=vae, steps=100, rollout_steps=2, **SETTINGS
        )
    assert out.args[0].sliders[0].slider.info.recipe["steps_done"] == 100
    assert strips and strips[0].width > 3 * IMAGE_WIDTH


def test_train_visual_slider_does_so_too(pocket, vae, strips):
    less, more = (torch.full((1, 64, 64, 3), shade) for shade in (0.2, 0.8))
    with torch.inference_mode():
        out = TrainVisualSlider.execute(*pocket[:2], vae, pairs_from_batches(less, more), steps=100, **SETTINGS)
    assert out.args[0].sliders[0].slider.info.recipe["steps_done"] == 100
    assert strips


def test_of_three_videos_the_strip_shows_the_frame_in_the_middle_of_each():
    wan = FAMILIES["Wan 2.1"].build()
    with torch.inference_mode():
        vae, latents = video_vae(), torch.randn(3, 16, 3, 4, 4, generator=torch.Generator().manual_seed(1))
        videos = vae.decode(wan.model.process_latent_out(latents))
        frames = decoded_images(wan, latents, vae)
        assert videos.shape == (3, 9, 32, 32, 3) and frames.shape == (3, 32, 32, 3)
        assert torch.equal(frames, videos[:, 4]) and not torch.equal(frames[0], frames[1])
        rough = rough_images(wan, latents)
        assert torch.equal(rough, rough_images(wan, latents[:, :, 1]))
        assert rough.shape == (3, 4, 4, 3) and not torch.equal(rough, rough_images(wan, latents[:, :, 0]))
        assert draw_strip(frames, ["-1", "0", "+1"], "", IMAGE_WIDTH).shape[0] == 1


@pytest.fixture(scope="module")
def train(pocket):
    model, clip, _ = pocket
    with torch.inference_mode():
        prompts = (*CONCEPT.prompts(), "")
        conditionings = {p: clip.encode_from_tokens_scheduled(clip.tokenize(p)) for p in prompts}

    def run(run_options, **settings):
        settings = {"rollout_steps": 2, "samples_per_rollout": 6, "rank": 1, **settings}
        with torch.inference_mode():
            recipe = TextualRecipe(concepts=(CONCEPT,), **settings)
            return train_textual(model, conditionings, recipe, torch.zeros(1, CHANNELS, 8, 8), "age", run_options)

    return run


class Moved:
    """Watches a run on which ComfyUI takes the model's place for something else, at its first preview."""

    def __init__(self, model):
        self.model, self.loaded, self.own, self.mode = model, [], [], []

    def __call__(self, progress, latents):
        weights = list(self.model.model.parameters())
        self.loaded.append(self.model in [each.model for each in comfy.model_management.current_loaded_models])
        self.own.append(any(p.is_inference() for p in weights))
        self.mode.append(torch.is_inference_mode_enabled())
        if latents is not None:
            comfy.model_management.free_memory(1e30, torch.device("cpu"))
            self.loaded.append(self.model in [each.model for each in comfy.model_management.current_loaded_models])


def test_after_a_preview_the_model_is_loaded_and_lent_again(pocket, train):
    """While it lasts the weights are ComfyUI's own, and it works in its own mode."""
    before = {n: (id(p), p.data_ptr(), p.clone()) for n, p in pocket[0].model.named_parameters()}
    run_options = Moved(pocket[0])
    assert train(RunOptions(progress=run_options, preview_every=2), steps=3).progress.steps == 3
    assert run_options.loaded == [True, True, False, True]
    assert run_options.own == [False, True, False] and run_options.mode == [False, True, False]
    for name, p in pocket[0].model.named_parameters():
        assert (id(p), p.data_ptr()) == before[name][:2] and torch.equal(p, before[name][2]), name


def test_what_comfyui_has_put_in_place_of_a_weight_meanwhile_stays(pocket):
    module = next(m for m in pocket[0].model.modules() if isinstance(m, torch.nn.Linear))
    mine = module.weight
    try:
        with torch.inference_mode(), borrowed(pocket[0]) as loan:
            assert module.weight is not mine and module.weight.data_ptr() == mine.data_ptr()
            with loan.returned():
                assert module.weight is mine
                module.weight = theirs = torch.nn.Parameter(mine.clone(), requires_grad=False)
            assert module.weight is not theirs and module.weight.data_ptr() == theirs.data_ptr()
            assert not module.weight.is_inference()
        assert module.weight is theirs
        with torch.inference_mode(), borrowed(pocket[0]):
            module.weight = last = torch.nn.Parameter(torch.zeros_like(mine), requires_grad=False)
        assert module.weight is last
    finally:
        module.weight = mine


@pytest.mark.parametrize("error", [OSError, torch.OutOfMemoryError, *BY_OTHER_CODE])
def test_a_preview_that_fails_leaves_the_model_as_it_was(pocket, train, caplog, error):
    """It is the last one: training goes on without, and says so."""
    before = {n: (id(p), p.data_ptr()) for n, p in pocket[0].model.named_parameters()}
    asked = []

    def fail(progress, latents):
        asked.append(latents is not None)
        if latents is not None:
            raise error("no room for an image")

    trained = train(RunOptions(progress=fail, preview_every=2), steps=6)
    assert trained.progress.steps == 6 and not trained.progress.stopped
    assert "no room for an image" in caplog.text
    assert sum(asked) == 1 and f"previews, as one failed: {error.__name__}: " in caplog.text
    assert {n: (id(p), p.data_ptr()) for n, p in pocket[0].model.named_parameters()} == before


def test_the_time_left_is_told_from_the_second_step_on_about_once_a_second():
    time_now, told = [100.0], []
    clock = Clock(10, lambda: time_now[0])
    losses = [0.5] * 4  # of a checkpoint that it goes on from
    for _ in range(6):
        losses.append(0.25)
        time_now[0] += 0.5
        told.append((clock.said(Progress(losses)), clock.is_due()))
    assert told[0] == ("step 5 of 10, loss 0.45", True)
    assert told[1] == ("step 6 of 10, loss 0.417, 0:02 left", False)
    assert [due for _, due in told] == [True, False, True, False, True, False]
    assert told[5][0].startswith("step 10 of 10") and told[5][0].endswith("0:00 left")
    time_now[0] = 100.5 + 5 * 3600
    assert Clock(10, lambda: time_now[0]).said(Progress([1.0])) == "step 1 of 10, loss 1"
    assert clock.said(Progress([1.0] * 6)).endswith(", 20:00:00 left")
