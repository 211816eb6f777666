"""Reports on sliders: what a slider file holds, and how many of a slider's layers a model has."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP

from ..comfy_host.match import Match, match_slider
from ..comfy_host.prompt_layers import left_out_of_prompts
from ..comfy_host.text_encoders import acts_beyond_its_gate, match_text
from ..sliders.formats.keys import FileReport
from ..sliders.formats.layer_names import listed
from ..sliders.formats.model_family import family_of
from ..sliders.gate import Gate
from ..sliders.slider import Slider, SliderInfo
from ..sliders.stack import StackedSlider
from ..sliders.units import RAW
from .report import Report


def described(slider: Slider, report: FileReport, size: int, gated: bool = False) -> Report:
    """Describe in a few lines what a slider file holds.

    size: of the file, in bytes. gated: True if the gate that the file names is applied.
    """
    info = slider.info
    lines = [
        f"{slider.name}: {info.family or family_of(slider.layers)}",
        *ends_of(info),
        *_calibrated(info),
        *([] if info.gate.always_open else [f"gate: {window(info.gate)}; {'applied' if gated else 'not applied'}"]),
        f"{len(slider.layers)} layers: {len(slider.model_layers)} of the model, "
        f"{len(slider.text_layers)} of text encoders",
        _numbers(report),
        f"{', '.join(report.dtypes) or 'no weights'}, {size / 1e6:.2f} MB",
    ]
    if report.renamed:
        lines.append(f"{len(report.renamed)} layers have another name here than in the file")
    return Report().fact(*lines).warn(*report.notes)


def matched(model: ModelPatcher, placed: StackedSlider, clip: CLIP | None) -> Report:
    """Count the layers of a slider that this model and these text encoders have, and warn of the others by name."""
    slider = placed.slider
    match, words = match_slider(model, slider), len(slider.text_layers)
    text = match_text(clip, slider) if clip is not None and words else None
    parts = [f"{match.matched} of {match.total} layers"] if match.total or not words else []
    if text is not None:
        parts.append(f"{text.matched} of {_text_layers(words)}")
    elif words:
        parts.append(f"{_text_layers(words)} not applied: connect CLIP")
    line = f"{slider.name}: {', '.join(parts)}"
    beyond = (
        left_out_of_prompts(model, placed, match),
        acts_beyond_its_gate(placed) if clip is not None else "",
        beyond_range(placed, clip),
    )
    left_out = _left_out(slider, match, "this model")
    left_out += [] if text is None else _left_out(slider, text, "these text encoders")
    if left_out or (words and text is None):
        return Report().warn(line, *left_out, *beyond)
    return Report().fact(line).warn(*beyond)


def _left_out(slider: Slider, match: Match, where: str) -> list[str]:
    """Name the layers that do not act, and what else is to be known about their names."""
    lines = [f"not in {where}: {listed(slider.names_in_file(match.unmatched))}"] if match.unmatched else []
    lines += [f"left out: {reason}" for reason in match.misfits.values()]
    return lines + ([f"the names of its layers are read without '{match.front}' in front"] if match.front else [])


def beyond_range(placed: StackedSlider, clip: CLIP | None) -> str:
    """Say which strengths are beyond the range that a slider of the text encoder was trained for; "" if none is.

    Only files that say how they were trained name a range. Sliders of the diffusion model do not turn back.
    """
    info, (low, high) = placed.slider.info, placed.slider.info.useful_range
    beyond = [f"{value:g}" for value in dict.fromkeys(placed.strength) if not low <= value <= high]
    if clip is None or not placed.slider.text_layers or not info.recipe or not beyond:
        return ""
    return (
        f"strength {', '.join(beyond)} is beyond {low:g} to {high:g}, for which its layers of the text encoder were "
        "trained: it may turn back there"
    )


def calibrated_gate(units: str, slider: Slider, gated: bool) -> list[str]:
    """Say that a slider acts in another part of sampling than it was calibrated in; [] if it does not.

    gated: True if the gate that its file names is applied.
    """
    calibration = slider.info.calibration
    if units == RAW or calibration is None or calibration.gate == (slider.info.gate if gated else Gate()):
        return []
    return [
        f"calibrated where it acts {window(calibration.gate)}: its units hold there. Turn gated on, or gate it so."
    ]


def _calibrated(info: SliderInfo) -> list[str]:
    if (of := info.calibration) is None:
        return []
    low, high = of.useful_range
    by = f" by {of.measured_by}" if of.measured_by else ""
    return [f"calibrated{by}: units {of.low:.4g} to {of.high:.4g} are strengths {low:.4g} to {high:.4g}"]


def window(gate: Gate) -> str:
    """Put a gate into words."""
    return f"from {gate.start:g} to {gate.end:g} of sampling" + (f", ramp {gate.ramp:g}" if gate.ramp else "")


def ends_of(info: SliderInfo) -> list[str]:
    """Say what lies at a slider's ends and in which range it is of use; [] if its file says neither."""
    low, high = info.useful_range
    if not (info.less or info.more):
        return [] if info.useful_range == SliderInfo.useful_range else [f"useful from {low:g} to {high:g}"]
    return [f"from {info.less or 'less'} to {info.more or 'more'}; useful from {low:g} to {high:g}"]


def _numbers(report: FileReport) -> str:
    parts = [", ".join(f"{count} x {kind}" for kind, count in report.kinds.items())]
    scale = [f"rank {_span(report.ranks)}"] if report.ranks else []
    if report.alphas:
        scale.append("alpha " + _span(report.alphas) + (" or none" if report.without_alpha else ""))
    elif report.without_alpha:
        scale.append("no alpha (scale 1)")
    return "; ".join([*parts, *([", ".join(scale)] if scale else [])])


def _text_layers(count: int) -> str:
    return f"{count} text encoder layer{'' if count == 1 else 's'}"


def _span(values: tuple[float, ...]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"
