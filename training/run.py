"""From a model and a recipe to a slider: the whole of one training run."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..comfy_host.borrow import Loan, ModelPatcher, borrowed, for_autograd
from ..comfy_host.denoiser import Denoiser
from ..comfy_host.errors import RECOVERABLE_ERRORS, InterruptProcessingException, describe_error
from ..comfy_host.identity import COMFYUI_VERSION, digest_of, family, modifications_of, weights_hash
from ..comfy_host.latents import Shapes, check_has_all_parts, check_latents_fit, image_part, packed
from ..comfy_host.preview_budget import SHARE, Looks
from ..comfy_host.text_encoders import CLIP, TextEncoder, encoder_layer_names
from ..sliders.slider import Slider, SliderInfo
from .early_stop import EarlyStop, Embed
from .loop import Progress, Training
from .previews import PreviewSampler, Strip
from .recipe import EncoderRecipe, Recipe, TextualRecipe, VisualRecipe
from .resume import RunCheckpoint
from .samples import Sample, SampleSource
from .text_encoder_samples import EncoderSamples
from .textual_samples import TextualSamples
from .trainable_layers import TrainableLayers
from .visual_samples import LatentSet, VisualSamples

USEFUL_RANGE = (-1.5, 1.5)  # a first guess: what strengths mean is set by eta
PROBED = 4  # latents that the early stop looks at
PROJECT = Path(__file__).parents[1] / "pyproject.toml"

MakeSamples = Callable[[Denoiser, TrainableLayers, torch.Generator], SampleSource]


@dataclass(frozen=True)
class RunOptions:
    """What a run asks and tells.

    progress: told after every step how it goes, with (3, C, ...) clean latents at strength -1, 0 and +1 now and then;
        then in inference mode, and the host may move the model meanwhile.
    preview_every: steps between such previews, at least; 0 for none.
    preview_share: of the run's time, which they take at most, in (0, 1], whatever is due; what a first one costs is
        foreseen, so that a short run has none.
    checkpoints: a folder to keep the run's state in, and to go on from if the same run has been kept there; None for
        neither. Runs that differ in their number of steps alone are the same.
    checkpoint_every: steps between writings; it is written once more where the run is stopped.
    embed: what the early stop looks at foreseen images with, such as CLIP vision; None looks at the latents.
    embed_hash: what sets this `embed` apart from others, such as a hash of its model's weights.
    """

    should_stop: Callable[[], bool] = lambda: False
    progress: Callable[[Progress, Tensor | None], None] = lambda progress, preview: None
    preview_every: int = 20
    preview_share: float = SHARE
    checkpoints: Path | None = None
    checkpoint_every: int = 100
    embed: Embed | None = None
    embed_hash: str = ""


@dataclass(frozen=True)
class Trained:
    slider: Slider
    progress: Progress


def train_textual(
    patcher: ModelPatcher,
    conditionings: Mapping[str, list],
    recipe: TextualRecipe,
    latents: Tensor,
    name: str,
    run_options: RunOptions | None = None,
) -> Trained | None:
    """Train a textual slider on the model in place.

    conditionings: the host's CONDITIONING for every prompt of the recipe.
    latents: (B, C, ...) of the size to train at, or the host's nested ones of films with sound; B images a step.
        Only their shapes matter.
    Returns None if it was stopped before the first step. Raises ValueError for layers the model does not have and
    latents it does not take, FloatingPointError if training diverges at once; the model is given back as it was in
    every case.
    """

    latents, shapes = packed(latents)

    def samples(denoiser: Denoiser, layers: TrainableLayers, generator: torch.Generator) -> TextualSamples:
        return TextualSamples(denoiser, layers, recipe, tuple(latents.shape), generator)

    phrases = max(len(concept.phrases) for concept in recipe.concepts)
    questions = 2 + 3 * min(recipe.phrases_per_sigma or phrases, phrases)  # of guidance; the target and both ends
    prompt = recipe.concepts[0].target
    return train(
        patcher,
        conditionings,
        recipe,
        latents,
        name,
        samples,
        prompt,
        questions,
        shapes=shapes,
        run_options=run_options,
    )


def train_visual(
    patcher: ModelPatcher,
    conditionings: Mapping[str, list],
    recipe: VisualRecipe,
    sets: Sequence[LatentSet],
    name: str,
    run_options: RunOptions | None = None,
) -> Trained | None:
    """Train a visual slider on the model in place; as `train_textual`, but on images.

    conditionings: the host's CONDITIONING for every prompt of the sets. sets: see `visual_samples.encode_sets`.
    """
    for one in sets:
        check_latents_fit(patcher, one.latents)

    def samples(denoiser: Denoiser, layers: TrainableLayers, generator: torch.Generator) -> VisualSamples:
        return VisualSamples(denoiser, sets, recipe, generator)

    largest = max((one.latents for one in sets), key=Tensor.numel, default=torch.zeros(1))
    pictures = [(one.latents, one.strengths, one.mask) for one in sets]
    data = [pictures, [one.prompt for one in sets]]
    prompt = sets[0].prompt if sets else ""
    facts = {"scenes": list(dict.fromkeys(one.prompt for one in sets)), "pairs": digest_of(pictures)}
    return train(
        patcher,
        conditionings,
        recipe,
        largest,
        name,
        samples,
        prompt,
        data=data,
        facts=facts,
        run_options=run_options,
    )


def train(
    patcher: ModelPatcher,
    conditionings: Mapping[str, list],
    recipe: Recipe,
    latents: Tensor,
    name: str,
    make_samples: MakeSamples,
    preview_prompt: str,
    questions: int = 1,
    data: Any = None,
    facts: Mapping[str, Any] | None = None,
    shapes: Shapes = None,
    run_options: RunOptions | None = None,
) -> Trained | None:
    """Train a slider on samples of any kind; see `train_textual`.

    preview_prompt: what the previews show. questions: predictions per latent that are asked for in one batch.
    data: what the samples are made of beside the recipe, to tell runs apart, see `digest_of`. facts: for the slider's
        header, what it was given. shapes: of the parts that the latents are packed of; what is looked at is the
        pictures.
    """
    check_has_all_parts(patcher.model, shapes)
    run_options = run_options or RunOptions()
    generator = torch.Generator().manual_seed(recipe.seed)
    memory = patcher.model.memory_required([latents.shape[0] * questions, *latents.shape[1:]])
    with borrowed(patcher, memory_required=int(memory)) as loan:
        layers = TrainableLayers(patcher, recipe, generator)
        denoiser = Denoiser(patcher, {p: for_autograd(c) for p, c in conditionings.items()}, shapes)
        look = partial(PreviewSampler, denoiser, layers, preview_prompt, tuple(latents.shape[1:]), recipe.seed)
        looks = Looks(run_options.preview_share)
        embed = run_options.embed and _given_back(loan, run_options.embed, shapes)
        reach = EarlyStop(look(PROBED), recipe.patience, embed=embed, looks=looks)
        training = Training(denoiser, layers, make_samples(denoiser, layers, generator), recipe, generator, reach)
        model_hash = weights_hash(patcher)
        sampling = denoiser.sampling
        looks_through = run_options.embed_hash if recipe.patience and embed else None
        frozen = (model_hash, denoiser.dtype, type(sampling), vars(sampling), modifications_of(patcher))
        given = (tuple(latents.shape), shapes, conditionings, data, looks_through)
        keeper = RunCheckpoint(run_options, training, name, digest_of(recipe.digest(), frozen, given))
        keeper.go_on()
        begun = training.progress.steps
        strip = Strip(look(), looks, run_options.preview_every, begun, recipe.steps)
        shown = Shown(loan, strip, looks, run_options, shapes)

        def after_step(progress: Progress, sample: Sample) -> None:
            keeper.after_step()
            shown.after_step(progress)

        with keeper.kept_in_any_case():
            # the host's layers raise it as soon as the user cancels, and take the cancel back by doing so
            progress = training.run(run_options.should_stop, after_step, cancelled=InterruptProcessingException)
        if not progress.steps:
            return None
        progress.looks = looks.share
        size = image_part(latents, shapes).shape[1:]
        facts = {"latent_shape": list(size), "batch": len(latents), **(facts or {})}
        info = info_of(recipe, progress, family(patcher), model_hash, facts)
        return Trained(Slider(name, layers.finished(), info), progress)


def train_text_encoder(
    clip: CLIP, recipe: EncoderRecipe, name: str, run_options: RunOptions | None = None
) -> Trained | None:
    """Train a slider of the text encoder, in place; no diffusion model is needed.

    Returns None if it was stopped before the first step. Raises ValueError for layers the encoder does not have and
    prompts that cannot be compared, FloatingPointError if training diverges at once.
    """
    run_options = run_options or RunOptions()
    generator = torch.Generator().manual_seed(recipe.seed)
    with borrowed(clip.patcher):
        layers = TrainableLayers(clip.patcher, recipe, generator, encoder_layer_names(clip))
        encoder = TextEncoder(clip)
        samples = EncoderSamples(encoder, recipe, generator)
        training = Training(encoder, layers, samples, recipe, generator)
        model_hash = weights_hash(clip.patcher)
        # the encodings, too: they are others with other settings of the CLIP, such as the layer they are taken from
        digest = digest_of(recipe.digest(), model_hash, encoder.dtype, modifications_of(clip.patcher), samples.lines)
        keeper = RunCheckpoint(run_options, training, name, digest)

        def after_step(progress, sample: Sample) -> None:
            keeper.after_step()
            run_options.progress(progress, None)

        keeper.go_on()
        with keeper.kept_in_any_case():
            progress = training.run(run_options.should_stop, after_step, cancelled=InterruptProcessingException)
        if not progress.steps:
            return None
        info = info_of(recipe, progress, type(clip.cond_stage_model).__name__, model_hash)
        return Trained(Slider(name, layers.finished(), info), progress)


def _given_back(loan: Loan, embed: Embed, shapes: Shapes) -> Embed:
    """`embed`, while the host may move the model to make room for others."""

    def embedded(latents: Tensor) -> Tensor:
        with loan.returned():
            return embed(image_part(latents, shapes))

    return embedded


def info_of(
    recipe: Recipe, progress: Progress, of_family: str, model_hash: str, facts: Mapping[str, Any] | None = None
) -> SliderInfo:
    """What the slider's file will say. facts: some of `recipe.RunRecord`, what the run was given."""
    less, more = recipe.ends
    return SliderInfo(
        less=less,
        more=more,
        useful_range=USEFUL_RANGE,
        recipe={**recipe.as_dict(), **(facts or {}), "steps_done": progress.steps, "versions": _versions()},
        family=of_family,
        base_model_hash=model_hash,
    )


