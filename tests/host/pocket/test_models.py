"""The pocket models at 128 px behind ComfyUI's stock nodes: they load, encode, see, sample and obey."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from concept_sliders.pocket.measuring.figures import psnr
from concept_sliders.pocket.measuring.probe import load_probe
from concept_sliders.pocket.measuring.report import Models, drawings, of_the_vae
from concept_sliders.pocket.measuring.sampling import Sampling, sampled
from concept_sliders.pocket.models.loading import load_pocket, weights_of
from concept_sliders.pocket.world.captions import caption
from concept_sliders.pocket.world.portrait import CONTINUOUS, STYLES, portraits

import nodes


@pytest.fixture(autouse=True)
def as_a_node():
    """ComfyUI runs its nodes under inference mode."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def models():
    with torch.inference_mode():
        *pocket, vision = load_pocket()
        return Models(tuple(pocket), vision, load_probe())


def test_the_vae_keeps_drawings(models):
    figures = of_the_vae(models, count=96)
    assert figures["dB"] >= 34
    assert min(figures[f"dB, {style}"] for style in STYLES) >= 31
    assert figures["dB lost to disturbed latents"] < 1
    assert max(figures[f"moved: {name}"] for name in CONTINUOUS) < 0.03


def test_pictures_of_other_sizes_go_through_comfyuis_nodes(models):
    images = drawings(portraits(1, seed=4)).repeat(2, 1, 2, 1)  # 128 x 256
    (latents,) = nodes.VAEEncode().encode(models.vae, images)
    assert latents["samples"].shape == (2, 8, 16, 32)
    (back,) = nodes.VAEDecode().decode(models.vae, latents)
    assert back.shape == images.shape and psnr(images, back).min() > 24


def test_drawings_find_their_captions(models):
    """Of 64 captions, each of which leaves a third unsaid."""
    people, rng = portraits(64, seed=9), np.random.default_rng(0)
    clip = models.pocket[1]
    with torch.inference_mode():
        read = [clip.encode_from_tokens(clip.tokenize(caption(p, rng)), return_pooled=True)[1] for p in people]
    cosines = models.features_of(drawings(people)) @ F.normalize(torch.cat(read).float(), dim=1).T
    found = (cosines.argmax(1) == torch.arange(64)).float().mean()
    assert found > 0.6


def test_comfyuis_clip_vision_node_sees_what_training_saw(models):
    images = drawings(portraits(4, seed=9))
    seen = nodes.CLIPVisionEncode().encode(models.vision, images, "none")[0]
    embeddings = F.normalize(seen["image_embeds"].float(), dim=1)
    torch.testing.assert_close(embeddings, models.features_of(images), atol=2e-3, rtol=0)


@pytest.mark.parametrize(("column", "low", "high", "apart"), [
    ("sky", "portrait of a person, night sky", "portrait of a person, noon sky", 0.75),
    ("smile", "portrait of a frowning person", "portrait of a laughing person", 0.6),
    ("age", "portrait of a very young person", "portrait of a very old person", 0.6),
])  # fmt: skip
def test_samples_follow_opposing_prompts(models, column, low, high, apart):
    images = sampled(models.pocket, [low] * 6 + [high] * 6, Sampling(steps=12))
    assert images.shape == (12, 128, 128, 3) and images.isfinite().all()
    read = models.read(images)[column]
    assert read[6:].mean() - read[:6].mean() > apart


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No unet of the pocket model at .*unet\.safetensors: train one"):
        weights_of(tmp_path, "unet")
