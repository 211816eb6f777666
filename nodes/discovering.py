"""The node that finds sliders nobody named: SliderSpace on the model that is connected."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_management import InterruptProcessingException
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io, ui

from ..comfy_host.decoder import Decoder
from ..comfy_host.image_encoder import ImageEncoder
from ..comfy_host.latents import fit_latent
from ..comfy_host.seeded_sampling import SamplerSettings, first_entry
from ..comfy_host.text_encoders import encode_prompts
from ..discovery.prompt_directions import PromptDirections
from ..discovery.recipe import DiscoveryRecipe
from ..discovery.run import Discovery, DiscoveryOptions, discover
from ..evaluation.sweep import Sweep
from ..evaluation.sweep_plan import SweepPlan
from ..evaluation.sweep_sampling import Source, sample_sweep
from ..sliders.stack import Stack
from .direction_names import naming_by, unwanted_texts
from .discovering_inputs import DEFAULT_NAME, how_inputs, what_inputs
from .measurement_output import contact_sheet
from .measuring_inputs import VISION_ENCODERS, lines_of, with_weights
from .report import REPORTS, Report
from .resume_notes import fingerprint, node_id_of, note_stopped
from .run_progress import told, watch_counts, watch_images, watch_training
from .sockets import PromptDirectionsSocket, Sliders
from .training_inputs import checkpoint_inputs, range_inputs

SHEET_STRENGTHS = (-1.0, -0.5, 0.5, 1.0)


class DiscoverSliders(io.ComfyNode):
    """Finds what a model varies by itself, and trains a slider for each direction of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersDiscoverSliders",
            display_name="Discover Sliders",
            category="sliders/training",
            search_aliases=["sliderspace", "find sliders", "unsupervised", "directions", "pca"],
            description="Finds what the model varies by itself at a prompt, and trains a slider for each direction "
            "of it: sliders that nobody named. Cancelling keeps what has been trained so far; samples are kept.",
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip"),
                io.Vae.Input("vae"),
                io.ClipVision.Input(
                    "clip_vision",
                    tooltip="Tells images apart: CLIP, SigLIP, DINOv2 or DINOv3. Directions are of its embeddings.",
                ),
                io.Latent.Input("latent", tooltip="An empty latent of the size to sample at."),
                *what_inputs(),
                *how_inputs(),
                *range_inputs(),
                *checkpoint_inputs(),
                PromptDirectionsSocket.Input(
                    "prompt_directions",
                    optional=True,
                    tooltip="Trains these directions of the prompt, of Discover Prompt Directions, instead of "
                    "looking for others: the sliders then act on any prompt.",
                ),
                io.ClipVision.Input(
                    "names_by",
                    optional=True,
                    tooltip="Names the directions by their images, where clip_vision cannot, such as DINOv2: "
                    "an encoder that belongs with the text encoder.",
                ),
            ],
            outputs=[
                Sliders.Output(display_name="sliders", tooltip="A slider a direction, the widest first, all at 0."),
                io.Image.Output(display_name="sheet", tooltip="Each direction from -1 to 1, on two seeds."),
                io.String.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            **REPORTS,
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, **inputs: Any) -> str:
        return fingerprint(name, node_id_of(cls))

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP | None,
        vae: VAE | None,
        clip_vision: ClipVisionModel | None,
        latent: dict[str, Any],
        prompts: str,
        name: str,
        words: str = "",
        leave_out: str = "",
        checkpoint_every: int = 0,
        prompt_directions: PromptDirections | None = None,
        names_by: ClipVisionModel | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        clip, vae = with_weights(clip, vae, "Discover Sliders")
        if clip_vision is None:
            raise ValueError(
                "Discover Sliders: the checkpoint has no vision encoder. Connect one to clip_vision: Load CLIP "
                f"Vision loads {VISION_ENCODERS}."
            )
        recipe = DiscoveryRecipe(prompts=tuple(lines_of(prompts)), **settings)
        unwanted = unwanted_texts(clip, clip_vision, lines_of(leave_out))
        naming, nameless = naming_by(clip, clip_vision, names_by, words)
        warnings = [nameless]
        node_id, shape = node_id_of(cls), first_entry(fit_latent(model, latent))
        options = DiscoveryOptions(
            watch_training(model, recipe, vae, checkpoint_every, None, node_id),
            Path(folder_paths.get_output_directory()) / "slider_samples",
            sampling=watch_counts("sample", node_id),
            measuring=watch_counts("measurement", node_id),
        )
        conditionings = encode_prompts(clip, dict.fromkeys((*recipe.prompts, "")))
        found = discover(
            *(model, Decoder(model, vae), ImageEncoder(clip_vision), conditionings, recipe, tuple(shape.shape[1:])),
            *(name.strip() or DEFAULT_NAME, options, unwanted, prompt_directions),
        )
        if found is None:
            raise InterruptProcessingException()
        if found.progress.stopped and checkpoint_every:
            warnings.append(note_stopped(name, node_id, found.progress.steps, recipe.steps))
        source = Source(model, clip, vae, shape, _settings(recipe))
        sweep, cut_short = _sweep(source, found.stack, recipe, node_id)
        stack = naming.named(found, sweep) if naming else found.stack
        sheet = torch.ones(1, 64, 64, 3) if sweep is None else contact_sheet(sweep.of(stack))
        report = told(found.progress, recipe.steps, bool(checkpoint_every))
        report += _report(found, stack, [_fewer(found, recipe), *warnings, cut_short])
        shown = report.on_node(ui.PreviewImage(sheet, cls=cls))
        return io.NodeOutput(stack, sheet, report.text, ui=shown)


