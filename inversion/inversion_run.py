"""From images to their inversion, on the model that ComfyUI has loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..comfy_host.borrow import Loan, ModelPatcher, borrowed, for_autograd
from ..comfy_host.denoiser import Denoiser
from ..comfy_host.errors import (
    InterruptProcessingException,
    is_out_of_memory,
    stop_if_cancelled,
)
from ..comfy_host.identity import family, is_flow, prediction_of, weights_hash
from ..comfy_host.memory import free_unused, to_device
from .ddim import ddim_inversion, euler_step
from .input_checks import check_model, checked_latents
from .inversion import Inversion
from .null_text import Embedding, GuidedStep, OptimisedEmbedding, loss_scale, optimise_embedding
from .predictions import Gradients, Predictions
from .progress import InversionProgress, Reporter, ReportProgress
from .prompts import check_batch_size, percent_windows, single_entry
from .run_state import Group, RunState, Sampled, digest_of_inputs, errors, keep_state, mean_losses, take_state
from .settings import InversionSettings

CPU = torch.device("cpu")
log = logging.getLogger(__name__)

Result = TypeVar("Result")


def invert(
    patcher: ModelPatcher,
    latents: Tensor,
    positive: list[Any],
    negative: list[Any],
    settings: InversionSettings,
    report: ReportProgress = lambda progress: None,
    node_id: str | None = None,
) -> Inversion:
    """Inverts images on a model, without changing it.

    latents: (B, C, ...) as a VAE encodes them, in the scale of ComfyUI's LATENT. positive, negative: CONDITIONING,
    one prompt for all images or one each; optimisation starts from the negative. report: called after every step.
    A run that is cancelled keeps the steps made. The same inversion on the same patcher with the same `node_id` then
    resumes from them, and gives what it would have given in one run; without a `node_id` it does not.
    Raises InterruptProcessingException if it is cancelled before the first step of sampling, ValueError for what
    cannot be inverted, FloatingPointError where the model gives no finite numbers, and ComfyUI's out-of-memory error
    if there is no room for a single image.
    """
    latents = checked_latents(patcher, latents)
    check_model(patcher, settings)
    prompt, null = single_entry(positive, "positive"), single_entry(negative, "negative")
    check_batch_size(prompt[0], len(latents), "positive")
    check_batch_size(null[0], len(latents), "negative")
    if settings.method == "negative prompt":
        null = prompt
    digest = "" if node_id is None else digest_of_inputs(latents, positive, negative, settings)
    memory = patcher.model.memory_required([2 * len(latents), *latents.shape[1:]])
    with borrowed(patcher, memory_required=int(memory)) as loan:
        state = None if node_id is None else take_state(patcher, node_id, digest)
        run = _Run(loan, latents, for_autograd([list(prompt)]), for_autograd([list(null)]), settings, report, state)
        try:
            return run.result()
        except InterruptProcessingException:
            run.cancelled = True
            raise
        finally:
            if run.cancelled and node_id is not None:
                keep_state(patcher, node_id, digest, run.state.on(CPU))


class _Run:
    """Makes one inversion: DDIM inversion of all images, guided sampling of all images, the result.

    Both go group by group: where memory does not hold all images, groups are halved. `state` has all that is worked
    out so far; `cancelled` is True once the run was cancelled.
    """

    def __init__(
        self,
        loan: Loan,
        latents: Tensor,
        positive: list[Any],
        negative: list[Any],
        settings: InversionSettings,
        report: ReportProgress,
        state: RunState | None,
    ) -> None:
        self.patcher, self.settings, self.report = loan.patcher, settings, Reporter(report, loan, self._note)
        self.denoiser = Denoiser(self.patcher, {})
        self.gradients = Gradients(self.denoiser, self._note)
        self.notes: list[str] = []
        self.latents, self.clean = latents, self.patcher.model.process_latent_in(latents.to(self.denoiser.device))
        self.sigmas = self.denoiser.sigmas(settings.steps, settings.scheduler).float()
        self.steps = len(self.sigmas) - 1  # some schedulers make one more than they are asked for, or fewer
        self.windows = tuple(percent_windows(self.sigmas.tolist(), self.denoiser.sampling.percent_to_sigma))
        self.positive, ((self.encoding, self.options),) = positive, negative
        self.optimised_options = _optimised_options(settings, self.options)
        self.state = RunState(len(latents)) if state is None else state.on(self.denoiser.device)
        self.parts_done, self.cancelled = 0, False

    def result(self) -> Inversion:
        state = self.state
        if state.trajectory is None:
            state.trajectory = torch.cat(self._in_groups(self._invert), dim=1)
            state.inverted = {}
        self.parts_done = len(self.clean) * self.steps
        sampled = self._in_groups(partial(self._sample, state.trajectory))
        return self._inversion(state.trajectory[0], sampled)

    def _in_groups(self, work: Callable[[Group], Result]) -> list[Result]:
        """Returns the results of work(group) for groups that make up the batch, halved where memory runs out."""
        first, results = 0, []
        while first < len(self.clean):
            group = range(first, min(first + self.state.group_size, len(self.clean)))
            before = self.parts_done
            try:
                results.append(work(group))
                first = group.stop
            except RuntimeError as error:
                if len(group) == 1 or not is_out_of_memory(error):
                    raise
                self.state.group_size, self.parts_done = len(group) // 2, before
                self.state.inverted.pop(group, None)
                self.state.sampled.pop(group, None)
                free_unused()
                self._note(f"no memory for {len(group)} images at once; going on with {self.state.group_size}")
        return results

    def _predictions(self, group: Group) -> Predictions:
        return Predictions(self.denoiser, self.positive, self.options, torch.tensor(group), len(self.clean))

    def _invert(self, group: Group) -> Tensor:
        """Makes the DDIM inversion of a group: (steps + 1, n, C, ...), from the noise to the clean latents."""
        images = slice(group.start, group.stop)
        reached = self.state.inverted.setdefault(group, [self.clean[images]])
        self.parts_done += len(group) * (len(reached) - 1)
        sigmas = self.sigmas[: len(self.sigmas) - len(reached) + 1]
        predict = partial(self._predict_cond, self._predictions(group))
        scale, refinement = self.denoiser.input_scale, self.settings.refinement
        for x in ddim_inversion(predict, reached[-1], sigmas, scale, refinement):
            if not torch.isfinite(x).all():
                raise FloatingPointError(
                    f"Inversion: at sigma {float(self.sigmas[-1 - len(reached)]):.3g} the model gives numbers that "
                    "are not finite (NaN or infinite). Is the image's latent of this model's own VAE?"
                )
            reached.append(x)
            self._tell(group, f"inversion, step {len(reached) - 1} of {self.steps}")
        return torch.stack(reached[::-1])

    def _predict_cond(self, predictions: Predictions, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns d(x, sigma) of the prompt; the first evaluation of a run shows if the model takes such latents."""
        try:
            return predictions.cond(x, sigma)
        except (RuntimeError, ValueError, IndexError) as error:
            if self.parts_done or is_out_of_memory(error):
                raise
            raise ValueError(
                f"Inversion: {family(self.patcher)} cannot take latents of the shape {tuple(self.latents[:1].shape)} "
                f"with this prompt: {error}. Encode the image at a size that the model draws."
            ) from error

    def _sample(self, trajectory: Tensor, group: Group) -> Sampled:
        """Samples a group under guidance, along the trajectory (steps + 1, B, C, ...) if embeddings are optimised."""
        predictions, images = self._predictions(group), slice(group.start, group.stop)
        start = Sampled(trajectory[0, images], self._null_embedding(group))
        sampled = self.state.sampled.setdefault(group, start)
        self.parts_done += len(group) * sampled.steps
        try:
            for number in range(sampled.steps, self.steps):
                if self.cancelled:  # during another group's sampling
                    break
                stop_if_cancelled()
                preview = self._sample_step(predictions, sampled, trajectory[number + 1, images], number)
                self._tell(group, f"{self._at(number)}{sampled.loss_text()}", preview)
        except InterruptProcessingException:
            self.cancelled = True  # raising it has reset ComfyUI's flag
        return sampled

    def _sample_step(self, predictions: Predictions, sampled: Sampled, target: Tensor, number: int) -> Tensor:
        """Makes a step of sampling with its embedding; returns the clean latents predicted in it, (n, C, ...)."""
        settings, x, (sigma, next_sigma) = self.settings, sampled.x, self.sigmas[number : number + 2]
        d = d_cond = predictions.cond(x, sigma)
        if settings.optimises and sampled.optimised == number:  # otherwise the run was cancelled after optimising it
            scale = loss_scale(next_sigma, is_flow(self.denoiser.sampling))
            step = GuidedStep(x, sigma, next_sigma, target, d_cond, settings.cfg, scale)
            sampled.add(self._optimise(predictions, step, sampled.embedding, number))
        if settings.method != "negative prompt" and settings.cfg != 1:  # there guidance cancels out
            d = predictions.guided(x, sigma, d_cond, sampled.embedding, settings.cfg)
        if not torch.isfinite(d).all():
            raise FloatingPointError(f"Inversion: {self._at(number)}: the prediction is not finite.")
        sampled.move(euler_step(x, sigma, next_sigma, d))
        return x - sigma * d

    def _optimise(
        self, predictions: Predictions, step: GuidedStep, embedding: Embedding, number: int
    ) -> OptimisedEmbedding:
        """Returns the optimised embedding of a step, by whatever gives gradients in the memory there is."""

        def predict(x: Tensor, embedding: Embedding, chosen: Tensor) -> Tensor:
            return predictions.uncond(x, step.sigma, embedding, chosen)

        settings = self.settings
        rate, tolerance = (at(number, self.steps) for at in (settings.learning_rate_at, settings.tolerance_at))
        while True:
            try:
                with self.gradients.enabled():
                    return optimise_embedding(predict, embedding, step, settings.inner_steps, rate, tolerance)
            except FloatingPointError as error:
                raise FloatingPointError(f"Inversion: {self._at(number)}: {error}.") from error
            except RuntimeError as error:
                self.gradients.fall_back(error, len(step.x))

    def _null_embedding(self, group: Group) -> Embedding:
        """Returns what is optimised, as the negative prompt has it, with an entry for each image of the group."""
        parts = [self.encoding, *(self.options[name] for name in self.optimised_options)]
        device, images = self.denoiser.device, len(self.clean)
        return tuple(part.to(device, torch.float32).expand(images, *part.shape[1:])[list(group)] for part in parts)

    def _at(self, number: int) -> str:
        return f"step {number + 1} of {self.steps}"

    def _tell(self, group: Group, text: str, preview: Tensor | None = None) -> None:
        self.parts_done += len(group)
        self.report(InversionProgress(self.parts_done, 2 * len(self.clean) * self.steps, text, preview))

    def _note(self, text: str) -> None:
        """Tells the user what the run had to do without: in the log now, and with its result."""
        log.warning("Inversion: %s", text)
        self.notes.append(text)

    def _inversion(self, noise: Tensor, sampled: Sequence[Sampled]) -> Inversion:
        """Puts the results of all groups together. Raises InterruptProcessingException if there is none yet."""
        optimises = self.settings.optimises
        done = [group.optimised if optimises else group.steps for group in sampled]
        if not any(done):
            raise InterruptProcessingException()
        embeddings = [self.encoding.detach().float().cpu()[None]]  # (1, 1 or B, tokens, width), one for all steps
        if optimises:
            embeddings = [
                torch.cat(part, dim=1) for part in zip(*(group.embeddings(self.steps) for group in sampled))
            ]
        options = {name: value for name, value in self.options.items() if name not in self.optimised_options}
        ((prompt, prompt_options),) = self.positive
        return Inversion(
            noise=self.patcher.model.process_latent_out(noise).cpu(),
            clean=self.latents.cpu(),
            sigmas=self.sigmas.cpu(),
            embeddings=embeddings[0],
            pooled=embeddings[1] if len(embeddings) > 1 else None,
            options=to_device(options, CPU),
            positive=to_device((prompt.float(), prompt_options), CPU),
            windows=self.windows,
            settings=self.settings,
            family=family(self.patcher),
            weights_hash=weights_hash(self.patcher),
            prediction=prediction_of(self.patcher),
            done=min(done),
            losses=mean_losses(sampled),
            error=errors(sampled, self.clean, self.steps),
            notes=tuple(self.notes),
        )


def _optimised_options(settings: InversionSettings, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of the options that are optimised beside the encoding."""
    wanted = settings.optimises and settings.pooled == "optimised"
    return ("pooled_output",) if wanted and isinstance(options.get("pooled_output"), Tensor) else ()
