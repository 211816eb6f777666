"""Runs on disk: what tells one from another, and the file that a run can go on from."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ..sliders.compiled import COMPILED
from ..sliders.matching import KEY
from ..sliders.runtime import acting_on
from . import checkpoint
from .loop import Training

if TYPE_CHECKING:
    from .run import Watch

_PLAIN = (bool, int, float, str, bytes, torch.dtype, torch.device)


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


def acting_in(patcher: ModelPatcher) -> list[Any]:
    """What acts on the model beside its weights, to tell runs apart: sliders, patches, and what nodes have put in."""
    acting = acting_on(patcher)
    sliders = [(p.slider.fingerprint, p.strength, repr(p.gates), p.branch) for p in acting.stack] if acting else []
    patches = {key: [_plain(patch) for patch in given] for key, given in patcher.patches.items()}
    wrappers = {  # the sliders' own are told above; compiled or not, a model trains alike
        (kind, key): given
        for kind, by_key in patcher.wrappers.items()
        for key, given in by_key.items()
        if given and key not in (KEY, COMPILED)
    }
    options = patcher.model_options.get("transformer_options", {})
    return [sliders, patches, patcher.object_patches, options, wrappers]


def _plain(patch: tuple) -> list[Any]:
    """One of the host's patches, with the tensors of an adapter beside its class."""
    return [(type(part), part.weights) if isinstance(part, WeightAdapterBase) else part for part in patch]


def digest_of(*values: Any) -> str:
    """A short hash of plain values and tensors, and of lists and mappings of these.

    Of anything else, such as a function, the name counts: what it prints may be another in the next session.
    """
    digest = hashlib.sha256()
    _tell(digest, values)
    return digest.hexdigest()[:16]


def _tell(digest: Any, value: Any) -> None:
    """Lengths and shapes come before what they are of, so that no two different values read the same."""
    if isinstance(value, Tensor):
        digest.update(f"tensor {tuple(value.shape)};".encode())
        digest.update(value.detach().float().cpu().numpy().tobytes())
    elif isinstance(value, Mapping):
        _tell(digest, [(key, value[key]) for key in sorted(value, key=repr)])
    elif isinstance(value, (list, tuple)):
        digest.update(f"{len(value)} of;".encode())
        for each in value:
            _tell(digest, each)
    elif value is None or isinstance(value, _PLAIN):
        digest.update(f"{value!r};".encode())
    else:
        # a node may have made the class: what sets it apart is what it is derived from
        classes = value.__mro__ if isinstance(value, type) else type(value).__mro__
        names = [getattr(value, "__qualname__", ""), *(each.__qualname__ for each in classes)]
        digest.update(f"{names};".encode())
