"""Null-text optimisation against the published loop written out, on a model that is a formula."""

from dataclasses import replace

import pytest
import torch
from concept_sliders.inversion.null_text import GuidedStep, optimise_embedding
from torch.nn.functional import mse_loss


@pytest.fixture
def toy():
    """A model that reads its embedding through a fixed map: predict, a step of two images, embeddings."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    reads = normal(6, 12)
    step = GuidedStep(
        normal(2, 3, 2, 2), torch.tensor(1.5), torch.tensor(0.7), normal(2, 3, 2, 2), normal(2, 3, 2, 2), 7.5, 1.49
    )
    embedding = (normal(2, 2, 3),)

    def predict(x, embedding, images):
        return torch.tanh(embedding[0].flatten(1) @ reads).view_as(x) + 0.1 * x

    return predict, step, embedding


def published(predict, step, embedding, inner_steps, rate, tolerance):
    """The published inner loop, for one image: its losses and the embedding it ends with."""
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


def image_of(step, at):
    return GuidedStep(
        step.x[at], step.sigma, step.next_sigma, step.target[at], step.d_cond[at], step.guidance, step.loss_scale
    )


@pytest.mark.parametrize("tolerance", [0.0, 35.0, 1e9])
def test_images_are_fitted_as_the_published_loop_fits_each_alone(toy, tolerance):
    predict, step, embedding = toy
    found = optimise_embedding(predict, embedding, step, 30, 0.05, tolerance)
    for at in (slice(0, 1), slice(1, 2)):
        losses, u = published(predict, image_of(step, at), (embedding[0][at],), 30, 0.05, tolerance)
        assert found.losses[at.start] == pytest.approx(losses, rel=1e-5)
        torch.testing.assert_close(found.embedding[0][at], u, rtol=1e-4, atol=1e-5)


def test_a_tolerance_between_two_images_ends_one_and_not_the_other(toy):
    predict, step, embedding = toy
    first, second = (losses[0] for losses in optimise_embedding(predict, embedding, step, 1, 0.05, 0.0).losses)
    lengths = [
        len(losses) for losses in optimise_embedding(predict, embedding, step, 5, 1e-4, (first + second) / 2).losses
    ]
    assert lengths == ([1, 5] if first < second else [5, 1])


def test_an_image_that_is_done_stays_as_it_is_while_another_goes_on(toy):
    """Adam's momentum would carry its embedding on, beyond where the published loop ends."""
    predict, step, embedding = toy
    far = replace(step, target=step.target + torch.tensor([0.0, 100.0]).view(2, 1, 1, 1))
    first, its_embedding = image_of(far, slice(0, 1)), (embedding[0][:1],)
    losses, _ = published(predict, first, its_embedding, 6, 0.05, 0.0)
    tolerance = (losses[4] + losses[5]) / 2
    found = optimise_embedding(predict, embedding, far, 30, 0.05, tolerance)
    losses, u = published(predict, first, its_embedding, 30, 0.05, tolerance)
    assert len(found.losses[0]) == len(losses) == 6 and len(found.losses[1]) == 30
    torch.testing.assert_close(found.embedding[0][:1], u, rtol=1e-4, atol=1e-5)


def test_the_slope_is_the_losses_derivative(toy):
    predict, step, embedding = toy
    d_null = predict(step.x, embedding, None).requires_grad_()
    images = torch.arange(2)
    (expected,) = torch.autograd.grad(step.losses(step.arrive(d_null, images), images).sum(), d_null)
    torch.testing.assert_close(step.gradient(step.arrive(d_null.detach(), images), images), expected)


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

    def steep(x, embedding, images):
        return predict(x, embedding, images) + (embedding[0] - embedding[0].detach()).sqrt().sum()

    with pytest.raises(FloatingPointError, match=r"gradient of the loss at sigma 1\.5 is not finite"):
        optimise_embedding(steep, embedding, step, 1, 0.05, 0.0)


def test_an_embedding_that_is_not_read_is_an_error(toy):
    _, step, embedding = toy
    blind = torch.zeros(1).requires_grad_()
    with pytest.raises(ValueError, match="does not read the embedding"):
        optimise_embedding(lambda x, embedding, images: x + blind, embedding, step, 3, 0.05, 0.0)
