"""The head from latents to embeddings: it learns what a decoder and an encoder would say, for images and videos."""

import pytest
import torch
import torch.nn.functional as F
from concept_sliders.discovery.head import EmbeddingHead, explained, fitted_head


def world(shape, count=260):
    """Latents with two things that vary, and their embeddings."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(count, *shape, generator=generator) * 0.1
    marks = torch.rand(count, 2, generator=generator) * 2 - 1
    latents[:, 0] += marks[:, 0].view(-1, *(1 for _ in shape[1:]))
    latents[..., : shape[-1] // 2] += marks[:, 1].view(-1, *(1 for _ in shape))
    return latents, F.normalize(torch.cat([torch.ones(count, 2), marks], dim=1), dim=1)


@pytest.mark.parametrize("shape", [(4, 8, 8), (2, 3, 8, 8)])
def test_a_head_explains_samples_it_was_not_fitted_to_and_has_a_gradient(shape):
    latents, embeddings = world(shape)
    head = fitted_head(latents[:200], embeddings[:200], 60, torch.Generator().manual_seed(0))
    directions = torch.eye(4)[2:]
    assert explained(head, latents[200:], embeddings[200:], directions).min() > 0.8
    clean = latents[:2].clone().requires_grad_()
    (head(clean) @ directions.T).sum().backward()
    assert clean.grad.abs().max() > 1e-4 and not any(p.requires_grad for p in head.parameters())


def test_what_is_explained_is_nothing_by_the_mean_and_all_by_the_truth():
    latents, embeddings = world((4, 8, 8), 12)
    directions = torch.eye(4)[2:]
    mean = explained(lambda part: embeddings.mean(0).expand(len(part), 4), latents, embeddings, directions)
    assert mean.tolist() == pytest.approx([0.0, 0.0], abs=1e-5)
    assert explained(lambda part: embeddings, latents, embeddings, directions).tolist() == pytest.approx([1.0, 1.0])


def test_the_same_seed_gives_the_same_head_and_leaves_the_global_one_alone():
    latents, embeddings = world((4, 8, 8), 100)
    before = torch.random.get_rng_state()
    one, other = (fitted_head(latents, embeddings, 5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


def test_a_stop_keeps_what_was_fitted():
    latents, embeddings = world((4, 8, 8), 100)
    seen = []
    head = fitted_head(latents, embeddings, 50, torch.Generator(), lambda step: seen.append(step) or step == 3)
    assert seen == [0, 1, 2, 3] and isinstance(head, EmbeddingHead)
