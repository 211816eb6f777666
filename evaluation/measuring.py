"""The run that measures sliders: samples what a plan asks for, and keeps what scores are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .instruments import Instruments
from .measurements import Measured
from .sweep import Sweep
from .sweep_plan import PlannedImage, SweepPlan
from .sweep_sampling import ReportImages, Source, sample_sweep


def measure(source: Source, plan: SweepPlan, instruments: Instruments, report: ReportImages) -> Measured:
    """Sample the images of a plan and measure them; see `sample_sweep`, also for what it raises."""
    run = _Run(instruments)
    return run.result(sample_sweep(source, plan, report, run.add))


class _Run:
    """Collects what is measured, batch by batch."""

    def __init__(self, instruments: Instruments):
        self.instruments = instruments
        self._originals: dict[PlannedImage, Tensor] = {}  # of the present prompt
        self._embeddings: dict[str, list[Tensor]] = {name: [] for name in instruments.encoders}
        self._lpips: list[Tensor] = []
        self._readings: dict[str, list[Tensor]] = {}

    def add(self, batch: Sequence[PlannedImage], images: Tensor) -> None:
        """Measure a batch, (n, H, W, 3) in 0..1; if that fails or is cancelled, nothing of it is kept."""
        embeddings = {name: embed(images) for name, embed in self.instruments.encoders.items()}
        readings = {} if self.instruments.probe is None else self.instruments.probe(images)
        distances = None if self.instruments.lpips is None else self._distances(batch, images)
        for name, values in embeddings.items():
            self._embeddings[name].append(values.float().cpu())
        for name, values in readings.items():
            self._readings.setdefault(name, []).append(values.float().cpu())
        if distances is not None:
            self._lpips.append(distances)

    def result(self, sweep: Sweep) -> Measured:
        return Measured(
            **vars(sweep),
            embeddings={name: torch.cat(parts) for name, parts in self._embeddings.items()},
            lpips=torch.cat(self._lpips) if self._lpips else None,
            readings={name: torch.cat(parts) for name, parts in self._readings.items()},
        )

    def _distances(self, batch: Sequence[PlannedImage], images: Tensor) -> Tensor:
        """LPIPS of each image to its original, (n,)."""
        assert self.instruments.lpips is not None
        kept = {planned: image for planned, image in self._originals.items() if planned.prompt == batch[0].prompt}
        kept |= {planned: image for planned, image in zip(batch, images) if planned.slider is None}
        self._originals = kept
        return self.instruments.lpips(images, torch.stack([kept[planned.original] for planned in batch]))
