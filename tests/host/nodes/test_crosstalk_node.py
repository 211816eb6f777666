"""Slider Report on the pocket model: what it measures, says and writes, and what Combine Sliders makes of it."""

import json
from pathlib import Path

import comfy.model_management
import folder_paths
import pytest
import torch
import torch.nn.functional as F
from comfy.model_management import InterruptProcessingException
from concept_sliders.comfy_host.match import layer_names
from concept_sliders.comfy_host.seeded_sampling import SamplerSettings
from concept_sliders.evaluation.crosstalk import effects_of
from concept_sliders.evaluation.crosstalk_tables import as_json, effects_from
from concept_sliders.evaluation.instruments import Instruments
from concept_sliders.evaluation.measurements import blind_encoders
from concept_sliders.evaluation.measuring import measure
from concept_sliders.evaluation.sweep_plan import SweepPlan
from concept_sliders.evaluation.sweep_sampling import Source
from concept_sliders.nodes import crosstalk
from concept_sliders.nodes.combining import BY_EFFECT
from concept_sliders.nodes.composing import CombineSliders
from concept_sliders.nodes.crosstalk import SliderReport, products_in
from concept_sliders.nodes.measuring_inputs import NO_LPIPS, instruments_of
from concept_sliders.pocket.measuring.probe import COLUMNS
from concept_sliders.sliders.changes import Adapter
from concept_sliders.sliders.merge_sliders import merge
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.sliders.weight_products import weight_products
from concept_sliders.tests.support.reports import shown, warned
from concept_sliders.tests.support.tiny import random_slider, tiny_model

PROMPT = "portrait of a person"
INPUTS = {
    "prompts": PROMPT,
    "negative": "",
    "seeds": "3, 4",
    "strength": 1.0,
    "batch_size": 6,
    "name": "report",
    "steps": 2,
    "cfg": 1.0,
    "sampler": "euler",
    "scheduler": "simple",
}


@pytest.fixture(autouse=True)
def as_a_node(untouched):
    with torch.inference_mode():
        yield


def _leaning(model, size, names=None, share=0.5):
    """Two sliders, of which the second has a share of the first in it."""
    first, own = (random_slider(model, seed, names, size=size) for seed in (1, 2))
    second = merge([(first, share), (own, 1.0)]).layers
    return Stack.of(Slider("age", first.layers)) + Stack.of(Slider("glasses", second), 2.0)


@pytest.fixture(scope="module")
def leaning(pocket):
    return _leaning(pocket[0], 0.04)


@pytest.fixture
def source(pocket):
    return Source(*pocket, torch.zeros(1, 8, 16, 16), SamplerSettings(2, 1.0, "euler", "simple"))


def quiet(done, of):
    pass


def run(pocket, sliders, **others):
    latent = {"samples": torch.zeros(1, 8, 16, 16)}
    return SliderReport.execute(*pocket, sliders, latent, **{**INPUTS, **others})


def test_it_puts_out_a_picture_words_effects_and_files(pocket, source, leaning):
    out = run(pocket, leaning, name="people/report")
    picture, table, text, file = out.args
    assert picture.shape[0] == 1 and picture.shape[3] == 3 and len(out.ui["images"]) == 1
    effects = effects_from(text)
    assert effects.sliders == ("age", "glasses") and effects.columns == COLUMNS and effects.series == 2
    assert [COLUMNS[column] for column in effects.own] == ["age", "glasses"]
    said = shown(out)
    assert said[0].startswith(("age moves age by", "age does not move age")) and "\n".join(said) == table
    cosine = float(weight_products([placed.slider.layers for placed in leaning]).cosines[0, 1])
    assert f"The weight changes of age and glasses are alike: cosine {cosine:+.2f}." in said and cosine > 0.4

    path = Path(file)
    assert path == Path(folder_paths.get_output_directory()) / "measurements" / "people" / "report.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["cosines"][0][1] == pytest.approx(cosine) and content["strengths"] == [-1.0, 1.0]
    assert effects_from(path.read_text(encoding="utf-8")).hashes == effects.hashes
    assert path.with_suffix(".csv").read_text(encoding="utf-8").startswith("slider,is for,age,")

    instruments, _ = instruments_of(*pocket[:2], None, None, None, NO_LPIPS)  # the same images, read by hand
    measured = measure(source, SweepPlan(leaning, (PROMPT,), (3, 4), (-1.0, 1.0)), instruments, quiet)
    for slider in (0, 1):
        moved = [
            planned.strength * float(value)
            for planned, value in zip(measured.made, measured.readings["age"])
            if planned.slider == slider
        ]
        assert float(effects.matrix[slider, COLUMNS.index("age")]) == pytest.approx(sum(moved) / 4, abs=1e-3)


