"""Samples of a visual slider on a toy denoiser whose answers are known in closed form."""

import pytest
import torch
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.equation.hooks import SliderHooks
from concept_sliders.training.objectives import prediction_loss
from concept_sliders.training.pairs.image_sets import ImageSet
from concept_sliders.training.recipe import VISUAL_METHODS, VisualRecipe
from concept_sliders.training.visual_samples import LatentSet, VisualSamples, encode_sets
from torch import nn

SHAPE = (4, 2, 2)
KINDS = ("eps", "flow")


class Toy:
    """The best denoiser for latents that are standard normal, D(x) = keep(sigma) x, by two linear layers."""

    device = torch.device("cpu")

    def __init__(self, kind):
        self.kind = kind
        turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(5))).Q
        self.layers = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(2)).requires_grad_(False)
        self.layers[0].weight.copy_(turn)
        self.layers[1].weight.copy_(turn.T)

    def keep(self, sigma):
        signal = 1.0 if self.kind == "eps" else 1 - sigma
        return signal / (signal**2 + sigma**2)

    def sigmas(self, steps):
        return torch.linspace(10.0 if self.kind == "eps" else 0.99, 0.0, steps + 1)

    def scale_noise(self, sigma, noise, latents):
        return latents + sigma * noise if self.kind == "eps" else (1 - sigma) * latents + sigma * noise

    def input_scale(self, sigma):
        return (1 + sigma**2) ** -0.5 if self.kind == "eps" else torch.ones(())

    def __call__(self, x, sigma, prompts):
        assert len(prompts) == 1
        first, second = self.layers
        return (((1 - self.keep(sigma)) / sigma) * second(first(x.flatten(1)))).unflatten(1, SHAPE)[None]

    @torch.no_grad()
    def predict(self, x, sigma, prompts):
        return self(x, sigma, prompts)

    def estimate(self, x, sigma):
        return x - sigma * self(x, sigma, [""])[0]


