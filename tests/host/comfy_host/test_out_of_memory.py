"""No memory in any one of the layers, and a cancel at any step: the next run is that of a fresh model."""

import comfy.lora
import comfy.model_management
import pytest
import torch
from concept_sliders.comfy_host import mode_choice
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.model_state import state_of
from concept_sliders.comfy_host.text_encoders import apply_to_clip
from concept_sliders.comfy_host.weight_adapters import ComfyPatch
from concept_sliders.sliders.changes import Adapter, LowRank
from concept_sliders.sliders.equation import dense_hooks, hooks
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.failing_once import FailingOnce
from concept_sliders.tests.support.family_checks import Subject
from concept_sliders.tests.support.family_names import layers_never_called
from concept_sliders.tests.support.tiny import STEPS, one_evaluation, random_slider, sample, tiny_model, traces
from concept_sliders.tests.support.tiny_clip import LAYER, tiny_clip


class Shared(FailingOnce):
    """Several functions that count their calls together, and of which the nth fails."""

    def __init__(self, function, count: list[int], at: int):
        super().__init__(function, at)
        self.count = count

    def __call__(self, *args, **kwargs):
        self.count.append(1)
        if len(self.count) == self.at:
            raise torch.cuda.OutOfMemoryError("no room")
        return self.function(*args, **kwargs)


def failing_at(monkeypatch, places, at: int) -> list[int]:
    """Let the nth call of any of these functions find no memory; the calls so far."""
    count: list[int] = []
    for module, name in places:
        monkeypatch.setattr(module, name, Shared(getattr(module, name), count, at))
    return count


PRODUCTS = ((hooks, "add_linear"), (hooks, "add_convolution"))


def test_in_every_layer_of_a_unet(monkeypatch):
    """The hook of one layer after the other fails: some of the layers have run with the sliders, and some not."""
    model, stack = tiny_model("SD15"), Stack.of(random_slider(tiny_model("SD15")), 0.6)
    expected = one_evaluation(tiny_model("SD15"), stack, "unmerged")
    layers = len(stack[0].slider.layers)
    for at in range(1, layers + 2):
        with monkeypatch.context() as patched:
            count = failing_at(patched, PRODUCTS, at)
            if at <= layers:
                with pytest.raises(torch.cuda.OutOfMemoryError):
                    one_evaluation(model, stack, "unmerged")
            else:
                one_evaluation(model, stack, "unmerged")
        assert len(count) == min(at, layers)
        assert traces(model) == []
        assert torch.equal(one_evaluation(model, stack, "unmerged"), expected)


def kind_on(subject: Subject, kind: str) -> Slider:
    """DoRA or LoKr on all of a model's linear layers with sizes that the factors divide."""
    generator, layers = torch.Generator().manual_seed(2), {}
    for name, change in subject.slider.layers.items():
        out, inner = change.up.shape[0], change.down.shape[1]
        if change.down.ndim != 2 or out % 2 or inner % 2:
            continue
        if kind == "LoKr":
            w1, w2 = (0.2 * torch.randn(*s, generator=generator) for s in ((2, 2), (out // 2, inner // 2)))
            layers[name] = Adapter({"lokr_w1": w1, "lokr_w2": w2})
        else:
            magnitudes = 1 + 0.3 * torch.rand(out, 1, generator=generator)
            parts = {"lora_up.weight": change.up, "lora_down.weight": change.down, "dora_scale": magnitudes}
            layers[name] = Adapter(parts)
    return Slider(kind, layers)


@pytest.mark.parametrize("kind", ["LoRA", "LoKr", "DoRA"])
def test_in_every_layer_of_a_transformer(kind, tmp_path, monkeypatch):
    """Changes that are multiplied out fail as they are made, and once more as they are put to use."""
    subject = Subject("Flux", tmp_path)
    slider = subject.slider if kind == "LoRA" else kind_on(subject, kind)
    places = PRODUCTS if kind == "LoRA" else ((dense_hooks, "_multiplied"), (dense_hooks, "dense_output"))
    acted = apply_sliders(subject.model, Stack.of(slider, 0.6), "unmerged")
    with monkeypatch.context() as patched:
        calls = failing_at(patched, places, 0)
        expected = subject.sampled(acted, steps=1)
    silent = layers_never_called(subject.model, subject.sampled).keys() & slider.layers.keys()
    assert len(calls) == (len(slider.layers) - len(silent)) * (1 if kind == "LoRA" else 2)
    for at in range(1, len(calls) + 1):
        state_of(subject.model.model).clear()
        with monkeypatch.context() as patched:
            failing_at(patched, places, at)
            with pytest.raises(torch.cuda.OutOfMemoryError):
                subject.sampled(acted, steps=1)
        assert traces(subject.model) == []
        assert torch.equal(subject.sampled(acted, steps=1), expected)
    subject.assert_untouched()


def text_slider() -> Slider:
    generator = torch.Generator().manual_seed(1)

    def r(*size):
        return 0.3 * torch.randn(*size, generator=generator)

    kron = Adapter({"lokr_w1": r(2, 2), "lokr_w2": r(32, 16)})
    return Slider("text", {LAYER.format(0): LowRank(r(2, 32), r(64, 2)), LAYER.format(1): kron})


def encoded(clip) -> torch.Tensor:
    with torch.inference_mode():
        return clip.encode_from_tokens(clip.tokenize("a face")).clone()


def test_in_the_layers_of_a_text_encoder(monkeypatch):
    """As the sliders are applied, and as ComfyUI works their patches out when it loads the encoder."""
    expected, bare = encoded(apply_to_clip(tiny_clip(), Stack.of(text_slider()))), encoded(tiny_clip())
    clip = tiny_clip()
    with monkeypatch.context() as patched:
        patched.setattr(ComfyPatch, "_applied", FailingOnce(ComfyPatch._applied, 1))
        with pytest.raises(torch.cuda.OutOfMemoryError):
            apply_to_clip(clip, Stack.of(text_slider()))
    turned = apply_to_clip(clip, Stack.of(text_slider()))
    for at in (1, 2):
        with monkeypatch.context() as patched:
            patched.setattr(comfy.lora, "calculate_weight", FailingOnce(comfy.lora.calculate_weight, at))
            with pytest.raises(torch.cuda.OutOfMemoryError):
                encoded(turned)
        assert torch.equal(encoded(turned), expected)
        assert torch.equal(encoded(clip), bare)


@pytest.mark.parametrize("mode", mode_choice.MODES[1:])
def test_a_first_run_cancelled_at_any_step(mode):
    """Nothing has run on the model before, and the next run is that of a model on which nothing was cancelled."""
    stack = Stack.of(random_slider(tiny_model("SD15")), 0.6)
    expected, bare = (sample(apply_sliders(tiny_model("SD15"), s, mode), "SD15") for s in (stack, Stack()))
    for step in range(1, STEPS + 1):
        model, calls = tiny_model("SD15"), []

        def cancel(apply_model, args, step=step, calls=calls):
            calls.append(1)
            if len(calls) == step:  # the button, as the evaluation ends
                comfy.model_management.interrupt_current_processing()
                apply_model(args["input"], args["timestep"], **args["c"])
                comfy.model_management.throw_exception_if_processing_interrupted()
            return apply_model(args["input"], args["timestep"], **args["c"])

        acted = apply_sliders(model, stack, mode)
        cancelled = acted.clone()
        cancelled.set_model_unet_function_wrapper(cancel)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            sample(cancelled, "SD15")
        assert len(calls) == step
        assert torch.equal(sample(acted, "SD15"), expected)
        assert torch.equal(sample(model, "SD15"), bare)
