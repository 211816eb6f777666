"""Training from the command line on a checkpoint, or on its parts in files of their own."""

import json
import re
from argparse import Namespace

import pytest
import torch
from concept_sliders.cli import train as command
from concept_sliders.cli.model_files import load_models, load_vae
from concept_sliders.sliders.formats.slider_files import load_slider
from concept_sliders.tests.support import checkpoint
from concept_sliders.tests.support.tiny_vae import video_vae
from concept_sliders.tests.support.train_command import CONCEPT, SMALL, drawn_pairs, recipe_file, same
from concept_sliders.training.concept import Concept
from concept_sliders.training.recipe import EncoderRecipe, TextualRecipe, VisualRecipe
from safetensors.torch import load_file, save_file

PARTS = {"unet": "model.diffusion_model.", "clip": "cond_stage_model.transformer.", "vae": "first_stage_model."}
ON_FILES = {"steps": 2, "rank": 1, "learning_rate": 1e-3}


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A small SD 1 checkpoint, and its parts in files of their own, by the options they are for."""
    folder = tmp_path_factory.mktemp("models")
    named = {part: folder / f"{part}.safetensors" for part in ("checkpoint", "unet", "clip", "vae")}
    tensors, zeros = checkpoint.weights("SD 1")
    checkpoint.write(named["checkpoint"], tensors, zeros)
    whole = load_file(named["checkpoint"])
    for part, prefix in PARTS.items():
        own = {name.removeprefix(prefix): t for name, t in whole.items() if name.startswith(prefix)}
        save_file(own, named[part])
    return named


def given(files, *parts):
    return [each for part in parts for each in (f"--{part}", files[part])]


def test_files_of_parts_are_loaded_and_what_is_missing_is_said(train_command, tmp_path):
    vae = tmp_path / "vae.safetensors"
    with torch.inference_mode():
        save_file({n: t.contiguous() for n, t in video_vae().first_stage_model.state_dict().items()}, vae)
    assert load_vae(vae).latent_dim == 3
    recipe = recipe_file(tmp_path, concepts=[CONCEPT], **SMALL)
    code, said = train_command(recipe, "--out", tmp_path / "s.safetensors", "--vae", vae)
    assert code == 1 and "needs a text encoder: give a checkpoint that has one, or --clip FILE" in said
    save_file({"a": torch.zeros(1)}, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"none.safetensors holds no VAE"):
        load_vae(tmp_path / "none.safetensors")


def test_a_checkpoint_and_its_parts_in_files_give_the_same_slider(train_command, tmp_path, files):
    recipe = recipe_file(tmp_path, concepts=[CONCEPT], rollout_steps=2, **ON_FILES)
    for name, parts in {"whole": ["checkpoint"], "parts": ["unet", "clip"]}.items():
        code, said = train_command(
            recipe, "--out", tmp_path / f"{name}.safetensors", "--size", 64, *given(files, *parts)
        )
        assert code == 0, said
    whole, parts = (load_slider(tmp_path / f"{name}.safetensors") for name in ("whole", "parts"))
    assert same(whole, parts)
    assert whole.info.family == "SD15" and whole.info.recipe["latent_shape"] == [4, 8, 8]
    assert any(layer.up.any() for layer in whole.layers.values())


def test_a_visual_slider_of_a_checkpoint_sees_through_the_vae_that_is_given(train_command, tmp_path, files):
    pairs, out = drawn_pairs(tmp_path / "pairs"), tmp_path / "s.safetensors"
    recipe = recipe_file(tmp_path, kind="visual", more="smile", **ON_FILES)
    everything = [recipe, "--out", out, "--pairs", pairs, "--size", 64]
    code, said = train_command(*everything, *given(files, "unet", "clip"))
    assert code == 1 and "needs a VAE: give a checkpoint that has one, or --vae FILE" in said and not out.exists()
    code, said = train_command(*everything, *given(files, "unet", "clip", "vae"))
    assert code == 0, said
    assert load_slider(out).info.family == "SD15" and load_slider(out).info.recipe["latent_shape"] == [4, 8, 8]


def test_a_checkpoint_without_a_vae_is_said_to_have_none(train_command, tmp_path):
    """ComfyUI hands out an empty one in its place."""
    tensors, zeros = checkpoint.weights("SD 1")
    bare = tmp_path / "bare.safetensors"
    checkpoint.write(bare, {n: t for n, t in tensors.items() if not n.startswith(PARTS["vae"])}, zeros)
    recipe, out = recipe_file(tmp_path, kind="visual", more="smile", **ON_FILES), tmp_path / "s.safetensors"
    code, said = train_command(recipe, "--out", out, "--pairs", drawn_pairs(tmp_path / "pairs"), "--checkpoint", bare)
    assert code == 1 and "needs a VAE: give a checkpoint that has one, or --vae FILE" in said and not out.exists()


@pytest.mark.parametrize(
    ("recipe", "needed"),
    [
        (EncoderRecipe(concepts=(Concept(**CONCEPT),)), [False, True, False]),
        (TextualRecipe(concepts=(Concept(**CONCEPT),)), [True, True, False]),
        (VisualRecipe(), [True, True, True]),
    ],
)
def test_no_more_of_a_checkpoint_is_built_than_the_recipe_needs(files, recipe, needed):
    options = Namespace(checkpoint=files["checkpoint"], unet=None, clip=None, vae=None)
    assert [part is not None for part in load_models(options, recipe)] == needed


def test_a_size_of_another_familys_latents_is_not_taken_over(train_command, tmp_path, files, monkeypatch):
    """The pocket model's latents are a fourth of its images, other models' an eighth and less."""
    monkeypatch.setattr(command, "SIZE", 96)
    made = tmp_path / "made.safetensors"
    assert train_command(recipe_file(tmp_path, concepts=[CONCEPT], **SMALL), "--out", made)[0] == 0
    assert load_slider(made).info.recipe["latent_shape"] == [8, 16, 16]
    family = load_slider(made).info.family
    text = tmp_path / "text.json"  # as Load Recipe shows it
    text.write_text(json.dumps({**load_slider(made).info.recipe, "family": family, "base_model_hash": "h"}))
    for recipe in (made, text):
        out = tmp_path / f"of_{recipe.stem}.safetensors"
        code, said = train_command(recipe, "--out", out, *given(files, "checkpoint"))
        assert code == 0 and f"slider was of {family}; on SD15 it is trained at 96 pixels, or give --size" in said
        assert load_slider(out).info.recipe["latent_shape"] == [4, 12, 12]
    sized = tmp_path / "sized.safetensors"
    code, said = train_command(made, "--out", sized, "--size", 64, *given(files, "checkpoint"))
    assert code == 0 and "slider was of" not in said
    assert load_slider(sized).info.recipe["latent_shape"] == [4, 8, 8]


def test_nor_is_that_of_its_images(train_command, tmp_path, files):
    pairs, made, out = drawn_pairs(tmp_path / "pairs"), tmp_path / "made.safetensors", tmp_path / "s.safetensors"
    recipe = recipe_file(tmp_path, kind="visual", more="smile", **ON_FILES)
    assert train_command(recipe, "--out", made, "--pairs", pairs)[0] == 0
    code, said = train_command(made, "--out", out, "--pairs", pairs, *given(files, "checkpoint"))
    assert code == 0 and "on SD15 it is trained at 512 pixels, or give --size" in said


def test_a_text_encoder_slider_needs_no_diffusion_model(train_command, tmp_path, files):
    out = tmp_path / "s.safetensors"
    recipe = recipe_file(tmp_path, kind="encoder", concepts=[CONCEPT], **ON_FILES)
    code, said = train_command(recipe, "--out", out, *given(files, "clip"))
    assert code == 0, said
    within = [name for name in load_slider(out).layers if name.startswith("lora_te1_text_model_encoder_layers_")]
    assert len(within) == 6 * 12  # attention and both layers of an MLP, of 12 blocks


def test_files_that_are_not_what_they_are_given_for_are_named(train_command, tmp_path, files):
    recipe, out = recipe_file(tmp_path, concepts=[CONCEPT], **SMALL), tmp_path / "s.safetensors"
    save_file({"a": torch.zeros(1)}, tmp_path / "nothing.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(files["vae"].read_bytes()[:2000])
    (tmp_path / "torn.ckpt").write_bytes(b"no pickle")
    for option, others in {"checkpoint": (), "unet": ("clip",), "clip": ("unet",), "vae": ()}.items():
        for name in ("nothing.safetensors", "torn.safetensors", "torn.ckpt", "lost.safetensors"):
            code, said = train_command(recipe, "--out", out, f"--{option}", tmp_path / name, *given(files, *others))
            assert code == 1 and re.search(f"^error: .*{name}", said, re.MULTILINE), (option, said)
    assert not out.exists()
