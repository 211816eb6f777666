"""From pictures to their inversion, on the model that the host has loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..comfy_host.autograd import differentiable
from ..comfy_host.borrow import Loan, ModelPatcher, borrowed, for_autograd
from ..comfy_host.denoiser import Denoiser
from ..comfy_host.errors import (
    RECOVERABLE_ERRORS,
    InterruptProcessingException,
    describe_error,
    is_out_of_memory,
    stop_if_cancelled,
)
from ..comfy_host.gradient_checkpointing import checkpointed
from ..comfy_host.identity import family, prediction_of, weights_hash
from ..comfy_host.memory import free_unused, to_device
from ..comfy_host.predictor import classifier_free
from ..comfy_host.preview_budget import Looks
from ..comfy_host.refetched_weights import refetched
from .checks import checked_latents, checked_model
from .ddim import euler, upwards
from .inversion import Inversion
from .null_text import Embedding, Fitted, Step, fit
from .predictions import Predictions
from .prompts import checked_rows, percent_windows, single_entry
from .run_state import Down, Group, Standing, digest_of_inputs, errors_of, group_of, keep, losses_of, take
from .settings import InversionSettings

CPU = torch.device("cpu")
SHOWN = 3  # pictures of a preview, at most


@dataclass(frozen=True)
class InversionProgress:
    """How a run goes: `done` of `of` parts of it; `text` says of what. preview: (rows, C, ...) clean latents as
    the model foresees them on the way to the reconstruction, or None."""

    done: int
    of: int
    text: str
    preview: Tensor | None = None


ReportProgress = Callable[[InversionProgress], None]


def invert(
    patcher: ModelPatcher,
    latents: Tensor,
    positive: list,
    negative: list,
    settings: InversionSettings,
    tell: ReportProgress = lambda told: None,
    place: str | None = None,
) -> Inversion:
    """Invert pictures on the model in place.

    latents: (B, C, ...) as a VAE encodes them, in the host's scale of LATENT. positive, negative: CONDITIONING,
    one prompt for all pictures or one each; fitting starts from the negative.
    Cancelling keeps the steps done; in the same `place`, such as a node of a graph, the same inversion on the same
    patcher goes on from them, and gives what it would have given at once. The model is given back as it was in every
    case. Raises InterruptProcessingException if it is cancelled before the first step, ValueError for what cannot be
    inverted, FloatingPointError where the model gives no finite numbers, the host's out-of-memory error if not even
    one picture fits.
    """
    latents = checked_latents(patcher, latents)
    checked_model(patcher, settings)
    prompt, own = single_entry(positive, "positive"), single_entry(negative, "negative")
    for (encoding, _), name in ((prompt, "positive"), (own, "negative")):
        checked_rows(encoding, len(latents), name)
    if settings.method == "negative prompt":
        own = prompt
    memory = patcher.model.memory_required([2 * len(latents), *latents.shape[1:]])
    with borrowed(patcher, memory_required=int(memory)) as loan:
        run = _Run(loan, latents, for_autograd([list(prompt)]), for_autograd([list(own)])[0], settings, tell)
        if place is None:
            return run.result()
        digest = digest_of_inputs(latents, positive, negative, settings)
        run.go_on(take(patcher, place, digest))
        try:
            return run.result()
        except InterruptProcessingException:
            run.cancelled = True
            raise
        finally:
            if run.cancelled:
                keep(patcher, place, digest, run.standing())


class _Run:
    """One inversion. Pictures that do not fit into memory at once go one group after the other."""

    def __init__(
        self,
        loan: Loan,
        latents: Tensor,
        positive: list,
        negative: list,
        settings: InversionSettings,
        tell: ReportProgress,
    ):
        self.patcher, self.settings, self.tell = loan.patcher, settings, ProgressReporter(tell, loan)
        self.denoiser = Denoiser(self.patcher, {})
        self.latents, self.clean = latents, self.patcher.model.process_latent_in(latents.to(self.denoiser.device))
        self.sigmas = self.denoiser.sigmas(settings.steps, settings.scheduler).float()
        self.steps = len(self.sigmas) - 1  # some schedulers make one more than they are asked for, or fewer
        self.windows = tuple(percent_windows(self.sigmas.tolist(), self.denoiser.sampling.percent_to_sigma))
        self.positive, (self.encoding, self.options) = positive, negative
        self.fitted_parts = fitted_parts(settings, self.options)
        self.at_once = len(latents)
        self.recompute = self.carefully = False
        self.parts_done, self.cancelled = 0, False
        self.ups: dict[Group, list[Tensor]] = {}  # latents met on the way up, from the clean ones
        self.trajectory: Tensor | None = None  # (n + 1, B, C, ...) of all of them, from the noise down
        self.downs: dict[Group, Down] = {}

    def go_on(self, standing: Standing | None) -> None:
        """From where a run with the same inputs stood, if it is known."""
        if standing is not None:
            here = standing.on(self.denoiser.device)
            self.ups, self.trajectory, self.downs, self.at_once = here.ups, here.trajectory, here.downs, here.at_once

    def standing(self) -> Standing:
        return Standing(self.ups, self.trajectory, self.downs, self.at_once).on(CPU)

    def result(self) -> Inversion:
        if self.trajectory is None:
            self.trajectory = torch.cat(self._in_groups(self._upwards), dim=1)
            self.ups = {}
        self.parts_done = len(self.clean) * self.steps
        downs = self._in_groups(lambda rows: self._downwards(self.trajectory[:, rows], rows))
        return self._inversion(self.trajectory[0], downs)

    def _in_groups(self, work: Callable[[Tensor], Any]) -> list:
        """What work(rows) returns for all rows, group by group, in groups that memory has room for."""
        first, found = 0, []
        while first < len(self.clean):
            rows = torch.arange(first, min(first + self.at_once, len(self.clean)))
            before = self.parts_done
            try:
                found.append(work(rows))
                first += len(rows)
            except RuntimeError as error:
                if len(rows) == 1 or not is_out_of_memory(error):
                    raise
                self.at_once, self.parts_done = len(rows) // 2, before
                self.ups.pop(group_of(rows), None)
                self.downs.pop(group_of(rows), None)
                free_unused()
                logging.warning("Inversion: no memory for %d at once; going on with %d.", len(rows), self.at_once)
        return found

    def _asked(self, rows: Tensor) -> Predictions:
        return Predictions(self.denoiser, self.positive, self.options, rows, len(self.clean))

    def _upwards(self, rows: Tensor) -> Tensor:
        """The plain inversion of some rows: (n + 1, rows, C, ...), from the noise down to the clean latents."""
        asked, met = self._asked(rows), self.ups.setdefault(group_of(rows), [self.clean[rows]])
        self.parts_done += len(rows) * (len(met) - 1)
        to_go = self.sigmas[: len(self.sigmas) - len(met) + 1]
        for x in upwards(partial(self._first_asked, asked), met[-1], to_go, self.settings.refinement):
            level = float(self.sigmas[-1 - len(met)])
            if not torch.isfinite(x).all():
                raise FloatingPointError(
                    f"Inversion: at noise level {level:.3g} the model gives numbers that are not finite "
                    "(NaN or infinite). Is the picture's latent of this model's own VAE?"
                )
            met.append(x)
            self._say(len(rows), f"inversion, step {len(met) - 1} of {self.steps}")
        return torch.stack(met[::-1])

    def _first_asked(self, asked: Predictions, x: Tensor, sigma: Tensor) -> Tensor:
        """d(x, sigma) of the prompt. The first question of a run is whether the model can take such latents."""
        try:
            return asked.prompt(x, sigma)
        except (RuntimeError, ValueError, IndexError) as error:
            if self.parts_done or is_out_of_memory(error):
                raise
            raise ValueError(
                f"Inversion: {family(self.patcher)} cannot take latents of the shape {tuple(self.latents[:1].shape)} "
                f"with this prompt: {error}. Encode the picture at a size that the model draws."
            ) from error

    def _downwards(self, trajectory: Tensor, rows: Tensor) -> Down:
        """Sampling of some rows under guidance, along the trajectory if the embeddings are fitted to it."""
        asked, settings = self._asked(rows), self.settings
        down = self.downs.setdefault(group_of(rows), Down(trajectory[0], self._embedding(rows)))
        self.parts_done += down.moved * len(rows)
        try:
            for number in range(down.moved, self.steps):
                if self.cancelled:  # in another group
                    break
                stop_if_cancelled()
                (sigma, following), target = self.sigmas[number : number + 2], trajectory[number + 1]
                scale, d_prompt = asked.loss_scale(following), asked.prompt(down.x, sigma)
                step = Step(down.x, sigma, following, target, d_prompt, settings.cfg, scale)
                if settings.method == "null-text" and down.done == number:  # unless it was cut off after its fitting
                    down.keep(self._fit(asked, step, down.embedding, number))
                d = self._guided(asked, step, down.embedding)
                if not torch.isfinite(d).all():
                    raise FloatingPointError(f"Inversion: {self._at(number)}: the prediction is not finite.")
                foreseen = down.x - sigma * d
                down.move(euler(down.x, sigma, following, d))
                self._say(len(rows), f"{self._at(number)}{down.said()}", foreseen)
        except InterruptProcessingException:
            self.cancelled = True  # the host has taken the cancel back by raising it
        return down

    def _at(self, number: int) -> str:
        return f"step {number + 1} of {self.steps}"

    def _embedding(self, rows: Tensor) -> Embedding:
        """What is fitted, as the negative prompt has it, for each of the rows."""
        parts = [self.encoding, *(self.options[name] for name in self.fitted_parts)]
        device, pictures = self.denoiser.device, len(self.clean)
        return tuple(part.to(device, torch.float32).expand(pictures, *part.shape[1:])[rows] for part in parts)

    @torch.no_grad()
    def _guided(self, asked: Predictions, step: Step, embedding: Embedding) -> Tensor:
        """d under guidance, as sampling has it."""
        if self.settings.method == "negative prompt" or self.settings.cfg == 1:
            return step.d_prompt
        every = torch.arange(len(step.x), device=step.x.device)
        d_null = asked.negative(step.x, step.sigma, embedding, every)
        return classifier_free(step.d_prompt, d_null, step.guidance)

    def _fit(self, asked: Predictions, step: Step, embedding: Embedding, number: int) -> Fitted:
        """The step's embedding; more carefully, or with blocks run twice, where the model or memory asks for it."""

        def predict(x: Tensor, embedding: Embedding, rows: Tensor) -> Tensor:
            return asked.negative(x, step.sigma, embedding, rows)

        settings = self.settings
        rate, tolerance = settings.rate_at(number, self.steps), settings.tolerance_at(number, self.steps)
        while True:
            try:
                with ExitStack() as during:
                    during.enter_context(differentiable(self.carefully))
                    during.enter_context(refetched(self.patcher.model))
                    if self.recompute:
                        during.enter_context(checkpointed(self.denoiser.network))
                    return fit(predict, embedding, step, settings.inner_steps, rate, tolerance)
            except FloatingPointError as error:
                raise FloatingPointError(f"Inversion: {self._at(number)}: {error}.") from error
            except RuntimeError as error:
                self._make_do(len(step.x), error)

    def _make_do(self, rows: int, error: RuntimeError) -> None:
        """What to do differently after an error in fitting; raises it if there is nothing left."""
        if is_out_of_memory(error):
            if rows > 1 or self.recompute:
                raise error
            self.recompute = True
            free_unused()
            logging.warning("Inversion: there is little memory; going on with blocks run again in backward.")
        elif self.carefully:
            raise error
        else:
            self.carefully = True

    def _say(self, rows: int, text: str, preview: Tensor | None = None) -> None:
        self.parts_done += rows
        self.tell(InversionProgress(self.parts_done, 2 * len(self.clean) * self.steps, text, preview))

    def _inversion(self, noise: Tensor, downs: Sequence[Down]) -> Inversion:
        """The groups' results as one."""
        steps, fitting = self.steps, self.settings.method == "null-text"
        if not any(down.done if fitting else down.moved for down in downs):
            raise InterruptProcessingException()  # cancelled before there was anything to keep
        own = [self.encoding.detach().float().cpu()[None], None]  # one for all steps
        fitted = [torch.cat(each, dim=1) for each in zip(*(down.parts(steps) for down in downs))] if fitting else own
        options = {name: value for name, value in self.options.items() if name not in self.fitted_parts}
        ((prompt, beside),) = self.positive
        return Inversion(
            noise=self.patcher.model.process_latent_out(noise).cpu(),
            clean=self.latents.cpu(),
            sigmas=self.sigmas.cpu(),
            embeddings=fitted[0],
            pooled=fitted[1] if len(fitted) > 1 else None,
            options=to_device(options, CPU),
            positive=to_device((prompt.float(), beside), CPU),
            windows=self.windows,
            settings=self.settings,
            family=family(self.patcher),
            fingerprint=weights_hash(self.patcher),
            prediction=prediction_of(self.patcher),
            done=min(down.done if fitting else down.moved for down in downs),
            losses=losses_of(downs),
            error=errors_of(downs, self.clean, steps),
        )


def fitted_parts(settings: InversionSettings, options: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the options that are fitted beside the encoding."""
    wanted = settings.method == "null-text" and settings.pooled == "optimised"
    return ("pooled_output",) if wanted and isinstance(options.get("pooled_output"), Tensor) else ()


class ProgressReporter:
    """Tells it. A preview is made while the model is the host's again, which may need its room for a VAE.

    Previews come as often as there is time for them. One that fails, for want of memory say, is the last.
    """

    def __init__(self, tell: ReportProgress, loan: Loan):
        self._tell, self._loan = tell, loan
        self._looks, self._failed = Looks(), False

    def __call__(self, told: InversionProgress) -> None:
        if told.preview is None or self._failed or not self._looks.has_time():
            self._tell(replace(told, preview=None))
            return
        shown = told.preview[:SHOWN].clone()
        with self._looks.timed(), self._loan.returned():
            try:
                self._tell(replace(told, preview=shown))
            except RECOVERABLE_ERRORS as error:
                self._failed = True
                logging.warning("Inversion goes on without previews, as one failed: %s", describe_error(error))