def latents(count, seed=0):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def samples(kind="eps", method="noise", sets=None, seed=1, **recipe):
    sets = sets or [LatentSet(latents(2), (-1.0, 1.0), "a face")]
    return VisualSamples(Toy(kind), sets, VisualRecipe(method=method, **recipe), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_is_the_noise_or_the_velocity_and_one_noise_serves_all_images(kind):
    clean = latents(2)
    sample = next(samples(kind, sets=[LatentSet(clean, (-1.0, 1.0), "a face")]))
    signal = 1.0 if kind == "eps" else 1 - sample.sigma
    noise = (sample.x - signal * clean) / sample.sigma
    torch.testing.assert_close(noise[0], noise[1], rtol=1e-3, atol=1e-3)
    expected = noise if kind == "eps" else noise - clean
    torch.testing.assert_close(sample.target, expected, rtol=1e-3, atol=1e-3)
    assert sample.strengths.tolist() == [[-1.0], [1.0]] and sample.prompt == "a face" and sample.mask is None


def test_images_at_zero_are_no_batch_entries_of_the_published_method():
    one = LatentSet(latents(4), (-2.0, 0.0, 1.0, 2.0))
    sample = next(samples(sets=[one]))
    assert sample.strengths[:, 0].tolist() == [-2.0, 1.0, 2.0]
    assert len(sample.x) == len(sample.target) == 3
    assert next(samples(sets=[one], both_signs=False)).strengths[:, 0].tolist() == [1.0, 2.0]


def test_for_eps_models_the_teachers_prediction_is_the_target_itself():
    toy, sample = Toy("eps"), next(samples("eps", "ADDifT"))
    torch.testing.assert_close(
        sample.target, toy.predict(sample.x, sample.sigma, [""])[0].flip(0), rtol=1e-3, atol=1e-3
    )
    assert sample.strengths.tolist() == [[-2.0], [2.0]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_student_is_to_miss_its_image_as_the_teacher_misses_its_own(kind):
    clean, toy = latents(2), Toy(kind)
    sample = next(samples(kind, "ADDifT", [LatentSet(clean, (-1.0, 1.0))]))
    missed = toy.estimate(sample.x, sample.sigma) - clean
    estimate = sample.x - sample.sigma * sample.target
    torch.testing.assert_close(estimate, clean + missed.flip(0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_what_addift_asks_for_has_the_direction_of_its_strength(kind):
    """From the frozen estimate: towards more where the strength is above 0, towards less where it is below."""
    clean, toy = latents(4), Toy(kind)
    source = samples(kind, "ADDifT", [LatentSet(clean, (-2.0, -1.0, 1.0, 2.0))])
    for _ in range(20):
        sample = next(source)
        change = sample.x - sample.sigma * sample.target - toy.estimate(sample.x, sample.sigma)
        for entry in range(4):
            other = next(
                j for j, s in enumerate((-2, -1, 1, 2)) if (-2, -1, 1, 2)[entry] - s == sample.strengths[entry]
            )
            step = clean[entry] - clean[other]
            share = (change[entry] * step).sum() / step.square().sum()
            torch.testing.assert_close(change[entry], share * step, rtol=1e-2, atol=1e-3)
            signal = 1.0 if kind == "eps" else float(1 - sample.sigma)
            assert float(share) == pytest.approx(1 - float(toy.keep(sample.sigma)) * signal, abs=1e-3)
            assert share > 0


@pytest.mark.parametrize("kind", KINDS)
def test_both_methods_ask_the_same_of_a_slider_that_adds_one_thing_everywhere(kind):
    """d + s b: the b of least squares is the same, so that strengths mean the same."""
    toy, fits = Toy(kind), []
    for method in VISUAL_METHODS:
        sample = next(samples(kind, method))
        s = sample.strengths.view(-1, 1, 1, 1)
        wanted = sample.target - toy.predict(sample.x, sample.sigma, [""])[0]
        fits.append((s * wanted).sum(0) / s.square().sum())
    torch.testing.assert_close(*fits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", VISUAL_METHODS)
def test_a_slider_learned_from_pairs_moves_both_ways(kind, method):
    scene, step = 2 * latents(3, seed=7), latents(1, seed=8)
    scene[:] += 3 * latents(1, seed=9)  # what the scenes have in common
    sets = [LatentSet(torch.cat([one[None] - step, one[None] + step]), (-1.0, 1.0)) for one in scene]
    source = samples(kind, method, sets, end_percent=0.4)  # where the layers push the same way at all levels
    toy = source.denoiser
    change = LowRank.fresh((16, 16), 2, torch.Generator().manual_seed(0))
    learned = [nn.Parameter(t) for t in (change.down, change.up)]
    bank = SliderHooks({toy.layers[1]: [(0, LowRank(*learned))]})
    optimizer = torch.optim.Adam(learned, lr=0.02)
    for _ in range(300):
        sample = next(source)
        with bank.acting(sample.strengths):
            loss = prediction_loss(toy(sample.x, sample.sigma, [sample.prompt])[0], sample.target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sigma = toy.sigmas(100)[20]
    x = toy.scale_noise(sigma, latents(1, seed=10), scene[:1]).repeat(3, 1, 1, 1)
    with torch.no_grad(), bank.acting(torch.tensor([[-1.0], [0.0], [1.0]])):
        less, base, more = toy.estimate(x, sigma)
    # The published objective has the model's other mistakes to mend as well; the teacher's shares them.
    enough = 0.3 if method == "noise" else 0.8
    up, down = (torch.cosine_similarity((end - base).flatten(), step.flatten(), dim=0) for end in (more, less))
    assert up > enough and down < -enough


def test_every_set_comes_once_before_one_comes_again():
    sets = [LatentSet(latents(2, seed), (-1.0, 1.0), str(seed)) for seed in range(4)]
    source = samples(sets=sets)
    for _ in range(3):
        assert sorted(next(source).prompt for _ in sets) == list("0123")


def test_sigmas_come_from_the_part_of_sampling_that_is_asked_for():
    source = samples(start_percent=0.5, end_percent=0.75)
    levels = [float(next(source).sigma) for _ in range(200)]
    assert 2.5 <= min(levels) < 2.7 and 4.8 < max(levels) <= 5.0


@pytest.mark.parametrize("method", VISUAL_METHODS)
def test_a_restored_source_goes_on_bit_for_bit(method):
    sets = [LatentSet(latents(3, seed), (-1.0, 0.5, 1.0), str(seed)) for seed in range(3)]
    source = samples("flow", method, sets)
    next(source)
    state, drawn = source.state(), source.generator.get_state()
    after = [next(source) for _ in range(5)]
    again = samples("flow", method, sets, seed=99)
    again.generator.set_state(drawn)
    again.restore(state)
    for sample in after:
        same = next(again)
        assert torch.equal(sample.x, same.x) and torch.equal(sample.target, same.target)
        assert torch.equal(sample.strengths, same.strengths) and sample.prompt == same.prompt


def test_the_mask_shrinks_to_the_latents():
    mask = torch.zeros(64, 64)
    mask[:, 48:] = 1
    sample = next(samples(sets=[LatentSet(latents(2), (-1.0, 1.0), mask=mask)]))
    assert sample.mask.shape == (1, 1, 2, 2)
    assert sample.mask[0, 0].tolist() == [[0.0, 0.5], [0.0, 0.5]]
    video = LatentSet(torch.zeros(2, 4, 1, 2, 2), (-1.0, 1.0), mask=mask)
    assert video.mask_for_latents().shape == (1, 1, 1, 2, 2)


def test_images_are_encoded_one_by_one_and_scaled():
    image = torch.arange(2 * 64 * 64 * 3).float().reshape(2, 64, 64, 3)
    seen = []

    def encode(one):
        seen.append(one.shape)
        return one.movedim(-1, 1)[:, :, ::8, ::8]

    pair = ImageSet(tuple(image), (-1.0, 2.0), "pair", "a face", torch.ones(64, 64))
    (one,) = encode_sets([pair], encode, lambda x: 2 * x)
    assert seen == [(1, 64, 64, 3)] * 2
    assert torch.equal(one.latents, 2 * image.movedim(-1, 1)[:, :, ::8, ::8])
    assert (one.strengths, one.prompt, one.name) == ((-1.0, 2.0), "a face", "pair") and one.mask is pair.mask


def test_sets_that_teach_nothing_are_refused():
    with pytest.raises(ValueError, match="no image pairs"):
        VisualSamples(Toy("eps"), [], VisualRecipe(), torch.Generator())
    with pytest.raises(ValueError, match="Image set 1 has the strengths -2, -1: none above 0"):
        samples(sets=[LatentSet(latents(2), (-2.0, -1.0))], both_signs=False)


SAME = latents(1).expand(2, *SHAPE)


def test_images_that_are_all_the_same_are_refused_or_where_others_differ_warned_of(caplog):
    twins = LatentSet(SAME, (-1.0, 1.0), name="twins.png")
    with pytest.raises(ValueError, match=r"set 1 \(twins.png\), 2 do not differ, and there is nothing to learn"):
        samples(sets=[twins, LatentSet(SAME, (-1.0, 1.0))])
    assert not caplog.text
    next(samples(sets=[LatentSet(latents(2), (-1.0, 1.0)), twins]))
    assert "The images of set 2 (twins.png) do not differ" in caplog.text
    caplog.clear()
    samples(sets=[LatentSet(torch.cat([SAME, latents(1, 5)]), (-1.0, 0.5, 1.0))])
    assert not caplog.text


def test_images_that_differ_by_rounding_or_outside_their_mask_alone_are_refused():
    left = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    hidden = torch.cat([SAME[:1], SAME[:1] + (1 - left)])
    for alike, mask in ((SAME + 1e-6 * latents(2), None), (hidden, left), (latents(2), torch.zeros(2, 2))):
        with pytest.raises(ValueError, match="set 1 do not differ, and there is nothing to learn"):
            samples(sets=[LatentSet(alike, (-1.0, 1.0), mask=mask)])
    samples(sets=[LatentSet(hidden, (-1.0, 1.0), mask=1 - left)])


def test_images_that_differ_little_are_warned_of_with_by_how_much(caplog):
    step = torch.stack([-latents(1)[0], latents(1)[0]])  # around it the rms is the image's own
    for size, said in (
        (0.004, "There is little to learn from set 1 (pair.png): its images differ by 0.004"),
        (0.02, ""),
    ):
        caplog.clear()
        samples(sets=[LatentSet(latents(1) + size * step, (-1.0, 1.0), name="pair.png")])
        assert said in caplog.text and bool(said) == bool(caplog.text)


@pytest.mark.parametrize("kind", KINDS)
def test_addift_weighs_errors_as_a_velocitys_on_every_model(kind):
    """A wrong estimate D + e costs |e|^2 (1 + sigma^2) / sigma^2 on an eps-model, |e|^2 / sigma^2 on a flow model."""
    for seed in range(4):
        sample = next(samples(kind, "ADDifT", seed=seed))
        error = torch.full_like(sample.target, 0.3)
        cost = sample.loss(sample.target - error / sample.sigma, torch.arange(len(error)))
        velocity = 0.3 * ((1 + sample.sigma**2) ** 0.5 if kind == "eps" else 1.0) / sample.sigma
        torch.testing.assert_close(cost, velocity**2)


def test_the_published_loss_has_no_weight():
    assert all(next(samples("eps", "noise", seed=seed)).weight == 1.0 for seed in range(4))
