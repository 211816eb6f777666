"""Nodes that invert images that the model did not make, so that sliders can edit them."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy_api.latest import io
from torch import Tensor

from ..inversion.conditioning import negative_conditioning, positive_conditioning
from ..inversion.inversion import Inversion
from ..inversion.inversion_files import load_inversion, save_inversion
from ..inversion.inversion_run import invert
from ..inversion.run_state import was_cancelled
from ..inversion.settings import METHODS, POOLED, InversionSettings
from .model_folders import find_inversion, inversion_names, name_fault, output_path, stamp
from .report import REPORTS, Report
from .resume_notes import fingerprint, node_id_of, note_stopped
from .run_progress import InversionWatch
from .sockets import InversionSocket

NOTES_NAME = "inversion"  # of the notes of cancelled runs


class InvertImage(io.ComfyNode):
    """Finds the noise and the negative encodings that lead to an image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersInvertImage",
            display_name="Invert Image (Null-Text)",
            category="sliders/inversion",
            search_aliases=["null text", "null-text inversion", "ddim inversion", "real image", "edit photo"],
            description="Finds a noise latent, and an encoding of the negative prompt for every step, from which the "
            "sampler euler makes this image again under guidance. With sliders on the model it makes it changed. "
            "Cancelling keeps the steps done; queued again it resumes from them.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="Without sliders: they are applied where the image is sampled again."
                ),
                io.Latent.Input("latent", tooltip="The image, from VAE Encode. Each entry of a batch is inverted."),
                io.Conditioning.Input(
                    "positive", tooltip="What the image shows: one prompt for all, or one for each."
                ),
                io.Conditioning.Input(
                    "negative", tooltip="What the fitted encodings start from; mostly an empty prompt."
                ),
                *_sampling_settings(),
                *_fitting_settings(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the image may change: white. Outside it stays as it was.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Shows previews in full. Without it they are rough images of the latents.",
                ),
            ],
            outputs=_outputs(),
            **REPORTS,
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        return fingerprint(NOTES_NAME, node_id_of(cls))

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        latent: dict[str, Any],
        positive: list,
        negative: list,
        mask: Tensor | None = None,
        vae: VAE | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        chosen = InversionSettings(**settings)
        node_id = node_id_of(cls)
        watch = InversionWatch(model, vae, node_id)
        inversion = invert(model, latent["samples"], positive, negative, chosen, watch, node_id)
        if node_id is not None and was_cancelled(model, node_id):  # cancelled
            note_stopped(NOTES_NAME, node_id, inversion.done, inversion.steps)
        went_on = f"went on at {watch.first.text}" if watch.first and watch.first.done > inversion.images else ""
        return inversion_output(inversion, latent.get("noise_mask") if mask is None else noise_mask_of(mask), went_on)


class SaveInversion(io.ComfyNode):
    """Writes an inversion to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersSaveInversion",
            display_name="Save Inversion",
            category="sliders/inversion",
            description="Writes an inversion to models/inversions, as one file, which serves for every edit of its "
            "images.",
            inputs=[
                InversionSocket.Input("inversion", tooltip="From Invert Image."),
                io.String.Input(
                    "name",
                    default="my_image",
                    tooltip="File name, with folders if you like. A number is added rather than overwriting a file.",
                ),
            ],
            outputs=[io.String.Output(display_name="file")],
            is_output_node=True,
            **REPORTS,
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return name_fault("inversions", name, "Save Inversion")

    @classmethod
    def execute(cls, inversion: Inversion, name: str) -> io.NodeOutput:
        path, file = output_path("inversions", name, "Save Inversion")
        save_inversion(inversion, path)
        return io.NodeOutput(file, ui=Report().fact(f"saved as {file}").on_node())


class LoadInversion(io.ComfyNode):
    """Reads an inversion from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersLoadInversion",
            display_name="Load Inversion",
            category="sliders/inversion",
            description="An inversion from a file in models/inversions, as Invert Image put it out.",
            inputs=[
                io.Combo.Input("file", options=inversion_names(), tooltip="What Save Inversion has written."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the image may change: white. Outside it stays as it was.",
                ),
            ],
            outputs=_outputs(),
            **REPORTS,
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, mask: Tensor | None = None) -> tuple[int, ...]:
        return stamp(find_inversion(file))

    @classmethod
    def execute(cls, file: str, mask: Tensor | None = None) -> io.NodeOutput:
        return inversion_output(load_inversion(find_inversion(file)), None if mask is None else noise_mask_of(mask))


