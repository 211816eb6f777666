"""The scale of a PEFT adapter, kept apart from the weights: in a JSON file beside them or in the header."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

CONFIG = "adapter_config.json"
HEADER_FIELD = "lora_adapter_metadata"  # where diffusers keeps the same fields
_STEM, _PREFIX = "adapter_model", "base_model.model."  # of a file that PEFT itself wrote, and of its layers' names
_LONGEST_PATTERN, _MOST_REPEATS = 200, 4
_LARGEST_CONFIG = 1 << 22


@dataclass(frozen=True)
class PeftConfig:
    """What a PEFT configuration says about scale: alpha / rank, or alpha / sqrt(rank) with rank stabilisation.

    alphas, ranks: exceptions by patterns of module names, in the file's order.
    """

    alpha: float
    rank: int
    alphas: Mapping[str, float]
    ranks: Mapping[str, int]
    stabilised: bool = False

    def alpha_of(self, module: str) -> float:
        """Return the alpha of a module, by its name in the model that was trained."""
        return self.alphas.get(_pattern_of(module, self.alphas), self.alpha)

    def scale(self, module: str, rank: int) -> float:
        """Return the factor of up @ down for a module whose tensors have this rank.

        Raises ValueError if the configuration is of another rank: it then belongs to another file.
        """
        expected = self.ranks.get(_pattern_of(module, self.ranks), self.rank)
        if expected != rank:
            raise ValueError(
                f"layer {module} has rank {rank}, but the adapter's configuration says {expected}; "
                "they belong to different adapters."
            )
        return self.alpha_of(module) / (sqrt(rank) if self.stabilised else rank)


def config_from(fields: Any, where: str) -> PeftConfig:
    """Read a configuration from the fields of a JSON object. where: it is, for messages.

    Raises ValueError for another kind of adapter, and for numbers that are none.
    """
    if not isinstance(fields, Mapping):
        raise ValueError(f"{where} must be a JSON object; got {type(fields).__name__}.")
    kind = fields.get("peft_type", "LORA")
    if kind != "LORA":
        raise ValueError(f"{where} is of a PEFT adapter of kind {kind!r}; of PEFT's kinds only LORA can be read.")
    rank = _number(fields.get("r", 8), f"r in {where}")
    return PeftConfig(
        alpha=_number(fields.get("lora_alpha", 8), f"lora_alpha in {where}"),
        rank=int(rank),
        alphas=_patterns(fields.get("alpha_pattern"), f"alpha_pattern in {where}"),
        ranks={p: int(v) for p, v in _patterns(fields.get("rank_pattern"), f"rank_pattern in {where}").items()},
        stabilised=fields.get("use_rslora") is True,
    )


def config_beside(path: Path) -> Path | None:
    """Return the JSON file with the configuration of a file that PEFT itself wrote, if there is one."""
    beside = path.parent / CONFIG
    return beside if path.stem == _STEM and beside.is_file() else None


def configs_for(path: Path, header: Mapping[str, str]) -> dict[str, PeftConfig]:
    """Read the configurations of a slider file, by the prefix of the layer names they are for.

    The JSON beside a file of PEFT's own is for "base_model.model."; the header's are for "unet.", "transformer.", ...
    Raises ValueError naming the place if one cannot be understood.
    """
    configs = {}
    beside = config_beside(path)
    if beside is not None:
        if beside.stat().st_size > _LARGEST_CONFIG:
            raise ValueError(f"{beside} is too large for an adapter's configuration.")
        configs[_PREFIX] = config_from(_parsed(beside.read_bytes(), str(beside)), str(beside))
    if HEADER_FIELD in header:
        where = f"its header field {HEADER_FIELD}"
        fields = _parsed(header[HEADER_FIELD].encode(), where)
        parts: dict[str, dict[str, Any]] = {}
        for key, value in (fields if isinstance(fields, Mapping) else {}).items():
            component, _, field = key.partition(".")
            parts.setdefault(f"{component}.", {})[field] = value
        configs |= {prefix: config_from(own, f"{where} for {prefix}") for prefix, own in parts.items()}
    return configs


def config_of(name: str, configs: Mapping[str, PeftConfig]) -> tuple[PeftConfig | None, str]:
    """Return the configuration that a layer is trained with, if there is one, and its name in the trained model.

    name: in the file. configs: see `configs_for`; the one beside a file is for all layers that no other is for.
    """
    prefix = next((prefix for prefix in configs if name.startswith(prefix)), _PREFIX)
    return configs.get(prefix), name.removeprefix(prefix).rpartition(_PREFIX)[2]


def unknown_alpha(path: Path, names: Iterable[str], configs: Mapping[str, PeftConfig]) -> str:
    """Return a note on a file of PEFT's own names whose scale is not known; "" if there is nothing to say."""
    if configs or not any(_PREFIX in name for name in names):
        return ""
    if path.stem == _STEM:
        why = f"no {CONFIG} lies beside it"
    else:
        why = f"{CONFIG} is read where the file is called {_STEM}, and this one has another name"
    return f"its alpha is not known, since {why}: the scale is taken to be 1"


def _parsed(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
        raise ValueError(f"{what} must be a number; got {value!r}.")
    return float(value)


def _patterns(value: Any, what: str) -> dict[str, float]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} must be a JSON object; got {type(value).__name__}.")
    for pattern in value:
        # Anyone may have written the file: a pattern must not be able to take for ever
        repeats = sum(pattern.count(mark) for mark in "*+{")
        if len(pattern) > _LONGEST_PATTERN or repeats > _MOST_REPEATS or re.search(r"\)[*+{?]", pattern):
            raise ValueError(f"{what} has a pattern that is too complicated: {pattern[:80]!r}.")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{what} has a pattern that is none, {pattern!r}: {error}") from error
    return {pattern: _number(number, f"{pattern!r} in {what}") for pattern, number in value.items()}


def _pattern_of(module: str, patterns: Mapping[str, float]) -> str:
    """Return the first pattern that a module's name ends with, which is PEFT's rule; the name itself if none."""
    return next((p for p in patterns if re.match(rf"(?:.*\.)?(?:{p})$", module)), module)
