"""The run that calibrates a slider: coarsely outwards until both sides are settled, then where steps are equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isfinite

from ..comfy_host.errors import InterruptProcessingException
from ..sliders.calibration import Calibration
from ..sliders.gate import Gate, combined_gate
from ..sliders.slider import SliderInfo
from ..sliders.stack import Stack, StackedSlider
from .calibration import Criteria, Response, Side, calibrated, side_of
from .effects import NO_EFFECT, response_of
from .instruments import Instruments
from .measurements import EditTexts, Measured, SliderMeasurements, joined
from .measuring import measure
from .sweep import Sweep
from .sweep_plan import SweepPlan
from .sweep_sampling import ReportImages, Source, sample_sweep
from .verdict import Verdict, verdict_of

FIRST = (0.5, 1.0, 2.0)  # sizes of strength that a run begins with, on both sides; then it doubles
ROUNDS = 2  # of refinement
APART = 0.04  # of a side's end: no two strengths are sampled nearer to each other
STRIP_STEPS, STRIP_SEEDS = 4, 3  # of the strip of images: steps of the control on each side, and rows


@dataclass(frozen=True)
class CalibrationPlan:
    """What a calibration samples.

    prompts, seeds: as of a `SweepPlan` whose prompts are sampled apart. limit: the largest size of strength that is
    tried. steps: on each side, to which strengths are refined. batch_size: images sampled at a time.
    Raises ValueError for a limit that is not positive, or fewer than two steps.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    limit: float = 16.0
    steps: int = 4
    batch_size: int = 8
    criteria: Criteria = field(default_factory=Criteria)

    def __post_init__(self) -> None:
        if not (isfinite(self.limit) and self.limit > 0):
            raise ValueError(f"Calibrating: the largest strength to try must be positive; got {self.limit!r}.")
        if self.steps < 2:
            raise ValueError(f"Calibrating takes two steps on a side at least; got {self.steps!r}.")

    @property
    def first(self) -> tuple[float, ...]:
        """The sizes of strength that the run begins with."""
        sizes = tuple(size for size in FIRST if size <= self.limit)
        return sizes if len(sizes) > 1 else (self.limit / 4, self.limit / 2, self.limit)


@dataclass(frozen=True)
class CalibratedSlider:
    """What a calibration has found.

    placed: the slider as it was given, its info with what was found. response: what was measured. strip: images at
    equal steps of the control; None without a calibration, or if the run was cancelled before. calibration: None if
    the slider does nothing.
    """

    placed: StackedSlider
    response: Response
    plus: Side
    minus: Side
    verdict: Verdict
    calibration: Calibration | None
    strip: Sweep | None
    cancelled: bool = False


def calibrate(
    source: Source,
    placed: StackedSlider,
    texts: EditTexts,
    plan: CalibrationPlan,
    instruments: Instruments,
    report: ReportImages,
) -> CalibratedSlider:
    """Sample a slider along strength, without changing the model, and find its calibration.

    texts: of its two ends, for CLIP scores and for the labels in its info. report: called after every batch.
    A run that is cancelled calibrates with what was sampled for the strengths before.
    Raises InterruptProcessingException if it is cancelled before there is a strength for each side, and ValueError
    if nothing that is at hand tells an effect.
    """
    run = _Run(source, placed, texts, plan, instruments, report)
    try:
        run.outwards()
        run.refine()
        strip = run.strip()
    except InterruptProcessingException:
        if not run.parts:
            raise
        return run.result(None, True)
    return run.result(strip, False)


def calibrate_stack(
    source: Source,
    stack: Stack,
    texts: Sequence[EditTexts],
    plan: CalibrationPlan,
    instruments: Instruments,
    report: ReportImages,
) -> list[CalibratedSlider]:
    """Calibrate the sliders of a stack, each alone; see `calibrate`. texts: of each slider's ends.

    A run that is cancelled gives the sliders up to then. Raises ValueError if nothing at hand tells an effect.
    """
    if not (instruments.encoders or instruments.probe):
        raise ValueError(NO_EFFECT)
    found: list[CalibratedSlider] = []
    for placed, ends in zip(stack, texts, strict=True):
        try:
            found.append(calibrate(source, placed, ends, plan, instruments, report))
        except InterruptProcessingException:
            if not found:
                raise
            break
        if found[-1].cancelled:
            break
    return found


