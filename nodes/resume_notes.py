"""Notes about cancelled runs, by which the same graph, queued again, resumes them.

ComfyUI keeps what a node has put out, and does not run it again while its inputs and its fingerprint are the same.
A run that is cancelled puts out the slider, or the inversion, so far, and writes a note to disk. The note changes the
node's fingerprint: the node runs again, and resumes from its checkpoint, or from what is kept of the inversion. The
note stays when that run is finished, and with it the fingerprint.
"""

from __future__ import annotations

import logging
import time
from glob import escape
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..sliders.formats.atomic_write import written_atomically
from ..training.resume import plain_name

log = logging.getLogger(__name__)


def checkpoint_folder() -> Path:
    """Return the folder of checkpoints and notes, in ComfyUI's output folder."""
    return Path(folder_paths.get_output_directory()) / "slider_checkpoints"


def node_id_of(node: type[io.ComfyNode]) -> str | None:
    """Return the id of the node that runs; None outside a graph."""
    return node.hidden.unique_id if node.hidden else None


def note_stopped(name: str, node_id: str | None, done: int, steps: int) -> str:
    """Write the note that a run of this node ended after `done` of `steps` steps.

    name: the slider's, or what the notes of this kind of run are called.
    node_id: None, outside a graph, writes nothing.
    Returns what the user should know, which is logged too: "", or why the note cannot be written. What the run has
    made is not lost for it.
    """
    if node_id is None:
        return ""
    note = checkpoint_folder() / f"{plain_name(name)}{_of_node(node_id)}"
    try:
        with written_atomically(note) as partial:
            partial.write_text(f"stopped after step {done} of {steps}, {time.time_ns()}", encoding="utf-8")
    except OSError as error:
        problem = f"That the run was stopped cannot be noted, so the same graph will not resume it: {error}"
        log.warning(problem)
        return problem
    return ""


def fingerprint(name: str | None, node_id: str | None) -> str:
    """A text that changes with every run of this node that is cancelled.

    name: as `note_stopped` was given it; None, where it is not known beforehand, takes every name.
    """
    wanted = "*" if name is None else escape(plain_name(name))
    notes = sorted(checkpoint_folder().glob(f"{wanted}{escape(_of_node(node_id))}"))
    return "; ".join(note.read_text(encoding="utf-8") for note in notes)


def _of_node(node_id: str | None) -> str:
    return f" (node {plain_name(str(node_id))}).stopped"
