"""The training nodes on a running server, wired up without an example workflow."""

from concept_sliders.devtools.workflow import add
from concept_sliders.sliders.formats.slider_files import load_slider

AGE = {
    "target": "portrait of a person",
    "more": "very old person",
    "less": "very young person",
    "preserve": "",
    "eta": 2.0,
}
SKY = {"target": "portrait of a person, day", "more": "noon sky", "less": "night sky", "preserve": "", "eta": 2.0}
SMALL = {"steps": 3, "rank": 2, "learning_rate": 1e-3, "layers": "self-attention", "seed": 1, "both_signs": True}


def loaded(prompt):
    pocket = add(prompt, "ConceptSlidersLoadPocketModel")
    return [pocket, 0], [pocket, 1], [pocket, 2]


def combined(prompt):
    parts = [add(prompt, "ConceptSlidersSliderConcept", **concept) for concept in (AGE, SKY)]
    slots = {f"concepts.concept{index}": [part, 0] for index, part in enumerate(parts)}
    return [add(prompt, "ConceptSlidersCombineConcepts", **slots), 0]


def saved(server, prompt, node, name):
    """Save what a node puts out; the slider in the file."""
    add(prompt, "ConceptSlidersSaveSlider", sliders=[node, 0], name=name, precision="float32")
    server.wait(server.post(prompt))
    return load_slider(server.base / "models" / "loras" / f"{name}.safetensors")


def test_a_text_encoder_slider_of_two_concepts_and_its_recipe(server):
    prompt = {}
    _, clip, _ = loaded(prompt)
    train = add(
        prompt,
        "ConceptSlidersTrainTextEncoderSlider",
        clip=clip,
        concept=combined(prompt),
        share=1.0,
        name="text",
        checkpoint_every=0,
        **SMALL,
    )
    slider = saved(server, prompt, train, "text")
    assert all(name.startswith("lora_te") for name in slider.layers)
    assert len(slider.info.recipe["concepts"]) == 2 and slider.info.recipe["kind"] == "encoder"

    again = {}
    _, clip, _ = loaded(again)
    recipe = add(again, "ConceptSlidersLoadRecipe", slider="text.safetensors")
    train = add(
        again,
        "ConceptSlidersTrainTextEncoderSlider",
        clip=clip,
        concept=combined(again),
        share=5.0,
        name="text",
        checkpoint_every=0,
        recipe=[recipe, 0],
        **{**SMALL, "steps": 50, "rank": 8},
    )
    same = saved(server, again, train, "again")
    assert {n: layer.up.tolist() for n, layer in same.layers.items()} == {
        n: layer.up.tolist() for n, layer in slider.layers.items()
    }


def test_a_visual_slider_of_two_batches_and_its_checkpoint(server):
    prompt = {}
    model, clip, vae = loaded(prompt)
    less, more = (add(prompt, "EmptyImage", width=64, height=64, batch_size=2, color=c) for c in (0x202020, 0xD0D0D0))
    pairs = add(
        prompt,
        "ConceptSlidersImagePairs",
        less=[less, 0],
        more=[more, 0],
        prompt="portrait of a person",
        size=64,
        multiple=64,
    )
    train = add(
        prompt,
        "ConceptSlidersTrainVisualSlider",
        model=model,
        clip=clip,
        vae=vae,
        pairs=[pairs, 0],
        less="dark",
        more="bright",
        method="ADDifT",
        name="bright",
        start_percent=0.0,
        end_percent=1.0,
        checkpoint_every=2,
        **SMALL,
    )
    slider = saved(server, prompt, train, "bright")
    assert (slider.info.less, slider.info.more) == ("dark", "bright")
    assert slider.info.recipe["sets"] == 2 and slider.info.recipe["steps_done"] == 3
    kept = list((server.base / "output" / "slider_checkpoints").glob("bright*.pt"))  # beside those of other tests
    assert len(kept) == 1
