"""The family that is read from layer names, against the names of every family's own model."""

import comfy.lora
import pytest
from concept_sliders.comfy_host.match import layer_names
from concept_sliders.sliders.formats.conventions import DIFFUSERS, names_by_key
from concept_sliders.sliders.formats.model_family import UNKNOWN, candidates, family_of
from concept_sliders.tests.support.families import FAMILIES

# What a family is called in a report, where that is not its name in the table
CALLED = {
    "SD 1": "SD 1",
    "SD 1 inpainting": "SD 1",
    "SD 2": "2",
    "SDXL refiner": "SDXL",
    "Stable Cascade B": "Stable Cascade",
    "Stable Cascade C": "Stable Cascade",
    "Flux schnell": "Flux",
    "Chroma Radiance": "Chroma",
    "PixArt Alpha": "PixArt",
    "PixArt Sigma": "PixArt",
    "HunyuanImage 2.1": "HunyuanImage",
    "HunyuanVideo 1.5": "HunyuanVideo",
    "Kandinsky 5 image": "Kandinsky 5",
    "Kandinsky 5 video": "Kandinsky 5",
    "Wan 2.1": "Wan",
    "Wan 2.1 image to video": "Wan",
    "Wan 2.1 VACE": "Wan",
    "Wan 2.2 5B": "Wan",
    "LTXV": "LTX",
    "Wan 2.1 control": "Wan",
    "Wan 2.1 camera": "Wan",
    "Wan 2.2 camera": "Wan",
    "HuMo": "Wan",
    "Wan 2.2 S2V": "Wan",
    "Wan 2.2 Animate": "Wan",
    "SCAIL": "Wan",
    "Wan 2.2 5B image to video": "Wan",
    "SD 1 instruct pix2pix": "SD 1",
    "Stable Zero123": "SD 1",
    "SDXL instruct pix2pix": "SDXL",
    "SD 2.1 unCLIP": "SD 2",
    "Flux Fill": "Flux",
    "Flux Canny and Depth": "Flux",
    "Flux Kontext": "Flux",
    "LongCat-Image": "Flux",
    "Hunyuan3D 2": "Flux",
    "Qwen-Image Edit": "Qwen-Image",
    "HunyuanVideo image to video": "HunyuanVideo",
    "LTXV image to video": "LTX",
    "LTX 2": "LTX",
    "LTX 2.3": "LTX",
    "Cosmos Predict 2 image to video": "Cosmos Predict 2",
    "CogVideoX image to video": "CogVideoX",
}
UNETS = (
    *("SD 1", "SD 1 inpainting", "SD 1 instruct pix2pix", "Stable Zero123", "SVD", "SD 2", "SD 2.1 unCLIP"),
    *("SDXL", "SDXL instruct pix2pix", "SDXL refiner"),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_own_names_tell_it(family):
    model = FAMILIES[family].build()
    called = CALLED.get(family, family)
    names = list(layer_names(model).values())
    assert called in candidates(family_of(names)), family_of(names)
    if family in UNETS:  # the tiny ones have attention where the real ones have none
        return
    wrong, state = {}, model.model.state_dict()  # ComfyUI's map has names of layers that the model has not
    theirs = names_by_key(comfy.lora.model_lora_keys_unet(model.model, {}), DIFFUSERS, family == "Flux 2")
    for name in (*names, *(name for key, own in theirs.items() if key in state for name in own.values())):
        found = family_of([name])
        if found != UNKNOWN and called not in candidates(found):
            wrong.setdefault(found, []).append(name)
    assert not wrong, "a single name tells another family"
