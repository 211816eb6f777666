"""The training loop: a sample, its loss, the gradient, a step of the optimiser; then the early stop and the log."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..comfy_host.autograd import differentiable
from ..comfy_host.batch_entries import needs_separate_evaluations
from ..comfy_host.errors import is_out_of_memory
from ..comfy_host.gradient_checkpointing import checkpointed
from ..comfy_host.memory import free_unused
from ..comfy_host.refetched_weights import refetched
from .average import PowerAverage
from .progress import Progress
from .recipe import GRADIENT_CHECKPOINTING
from .samples import Lesson, SampleSource
from .snapshot import RandomState, Snapshot

if TYPE_CHECKING:
    from ..comfy_host.predictor import Predictor
    from .early_stop import EarlyStop
    from .recipe import Recipe
    from .trainable_layers import TrainableLayers

log = logging.getLogger(__name__)

_WINDOW = 50  # losses that a new one is compared with
_EXPLODED = 1000.0  # times their median: the run is broken
_SOUND = 10.0  # times their median: above it the state may be the beginning of an explosion
_LEAST_SCALE = 2.0**-10  # of half-precision gradients: with a smaller one they overflow at every step


class Training:
    """One run. `state` holds everything that changes, so that a restored run goes on as if it had never stopped.

    predictor: the borrowed model. layers: the slider's. samples: what to learn from. generator: all randomness.
    """

    def __init__(
        self,
        predictor: Predictor,
        layers: TrainableLayers,
        samples: SampleSource,
        recipe: Recipe,
        generator: torch.Generator,
        early_stop: EarlyStop | None = None,
    ):
        self.predictor, self.layers, self.samples = predictor, layers, samples
        self.recipe, self.generator, self.early_stop = recipe, generator, early_stop
        self.progress = Progress()
        self._parameters = layers.parameters()
        self._optimizer = torch.optim.AdamW(layers.parameter_groups(), weight_decay=0.0)
        # Gradients that pass through half-precision layers vanish unless the loss is scaled up
        half = predictor.dtype == torch.float16
        self._scaler = torch.amp.GradScaler(predictor.device.type, enabled=half)
        self._at_once: int | None = predictor.at_once  # batch entries: less than a sample has, if memory ran out
        self._checkpointing = recipe.memory == GRADIENT_CHECKPOINTING
        self._carefully = False  # see `autograd.differentiable`
        self._updating = False  # whether the optimiser is changing the parameters right now
        self._average = PowerAverage(self._parameters)
        self._snapshot = Snapshot(self._parameters, self._optimizer, self._average.tensors)
        self._take_snapshot(self._random_state())

    def run(
        self,
        should_stop: Callable[[], bool],
        after_step: Callable[[Progress, Lesson], None],
        cancelled: type[BaseException] | tuple[type[BaseException], ...] = (),
    ) -> Progress:
        """Train up to the recipe's number of steps, or until the early stop, a stop or a breakdown ends the run.

        should_stop: asked before every step. after_step: told how the run goes. cancelled: what the model or
        `after_step` raises when the user cancels; a step that it interrupts is undone.
        A broken loss or gradient (see `is_broken`) ends the run at the last sound state, and `Progress.failure` says
        where. Raises FloatingPointError if there is none.
        """
        progress = self.progress
        while True:
            try:
                self._evaluate_early_stop()
                if self.is_done or should_stop():
                    break
                with self._undone_if_interrupted() as before:
                    sample = next(self.samples)
                    loss = self._backward(sample)
                    norm = self._clip_gradients()
                    if is_broken(loss, norm, progress.losses, self._gradient_scale):
                        self._break_off(sample, loss, norm)
                        break
                    if is_sound(loss, progress.losses):  # the loss was worked out before this step's update
                        self._take_snapshot(before)
                    self._update_parameters()
                    progress.losses.append(loss)
                after_step(progress, sample)
            except cancelled:
                break
        progress.stopped = not progress.converged and progress.steps < self.recipe.steps
        return progress

    def finish(self) -> None:
        """Let the layers hold the average of the run; it cannot go on after that."""
        self._average.put()

    @property
    def is_done(self) -> bool:
        return self.progress.steps >= self.recipe.steps or self.progress.converged

    def state(self) -> dict[str, Any]:
        """Everything that changes, as tensors and plain values."""
        return {
            "parameters": [parameter.detach().cpu().clone() for parameter in self._parameters],
            "average": [tensor.cpu().clone() for tensor in self._average.tensors],
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "generator": self.generator.get_state(),
            "samples": self.samples.state(),
            "losses": list(self.progress.losses),
            "converged": self.progress.converged,
            "at_once": self._at_once,
            "predictor_at_once": self.predictor.at_once,
            "checkpointing": self._checkpointing,
            "early_stop": self.early_stop.state() if self.early_stop else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state. Raises ValueError if it is of other layers."""
        saved = state["parameters"]
        if [t.shape for t in saved] != [t.shape for t in self._parameters]:
            raise ValueError("The checkpoint holds a slider of other layers than the recipe asks for on this model.")
        with torch.no_grad():
            now = [*self._parameters, *self._average.tensors]
            for tensor, value in zip(now, [*saved, *state["average"]], strict=True):
                tensor.copy_(value)
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"])
        self.samples.restore(state["samples"])
        self.progress.losses, self.progress.converged = list(state["losses"]), state["converged"]
        self._at_once, self.predictor.at_once = state["at_once"], state["predictor_at_once"]
        self._checkpointing = self._checkpointing or state["checkpointing"]
        if self.early_stop and state["early_stop"]:
            self.early_stop.restore(state["early_stop"])
        self._take_snapshot(self._random_state())

    def _evaluate_early_stop(self) -> None:
        """Let the early stop evaluate the slider, if an evaluation is due, and note whether it has converged."""
        if self.early_stop is not None and not self.progress.converged:
            self.early_stop.evaluate(self.progress.steps)
            self.progress.note(self.early_stop.problem)
            self.progress.converged = self.early_stop.has_converged

    def _backward(self, sample: Lesson) -> float:
        """Add the gradient of a sample's loss, in as many parts as the model or the memory asks for.

        Returns the loss. What the model turns out to need is kept for the steps to come.
        """
        while True:
            try:
                return sum(self._backward_part(sample, entries) for entries in self._parts(sample.strengths))
            except RuntimeError as error:
                self._optimizer.zero_grad()
                if is_out_of_memory(error):
                    self._use_less_memory(len(sample.x), error)
                elif self._carefully:
                    raise
                else:
                    self._carefully = True
            free_unused()

    def _backward_part(self, sample: Lesson, entries: Tensor) -> float:
        """Run backward for some batch entries (indices); returns their share of the whole loss."""
        share = len(entries) / len(sample.x)
        with ExitStack() as during:
            during.enter_context(differentiable(self._carefully))
            during.enter_context(self.layers.acting(sample.strengths[entries]))
            during.enter_context(refetched(self.predictor.model))
            if self._checkpointing:
                during.enter_context(checkpointed(self.predictor.network))
            prediction = self.predictor(sample.x[entries], sample.sigma, [sample.prompt])[0]
            loss = share * sample.loss(prediction, entries)
            self._scaler.scale(loss).backward()
        return loss.item()

    def _parts(self, strengths: Tensor) -> Iterator[Tensor]:
        """Indices of the batch entries that are evaluated together, part by part. strengths: (B, sliders)."""
        entries = torch.arange(len(strengths), device=strengths.device)
        together = [entries]
        if needs_separate_evaluations(self.predictor.model, strengths):
            together = [entries[(strengths == alike).all(dim=1)] for alike in strengths.unique(dim=0)]
        for some in together:
            yield from some.split(self._at_once or len(entries))

    def _use_less_memory(self, entries: int, error: BaseException) -> None:
        """Evaluate fewer entries at once from now on, then use gradient checkpointing; raise the error after that."""
        now = self._at_once or entries
        if now > 1:
            self._at_once = now // 2
            self._warn(f"there is no memory for {now} images at once; going on with {now // 2}.")
        elif not self._checkpointing:
            self._checkpointing = True
            self._warn("there is little memory; going on with gradient checkpointing.")
        else:
            raise error

    def _warn(self, text: str) -> None:
        log.warning("Training: %s", text)
        self.progress.note(f"Training: {text}")

    def _clip_gradients(self) -> float:
        """Scale the gradient to a norm of at most 1. Returns the norm it had."""
        self._scaler.unscale_(self._optimizer)
        return float(torch.nn.utils.clip_grad_norm_(self._parameters, 1.0))

    def _update_parameters(self) -> None:
        self._updating = True
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._average.add(self.progress.steps + 1)
        self._updating = False
        self._optimizer.zero_grad()

    @property
    def _gradient_scale(self) -> float | None:
        """What the loss is multiplied by before backward; None where it is not."""
        return self._scaler.get_scale() if self._scaler.is_enabled() else None

    @contextmanager
    def _undone_if_interrupted(self) -> Iterator[RandomState]:
        """Undo a step that any exception interrupts: its sample is drawn again. Yields the state before it."""
        before, whole = self._random_state(), False
        try:
            yield before
            whole = True
        finally:
            if not whole and self._updating:  # some parameters may be changed already
                self._restore_snapshot()
            elif not whole:
                self._restore_random_state(before)

    def _random_state(self) -> RandomState:
        return RandomState(self.generator.get_state(), self.samples.state())

    def _restore_random_state(self, state: RandomState) -> None:
        self.generator.set_state(state.generator)
        self.samples.restore(state.samples)
        self._optimizer.zero_grad()

    def _take_snapshot(self, random_state: RandomState) -> None:
        """Keep the parameters as they are, to fall back on. random_state: before the sample that comes next."""
        self._snapshot.take(self.progress.steps, random_state, self._scaler.state_dict())

    def _restore_snapshot(self) -> None:
        random_state, scaler = self._snapshot.restore()
        self._scaler.load_state_dict(scaler)
        self._restore_random_state(random_state)
        del self.progress.losses[self._snapshot.steps :]
        self._updating = False

    def _break_off(self, sample: Lesson, loss: float, norm: float) -> None:
        """Say where the run broke down, and go back to the snapshot. Raises FloatingPointError if it has no steps."""
        gradient = "" if math.isfinite(norm) or not math.isfinite(loss) else f", its gradient {norm:.3g}"
        self.progress.failure = (
            f"Training broke down at step {self.progress.steps + 1} of {self.recipe.steps}, sigma "
            f"{float(sample.sigma):.3g}: the loss is {loss:.3g}{gradient}. A lower learning rate than "
            f"{self.layers.learning_rates()['median']:.2g} may help."
        )
        if not self._snapshot.steps:
            raise FloatingPointError(self.progress.failure)
        self._restore_snapshot()


def is_broken(loss: float, norm: float, earlier: Sequence[float], scale: float | None) -> bool:
    """Returns True if a step must not be taken: its loss has exploded, or a number is not finite.

    norm: of the gradient. earlier: the losses before. scale: of half-precision gradients, whose scaler skips steps
    with infinite ones by itself, and lowers the scale each time; None without a scaler.
    """
    recent = earlier[-_WINDOW:]
    exploded = len(recent) == _WINDOW and loss > _EXPLODED * statistics.median(recent)
    overflows = scale < _LEAST_SCALE if scale is not None else not math.isfinite(norm)
    return not math.isfinite(loss) or exploded or overflows


def is_sound(loss: float, earlier: Sequence[float]) -> bool:
    """Returns True if the state with this loss is one to fall back on: an explosion may take some steps."""
    recent = earlier[-_WINDOW:]
    return not recent or loss <= _SOUND * statistics.median(recent)
