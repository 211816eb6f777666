"""What is sampled to measure sliders: each alone, at every strength, on the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite

from ..sliders.stack import Stack
from ..sliders.units import RAW, strengths_in

MOST_SEEDS, LARGEST_SEED = 1024, 2**64 - 1


@dataclass(frozen=True)
class PlannedImage:
    """One image to make. slider: its position in the stack; None for the original, without any."""

    prompt: str
    seed: int
    slider: int | None = None
    strength: float = 0.0

    @property
    def original(self) -> PlannedImage:
        """The image that it is compared with."""
        return PlannedImage(self.prompt, self.seed)


@dataclass(frozen=True)
class SweepPlan:
    """Holds which images are made.

    stack: each slider is measured alone, with its gates; the strengths that it has there are not used.
    prompts, seeds: every slider is measured on each seed of each prompt. strengths: in rising order, without 0: the
    original is sampled once for all sliders. batch_size: images sampled at a time. units: of the strengths; see
    `units.strengths_in`. apart: each prompt has seeds of its own, the first these, the next those that come after:
    what the same noise makes of several prompts is alike, so that a mean over them tells less.
    Raises ValueError if there is no slider, prompt, seed or strength, or something stands there twice.
    """

    stack: Stack
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    strengths: tuple[float, ...]
    batch_size: int = 8
    units: str = RAW
    apart: bool = False

    def __post_init__(self) -> None:
        if not len(self.stack):
            raise ValueError("Measuring takes at least one slider; the stack has none.")
        for name in ("prompts", "seeds", "strengths"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"Measuring takes at least one of {name}, each once; got {list(values)}.")
        strengths = list(self.strengths)
        if strengths != sorted(strengths) or 0 in strengths or not all(map(isfinite, strengths)):
            raise ValueError(f"Strengths to measure must be finite, in rising order, without 0; got {strengths}.")
        for at, placed in enumerate(self.stack):
            if not self.strengths_of(at):
                raise ValueError(f"Slider '{placed.slider.name}' is off at all of {strengths} in {self.units} units.")
        if self.batch_size < 1:
            raise ValueError(f"Images are sampled one at a time at least; got a batch size of {self.batch_size}.")

    @property
    def count(self) -> int:
        """The number of images."""
        turned = sum(len(self.strengths_of(slider)) for slider in range(len(self.stack)))
        return len(self.prompts) * len(self.seeds) * (1 + turned)

    def seeds_of(self, prompt: str) -> tuple[int, ...]:
        """Return the seeds that a prompt is sampled with."""
        number = self.prompts.index(prompt) if self.apart else 0
        further = number * (max(self.seeds) - min(self.seeds) + 1)
        return tuple((seed + further) % (LARGEST_SEED + 1) for seed in self.seeds)

    def strengths_of(self, slider: int) -> tuple[float, ...]:
        """Return the strengths, as they act, of the slider at a position, each once and without 0."""
        found = strengths_in(self.units, self.stack[slider].slider, self.strengths)
        return tuple(strength for strength in dict.fromkeys(found) if strength)

    def batches(self) -> list[list[PlannedImage]]:
        """Return the images in the order of making them; those of a batch share the encoding of their prompt.

        Prompt by prompt and seed by seed, the original first. Images of sliders that change the text encoder stand
        after the others of their prompt, as each of their strengths has an encoding of its own.
        """
        found = []
        for prompt in self.prompts:
            by_encoding: dict[tuple[int, float] | None, list[PlannedImage]] = {}
            for planned in self._of_prompt(prompt):
                by_encoding.setdefault(self.encoding(planned), []).append(planned)
            for together in by_encoding.values():
                found += [together[at : at + self.batch_size] for at in range(0, len(together), self.batch_size)]
        return found

    def _of_prompt(self, prompt: str) -> list[PlannedImage]:
        turned = [(slider, strength) for slider in range(len(self.stack)) for strength in self.strengths_of(slider)]
        return [PlannedImage(prompt, seed, *at) for seed in self.seeds_of(prompt) for at in ((None, 0.0), *turned)]

    def encoding(self, planned: PlannedImage) -> tuple[int, float] | None:
        """Return the slider and the strength that the prompt is encoded with; None without any."""
        if planned.slider is None or not self.stack[planned.slider].slider.text_layers:
            return None
        return planned.slider, planned.strength

    def stack_of(self, batch: Sequence[PlannedImage]) -> Stack:
        """Return the sliders that act in a batch, with one strength for each of its images."""
        acting = sorted({planned.slider for planned in batch if planned.slider is not None})
        return Stack(
            tuple(
                replace(
                    self.stack[position],
                    strength=tuple(each.strength if each.slider == position else 0.0 for each in batch),
                )
                for position in acting
            )
        )


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read seeds from "1, 2, 7" or "0:15" (from the first to the last).

    Raises ValueError for anything else, for negative ones, and for more than 1024.
    """
    try:
        first, separator, last = text.partition(":")
        if separator:
            seeds = tuple(range(int(first), min(int(last), int(first) + MOST_SEEDS) + 1))
        else:
            seeds = tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        raise ValueError(
            f"Seeds must be whole numbers separated by commas, or first:last such as 0:15; got {text!r}."
        ) from error
    if not 1 <= len(seeds) <= MOST_SEEDS or not all(0 <= seed <= LARGEST_SEED for seed in seeds):
        raise ValueError(f"Measuring takes 1 to {MOST_SEEDS} seeds from 0 to 2^64 - 1; got {text!r}.")
    return tuple(dict.fromkeys(seeds))
