"""Inverting images on ComfyUI's models, and making them again with its own samplers."""

import pytest
import torch
from concept_sliders.comfy_host.borrow import borrowed, for_autograd
from concept_sliders.comfy_host.denoiser import Denoiser
from concept_sliders.inversion import inversion_run
from concept_sliders.inversion.inversion_run import invert
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.inverting import STEPS, by_sampler_custom, inverted, ksampled, quick_settings
from concept_sliders.tests.support.tiny import difference, traces

GUIDED = ("SD 1", "SD 2", "SDXL", "SDXL refiner", "SD3", "AuraFlow", "PixArt Sigma", "Lumina 2", "Qwen-Image")
# On these it cannot work: no embedding of the negative prompt is read, guidance is distilled, the entries of a batch
# see each other, the image is one part of a latent, or noise is added to what goes with the prompt
LEFT_OUT = ("Stable Cascade B", "HiDream O1", "Hunyuan3D 2", "ACE-Step 1.5", "MiniMax H3", "SD 2.1 unCLIP")
OTHERS = [n for n, family in FAMILIES.items() if family.guidance > 1 and n not in (*GUIDED, *LEFT_OUT)]
SETTINGS = {"steps": 3, "cfg": 3.0, "inner_steps": 3, "learning_rate": 0.05, "tolerance": 0.0, "refinement": 1}


EARLY = 3e-3  # a tolerance at which some steps of the published loop end early


def of_family(name, batch_size=1, **changes):
    """(the family, its model, an inversion of a clean latent of it)."""
    family = FAMILIES[name]
    with torch.inference_mode():
        model = family.build()
        latents = torch.randn(batch_size, *family.latent, generator=torch.Generator().manual_seed(9))
        made = invert(
            model, latents, family.conditioning(2), family.conditioning(3), quick_settings(**{**SETTINGS, **changes})
        )
    return family, model, made


def off(model, again, made):
    """How far a latent is from the inverted one, in the model's own scale."""
    return difference(*(model.model.process_latent_in(latent) for latent in (again, made.clean)))


@pytest.mark.parametrize("name", GUIDED)
def test_stock_samplers_make_what_the_inversion_foresaw_on_every_family_with_guidance(name):
    """To float error: the same steps with the same embeddings, through ComfyUI's windows and its noise."""
    family, model, made = of_family(name)
    before = {key: tensor.clone() for key, tensor in model.model.state_dict().items()}
    again = by_sampler_custom(model, made, family.conditioning(2))
    # some of these models, with random weights as they are, lead far away
    assert off(model, again, made) == pytest.approx(float(made.error), rel=1e-5, abs=2e-4)
    torch.testing.assert_close(ksampled(model, made, family.conditioning(2)), again, rtol=1e-4, atol=1e-4)
    assert all(last < first for first, last in made.losses)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.model.state_dict().items())
    assert traces(model) == []


@pytest.mark.parametrize("name", OTHERS)
def test_stock_samplers_make_it_on_all_other_families_too(name):
    family, model, made = of_family(name, steps=2, inner_steps=2, learning_rate=0.005)
    again = by_sampler_custom(model, made, family.conditioning(2))
    assert off(model, again, made) == pytest.approx(float(made.error), rel=1e-5, abs=2e-4)
    assert all(last < first for first, last in made.losses)
    assert traces(model) == []


@pytest.mark.parametrize("name", ["Stable Cascade B", "HiDream O1"])
def test_a_model_that_reads_no_such_embedding_says_so(name):
    with pytest.raises(ValueError, match="does not read the embedding of the negative prompt"):
        of_family(name)


@pytest.mark.parametrize("name", GUIDED)
def test_fitting_gains_on_every_family_with_guidance(name):
    """By a tenth of the loss and more; and in the end the image is nearer than without."""
    family, model, made = of_family(name, steps=2, inner_steps=20)
    (first, last), *_ = made.losses
    assert last < 0.9 * first
    _, _, plain = of_family(name, steps=2, method="plain")
    assert float(made.error) < 0.97 * float(plain.error)
    again = by_sampler_custom(model, made, family.conditioning(2))
    assert off(model, again, made) == pytest.approx(float(made.error), rel=1e-3)
    assert not torch.equal(made.embeddings[0], made.embeddings[1])


@pytest.mark.parametrize("name", ["SD 1", "SD3"])
def test_null_text_comes_nearer_than_the_plain_inversion_under_guidance(name):
    _, _, plain = of_family(name, method="plain")
    _, _, fitted = of_family(name, pooled="optimised", inner_steps=20)
    assert float(fitted.error) < 0.8 * float(plain.error)


