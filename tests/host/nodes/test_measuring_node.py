"""Measure Slider: what it puts out, what it scores with, and what it refuses."""

import csv
import json
from pathlib import Path

import comfy.sample
import folder_paths
import pytest
import torch
from concept_sliders.evaluation.scores import clip_score
from concept_sliders.nodes.loading import LoadSlider
from concept_sliders.nodes.measuring import MeasureSlider
from concept_sliders.nodes.measuring_inputs import edit_texts, instruments_of
from concept_sliders.nodes.report import FACT, KEY, WARNING
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.tiny import random_slider, tiny_model
from concept_sliders.tests.support.tiny_clip import tiny_clip
from concept_sliders.tests.support.tiny_vision import blinded

import nodes

PROMPT = "portrait of a person"
INPUTS = {
    "prompts": PROMPT,
    "negative": "",
    "seeds": "3, 4",
    "strengths": "-1, 0, 1",
    "batch_size": 4,
    "steps": 2,
    "cfg": 1.0,
    "sampler": "euler",
    "scheduler": "simple",
}


@pytest.fixture(autouse=True)
def as_a_node():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def age():
    return LoadSlider.execute("pocket_age.safetensors", 1.0).args[0]


@pytest.fixture(scope="module")
def joint():
    """The pocket model at 128 px: MODEL, CLIP, VAE, CLIP_VISION."""
    with torch.inference_mode():
        return load_pocket()


def latent(channels, size):
    return {"samples": torch.zeros(1, channels, size, size)}


def run(model, clip, vae, sliders, at, **others):
    output = MeasureSlider.execute(model, clip, vae, sliders, at, **{"name": "test", **INPUTS, **others})
    return *output.args, output.ui


def test_it_puts_out_a_table_plots_a_sheet_and_files(pocket, age, untouched):
    table, plots, sheet, file, shown = run(*pocket, age + age, latent(24, 16), name="people/age")
    assert (
        f"{age[0].slider.name}: effect by age, distortion by change of the other readings; 2 images a strength"
        in table
    )
    assert plots.shape == (2, 480, 720, 3) and sheet.shape[0] == 1 and sheet.shape[2] == 3 * (128 + 4) + 4
    lines = shown[KEY]
    assert "\n".join(line["text"] for line in lines) == table and {line["kind"] for line in lines} == {FACT}
    assert len(shown["images"]) == 3
    path = Path(file)
    assert path == Path(folder_paths.get_output_directory()) / "measurements" / "people" / "age.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert (content["cancelled"], content["seeds"], content["sampling"]["steps"]) == (False, [3, 4], 2)
    with open(path.with_suffix(".csv"), encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["strength"] for row in rows] == ["-1.0", "0.0", "1.0"] * 2
    of_json = [row["scores"]["age"]["mean"] for slider in content["sliders"] for row in slider["rows"]]
    assert [float(row["age"]) for row in rows] == of_json and of_json[1] == 0
    _, _, _, second, _ = run(*pocket, age, latent(24, 16), name="people/age")
    assert Path(second).name == "age_2.json" and path.with_name("age_2.csv").exists()


def test_a_clip_score_is_that_of_comfyuis_encoders(joint):
    """On the pocket model at 128 px, whose text and vision encoders were trained together."""
    model, clip, vae, vision = joint
    sliders = Stack.of(random_slider(model, size=0.1))
    ends = {"more": "portrait of a very old person", "less": "portrait of a very young person"}
    table, _, _, file, _ = run(model, clip, vae, sliders, latent(8, 16), clip_vision=vision, **ends)
    assert "effect by delta CLIP, distortion by distance (pocket vision)" in table and "OS" in table

    noise = comfy.sample.prepare_noise(torch.zeros(1, 8, 16, 16), 4)
    positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (PROMPT, ""))
    sampled = comfy.sample.sample(
        *(model, noise, 2, 1.0, "euler", "simple", positive, negative, torch.zeros_like(noise)),
        disable_pbar=True,
        seed=4,
    )
    seen = vision.encode_image(vae.decode(sampled))["image_embeds"][0]
    read = clip.encode_from_tokens(clip.tokenize(ends["more"]), return_pooled=True)[1][0]
    images = json.loads(Path(file).read_text(encoding="utf-8"))["images"]
    (original,) = (image for image in images if (image["seed"], image["strength"]) == (4, 0))
    assert original["scores"]["CLIP score"] == pytest.approx(float(clip_score(seen, read)), abs=0.2)
    assert original["scores"]["delta CLIP"] == 0
    assert any(abs(image["scores"]["delta CLIP"]) > 0.01 for image in images if image["strength"])