def test_a_mixture_by_effect_leaves_the_other_slider_alone(pocket, source):
    """Along the sliders' own directions among small images; sliders of the last layer, whose effects add up."""
    last = {path: name for path, name in layer_names(pocket[0]).items() if path == "diffusion_model.out.2"}
    leaning = _leaning(pocket[0], 0.3, last, share=1.0)
    seeing = Instruments({"small": lambda images: F.avg_pool2d(images.movedim(-1, 1), 16).flatten(1)})

    def effects(stack):
        return effects_of(measure(source, SweepPlan(stack, (PROMPT,), (3, 4), (-1.0, 1.0), 10), seeing, quiet))

    before = effects(leaning)
    out = CombineSliders.execute({"sliders0": leaning}, orthogonalise=BY_EFFECT, effects=as_json(before))
    after = effects(out.args[0])
    assert before.encoder == "small" and abs(before.matrix[1, 0]) > 0.2
    assert abs(after.matrix[1, 0]) < 0.05 * abs(before.matrix[1, 0])


def test_a_cancelled_run_reports_what_it_has(pocket, leaning, monkeypatch):
    def cancelled_after(images):
        def watch(node_id):
            def report(done, of):
                if done >= images:
                    comfy.model_management.interrupt_current_processing()

            return report

        return watch

    monkeypatch.setattr(crosstalk, "watch_images", cancelled_after(12))
    out = run(pocket, leaning, seeds="0:3", batch_size=5)
    assert warned(out)[0] == "Cancelled after 15 of 20 images: the report is of 3 prompts and seeds."
    monkeypatch.setattr(crosstalk, "watch_images", cancelled_after(5))
    with pytest.raises(InterruptProcessingException):
        run(pocket, leaning, seeds="0:3", batch_size=5)


def test_an_encoder_that_sees_nothing_is_named(source, leaning):
    seeing = Instruments({"blind": lambda images: torch.full((len(images), 3), 0.5)})
    plan = SweepPlan(leaning, (PROMPT,), (3, 4), (-1.0, 1.0), 10)
    measured = measure(source, plan, seeing, quiet)
    (said,) = blind_encoders(measured)
    assert said.startswith("The vision encoder blind gave all 10 images the same embedding")
    assert not effects_of(measured).matrix.any()


def test_two_names_of_one_weight_are_one_layer(pocket, leaning):
    """As a file of another tool has them."""
    first = leaning[0].slider
    path = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q"
    name = next(
        name for name in first.layers if name.endswith("mid_block_attentions_0_transformer_blocks_0_attn1_to_q")
    )
    one, other = Slider("one", {name: first.layers[name]}), Slider("other", {path: first.layers[name]})
    products = products_in(pocket[0], Stack.of(one) + Stack.of(other))
    torch.testing.assert_close(products.cosines, torch.ones(2, 2).double())


def test_what_is_not_in_the_cosines_is_said(pocket, leaning):
    name, change = next(iter(leaning[0].slider.layers.items()))
    dora = Adapter(
        {"lora_down.weight": change.down, "lora_up.weight": change.up, "dora_scale": torch.ones(len(change.up), 1)}
    )
    products = products_in(pocket[0], Stack.of(Slider("dora", {name: dora})))
    assert len(products.left_out[0]) == 1


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"clip": None}, "Slider Report: the checkpoint has no CLIP"),
        ({"vae": None}, "Slider Report: the checkpoint has no VAE"),
        ({"sliders": Stack()}, "at least one slider"),
        ({"seeds": "3"}, "Slider Report takes at least two seeds or prompts"),
        ({"seeds": "x"}, "Seeds must be whole numbers"),
        ({"name": "../up"}, "leads out of"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_sampled(pocket, leaning, wrong, why):
    model, clip, vae = pocket
    given = {
        "model": model,
        "clip": clip,
        "vae": vae,
        "sliders": leaning,
        "latent": {"samples": torch.zeros(1, 8, 16, 16)},
    }
    with pytest.raises(ValueError, match=why):
        SliderReport.execute(**{**given, **INPUTS, **wrong})


def test_a_model_without_a_probe_takes_an_encoder(pocket, leaning):
    with pytest.raises(ValueError, match=r"Slider Report: .* nothing to measure with. Connect a CLIP vision encoder"):
        run((tiny_model("SD15"), *pocket[1:]), leaning)
