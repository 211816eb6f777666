"""The header of a slider file: our own fields as JSON, and those that other tools read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from ..calibration import Calibration
from ..gate import Gate
from ..slider import Slider, SliderInfo
from .keys import is_low_rank
from .peft import HEADER_FIELD

FIELD = "concept_sliders"
FORMAT = 1

# The ModelSpec names of base models, by ComfyUI's family names; other families keep their own
_ARCHITECTURES = {
    "SD15": "stable-diffusion-v1",
    "SD20": "stable-diffusion-v2-512",
    "SD21UnclipL": "stable-diffusion-v2-768-v-unclip",
    "SDXL": "stable-diffusion-xl-v1-base",
    "SDXLRefiner": "stable-diffusion-xl-v1-refiner",
    "SD3": "stable-diffusion-3",
    "Flux": "flux-1-dev",
    "FluxSchnell": "flux-1-schnell",
}
# Fields that would be wrong of the file that is written: hashes, and a scale that is folded in by then
_STALE = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "ss_network_args", HEADER_FIELD)


def write_header(slider: Slider) -> dict[str, str]:
    """Return the header fields of a slider, all strings, as safetensors wants them.

    Raises ValueError if its recipe or extra fields are not plain JSON.
    """
    info = slider.info
    own = {
        "format": FORMAT,
        "name": slider.name,
        "less": info.less,
        "more": info.more,
        "useful_range": list(info.useful_range),
        "gate": asdict(info.gate),
        "recipe": dict(info.recipe),
        "family": info.family,
        "base_model_hash": info.base_model_hash,
    }
    if info.calibration is not None:
        own["calibration"] = info.calibration.as_json()
    try:
        own_json = json.dumps(own, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Slider '{slider.name}': its recipe cannot be written as JSON: {error}") from error
    return {
        **{key: str(value) for key, value in info.extra.items() if key not in _STALE},
        FIELD: own_json,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{_ARCHITECTURES.get(info.family, info.family or 'unknown')}/lora",
        "modelspec.implementation": "concept-sliders",
        "modelspec.title": slider.name,
        "modelspec.description": _description(slider),
        "modelspec.date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "ss_network_module": "networks.lora" if all(map(is_low_rank, slider.layers.values())) else "lycoris.kohya",
        "ss_network_dim": str(slider.rank),
        "ss_network_alpha": str(slider.rank),
    }


def name_from_header(header: Mapping[str, str], otherwise: str) -> str:
    """Return the slider's name: ours, the ModelSpec title, or `otherwise`."""
    return str(_own_fields(header).get("name") or header.get("modelspec.title") or otherwise)


def info_from_header(header: Mapping[str, str], source: str) -> SliderInfo:
    """Read what a header says about a slider; fields that are absent take their defaults.

    Raises ValueError if our own field is there but cannot be understood.
    """
    own = _own_fields(header)
    try:
        return SliderInfo(
            less=str(own.get("less", "")),
            more=str(own.get("more", "")),
            useful_range=_range(own.get("useful_range", (-1.0, 1.0))),
            gate=Gate(**own.get("gate", {})),
            recipe=dict(own.get("recipe", {})),
            family=str(own.get("family", "")),
            base_model_hash=str(own.get("base_model_hash", "")),
            source=source,
            extra={key: value for key, value in header.items() if key != FIELD},
            calibration=Calibration.from_json(own["calibration"]) if "calibration" in own else None,
        )
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"its header field {FIELD} cannot be understood: {error}") from error


def _own_fields(header: Mapping[str, str]) -> dict[str, Any]:
    text = header.get(FIELD)
    if text is None:
        return {}
    try:
        own = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header field {FIELD} is not JSON: {error}") from error
    if not isinstance(own, dict):
        raise ValueError(f"its header field {FIELD} must be a JSON object; got {type(own).__name__}.")
    if own.get("format", FORMAT) != FORMAT:
        raise ValueError(
            f"it has slider format {own['format']}, and this version reads format {FORMAT}; "
            "a newer version may read it."
        )
    return own


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _range(value: Any) -> tuple[float, float]:
    low, high = value
    return float(low), float(high)


def _description(slider: Slider) -> str:
    info = slider.info
    low, high = info.useful_range
    ends = f"from {info.less} to {info.more}" if info.less and info.more else slider.name
    return f"Concept slider {ends}; useful strengths {low:g} to {high:g}."