def inversion_output(inversion: Inversion, noise_mask: Tensor | None = None, went_on: str = "") -> io.NodeOutput:
    """Put out an inversion, as Invert Image and Load Inversion have it in common.

    went_on: what is reported before the rest.
    """
    latent = {"samples": inversion.noise.clone()}
    if noise_mask is not None:
        latent["noise_mask"] = noise_mask
    negative, positive = negative_conditioning(inversion), positive_conditioning(inversion)
    sigmas, text = inversion.sigmas.clone(), inversion.report()
    shown = Report().fact(went_on, *inversion.facts()).warn(*inversion.warnings())
    return io.NodeOutput(latent, negative, sigmas, text, inversion, positive, ui=shown.on_node())


def noise_mask_of(mask: Tensor) -> Tensor:
    """Shape a MASK, (B, H, W) or (H, W), as SetLatentNoiseMask does: (B, 1, H, W)."""
    return mask.reshape(-1, 1, *mask.shape[-2:])


def _outputs() -> list[io.Output]:
    return [
        io.Latent.Output(display_name="noise", tooltip="For the sampler's latent, with no noise added."),
        io.Conditioning.Output(
            display_name="negative",
            tooltip="One encoding for each step. Sampling that would not give the image back stops with an error.",
        ),
        io.Sigmas.Output(tooltip="The sigmas that it was made at, for SamplerCustom."),
        io.String.Output(
            display_name="report", tooltip="The loss of every step, and how near the reconstruction is to the image."
        ),
        InversionSocket.Output(display_name="inversion", tooltip="For Save Inversion."),
        io.Conditioning.Output(
            display_name="positive", tooltip="The prompt that it was inverted with: another one changes the image."
        ),
    ]


def _sampling_settings() -> list[io.Input]:
    """Return the inputs that say how the image will be sampled, and how the way back is found."""
    defaults = InversionSettings()
    return [
        io.Combo.Input(
            "method",
            options=list(METHODS),
            default=defaults.method,
            tooltip="null-text: fits the negative encoding of every step. negative prompt: uses the positive one in "
            "its place, which takes seconds; add refinement. plain: the noise alone, for models sampled at a cfg of "
            "1.",
        ),
        io.Int.Input(
            "steps",
            default=defaults.steps,
            min=1,
            max=1000,
            tooltip="Steps that the image will be sampled in. Published: 50.",
        ),
        io.Float.Input(
            "cfg",
            default=defaults.cfg,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="The cfg that the image will be sampled with. Published: 7.5.",
        ),
        io.Combo.Input(
            "scheduler",
            options=list(comfy.samplers.SCHEDULER_NAMES),
            default=defaults.scheduler,
            tooltip="The schedule of sigmas, as in KSampler.",
        ),
        io.Int.Input(
            "refinement",
            default=2,
            min=0,
            max=100,
            tooltip="Fixed-point iterations of every inversion step; each costs one evaluation of the model. "
            "0: the published step of DDIM inversion; with 2 sampling leads back much nearer to the image.",
        ),
    ]


def _fitting_settings() -> list[io.Input]:
    """Return the inputs of null-text's fit of the negative encodings."""
    defaults = InversionSettings()
    return [
        io.Int.Input(
            "inner_steps",
            default=defaults.inner_steps,
            min=1,
            max=1000,
            advanced=True,
            tooltip="Null-text: steps of Adam for each step of sampling, at most. Published: 10.",
        ),
        io.Float.Input(
            "learning_rate",
            default=defaults.learning_rate,
            min=1e-6,
            max=10.0,
            step=1e-3,
            round=False,
            advanced=True,
            tooltip="Null-text: learning rate of Adam at the first step; it falls to half by the last. Published: "
            "0.01.",
        ),
        io.Float.Input(
            "tolerance",
            default=defaults.tolerance,
            min=0.0,
            max=1.0,
            step=1e-6,
            round=False,
            advanced=True,
            tooltip="Null-text: the loss (mean squared error of latents) at which the first step's fit ends; it "
            "grows over the steps. Published: 0.00001. 0 always makes all inner steps.",
        ),
        io.Combo.Input(
            "pooled",
            options=list(POOLED),
            default=defaults.pooled,
            advanced=True,
            tooltip="Null-text: whether the pooled encoding, where the model has one (SDXL, SD3), stays as it is or "
            "is fitted too.",
        ),
    ]
