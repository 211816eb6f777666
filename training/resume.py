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

if TYPE_CHECKING:
    from .loop import Training

log = logging.getLogger(__name__)

_VERSION = 4
_LONGEST = 150  # bytes of a name: with what is added to it, less than the 255 that file systems take


class RunCheckpoint:
    """The file that a run is kept in and resumed from.

    folder: where it lies; None keeps nothing. digest: what runs share that may go on from each other; they differ in
    their number of steps alone. every: steps between writings; 0 writes at the end alone.
    """

    def __init__(self, training: Training, folder: Path | None, name: str, digest: str, every: int):
        self.training, self.name, self.digest, self.every = training, name, digest, every
        self.file = folder and file_for(folder, name, digest)

    def resume(self) -> None:
        """Restore what is kept of the run, and log it; or log why nothing is, where the user might expect it."""
        if not self.file:
            return
        state, steps, longer = read_state(self.file), self.training.recipe.steps, ""
        if state is not None and len(state["losses"]) > steps:  # of a longer run, which this one leaves alone
            longer = f"what {self.file} keeps is of {len(state['losses'])} steps"
            self.file = self.file.with_stem(f"{self.file.stem} {steps} steps")
            state = read_state(self.file)
        if state is not None:
            self.training.restore(state)
            done = len(state["losses"])
            self.training.progress.resumed_from = done
            log.info("Training '%s' goes on from step %d of %d, kept in %s", self.name, done, steps, self.file)
        elif longer or is_another_kept(self.file.parent, self.name, self.digest):
            why = longer or (
                f"of what {self.file.parent} keeps by that name, something that decides the steps was another "
                "(a setting, a prompt, an image, the model or what is patched into it)"
            )
            self.training.progress.note(f"Training begins anew: {why}")
            log.info("Training '%s' begins anew: %s", self.name, why)

    def after_step(self) -> None:
        """Write the state if it is due."""
        if self.every and self.training.progress.steps % self.every == 0:
            self.write()

    @contextmanager
    def written_at_the_end(self) -> Iterator[None]:
        """Write the state when the block ends, whatever ends it."""
        try:
            yield
        finally:
            if self.training.progress.steps:
                self.write()

    def write(self) -> None:
        """Write the state. A file that cannot be written is logged; it does not end the run."""
        if not self.file:
            return
        try:
            write_state(self.file, self.training.state())
        except OSError as error:
            problem = f"Training goes on, but its checkpoint {self.file} cannot be written: {error}"
            self.training.progress.note(problem)
            log.warning(problem)


def file_for(folder: Path, name: str, digest: str) -> Path:
    """Return the path for a run; the digest tells apart runs whose names are cut to the same one."""
    return folder / f"{plain_name(name)} {digest}.pt"


def plain_name(name: str) -> str:
    """Return the name as a file may have it: letters that are not allowed replaced, and cut if it is too long."""
    plain = "".join(letter if letter.isalnum() or letter in " -_" else "_" for letter in name)
    return plain.encode()[:_LONGEST].decode(errors="ignore")


def is_another_kept(folder: Path, name: str, digest: str) -> bool:
    """Returns True if a run with this name and another digest is kept in the folder."""
    others = re.compile(rf"{re.escape(plain_name(name))} (?!{digest})[0-9a-f]{{{len(digest)}}}( \d+ steps)?")
    return any(others.fullmatch(file.stem) for file in folder.glob("*.pt"))


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state, whole or not at all. Raises OSError if it cannot be written."""
    with written_atomically(path) as partial:
        try:
            torch.save({"version": _VERSION, "state": state}, partial)
        except RuntimeError as error:  # torch's own writer has no other class for a disk that is full
            raise OSError(f"not all of it could be written, as on a full disk: {error}") from error


def read_state(path: Path) -> dict[str, Any] | None:
    """Read the state from a file; None if there is no file.

    No code in the file is run. Raises ValueError naming the file if it is damaged.
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
