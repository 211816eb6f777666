"""Slider files on a running server: which ones are listed, their previews, and what the nodes say of them."""

import io
import urllib.parse
import urllib.request

import pytest
import torch
from concept_sliders.devtools.host import ROOT
from concept_sliders.devtools.server import reported
from concept_sliders.devtools.workflow import add
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.formats.slider_files import load_slider, save_slider
from concept_sliders.sliders.slider import Slider
from PIL import Image

NAME = "people/server age.safetensors"
WORDS = "lora_te_text_model_encoder_layers_0_mlp_fc1"


@pytest.fixture(scope="module")
def slider(server):
    """A slider in a folder below models/sliders, with a picture beside it, and its namesake in models/loras."""
    own = server.base / "models" / "sliders" / NAME
    layer = LowRank(torch.ones(2, 3), torch.ones(4, 2))
    odd = {f"lora_unet_odd_{i}": layer for i in range(5)}
    shipped = load_slider(ROOT / "pocket" / "sliders" / "pocket_age.safetensors")
    save_slider(Slider("server age", {**shipped.layers, **odd, WORDS: layer}), own)
    Image.new("RGB", (40, 30), (200, 30, 30)).save(own.with_suffix(".png"))
    save_slider(Slider("namesake", odd), server.base / "models" / "loras" / NAME)
    return own


@pytest.mark.usefixtures("slider")
def test_both_files_of_one_name_are_offered(server):
    options = server.object_info("ConceptSlidersLoadSlider")["ConceptSlidersLoadSlider"]["input"]["required"][
        "slider"
    ]
    names = options[0] if isinstance(options[0], list) else options[1]["options"]
    assert {NAME, f"loras/{NAME}"} <= set(names)


def test_the_picture_beside_a_slider_is_its_preview(server, slider):
    found = server.ask("/experiment/models/sliders")
    assert not any(f["name"].endswith(".png") for f in found)
    (file,) = (f for f in found if f["name"].replace("\\", "/") == NAME)
    address = f"/experiment/models/preview/sliders/{file['pathIndex']}/{urllib.parse.quote(NAME)}"
    with urllib.request.urlopen(server.url + address, timeout=30) as answer:
        picture = Image.open(io.BytesIO(answer.read())).convert("RGB")
    assert picture.size == (40, 30)
    assert all(abs(a - b) < 12 for a, b in zip(picture.getpixel((20, 15)), (200, 30, 30)))


@pytest.mark.usefixtures("slider")
def test_load_slider_says_which_of_two_it_is(server):
    for file, name in ((NAME, "server age"), (f"loras/{NAME}", "namesake")):
        prompt = {}
        load = add(prompt, "ConceptSlidersLoadSlider", slider=file, strength=1.0)
        add(prompt, "ConceptSlidersSaveSlider", sliders=[load, 0], name="server/copy", precision="float32")
        entry = server.wait(server.post(prompt))
        assert reported(entry, load)[0].startswith(f"{name}: ")


@pytest.mark.usefixtures("slider")
def test_apply_sliders_names_what_is_not_there(server):
    prompt = {}
    load = add(prompt, "ConceptSlidersLoadSlider", slider=NAME, strength=1.0)
    model = add(prompt, "ConceptSlidersLoadPocketModel")
    apply = add(prompt, "ConceptSlidersApplySliders", model=[model, 0], sliders=[load, 0], mode="auto")
    noise = add(prompt, "EmptyLatentImage", width=64, height=64, batch_size=1)
    words = add(prompt, "CLIPTextEncode", clip=[model, 1], text="portrait")
    sampled = add(
        prompt,
        "KSampler",
        model=[apply, 0], positive=[words, 0], negative=[words, 0], latent_image=[noise, 0],
        seed=1, steps=1, cfg=1.0, sampler_name="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    picture = add(prompt, "VAEDecode", samples=[sampled, 0], vae=[model, 2])
    add(prompt, "PreviewImage", images=[picture, 0])
    entry = server.wait(server.post(prompt))
    first, missing = reported(entry, apply)
    assert first.endswith("layers, 1 text encoder layer not applied: connect CLIP")
    assert missing == "not in this model: " + ", ".join(f"lora_unet_odd_{i}" for i in range(5))
