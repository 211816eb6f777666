"""DDIM inversion against closed forms, on models that are formulas."""

import torch
from concept_sliders.inversion.ddim import ddim_inversion, euler_step, fixed_point

SIGMAS = torch.tensor([3.0, 1.5, 0.7, 0.2, 0.0])


def of_standard_normals(x, sigma):
    """d(x, sigma) where the clean latents are standard normal: denoised is x / (1 + sigma^2)."""
    return x * sigma / (1 + sigma**2)


def scale_of_eps(sigma):
    """c_in of eps- and v-models."""
    return 1 / (1 + sigma**2) ** 0.5


def test_plain_inversion_is_ddims_step_asked_at_the_upper_timestep():
    """In DDIM's own variables, z = x sqrt(a) with a = 1 / (1 + sigma^2): eps of these normals is sqrt(1 - a) z."""
    clean = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    (*_, noise) = ddim_inversion(of_standard_normals, clean, SIGMAS, scale_of_eps)
    z, a = clean, 1 / (1 + SIGMAS.double() ** 2)
    for upper, lower in zip(a[:-1].flip(0), a[1:].flip(0)):
        eps = (1 - upper).sqrt() * z
        z = upper.sqrt() * (z - (1 - lower).sqrt() * eps) / lower.sqrt() + (1 - upper).sqrt() * eps
    torch.testing.assert_close(noise, z / a[0].sqrt(), rtol=1e-6, atol=0)


def test_latents_of_flow_models_are_asked_about_as_they_are():
    clean = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    (*_, noise) = ddim_inversion(of_standard_normals, clean, SIGMAS, torch.ones_like)
    factor = 1.0
    for sigma, following in [(0.2, 0.0), (0.7, 0.2), (1.5, 0.7), (3.0, 1.5)]:
        factor *= 1 + (sigma - following) * sigma / (1 + sigma**2)
    torch.testing.assert_close(noise, factor * clean, rtol=1e-6, atol=0)


def test_refined_inversion_is_what_sampling_undoes():
    clean = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    met = list(ddim_inversion(of_standard_normals, clean, SIGMAS, scale_of_eps, refinement=200))
    x = met[-1]
    for sigma, following, expected in zip(SIGMAS[:-1], SIGMAS[1:], [*met[-2::-1], clean], strict=True):
        x = euler_step(x, sigma, following, of_standard_normals(x, sigma))
        torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-9)


def test_refinement_goes_in_smaller_steps_where_whole_ones_lead_away():
    slopes = torch.tensor([[0.5], [-3.0]])  # y = 1 + slope y: the second entry's whole steps grow without end
    y = fixed_point(lambda y: slopes * y, torch.ones(2, 1), torch.tensor(1.0), torch.zeros(2, 1), 40)
    torch.testing.assert_close(y, 1 / (1 - slopes))
