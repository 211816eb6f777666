"""One training run, from a model and a recipe to a slider: of words, of images, or of the text encoder alone.

Each of the three prepares what is its own, the samples above all, and hands it to `run_kept`: resume, loop, write.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..comfy_host.borrow import Loan, ModelPatcher, borrowed, for_autograd
from ..comfy_host.denoiser import Denoiser
from ..comfy_host.errors import InterruptProcessingException
from ..comfy_host.identity import COMFYUI_VERSION, digest_of, family, modifications_of, weights_hash
from ..comfy_host.latents import Shapes, check_has_all_parts, check_latents_fit, image_part, packed
from ..comfy_host.text_encoders import CLIP, TextEncoder, check_is_one, encoder_layer_names
from ..sliders.gate import Gate
from ..sliders.slider import Slider, SliderInfo
from .automatic import outcome
from .early_stop import EarlyStop, Embed
from .ends import check_encodings
from .loop import Training
from .previews import Previews, PreviewSampler
from .progress import Progress
from .recipe import EncoderRecipe, Recipe, TextualRecipe, VisualRecipe
from .resume import RunCheckpoint
from .samples import Lesson, SampleSource, Warnings
from .text_encoder_samples import EncoderSamples
from .textual_samples import TextualSamples
from .trainable_layers import TrainableLayers
from .visual_samples import LatentSet, VisualSamples
from .words import blind_encoders, check_words

USEFUL_RANGE = (-1.5, 1.5)  # a first guess: what strengths mean is set by eta
FITTED_RANGE = (-1.0, 1.0)  # of a slider that was made stronger: at twice that many images break
EVALUATED = 4  # latents that the early stop measures the effect on
PROJECT = Path(__file__).parents[1] / "pyproject.toml"

MakeSamples = Callable[[Denoiser, TrainableLayers, torch.Generator], SampleSource]


@dataclass(frozen=True)
class RunOptions:
    """How a run is watched and kept. None of it changes the slider, but for an `embed` that ends the run.

    should_stop: asked before every step. progress: told after every step how it goes, with (3, C, ...) clean latents
        at strength -1, 0 and +1 where a preview is due; then in inference mode, and ComfyUI may move the model.
    preview_every: steps between previews; 0 for none.
    checkpoints: a folder to keep the run's state in, and to resume from if the same run has been kept there; None for
        neither. Runs that differ in their number of steps alone are the same.
    checkpoint_every: steps between writings; it is written once more at the end.
    embed: what the early stop compares predicted images by, such as CLIP vision; None compares the latents.
    embed_hash: what sets this `embed` apart from others, such as a hash of its model's weights.
    warnings: what is known before the run, such as `words.check_words` returns; the run's own are added to it.
    """

    should_stop: Callable[[], bool] = lambda: False
    progress: Callable[[Progress, Tensor | None], None] = lambda progress, preview: None
    preview_every: int = 50
    checkpoints: Path | None = None
    checkpoint_every: int = 100
    embed: Embed | None = None
    embed_hash: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trained:
    """What a run has made, how it went, and what the user should know of what it has learned from."""

    slider: Slider
    progress: Progress
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingData:
    """What a run is given beside the recipe and the samples that are made from both.

    latents: (B, C, ...), of the size trained at. preview_prompt: what previews show. predictions: of each latent,
    the most that are asked for in one batch. digest_of: whatever decides the samples, to tell runs apart. record: for
    the slider's header, some of `recipe.RunRecord`. shapes: of the parts that the latents are packed of. warnings:
    those that the samples add to.
    """

    latents: Tensor
    preview_prompt: str
    predictions: int = 1
    digest_of: Any = None
    record: Mapping[str, Any] = field(default_factory=dict)
    shapes: Shapes = None
    warnings: Warnings = field(default_factory=Warnings)


def train_textual(
    patcher: ModelPatcher,
    conditionings: Mapping[str, list[Any]],
    recipe: TextualRecipe,
    latents: Tensor,
    name: str,
    run_options: RunOptions | None = None,
) -> Trained | None:
    """Train a textual slider on the model in place.

    conditionings: ComfyUI's CONDITIONING for every prompt of the recipe.
    latents: (B, C, ...) of the size to train at, or the nested ones of a video with sound; B images a step. Only
        their shapes matter.
    Returns None if it was stopped before the first step. Raises ValueError for layers the model does not have and
    latents it does not take, FloatingPointError if training diverges at once; the model is given back as it was in
    every case.
    """
    check_encodings(recipe.concepts, conditionings)
    latents, shapes = packed(latents)
    warnings = Warnings()

    def make_samples(denoiser: Denoiser, layers: TrainableLayers, generator: torch.Generator) -> TextualSamples:
        return TextualSamples(denoiser, layers, recipe, tuple(latents.shape), generator, warnings)

    phrases = max(len(concept.phrases) for concept in recipe.concepts)
    # two for guidance, and three for every phrase: of the target and of both ends
    predictions = 2 + 3 * min(recipe.phrases_per_sigma or phrases, phrases)
    data = TrainingData(latents, recipe.concepts[0].target, predictions, shapes=shapes, warnings=warnings)
    return train(patcher, conditionings, recipe, data, name, make_samples, run_options)


def train_visual(
    patcher: ModelPatcher,
    conditionings: Mapping[str, list[Any]],
    recipe: VisualRecipe,
    sets: Sequence[LatentSet],
    name: str,
    run_options: RunOptions | None = None,
) -> Trained | None:
    """Train a visual slider on the model in place; as `train_textual`, but on images.

    conditionings: ComfyUI's CONDITIONING for every prompt of the sets. sets: see `visual_samples.encode_sets`.
    """
    for one in sets:
        check_latents_fit(patcher, one.latents)
    warnings = Warnings()

    def make_samples(denoiser: Denoiser, layers: TrainableLayers, generator: torch.Generator) -> VisualSamples:
        return VisualSamples(denoiser, sets, recipe, generator, warnings)

    largest = max((one.latents for one in sets), key=Tensor.numel, default=torch.zeros(1))
    images, prompts = [(one.latents, one.strengths, one.mask) for one in sets], [one.prompt for one in sets]
    record = {"scenes": list(dict.fromkeys(prompts)), "pairs": digest_of(images)}
    data = TrainingData(
        largest, prompts[0] if prompts else "", digest_of=[images, prompts], record=record, warnings=warnings
    )
    return train(patcher, conditionings, recipe, data, name, make_samples, run_options)


def train(
    patcher: ModelPatcher,
    conditionings: Mapping[str, list[Any]],
    recipe: Recipe,
    data: TrainingData,
    name: str,
    make_samples: MakeSamples,
    run_options: RunOptions | None = None,
) -> Trained | None:
    """Train a slider on samples of any kind; see `train_textual`."""
    for prompt, ((encoding, _), *_) in conditionings.items():
        check_is_one(prompt, encoding)
    latents, shapes, run_options = data.latents, data.shapes, run_options or RunOptions()
    for sentence in run_options.warnings:
        data.warnings.add(sentence)
    check_has_all_parts(patcher.model, shapes)
    generator = torch.Generator().manual_seed(recipe.seed)
    memory = patcher.model.memory_required([latents.shape[0] * data.predictions, *latents.shape[1:]])
    with borrowed(patcher, memory_required=int(memory)) as loan:
        layers = TrainableLayers(patcher, recipe, generator)
        denoiser = Denoiser(patcher, {p: for_autograd(c) for p, c in conditionings.items()}, shapes)
        sampler = partial(
            PreviewSampler, denoiser, layers, data.preview_prompt, tuple(latents.shape[1:]), recipe.seed
        )
        embed = run_options.embed and _while_returned(loan, run_options.embed, shapes)
        early_stop = EarlyStop(sampler(EVALUATED), recipe.patience, embed=embed)
        samples = make_samples(denoiser, layers, generator)
        training = Training(denoiser, layers, samples, recipe, generator, early_stop)
        model_hash, sampling = weights_hash(patcher), denoiser.sampling
        frozen = (model_hash, denoiser.dtype, type(sampling), vars(sampling), modifications_of(patcher))
        embedding = run_options.embed_hash if recipe.patience and embed else None
        given = (tuple(latents.shape), shapes, conditionings, data.digest_of, embedding)
        previews = Previews(sampler(), loan, shapes, run_options.preview_every)
        progress = run_kept(training, name, digest_of(recipe.digest(), frozen, given), run_options, previews)
        if not progress.steps:
            return None
        size = image_part(latents, shapes).shape[1:]
        record = {"latent_shape": list(size), "batch": len(latents), **data.record}
        record |= outcome(denoiser, layers, samples, progress.note)
        changes = {n: change.scaled(record.get("strengthened", 1.0)) for n, change in layers.finished().items()}
        progress.note(denoiser.problem)
        info = slider_info(recipe, progress, family(patcher), model_hash, record)
        return Trained(Slider(name, changes, info), progress, tuple(data.warnings))


def train_text_encoder(
    clip: CLIP, recipe: EncoderRecipe, name: str, run_options: RunOptions | None = None
) -> Trained | None:
    """Train a slider of the text encoder, in place; no diffusion model is needed.

    Returns None if it was stopped before the first step. Raises ValueError for layers the encoder does not have and
    prompts that cannot be compared, FloatingPointError if training diverges at once.
    """
    generator, warnings = torch.Generator().manual_seed(recipe.seed), Warnings()
    for sentence in check_words(clip, recipe.concepts):
        warnings.add(sentence)
    with borrowed(clip.patcher):
        blind = blind_encoders(clip, recipe.concepts)
        layers = TrainableLayers(clip.patcher, recipe, generator, encoder_layer_names(clip, without=blind))
        encoder = TextEncoder(clip)
        samples = EncoderSamples(encoder, recipe, generator, warnings)
        training = Training(encoder, layers, samples, recipe, generator)
        model_hash = weights_hash(clip.patcher)
        # the encodings too: they depend on settings of the CLIP, such as the layer that they are taken from
        frozen = (model_hash, encoder.dtype, modifications_of(clip.patcher), samples.encoded)
        progress = run_kept(training, name, digest_of(recipe.digest(), *frozen), run_options or RunOptions())
        if not progress.steps:
            return None
        record = outcome(encoder, layers, samples, progress.note)
        info = slider_info(recipe, progress, type(clip.cond_stage_model).__name__, model_hash, record)
        info = replace(info, useful_range=samples.useful_range(encoder, layers))
        return Trained(Slider(name, layers.finished(), info), progress, tuple(warnings))


def run_kept(
    training: Training, name: str, digest: str, run_options: RunOptions, previews: Previews | None = None
) -> Progress:
    """Resume the run if it has been kept, train, and write its state however it ends.

    The layers then hold the average of the run, see `PowerAverage`.
    """
    checkpoint = RunCheckpoint(training, run_options.checkpoints, name, digest, run_options.checkpoint_every)

    def after_step(progress: Progress, sample: Lesson) -> None:
        checkpoint.after_step()
        if previews and previews.is_due(progress.steps):
            previews.show(partial(run_options.progress, progress))
            progress.note(previews.problem)
        else:
            run_options.progress(progress, None)

    checkpoint.resume()
    with checkpoint.written_at_the_end():
        # ComfyUI's layers raise it as soon as the user cancels; raising it resets the flag of the cancel
        progress = training.run(run_options.should_stop, after_step, cancelled=InterruptProcessingException)
    training.finish()
    return progress


def _while_returned(loan: Loan, embed: Embed, shapes: Shapes) -> Embed:
    """Return `embed` as a function during which ComfyUI may move the model, to make room for others."""

    def embed_while_returned(latents: Tensor) -> Tensor:
        with loan.returned():
            return embed(image_part(latents, shapes))

    return embed_while_returned


def slider_info(
    recipe: Recipe, progress: Progress, of_family: str, model_hash: str, record: Mapping[str, Any] | None = None
) -> SliderInfo:
    """Return what the slider's file will say. record: some of `recipe.RunRecord`, what the run was given."""
    less, more = recipe.ends
    return SliderInfo(
        less=less,
        more=more,
        useful_range=FITTED_RANGE if record and record.get("strengthened", 1) > 1 else USEFUL_RANGE,
        gate=Gate(recipe.start_percent, recipe.end_percent),  # it acts where it was trained
        recipe={**recipe.as_dict(), **(record or {}), "steps_done": progress.steps, "versions": _versions()},
        family=of_family,
        base_model_hash=model_hash,
    )


def _versions() -> dict[str, str]:
    """Of what a training's result depends on."""
    comfyui = {"comfyui": COMFYUI_VERSION, "torch": torch.__version__}
    return {"concept_sliders": pack_version(), **comfyui, "recipe": "3"}


def pack_version() -> str:
    """Return the version in `pyproject.toml`, or "unknown" if the file is missing: no run fails for want of it."""
    try:
        project = PROJECT.read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    found = re.search(r'^version = "(.+)"$', project, re.MULTILINE)
    return found[1] if found else "unknown"
