"""Auditions: the effect of a slider without training, predicted by the model itself in every step.

For a noisy latent x at sigma, with d(x, c) = (x - denoised(x, c)) / sigma, a slider of strength s is
trained towards (arXiv 2311.12092, eq. 8)

    d  <-  d + s * eta * mean_p [ d(x, c+ & p) - d(x, c- & p) ]

An audition adds just this to the prediction that leaves guidance. ComfyUI works with the denoised latent,
D = x - sigma d. Inserted, x and sigma cancel, for eps, v and flow models alike:

    D  <-  D + s * eta * mean_p [ D(x, c+ & p) - D(x, c- & p) ]

Everything that a run needs hangs on that run's own options, and goes with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.samplers
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.samplers import CFGGuider
from torch import Tensor

from ..sliders.gate import Gate
from .sampling_run import percent_to_sigma

KEY = "concept_sliders.audition"
Conditioning = list  # ComfyUI's CONDITIONING: [[Tensor (1, tokens, width), {...}], ...]

# What an entry of the run's own prompt does not share with other prompts: its words, its region, its part of
# sampling, what is attached to it. The rest is about the image: sizes, guidance, reference images and the like.
_OF_ONE_PROMPT = frozenset(
    (
        *(
            "cross_attn",
            "pooled_output",
            "attention_mask",
            "model_conds",
            "uuid",
            "prompt_type",
            "strength",
            "default",
        ),
        *("area", "mask", "mask_strength", "set_area_to_bounds", "gligen"),
        *("start_percent", "end_percent", "clip_start_percent", "clip_end_percent", "timestep_start", "timestep_end"),
        *("control", "control_apply_to_uncond", "hooks"),
    )
)


@dataclass(frozen=True, eq=False)
class Contrast:
    """The two ends of a concept.

    more, less: CONDITIONING of c+ & p and of c- & p, for the same phrases p in the same order, at least one.
    eta: guidance of the edit; it sets how far strength 1 goes.
    Raises ValueError for ends of different number or none, or an eta that is not finite.
    """

    more: tuple[Conditioning, ...]
    less: tuple[Conditioning, ...]
    eta: float

    def __post_init__(self) -> None:
        if not self.more or len(self.more) != len(self.less):
            raise ValueError(
                f"A contrast needs as many prompts for more as for less; got {len(self.more)} and {len(self.less)}."
            )
        if not isfinite(self.eta):
            raise ValueError(f"A contrast's eta must be a finite number, got {self.eta}.")


def audition(
    model: ModelPatcher, contrasts: Sequence[Contrast], strength: float = 1.0, gate: Gate | None = None
) -> ModelPatcher:
    """Return a clone of the model that samples as a slider trained on these contrasts would make it.

    It costs two more passes for every phrase in each evaluation within the gate. They use the model with the sliders
    and patches that are on it, and are batched as ComfyUI batches prompts. At strength 0 and outside the
    gate there are none, and the run is that of the model to the bit. Auditions on one model add up.

    strength: as a slider's; 0 is off, negative reverses it. gate: when in sampling it acts; without one, always.
    Raises ValueError if the strength is not finite.
    """
    if not isfinite(strength):
        raise ValueError(f"An audition's strength must be a finite number, got {strength}.")
    clone = model.clone()
    if strength and contrasts:
        clone.add_wrapper_with_key(
            WrappersMP.OUTER_SAMPLE, KEY, _Audition(tuple(contrasts), strength, gate or Gate())
        )
    return clone


@dataclass(frozen=True, eq=False)
class _Audition:
    """The wrapper around each sampling run that stays on the model. Clones share it; it has no state of a run."""

    contrasts: tuple[Contrast, ...]
    strength: float
    gate: Gate

    def __call__(self, executor: Any, *args, **kwargs) -> Tensor:
        guider: CFGGuider = executor.class_obj
        run = _Run(self, guider, kwargs.get("latent_shapes"))
        # the guider's options are a copy made for this run: when it ends, well or badly, this goes with them
        for kind, wrapper in ((WrappersMP.SAMPLER_SAMPLE, run.prepare), (WrappersMP.PREDICT_NOISE, run.predict)):
            comfy.patcher_extension.add_wrapper_with_key(
                kind, KEY, wrapper, guider.model_options, is_model_options=True
            )
        return executor(*args, **kwargs)

    def factor_at(self, sigma: Tensor, model_sampling: Any) -> float:
        """Return the strength times the gate's factor at sigma (B,), which is the same in all entries."""
        if self.gate.always_open:
            return self.strength  # reading sigma would make ComfyUI wait for the device
        to_sigma = percent_to_sigma(model_sampling, sigma.dtype)
        return self.strength * self.gate.factor_at(float(sigma[0]), to_sigma)


