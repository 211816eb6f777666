"""The training loop: samples in, a slider out; whatever happens, the last good state is kept."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..comfy_host.autograd import differentiable
from ..comfy_host.batch_entries import needs_separate_evaluations
from ..comfy_host.errors import is_out_of_memory
from ..comfy_host.gradient_checkpointing import checkpointed
from ..comfy_host.memory import free_unused
from ..comfy_host.refetched_weights import refetched
from .objectives import prediction_loss
from .recipe import GRADIENT_CHECKPOINTING
from .samples import Sample, SampleSource
from .snapshot import RandomState, Snapshot

if TYPE_CHECKING:
    from ..comfy_host.denoiser import Denoiser
    from .early_stop import EarlyStop
    from .recipe import Recipe
    from .trainable_layers import TrainableLayers

_EXPLODED = 1000.0  # times the median of the losses before
# A loss beyond this many medians may be the noise level's, or the beginning of an explosion: not a state to keep
_SOUND = 10.0
_JUDGED_BY = 50  # losses
_LEAST_SCALE = 2.0**-10  # of half-precision gradients: below it they overflow at every step


@dataclass
class Progress:
    """How a run went: the loss of every step done, whether it was stopped, and what broke it, if so.

    still: it ended early because the slider reached no further. looks: the share of its time that previews and the
    early stop's looks took.
    """

    losses: list[float] = field(default_factory=list)
    stopped: bool = False
    still: bool = False
    broken: str = ""
    looks: float = 0.0

    @property
    def steps(self) -> int:
        return len(self.losses)


class Training:
    """One run. `state` holds everything that changes, so that a restored run goes on as if it had never stopped."""

    def __init__(
        self,
        denoiser: Denoiser,
        layers: TrainableLayers,
        samples: SampleSource,
        recipe: Recipe,
        generator: torch.Generator,
        reach: EarlyStop | None = None,
    ):
        self.denoiser, self.layers, self.samples = denoiser, layers, samples
        self.recipe, self.generator, self.reach = recipe, generator, reach
        self.progress = Progress()
        self._parameters = layers.parameters()
        self._optimizer = torch.optim.AdamW(self._parameters, lr=recipe.learning_rate, weight_decay=0.0)
        # Gradients that pass through half-precision layers vanish unless the loss is scaled up
        half = denoiser.dtype == torch.float16
        self._scaler = torch.amp.GradScaler(denoiser.device.type, enabled=half)
        # Most rows at once: that the model takes, or that memory has had room for, if it ran out
        self._at_once: int | None = denoiser.at_once
        self._recompute = recipe.memory == GRADIENT_CHECKPOINTING
        self._changing = False  # whether the optimiser is at work
        self._carefully = False  # unless the model turns out to need it, see `autograd`
        self._good = Snapshot(self._parameters, self._optimizer)
        self._is_good()

    def run(
        self,
        should_stop: Callable[[], bool],
        after_step: Callable[[Progress, Sample], None],
        cancelled: type[BaseException] | tuple = (),
    ) -> Progress:
        """Train up to the recipe's number of steps.

        should_stop: asked before every step; what has been learned by then is kept.
        after_step: told how it goes. cancelled: what the model or `after_step` raises when it is told to stop; a step
        that is cut off by it is undone. A loss or a gradient that is no finite number, or a loss that explodes, ends
        the run at the last good state, and `Progress.broken` says where.
        """
        while not self._is_done():
            try:
                self._look()  # where a look was cut off
                if self._is_done() or should_stop():
                    break
                with self._undone_if_cut_off():
                    sample = self._step()
                if sample is not None:
                    self._look()
                    after_step(self.progress, sample)
            except cancelled:
                break
        self.progress.stopped = not self.progress.still and self.progress.steps < self.recipe.steps
        return self.progress

    def state(self) -> dict[str, Any]:
        """Everything that changes, as tensors and plain values."""
        return {
            "parameters": [parameter.detach().cpu().clone() for parameter in self._parameters],
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "generator": self.generator.get_state(),
            "samples": self.samples.state(),
            "losses": list(self.progress.losses),
            "still": self.progress.still,
            "at_once": self._at_once,
            "asked_at_once": self.denoiser.at_once,
            "recompute": self._recompute,
            "reach": self.reach.state() if self.reach else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state. Raises ValueError if it is of other layers."""
        saved = state["parameters"]
        if [t.shape for t in saved] != [t.shape for t in self._parameters]:
            raise ValueError("The checkpoint holds a slider of other layers than the recipe asks for on this model.")
        with torch.no_grad():
            for parameter, value in zip(self._parameters, saved, strict=True):
                parameter.copy_(value)
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"])
        self.samples.restore(state["samples"])
        self.progress.losses, self.progress.still = list(state["losses"]), state["still"]
        self._at_once, self.denoiser.at_once = state["at_once"], state["asked_at_once"]
        self._recompute = self._recompute or state["recompute"]
        if self.reach and state["reach"]:
            self.reach.restore(state["reach"])
        self._is_good()

    def _is_done(self) -> bool:
        progress = self.progress
        return progress.steps >= self.recipe.steps or progress.still or bool(progress.broken)

    def _look(self) -> None:
        """The early stop's, where one is due."""
        if self.reach is not None and self.reach.is_reached(self.progress.steps):
            self.progress.still = True

    @contextmanager
    def _undone_if_cut_off(self) -> Iterator[None]:
        """A step that any exception ends has not been: what it has drawn is yet to come."""
        begun, whole = self._drawn(), False
        try:
            yield
            whole = True
        finally:
            if not whole and self._changing:  # the parameters may be in part
                self._fall_back()
            elif not whole:
                self._draw_again(begun)

    def _drawn(self) -> RandomState:
        return RandomState(self.generator.get_state(), self.samples.state())

    def _draw_again(self, drawn: RandomState) -> None:
        """The samples from there on are yet to come; what a step has left of its gradient is dropped."""
        self.generator.set_state(drawn.generator)
        self.samples.restore(drawn.samples)
        self._optimizer.zero_grad()

    def _is_good(self, drawn: RandomState | None = None) -> None:
        """The parameters as they are. drawn: what had been drawn when they came to be."""
        self._good.keep(self.progress.steps, drawn or self._drawn(), self._scaler.state_dict())

    def _step(self) -> Sample | None:
        """One optimiser step; None where the state it started from turned out to be no good."""
        drawn = self._drawn()
        sample = next(self.samples)
        loss = self._gradient(sample)
        self._scaler.unscale_(self._optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, 1.0))
        if self._is_bad(loss, norm):
            self._break_off(sample, loss, norm)
            return None
        if self._is_sound(loss):
            self._is_good(drawn)
        self._changing = True
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._changing = False
        self._optimizer.zero_grad()
        self.progress.losses.append(loss)
        return sample

    def _gradient(self, sample: Sample) -> float:
        """The loss of a sample, after its backward pass; in parts where memory or the model asks for it."""
        while True:
            try:
                return sum(self._part(sample, rows) for rows in self._parts(sample.strengths))
            except RuntimeError as error:
                self._optimizer.zero_grad()
                if is_out_of_memory(error):
                    self._make_do(len(sample.x), error)
                elif self._carefully:
                    raise
                else:
                    self._carefully = True
            free_unused()

    def _part(self, sample: Sample, rows: Tensor) -> float:
        """The loss of some of the rows, weighed by their number, after its backward pass."""
        share = len(rows) / len(sample.x)
        with ExitStack() as during:
            during.enter_context(differentiable(self._carefully))
            during.enter_context(self.layers.acting(sample.strengths[rows]))
            during.enter_context(refetched(self.denoiser.model))
            if self._recompute:
                during.enter_context(checkpointed(self.denoiser.network))
            prediction = self.denoiser(sample.x[rows], sample.sigma, [sample.prompt])[0]
            mask = sample.mask[rows] if sample.mask is not None and len(sample.mask) > 1 else sample.mask
            loss = share * prediction_loss(prediction, sample.target[rows], mask)
            self._scaler.scale(loss).backward()
        return loss.item()

    def _parts(self, strengths: Tensor) -> Iterator[Tensor]:
        """Rows that go through the model at once."""
        rows = torch.arange(len(strengths), device=strengths.device)
        together = [rows]
        if needs_separate_evaluations(self.denoiser.model, strengths):
            together = [rows[strengths[:, 0] == value] for value in strengths.unique()]
        for some in together:
            yield from some.split(self._at_once or len(rows))

    def _make_do(self, rows: int, error: BaseException) -> None:
        """Memory ran out: fewer rows at once, then blocks run twice; then it is an error."""
        now = self._at_once or rows
        if now > 1:
            self._at_once = now // 2
            logging.warning("Training: there is no memory for %d pictures at once; going on with %d.", now, now // 2)
        elif not self._recompute:
            self._recompute = True
            logging.warning("Training: there is little memory; going on with blocks run again in backward.")
        else:
            raise error

    def _is_bad(self, loss: float, norm: float) -> bool:
        """norm: of the gradient. A scaler meets ones that are not finite, and makes do."""
        before = self.progress.losses[-_JUDGED_BY:]
        exploded = len(before) == _JUDGED_BY and loss > _EXPLODED * statistics.median(before)
        scaled = self._scaler.is_enabled()
        endless = scaled and self._scaler.get_scale() < _LEAST_SCALE
        return not math.isfinite(loss) or exploded or endless or not (scaled or math.isfinite(norm))

    def _is_sound(self, loss: float) -> bool:
        """Whether the state that a loss is of is one to fall back on: an explosion may take some steps."""
        before = self.progress.losses[-_JUDGED_BY:]
        return not before or loss <= _SOUND * statistics.median(before)

    def _break_off(self, sample: Sample, loss: float, norm: float) -> None:
        """Back to the state that last gave a sound step. Raises FloatingPointError if that is the first."""
        gradient = "" if math.isfinite(norm) or not math.isfinite(loss) else f", its gradient {norm:.3g}"
        self.progress.broken = (
            f"Training broke down at step {self.progress.steps + 1} of {self.recipe.steps}, noise level "
            f"{float(sample.sigma):.3g}: the loss is {loss:.3g}{gradient}. A lower learning rate than "
            f"{self.recipe.learning_rate:g} may help."
        )
        if not self._good.steps:
            raise FloatingPointError(self.progress.broken)
        self._fall_back()

    def _fall_back(self) -> None:
        """The state is the last good one."""
        self._scaler.load_state_dict(self._good.put_back())
        self._draw_again(self._good.drawn)
        del self.progress.losses[self._good.steps :]  # of the steps that led on from there
        self._changing = False
