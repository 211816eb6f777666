"""Discovery on the pocket model: its sliders move the embedding their own way, and nothing else is changed."""

from dataclasses import replace

import pytest
import torch
from comfy.model_management import interrupt_current_processing
from concept_sliders.comfy_host.decoder import Decoder
from concept_sliders.comfy_host.image_encoder import ImageEncoder
from concept_sliders.comfy_host.preview_images import rough_images
from concept_sliders.comfy_host.text_encoders import encode_prompts
from concept_sliders.discovery import lengths, run
from concept_sliders.discovery.learning import NO_ROOM
from concept_sliders.discovery.recipe import DiscoveryRecipe
from concept_sliders.discovery.run import DiscoveryOptions, components_of, discover
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.training.run import RunOptions

PROMPT = "portrait of a person"
SHAPE = (8, 16, 16)
SETTINGS = {
    "directions": 3,
    "samples": 16,
    "sampling_steps": 3,
    "held_out": 4,
    "head_steps": 60,
    "steps": 12,
    "rho": 4e-3,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The pocket model's four parts, and a folder for samples, which most of these runs share."""
    with torch.inference_mode():
        return *load_pocket(), tmp_path_factory.mktemp("samples")


@pytest.fixture(scope="module")
def plain(models):
    """Three directions by the head."""
    return found(models)


def found(models, options=None, unwanted=None, **settings):
    """As a node runs it: in inference mode."""
    model, clip, vae, vision, folder = models
    options = options or DiscoveryOptions()
    options = replace(options, samples=options.samples or folder)
    recipe = DiscoveryRecipe(**{"prompts": (PROMPT,), **SETTINGS, **settings})
    with torch.inference_mode():
        prompts = encode_prompts(clip, dict.fromkeys((*recipe.prompts, "")))
        decoder, encoder = Decoder(model, vae), ImageEncoder(vision)
        return discover(model, decoder, encoder, prompts, recipe, SHAPE, "found", options, unwanted)


def state_of(models):
    model, _, vae, vision, _ = models
    modules = (model.model, vae.first_stage_model, vision.model)
    return [value.clone() for module in modules for value in module.state_dict().values()]


def check(discovery, every=True):
    """every: whether each direction is to be closest to its own component, or the widest alone."""
    figures = discovery.figures
    assert figures.own.median() > 0.4 and figures.mutual < 0.6
    assert figures.own_is_highest.all() if every else figures.own_is_highest[0]
    assert len(discovery.stack) == 3 and [s.strength for s in discovery.stack] == [(0.0,)] * 3
    assert {change.rank for s in discovery.stack for change in s.slider.layers.values()} == {1}


def test_each_slider_moves_the_embedding_its_own_way_and_no_further_than_the_model_varies(plain):
    check(plain, every=False)
    assert plain.head.shape == (3,) and plain.is_sampled
    along = (plain.changes * plain.components.directions).sum(1).abs()
    assert (along > 0).all() and (along <= 1.0001 * plain.deviations).all()


def test_through_the_decoder_too_and_the_models_stay_as_they_are(models):
    before = state_of(models)
    discovery = found(models, embedding="decoder", spread=2.0)
    check(discovery)
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(models)))
    modules = (models[0].model, models[2].first_stage_model, models[3].model)
    assert all(t.grad is None and t.is_inference() for module in modules for t in module.parameters())
    assert discovery.head is None and not discovery.progress.notes


def test_samples_that_are_kept_are_not_made_again(models, tmp_path, monkeypatch):
    options = DiscoveryOptions(samples=tmp_path, at_once=9)
    found(models, options, steps=1)
    monkeypatch.setattr(run, "sampled", lambda *given: pytest.fail("sampled again"))
    again = found(models, options, directions=2, steps=1)
    assert len(again.stack) == 2
    with pytest.raises(pytest.fail.Exception):  # another guidance makes other samples
        found(models, options, guidance=1.0, steps=1)


def test_a_stop_keeps_what_has_been_trained(models, monkeypatch):
    steps = []
    options = RunOptions(
        should_stop=lambda: len(steps) == 3, progress=lambda progress, _: steps.append(progress.steps)
    )
    monkeypatch.setattr(run, "sampled_lengths", lambda *given: pytest.fail("sampled after a stop"))
    stopped = found(models, DiscoveryOptions(options))
    assert stopped.progress.stopped and stopped.progress.steps == 3 and len(stopped.stack) == 3
    assert not stopped.is_sampled
    assert found(models, DiscoveryOptions(RunOptions(should_stop=lambda: True))) is None


def test_a_cancel_in_training_or_while_lengths_are_measured_keeps_the_directions(models):
    """ComfyUI's own: its flag is raised, and the next layer that runs raises."""

    def cancel(*told):
        interrupt_current_processing()

    in_training = RunOptions(progress=lambda progress, _: cancel() if progress.steps == 4 else None)
    for options in (DiscoveryOptions(in_training), DiscoveryOptions(measuring=cancel)):
        stopped = found(models, options)
        assert len(stopped.stack) == 3 and not stopped.is_sampled
        assert stopped.progress.stopped == (options.training is in_training)
        along = (stopped.changes * stopped.components.directions).sum(1).abs()
        assert (along < stopped.deviations * (1 + 1e-4)).all()  # what hardly moves is not scaled without end
        torch.testing.assert_close(along[0], stopped.deviations[0], rtol=1e-4, atol=0)


