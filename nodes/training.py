"""Nodes that train a slider, on the model or the text encoders that are connected."""

from __future__ import annotations

from typing import Any, TypeVar

from comfy.clip_vision import ClipVisionModel
from comfy.model_management import InterruptProcessingException
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io

from ..comfy_host.latents import fit_latent, to_model_scale
from ..comfy_host.text_encoders import encode_prompts
from ..sliders.stack import Stack
from ..training.automatic import told_outcome, warn_outcome
from ..training.concept import Concept
from ..training.pairs.image_sets import ImagePairs
from ..training.recipe import VISUAL_METHODS, EncoderRecipe, Recipe, TextualRecipe, VisualRecipe
from ..training.run import RunOptions, Trained, train_text_encoder, train_textual, train_visual
from ..training.visual_samples import encode_sets
from ..training.words import check_words
from .report import REPORTS
from .resume_notes import fingerprint, node_id_of, note_stopped
from .run_progress import told, watch_training
from .slider_reports import window
from .sockets import ImagePairsSocket, SliderConcept, Sliders
from .training_inputs import (
    checkpoint_inputs,
    layer_inputs,
    range_inputs,
    recipe_input,
    rollout_inputs,
    run_inputs,
    slider_inputs,
)

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)

DEFAULT_NAME = "slider"  # where the name is empty


class TrainSlider(io.ComfyNode):
    """Trains a textual slider: from prompts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersTrainSlider",
            display_name="Train Slider",
            category="sliders/training",
            search_aliases=["train lora", "train slider", "concept slider"],
            description="Trains a slider on the model in place; the model stays as it is. Cancelling keeps what "
            "has been trained so far.",
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip"),
                SliderConcept.Input("concept"),
                io.Latent.Input(
                    "latent",
                    tooltip="An empty latent of the size to train at. Its batch size is the "
                    "number of images in a step.",
                ),
                *slider_inputs(steps=400),
                *rollout_inputs(),
                *range_inputs(),
                io.Float.Input(
                    "on_policy_rollouts",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="Share of the rollouts that are sampled with the slider on, as trained so far. From "
                    "them it learns what to preserve in images that it has changed. The paper: 0; its code: 1.",
                ),
                io.Boolean.Input(
                    "preserve_in_target",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="In rollouts with the slider on, what the phrases name is to be as it would be without "
                    "the slider: a face grown old gets no glasses that it did not have. Off is the paper's way. It "
                    "changes nothing without phrases.",
                ),
                *layer_inputs(),
                *run_inputs(),
                io.Int.Input(
                    "phrases_per_sigma",
                    default=2,
                    min=0,
                    max=100,
                    optional=True,
                    advanced=True,
                    tooltip="How many of the phrases to preserve the model is evaluated with at one sigma. Where "
                    "there are more, neighbours in the list take turns together, and a step costs the same with any "
                    "number of them. 0: all each time.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Shows the preview strip in full; it needs room beside "
                    "the model. Without it the preview is made from the latents.",
                ),
                recipe_input(),
            ],
            outputs=[Sliders.Output(display_name="sliders")],
            hidden=[io.Hidden.unique_id],
            **REPORTS,
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, **inputs: Any) -> str:
        return fingerprint(name, node_id_of(cls))

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        concept: tuple[Concept, ...],
        latent: dict[str, Any],
        name: str,
        vae: VAE | None = None,
        checkpoint_every: int = 0,
        clip_vision: ClipVisionModel | None = None,
        recipe: Recipe | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        recipe = of_kind(TextualRecipe, recipe or TextualRecipe(concepts=concept, **settings))
        known = check_words(clip, recipe.concepts)
        conditionings = encode_prompts(clip, recipe.prompts())
        options = watch_training(model, recipe, vae, checkpoint_every, clip_vision, node_id_of(cls), known)
        trained = train_textual(
            model, conditionings, recipe, fit_latent(model, latent), name.strip() or DEFAULT_NAME, options
        )
        return trained_output(trained, recipe, name, cls, options)


class TrainVisualSlider(io.ComfyNode):
    """Trains a visual slider: from image pairs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersTrainVisualSlider",
            display_name="Train Visual Slider",
            category="sliders/training",
            search_aliases=["train lora", "image slider", "concept slider", "image pairs"],
            description="Trains a slider on what pairs of images differ in, in place. Cancelling keeps "
            "what has been trained so far.",
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip"),
                io.Vae.Input("vae", tooltip="Encodes the images, and shows the preview strip."),
                ImagePairsSocket.Input("pairs"),
                io.String.Input("less", default="", tooltip="Label of the negative end, for the slider's file."),
                io.String.Input("more", default="", tooltip="Label of the positive end."),
                io.Combo.Input(
                    "method",
                    options=list(VISUAL_METHODS),
                    default="ADDifT",
                    tooltip="ADDifT: the frozen model at one image teaches the slider at the other; it learns only "
                    "what the images differ in, and has a smaller effect. noise: the published loss, each image "
                    "denoised at its strength; a larger effect, and it also learns what the model gets wrong in all "
                    "of them.",
                ),
                *slider_inputs(steps=300),
                *range_inputs(),
                *layer_inputs(),
                *run_inputs(),
                io.Boolean.Input(
                    "fit_strength",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="When training is over, tries the slider in sampling on the images themselves, and makes "
                    "it up to 3 times stronger until from strength -1 to +1 it moves them half of the way.",
                ),
                recipe_input(),
            ],
            outputs=[Sliders.Output(display_name="sliders")],
            hidden=[io.Hidden.unique_id],
            **REPORTS,
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, **inputs: Any) -> str:
        return fingerprint(name, node_id_of(cls))

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        vae: VAE,
        pairs: ImagePairs,
        name: str,
        checkpoint_every: int = 0,
        clip_vision: ClipVisionModel | None = None,
        recipe: Recipe | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        recipe = of_kind(VisualRecipe, recipe or VisualRecipe(sets=len(pairs), **settings))
        conditionings = encode_prompts(clip, {one.prompt: None for one in pairs})
        sets = encode_sets(pairs, vae.encode, to_model_scale(model))
        options = watch_training(model, recipe, vae, checkpoint_every, clip_vision, node_id_of(cls))
        trained = train_visual(model, conditionings, recipe, sets, name.strip() or DEFAULT_NAME, options)
        return trained_output(trained, recipe, name, cls, options)


