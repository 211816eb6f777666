"""A slider's text-encoder layers, on a tiny CLIP of ComfyUI's own classes."""

import comfy.sd
import pytest
import torch
from concept_sliders.comfy_host.layer_conversion import converted_layers
from concept_sliders.comfy_host.text_encoders import apply_to_clip
from concept_sliders.sliders.changes import LowRank
from concept_sliders.sliders.formats.slider_files import load_slider, save_slider
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.adapter_files import KINDS, parts_of
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.tiny import difference
from concept_sliders.tests.support.tiny_clip import LAYER, tiny_clip
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def clip() -> comfy.sd.CLIP:
    return tiny_clip()


@pytest.fixture
def slider() -> Slider:
    generator = torch.Generator().manual_seed(1)
    layers = {
        LAYER.format(i): LowRank(torch.randn(2, 32, generator=generator), torch.randn(64, 2, generator=generator))
        for i in range(2)
    }
    return Slider("words", {**layers, "lora_unet_mid": LowRank(torch.ones(2, 3), torch.ones(4, 2))})


def encoded(clip: comfy.sd.CLIP) -> torch.Tensor:
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize("an old man"))[0][0].clone()


@pytest.mark.filterwarnings("ignore")
def test_equals_the_stock_loader(clip, slider, tmp_path):
    save_slider(slider, tmp_path / "words.safetensors", torch.float32)
    _, stock = comfy.sd.load_lora_for_models(None, clip, load_file(tmp_path / "words.safetensors"), 0.0, 0.7)
    stack = Stack.of(slider, 0.7).gated(Gate(0.3, 1.0))
    bare, by_us, by_stock = encoded(clip), encoded(apply_to_clip(clip, stack)), encoded(stock)
    assert ((by_us - by_stock).norm() / by_stock.norm()).item() < 1e-5
    assert ((by_us - bare).norm() / bare.norm()).item() > 1e-2
    assert torch.equal(encoded(clip), bare)


@pytest.mark.parametrize(
    "stack_of", [lambda s: Stack.of(s, gate=Gate(0.3)), lambda s: Stack.of(s).restricted_to("cond")]
)
def test_gates_and_cond_or_uncond_do_not_reach_the_text_and_that_is_said(clip, slider, caplog, stack_of):
    apply_to_clip(clip, stack_of(slider))
    assert "its 2 layers of the text encoder act from the first step on, and on both prompts" in caplog.text
    caplog.clear()
    apply_to_clip(clip, Stack.of(slider, 0.5))
    assert not caplog.text


def test_a_slider_for_another_encoder(clip):
    other = Slider("t5", {"lora_te_block_0_attn": LowRank(torch.ones(2, 3), torch.ones(4, 2))})
    with pytest.raises(ValueError, match="None of the 1 layers of slider 't5' is in this text encoder"):
        apply_to_clip(clip, Stack.of(other))


def test_no_text_layers_no_change(clip):
    unet_only = Slider("looks", {"lora_unet_mid": LowRank(torch.ones(2, 3), torch.ones(4, 2))})
    assert not apply_to_clip(clip, Stack.of(unet_only)).patcher.patches


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_every_kind_of_change_equals_the_stock_loader(kind, clip, tmp_path):
    torch.manual_seed(2)
    name = LAYER.format(0)
    tensors = {f"{name}.{part}": tensor for part, tensor in parts_of(kind, 64, 32).items()}
    save_file(tensors, tmp_path / "words.safetensors")
    given = tensors if kind != "BOFT" else {**tensors, f"{name}.alpha": torch.tensor(0.0)}
    _, stock = comfy.sd.load_lora_for_models(None, clip, given, 0.0, 0.7)
    by_us = encoded(apply_to_clip(clip, Stack.of(load_slider(tmp_path / "words.safetensors"), 0.7)))
    by_stock, bare = encoded(stock), encoded(clip)
    assert ((by_us - by_stock).norm() / by_stock.norm()).item() < 1e-5
    assert ((by_us - bare).norm() / bare.norm()).item() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_an_error_and_not_left_out(kind, clip, tmp_path):
    torch.manual_seed(2)
    name = LAYER.format(0)
    save_file({f"{name}.{part}": t for part, t in parts_of(kind, 48, 40).items()}, tmp_path / "words.safetensors")
    slider = load_slider(tmp_path / "words.safetensors")
    wrong, own = ("48", "64, 32") if kind != "bias" else ("48,", "64,")
    with pytest.raises(ValueError, match=rf"Layer {name}: .*\({wrong}.*\({own}\)"):
        apply_to_clip(clip, Stack.of(slider))
    assert not clip.patcher.patches


def words_of(clip: comfy.sd.CLIP) -> tuple[torch.Tensor, torch.Tensor]:
    """What the encoders make of a few words, and its pooled part."""
    with torch.inference_mode():
        (encoding, extra), *_ = clip.encode_from_tokens_scheduled(clip.tokenize("an old man"))
        return encoding.clone(), extra["pooled_output"].clone()


# Layers of every text encoder as diffusers names them, and as kohya's scripts do
ENCODER_NAMES = {
    "SD 1": {"text_encoder.text_model.encoder.layers.1.mlp.fc1": "lora_te_text_model_encoder_layers_1_mlp_fc1"},
    "SD3": {
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "text_encoder_2.text_model.encoder.layers.0.mlp.fc1": "lora_te2_text_model_encoder_layers_0_mlp_fc1",
        "text_encoder_3.encoder.block.1.layer.0.SelfAttention.v": "lora_te3_encoder_block_1_layer_0_SelfAttention_v",
    },
    "Flux": {
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "text_encoder_2.encoder.block.1.layer.0.SelfAttention.v": "lora_te3_encoder_block_1_layer_0_SelfAttention_v",
    },
}


@pytest.mark.parametrize("with_model", [True, False])
@pytest.mark.parametrize("family", ENCODER_NAMES)
@pytest.mark.filterwarnings("ignore")
def test_every_encoder_of_a_family_in_kohyas_names(family, with_model, tmp_path):
    """The file acts as the slider does, and the stock loader reads it so, on tiny encoders of ComfyUI's classes."""
    encoders, model = tiny_clip(family), FAMILIES[family].build() if with_model else None
    generator, tensors = torch.Generator().manual_seed(4), {}
    for name in ENCODER_NAMES[family]:
        rows, inner = (64, 32) if "fc1" in name else (32, 4096)
        tensors[f"{name}.lora_A.weight"] = torch.randn(2, inner, generator=generator)
        tensors[f"{name}.lora_B.weight"] = 0.3 * torch.randn(rows, 2, generator=generator)
    save_file(tensors, tmp_path / "words.safetensors")
    words = load_slider(tmp_path / "words.safetensors")
    converted = Slider("kohya", converted_layers(words, "kohya", model))
    assert list(converted.layers) == list(ENCODER_NAMES[family].values())
    save_slider(converted, tmp_path / "kohya.safetensors", torch.float32)
    _, stock = comfy.sd.load_lora_for_models(None, encoders, load_file(tmp_path / "kohya.safetensors"), 0.0, 0.7)
    assert len(stock.patcher.patches) == len(ENCODER_NAMES[family])
    bare, by_stock = words_of(encoders), words_of(stock)
    by_us = [
        words_of(apply_to_clip(encoders, Stack.of(slider, 0.7)))
        for slider in (words, load_slider(tmp_path / "kohya.safetensors"))
    ]
    for part, expected in enumerate(by_stock):  # an encoding and its pooled part are of different encoders in Flux
        assert difference(expected, bare[part]) > 1e-3
        assert all(difference(each[part], expected) < 1e-5 for each in by_us)
