"""Measuring sliders of the pocket model: which images are sampled, what is read of them, and runs cut short."""

import comfy.model_management
import comfy.sample
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from concept_sliders.comfy_host import errors
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.seeded_sampling import SamplerSettings
from concept_sliders.comfy_host.text_encoders import apply_to_clip, encode_prompts, encoder_layer_names
from concept_sliders.evaluation import sweep_sampling
from concept_sliders.evaluation.instruments import Instruments
from concept_sliders.evaluation.measurements import EditTexts, SliderMeasurements
from concept_sliders.evaluation.measuring import measure
from concept_sliders.evaluation.sweep_plan import PlannedImage, SweepPlan
from concept_sliders.evaluation.sweep_sampling import Source, sample_sweep
from concept_sliders.nodes.model_folders import SHIPPED
from concept_sliders.pocket.measuring.probe import COLUMNS, load_probe
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.formats.slider_files import load_slider
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.tiny import random_slider, tiny_model

SETTINGS = SamplerSettings(4, 3.0, "euler", "simple")
PROMPT = "portrait of a person"


@pytest.fixture(autouse=True)
def as_a_node(untouched):
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def age():
    return Stack.of(load_slider(SHIPPED / "pocket_age.safetensors"), 7.0)


@pytest.fixture(scope="module")
def probe():
    network = load_probe()

    def read(images):
        readings = network.read(images)
        return {name: readings[name] for name in COLUMNS}

    return Instruments(probe=read)


@pytest.fixture
def source(pocket):
    return Source(*pocket, torch.zeros(1, 8, 16, 16), SETTINGS)


def quiet(done, of):
    pass


def by_hand(pocket, slider, strength, seed):
    """The image (64, 64, 3) of one seed with the slider, by ComfyUI's own sampling of one latent."""
    model, clip, vae = pocket
    stack = Stack.of(slider, strength)
    positive, negative = encode_prompts(apply_to_clip(clip, stack), (PROMPT, "")).values()
    noise = comfy.sample.prepare_noise(torch.zeros(1, 8, 16, 16), seed)
    latent = comfy.sample.sample(
        *(apply_sliders(model, stack), noise, 4, 3.0, "euler", "simple", positive, negative, torch.zeros_like(noise)),
        disable_pbar=True,
        seed=seed,
    )
    return vae.decode(latent)[0]


def text_slider(clip, layers):
    """A slider of the text encoder's layers alone."""
    weights = clip.cond_stage_model.state_dict()
    generator, changes = torch.Generator().manual_seed(2), {}
    for path, name in list(encoder_layer_names(clip).items())[:layers]:
        rows, columns = weights[f"{path}.weight"].shape
        down, up = torch.randn(2, columns, generator=generator), torch.randn(rows, 2, generator=generator)
        changes[name] = LowRank(down, 0.1 * up)
    return Slider("words", changes)


def test_images_are_those_of_comfyuis_own_sampling(pocket, source, age, probe):
    """Of a slider on the model and one on the text encoder, in batches of three and of one."""
    stack = age + Stack.of(text_slider(pocket[1], 6))
    seen = []
    plan = SweepPlan(stack, (PROMPT,), (3, 4), (-2.0, 1.5), batch_size=3)
    measured = measure(source, plan, probe, lambda *counts: seen.append(counts))
    assert [of for _, of in seen] == [plan.count] * len(seen) and seen[-1][0] == plan.count == len(measured.made)
    images = dict(zip(measured.made, measured.thumbnails))
    for planned in (PlannedImage(PROMPT, 4, 0, 1.5), PlannedImage(PROMPT, 3, 1, -2.0)):
        alone = by_hand(pocket, stack[planned.slider].slider, planned.strength, planned.seed)
        torch.testing.assert_close(images[planned], alone, rtol=1e-3, atol=2e-3)
        assert float((images[planned] - images[planned.original]).abs().mean()) > 5e-3
    alone = measure(source, SweepPlan(stack, (PROMPT,), (3,), (-2.0,), batch_size=1), probe, quiet)
    for planned, image in zip(alone.made, alone.thumbnails):
        torch.testing.assert_close(image, images[planned], rtol=1e-3, atol=2e-3)


