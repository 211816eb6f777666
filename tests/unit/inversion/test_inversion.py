"""Inversion's mathematics against closed forms and a written-out loop, on models that are formulas."""

import math

import pytest
import torch
from concept_sliders.inversion.ddim import ddim_inversion, euler_step, fixed_point
from concept_sliders.inversion.null_text import GuidedStep, optimise_embedding
from concept_sliders.inversion.prompts import percent_windows, select_images, single_entry
from concept_sliders.inversion.settings import InversionSettings
from torch.nn.functional import mse_loss

SIGMAS = torch.tensor([3.0, 1.5, 0.7, 0.2, 0.0])


def of_standard_normals(x, sigma):
    """d(x, sigma) where the clean latents are standard normal: denoised is x / (1 + sigma^2)."""
    return x * sigma / (1 + sigma**2)


def test_plain_inversion_takes_each_step_from_where_it_stands():
    clean = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    (*_, noise) = ddim_inversion(of_standard_normals, clean, SIGMAS)
    factor = 1.0
    for sigma, following in [(0.2, 0.0), (0.7, 0.2), (1.5, 0.7), (3.0, 1.5)]:
        factor *= 1 + (sigma - following) * sigma / (1 + sigma**2)
    torch.testing.assert_close(noise, factor * clean, rtol=1e-6, atol=0)


def test_refined_inversion_is_what_sampling_undoes():
    clean = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    met = list(ddim_inversion(of_standard_normals, clean, SIGMAS, refinement=200))
    x = met[-1]
    for sigma, following, expected in zip(SIGMAS[:-1], SIGMAS[1:], [*met[-2::-1], clean], strict=True):
        x = euler_step(x, sigma, following, of_standard_normals(x, sigma))
        torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-9)


def test_refinement_goes_in_smaller_steps_where_whole_ones_lead_away():
    slopes = torch.tensor([[0.5], [-3.0]])  # y = 1 + slope y: the second row's whole steps grow without end
    y = fixed_point(lambda y: slopes * y, torch.ones(2, 1), torch.tensor(1.0), 40)
    torch.testing.assert_close(y, 1 / (1 - slopes))


@pytest.fixture
def toy():
    """A model that reads its embedding through a fixed map: predict, the step of two rows, embeddings."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    reads = normal(6, 12)
    step = GuidedStep(
        normal(2, 3, 2, 2), torch.tensor(1.5), torch.tensor(0.7), normal(2, 3, 2, 2), normal(2, 3, 2, 2), 7.5, 1.49
    )
    embedding = (normal(2, 2, 3),)

    def predict(x, embedding, rows):
        return torch.tanh(embedding[0].flatten(1) @ reads).view_as(x) + 0.1 * x

    return predict, step, embedding


def published(predict, step, embedding, inner_steps, rate, tolerance):
    """The published inner loop, for one row: its losses and the embedding it ends with."""
    u = embedding[0].clone().requires_grad_()
    optimizer, losses = torch.optim.Adam([u], lr=rate), []
    for _ in range(inner_steps):
        d_null = predict(step.x, (u,), None)
        d = d_null + step.guidance * (step.d_cond - d_null)
        landed = step.x + (step.next_sigma - step.sigma) * d
        loss = mse_loss(landed / step.loss_scale**0.5, step.target / step.loss_scale**0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if loss.item() < tolerance:
            break
    return losses, u.detach()


def row(step, at):
    return GuidedStep(
        step.x[at], step.sigma, step.next_sigma, step.target[at], step.d_cond[at], step.guidance, step.loss_scale
    )


@pytest.mark.parametrize("tolerance", [0.0, 35.0, 1e9])
def test_rows_are_fitted_as_the_published_loop_fits_each_alone(toy, tolerance):
    predict, step, embedding = toy
    found = optimise_embedding(predict, embedding, step, 30, 0.05, tolerance)
    for at in (slice(0, 1), slice(1, 2)):
        losses, u = published(predict, row(step, at), (embedding[0][at],), 30, 0.05, tolerance)
        assert found.losses[at.start] == pytest.approx(losses, rel=1e-5)
        torch.testing.assert_close(found.embedding[0][at], u, rtol=1e-4, atol=1e-5)


def test_a_tolerance_between_the_rows_ends_one_and_not_the_other(toy):
    predict, step, embedding = toy
    first, second = (losses[0] for losses in optimise_embedding(predict, embedding, step, 1, 0.05, 0.0).losses)
    lengths = [
        len(losses) for losses in optimise_embedding(predict, embedding, step, 5, 1e-4, (first + second) / 2).losses
    ]
    assert lengths == ([1, 5] if first < second else [5, 1])


def test_the_slope_is_the_losses_derivative(toy):
    predict, step, embedding = toy
    d_null = predict(step.x, embedding, None).requires_grad_()
    rows = torch.arange(2)
    (expected,) = torch.autograd.grad(step.losses(step.arrive(d_null, rows), rows).sum(), d_null)
    torch.testing.assert_close(step.gradient(step.arrive(d_null.detach(), rows), rows), expected)


def test_no_graph_is_left_of_a_fitted_step(toy):
    predict, step, embedding = toy
    found = optimise_embedding(predict, embedding, step, 3, 0.05, 0.0)
    assert not found.embedding[0].requires_grad and found.embedding[0].grad_fn is None
    assert not embedding[0].requires_grad


def test_a_loss_that_is_no_number_is_an_error(toy):
    predict, step, embedding = toy
    with pytest.raises(FloatingPointError, match=r"sigma 1\.5 is nan"):
        optimise_embedding(lambda *given: predict(*given) * float("nan"), embedding, step, 3, 0.05, 0.0)


def test_a_slope_that_is_no_number_is_an_error_even_in_the_last_step(toy):
    predict, step, embedding = toy

    def steep(x, embedding, rows):
        return predict(x, embedding, rows) + (embedding[0] - embedding[0].detach()).sqrt().sum()

    with pytest.raises(FloatingPointError, match=r"gradient of the loss at sigma 1\.5 is not finite"):
        optimise_embedding(steep, embedding, step, 1, 0.05, 0.0)


def test_an_embedding_that_is_not_read_is_an_error(toy):
    _, step, embedding = toy
    blind = torch.zeros(1).requires_grad_()
    with pytest.raises(ValueError, match="does not read the embedding"):
        optimise_embedding(lambda x, embedding, rows: x + blind, embedding, step, 3, 0.05, 0.0)


def test_the_schedule_of_the_inner_loop_is_the_published_one_at_50_steps():
    settings, steps = InversionSettings(), (0, 10, 49)
    assert [settings.learning_rate_at(i, 50) for i in steps] == pytest.approx([1e-2 * (1 - i / 100) for i in steps])
    assert [settings.tolerance_at(i, 50) for i in steps] == pytest.approx([1e-5 + 2e-5 * i for i in steps])
    longer = InversionSettings(steps=200)
    assert longer.learning_rate_at(199, 200) > 0
    assert longer.tolerance_at(200, 200) == pytest.approx(settings.tolerance_at(50, 50))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, "method must be one of null-text, negative prompt, plain; got 'magic'"),
        ({"pooled": "gone"}, "pooled must be one of held, optimised"),
        ({"steps": 0}, "steps must lie between 1 and 1000; got 0"),
        ({"cfg": math.nan}, "cfg must lie between 0 and 100; got nan"),
        ({"cfg": 1.0}, "no effect at a cfg of 1.*choose 'plain'"),
        ({"cfg": 1.0, "method": "negative prompt"}, "no effect at a cfg of 1"),
        ({"learning_rate": -1.0}, "learning_rate must lie between"),
        ({"tolerance": math.inf}, "tolerance must lie between"),
        ({"refinement": -1}, "refinement must lie between 0 and 100"),
    ],
)
def test_settings_out_of_range_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        InversionSettings(**changes)


def test_a_cfg_of_1_is_fine_for_plain_inversion():
    assert InversionSettings(method="plain", cfg=1.0).cfg == 1


def flow(percent, shift=2.0):
    """percent_to_sigma as the host's flow models have it."""
    t = min(1.0, max(0.0, 1 - percent))
    return shift * t / (1 + (shift - 1) * t)


