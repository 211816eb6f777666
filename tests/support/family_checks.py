"""What is asked of every family: that sliders load, act, sweep, gate, train and save on its model.

Each check takes a `Subject`, raises where something is wrong, and returns what the table says about it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import comfy.sample
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.batch_entries import entries_are_frames
from concept_sliders.comfy_host.latents import packed
from concept_sliders.comfy_host.match import layer_names, match_slider
from concept_sliders.comfy_host.prompt_layers import prepares_prompts
from concept_sliders.sliders.formats.slider_files import load_slider, save_slider
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.by_hand import answered_by, changing_over
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.family_names import (
    file_named,
    layers_never_called,
    names_beyond,
    names_by_style,
    respelled,
    same_changes,
)
from concept_sliders.tests.support.family_training import EARLY_OUT, trains
from concept_sliders.tests.support.tiny import difference, random_slider, tensors_of, traces
from safetensors.torch import load_file, save_file
from torch import Tensor

STEPS = 3
STRENGTH = 0.8
CLOSE = 1e-4  # relative, of latents in float32
GATE = Gate(0.4)
COND_OR_UNCOND = ("cond", "uncond")
ONE_BY_ONE = "as if asked one by one"  # what ComfyUI's own batch of both prompts is not, in such a model


class Subject:
    """One family's model, with what its checks share."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder, self.family = name, folder, FAMILIES[name]
        with torch.inference_mode():  # nodes load models so
            self.model = self.family.build()
        self.weights = {key: tensor.clone() for key, tensor in self.model.model.state_dict().items()}
        self.slider = random_slider(self.model)
        self._outcomes: dict[str, str | Exception] = {}

    def outcome(self, check: str) -> str | Exception:
        """What a check says, or what it raised; it runs once."""
        if check not in self._outcomes:
            try:
                self._outcomes[check] = CHECKS[check](self)
            except (AssertionError, ValueError, RuntimeError, TypeError, KeyError, IndexError) as error:
                self._outcomes[check] = error
        return self._outcomes[check]

    def acting(self, stack: Stack, mode: str = "auto", steps: int = STEPS) -> Tensor:
        """The latent with the stack acting on the model."""
        return self.sampled(apply_sliders(self.model, stack, mode), stack.batch_size, steps)

    def stock(self, tensors: Mapping[str, Tensor], steps: int = STEPS) -> Tensor:
        """The latent with the tensors of a file in the stock loader's hands."""
        patched, _ = comfy.sd.load_lora_for_models(self.model, None, dict(tensors), STRENGTH, 0.0)
        return self.sampled(patched, steps=steps)

    def sampled(
        self,
        model: ModelPatcher,
        batch_size: int = 1,
        steps: int = STEPS,
        fresh: bool = True,
        guidance: float | None = None,
    ) -> Tensor:
        """The latent of a short run; every batch entry has the same noise. A video and its sound are (B, 1, numbers).

        fresh: forget what the model keeps of earlier runs first, as HiDream O1 does with prompts. guidance: the
        family's, unless given.
        """
        f = self.family
        if fresh and hasattr(model.model.diffusion_model, "clear_kv_cache"):
            model.model.diffusion_model.clear_kv_cache()
        more, less = f.conditioning(2), f.conditioning(3)
        with torch.inference_mode():
            latents = comfy.sample.sample(
                model,
                f.noise(batch_size),
                steps,
                f.guidance if guidance is None else guidance,
                "euler",
                "simple",
                more,
                less,
                f.empty(batch_size),
                disable_pbar=True,
                seed=5,
            )
            return packed(latents)[0].clone()

    @cached_property
    def bare(self) -> Tensor:
        return self.sampled(self.model)

    @cached_property
    def acted(self) -> Tensor:
        return self.acting(Stack.of(self.slider, STRENGTH), "unmerged")

    @cached_property
    def in_sampling(self) -> Slider:
        """The slider without the layers that prepare prompts; itself where there are none."""
        matched = match_slider(self.model, self.slider).layers
        early = {name for path, name in layer_names(self.model).items() if prepares_prompts(self.model.model, path)}
        kept = {name: change for name, change in self.slider.layers.items() if name not in early}
        return self.slider if len(kept) == len(matched) else Slider("in sampling", kept)

    @cached_property
    def file(self) -> Path:
        path = self.folder / f"{self.name}.safetensors"
        save_slider(self.slider, path, torch.float32)
        return path

    def assert_untouched(self) -> None:
        """The model is as it was built, bit by bit, and nothing hangs on its layers."""
        for key, tensor in self.model.model.state_dict().items():
            assert torch.equal(tensor, self.weights[key]), f"{key} has changed"
        assert traces(self.model) == []