class TrainTextEncoderSlider(io.ComfyNode):
    """Trains a slider of the text encoders alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersTrainTextEncoderSlider",
            display_name="Train Text Encoder Slider",
            category="sliders/training",
            search_aliases=["text slider", "train lora", "clip lora"],
            description="Trains a slider of the text encoder alone, in place: no diffusion model is needed, and "
            "every model that reads these encodings follows it. Apply Sliders lets it act through its CLIP input.",
            inputs=[
                io.Clip.Input("clip"),
                SliderConcept.Input("concept"),
                io.Float.Input(
                    "share",
                    default=1.0,
                    min=0.05,
                    max=10.0,
                    step=0.05,
                    tooltip="How far strength 1 moves a prompt's encoding, as a multiple of the distance from "
                    "the less end to the more end. The concept's eta is not used.",
                ),
                *slider_inputs(steps=300),
                *layer_inputs(),
                *checkpoint_inputs(),
                recipe_input(),
            ],
            outputs=[Sliders.Output(display_name="sliders")],
            hidden=[io.Hidden.unique_id],
            **REPORTS,
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, **inputs: Any) -> str:
        return fingerprint(name, node_id_of(cls))

    @classmethod
    def execute(
        cls,
        clip: CLIP,
        concept: tuple[Concept, ...],
        name: str,
        checkpoint_every: int = 0,
        recipe: Recipe | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        recipe = of_kind(EncoderRecipe, recipe or EncoderRecipe(concepts=concept, **settings))
        options = watch_training(None, recipe, checkpoint_every=checkpoint_every, node_id=node_id_of(cls))
        return trained_output(
            train_text_encoder(clip, recipe, name.strip() or DEFAULT_NAME, options), recipe, name, cls, options
        )


_NODES = {
    TextualRecipe: ("a textual slider", "Train Slider"),
    VisualRecipe: ("a visual slider", "Train Visual Slider"),
    EncoderRecipe: ("a slider of the text encoder", "Train Text Encoder Slider"),
}


def of_kind(kind: type[AnyRecipe], recipe: Recipe) -> AnyRecipe:
    """Return a recipe that is of this kind. Raises ValueError for another, which names the node it belongs to."""
    if not isinstance(recipe, kind):
        of, node = _NODES[type(recipe)]
        raise ValueError(f"{_NODES[kind][1]}: the recipe is of {of}; connect it to {node}.")
    return recipe


def trained_output(
    trained: Trained | None, recipe: Recipe, name: str, node: type[io.ComfyNode], options: RunOptions
) -> io.NodeOutput:
    """Put out what was trained, and write a note if the run was cancelled, so that the same graph resumes it.

    trained: None where the run was cancelled before there was anything to keep: ComfyUI is told of the cancel.
    """
    if trained is None:
        raise InterruptProcessingException()
    node_id, not_noted = node_id_of(node), ""
    if trained.progress.stopped and options.checkpoints:  # without checkpoints there is nothing to resume from
        not_noted = note_stopped(name, node_id, trained.progress.steps, recipe.steps)
    record = trained.slider.info.recipe
    report = told(trained.progress, recipe.steps, is_kept=options.checkpoints is not None)
    report = report.fact(*told_outcome(record)).warn(*trained.warnings, warn_outcome(record), not_noted)
    gate = trained.slider.info.gate
    if not gate.always_open:
        report = report.fact(f"it acts where it was trained: {window(gate)}")
    return io.NodeOutput(Stack.of(trained.slider, gate=gate), ui=report.on_node())