def test_a_cancel_while_lengths_are_guessed_does_not_end_it(models, monkeypatch):
    real, calls = lengths.predicted_changes, []

    def cancelled_once(*given):
        calls.append(given)
        if len(calls) == 1:
            interrupt_current_processing()
        return real(*given)

    monkeypatch.setattr(lengths, "predicted_changes", cancelled_once)
    assert len(found(models, steps=1).stack) == 3 and len(calls) == 2


def test_where_the_decoders_gradients_find_no_memory_a_head_takes_its_place(models, monkeypatch):
    decode = Decoder.__call__

    def without_room_for_gradients(self, latents):
        if latents.requires_grad:
            raise torch.OutOfMemoryError("no room for the graph")
        return decode(self, latents)

    monkeypatch.setattr(Decoder, "__call__", without_room_for_gradients)
    discovery = found(models, embedding="decoder")
    assert NO_ROOM in discovery.progress.notes and discovery.head.shape == (3,)
    assert discovery.progress.steps == SETTINGS["steps"] and not discovery.progress.failure
    assert {s.slider.info.recipe["embedding"] for s in discovery.stack} == {"head"}
    check(discovery, every=False)


def test_other_errors_in_training_through_the_decoder_are_not_taken_for_want_of_memory(models, monkeypatch):
    def broken(self, latents):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    decoder = Decoder.__call__
    monkeypatch.setattr(Decoder, "__call__", lambda self, z: (broken if z.requires_grad else decoder)(self, z))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        found(models, embedding="decoder")


def test_a_direction_that_does_what_an_earlier_one_does_is_left_out(models, plain, monkeypatch):
    real = run.sampled_lengths

    def with_a_double(*given):
        measured = real(*given)
        changes = measured.changes.clone()
        changes[1] = -2 * changes[0]
        return replace(measured, changes=changes)

    monkeypatch.setattr(run, "sampled_lengths", with_a_double)
    discovery = found(models)
    assert [s.slider.name for s in discovery.stack] == ["found 1", "found 3"] and discovery.left_out == ("found 2",)
    assert torch.equal(discovery.components.directions, plain.components.directions[[0, 2]])
    assert len(discovery.changes) == len(discovery.figures.own) == len(discovery.deviations) == 2
    assert not plain.left_out


def test_previews_show_directions_as_rows_and_change_nothing(models, plain):
    shown = []

    def progress(done, latents):
        if latents is not None:
            shown.append((done.steps, rough_images(models[0], latents)))

    discovery = found(models, DiscoveryOptions(RunOptions(progress=progress, preview_every=4)))
    assert [step for step, _ in shown] == [4, 8, 12]
    images = shown[-1][1].unflatten(0, (3, 3))  # directions, strengths
    torch.testing.assert_close(images[0, 1], images[1, 1], rtol=0, atol=0.01)
    assert not torch.equal(images[0, 2], images[1, 2])
    assert all(not torch.equal(row[0], row[2]) for row in images)
    assert discovery.progress.losses == plain.progress.losses


def test_what_is_unwanted_is_in_no_direction(models, plain):
    unwanted = plain.components.directions[:1]
    other = found(models, unwanted=unwanted, directions=2)
    assert (other.components.directions @ unwanted[0]).abs().max() < 1e-3


def test_by_default_directions_are_independent_components_and_if_asked_for_principal_ones():
    generator = torch.Generator().manual_seed(1)
    sources = 2.0 * torch.rand(500, 3, generator=generator) - 1
    columns = torch.tensor([[3.0, 3.0, 0.0, 0.0], [-2.8, 2.8, 0.0, 1.0], [0.0, 1.0, 3.0, 0.0]])
    images = sources @ columns
    of = run.Trajectories(
        PROMPT, images[:, None], images[:, None], torch.ones(2), torch.stack([images / 2, images], 1)
    )
    recipe = DiscoveryRecipe(prompts=(PROMPT,))
    own, principal = (components_of([of], 3, axes=axes).directions for axes in (recipe.axes, "principal"))
    unit = torch.nn.functional.normalize(columns, dim=1)
    assert (unit @ own.T).abs().max(1).values.min() > 0.99 > (unit @ principal.T).abs().max(1).values.min()
    torch.testing.assert_close(principal @ principal.T, torch.eye(3), atol=1e-5, rtol=0)
    assert len(components_of([of], 2)) == 2 and len(components_of([of], 0)) == 3


def test_few_samples_are_asked_for_fewer_independent_components():
    images = torch.randn(12, 30, generator=torch.Generator().manual_seed(2))
    of = run.Trajectories(PROMPT, images[:, None], images[:, None], torch.ones(1), images[:, None])
    assert len(components_of([of], 0)) == 3 and len(components_of([of], 6)) == 6


def test_samples_that_do_not_vary_and_too_few_are_refused(models):
    with pytest.raises(ValueError, match="samples must be more than the directions, 3, got 3"):
        DiscoveryRecipe(prompts=(PROMPT,), directions=3, samples=3)
    sigmas, images, same = torch.ones(2), torch.randn(8, 2, 4), torch.full((8, 2, 5), 0.1)
    blind = run.Trajectories(PROMPT, images, images, sigmas, same)
    with pytest.raises(ValueError, match="clip_vision gives all 8 samples the same embedding"):
        components_of([blind], 2)
    with pytest.raises(ValueError, match="all 8 samples are the same image"):
        components_of([replace(blind, clean=torch.ones(8, 2, 4))], 2)
    varying = replace(blind, embeddings=torch.randn(8, 2, 5))
    with pytest.raises(ValueError, match="is among what is to be left out"):
        components_of([varying], 2, unwanted=torch.eye(5))