def loads(subject: Subject) -> str:
    """A slider of all layers changes the result; at 0 no bit differs, and the model stays as it was."""
    assert torch.isfinite(subject.bare).all()
    assert torch.equal(subject.acting(Stack.of(subject.slider, 0.0)), subject.bare), "0 is not the bare model"
    assert difference(subject.acted, subject.bare) > 1e-3, "no effect"
    assert torch.equal(subject.sampled(subject.model, fresh=False), subject.bare), "something stays behind"
    subject.assert_untouched()
    return f"{len(subject.slider.layers)} layers"


def acts(subject: Subject) -> str:
    """In both modes it gives what the stock loader's weight patches give, on every layer."""
    expected = subject.stock(load_file(subject.file))
    for mode in ("unmerged", "merged"):
        assert difference(subject.acting(Stack.of(subject.slider, STRENGTH), mode), expected) < CLOSE, mode
    silent = layers_never_called(subject.model, subject.sampled)
    if silent:  # their weights must then have no effect otherwise, either
        alone = random_slider(subject.model, names=silent)
        assert difference(subject.stock(tensors_of(alone)), subject.bare) < 1e-6, (
            f"{sorted(silent)} are read directly"
        )
    return "yes"


def namings(subject: Subject) -> str:
    """Every way of naming layers that ComfyUI knows acts, sweeps and gates as the stock loader's patches do.

    Names of files in the wild that it does not know are the same changes of the same modules.
    """
    bare, wrong = subject.sampled(subject.model, steps=1), []
    styles, every = names_by_style(subject.model), {}
    for style, targets in styles.items():
        tensors = file_named(subject.model, style, targets)
        every |= tensors
        slider, expected = _from_file(subject, tensors), subject.stock(tensors, steps=1)
        batch = _on_and_off(subject, slider)
        acts = difference(batch[:1], expected) < CLOSE < difference(batch[:1], bare)
        if not acts or difference(batch[1:], bare) >= CLOSE:
            wrong.append(" ".join(map(str, style)))
    assert torch.equal(subject.acting(Stack.of(slider, STRENGTH, GATE), steps=1), bare), "not gated"
    beyond = names_beyond(styles)
    for how, names in beyond.items():
        known = respelled(every, {name: name for name in names.values()})
        placed = (match_slider(subject.model, _from_file(subject, file)) for file in (respelled(every, names), known))
        if not same_changes(*placed):
            wrong.append(how)
    assert not wrong, f"otherwise than the stock loader: {', '.join(wrong)}"
    prefixes = dict.fromkeys(prefix for prefix, _ in styles)
    read = ", ".join(f"`{prefix}`" if prefix else "none" for prefix in prefixes)
    return f"{read}; {', '.join(f'`{prefix}`' for prefix in dict.fromkeys(how.partition(' ')[0] for how in beyond))}"


def _on_and_off(subject: Subject, slider: Slider) -> Tensor:
    """The slider at its strength and at 0, after one step: entries of a gated run, or runs of their own for each.

    Layers that prepare prompts have one strength and no gate, see `prompt_layers`; frames of a video, one strength.
    """
    model, paths = subject.model.model, match_slider(subject.model, slider).layers
    if entries_are_frames(model) or any(prepares_prompts(model, path) for path in paths):
        return torch.cat([subject.acting(Stack.of(slider, strength), steps=1) for strength in (STRENGTH, 0.0)])
    return subject.acting(Stack.of(slider, gate=Gate(0.0, GATE.start)).swept(0, (STRENGTH, 0.0)), steps=1)


