"""Visual and text-encoder runs: the same seed, the same slider; and one that stopped goes on as if it had not."""

import comfy.model_management
import pytest
import torch
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.training.concept import Concept
from concept_sliders.training.recipe import EncoderRecipe, VisualRecipe
from concept_sliders.training.run import RunOptions, train_text_encoder, train_visual
from concept_sliders.training.visual_samples import LatentSet

CONCEPT = Concept("portrait of a person", "very old person", "very young person", ("smiling", "frowning"), eta=4.0)
STEPS = 6


@pytest.fixture(scope="module")
def pocket():
    with torch.inference_mode():
        return load_pocket()[:3]


@pytest.fixture(scope="module")
def train(pocket):
    """`train(kind, run_options, **settings)`: a whole run of that kind."""
    model, clip, _ = pocket
    generator = torch.Generator().manual_seed(0)
    sets = [
        LatentSet(torch.randn(len(strengths), 8, 8, 8, generator=generator), strengths, CONCEPT.target)
        for strengths in ((-1.0, 1.0), (-1.0, 0.5, 1.0))
    ]
    with torch.inference_mode():
        said = {CONCEPT.target: clip.encode_from_tokens_scheduled(clip.tokenize(CONCEPT.target))}

    def run(kind, run_options=None, **settings):
        settings = {"steps": STEPS, "learning_rate": 2e-3, "rank": 2, **settings}
        with torch.inference_mode():
            if kind == "encoder":
                return train_text_encoder(clip, EncoderRecipe(concepts=(CONCEPT,), **settings), "age", run_options)
            return train_visual(model, said, VisualRecipe(method=kind, **settings), sets, "age", run_options)

    return run


KINDS = ("ADDifT", "noise", "encoder")


def same(one, other):
    return all(
        torch.equal(one.layers[name].down, layer.down) and torch.equal(one.layers[name].up, layer.up)
        for name, layer in other.layers.items()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_slider_and_another_seed_another(train, kind):
    one, again, other = (train(kind, seed=seed) for seed in (7, 7, 8))
    assert one.progress.losses == again.progress.losses and same(one.slider, again.slider)
    assert not same(one.slider, other.slider)


@pytest.mark.parametrize("stop_at", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cancelled_run_goes_on_to_the_slider_of_one_that_never_stopped(train, tmp_path, kind, stop_at):
    def cancel(progress, latents):
        comfy.model_management.interrupt_current_processing(progress.steps == stop_at)
        comfy.model_management.throw_exception_if_processing_interrupted()

    whole = train(kind)
    stopped = train(kind, RunOptions(progress=cancel, checkpoints=tmp_path))
    assert stopped.progress.stopped and stopped.progress.steps == stop_at
    again = train(kind, RunOptions(checkpoints=tmp_path))
    assert again.progress.losses == whole.progress.losses and same(again.slider, whole.slider)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_run_twice_give_the_same_slider(train, kind):
    settings = {"steps": 3, "learning_rate": 2e-4}  # Adam's first steps are as large for gradients of rounding alone
    once, twice = train(kind, **settings), train(kind, **settings, memory="gradient checkpointing")
    for name, layer in once.slider.layers.items():
        torch.testing.assert_close(twice.slider.layers[name].up, layer.up, rtol=1e-3, atol=1e-5)
