"""Which text encoder belongs with which vision encoder, told by class; and both as functions."""

import json
from pathlib import Path

import comfy.clip_vision
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.text_encoders.sd2_clip
import pytest
import torch
import torch.nn.functional as F
from comfy.supported_models_base import ClipTarget
from concept_sliders.comfy_host.joint_encoders import (
    VIT_BIGG,
    VIT_H,
    VIT_L,
    image_embedding,
    text_embedding,
    vision_name,
)
from concept_sliders.tests.support.tiny_clip import TINY, tiny_clip
from concept_sliders.tests.support.tiny_vision import TINY as TINY_VISION

FOLDER = Path(comfy.clip_vision.__file__).parent
LLAVA = {**TINY_VISION, "projector_type": "llava3"}


def vision_of(config):
    """A tiny encoder with random weights."""
    vision = comfy.clip_vision.ClipVisionModel(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in vision.model.parameters():
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return vision


def images(count=3, size=(40, 56)):
    return torch.rand(count, *size, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def as_a_node():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("config", [TINY_VISION, LLAVA], ids=["CLIP", "LLaVA"])
def test_an_embedding_points_where_comfyuis_does(config):
    """But for the rounding to 8 bits, and of unit length."""
    vision = vision_of(config)
    expected = F.normalize(vision.encode_image(images())["image_embeds"].float(), dim=1)
    torch.testing.assert_close(image_embedding(vision)(images()), expected, rtol=0.01, atol=2e-3)


def test_more_images_than_a_batch_are_embedded_alike():
    embed = image_embedding(vision_of(TINY_VISION))
    many = images(19)
    torch.testing.assert_close(embed(many), torch.cat([embed(each[None]) for each in many]))


def full_size(kind):
    """ComfyUI's own configuration of a CLIP vision encoder; its weights are never touched."""
    return comfy.clip_vision.ClipVisionModel(str(FOLDER / f"clip_vision_config_{kind}.json"))


def clip_of(tokenizer, model):
    """A tiny text encoder of a class of ComfyUI's."""
    config, cpu = {**TINY, "num_hidden_layers": 3}, torch.device("cpu")
    options = {f"clip_{name}_model_config": config for name in ("l", "g", "h")}
    options |= {"load_device": cpu, "offload_device": cpu, "dtype": torch.float32}
    return comfy.sd.CLIP(ClipTarget(tokenizer, model), model_options=options, disable_dynamic=True)


@pytest.fixture(scope="module")
def sd2():
    clip = clip_of(comfy.text_encoders.sd2_clip.SD2Tokenizer, comfy.text_encoders.sd2_clip.SD2ClipModel)
    for parameter in clip.cond_stage_model.parameters():
        parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
    return clip


@pytest.fixture(scope="module")
def vit_h():
    return full_size("h")


def test_sd2_belongs_with_vit_h_and_is_encoded_as_comfyui_encodes_it(sd2, vit_h):
    texts = ["an old man", "a young woman"]
    found = text_embedding(sd2, vit_h)(texts)
    pooled = [sd2.encode_from_tokens(sd2.tokenize(text), return_pooled=True)[1] for text in texts]
    assert vision_name(vit_h) == "CLIP ViT-H" and float((found[0] - found[1]).abs().max()) > 1e-3
    torch.testing.assert_close(found, torch.cat(pooled).float())


def test_sdxl_and_sd3_belong_with_vit_bigg_and_not_with_vit_h(vit_h):
    for clip in (clip_of(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel), tiny_clip("SD3")):
        with pytest.raises(ValueError, match=r"clip_g of this CLIP belongs with CLIP ViT-bigG"):
            text_embedding(clip, vit_h)


def test_sd1_belongs_with_nothing_although_it_is_as_wide_as_vit_l(vit_h):
    vit_l = full_size("vitl")
    sd1 = comfy.sd.CLIP(ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel), model_options={})
    assert sd1.cond_stage_model.clip_l.transformer.text_projection.weight.shape[0] == vit_l.config["projection_dim"]
    for vision, name, belongs in (
        (vit_l, "CLIP ViT-L", "no text encoder here"),
        (vit_h, "CLIP ViT-H", "SD2's clip_h"),
    ):
        with pytest.raises(ValueError, match="clip_l is no projection into a space of images") as caught:
            text_embedding(sd1, vision)
        assert f"{name} belongs with {belongs}" in str(caught.value)
        assert "What would do: SDXL's clip_g with CLIP ViT-bigG" in str(caught.value)


@pytest.mark.parametrize(("kind", "known"), [("g", VIT_BIGG), ("h", VIT_H), ("vitl", VIT_L), ("vitl_336", VIT_L)])
def test_classes_are_told_by_comfyuis_configurations(kind, known):
    config = json.loads((FOLDER / f"clip_vision_config_{kind}.json").read_text())
    assert [each for each in (VIT_L, VIT_H, VIT_BIGG) if each.config.items() <= config.items()] == [known]
