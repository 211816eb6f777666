"""A slider's text-encoder layers, on a tiny CLIP of the host's own classes."""

import comfy.sd
import pytest
import torch
from concept_sliders.sliders.files import load_slider, save_slider
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.on_text import apply_to_clip
from concept_sliders.sliders.slider import LowRank, Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.host.test_files_kinds import KINDS, parts_of
from concept_sliders.tests.host.tiny_clip import LAYER, tiny_clip
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


@pytest.mark.parametrize("stack_of", [lambda s: Stack.of(s, gate=Gate(0.3)), lambda s: Stack.of(s).on("positive")])
def test_gates_and_branches_do_not_reach_the_text_and_that_is_said(clip, slider, caplog, stack_of):
    apply_to_clip(clip, stack_of(slider))
    assert "its 2 layers of the text encoder act from the first step on, and on both prompts" in caplog.text
    caplog.clear()
    apply_to_clip(clip, Stack.of(slider, 0.5))
    assert not caplog.text


def test_a_sweep_cannot_reach_the_text(clip, slider):
    with pytest.raises(ValueError, match="'words' changes the text encoder.*cannot be swept"):
        apply_to_clip(clip, Stack.of(slider).swept(0, (0.0, 1.0)))


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