def test_encoders_that_do_not_belong_together_are_said_or_refused(joint):
    model, clip, _, vision = joint
    sd1 = tiny_clip("SD 1")
    instruments, warnings = instruments_of(model, sd1, vision, vision, None, "none")
    assert instruments.joint is None and list(instruments.encoders) == ["pocket vision", "pocket vision, second"]
    assert len(warnings) == 1 and "pocket vision belongs with the pocket model's text encoder" in warnings[0]
    assert instruments_of(model, sd1, vision, None, clip, "none")[0].joint is not None
    with pytest.raises(
        ValueError, match=r"Measure Slider: score_clip does not belong .* got clip_l and pocket vision"
    ):
        instruments_of(model, clip, vision, None, sd1, "none")
    with pytest.raises(ValueError, match="connect the clip_vision that belongs with it"):
        instruments_of(model, clip, None, None, sd1, "none")


def test_a_slider_without_labels_has_no_clip_score_and_the_report_says_so(joint):
    model, clip, vae, vision = joint
    sliders = Stack.of(random_slider(model, size=0.1))
    table, *_, shown = run(model, clip, vae, sliders, latent(8, 16), clip_vision=vision)
    name = sliders[0].slider.name
    warned = [line["text"] for line in shown[KEY] if line["kind"] == WARNING]
    assert warned == [
        f"No CLIP score, CR, CSM and OS for {name}: no label in the file, and no text in more.",
        f"No CR, CSM and OS for {name}: no label in the file, and no text in less.",
    ]
    assert "delta CLIP" not in table


def test_an_encoder_that_sees_nothing_is_named(joint, age):
    model, clip, vae, vision = joint
    *_, shown = run(model, clip, vae, age, latent(8, 16), clip_vision=vision, image_encoder=blinded(vision))
    warned = [line["text"] for line in shown[KEY] if line["kind"] == WARNING]
    assert len(warned) == 1 and "vision encoder pocket vision, second gave all 6 images the same" in warned[0]


def test_lpips_takes_the_users_network(pocket, age, tmp_path, monkeypatch):
    from torchvision.models import alexnet

    names = dict(folder_paths.folder_names_and_paths)
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", names)
    names["lpips"] = ([str(tmp_path)], {".pth"})
    torch.save(alexnet(weights=None).state_dict(), tmp_path / "alexnet.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    table, *_ = run(*pocket, age, latent(24, 16), lpips="alexnet.pth")
    assert "distortion by LPIPS (alex)" in table
    with pytest.raises(ValueError, match=r"resnet.pth: LPIPS takes torchvision's weights of AlexNet or VGG16"):
        run(*pocket, age, latent(24, 16), lpips="resnet.pth")
    with pytest.raises(FileNotFoundError, match=r"no network for LPIPS 'gone.pth'"):
        run(*pocket, age, latent(24, 16), lpips="gone.pth")


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"clip": None}, r"Measure Slider: the checkpoint has no CLIP. Connect the model's text encoder to clip"),
        ({"vae": None}, r"Measure Slider: the checkpoint has no VAE. Connect the model's VAE to vae"),
        ({"sliders": Stack()}, "at least one slider"),
        ({"strengths": "0"}, "at least one of strengths"),
        ({"seeds": "x"}, "Seeds must be whole numbers"),
        ({"more": "old\nyoung"}, "more takes a line for each slider of the stack, 1, or nothing at all; got 2"),
        ({"name": "../up"}, "leads out of"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_sampled(pocket, age, wrong, why):
    model, clip, vae = pocket
    given = {"model": model, "clip": clip, "vae": vae, "sliders": age, "latent": latent(24, 16), "name": "test"}
    with pytest.raises(ValueError, match=why):
        MeasureSlider.execute(**{**given, **INPUTS, **wrong})


def test_a_model_without_a_probe_takes_an_encoder(joint):
    with pytest.raises(ValueError, match=r"nothing to measure with. Connect a CLIP vision encoder"):
        instruments_of(tiny_model("SD15"), joint[1], None, None, None, "none")


def test_texts_are_those_given_or_those_in_the_file(age):
    (texts,) = edit_texts(age, "", "a child")
    assert (texts.more, texts.less) == (age[0].slider.info.more, "a child") and texts.more
