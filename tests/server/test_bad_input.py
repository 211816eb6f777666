"""Bad input on a running server: each ends with a sentence that says what is wrong."""

import pytest
import torch
from concept_sliders.devtools.server import ServerError
from concept_sliders.devtools.workflow import add, change, named
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.formats.slider_files import save_slider
from concept_sliders.sliders.slider import Slider

FLUX = "lora_unet_double_blocks_{}_img_attn_qkv"
SD15 = "lora_unet_down_blocks_{}_attentions_0_transformer_blocks_0_attn2_to_k"


def saved_slider(server, name, layers, shape):
    """The file name of a slider with three layers of that shape."""
    layer = LowRank.fresh(shape, 4, torch.Generator().manual_seed(0))
    slider = Slider(name, {layers.format(i): layer for i in range(3)})
    save_slider(slider, server.base / "models" / "loras" / f"{name}.safetensors")
    return f"{name}.safetensors"


@pytest.fixture(scope="module")
def stranger(server):
    """The file of a slider for another family of models."""
    return saved_slider(server, "stranger", FLUX, (9216, 3072))


def refused(server, prompt, message):
    with pytest.raises(ServerError, match=message):
        server.wait(server.post(prompt))


def reduce_to(prompt, *nodes):
    """Leave these nodes alone in the prompt."""
    kept = {number for node in nodes for number in named(prompt, node)}
    for number in prompt.keys() - kept:
        del prompt[number]


def loaded_and_saved(example, file, name="saved"):
    """Load Slider, Gate Sliders, Save Slider, and no model."""
    prompt = example("use_sliders", {"Load Slider": {"slider": file}})
    reduce_to(prompt, "Load Slider", "Gate Sliders")
    gate = named(prompt, "Gate Sliders")[0]
    add(prompt, "ConceptSlidersSaveSlider", sliders=[gate, 0], name=name, precision="float16")
    return prompt


def test_a_missing_slider_file(server, example):
    prompt = example("use_sliders", {"Load Slider": {"slider": "nowhere.safetensors"}})
    refused(server, prompt, r"ConceptSlidersLoadSlider \(\d+\): .*nowhere\.safetensors")


def test_a_truncated_slider_file(server, example, stranger):
    folder = server.base / "models" / "loras"
    (folder / "cut.safetensors").write_bytes((folder / stranger).read_bytes()[:-100])
    prompt = example("use_sliders", {"Load Slider": {"slider": "cut.safetensors"}})
    refused(server, prompt, r"ConceptSlidersLoadSlider.*cut\.safetensors is truncated or not a safetensors file")


def test_a_slider_of_another_family(server, example, stranger):
    prompt = example("use_sliders", {"Load Slider": {"slider": stranger}})
    refused(server, prompt, r"ConceptSlidersApplySliders.*None of the 3 layers of slider 'stranger'.*another family")


def test_a_slider_of_another_family_whose_layers_have_the_same_names(server, example):
    file = saved_slider(server, "cousin", SD15, (320, 768))
    prompt = example("use_sliders", {"Load Slider": {"slider": file}})
    refused(server, prompt, r"ConceptSlidersApplySliders.*down \(4, 768\).*model's weight there is .*another model")


@pytest.mark.parametrize("end", ["more", "less"])
def test_an_empty_concept(server, example, end):
    prompt = example("train_a_textual_slider", {"Slider Concept": {end: "  "}})
    refused(server, prompt, rf"ConceptSlidersSliderConcept.*'{end}' prompt is empty")


def test_a_gate_that_ends_before_it_starts(server, example, stranger):
    prompt = loaded_and_saved(example, stranger)
    change(prompt, "Gate Sliders", start_percent=0.8, end_percent=0.3)
    refused(server, prompt, r"ConceptSlidersGateSliders.*start 0\.8 and end 0\.3")


def test_a_sweep_over_a_position_that_does_not_exist(server, example, stranger):
    prompt = example("use_sliders", {"Load Slider": {"slider": stranger}, "Sweep Sliders": {"position": 2}})
    refused(server, prompt, r"ConceptSlidersSweepSliders.*no slider 2 to sweep: the stack has 1")


def test_sweep_values_that_are_no_numbers(server, example, stranger):
    prompt = example("use_sliders", {"Load Slider": {"slider": stranger}, "Sweep Sliders": {"values": "some"}})
    refused(server, prompt, r"ConceptSlidersSweepSliders.*from:to:count.*'some'")


def test_an_output_folder_that_cannot_be_written(server, example, stranger):
    # A file stands in the place of the folder: that stops an administrator as well.
    (server.base / "models" / "loras" / "blocked").write_text("in the way")
    prompt = loaded_and_saved(example, stranger, name="blocked/slider")
    refused(server, prompt, r"ConceptSlidersSaveSlider.*Cannot write the slider to .*blocked")


def test_a_name_that_leads_out_of_the_folder(server, example, stranger):
    prompt = loaded_and_saved(example, stranger, name="../../outside")
    refused(server, prompt, r"ConceptSlidersSaveSlider.*leads out of")
    assert not (server.base / "outside.safetensors").exists()


def test_a_name_that_is_too_long_is_refused_before_anything_runs(server, example, stranger):
    prompt = loaded_and_saved(example, stranger, name="x" * 300)
    with pytest.raises(ServerError, match="is too long for a file in"):
        server.post(prompt)