class _Run:
    """One audition in one sampling run."""

    def __init__(self, of: _Audition, guider: CFGGuider, latent_shapes: Any):
        self.of = of
        self.guider = guider
        self.latent_shapes = latent_shapes
        self.conds: list[list[dict]] = []  # ready for the model: more and less of each contrast in turn

    def prepare(
        self,
        executor: Any,
        guider: CFGGuider,
        sigmas: Tensor,
        extra_args: dict,
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """Wrap the sampler, with the model loaded, and make the prompts ready for the model, once."""
        settings = _settings(guider.conds)
        ends = [end for contrast in self.of.contrasts for end in (contrast.more, contrast.less)]
        converted = [[entry for prompt in end for entry in _converted(prompt, settings)] for end in ends]
        conds = {str(index): entries for index, entries in enumerate(converted)}
        comfy.samplers.filter_registered_hooks_on_conds(conds, guider.model_options)
        self.conds = [
            comfy.samplers.process_conds(
                guider.inner_model,
                noise,
                {name: entries},
                noise.device,
                latent_image,
                denoise_mask,
                extra_args.get("seed"),
                latent_shapes=self.latent_shapes,
            )[name]
            for name, entries in conds.items()
        ]
        return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)

    def predict(
        self, executor: Any, x: Tensor, sigma: Tensor, model_options: Mapping[str, Any], seed: int | None = None
    ) -> Tensor:
        """Wrap the guider, and within the gate add the change to its denoised latents (B, C, ...).

        Here and not in `sampler_post_cfg_function`, which some guiders leave out, or call on a part of their sum.
        """
        denoised = executor(x, sigma, model_options, seed)
        model = self.guider.inner_model
        factor = self.of.factor_at(sigma, model.model_sampling)
        if not factor:
            return denoised
        # ComfyUI averages the entries of one list: that is the mean over the phrases
        ends = comfy.samplers.calc_cond_batch(model, self.conds, x, sigma, _all_positive(model_options))
        for contrast, more, less in zip(self.of.contrasts, ends[::2], ends[1::2]):
            denoised = denoised + factor * contrast.eta * (more - less)
        return denoised


def _settings(conds: Mapping[str, list[dict]]) -> dict[str, Any]:
    """Return what the run's own prompt says about the image, and not about the prompt."""
    first = next(iter(conds.get("positive") or ()), {})
    return {name: value for name, value in first.items() if name not in _OF_ONE_PROMPT}


def _converted(prompt: Conditioning, settings: Mapping[str, Any]) -> list[dict]:
    """Return ComfyUI's entries for a prompt, with the run's settings where the prompt has none of its own."""
    entries = comfy.sampler_helpers.convert_cond(prompt)
    return [{**settings, **entry, "prompt_type": "positive"} for entry in entries]


def _all_positive(model_options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options under which every prompt counts as a positive one, whatever its place in ComfyUI's list.

    What acts on positive prompts only would otherwise be taken for a part of the difference between the ends.
    """
    options = model_options.get("transformer_options", {})
    wrappers = options.get("wrappers", {})
    around_model = {KEY: [_count_as_positive], **wrappers.get(WrappersMP.APPLY_MODEL, {})}  # outermost
    wrappers = {**wrappers, WrappersMP.APPLY_MODEL: around_model}
    return {**model_options, "transformer_options": {**options, "wrappers": wrappers}}


def _count_as_positive(
    executor: Any,
    x: Tensor,
    sigma: Tensor,
    c_concat: Any = None,
    c_crossattn: Any = None,
    control: Any = None,
    transformer_options: Mapping[str, Any] | None = None,
    **kwargs,
) -> Tensor:
    options = dict(transformer_options or {})
    options["cond_or_uncond"] = [0] * len(options.get("cond_or_uncond", (0,)))
    return executor(x, sigma, c_concat, c_crossattn, control, options, **kwargs)