def _settings(recipe: DiscoveryRecipe) -> SamplerSettings:
    return SamplerSettings(recipe.sampling_steps, recipe.guidance, "euler", recipe.scheduler)


def _sweep(source: Source, stack: Stack, recipe: DiscoveryRecipe, node_id: str | None) -> tuple[Sweep | None, str]:
    """Images of each direction on two seeds, None if a cancel left none, and a note if it cut them short."""
    plan = SweepPlan(stack, recipe.prompts[:1], (recipe.seed, recipe.seed + 1), SHEET_STRENGTHS)
    try:
        sweep = sample_sweep(source, plan, watch_images(node_id))
    except InterruptProcessingException:  # the directions are trained, and are not to be lost for their pictures
        return None, "Cancelled before there was an image for the sheet."
    return sweep, "Cancelled: the sheet is not whole." if sweep.cancelled else ""


def _fewer(found: Discovery, recipe: DiscoveryRecipe) -> str:
    """Say that the samples vary along fewer directions than were asked for; "" if they do not."""
    trained = len(found.stack) + len(found.left_out)
    if trained >= recipe.directions:
        return ""
    return f"{recipe.directions} directions were asked for, and the samples vary along {trained} only."


def _report(found: Discovery, stack: Stack, warnings: list[str]) -> Report:
    figures, explained = found.figures, found.components.explained
    lines = [
        f"{len(stack)} directions, {explained.sum():.0%} of what the embedding varies",
        *(
            f"{each.slider.name}: {share:.1%} of the variance, cosine with its component {own:.2f}"
            for each, share, own in zip(stack, explained.tolist(), figures.own.tolist())
        ),
        f"mean |cosine| between two of them {figures.mutual:.2f}",
    ]
    if found.head is not None:
        lines.append(f"head: R^2 {found.head.median():.2f} in the median, on samples held out")
    left_out = found.left_out and f"left out, as earlier ones do the same: {', '.join(found.left_out)}"
    weak = [each.slider.name for each, own in zip(stack, figures.own.tolist()) if own < 0.3]
    missed = [
        f"Hardly along their components: {', '.join(weak)}. More steps, more samples, or embedding: decoder may help."
    ] if weak else []  # fmt: skip
    if found.head is not None and math.isfinite(found.head.median()) and found.head.median() < 0.3:
        missed.append(
            "The head explains little of the embedding: more samples, or embedding: decoder, would do better."
        )
    if not found.is_sampled:
        missed.append("The run was cut short: how far strength 1 goes is guessed from single predictions.")
    return Report().fact(*lines, left_out or "").warn(*missed, *warnings)