class _Run:
    """The stages of a calibration, and what they have measured."""

    def __init__(
        self,
        source: Source,
        placed: StackedSlider,
        texts: EditTexts,
        plan: CalibrationPlan,
        instruments: Instruments,
        report: ReportImages,
    ):
        self.source, self.placed, self.texts, self.plan = source, placed, texts, plan
        self.instruments, self.report = instruments, report
        self.parts: list[Measured] = []
        self._made = 0
        n = len(plan.prompts) * len(plan.seeds)
        self._expected = n * (1 + 2 * len(plan.first) + 2 * 3 + ROUNDS * (1 + 2 * plan.steps))

    def outwards(self) -> None:
        """Sample the first strengths, and go on doubling on each side until it is saturated or broken."""
        size = self.plan.first[-1]
        self._sample([sign * each for each in self.plan.first for sign in (1, -1)])
        while (size := 2 * size) <= self.plan.limit:
            growing = [side.sign for side in self._sides() if not side.is_settled]
            if not growing:
                return
            self._sample([sign * size for sign in growing])

    def refine(self) -> None:
        """Sample where steps are equal by what is known so far, and between an end and the strength beyond it."""
        for _ in range(ROUNDS):
            wanted = self._between()
            if not wanted:
                return
            self._sample(wanted)

    def strip(self) -> Sweep | None:
        """Sample images at equal steps of the control."""
        calibration = self._calibration(self._response())
        if calibration is None:
            return None
        strengths = [calibration.strength(control) for control in steps_of(calibration, STRIP_STEPS)]
        wanted = tuple(sorted({*strengths} - {0.0}))
        plan = self._plan(wanted, self.plan.prompts[:1], self.plan.seeds[:STRIP_SEEDS])
        sweep = sample_sweep(self.source, plan, self._tell)
        if sweep.cancelled:
            raise InterruptProcessingException
        return sweep

    def result(self, strip: Sweep | None, cancelled: bool) -> CalibratedSlider:
        response = self._response()
        plus, minus = self._sides(response)
        verdict, calibration = verdict_of(response, plus, minus), self._calibration(response)
        info = _told(self.placed.slider.info, self.texts, response, calibration)
        placed = replace(self.placed, slider=replace(self.placed.slider, info=info))
        return CalibratedSlider(placed, response, plus, minus, verdict, calibration, strip, cancelled)

    def _sample(self, strengths: Sequence[float]) -> None:
        """Measure at these strengths. What a cancel leaves of them is dropped, but for complete prompts and seeds of
        the first ones."""
        measured = measure(self.source, self._plan(tuple(sorted(strengths))), self.instruments, self._tell)
        if not measured.cancelled:
            self.parts.append(measured)
            self._made += len(measured.made)
            return
        if not self.parts and len(self._measurements([measured]).complete_series()):
            self.parts.append(measured)
        raise InterruptProcessingException

    def _between(self) -> list[float]:
        """Return the strengths to refine by, none nearer to one that is known than a part of its side's end."""
        response = self._response()
        calibration, found = self._calibration(response), [0.0, *response.strengths]
        if calibration is None:
            return []
        wanted = []
        for side in self._sides(response):
            outwards = sorted(
                (s for s in response.strengths if abs(s) > abs(side.end) and s * side.sign > 0), key=abs
            )
            end = calibration.high if side.sign > 0 else calibration.low
            near = [calibration.strength(end * at / self.plan.steps) for at in range(1, self.plan.steps)]
            for strength in [*near, *((side.end + beyond) / 2 for beyond in outwards[:1])]:
                if side.end and min(abs(strength - known) for known in found) >= APART * abs(side.end):
                    found.append(strength)
                    wanted.append(strength)
        return wanted

    def _plan(
        self, strengths: tuple[float, ...], prompts: tuple[str, ...] = (), seeds: tuple[int, ...] = ()
    ) -> SweepPlan:
        of = self.plan
        asked = (prompts or of.prompts, seeds or of.seeds, strengths, of.batch_size)
        return SweepPlan(Stack((self.placed,)), *asked, apart=True)

    def _tell(self, done: int, of: int) -> None:
        self.report(self._made + done, max(self._expected, self._made + of))

    def _measurements(self, parts: Sequence[Measured]) -> SliderMeasurements:
        return SliderMeasurements(joined(parts), 0, self.texts, self.instruments)

    def _response(self) -> Response:
        return response_of(self._measurements(self.parts))

    def _sides(self, response: Response | None = None) -> tuple[Side, Side]:
        response = response or self._response()
        plus, minus = (side_of(response, sign, self.plan.criteria) for sign in (1, -1))
        return plus, minus

    def _calibration(self, response: Response) -> Calibration | None:
        sides = self._sides(response)
        if not any(side.end for side in sides):
            return None
        return calibrated(response, sides, self.plan.criteria, combined_gate(self.placed.gates) or Gate())


def steps_of(calibration: Calibration, steps: int) -> list[float]:
    """Return controls at equal steps, `steps` of them on the side that reaches further, 0 among them.

    The other side's end stands beside them where it is no step, and not all but one.
    """
    step = max(calibration.high, -calibration.low) / steps
    controls = [step * at for at in range(-steps, steps + 1)]
    inside = [control for control in controls if calibration.low <= control <= calibration.high]
    ends = [end for end in (calibration.low, calibration.high) if min(abs(end - at) for at in inside) > step / 4]
    return sorted([*inside, *ends])


def _told(info: SliderInfo, texts: EditTexts, response: Response, calibration: Calibration | None) -> SliderInfo:
    """Return the info with the labels of the ends, and the calibration and its range if there is one."""
    less, more = texts.less, texts.more
    if response.is_turned_round:
        less, more = more, less
    if not less and not more:
        less, more = f"less: {response.measured_by}", f"more: {response.measured_by}"
    info = replace(info, less=less, more=more, calibration=calibration)
    return info if calibration is None else replace(info, useful_range=calibration.useful_range)