def table(percent):
    """The same of a model with a table of noise levels: no end at the top, and a gap above 0."""
    return 1e9 if percent <= 0 else 0.0 if percent >= 1 else 0.03 * math.exp(6.2 * (1 - percent))


@pytest.mark.parametrize("percent_to_sigma", [flow, table])
@pytest.mark.parametrize("steps", [1, 2, 50, 1000])
def test_exactly_its_own_window_is_active_at_each_level(percent_to_sigma, steps):
    sigmas = [percent_to_sigma(max(i / steps, 1e-9)) for i in range(steps)] + [0.0]
    found = percent_windows(sigmas, percent_to_sigma)
    assert found[0][0] == 0 and found[-1][1] == 1
    for level, sigma in enumerate(sigmas[:-1]):
        active = [percent_to_sigma(end) <= sigma <= percent_to_sigma(start) for start, end in found]
        assert [i for i, is_active in enumerate(active) if is_active] == [level]


def test_levels_that_do_not_fall_or_are_all_but_the_same_are_refused():
    with pytest.raises(ValueError, match="do not fall at every step"):
        percent_windows([1.0, 0.5, 0.5, 0.0], flow)
    with pytest.raises(ValueError, match="cannot be told from its neighbours"):
        percent_windows([3.0, 2.0, 0.5, 0.0], flow)  # the model's levels end at 1


def prompt(rows=1, **options):
    return [[torch.randn(rows, 2, 3), options]]


@pytest.mark.parametrize(
    ("conditioning", "message"),
    [
        (prompt() * 2, "must be one prompt; got 2 combined"),
        ([], "must be one prompt; got 0"),
        (prompt(mask=torch.ones(1)), "positive has mask"),
        (prompt(area=(1, 1, 0, 0), start_percent=0.2), "positive has area, start_percent"),
        (prompt(control=object()), "positive has control"),
        (prompt(unclip_conditioning=[{}]), "positive has unclip_conditioning"),
        ([[torch.full((1, 2, 3), math.nan), {}]], "positive holds numbers that are not finite"),
        ([[None, {}]], "holds no encoded prompt"),
    ],
)
def test_prompts_that_are_more_than_words_are_refused(conditioning, message):
    with pytest.raises(ValueError, match=message):
        single_entry(conditioning, "positive")


def test_a_prompt_for_each_image_is_indexed():
    conditioning = prompt(3, pooled_output=torch.arange(3.0)[:, None], width=64, shared=torch.zeros(1, 3))
    ((encoding, options),) = select_images(conditioning, torch.tensor([2, 0, 2]), 3)
    assert torch.equal(encoding, conditioning[0][0][[2, 0, 2]])
    assert options["pooled_output"].flatten().tolist() == [2, 0, 2]
    assert options["width"] == 64 and options["shared"].shape == (1, 3)
    ((same, _),) = select_images(prompt(1), torch.tensor([0, 0]), 1)
    assert same.shape[0] == 1
