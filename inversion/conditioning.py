"""An inversion as CONDITIONING for ComfyUI's own samplers.

ComfyUI lets hooks of a CONDITIONING add wrappers to the sampling run that it is used in. The one here adds a wrapper
around the run, which raises an error where the run is not the inversion's (another schedule, sampler, guidance, model
or latent), and starts it at exactly the inversion's noise. It registers nothing that acts on one prompt alone, so
that ComfyUI evaluates both prompts in one batch.
"""

from __future__ import annotations

from math import isclose
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..comfy_host.identity import prediction_of, weights_hash
from ..comfy_host.memory import intermediate_device, to_device
from ..comfy_host.sampling_run import CFGGuider, HookedOptions, RunHook, group_of, samples_by_euler
from .input_checks import GUIDANCE_PATCHES
from .inversion import Inversion
from .prompts import first_misplaced, select_options

KEY = "concept_sliders.inversion"
_RELATIVE = 1e-4  # relative difference within which sigmas are the same


def negative_conditioning(inversion: Inversion) -> list[list[Any]]:
    """Returns CONDITIONING with the embedding of every step, each active at exactly its own."""
    hooks = group_of(InversionHook(inversion))
    device = intermediate_device()  # where the prompt's encoding is, to share its batch
    conditioning = []
    for step, (start, end) in enumerate(inversion.windows[: inversion.distinct]):
        encoding, options = inversion.entry(step)
        options = to_device(options, device)
        if inversion.distinct > 1:
            options |= {"start_percent": start, "end_percent": end}
        conditioning.append([encoding.to(device), HookedOptions(options, hooks)])
    return conditioning


def positive_conditioning(inversion: Inversion) -> list[list[Any]]:
    """Returns CONDITIONING of the prompt that the images were inverted with."""
    return [list(to_device(inversion.positive, intermediate_device()))]


def inversion_in(conditioning: list[Any]) -> Inversion | None:
    """Returns the inversion whose CONDITIONING it is, or None."""
    for _, options in conditioning:
        hooks = options.copy().get("hooks")
        for hook in hooks.hooks if hooks is not None else ():
            if isinstance(hook, InversionHook):
                return hook.inversion
    return None


class InversionHook(RunHook):
    """Adds the wrapper of an inversion to a run. ComfyUI makes one without arguments to clone it."""

    def __init__(self, inversion: Inversion | None = None) -> None:
        super().__init__(KEY, None if inversion is None else InversionRun(inversion))

    @property
    def inversion(self) -> Inversion:
        assert isinstance(self.around, InversionRun)
        return self.around.inversion


class InversionRun:
    """Wraps a sampling run: it is the inversion's, from its noise, or an error."""

    def __init__(self, inversion: Inversion) -> None:
        self.inversion = inversion

    def __call__(
        self,
        executor: Any,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        inversion, guider = self.inversion, executor.class_obj
        first = first_step(inversion, sigmas)
        check_sampler(sampler)
        check_model(inversion, guider)
        check_guidance(inversion, guider)
        check_sampling(inversion, guider)
        images = _images_of_noise(inversion, latent_image) if first == 0 else _images_of(inversion, latent_image)
        latents = None if first == 0 else latent_image
        noise, latent_image = noise_and_latent(inversion, guider, sampler, sigmas, images, latents)
        guider.conds = {name: _for_images(entries, images, inversion) for name, entries in guider.conds.items()}
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)


def first_step(inversion: Inversion, sigmas: Tensor) -> int:
    """Returns the step of the inversion that a run begins with. Raises ValueError if its steps are others.

    sigmas: (steps of the run + 1,).
    """
    own, given = inversion.sigmas, sigmas.detach().float().cpu()
    first = int((own - given[0]).abs().argmin())
    part = own[first : first + len(given)]
    if len(part) != len(given) or not torch.allclose(part, given, rtol=_RELATIVE, atol=1e-6):
        settings = inversion.settings
        raise ValueError(
            f"This inversion is valid for {inversion.steps} steps of the scheduler {settings.scheduler!r}, sigmas "
            f"{_range(own)}; the sampler runs {len(given) - 1} steps, {_range(given)}. Wire the sigmas of the "
            f"inversion into SamplerCustom, or set {settings.steps} steps, this scheduler and a denoise of 1 in "
            "KSampler; or invert again for the steps wanted."
        )
    return first


def check_sampler(sampler: Any) -> None:
    """Raises ValueError for any sampler but Euler's method without churn, which DDIM is, too."""
    function = getattr(sampler, "sampler_function", None)
    churn = getattr(sampler, "extra_options", {}).get("s_churn", 0)
    if not samples_by_euler(sampler) or churn:
        name = getattr(function, "__name__", type(sampler).__name__).removeprefix("sample_")
        raise ValueError(
            f"An inversion is undone by the sampler euler alone (ddim is the same); got "
            f"{f'euler with churn {churn:g}' if churn else name}."
        )


def check_model(inversion: Inversion, guider: CFGGuider) -> None:
    """Raises ValueError for another model than the inversion's."""
    found = weights_hash(guider.model_patcher)
    if found != inversion.weights_hash:
        raise ValueError(
            f"This inversion was made with another model: of the family {inversion.family}, weights "
            f"{inversion.weights_hash}; the sampler's are {found}. Load that model, at the same precision, or "
            "invert with this one."
        )