class Shown:
    """The previews of a run. One that fails, for want of memory say, is the last: the run goes on without."""

    def __init__(self, loan: Loan, strip: Strip, looks: Looks, run_options: RunOptions, shapes: Shapes):
        self.loan, self.strip, self.looks, self.run_options, self.shapes = loan, strip, looks, run_options, shapes
        self._failed = False

    def after_step(self, progress: Progress) -> None:
        if self._failed or not self.strip.is_due(progress.steps):
            self.run_options.progress(progress, None)
            return
        try:
            with self.looks.timed():
                latents = image_part(self.strip.latents(progress.steps), self.shapes)
                with self.loan.returned():
                    self.run_options.progress(progress, latents)
        except RECOVERABLE_ERRORS as error:
            self._failed = True
            logging.warning("Training goes on without previews, as one failed: %s", describe_error(error))


def _versions() -> dict[str, str]:
    """Of what a training's result depends on."""
    host = {"comfyui": COMFYUI_VERSION, "torch": torch.__version__}
    return {"concept_sliders": pack_version(), **host, "recipe": "1"}


def pack_version() -> str:
    """As `pyproject.toml` has it, which comes with every installation; a run does not fail for want of it."""
    try:
        project = PROJECT.read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    found = re.search(r'^version = "(.+)"$', project, re.MULTILINE)
    return found[1] if found else "unknown"
