"""Texts that nodes show: what a slider file holds, and how many of a slider's layers a model has."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP

from ..comfy_host.match import match_slider
from ..comfy_host.text_encoders import text_layers_in
from ..sliders.formats.keys import FileReport
from ..sliders.formats.layer_names import listed
from ..sliders.formats.model_family import family_of
from ..sliders.gate import Gate
from ..sliders.slider import Slider, SliderInfo


def described(slider: Slider, report: FileReport, size: int, gated: bool = False) -> str:
    """Describe in a few lines what a slider file holds.

    size: of the file, in bytes. gated: True if the gate that the file names is applied.
    """
    info = slider.info
    lines = [
        f"{slider.name}: {info.family or family_of(slider.layers)}",
        *_ends(info),
        *([] if info.gate.always_open else [f"gate: {window(info.gate)}; {'applied' if gated else 'not applied'}"]),
        f"{len(slider.layers)} layers: {len(slider.model_layers)} of the model, "
        f"{len(slider.text_layers)} of text encoders",
        _numbers(report),
        f"{', '.join(report.dtypes) or 'no weights'}, {size / 1e6:.2f} MB",
    ]
    if report.renamed:
        lines.append(f"{report.renamed} layers have another name here than in the file")
    return "\n".join([*lines, *report.notes])


def matched(model: ModelPatcher, slider: Slider, clip: CLIP | None) -> str:
    """Count the layers of a slider that this model and these text encoders have, and name the others."""
    match, words = match_slider(model, slider), tuple(slider.text_layers)
    found = text_layers_in(clip, slider) if clip is not None and words else ()
    parts = [f"{match.matched} of {match.total} layers"] if match.total or not words else []
    if words and clip is None:
        parts.append(f"{_text_layers(len(words))} not applied: connect CLIP")
    elif words:
        parts.append(f"{len(found)} of {_text_layers(len(words))}")
    lines = [f"{slider.name}: {', '.join(parts)}"]
    if match.unmatched:
        lines.append(f"not in this model: {listed(match.unmatched)}")
    if missing := [name for name in words if clip is not None and name not in found]:
        lines.append(f"not in these text encoders: {listed(missing)}")
    return "\n".join(lines)


def window(gate: Gate) -> str:
    """Put a gate into words."""
    return f"from {gate.start:g} to {gate.end:g} of sampling" + (f", ramp {gate.ramp:g}" if gate.ramp else "")


def _ends(info: SliderInfo) -> list[str]:
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