def check_guidance(inversion: Inversion, guider: CFGGuider) -> None:
    """Raises ValueError for guidance that optimised embeddings are not optimised for, by its scale or its form."""
    if not inversion.settings.optimises:
        return
    cfg, own_cfg = getattr(guider, "cfg", None), inversion.settings.cfg
    if cfg is not None and not isclose(cfg, own_cfg, rel_tol=_RELATIVE):
        raise ValueError(
            f"This inversion's embeddings are fitted to a cfg of {own_cfg:g}; the sampler's is {cfg:g}. Set it "
            f"to {own_cfg:g}, or invert again at the cfg wanted."
        )
    others = [name for name in GUIDANCE_PATCHES if guider.model_options.get(name)]
    if type(guider).predict_noise is not CFGGuider.predict_noise:
        others.append(type(guider).__name__)
    if others:
        raise ValueError(
            "This inversion's embeddings are fitted to plain guidance by the cfg; the sampler's is another "
            f"({', '.join(others)}). Take out the node that changes it, or use CFGGuider."
        )


def check_sampling(inversion: Inversion, guider: CFGGuider) -> None:
    """Raises ValueError for another kind of prediction, or where embeddings would be active at other steps."""
    found = prediction_of(guider.model_patcher)
    if found != inversion.prediction:
        raise ValueError(
            f"This inversion was made of a model that predicts {inversion.prediction}; the sampler's is taken to "
            f"predict {found}. A ModelSampling node is there or missing: wire in the model as it was inverted."
        )
    if inversion.distinct == 1:
        return
    sampling = guider.model_patcher.get_model_object("model_sampling")
    step = first_misplaced(inversion.windows, inversion.sigmas.tolist(), sampling.percent_to_sigma)
    if step is not None:
        raise ValueError(
            "The model's sampling is not the one that this inversion was made with: a ModelSampling node (one "
            f"that sets a shift, say) is there or missing. At step {step + 1} of {inversion.steps} other "
            "embeddings than its own would be active. Wire in the model as it was inverted, or invert again with "
            "this one."
        )


def noise_and_latent(
    inversion: Inversion,
    guider: CFGGuider,
    sampler: Any,
    sigmas: Tensor,
    images: Tensor,
    latents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the (noise, latent) from which ComfyUI makes exactly the first latents of the run: (n, C, ...) each.

    images: (n,), which image each entry is of. latents: where a run in two parts has left off, for its second part;
    None for the inversion's noise.
    ComfyUI mixes the two by the model's `noise_scaling`, which is linear. That of flow models keeps nothing of the
    latent at a sigma of 1; and under a mask, what is outside of it is kept as the latent has it. So the latent must
    be the clean image, and the noise what leads from it to the first latents.
    """
    patcher, inner = guider.model_patcher, guider.model_patcher.model
    sampling = patcher.get_model_object("model_sampling")
    clean = inner.process_latent_in(inversion.clean[images])
    model_wrap = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=sampling))  # what max_denoise looks at
    sigma, max_denoise = sigmas[:1].to(clean), sampler.max_denoise(model_wrap, sigmas)
    if latents is None:
        x = inner.process_latent_in(inversion.noise[images])
    else:
        nothing = torch.zeros_like(clean)
        x = sampling.noise_scaling(sigma, nothing, inner.process_latent_in(latents), max_denoise)
    of_clean = sampling.noise_scaling(sigma, torch.zeros_like(x), clean, max_denoise)
    of_noise = sampling.noise_scaling(sigma, torch.ones_like(x), torch.zeros_like(x), max_denoise)
    return (x - of_clean) / of_noise, inversion.clean[images]


def _images_of_noise(inversion: Inversion, latents: Tensor) -> Tensor:
    """Returns the index of the image that each entry of a noise latent (n, C, ...) is of; ValueError for another."""
    images = inversion.match_images(latents)
    if images is None:
        raise ValueError(
            f"The latent, {tuple(latents.shape)}, is not the noise of this inversion, "
            f"{tuple(inversion.noise.shape)}. Wire in the latent that came with it."
        )
    return images


def _images_of(inversion: Inversion, latents: Tensor) -> Tensor:
    """Returns the same for latents (n, C, ...) in the middle of sampling, which cannot be told by their values."""
    count = inversion.images
    if count == 1:
        return torch.zeros(len(latents), dtype=torch.long)
    if len(latents) != count:
        raise ValueError(
            f"This inversion is of {count} images, and the latent in the middle of sampling has {len(latents)} "
            "entries: it cannot be told which is which. Sample them from the start."
        )
    return torch.arange(count)


def _for_images(entries: list[dict[str, Any]], images: Tensor, inversion: Inversion) -> list[dict[str, Any]]:
    """Returns the entries of a run with what they have for each image, in the order of the latents.

    ComfyUI leaves an empty "hooks" where it has taken all hooks off, which it does not expect: that is removed.
    """
    entries = [{name: v for name, v in e.items() if name != "hooks" or v is not None} for e in entries]
    if images.tolist() == list(range(inversion.images)):
        return entries
    return [select_options(entry, images, inversion.images) for entry in entries]


def _range(sigmas: Tensor) -> str:
    return f"{float(sigmas[0]):.4g} to {float(sigmas[-1]):.4g}"
