"""Raw and calibrated units: what a number given for a slider stands for, as a strength.

Raw, it is the strength. Calibrated, it is a control from -100 to 100, which the slider's calibration maps to one.
"""

from __future__ import annotations

from collections.abc import Iterable

from .calibration import END, Calibration
from .slider import Slider

RAW, CALIBRATED = "raw", "calibrated"
UNITS = (RAW, CALIBRATED)


def strengths_in(units: str, slider: Slider, values: Iterable[float]) -> tuple[float, ...]:
    """Return the strengths that values stand for.

    A control beyond an end of the calibration is held there. Of a slider without a calibration -100 and 100 are the
    ends of its useful range, with straight lines from 0 to each.
    Raises ValueError for other units.
    """
    if units not in UNITS:
        raise ValueError(f"A strength is in one of the units {', '.join(UNITS)}; got {units!r}.")
    if units == RAW:
        return tuple(values)
    calibration = calibration_of(slider)
    return tuple(calibration.strength(value) for value in values)


def rescaled(units: str, slider: Slider, strengths: Iterable[float], factor: float) -> tuple[float, ...]:
    """Return strengths times a factor; calibrated, the controls that they stand for are multiplied by it."""
    if units == RAW or factor == 1:
        return tuple(strength * factor for strength in strengths)
    return strengths_in(units, slider, [control * factor for control in controls_in(units, slider, strengths)])


def controls_in(units: str, slider: Slider, strengths: Iterable[float]) -> tuple[float, ...]:
    """Return what would be given in these units for strengths: the inverse of `strengths_in`."""
    if units == RAW:
        return tuple(strengths)
    calibration = calibration_of(slider)
    return tuple(calibration.control(strength) for strength in strengths)


def calibration_of(slider: Slider) -> Calibration:
    """Return the slider's calibration, or the straight lines that stand in for one; see `strengths_in`."""
    info = slider.info
    if info.calibration is not None:
        return info.calibration
    low, high = info.useful_range
    ends = [(-END, low)] * (low < 0) + [(0.0, 0.0)] + [(END, high)] * (high > 0)
    return Calibration(tuple(ends))


def unit_notes(units: str, slider: Slider, values: Iterable[float] = ()) -> tuple[str, ...]:
    """Say in a text each that a slider has no calibrated units, and which values are beyond their ends."""
    if units == RAW:
        return ()
    calibration, notes = calibration_of(slider), []
    (low, high), (weakest, strongest) = (calibration.low, calibration.high), calibration.useful_range
    if slider.info.calibration is None:
        notes.append(
            f"{slider.name} is not calibrated: {low:g} to {high:g} stand for strengths {weakest:g} to {strongest:g}, "
            "its useful range as far as its file tells. Calibrate Slider measures what they should stand for."
        )
    beyond = [f"{value:g}" for value in dict.fromkeys(values) if not low <= value <= high]
    if beyond:
        notes.append(
            f"{slider.name}: its calibrated units end at {low:.4g} and {high:.4g}, beyond which more strength has no "
            f"useful effect; {', '.join(beyond)} is held there."
        )
    return tuple(notes)