def test_a_smile_slider_moves_the_smile_and_more_at_more_strength(source, probe):
    smile = Stack.of(load_slider(SHIPPED / "pocket_smile.safetensors"))
    plan = SweepPlan(smile, (PROMPT,), tuple(range(4)), (-2.0, 2.0))
    of = SliderMeasurements(measure(source, plan, probe, quiet), 0, EditTexts(), probe)
    smiles = [float(of.scores(strength)["smile"].mean()) for strength in of.strengths]
    assert of.effect == "smile" and smiles[0] < -0.15 and smiles[1] == 0 and smiles[2] > 0.15
    assert max(of.movements, key=lambda name: abs(of.movements[name])) == "smile"


def test_a_cancelled_run_keeps_what_it_has_measured(source, age, probe):
    def cancel(done, of):
        if done >= 6:
            comfy.model_management.interrupt_current_processing()

    plan = SweepPlan(age, (PROMPT,), tuple(range(4)), (-1.0, 1.0), batch_size=3)
    measured = measure(source, plan, probe, cancel)
    assert measured.cancelled and len(measured.made) == 6
    assert SliderMeasurements(measured, 0, EditTexts(), probe).scores(1.0)["age"].shape == (2,)
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(InterruptProcessingException):
        measure(source, plan, probe, quiet)


def test_a_sweep_is_sampled_without_anything_to_measure(source, age, probe):
    plan, seen = SweepPlan(age, (PROMPT,), (0, 1), (-1.0, 1.0), batch_size=4), []
    sweep = sample_sweep(source, plan, quiet, lambda batch, images: seen.append((len(batch), images.shape)))
    assert [count for count, _ in seen] == [4, 2] and all(shape[-1] == 3 for _, shape in seen)
    measured = measure(source, plan, probe, quiet)
    assert sweep.made == measured.made and torch.equal(sweep.thumbnails, measured.thumbnails)
    assert sweep.strengths(0) == (-1.0, 0.0, 1.0)
    assert sweep.row(PlannedImage(PROMPT, 1), 0)[2] == PlannedImage(PROMPT, 1, 0, 1.0)


def test_a_batch_that_cannot_be_seen_is_not_kept(source, age):
    def cancelled_at_the_second(batch, images):
        if batch[0].seed == 1:
            raise InterruptProcessingException()

    plan = SweepPlan(age, (PROMPT,), (0, 1), (-1.0, 1.0), batch_size=3)
    sweep = sample_sweep(source, plan, quiet, cancelled_at_the_second)
    assert sweep.cancelled and len(sweep.made) == len(sweep.thumbnails) == 3


def test_where_memory_does_not_hold_a_batch_it_is_halved(source, age, probe, monkeypatch):
    plan, sizes, real = SweepPlan(age, (PROMPT,), (0, 1), (1.0,)), [], sweep_sampling.sample_seeds

    def with_room_for_one(model, positive, negative, latent, seeds, settings):
        sizes.append(len(seeds))
        if len(seeds) > 1:
            raise torch.OutOfMemoryError("no room")
        return real(model, positive, negative, latent, seeds, settings)

    whole = measure(source, plan, probe, quiet)
    monkeypatch.setattr(sweep_sampling, "sample_seeds", with_room_for_one)
    halved = measure(source, plan, probe, quiet)
    assert sizes == [4, 2, 1, 1, 2, 1, 1] and halved.made == whole.made
    torch.testing.assert_close(halved.thumbnails, whole.thumbnails, rtol=1e-3, atol=2e-3)
    assert errors.is_out_of_memory(torch.OutOfMemoryError("no room"))


def test_a_slider_of_another_model_is_refused(source, probe):
    foreign = Stack.of(random_slider(tiny_model("Flux")))
    with pytest.raises(ValueError, match=r"made for another family"):
        measure(source, SweepPlan(foreign, (PROMPT,), (0,), (1.0,)), probe, quiet)