def _from_file(subject: Subject, tensors: Mapping[str, Tensor]) -> Slider:
    path = subject.folder / "naming.safetensors"
    save_file(dict(tensors), path)
    return load_slider(path)


def sweeps(subject: Subject) -> str:
    """Entries of one batch are the runs they would be alone; two of them and three, as a layer's batch may divide."""
    slider, low = subject.in_sampling, -0.6
    alone = {value: subject.acting(Stack.of(slider, value), "unmerged") for value in (low, 0.0, STRENGTH)}
    for values in ((low, STRENGTH), (low, 0.0, STRENGTH)):
        batch = subject.acting(Stack.of(slider).swept(0, values))
        for entry, value in enumerate(values):
            assert difference(batch[entry : entry + 1], alone[value]) < CLOSE, (
                f"entry {entry} of {len(values)}, at {value}"
            )
    return "yes" if slider is subject.slider else EARLY_OUT


def gates(subject: Subject) -> str:
    """A gated run is one that changes over to a model with the stock loader's patches, by hand."""
    with torch.inference_mode():
        second = subject.family.build()
        patched, _ = comfy.sd.load_lora_for_models(second, None, load_file(subject.file), STRENGTH, 0.0)
        patched.patch_model()
    seen: list[bool] = []
    expected = subject.sampled(changing_over(subject.model, second, GATE.start, seen))
    assert any(seen) and not all(seen)
    gated = Stack.of(subject.slider, STRENGTH, GATE)
    for mode in ("unmerged", "merged"):
        assert difference(subject.acting(gated, mode), expected) < CLOSE, mode
    assert difference(expected, subject.bare) > 1e-4
    return "yes" if subject.in_sampling is subject.slider else EARLY_OUT


def cond_uncond(subject: Subject) -> str:
    """On cond or on uncond it is a run in which a model with the stock patches answers that prompt.

    The bare model answers the other one. To some models it is not the same to be asked both at once or one by one.
    """
    guidance = max(subject.family.guidance, 3.0)
    said = "yes" if subject.in_sampling is subject.slider else EARLY_OUT
    with torch.inference_mode():
        second = subject.family.build()
        patched, _ = comfy.sd.load_lora_for_models(second, None, tensors_of(subject.in_sampling), STRENGTH, 0.0)
        patched.patch_model()

    def run(model: ModelPatcher) -> Tensor:
        return subject.sampled(model, steps=1, guidance=guidance)

    acted = {
        b: run(apply_sliders(subject.model, Stack.of(subject.in_sampling, STRENGTH).restricted_to(b)))
        for b in COND_OR_UNCOND
    }
    assert difference(*acted.values()) > 1e-3, "no effect"
    for on, cond_or_uncond in enumerate(COND_OR_UNCOND):
        if difference(acted[cond_or_uncond], run(answered_by(subject.model, second, on))) >= CLOSE:
            one_by_one = run(answered_by(subject.model, second, on, one_by_one=True))
            assert difference(acted[cond_or_uncond], one_by_one) < CLOSE, cond_or_uncond
            said = ONE_BY_ONE
    return said


def saves(subject: Subject) -> str:
    """What comes back from a file has the same layers, and acts the same to the bit."""
    again = load_slider(subject.file)
    assert again.layers.keys() == subject.slider.layers.keys()
    assert torch.equal(subject.acting(Stack.of(again, STRENGTH), "unmerged"), subject.acted)
    return "yes"


CHECKS: dict[str, Callable[[Subject], str]] = {
    "loads": loads,
    "acts": acts,
    "namings": namings,
    "sweeps": sweeps,
    "cond_uncond": cond_uncond,
    "gates": gates,
    "trains": trains,
    "saves": saves,
}
