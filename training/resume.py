"""Runs on disk: the file that a run can go on from, written whole or not at all."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..sliders.formats.atomic_write import written_atomically
from .loop import Training

if TYPE_CHECKING:
    from .run import RunOptions

_VERSION = 3
_LONGEST = 150  # bytes of a name: with what is added to it, less than the 255 that file systems take


class RunCheckpoint:
    """Keeps a run's state in a file, if it is to. digest: what runs that may continue each other share."""

    def __init__(self, run_options: RunOptions, training: Training, name: str, digest: str):
        self.training, self.every, self.name, self.digest = training, run_options.checkpoint_every, name, digest
        self.file = run_options.checkpoints and file_for(run_options.checkpoints, name, digest)

    def go_on(self) -> None:
        """From what is kept of the run, and it says so; or why not, where one might have expected it."""
        if not self.file:
            return
        state, steps, longer = restored(self.file), self.training.recipe.steps, ""
        if state is not None and len(state["losses"]) > steps:  # of a longer run, which this one leaves alone
            longer = f"what {self.file} keeps is of {len(state['losses'])} steps"
            self.file = self.file.with_stem(f"{self.file.stem} {steps} steps")
            state = restored(self.file)
        if state is not None:
            self.training.restore(state)
            done = len(state["losses"])
            logging.info("Training '%s' goes on from step %d of %d, kept in %s", self.name, done, steps, self.file)
        elif longer or is_another_kept(self.file.parent, self.name, self.digest):
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
            store(self.file, self.training.state())
        except OSError as error:
            logging.warning("Training goes on, but its checkpoint %s cannot be written: %s", self.file, error)


def file_for(folder: Path, name: str, digest: str) -> Path:
    """Where the run with this name and digest is kept; the digest tells runs apart whose names begin alike."""
    return folder / f"{plain_name(name)} {digest}.pt"


def plain_name(name: str) -> str:
    """The name with what file names may not hold replaced, and cut where it is too long for one."""
    plain = "".join(letter if letter.isalnum() or letter in " -_" else "_" for letter in name)
    return plain.encode()[:_LONGEST].decode(errors="ignore")


def is_another_kept(folder: Path, name: str, digest: str) -> bool:
    """Whether a run with this name and another digest is kept in the folder."""
    others = re.compile(rf"{re.escape(plain_name(name))} (?!{digest})[0-9a-f]{{{len(digest)}}}( \d+ steps)?")
    return any(others.fullmatch(file.stem) for file in folder.glob("*.pt"))


def store(path: Path, state: dict[str, Any]) -> None:
    """Write a training state, whole or not at all. Raises OSError if it cannot be written."""
    with written_atomically(path) as partial:
        try:
            torch.save({"version": _VERSION, "state": state}, partial)
        except RuntimeError as error:  # torch's own writer has no other class for a disk that is full
            raise OSError(f"not all of it could be written, as on a full disk: {error}") from error


def restored(path: Path) -> dict[str, Any] | None:
    """The state in a file, or None where there is no file.

    No code in it is run. Raises ValueError naming the file if it is damaged.
    """
    if not path.exists():
        return None
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"The checkpoint {path} cannot be read ({error}). Delete it to begin anew.") from error
    if not isinstance(kept, dict) or kept.get("version") != _VERSION or "state" not in kept:
        raise ValueError(f"{path} is not a checkpoint of this version. Delete it to begin anew.")
    return kept["state"]
