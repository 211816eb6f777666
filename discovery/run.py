"""Discovery from a model and a recipe to sliders: samples, components, training, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..comfy_host.borrow import ModelPatcher, borrowed, for_autograd
from ..comfy_host.decoder import Decoder
from ..comfy_host.denoiser import Denoiser
from ..comfy_host.identity import digest_of, family, modifications_of, weights_hash
from ..comfy_host.image_encoder import ImageEncoder
from ..sliders.slider import Slider, SliderInfo
from ..sliders.stack import Stack
from ..training.progress import Progress
from ..training.run import RunOptions, slider_info
from ..training.trainable_layers import TrainableLayers
from .components import (
    LEAST_VARIANCE,
    LEAST_VARIANCE_IN_HALF,
    Components,
    components_along,
    principal_components,
    varies,
    without,
)
from .independent import SAMPLES_A_COMPONENT, independent_components
from .learning import Learned, Samples, learn
from .lengths import Lengths, guessed_lengths, runs_on_held_out, sampled_lengths
from .lessons import decoded_embedding
from .prompt_directions import PromptDirections, PromptSearch, changes_of
from .realised import Realised, distinct, realised
from .recipe import AXES, PRINCIPAL, DiscoveryRecipe
from .trajectories import Embed, Sampling, Trajectories, kept, sampled

ALIKE = (
    "all {count} samples are the same image: there is nothing to tell apart. Use prompts that leave more open, less "
    "guidance, or another model."
)
BLIND = (
    "clip_vision gives all {count} samples the same embedding, though their images differ. Connect another vision "
    "encoder."
)


@dataclass(frozen=True)
class Discovery:
    """What was found.

    stack: a slider a direction, the widest first. components: what they were trained for. deviations: (K,), of the
    images along each. changes: (K, D), the mean change of the embedding from strength 0 to 1, on seeds held out.
    figures: of these changes. is_sampled: True if they are of whole sampling runs, and not guessed from single
    predictions, as after a cancel. left_out: names of sliders that do the same as an earlier one.
    head: R^2 of the head along each direction, (K,), where there was one.
    """

    stack: Stack
    components: Components
    deviations: Tensor
    changes: Tensor
    figures: Realised
    progress: Progress
    is_sampled: bool = True
    left_out: tuple[str, ...] = ()
    head: Tensor | None = None


@dataclass(frozen=True)
class DiscoveryOptions:
    """How a run is watched and kept; none of it changes what is found.

    training: see `RunOptions`; of its previews each has a row for each of the first directions, (3 rows, C, ...).
    samples: a folder for trajectories, each set of them in a folder of its own; None keeps none.
    at_once: trajectories sampled in one batch.
    sampling: told after each batch how many there are by now, and how many there will be. measuring: told how often a
    trained direction has been sampled with, and how often it will be.
    """

    training: RunOptions = RunOptions()
    samples: Path | None = None
    at_once: int = 16
    sampling: Callable[[int, int], None] = lambda done, total: None
    measuring: Callable[[int, int], None] = lambda done, total: None


def discover(
    patcher: ModelPatcher,
    decoder: Decoder,
    encoder: ImageEncoder,
    conditionings: Mapping[str, list[Any]],
    recipe: DiscoveryRecipe,
    shape: tuple[int, ...],
    name: str,
    options: DiscoveryOptions | None = None,
    unwanted: Tensor | None = None,
    given: PromptDirections | Tensor | None = None,
) -> Discovery | None:
    """Find directions and train a slider for each, on the model in place.

    conditionings: ComfyUI's CONDITIONING for every prompt of the recipe, and the empty one. shape: (C, ...) of a
    latent. unwanted: (M, D), embeddings whose span no direction may lie in, such as those of style words.
    given: what to train in the place of principal components: changes of the embedding, (K, D), or directions of the
    recipe's one prompt, whose shifts each slider learns to change the embedding as.
    Returns None if it was stopped before the first step. Raises ValueError for samples that do not vary or are too
    few, and what `train_textual` raises; the models are given back as they were in every case.
    """
    options = options or DiscoveryOptions()
    if isinstance(given, PromptDirections) and recipe.prompts != (given.prompt,):
        raise ValueError(
            f"Discovery: the directions are of the prompt {given.prompt!r}, and can be trained on that alone; got "
            f"{', '.join(map(repr, recipe.prompts))}."
        )
    memory = patcher.model.memory_required([max(options.at_once, recipe.directions), *shape])
    others = [decoder.patcher, encoder.clip_vision.patcher]
    with borrowed(patcher, memory_required=int(memory), others=others) as loan:
        prompts = {p: for_autograd(c) for p, c in conditionings.items()}
        denoiser = Denoiser(patcher, prompts)
        phi = decoded_embedding(decoder, encoder)
        model_hash = weights_hash(patcher)
        frozen = (model_hash, encoder.digest(), modifications_of(patcher), vars(denoiser.sampling))
        seen, held_out = _trajectories(denoiser, phi, recipe, shape, options, digest_of(*frozen, conditionings))
        if isinstance(given, PromptDirections):
            given = changes_of(given, PromptSearch(denoiser, prompts[given.prompt], seen[0]), phi)
        if given is None:
            components = components_of(seen, recipe.directions, unwanted, recipe.axes)
        else:
            components = components_along(_varying(seen, unwanted), given)
        samples = Samples(seen, held_out, phi)
        learned = learn(denoiser, loan, samples, components, recipe, name, frozen, options.training)
        if not learned.progress.steps:
            return None
        learned.progress.note(denoiser.problem)
        deviations = image_deviations(seen, components.directions)
        lengths = _lengths(denoiser, learned, samples, components, deviations, options)
        record = {"latent_shape": list(shape)}
        info = slider_info(learned.recipe, learned.progress, family(patcher), model_hash, record)
        sliders = _sliders(learned.layers, lengths.scales, name, info)
    chosen = distinct(lengths.changes)
    kept_components, changes = components.chosen(chosen), lengths.changes[chosen]
    return Discovery(
        sum((Stack.of(sliders[index], 0.0) for index in chosen), Stack()),
        kept_components,
        deviations[chosen],
        changes,
        realised(changes, kept_components.directions),
        learned.progress,
        lengths.sampled,
        tuple(slider.name for index, slider in enumerate(sliders) if index not in chosen),
        learned.head,
    )


def components_of(
    trajectories: Sequence[Trajectories], count: int, unwanted: Tensor | None = None, axes: str = AXES[0]
) -> Components:
    """Components of all steps' embeddings, each step's own mean taken out; count: 0 proposes a number.

    Otherwise the widest component would be how blurred a prediction is, which is the same at every seed.
    Independent ones are those of the images that sampling ends with, within as many principal components as are
    proposed, or more where more are wanted; of few samples within fewer, as they do not bear more.
    """
    varying, steps = _varying(trajectories, unwanted), len(trajectories[0].sigmas)
    if steps * max(count, 1) >= len(varying):
        raise ValueError(f"Discovery: {count} directions need more samples than that; got {len(varying) // steps}.")
    if axes == PRINCIPAL:
        return principal_components(varying, count)
    images = varying[steps - 1 :: steps]
    proposed = min(len(principal_components(varying)), len(images) // SAMPLES_A_COMPONENT)
    found = independent_components(images, principal_components(varying, max(count, proposed, 1)))
    return found.chosen(range(min(count or len(found), len(found))))


def _varying(trajectories: Sequence[Trajectories], unwanted: Tensor | None) -> Tensor:
    """The embeddings of all steps, less each step's mean and what is unwanted: (N, D).

    Raises ValueError if nothing is left, and says why: the same images, an encoder that is blind, or all unwanted.
    """
    embeddings = torch.cat([each.embeddings for each in trajectories])
    varying = embeddings - embeddings.mean(0, keepdim=True)
    if not varies(embeddings):
        images = torch.cat([each.clean for each in trajectories])[:, -1]
        differ = varies(images, LEAST_VARIANCE_IN_HALF)
        raise ValueError(f"Discovery: {(BLIND if differ else ALIKE).format(count=len(embeddings))}")
    flat = varying.flatten(0, 1)
    if unwanted is None:
        return flat
    left = without(flat, unwanted)
    if left.square().mean() <= LEAST_VARIANCE * flat.square().mean():
        raise ValueError("Discovery: all that the samples vary by is among what is to be left out. Leave out less.")
    return left


def image_deviations(trajectories: Sequence[Trajectories], directions: Tensor) -> Tensor:
    """Return the standard deviation along each direction, (K, D), of what sampling ends with: (K,)."""
    ends = torch.cat([each.embeddings[:, -1] - each.embeddings[:, -1].mean(0) for each in trajectories])
    return (ends @ directions.T).square().mean(0).sqrt()


def _lengths(
    denoiser: Denoiser,
    learned: Learned,
    samples: Samples,
    components: Components,
    deviations: Tensor,
    options: DiscoveryOptions,
) -> Lengths:
    """How far strength 1 goes; a training that was cancelled is not followed by sampling runs."""
    recipe, measured = learned.recipe, (learned.layers, samples.phi, samples.held_out)
    aim = (components.directions, recipe.spread * deviations)
    guess = guessed_lengths(denoiser, *measured, *aim)
    if learned.progress.stopped:
        return guess
    runs = partial(runs_on_held_out, denoiser, *measured, _sampling(recipe))
    return sampled_lengths(runs, guess, *aim, options.measuring)


def _sliders(layers: TrainableLayers, scales: Tensor, name: str, info: SliderInfo) -> list[Slider]:
    """The trained sliders, scaled, with numbers in their names."""
    sliders = []
    for index, scale in enumerate(scales.tolist()):
        changes = {layer: change.scaled(scale) for layer, change in layers.finished(index).items()}
        sliders.append(Slider(f"{name} {index + 1}", changes, info))
    return sliders


def _sampling(recipe: DiscoveryRecipe) -> Sampling:
    return Sampling(recipe.sampling_steps, recipe.guidance, recipe.scheduler, recipe.seed)


def _trajectories(
    denoiser: Denoiser,
    phi: Embed,
    recipe: DiscoveryRecipe,
    shape: tuple[int, ...],
    options: DiscoveryOptions,
    of: str,
) -> tuple[list[Trajectories], list[Trajectories]]:
    """Those that directions are found on, of every prompt, and those held out."""
    sampling = _sampling(recipe)
    parts = []
    each = [-(-count // len(recipe.prompts)) for count in (recipe.samples, recipe.held_out)]
    total, done = sum(each) * len(recipe.prompts), 0
    for prompt in recipe.prompts:
        folder = options.samples and options.samples / digest_of(of, prompt, vars(sampling), shape)
        found = []

        def make(numbers: range, prompt: str = prompt) -> Trajectories:
            with torch.no_grad():
                return sampled(denoiser, phi, prompt, shape, numbers, sampling)

        for some in kept(folder, make, sum(each), options.at_once):
            found.append(some)
            done += len(some)
            options.sampling(done, total)
        parts.append(Trajectories.joined(found))
    return [whole.part(slice(each[1], None)) for whole in parts], [whole.part(slice(each[1])) for whole in parts]
