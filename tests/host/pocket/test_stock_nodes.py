"""The pocket model behind ComfyUI's stock nodes: it loads, samples, encodes, obeys and takes a LoRA."""

import folder_paths
import latent_preview
import numpy as np
import pytest
import torch
from concept_sliders.nodes.pocket import DrawPortrait
from concept_sliders.pocket.measuring.probe import load_probe
from concept_sliders.pocket.models.autoencoder import CHANNELS
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.pocket.world.captions import vocabulary
from concept_sliders.pocket.world.drawing import draw
from concept_sliders.pocket.world.portrait import STYLES, Portrait, portraits
from safetensors.torch import save_file

import nodes

STEPS = 20
CFG = 3.0


@pytest.fixture(autouse=True)
def as_a_node():
    """The host runs its nodes under inference mode."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def pocket():
    with torch.inference_mode():
        return load_pocket()[:3]


@pytest.fixture(scope="module")
def drawings() -> torch.Tensor:
    """(24, 128, 128, 3) in [0, 1], eight of each style."""
    people = [p.with_(style=style) for style in STYLES for p in portraits(8, seed=11)]
    return torch.from_numpy(np.stack([draw(p) for p in people])).float() / 255


def encode(clip, text: str):
    return nodes.CLIPTextEncode().encode(clip, text)[0]


def sample(pocket, text: str, count=1, seed=5, steps=STEPS, size=(128, 128)) -> torch.Tensor:
    """(count, 8, h, w) latents by the stock nodes."""
    model, clip, _ = pocket
    latent = nodes.EmptyLatentImage().generate(*size, count)[0]
    positive, negative = encode(clip, text), encode(clip, "")
    out = nodes.KSampler().sample(model, seed, steps, CFG, "euler", "normal", positive, negative, latent)
    return out[0]["samples"]


def test_sampling_gives_pictures(pocket):
    latents = sample(pocket, "portrait of a smiling old woman, night sky", count=2)
    assert latents.shape == (2, CHANNELS, 16, 16) and latents.isfinite().all()
    (pictures,) = nodes.VAEDecode().decode(pocket[2], {"samples": latents})
    assert pictures.shape == (2, 128, 128, 3)
    assert pictures.min() >= 0 and pictures.max() <= 1
    assert pictures.std() > 0.1


def test_an_empty_latent_of_another_size_is_fitted_too(pocket):
    assert sample(pocket, "a man", steps=1, size=(256, 128)).shape == (1, CHANNELS, 16, 32)


def test_sampling_is_deterministic(pocket):
    first = sample(pocket, "a man", steps=4)
    assert torch.equal(first, sample(pocket, "a man", steps=4))
    assert not torch.allclose(first, sample(pocket, "a man", steps=4, seed=6))


def test_the_prompt_rules_the_sky(pocket):
    probe = load_probe()
    noon, night = (
        probe.read(nodes.VAEDecode().decode(pocket[2], {"samples": sample(pocket, text, count=6)})[0])["sky"]
        for text in ("portrait of a person, noon sky", "portrait of a person, night sky")
    )
    assert noon.mean() - night.mean() > 0.5
    assert noon.min() > night.max()


def test_encoding_and_decoding_keep_a_drawing(pocket, drawings):
    (latent,) = nodes.VAEEncode().encode(pocket[2], drawings)
    assert latent["samples"].shape == (24, CHANNELS, 16, 16)
    (back,) = nodes.VAEDecode().decode(pocket[2], latent)
    psnr = -10 * (back - drawings).square().mean((1, 2, 3)).log10()
    assert psnr.mean() > 34
    assert psnr.min() > 28


def test_a_prompt_becomes_tokens_and_a_pooled_vector(pocket):
    ((tokens, more),) = encode(pocket[1], "an elderly lady, pastel")
    assert tokens.shape == (1, 40, 128) and more["pooled_output"].shape == (1, 128)
    assert tokens.isfinite().all()


def test_emphasis_changes_the_conditioning(pocket):
    words = ("old", "(old:1.0)", "(old:1.5)", "(old:0.5)")
    plain, same, strong, weak = (encode(pocket[1], f"portrait of an {word} person")[0][0] for word in words)
    assert torch.equal(plain, same)
    assert not torch.allclose(plain, strong) and not torch.allclose(strong, weak)


def test_words_of_no_caption_are_left_out(pocket):
    plain, other, sad = (encode(pocket[1], text)[0][0] for text in ("a man", "a xyzzy man", "a sad man"))
    assert torch.equal(plain, other) and not torch.allclose(plain, sad)


def test_a_prompt_longer_than_the_encoder_is_read_in_parts(pocket):
    ((tokens, _),) = encode(pocket[1], ", ".join(vocabulary()))
    assert tokens.shape[1] % 40 == 0 and tokens.shape[1] > 40


def test_the_stock_lora_loader_reaches_model_and_clip(pocket, tmp_path, monkeypatch):
    model, clip, _ = pocket
    generator = torch.Generator().manual_seed(0)
    layers = {
        "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_v": (128, 128),
        "lora_te_text_model_encoder_layers_0_mlp_fc1": (128, 384),
    }
    weights = {}
    for name, (inputs, outputs) in layers.items():
        weights[f"{name}.lora_down.weight"] = torch.randn(2, inputs, generator=generator) * 0.3
        weights[f"{name}.lora_up.weight"] = torch.randn(outputs, 2, generator=generator) * 0.3
        weights[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(weights, str(tmp_path / "some.safetensors"))
    monkeypatch.setattr(folder_paths, "get_full_path_or_raise", lambda _, name: str(tmp_path / name))

    new_model, new_clip = nodes.LoraLoader().load_lora(model, clip, "some.safetensors", 1.0, 1.0)
    assert len(new_model.patches) == 1 and len(new_clip.patcher.patches) == 1
    bare = sample(pocket, "a man", steps=2)
    assert not torch.allclose(bare, sample((new_model, clip, None), "a man", steps=2))
    assert not torch.allclose(bare, sample((model, new_clip, None), "a man", steps=2))
    assert torch.equal(bare, sample(pocket, "a man", steps=2))


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No unet of the pocket model at .*unet\.safetensors: train one"):
        load_pocket(tmp_path)


def test_a_drawing_is_refined_like_a_photograph(pocket):
    """Image to image: what is half noised keeps its place and its style."""
    model, clip, vae = pocket
    person = Portrait(sky=0.1, glasses=True)
    picture = torch.tensor(draw(person))[None].float() / 255
    (latent,) = nodes.VAEEncode().encode(vae, picture)
    positive, negative = encode(clip, "portrait of a woman with glasses, night sky"), encode(clip, "")
    sampler = nodes.KSampler().sample
    (out,) = sampler(model, 1, STEPS, 1.0, "euler", "normal", positive, negative, latent, denoise=0.3)
    (again,) = nodes.VAEDecode().decode(vae, out)
    reading = load_probe().read(again)
    assert reading["sky"].item() < 0.3 and reading["glasses"].item() > 0.5
    assert (again - picture).abs().mean() < 0.06


def test_the_preview_resembles_the_picture(pocket, drawings):
    model, _, vae = pocket
    latents = nodes.VAEEncode().encode(vae, drawings)[0]["samples"]
    latent_format = model.model.latent_format
    previewer = latent_preview.Latent2RGBPreviewer(
        latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias
    )
    preview = previewer.decode_latent_to_preview(latents[:1])
    shown = torch.from_numpy(np.array(preview.convert("RGB"))).float() / 255  # (16, 16, 3)
    small = drawings[0].unfold(0, 8, 8).unfold(1, 8, 8).mean((-1, -2))  # (128, 128, 3) -> (16, 16, 3)
    assert (shown - small).abs().mean() < 0.08


def test_a_drawings_caption_leaves_out_what_it_is_asked_to():
    words = [DrawPortrait.execute(seed, 1, "age, smile").result[1] for seed in range(40)]
    spoken = {word for text in words for word in text.replace(",", "").split()}
    assert not spoken & {"old", "young", "elderly", "middle-aged", "frowning", "smiling", "laughing", "calm", "sad"}
    assert any("eyes" in text for text in words)
    with pytest.raises(ValueError, match="can leave out age, smile, eye_size; got hat"):
        DrawPortrait.execute(0, 1, "age, hat")
