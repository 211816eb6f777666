"""The VAE's network: shapes, what it hands out as latents, and its two terms against closed forms."""

import torch
from concept_sliders.pocket.models.autoencoder import CHANNELS, Autoencoder, divergence, sampled


def test_a_latent_stands_for_eight_by_eight_pixels():
    network = Autoencoder().eval()
    pictures = torch.rand(2, 3, 64, 128) * 2 - 1
    with torch.no_grad():
        latents = network.encode(pictures)
        assert latents.shape == (2, CHANNELS, 8, 16)
        assert network.decode(latents).shape == pictures.shape


def test_latents_are_handed_out_without_their_channels_mean_and_spread():
    network = Autoencoder().eval()
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        plain, decoded = network.encode(pictures), network.decode(network.encode(pictures))
        network.shift.fill_(0.5), network.scale.fill_(2.0)
        torch.testing.assert_close(network.encode(pictures), (plain - 0.5) / 2)
        torch.testing.assert_close(network.decode(network.encode(pictures)), decoded)


def test_divergence_from_a_unit_normal():
    zeros = torch.zeros(1, CHANNELS, 4, 4)
    assert divergence(zeros, zeros) == 0
    # KL(N(m, s^2), N(0, 1)) = (m^2 + s^2 - 1 - log s^2) / 2
    torch.testing.assert_close(divergence(zeros + 2, zeros), torch.tensor(2.0))
    torch.testing.assert_close(divergence(zeros, zeros + 1), torch.tensor((torch.e - 2) / 2))


def test_a_draw_has_the_posteriors_mean_and_spread():
    torch.manual_seed(0)
    drawn = sampled(torch.full((100_000,), 3.0), torch.full((100_000,), -1.0))
    torch.testing.assert_close(drawn.mean(), torch.tensor(3.0), atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.std(), torch.tensor(torch.e**-0.5).float(), atol=0.02, rtol=0)
