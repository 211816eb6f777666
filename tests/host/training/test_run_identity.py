"""Runs whose checkpoints must not be taken for one another's: whatever decides a step is part of a run's name."""

from dataclasses import replace

import comfy.sd
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from comfy_extras.nodes_torch_compile import TorchCompileModel
from concept_sliders.comfy_host.identity import digest_of
from concept_sliders.comfy_host.match import layer_names
from concept_sliders.nodes.run_progress import watch_training
from concept_sliders.tests.support.short_runs import CONCEPT, same, train_on
from concept_sliders.tests.support.tiny import random_slider, tensors_of
from concept_sliders.tests.support.tiny_vision import tiny_vision
from concept_sliders.training.recipe import EncoderRecipe, VisualRecipe
from concept_sliders.training.run import RunOptions, train_text_encoder, train_visual
from concept_sliders.training.visual_samples import LatentSet

SCENE, OTHER = CONCEPT.target, "a man"
FEW = {"steps": 3, "rank": 1, "learning_rate": 2e-3}
MASK = torch.ones(64, 64).tril()


def begins_anew(one, other, folder):
    """Asserts that a run beside another's checkpoint is as it would be without, and each resumes its own."""
    first, fresh = one(RunOptions(checkpoints=folder)), other(RunOptions())
    after = other(RunOptions(checkpoints=folder))
    assert len(list(folder.iterdir())) == 2
    assert same(after.slider, fresh.slider) and not same(after.slider, first.slider)
    steps = []
    for run in (one, other):
        run(RunOptions(progress=lambda done, _: steps.append(done.steps), checkpoints=folder))
    assert steps == [] and len(list(folder.iterdir())) == 2


@pytest.fixture(scope="module")
def visual(pocket):
    """visual(masks, prompts): a run on three sets with these, as a function of its `RunOptions`."""
    model, clip, _ = pocket
    generator = torch.Generator().manual_seed(0)
    latents = [torch.randn(2, 8, 8, 8, generator=generator) for _ in range(3)]
    with torch.inference_mode():
        said = {p: clip.encode_from_tokens_scheduled(clip.tokenize(p)) for p in (SCENE, OTHER)}

    def of(masks=(None, None, None), prompts=(SCENE, OTHER, OTHER)):
        each = zip(latents, prompts, masks, strict=True)
        sets = [LatentSet(clean, (-1.0, 1.0), prompt, mask) for clean, prompt, mask in each]

        def run(run_options):
            with torch.inference_mode():
                return train_visual(model, said, VisualRecipe(**FEW), sets, "s", run_options)

        return run

    return of


def test_by_the_set_that_a_mask_belongs_to(visual, tmp_path):
    begins_anew(visual((MASK, None, None)), visual((None, MASK, None)), tmp_path)


def test_by_the_prompts_of_the_sets(visual, tmp_path):
    begins_anew(visual(prompts=(SCENE, OTHER, OTHER)), visual(prompts=(OTHER, SCENE, SCENE)), tmp_path)


def test_by_the_layer_that_encodings_are_taken_from(pocket, tmp_path):
    skipping = pocket[1].clone()
    skipping.clip_layer(-2)

    def on(clip):
        def run(run_options):
            with torch.inference_mode():
                return train_text_encoder(clip, EncoderRecipe(concepts=(CONCEPT,), **FEW), "s", run_options)

        return run

    begins_anew(on(pocket[1]), on(skipping), tmp_path)


def textual(model, clip, **settings):
    return lambda run_options: train_on(model, clip)(run_options, **{**FEW, **settings})


def test_by_the_sigmas_of_the_model(pocket, tmp_path):
    model, clip, _ = pocket
    shifted = [ModelSamplingSD3().patch(model, shift)[0] for shift in (2.0, 6.0)]
    begins_anew(*(textual(each, clip) for each in shifted), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    textual(model, clip)(RunOptions(checkpoints=tmp_path))
    assert len(list(tmp_path.iterdir())) == 3


def test_by_the_numbers_in_a_lora_on_the_model(pocket, tmp_path):
    """Of the same layers, at the same strength, and alike in what they change first."""
    model, clip, _ = pocket
    names = dict(list(layer_names(model).items())[:4])
    loras = [tensors_of(random_slider(model, 1, names)) for _ in range(2)]
    for key, tensor in loras[1].items():
        tensor[-1] += float("lora_up" in key)
    patched = [comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0] for lora in loras]
    assert patched[0].patches.keys() == patched[1].patches.keys() and len(patched[0].patches) == 4
    begins_anew(*(textual(each, clip) for each in patched), tmp_path)


def test_by_what_nodes_have_put_into_the_model(pocket, tmp_path):
    model, clip, _ = pocket
    with_patch = model.clone()
    with_patch.set_model_attn1_output_patch(lambda n, options: 0.5 * n)
    train = [textual(each, clip) for each in (model, with_patch)]
    for run in train:
        run(RunOptions(checkpoints=tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


def test_by_whether_the_early_stop_sees_through_clip_vision(pocket, tmp_path):
    """It may end the run elsewhere; without an early stop it is not asked."""
    model, clip, _ = pocket

    def files(**settings):
        for embed in (None, lambda latents: latents.flatten(1)):
            textual(model, clip, **settings)(RunOptions(checkpoints=tmp_path, embed=embed))
        return len(list(tmp_path.iterdir()))

    assert files() == 1
    assert files(patience=2) == 3


def test_by_the_clip_vision_that_the_early_stop_sees_through(pocket, tmp_path):
    """Two of the same architecture, as the node hands them on."""
    model, clip, vae = pocket
    kept, recipe = tmp_path / "kept", VisualRecipe(patience=2, **FEW)
    for seed in (0, 1, 0):
        with torch.inference_mode():
            run_options = watch_training(model, recipe, vae, clip_vision=tiny_vision(tmp_path, seed))
        textual(model, clip, patience=2)(replace(run_options, checkpoints=kept, preview_every=0))
    assert len(list(kept.iterdir())) == 2


def test_values_at_other_places_have_another_digest():
    half = torch.zeros(2)
    apart = [
        (half, torch.zeros(3)),
        (torch.zeros(3), half),
        (torch.zeros(5),),
        (torch.zeros(1, 5),),
        ([half], half),
        ([half, half],),
        (half, half),
        ("a", "b"),
        ("ab", ""),
        ("a", "'b'"),
        ({"a": None},),
        ({"a": "None"},),
        ({"a": 1, "b": 2},),
    ]
    assert len({digest_of(*values) for values in apart}) == len(apart)
    assert digest_of({"b": 2, "a": 1}) == digest_of(apart[-1][0])
    assert digest_of(lambda: 1) == digest_of(lambda: 1)  # not where in memory they lie


def test_by_wrappers_and_not_by_compilation(pocket, tmp_path):
    model, clip, _ = pocket
    wrapped, compiled = model.clone(), TorchCompileModel.execute(model, "eager").args[0]
    wrapped.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "theirs", lambda executor, *a, **k: executor(*a, **k))
    counts = []
    for each in (model, compiled, wrapped):
        textual(each, clip)(RunOptions(checkpoints=tmp_path))
        counts.append(len(list(tmp_path.iterdir())))
    assert counts == [1, 1, 2]
