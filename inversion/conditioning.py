"""An inversion as CONDITIONING for stock samplers, which brings along what its run has to be.

The host lets hooks of a CONDITIONING add wrappers to the sampling run it is used in. Ours adds one around the run,
which says where the run is not the inversion's (another schedule, sampler, guidance, model or latent), and starts it
at exactly the inversion's noise. It registers nothing that would have to act on one prompt alone, so that both
prompts stay in one batch.
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
from .checks import GUIDANCE_PATCHES
from .inversion import Inversion
from .prompts import first_misplaced, taken

KEY = "concept_sliders.inversion"
_RELATIVE = 1e-4  # within which noise levels are the same


def negative_conditioning(inversion: Inversion) -> list:
    """CONDITIONING with the embedding of every step, each active at exactly its own."""
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


def positive_conditioning(inversion: Inversion) -> list:
    """CONDITIONING of the prompt that the pictures were inverted with."""
    return [list(to_device(inversion.positive, intermediate_device()))]


def inversion_in(conditioning: list) -> Inversion | None:
    """The inversion that a CONDITIONING brings along, if it does."""
    for _, options in conditioning:
        hooks = options.copy().get("hooks")
        for hook in hooks.hooks if hooks is not None else ():
            if isinstance(hook, InversionHook):
                return hook.inversion
    return None


class InversionHook(RunHook):
    """Adds the wrapper of an inversion to a run."""

    def __init__(self, inversion: Inversion | None = None):
        super().__init__(KEY, InversionRun(inversion))

    @property
    def inversion(self) -> Inversion:
        return self.around.inversion


class InversionRun:
    """Around a sampling run: it is the inversion's, or an error."""

    def __init__(self, inversion: Inversion):
        self.inversion = inversion

    def __call__(
        self, executor: Any, noise: Tensor, latent_image: Tensor, sampler: Any, sigmas: Tensor, *args, **kwargs
    ) -> Tensor:
        guider: CFGGuider = executor.class_obj
        first = self.first_step(sigmas)
        self.check_sampler(sampler)
        self.check_guider(guider)
        self.check_guidance(guider)
        self.check_sampling(guider)
        rows = self.rows(latent_image) if first == 0 else self.same_rows(latent_image)
        noise, latent_image = self.start(guider, sampler, sigmas, rows, latent_image if first else None)
        guider.conds = {name: self.for_rows(entries, rows) for name, entries in guider.conds.items()}
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)

    def first_step(self, sigmas: Tensor) -> int:
        """Which of the inversion's steps the run begins with. Raises ValueError if they are other steps."""
        own, given = self.inversion.sigmas, sigmas.detach().float().cpu()
        first = int((own - given[0]).abs().argmin())
        part = own[first : first + len(given)]
        if len(part) != len(given) or not torch.allclose(part, given, rtol=_RELATIVE, atol=1e-6):
            settings = self.inversion.settings
            raise ValueError(
                f"This inversion holds for {self.inversion.steps} steps of the scheduler {settings.scheduler!r}, "
                f"noise levels {_levels(own)}; the sampler runs {len(given) - 1} steps, {_levels(given)}. Wire the "
                f"sigmas of the inversion into SamplerCustom, or set {settings.steps} steps, this scheduler and a "
                "denoise of 1 in KSampler; or invert again for the steps wanted."
            )
        return first

    def check_sampler(self, sampler: Any) -> None:
        """Raises ValueError for any sampler but Euler's method without churn, which DDIM is too."""
        function = getattr(sampler, "sampler_function", None)
        churn = getattr(sampler, "extra_options", {}).get("s_churn", 0)
        if not samples_by_euler(sampler) or churn:
            name = getattr(function, "__name__", type(sampler).__name__).removeprefix("sample_")
            raise ValueError(
                f"An inversion is undone by the sampler euler alone (ddim is the same); got "
                f"{f'euler with churn {churn:g}' if churn else name}."
            )

    def check_guider(self, guider: CFGGuider) -> None:
        """Raises ValueError for another model, or another guidance where the embeddings are fitted to one."""
        inversion, cfg = self.inversion, getattr(guider, "cfg", None)
        found = weights_hash(guider.model_patcher)
        if found != inversion.fingerprint:
            raise ValueError(
                f"This inversion was made with another model: of the family {inversion.family}, weights "
                f"{inversion.fingerprint}; the sampler's are {found}. Load that model, at the same precision, or "
                "invert with this one."
            )
        fitted_to = inversion.settings.cfg if inversion.settings.method == "null-text" else cfg
        if cfg is not None and not isclose(cfg, fitted_to, rel_tol=_RELATIVE):
            raise ValueError(
                f"This inversion's embeddings are fitted to a cfg of {fitted_to:g}; the sampler's is {cfg:g}. Set it "
                f"to {fitted_to:g}, or invert again at the cfg wanted."
            )

    def check_guidance(self, guider: CFGGuider) -> None:
        """Raises ValueError for guidance that fitted embeddings are not fitted to, whatever its scale."""
        if self.inversion.settings.method != "null-text":
            return
        told = [name for name in GUIDANCE_PATCHES if guider.model_options.get(name)]
        if type(guider).predict_noise is not CFGGuider.predict_noise:
            told.append(type(guider).__name__)
        if told:
            raise ValueError(
                "This inversion's embeddings are fitted to plain guidance by the cfg; the sampler's is another "
                f"({', '.join(told)}). Take out the node that changes it, or use CFGGuider."
            )

    def check_sampling(self, guider: CFGGuider) -> None:
        """Raises ValueError for another kind of prediction, or percents that make embeddings act at others' steps."""
        inversion, found = self.inversion, prediction_of(guider.model_patcher)
        if found != inversion.prediction:
            raise ValueError(
                f"This inversion was made of a model that predicts {inversion.prediction}; the sampler's is taken to "
                f"predict {found}. A ModelSampling node is there or missing: wire in the model as it was inverted."
            )
        if inversion.distinct == 1:
            return
        sampling = guider.model_patcher.get_model_object("model_sampling")
        level = first_misplaced(inversion.windows, inversion.sigmas.tolist(), sampling.percent_to_sigma)
        if level is not None:
            raise ValueError(
                "The model's sampling is not the one that this inversion was made with: a ModelSampling node (one "
                f"that sets a shift, say) is there or missing. At step {level + 1} of {inversion.steps} other "
                "embeddings than its own would be active. Wire in the model as it was inverted, or invert again with "
                "this one."
            )

    def rows(self, latent_image: Tensor) -> Tensor:
        """Which picture each row of the latent is of. Raises ValueError if it is not the inversion's."""
        rows = self.inversion.rows_like(latent_image)
        if rows is None:
            raise ValueError(
                f"The latent, {tuple(latent_image.shape)}, is not the noise of this inversion, "
                f"{tuple(self.inversion.noise.shape)}. Wire in the latent that came with it."
            )
        return rows

    def same_rows(self, latent_image: Tensor) -> Tensor:
        """The same, of a latent that is no longer the noise."""
        pictures = self.inversion.pictures
        if len(latent_image) != pictures and pictures > 1:
            raise ValueError(
                f"This inversion is of {pictures} pictures, and the latent in the middle of sampling has "
                f"{len(latent_image)} rows: it cannot be told which is which. Sample them from the start."
            )
        return torch.arange(pictures) if pictures > 1 else torch.zeros(len(latent_image), dtype=torch.long)

    def start(
        self, guider: CFGGuider, sampler: Any, sigmas: Tensor, rows: Tensor, later: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(noise, latent) from which the host makes exactly the inversion's first latent, (rows, C, ...) each.

        later: the latent that the first part of a run in two has left, which its second part goes on from.
        The host mixes the two by the model's noise_scaling, which is linear. A flow model's at the noise level 1
        keeps nothing of the latent; and a mask holds what is outside it to the latent. So that is the picture, and
        the noise is what leads from it to the first latent.
        """
        patcher, inversion = guider.model_patcher, self.inversion
        sampling, inner = patcher.get_model_object("model_sampling"), patcher.model
        clean = inner.process_latent_in(inversion.clean[rows])
        wrap = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=sampling))
        at = (sigmas[:1].to(clean), sampler.max_denoise(wrap, sigmas))
        if later is None:
            x = inner.process_latent_in(inversion.noise[rows])
        else:
            x = sampling.noise_scaling(at[0], torch.zeros_like(clean), inner.process_latent_in(later), at[1])
        of_clean = sampling.noise_scaling(at[0], torch.zeros_like(x), clean, at[1])
        of_noise = sampling.noise_scaling(at[0], torch.ones_like(x), torch.zeros_like(x), at[1])
        return (x - of_clean) / of_noise, inversion.clean[rows]

    def for_rows(self, entries: list[dict], rows: Tensor) -> list[dict]:
        """The run's entries with what they hold for each picture in the order of the rows.

        Entries that the host has taken all hooks off are cleared of the empty place, which it does not expect.
        """
        of = self.inversion.pictures
        entries = [{name: v for name, v in e.items() if name != "hooks" or v is not None} for e in entries]
        return [taken(entry, rows, of) for entry in entries] if rows.tolist() != list(range(of)) else entries


def _levels(sigmas: Tensor) -> str:
    return f"{float(sigmas[0]):.4g} to {float(sigmas[-1]):.4g}"
