"""Nodes for what a model varies by itself without training: directions in a prompt's encoding."""

from __future__ import annotations

from typing import Any

import torch
from comfy.model_management import InterruptProcessingException
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io, ui
from torch import Tensor

from ..comfy_host.latents import fit_latent
from ..comfy_host.preview_images import images_of
from ..comfy_host.seeded_sampling import SamplerSettings, first_entry, sample_seeds
from ..comfy_host.shifted_encoding import shift_encoding
from ..comfy_host.text_encoders import encode_prompts
from ..discovery.prompt_directions import PromptDirections
from ..discovery.prompt_run import PromptRecipe, discover_in_prompt
from ..sliders.sweep import parse_values, swept_latent
from .discovering_inputs import sample_inputs
from .image_strip import draw_strip
from .measuring_inputs import with_weights
from .report import REPORTS, Report
from .resume_notes import node_id_of
from .run_progress import watch_counts
from .sockets import PromptDirectionsSocket

SHEET_STRENGTHS, SHEET_SEEDS, SHEET_IMAGE_WIDTH = (-2.0, -1.0, 0.0, 1.0, 2.0), 2, 128


class DiscoverPromptDirections(io.ComfyNode):
    """Finds what a model varies by itself at a prompt, as shifts of the prompt's encoding."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        defaults = PromptRecipe(prompt="x")
        return io.Schema(
            node_id="ConceptSlidersDiscoverPromptDirections",
            display_name="Discover Prompt Directions",
            category="sliders",
            search_aliases=["elrond", "find directions", "unsupervised", "prompt embedding directions"],
            description="Finds what the model varies by itself at a prompt, as directions that the prompt's encoding "
            "is shifted along: nothing is trained. Shift Prompt turns them; Discover Sliders trains them.",
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip"),
                io.Vae.Input("vae", tooltip="Decodes the images of the sheet."),
                io.Latent.Input("latent", tooltip="An empty latent of the size to sample at."),
                io.String.Input("prompt", default="portrait of a person", multiline=True, tooltip="What to look at."),
                io.Int.Input(
                    "directions", default=defaults.directions, min=0, max=256,
                    tooltip="How many. 0: as many as the variance suggests.",
                ),
                io.Int.Input(
                    "samples", default=defaults.samples, min=4, max=10_000,
                    tooltip="Images that are sampled; their differences are looked at, two by two.",
                ),
                io.Int.Input(
                    "gradients", default=defaults.gradients, min=4, max=100_000,
                    tooltip="Differences that are sent back to the prompt; each takes a pass through the model and "
                    "back.",
                ),
                *sample_inputs(defaults.guidance, defaults.scheduler),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**32 - 1, control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Of samples and random choices: the same seed finds the same directions.",
                ),
                io.Float.Input(
                    "spread", default=defaults.spread, min=0.05, max=10.0, step=0.05, optional=True, advanced=True,
                    tooltip="How far strength 1 moves images: in standard deviations of what the model varies by "
                    "itself.",
                ),
            ],
            outputs=[
                PromptDirectionsSocket.Output(display_name="directions"),
                io.Image.Output(display_name="sheet", tooltip="Each direction from -2 to 2, on two seeds."),
                io.String.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            **REPORTS,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, clip: CLIP | None, vae: VAE | None, latent: dict[str, Any], **settings: Any
    ) -> io.NodeOutput:
        clip, vae = with_weights(clip, vae, "Discover Prompt Directions")
        recipe, node_id = PromptRecipe(**settings), node_id_of(cls)
        shape = first_entry(fit_latent(model, latent))
        encoded = encode_prompts(clip, dict.fromkeys((recipe.prompt, "")))
        watch = (watch_counts("sample", node_id), watch_counts("gradient", node_id))
        found = discover_in_prompt(model, encoded, recipe, tuple(shape.shape[1:]), *watch)
        sheet, note = _sheet(model, vae, shape, encoded, recipe, found, node_id)
        report = _report(found, note)
        return io.NodeOutput(found, sheet, report.text, ui=report.on_node(ui.PreviewImage(sheet, cls=cls)))


class ShiftPrompt(io.ComfyNode):
    """Shifts a prompt's encoding along one direction, by one strength or by several in one batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersShiftPrompt",
            display_name="Shift Prompt",
            category="sliders",
            search_aliases=["prompt direction", "steer prompt", "embedding shift"],
            description="Shifts a prompt's encoding along a direction of Discover Prompt Directions: every latent is "
            "repeated once for each value, with the same noise. It takes no additional pass of the model.",
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="The prompt, as encoded by the same text encoder."),
                PromptDirectionsSocket.Input("directions", tooltip="From Discover Prompt Directions."),
                io.Latent.Input("latent", tooltip="The latents to sample; each becomes one row of images."),
                io.String.Input(
                    "values",
                    default="-2, -1, 0, 1, 2",
                    tooltip="Strengths, separated by commas; or from:to:count, such as -2:2:9. A single one shifts "
                    "the prompt by it.",
                ),
                io.Int.Input(
                    "position", default=1, min=1, max=1000, tooltip="Which direction, counted from 1, the widest."
                ),
            ],
            outputs=[io.Conditioning.Output(), io.Latent.Output()],
        )

    @classmethod
    def execute(
        cls, conditioning: list, directions: PromptDirections, latent: dict[str, Any], values: str, position: int
    ) -> io.NodeOutput:
        if position > len(directions):
            raise ValueError(
                f"Shift Prompt: there is no direction {position}: there are {len(directions)}, counted from 1."
            )
        strengths = parse_values(values)
        by_entry = strengths * latent["samples"].shape[0] if len(strengths) > 1 else strengths
        shifted = shift_encoding(conditioning, directions.shifts[position - 1], by_entry)
        return io.NodeOutput(shifted, swept_latent(latent, len(strengths)) if len(strengths) > 1 else latent)


def _sheet(
    model: ModelPatcher,
    vae: VAE,
    latent: Tensor,
    encoded: dict[str, list],
    recipe: PromptRecipe,
    found: PromptDirections,
    node_id: str | None,
) -> tuple[Tensor, str]:
    """A strip a direction, on two seeds, (1, height, width, 3) in 0..1, and a note if a cancel cut it short."""
    settings = SamplerSettings(recipe.sampling_steps, recipe.guidance, "euler", recipe.scheduler)
    seeds = [recipe.seed + number for number in range(SHEET_SEEDS) for _ in SHEET_STRENGTHS]
    labels, strips = [f"{strength:+g}" if strength else "0" for strength in SHEET_STRENGTHS], []
    watch, note = watch_counts("strip", node_id), ""
    try:
        for number, shift in enumerate(found.shifts, 1):
            positive = shift_encoding(encoded[recipe.prompt], shift, SHEET_STRENGTHS * SHEET_SEEDS)
            images = images_of(vae, sample_seeds(model, positive, encoded[""], latent, seeds, settings))
            strips.append(draw_strip(images.float().cpu(), labels, f"direction {number}", SHEET_IMAGE_WIDTH))
            watch(number, len(found))
    except InterruptProcessingException:  # the directions are found, and are not to be lost for their pictures
        note = "Cancelled: the sheet is not whole."
    return torch.cat(strips, dim=1) if strips else torch.ones(1, 64, 64, 3), note


def _report(found: PromptDirections, note: str) -> Report:
    shares = [f"direction {number}: {share:.1%}" for number, share in enumerate(found.explained.tolist(), 1)]
    return Report().fact(f"{len(found)} directions, shares of the gradients' variance:", *shares).warn(note)
