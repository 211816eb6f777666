"""The training loop: points in, a slider out; whatever happens, the last good state is kept."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import comfy.model_management
import torch
from torch import Tensor

from ..sliders.rows import must_be_apart
from .differentiable import differentiable
from .objectives import prediction_loss
from .points import Point, Points
from .recompute import recomputed

if TYPE_CHECKING:
    from .denoiser import Denoiser
    from .new_layers import NewLayers
    from .preview import Reach
    from .recipe import Recipe

_EXPLODED = 1000.0  # times the median of the losses before
_JUDGED_BY = 50  # losses


@dataclass
class Progress:
    """How a run went: the loss of every step done, whether it was stopped, and what broke it, if so.

    still: it ended early because the slider reached no further.
    """

    losses: list[float] = field(default_factory=list)
    stopped: bool = False
    still: bool = False
    broken: str = ""

    @property
    def steps(self) -> int:
        return len(self.losses)


class Training:
    """One run. `state` holds everything that changes, so that a restored run goes on as if it had never stopped."""

    def __init__(
        self,
        denoiser: Denoiser,
        layers: NewLayers,
        points: Points,
        recipe: Recipe,
        generator: torch.Generator,
        reach: Reach | None = None,
    ):
        self.denoiser, self.layers, self.points = denoiser, layers, points
        self.recipe, self.generator, self.reach = recipe, generator, reach
        self.progress = Progress()
        self._parameters = layers.parameters()
        self._optimizer = torch.optim.AdamW(self._parameters, lr=recipe.learning_rate, weight_decay=0.0)
        # Gradients that pass through half-precision layers vanish unless the loss is scaled up
        half = denoiser.dtype == torch.float16
        self._scaler = torch.amp.GradScaler(denoiser.device.type, enabled=half)
        self._at_once: int | None = None  # most rows that memory has had room for, if it ran out
        self._recompute = False
        self._carefully = False  # unless the model turns out to need it, see `differentiable`
        self._good = [parameter.detach().clone() for parameter in self._parameters]

    def run(
        self,
        should_stop: Callable[[], bool],
        after_step: Callable[[Progress, Point], None],
        cancelled: type[BaseException] | tuple = (),
    ) -> Progress:
        """Train up to the recipe's number of steps.

        should_stop: asked before every step; what has been learned by then is kept.
        after_step: told how it goes. cancelled: what the model raises when it is told to stop; the step is then
        dropped. A loss that is no finite number, or explodes, ends the run at the last good state, and
        `Progress.broken` says where.
        """
        while not self._is_done() and not should_stop():
            before = self.generator.get_state(), self.points.state()
            try:
                point = self._step()
            except cancelled:
                self.generator.set_state(before[0])
                self.points.restore(before[1])
                self._optimizer.zero_grad()
                break
            if point is not None:
                self.progress.still = self.reach is not None and self.reach.is_reached(self.progress.steps)
                after_step(self.progress, point)
        self.progress.stopped = not self.progress.still and self.progress.steps < self.recipe.steps
        return self.progress

    def state(self) -> dict[str, Any]:
        """Everything that changes, as tensors and plain values."""
        return {
            "parameters": [parameter.detach().cpu().clone() for parameter in self._parameters],
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "generator": self.generator.get_state(),
            "points": self.points.state(),
            "losses": list(self.progress.losses),
            "still": self.progress.still,
            "reach": self.reach.state() if self.reach else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state. Raises ValueError if it is of other layers."""
        saved = state["parameters"]
        if [t.shape for t in saved] != [t.shape for t in self._parameters]:
            raise ValueError("The checkpoint holds a slider of other layers than the recipe asks for on this model.")
        self._put_back(saved)
        self._good = [parameter.detach().clone() for parameter in self._parameters]
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"])
        self.points.restore(state["points"])
        self.progress.losses, self.progress.still = list(state["losses"]), state["still"]
        if self.reach and state["reach"]:
            self.reach.restore(state["reach"])

    def _is_done(self) -> bool:
        progress = self.progress
        return progress.steps >= self.recipe.steps or progress.still or bool(progress.broken)

    def _step(self) -> Point | None:
        """One optimiser step; None where the state it started from turned out to be no good."""
        point = next(self.points)
        loss = self._gradient(point)
        if self._is_bad(loss):
            self._break_off(point, loss)
            return None
        self._good = [parameter.detach().clone() for parameter in self._parameters]
        self._scaler.unscale_(self._optimizer)
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        self.progress.losses.append(loss)
        return point

    def _gradient(self, point: Point) -> float:
        """The loss of a point, after its backward pass; in parts where memory or the model asks for it."""
        while True:
            try:
                return sum(self._part(point, rows) for rows in self._parts(point.strengths))
            except RuntimeError as error:
                self._optimizer.zero_grad()
                if comfy.model_management.is_oom(error):
                    self._make_do(len(point.x), error)
                elif self._carefully:
                    raise
                else:
                    self._carefully = True
            comfy.model_management.soft_empty_cache()

    def _part(self, point: Point, rows: Tensor) -> float:
        """The loss of some of the rows, weighed by their number, after its backward pass."""
        share = len(rows) / len(point.x)
        with ExitStack() as during:
            during.enter_context(differentiable(self._carefully))
            during.enter_context(self.layers.acting(point.strengths[rows]))
            if self._recompute:
                during.enter_context(recomputed(self.denoiser.network))
            prediction = self.denoiser(point.x[rows], point.sigma, [point.prompt])[0]
            mask = point.mask[rows] if point.mask is not None and len(point.mask) > 1 else point.mask
            loss = share * prediction_loss(prediction, point.target[rows], mask)
            self._scaler.scale(loss).backward()
        return loss.item()

    def _parts(self, strengths: Tensor) -> Iterator[Tensor]:
        """Rows that go through the model at once."""
        rows = torch.arange(len(strengths), device=strengths.device)
        together = [rows]
        if must_be_apart(self.denoiser.patcher.model, strengths):
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

    def _is_bad(self, loss: float) -> bool:
        before = self.progress.losses[-_JUDGED_BY:]
        exploded = len(before) == _JUDGED_BY and loss > _EXPLODED * statistics.median(before)
        return loss != loss or loss == float("inf") or exploded

    def _break_off(self, point: Point, loss: float) -> None:
        """Back to the parameters that last gave a sound loss. Raises FloatingPointError if there are none."""
        self.progress.broken = (
            f"Training broke down at step {self.progress.steps + 1} of {self.recipe.steps}, noise level "
            f"{float(point.sigma):.3g}: the loss is {loss:.3g}. A lower learning rate than "
            f"{self.recipe.learning_rate:g} may help."
        )
        if self.progress.steps <= 1:
            raise FloatingPointError(self.progress.broken)
        self._put_back(self._good)
        self.progress.losses.pop()  # the step that led here

    @torch.no_grad()
    def _put_back(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)
