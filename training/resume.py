"""Runs on disk: the file that a run can go on from."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from . import checkpoint
from .loop import Training

if TYPE_CHECKING:
    from .run import Watch


class Keeper:
    """Keeps a run's state in a file, if it is to. digest: what runs that may continue each other share."""

    def __init__(self, watch: Watch, training: Training, name: str, digest: str):
        self.training, self.every, self.name, self.digest = training, watch.checkpoint_every, name, digest
        self.file = watch.checkpoints and checkpoint.file_for(watch.checkpoints, name, digest)

    def go_on(self) -> None:
        """From what is kept of the run, and it says so; or why not, where one might have expected it."""
        if not self.file:
            return
        state, steps, longer = checkpoint.restored(self.file), self.training.recipe.steps, ""
        if state is not None and len(state["losses"]) > steps:  # of a longer run, which this one leaves alone
            longer = f"what {self.file} keeps is of {len(state['losses'])} steps"
            self.file = self.file.with_stem(f"{self.file.stem} {steps} steps")
            state = checkpoint.restored(self.file)
        if state is not None:
            self.training.restore(state)
            done = len(state["losses"])
            logging.info("Training '%s' goes on from step %d of %d, kept in %s", self.name, done, steps, self.file)
        elif longer or checkpoint.is_another_kept(self.file.parent, self.name, self.digest):
            why = longer or (
                f"of what {self.file.parent} keeps by that name, something that decides the steps was another "
                "(a setting, a prompt, a picture, the model or what is patched into it)"
            )
            logging.info("Training '%s' begins anew: %s", self.name, why)

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
