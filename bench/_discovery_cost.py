"""Point 9: what training directions costs, in forward passes of the model, beside the published schedule.

Sampling the trajectories, which both begin with, is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import _models
import torch
from _discovery_studio import SHAPE, Base, Studio
from concept_sliders.comfy_host.autograd import differentiable
from concept_sliders.comfy_host.borrow import borrowed, for_autograd
from concept_sliders.comfy_host.decoder import Decoder
from concept_sliders.comfy_host.denoiser import Denoiser
from concept_sliders.comfy_host.image_encoder import ImageEncoder
from concept_sliders.comfy_host.text_encoders import encode_prompts
from concept_sliders.discovery.head import fitted_head
from concept_sliders.discovery.lengths import predicted_changes
from concept_sliders.discovery.lessons import DirectionLesson, DirectionLessons, decoded_embedding
from concept_sliders.discovery.realised import realised
from concept_sliders.discovery.recipe import DECODER, HEAD, DiscoveryRecipe
from concept_sliders.discovery.run import components_of
from concept_sliders.discovery.trajectories import Sampling, Trajectories, sampled
from concept_sliders.training.loop import Training
from concept_sliders.training.trainable_layers import TrainableLayers
from torch import Tensor

PROMPT = "portrait of a person"
PUBLISHED_UPDATES, PUBLISHED_AT_ONCE = 280, 3  # of a direction; sliders in an iteration
LOOK_EVERY = 10  # steps between looks at the cosine
HELD_OUT = 16
HEAD_STEPS = DiscoveryRecipe(prompts=(PROMPT,)).head_steps


class PublishedLessons(DirectionLessons):
    """Lessons of a few random sliders each: of three, as published."""

    at_once = PUBLISHED_AT_ONCE

    def __next__(self) -> DirectionLesson:
        whole = super().__next__()
        some = torch.randperm(len(whole.x), generator=self.generator)[: self.at_once]
        parts = {name: getattr(whole, name)[some] for name in ("x", "strengths", "before", "directions")}
        return DirectionLesson(sigma=whole.sigma, prompt=whole.prompt, embed=whole.embed, **parts)


class Prices:
    """What one entry costs, in forward passes of the model: with gradients, by decoder and encoder, by a head."""

    def __init__(self, denoiser: Denoiser, phi: Callable[[Tensor], Tensor], head: Callable[[Tensor], Tensor]):
        x, sigma = torch.randn(4, *SHAPE).to(denoiser.device), torch.tensor(1.0, device=denoiser.device)
        clean = x.clone().requires_grad_()
        forward = _seconds(lambda: denoiser.predict(x, sigma, [PROMPT]))
        self.forward = 1.0
        self.with_gradients = 3.0  # backward takes two forward passes
        self.embedded = _seconds(lambda: phi(x)) / forward
        self.embedded_with_gradients = _seconds(lambda: _backward(phi, clean)) / forward
        self.head_with_gradients = _seconds(lambda: _backward(head, clean)) / forward

    def step(self, entries: int, embedding: str, frozen: bool) -> float:
        """The cost of one step. frozen: predictions without sliders are made, and embedded, anew."""
        through = self.head_with_gradients if embedding == HEAD else self.embedded_with_gradients
        again = self.forward + self.embedded if frozen else 0.0
        return entries * (self.with_gradients + through + again)


def costs(studio: Studio, base: Base, counts: Sequence[int] = (8, 32)) -> list[str]:
    """Train by the published schedule, and ours until the median cosine is as high; say what each has cost."""
    lines = []
    for count in counts:
        question = (base.name, count, studio.samples)
        found = studio.kept("cost", question, lambda count=count: _compared(studio, base, count))
        published = found["published"]
        lines.append(
            f"{count} directions, published schedule: {published['passes']:.0f} passes a direction, median cosine "
            f"{published['cosine']:.2f}"
        )
        for embedding, aim in ((HEAD, 0.25), (DECODER, 0.5)):
            ours = found[embedding]
            reached = "" if ours["cosine"] >= published["cosine"] else ", which is not as high"
            lines.append(
                f"  ours, {embedding}: {ours['passes']:.0f} passes a direction, "
                f"{ours['passes'] / published['passes']:.2f} of it (aim {aim}), median cosine "
                f"{ours['cosine']:.2f}{reached}"
            )
    return lines


def _compared(studio: Studio, base: Base, count: int) -> dict[str, Any]:
    """Cost and cosine of the published schedule, and of ours by each embedding."""
    how = Sampling(base.settings.steps, base.settings.cfg, base.settings.scheduler)
    decoder, encoder = Decoder(base.model, studio.vae), ImageEncoder(studio.vision)
    with torch.inference_mode():
        encoded = encode_prompts(studio.clip, (PROMPT, ""))
    others = [decoder.patcher, encoder.clip_vision.patcher]
    with torch.inference_mode(), borrowed(base.model, others=others):
        denoiser = Denoiser(base.model, {prompt: for_autograd(each) for prompt, each in encoded.items()})
        phi = decoded_embedding(decoder, encoder)
        with torch.no_grad():
            batches = [range(at, at + 16) for at in range(0, max(studio.samples, 4 * count) + HELD_OUT, 16)]
            whole = Trajectories.joined([sampled(denoiser, phi, PROMPT, SHAPE, some, how) for some in batches])
        bench = _Bench(denoiser, phi, whole.part(slice(HELD_OUT, None)), whole.part(slice(HELD_OUT)), count)
        published = bench.published()
        return {"published": published} | {name: bench.ours(name, published["cosine"]) for name in (HEAD, DECODER)}


class _Bench:
    def __init__(self, denoiser: Denoiser, phi: Any, seen: Trajectories, held_out: Trajectories, count: int):
        self.denoiser, self.phi, self.seen, self.held_out, self.count = denoiser, phi, seen, held_out, count
        self.directions = components_of([seen], count).directions
        clean, embeddings = (part.flatten(0, 1).to(denoiser.device) for part in (seen.clean, seen.embeddings))
        generator = torch.Generator().manual_seed(0)
        began = _models.now()
        self.head = fitted_head(clean, embeddings, HEAD_STEPS, generator)
        self.head_seconds = _models.now() - began
        self.prices = Prices(denoiser, phi, self.head)
        x, sigma = torch.randn(4, *SHAPE).to(denoiser.device), torch.tensor(1.0, device=denoiser.device)
        self.pass_seconds = _seconds(lambda: denoiser.predict(x, sigma, [PROMPT])) / 4

    def published(self) -> dict[str, float]:
        """Three sliders an iteration, until each has had its updates; what the frozen model predicts is made anew."""
        steps = PUBLISHED_UPDATES * self.count // PUBLISHED_AT_ONCE
        cosine, _ = self._trained(PublishedLessons, self.phi, steps, aim=None)
        return {"cosine": cosine, "passes": steps * self.prices.step(PUBLISHED_AT_ONCE, DECODER, True) / self.count}

    def ours(self, embedding: str, aim: float) -> dict[str, float]:
        """All sliders in every step, until the median cosine is that of the published schedule."""
        embed = self.head if embedding == HEAD else self.phi
        cosine, steps = self._trained(DirectionLessons, embed, PUBLISHED_UPDATES, aim)
        passes = steps * self.prices.step(self.count, embedding, False)
        passes += self.head_seconds / self.pass_seconds if embedding == HEAD else 0.0
        return {"cosine": cosine, "passes": passes / self.count}

    def _trained(self, kind: type[DirectionLessons], embed: Any, steps: int, aim: float | None) -> tuple[float, int]:
        """Train, up to so many steps or until the aim: the median cosine on trajectories held out, and the steps."""
        recipe = DiscoveryRecipe(prompts=(PROMPT,), directions=self.count, samples=len(self.seen), steps=steps)
        generator = torch.Generator().manual_seed(0)
        layers = TrainableLayers(self.denoiser.patcher, recipe, generator, count=self.count)
        directions = self.directions.to(self.denoiser.device)
        source = kind([self.seen], directions, embed, (0.0, 1.0), True, generator)
        training = Training(self.denoiser, layers, source, recipe, generator)
        cosines: list[float] = []

        def reached() -> bool:
            done = training.progress.steps
            if aim is not None and done and done % LOOK_EVERY == 0:
                cosines.append(self._cosine(layers))
            return bool(aim is not None and cosines and cosines[-1] >= aim)

        progress = training.run(reached, lambda *told: None)
        return self._cosine(layers), progress.steps

    def _cosine(self, layers: TrainableLayers) -> float:
        changes = predicted_changes(self.denoiser, layers, self.phi, self.held_out)
        return float(realised(changes, self.directions).own.median())


def _backward(embed: Callable[[Tensor], Tensor], clean: Tensor) -> None:
    with differentiable():
        embed(clean).sum().backward()


def _seconds(call: Callable[[], object], times: int = 5) -> float:
    call()
    return min(_models.timed(call) for _ in range(times))
