"""Image encoders as functions with gradients: as ComfyUI embeds, for every class of encoder."""

import comfy.clip_model
import pytest
import torch
from comfy.clip_vision import ClipVisionModel
from concept_sliders.comfy_host.autograd import differentiable
from concept_sliders.comfy_host.borrow import borrowed
from concept_sliders.comfy_host.image_encoder import ImageEncoder

SMALL: dict[str, object] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_channels": 3, "intermediate_size": 64,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "image_size": 28, "patch_size": 14, "mlp_ratio": 2,
}  # fmt: skip
CLASSES: dict[str, dict[str, object]] = {
    "CLIP": {"model_type": "clip_vision_model", "projection_dim": 16},
    "SigLIP": {"model_type": "siglip_vision_model", "hidden_act": "gelu_pytorch_tanh"},
    "SigLIP 2": {"model_type": "siglip2_vision_model", "image_size": -1, "num_patches": 4,
                 "hidden_act": "gelu_pytorch_tanh"},
    "DINOv2": {"model_type": "dinov2", "use_swiglu_ffn": False},
    "DINOv3": {"model_type": "dinov3", "num_register_tokens": 2, "query_bias": True, "key_bias": False,
               "value_bias": True, "proj_bias": True, "mlp_bias": True, "use_gated_mlp": False, "rope_theta": 100.0},
}  # fmt: skip


def encoder_of(name: str) -> ClipVisionModel:
    with torch.inference_mode():  # as ComfyUI loads it
        encoder = ClipVisionModel({**SMALL, **CLASSES[name]})
        generator = torch.Generator().manual_seed(0)
        state = {k: torch.randn(v.shape, generator=generator) * 0.1 for k, v in encoder.get_sd().items()}
        encoder.load_sd(state)
    return encoder


def images(height, width, levels=256):
    """Of 8 bits, so that ComfyUI's rounding does nothing."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(levels, (2, height, width, 3), generator=generator).float() / (levels - 1)


def comfyui_embeds(encoder, shown):
    """By ComfyUI's own preparation and model; its `encode_image` stumbles over DINOv3, which has no inner states."""
    flexible = encoder.image_size < 0
    prepare = comfy.clip_model.siglip2_preprocess if flexible else comfy.clip_model.clip_preprocess
    sizes = {"patch_size": 14, "num_patches": 4} if flexible else {}
    with torch.inference_mode():
        pixels = prepare(shown, encoder.image_size, mean=encoder.image_mean, std=encoder.image_std, **sizes)
        embeds = encoder.model(pixel_values=pixels)[2].float()
    return torch.nn.functional.normalize(embeds.mean(1) if embeds.ndim == 3 else embeds, dim=-1)


@pytest.mark.parametrize("name", CLASSES)
def test_embeddings_are_those_of_comfyui(name):
    encoder = encoder_of(name)
    for shown, tolerance in ((images(28, 28), 1e-5), (images(40, 30), 5e-3)):  # resizing leaves 8 bits
        with borrowed(encoder.patcher):
            ours = ImageEncoder(encoder)(shown)
        torch.testing.assert_close(ours, comfyui_embeds(encoder, shown), atol=tolerance, rtol=0)
        torch.testing.assert_close(ours.norm(dim=-1), torch.ones(2))


@pytest.mark.parametrize("name", CLASSES)
def test_gradients_reach_every_place_of_the_images(name):
    encoder = encoder_of(name)
    with borrowed(encoder.patcher), differentiable():
        shown = (images(28, 28) * 0.5 + 0.25).requires_grad_()  # within the range, where nothing is cut off
        ImageEncoder(encoder)(shown)[:, 0].sum().backward()
    assert (shown.grad.abs().amax(-1) > 0).float().mean() > 0.99


def test_what_sets_encoders_apart_is_their_weights_and_their_class():
    digests = {ImageEncoder(encoder_of(name)).digest() for name in CLASSES}
    assert len(digests) == len(CLASSES)
    assert ImageEncoder(encoder_of("CLIP")).digest() in digests
