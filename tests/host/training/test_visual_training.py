"""A visual slider of the pocket model: drawn pairs in, a slider out that turns what the pairs differ in."""

import pytest
import torch
from comfy.model_management import InterruptProcessingException
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.borrow import borrowed
from concept_sliders.comfy_host.denoiser import Denoiser
from concept_sliders.pocket.measuring.probe import load_probe
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.pocket.world.drawing import draw
from concept_sliders.pocket.world.portrait import portraits
from concept_sliders.sliders.stack import Stack
from concept_sliders.training.pairs.folders import read_pairs
from concept_sliders.training.recipe import VisualRecipe
from concept_sliders.training.run import TrainingData, train
from concept_sliders.training.visual_fit import NoisyImages
from concept_sliders.training.visual_samples import VisualSamples, encode_sets
from PIL import Image

import nodes

PROMPT = "portrait of a person"
PEOPLE = 4


@pytest.fixture(scope="module")
def pocket():
    with torch.inference_mode():
        return load_pocket()[:3]


@pytest.fixture(scope="module")
def conditionings(pocket):
    with torch.inference_mode():
        clip = pocket[1]
        return {p: clip.encode_from_tokens_scheduled(clip.tokenize(p)) for p in (PROMPT, "")}


@pytest.fixture(scope="module")
def sets(pocket, tmp_path_factory):
    """Smiles, frowning at strength -1 and laughing at +1, from a folder."""
    folder = tmp_path_factory.mktemp("smiles")
    for index, person in enumerate(portraits(6, seed=11)):
        for strength, smile in ((-1, 0.1), (1, 0.9)):
            image = Image.fromarray(draw(person.with_(smile=smile, spoiled=False)))
            image.save(folder / f"{index}_{strength}.png")
    with torch.inference_mode():
        return encode_sets(read_pairs(folder, prompt=PROMPT), pocket[2].encode, pocket[0].model.process_latent_in)


def trained(pocket, conditionings, sets, **settings):
    recipe = VisualRecipe(sets=len(sets), less="frowning", more="laughing", **settings)

    def samples(denoiser, layers, generator):
        return VisualSamples(denoiser, sets, recipe, generator)

    with torch.inference_mode():
        data = TrainingData(sets[0].latents, PROMPT)
        return train(pocket[0], conditionings, recipe, data, "smile", samples).slider


def smiles(pocket, conditionings, slider, strengths):
    """The probe's mean smile at every strength, on people that training has not seen."""
    batch_size = PEOPLE * len(strengths)
    latent = {
        "samples": torch.zeros(batch_size, 8, 16, 16),
        "batch_index": [entry // len(strengths) for entry in range(batch_size)],
    }
    model = apply_sliders(pocket[0], Stack.of(slider).swept(0, strengths, PEOPLE))
    positive, negative = conditionings[PROMPT], conditionings[""]
    with torch.inference_mode():
        out = nodes.common_ksampler(model, 77, 8, 3.0, "euler", "simple", positive, negative, latent)[0]
        read = load_probe().read(pocket[2].decode(out["samples"]))
    return read["smile"].view(PEOPLE, len(strengths)).mean(0).tolist()


@pytest.mark.slow
def test_addift_makes_a_slider_by_the_nodes_defaults(pocket, conditionings, sets):
    slider = trained(pocket, conditionings, sets, method="ADDifT", steps=150, fit_strength=True)
    less, more = smiles(pocket, conditionings, slider, (-1.0, 1.0))
    assert more - less > 0.25
    assert (slider.info.less, slider.info.more) == ("frowning", "laughing")
    assert slider.info.recipe["kind"] == "visual" and slider.info.recipe["sets"] == 6
    reached = slider.info.recipe["reached"]
    assert 0.05 < reached["part +1"] < 1.5 and 0.05 < reached["part -1"] < 1.5, reached


def test_it_is_made_stronger_and_nothing_else(pocket, conditionings, sets, monkeypatch):
    asked = []

    def moved(self, layers, factor):
        asked.append((real(self, layers, factor), factor))
        return 0.2 * factor

    real = NoisyImages.moved
    monkeypatch.setattr(NoisyImages, "moved", moved)
    before = {name: p.clone() for name, p in pocket[0].model.named_parameters()}
    plain = trained(pocket, conditionings, sets[:2], steps=3)
    fitted = trained(pocket, conditionings, sets[:2], steps=3, fit_strength=True)
    record = fitted.info.recipe
    assert [factor for _, factor in asked] == [1.0, 1.4, 2.0, 3.0] and len({share for share, _ in asked}) == 4
    assert record["strengthened"] == 3 and record["moved"] == pytest.approx(0.6)
    assert (plain.info.useful_range, fitted.info.useful_range) == ((-1.5, 1.5), (-1.0, 1.0))
    assert "moved" not in plain.info.recipe and record["reached"] == plain.info.recipe["reached"]
    for name, change in plain.layers.items():
        assert torch.equal(fitted.layers[name].down, change.down)
        torch.testing.assert_close(fitted.layers[name].up, record["strengthened"] * change.up)
    assert all(torch.equal(p, before[name]) for name, p in pocket[0].model.named_parameters())


def test_one_whose_trial_is_cancelled_is_as_strong_as_it_was_trained(pocket, conditionings, sets, monkeypatch):
    def cancelled(self, layers, factor):
        raise InterruptProcessingException()

    monkeypatch.setattr(NoisyImages, "moved", cancelled)
    plain = trained(pocket, conditionings, sets[:2], steps=2)
    fitted = trained(pocket, conditionings, sets[:2], steps=2, fit_strength=True)
    assert "moved" not in fitted.info.recipe and fitted.info.recipe["reached"] == plain.info.recipe["reached"]
    assert all(torch.equal(fitted.layers[name].up, change.up) for name, change in plain.layers.items())


def test_the_published_method_trains_and_leaves_the_model_as_it_was(pocket, conditionings, sets):
    before = {name: (p.data_ptr(), p.clone()) for name, p in pocket[0].model.named_parameters()}
    slider = trained(pocket, conditionings, sets, steps=3)
    assert any(change.up.any() for change in slider.layers.values())
    for name, p in pocket[0].model.named_parameters():
        assert p.data_ptr() == before[name][0] and torch.equal(p, before[name][1]), name


def test_the_right_prediction_is_the_one_comfyuis_model_was_trained_for(pocket, conditionings, sets):
    """A v-model, asked as all discrete ones are: the noise, whatever sigma is, and the same of both images."""
    with borrowed(pocket[0]):
        source = VisualSamples(
            Denoiser(pocket[0], {PROMPT: conditionings[PROMPT]}),
            sets[:1],
            VisualRecipe(end_percent=0.9),
            torch.Generator().manual_seed(3),
        )
        sample = next(source)
        torch.testing.assert_close(sample.target[0], sample.target[1], rtol=1e-3, atol=1e-3)
        assert 0.9 < float(sample.target.std()) < 1.1