def test_the_pooled_part_stays_unless_it_is_to_be_fitted():
    family, model, fixed = of_family("SDXL")
    assert fixed.pooled is None
    assert torch.equal(fixed.options["pooled_output"], family.conditioning(3)[0][1]["pooled_output"])
    _, _, fitted = of_family("SDXL", pooled="optimised")
    assert fitted.pooled.shape == (3, 1, 1280)
    assert not torch.equal(fitted.pooled[0], fixed.options["pooled_output"])
    assert fitted.losses[-1][1] < fixed.losses[-1][1]
    again = by_sampler_custom(model, fitted, family.conditioning(2))
    assert off(model, again, fitted) == pytest.approx(float(fitted.error), abs=2e-4)


def test_negative_prompt_inversion_needs_no_fitting(pocket, images):
    made = inverted(pocket[0], images, method="negative prompt", steps=12, refinement=4)
    assert made.losses == () and made.distinct == 1
    assert torch.equal(made.embeddings[0], images.positive[0][0])
    for cfg in (3.0, 9.0):  # guidance cancels out
        again = by_sampler_custom(pocket[0], made, images.positive, cfg=cfg)
        assert difference(again, images.latents) == pytest.approx(difference_of(made, images), abs=1e-3)


def difference_of(made, images):
    """The error of all images together, from that of each."""
    sizes = images.latents.flatten(1).norm(dim=1)
    return float((made.error * sizes).norm() / sizes.norm())


def test_refinement_brings_the_inversion_nearer_on_an_eps_model():
    """Sampled at cfg 1 it lands nearer by half with every two iterations."""
    errors = [float(of_family("SD 1", method="plain", cfg=1.0, steps=50, refinement=n)[2].error) for n in (0, 2, 4)]
    assert errors[2] < 0.5 * errors[1] < 0.25 * errors[0]


def test_refinement_brings_the_inversion_nearer(pocket, images):
    published, refined = (
        inverted(pocket[0], images, method="negative prompt", steps=12, refinement=count) for count in (0, 4)
    )
    assert (refined.error < 0.5 * published.error).all()


@pytest.mark.parametrize("name", ["SD 1", "SD 2"])
def test_without_refinement_it_is_the_published_ddim_inversion(name):
    """Written out in DDIM's variables, on an eps- and on a v-model, whose network is asked past ComfyUI's scaling."""
    family, model, made = of_family(name, method="plain", steps=12, refinement=0)
    inner, sampling = model.model, model.model.model_sampling
    context, z = family.conditioning(2)[0][0], inner.process_latent_in(made.clean)
    alphas = [1 / (1 + sigma**2) for sigma in made.sigmas.double()]
    for upper, lower, sigma in zip(alphas[-2::-1], alphas[:0:-1], made.sigmas[:-1].flip(0)):
        timestep = sampling.timestep(sigma)[None].float()
        with torch.inference_mode():
            answer = inner.diffusion_model(z.float(), timestep, context=context).double()
        eps = answer if name == "SD 1" else upper.sqrt() * answer + (1 - upper).sqrt() * z
        clean = (z - (1 - lower).sqrt() * eps) / lower.sqrt()
        z = upper.sqrt() * clean + (1 - upper).sqrt() * eps
    noise = inner.process_latent_in(made.noise)
    assert difference(noise, (z / alphas[0].sqrt()).float()) < 1e-4
    assert made.prediction == {"SD 1": "EPS", "SD 2": "V_PREDICTION, EPS"}[name]


def test_the_inverted_images_are_made_again(pocket, images, inversion):
    again = by_sampler_custom(pocket[0], inversion, images.positive)
    assert difference(again, images.latents) == pytest.approx(difference_of(inversion, images), abs=1e-3)
    plain = inverted(pocket[0], images, method="plain")
    guided = by_sampler_custom(pocket[0], plain, images.positive)
    assert difference(guided, images.latents) == pytest.approx(difference_of(plain, images), abs=1e-3)
    assert (inversion.error < 0.7 * plain.error).all()


def test_images_of_a_batch_are_fitted_alone(pocket, images, inversion):
    alone = [invert_one(pocket, images, at) for at in range(2)]
    torch.testing.assert_close(inversion.noise, torch.cat([one.noise for one in alone]), rtol=1e-4, atol=1e-4)
    # Adam's first steps go by signs, which rounding may turn where a slope is next to nothing
    assert [float(one.error) for one in alone] == pytest.approx(inversion.error.tolist(), rel=0.1)


def invert_one(pocket, images, at, **changes):
    with torch.inference_mode():
        latents = images.latents[at : at + 1]
        return invert(pocket[0], latents, images.positive, images.negative, quick_settings(**changes))


def test_a_prompt_for_each_image(pocket, images):
    texts = ("portrait of a laughing man", "portrait of a very old woman")
    settings = {"method": "negative prompt", "steps": 4}
    together, alone = images.encoded(*texts), [images.encoded(text) for text in texts]
    with torch.inference_mode():
        made = invert(pocket[0], images.latents, together, images.negative, quick_settings(**settings))
        each = [
            invert(pocket[0], images.latents[at : at + 1], alone[at], images.negative, quick_settings(**settings))
            for at in range(2)
        ]
    torch.testing.assert_close(made.noise, torch.cat([one.noise for one in each]), rtol=1e-4, atol=1e-4)
    again = by_sampler_custom(pocket[0], made, together)
    assert difference(again, images.latents) == pytest.approx(difference_of(made, images), abs=1e-3)


