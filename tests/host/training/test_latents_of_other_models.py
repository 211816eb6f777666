"""Latents of another model's VAE: said to be those, before anything is trained on them."""

import comfy.latent_formats
import pytest
import torch
from concept_sliders.comfy_host.latents import to_model_scale
from concept_sliders.nodes.training import TrainVisualSlider
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.tiny_vae import image_vae, video_vae
from concept_sliders.training.pairs.image_sets import ImagePairs, ImageSet
from concept_sliders.training.recipe import VisualRecipe
from concept_sliders.training.run import train_visual
from concept_sliders.training.visual_samples import LatentSet, encode_sets

PAIR = ImageSet(tuple(torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(3))), (-1.0, 1.0))
BELONGS = "Training: the VAE belongs to another model. It gave latents of "


def built(family):
    with torch.inference_mode():
        return FAMILIES[family].build()


def test_the_node_says_so():
    with torch.inference_mode():
        model, clip, *_ = load_pocket()
        with pytest.raises(ValueError, match=f"{BELONGS}4 channels in 4 dimensions.* takes 8 channels in 4 dim"):
            TrainVisualSlider.execute(model, clip, image_vae(4), ImagePairs((PAIR,)), "smile", steps=1, rank=1)


@pytest.mark.parametrize(
    ("family", "vae", "gave", "takes"),
    [
        ("SD 1", video_vae, "16 channels in 5 dimensions", "4 channels in 4 dimensions"),
        # Scaled by ComfyUI it would become a video of four frames that fits
        ("Wan 2.1", image_vae, "4 channels in 4 dimensions", "16 channels in 5 dimensions"),
        ("Flux", video_vae, "16 channels in 5 dimensions", "16 channels in 4 dimensions"),
    ],
)
def test_images_and_videos_are_told_apart(family, vae, gave, takes):
    with torch.inference_mode(), pytest.raises(ValueError, match=f"{BELONGS}{gave}.* takes {takes}"):
        encode_sets([PAIR], vae().encode, to_model_scale(built(family)))


def test_latents_that_were_scaled_elsewhere_are_checked_too():
    sets = [LatentSet(torch.randn(2, 16, 8, 8), (-1.0, 1.0))]
    with pytest.raises(ValueError, match=f"{BELONGS}16 channels.*SD15 takes 4 channels"):
        train_visual(built("SD 1"), {}, VisualRecipe(steps=1, rank=1), sets, "pair")


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "MiniMax H3"])
def test_what_a_models_own_vae_gives_is_taken(family):
    model, latents = built(family), torch.randn(2, *FAMILIES[family].latent)
    scaled = to_model_scale(model)(model.model.process_latent_out(latents))
    torch.testing.assert_close(scaled, latents, rtol=1e-4, atol=1e-4)


def test_a_vae_whose_frames_the_model_takes_two_in_one():
    model = built("HunyuanVideo")
    model.model.latent_format = comfy.latent_formats.HunyuanImage21Refiner()
    assert to_model_scale(model)(torch.randn(1, 32, 1, 4, 4)).shape == (1, 64, 1, 4, 4)
    with pytest.raises(ValueError, match=f"{BELONGS}64 channels in 5 dimensions.* takes 32 channels"):
        to_model_scale(model)(torch.randn(1, 64, 1, 4, 4))
