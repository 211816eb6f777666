"""Runs on disk: what tells one from another, and the file that a run can go on from."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..sliders.runtime import acting_on
from . import checkpoint
from .loop import Training

if TYPE_CHECKING:
    from .run import Watch


class Keeper:
    """Keeps a run's state in a file, if it is to. digest: what runs that may continue each other share."""

    def __init__(self, watch: Watch, training: Training, name: str, digest: str):
        self.training, self.every = training, watch.checkpoint_every
        self.file = watch.checkpoints and checkpoint.file_for(watch.checkpoints, name, digest)

    def go_on(self) -> None:
        state, steps = checkpoint.restored(self.file) if self.file else None, self.training.recipe.steps
        if state is not None and len(state["losses"]) > steps:  # of a longer run, which this one leaves alone
            self.file = self.file.with_stem(f"{self.file.stem} {steps} steps")
            state = checkpoint.restored(self.file)
        if state is not None:
            self.training.restore(state)

    def after_step(self) -> None:
        if self.every and self.training.progress.steps % self.every == 0:
            self.keep()

    @contextmanager
    def kept_in_any_case(self) -> Iterator[None]:
        """Whatever ends the block, what was learned by then is kept."""
        try:
            yield
        finally:
            if self.training.progress.steps:
                self.keep()

    def keep(self) -> None:
        """A file that cannot be written is no reason to end a run."""
        if not self.file:
            return
        try:
            checkpoint.store(self.file, self.training.state())
        except OSError as error:
            logging.warning("Training goes on, but its checkpoint %s cannot be written: %s", self.file, error)


def acting_in(patcher: ModelPatcher) -> list[str]:
    """What acts on the model beside its weights, to tell runs apart: sliders applied to it, and patches."""
    acting = acting_on(patcher)
    sliders = [(p.slider.fingerprint, p.strength, p.gates, p.branch) for p in acting.stack] if acting else []
    patches = [(key, [(patch[0], patch[2]) for patch in given]) for key, given in sorted(patcher.patches.items())]
    return [repr(each) for each in (*sliders, *patches)]


def parts_of(conditioning: list) -> list[Tensor]:
    """All tensors of a CONDITIONING, the encodings and what stands beside them."""
    options = [option for _, own in conditioning for _, option in sorted(own.items())]
    return [part for part in (*(encoding for encoding, _ in conditioning), *options) if isinstance(part, Tensor)]


def digest_of(*values: object) -> str:
    """A short hash of tensors and of whatever prints the same when it is the same."""
    digest = hashlib.sha256()
    for value in values:
        text = value.detach().float().cpu().numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode()
        digest.update(text)
    return digest.hexdigest()[:16]
