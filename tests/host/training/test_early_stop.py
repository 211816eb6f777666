"""Training that ends when the slider reaches no further."""

import comfy.sd
import pytest
import torch
from concept_sliders.nodes.run_progress import watch_training
from concept_sliders.nodes.training import TrainSlider
from concept_sliders.tests.support.reports import warned
from concept_sliders.tests.support.tiny_vision import tiny_vision
from concept_sliders.training.concept import Concept
from concept_sliders.training.early_stop import EarlyStop
from concept_sliders.training.recipe import TextualRecipe
from concept_sliders.training.run import EVALUATED, RunOptions, train_textual

CONCEPT = Concept("portrait of a person", "very old person", "very young person", eta=2.0)
LATENTS = torch.zeros(1, 8, 8, 8)


@pytest.fixture(scope="module")
def train(pocket):
    model, clip, _ = pocket
    with torch.inference_mode():
        prompts = (*CONCEPT.prompts(), "")
        conditionings = {p: clip.encode_from_tokens_scheduled(clip.tokenize(p)) for p in prompts}

    def run(run_options=None, **settings):
        settings = {"rollout_steps": 3, "samples_per_rollout": 6, "steps": 200, "rank": 1, **settings}
        with torch.inference_mode():
            recipe = TextualRecipe(concepts=(CONCEPT,), **settings)
            return train_textual(model, conditionings, recipe, LATENTS, "age", run_options)

    return run


def readings(values, patience):
    """After which step a run ends whose effect is measured so, one value every 20 steps."""
    early_stop, left = EarlyStop(None, patience), list(values)
    early_stop.effect = lambda: left.pop(0)
    for step in range(1, 20 * len(values) + 1):
        early_stop.evaluate(step)
        if early_stop.has_converged:
            return step
    return None


def test_it_ends_after_so_many_evaluations_without_growth():
    growing = [0.1, 0.2, 0.3, 0.4]
    assert readings(growing, 2) is None
    assert readings([*growing, 0.4, 0.401], 2) == 120
    assert readings([*growing, 0.3, 0.5, 0.5, 0.505], 2) == 160
    assert readings([*growing, 0.4, 0.4], 0) is None
    rounding = [4e-7, 5e-7, 6e-7, 7e-7]
    assert readings(rounding, 2) == 60
    assert readings([*rounding[:2], 0.01, 0.02], 2) is None


def test_a_slider_that_learns_nothing_ends_early_and_one_that_learns_does_not(train, evaluated_often):
    still = train(learning_rate=1e-9, patience=2).progress
    assert still.converged and not still.stopped and still.steps == 15
    learning = train(learning_rate=5e-4, patience=2, steps=15).progress
    assert learning.steps == 15 and not learning.converged


def test_the_effect_grows_with_the_slider(train, evaluated_often):
    effects = []

    class Looking(EarlyStop):
        def effect(self):
            effects.append(super().effect())
            return effects[-1]

    import concept_sliders.training.run as run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "EarlyStop", Looking)
        train(learning_rate=4e-4, patience=50, steps=15)
    assert len(effects) == 3 and 0 < effects[0] < effects[1] < effects[2]


def test_a_run_that_ended_early_has_ended_when_it_is_taken_up_again(train, tmp_path):
    """After twice as many steps as lie between two evaluations in use."""
    settings = {"learning_rate": 1e-9, "patience": 1}
    first = train(RunOptions(checkpoints=tmp_path), **settings)
    again = train(RunOptions(checkpoints=tmp_path), **settings)
    assert first.progress.steps == again.progress.steps == 40 and again.progress.converged


def test_the_early_stop_sees_images_through_clip_vision(pocket, tmp_path, evaluated_often):
    model, clip, vae = pocket
    vision = tiny_vision(tmp_path)
    with torch.inference_mode():
        seen, encode_image = [], vision.encode_image
        vision.encode_image = lambda images: seen.append(images) or encode_image(images)
        given = {"model": model, "clip": clip, "concept": (CONCEPT,), "latent": {"samples": LATENTS}, "name": "age"}
        settings = {"start_percent": 0.0, "end_percent": 1.0, "steps": 100, "learning_rate": 1e-9, "rollout_steps": 2}
        with pytest.raises(ValueError, match="connect a VAE"):
            TrainSlider.execute(**given, **settings, patience=1, clip_vision=vision)
        (sliders, *_) = TrainSlider.execute(**given, **settings, vae=vae, patience=1, clip_vision=vision).args
    assert sliders.sliders[0].slider.info.recipe["steps_done"] == 10
    # at both strengths, twice, decoded, in [0, 1]; a slider of nothing shows the same at both
    assert [tuple(images.shape) for images in seen] == 4 * [(EVALUATED, 64, 64, 3)]
    assert all(0 <= float(images.min()) < float(images.max()) <= 1 for images in seen)
    torch.testing.assert_close(seen[0], seen[1], atol=1e-3, rtol=0)


@pytest.mark.parametrize("with_vae", [False, True])
def test_clip_vision_without_an_early_stop_is_not_used_and_that_is_said(
    pocket, tmp_path, with_vae, caplog, evaluated_often
):
    model, clip, vae = pocket
    vision, seen = tiny_vision(tmp_path), []
    vision.encode_image = seen.append
    settings = {"start_percent": 0.0, "end_percent": 1.0, "steps": 6, "rollout_steps": 2, "patience": 0}
    with torch.inference_mode():
        out = TrainSlider.execute(
            model,
            clip,
            (CONCEPT,),
            {"samples": LATENTS},
            "age",
            vae=vae if with_vae else None,
            clip_vision=vision,
            **settings,
        )
    said = "CLIP vision is only used by the early stop: set patience, or do without it."
    assert not seen and caplog.text.count(said) == warned(out).count(said) == 1


def test_what_is_seen_decides_and_not_the_latents(train, evaluated_often):
    """A viewer that sees no change ends the run of a slider that learns; one that sees some lets any go on."""
    seen = []

    def blind(latents):
        return torch.ones(len(latents), 8)

    def turning(latents):
        """Each evaluation sees both ends further apart than the one before."""
        seen.append(latents)
        angle = torch.tensor(0.1 * len(seen) * (len(seen) % 2))
        return torch.stack([angle.cos(), angle.sin()]).expand(len(latents), 2)

    learning = {"learning_rate": 5e-4, "patience": 2, "steps": 15}
    assert not train(**learning).progress.converged
    assert train(RunOptions(embed=blind), **{**learning, "steps": 20}).progress.steps == 15
    assert not train(RunOptions(embed=turning), **{**learning, "learning_rate": 1e-9}).progress.converged
    assert len(seen) == 6 and seen[0].shape == (EVALUATED, *LATENTS.shape[1:])


def test_a_vae_of_a_checkpoint_that_has_none_is_told(pocket, tmp_path):
    empty = comfy.sd.VAE(sd={})
    with pytest.raises(ValueError, match="VAE that is connected has no weights"):
        recipe = TextualRecipe(concepts=(CONCEPT,), patience=1)
        watch_training(pocket[0], recipe, empty, clip_vision=tiny_vision(tmp_path))