@pytest.mark.parametrize("tolerance", [1e-5, EARLY])
def test_the_losses_are_those_of_the_published_loop(pocket, images, monkeypatch, tolerance):
    """Step by step and inner step by inner step, written out from the description, on the same model."""
    found = []
    own_optimise = inversion_run.optimise_embedding
    monkeypatch.setattr(
        inversion_run, "optimise_embedding", lambda *given: found.append(own_optimise(*given)) or found[-1]
    )
    settings = {"refinement": 0, "inner_steps": 4, "learning_rate": 0.01, "tolerance": tolerance, "cfg": 7.5}
    made = invert_one(pocket, images, 0, **settings)
    written = written_out(pocket[0], images, made.sigmas.tolist(), 4, 7.5, tolerance, "CONST" in made.prediction)
    assert len(found) == len(written) == STEPS
    for ours, theirs in zip(found, written, strict=True):
        assert ours.losses[0] == pytest.approx(theirs, rel=1e-4)
    if tolerance > 1e-3:  # some steps end early, and not all at once
        assert len({len(losses) for losses in written}) > 1


def written_out(model, images, sigmas, inner_steps, guidance, tolerance, is_flow):
    """Null-text inversion of the first image: DDIM inversion, then the optimisation of every step."""
    losses = []
    with borrowed(model):
        denoiser = Denoiser(model, {})
        context, options = for_autograd(images.negative)[0]
        n, z = len(sigmas) - 1, images.latents[:1].clone()

        def d(x, sigma, prompt=None):
            conditions = denoiser.conditions(prompt or for_autograd(images.positive), x)
            return denoiser.evaluate(x, torch.tensor(sigma), [conditions])[0]

        with torch.no_grad():
            stars = [z]
            for i in range(n - 1, -1, -1):
                scale = 1 if is_flow else ((1 + sigmas[i] ** 2) / (1 + sigmas[i + 1] ** 2)) ** 0.5
                z = z + (sigmas[i] - sigmas[i + 1]) * d(z * scale, sigmas[i])
                stars.append(z)
        x, u = stars[n], context.clone()
        for i in range(n):
            u = u.clone().detach().requires_grad_()
            adam = torch.optim.Adam([u], lr=1e-2 * (1 - i / (2 * n)))
            with torch.no_grad():
                d_c = d(x, sigmas[i])
            losses.append([])
            for _ in range(inner_steps):
                d_u = d(x, sigmas[i], [[u, {**options, "prompt_type": "negative"}]])
                landed = x + (sigmas[i + 1] - sigmas[i]) * (d_u + guidance * (d_c - d_u))
                scale = 1 if is_flow else (1 + sigmas[i + 1] ** 2) ** -0.5  # DDIM's own latents
                loss = torch.nn.functional.mse_loss(scale * landed, scale * stars[n - 1 - i])
                adam.zero_grad()
                loss.backward()
                adam.step()
                losses[-1].append(loss.item())
                if loss.item() < tolerance + i * 2 * tolerance * 50 / n:
                    break
            with torch.no_grad():
                d_u = d(x, sigmas[i], [[u.detach(), {**options, "prompt_type": "negative"}]])
                x = x + (sigmas[i + 1] - sigmas[i]) * (d_u + guidance * (d_c - d_u))
    return losses


def test_an_eps_models_losses_are_of_ddims_own_latents(monkeypatch):
    """The first of every step against the published one in alphas: z = x sqrt(a), where a = 1 / (1 + sigma^2)."""
    seen, own_optimise = [], inversion_run.optimise_embedding

    def watching(predict, embedding, step, *settings):
        with torch.no_grad():
            d_u = predict(step.x, embedding, torch.arange(1))
        fitted = own_optimise(predict, embedding, step, *settings)
        seen.append((step, d_u, fitted.losses[0][0]))
        return fitted

    monkeypatch.setattr(inversion_run, "optimise_embedding", watching)
    of_family("SD 1", inner_steps=1, refinement=0)
    for step, d_u, loss in seen:
        a, a_next = (1 / (1 + sigma**2) for sigma in (step.sigma, step.next_sigma))
        eps = d_u + step.guidance * (step.d_cond - d_u)
        z0 = (step.x * a.sqrt() - (1 - a).sqrt() * eps) / a.sqrt()
        landed = a_next.sqrt() * z0 + (1 - a_next).sqrt() * eps
        expected = torch.nn.functional.mse_loss(landed, step.target * a_next.sqrt())
        assert loss == pytest.approx(float(expected), rel=1e-3)
    assert len(seen) == 3
