"""Pictures that were not generated, brought to where sliders can edit them."""

from pathlib import Path

import comfy.samplers
import folder_paths
from comfy_api.latest import io, ui

from ..inversion.conditioning import negative_conditioning, positive_conditioning
from ..inversion.inversion import Inversion
from ..inversion.inversion_files import load_inversion, save_inversion
from ..inversion.inversion_run import invert
from ..inversion.run_state import was_cancelled
from ..inversion.settings import METHODS, POOLED, InversionSettings
from .model_folders import find_inversion, free_path, inversion_names
from .resume_notes import fingerprint, node_id_of, note_stopped
from .run_progress import watch_inversion
from .sockets import InversionSocket

_NOTES = "inversion"  # what the notes of cancelled runs are called


class InvertImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersInvertImage",
            display_name="Invert Image (Null-Text)",
            category="sliders/inversion",
            search_aliases=["null text", "null-text inversion", "ddim inversion", "real image", "edit photo"],
            description="Finds a noise latent, and an encoding of the negative prompt for every step, from which the "
            "sampler euler makes this picture again under guidance. With sliders on the model it makes it changed. "
            "Cancelling keeps the steps done; queued again it goes on from them.",
            inputs=[
                io.Model.Input("model", tooltip="Without sliders: they come in when the picture is sampled again."),
                io.Latent.Input("latent", tooltip="The picture, from VAE Encode. Each of a batch is inverted."),
                io.Conditioning.Input("positive", tooltip="What the picture shows: one prompt for all, or one each."),
                io.Conditioning.Input("negative", tooltip="What fitting starts from; mostly an empty prompt."),
                *_settings(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the picture may change: white. Outside it stays as it was.",
                ),
                io.Vae.Input(
                    "vae", optional=True, tooltip="Shows previews in full. Without it they are made from the latents."
                ),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs) -> str:
        return fingerprint(_NOTES, node_id_of(cls))

    @classmethod
    def execute(
        cls, model, latent: dict, positive: list, negative: list, mask=None, vae=None, **settings
    ) -> io.NodeOutput:
        chosen = InversionSettings(**settings)
        node_id, watch = node_id_of(cls), watch_inversion(model, vae)
        inversion = invert(model, latent["samples"], positive, negative, chosen, watch, node_id)
        if node_id is not None and was_cancelled(model, node_id):  # cancelled
            note_stopped(_NOTES, node_id, inversion.done, inversion.steps)
        # (B, H, W) -> (B, 1, H, W), as SetLatentNoiseMask has it
        noise_mask = latent.get("noise_mask") if mask is None else mask.reshape(-1, 1, *mask.shape[-2:])
        return handed_on(inversion, noise_mask)


class SaveInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersSaveInversion",
            display_name="Save Inversion",
            category="sliders/inversion",
            description="Writes an inversion to models/inversions, as one file: made once, it serves for any edit.",
            inputs=[
                InversionSocket.Input("inversion", tooltip="From Invert Image."),
                io.String.Input(
                    "name",
                    default="my_picture",
                    tooltip="File name, with folders if you like. A number is added rather than overwriting a file.",
                ),
            ],
            outputs=[io.String.Output(display_name="file")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, inversion: Inversion, name: str) -> io.NodeOutput:
        folder = Path(folder_paths.get_folder_paths("inversions")[0])
        path = free_path(folder, name, "Save Inversion")
        save_inversion(inversion, path)
        file = path.relative_to(folder).as_posix()
        return io.NodeOutput(file, ui=ui.PreviewText(f"Saved {file}"))


class LoadInversion(io.ComfyNode):
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
                    tooltip="Where the picture may change: white. Outside it stays as it was.",
                ),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, mask=None):
        return find_inversion(file).stat().st_mtime_ns

    @classmethod
    def execute(cls, file: str, mask=None) -> io.NodeOutput:
        noise_mask = None if mask is None else mask.reshape(-1, 1, *mask.shape[-2:])
        return handed_on(load_inversion(find_inversion(file)), noise_mask)


def handed_on(inversion: Inversion, noise_mask=None) -> io.NodeOutput:
    """The outputs that both nodes have in common."""
    latent = {"samples": inversion.noise.clone()}
    if noise_mask is not None:
        latent["noise_mask"] = noise_mask
    negative, positive = negative_conditioning(inversion), positive_conditioning(inversion)
    sigmas, report = inversion.sigmas.clone(), inversion.report()
    return io.NodeOutput(latent, negative, sigmas, report, inversion, positive, ui=ui.PreviewText(report))


def _outputs() -> list:
    return [
        io.Latent.Output(display_name="noise", tooltip="For the sampler's latent, with no noise added."),
        io.Conditioning.Output(
            display_name="negative", tooltip="One encoding a step. It stops samplers that would not fit it."
        ),
        io.Sigmas.Output(tooltip="The noise levels it holds for, for SamplerCustom."),
        io.String.Output(display_name="report", tooltip="Losses of every step, and how near the picture it comes."),
        InversionSocket.Output(display_name="inversion", tooltip="All of it, for Save Inversion."),
        io.Conditioning.Output(
            display_name="positive", tooltip="The prompt it was inverted with: with another one the picture changes."
        ),
    ]


def _settings() -> list:
    defaults = InversionSettings()
    return [
        io.Combo.Input(
            "method",
            options=list(METHODS),
            default=defaults.method,
            tooltip="null-text: fits the negative encoding of every step. negative prompt: puts the positive in its "
            "place, in seconds; refine it. plain: the noise alone, for models sampled at a cfg of 1.",
        ),
        io.Int.Input("steps", default=defaults.steps, min=1, max=1000, tooltip="Steps of sampling. Published: 50."),
        io.Float.Input(
            "cfg",
            default=defaults.cfg,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="The guidance that the picture will be sampled with. Published: 7.5.",
        ),
        io.Combo.Input(
            "scheduler",
            options=list(comfy.samplers.SCHEDULER_NAMES),
            default=defaults.scheduler,
            tooltip="The noise levels' schedule, as in KSampler.",
        ),
        io.Int.Input(
            "refinement",
            default=2,
            min=0,
            max=100,
            tooltip="Fixed-point iterations of every inversion step; each costs one pass of the model a step. The "
            "published inversion makes none; two bring plain inversion much nearer to the picture.",
        ),
        io.Int.Input(
            "inner_steps",
            default=defaults.inner_steps,
            min=1,
            max=1000,
            advanced=True,
            tooltip="Null-text: steps of Adam in a step of sampling, at most. Published: 10.",
        ),
        io.Float.Input(
            "learning_rate",
            default=defaults.learning_rate,
            min=1e-6,
            max=10.0,
            step=1e-3,
            round=False,
            advanced=True,
            tooltip="Null-text: Adam's step size at first; it falls to half. Published: 0.01.",
        ),
        io.Float.Input(
            "tolerance",
            default=defaults.tolerance,
            min=0.0,
            max=1.0,
            step=1e-6,
            round=False,
            advanced=True,
            tooltip="Null-text: the loss (mean squared error of latents) at which the first step is good enough; it "
            "grows with the steps. Published: 0.00001. 0 makes all inner steps.",
        ),
        io.Combo.Input(
            "pooled",
            options=list(POOLED),
            default=defaults.pooled,
            advanced=True,
            tooltip="Null-text: what happens to the encoding's pooled part, where the model has one (SDXL, SD3).",
        ),
    ]
