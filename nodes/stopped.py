"""Notes about runs that were stopped, so that the same graph, queued again, goes on with them.

ComfyUI keeps what a node has put out, and does not run it again while its inputs and its fingerprint are the same.
A run that was stopped puts out the slider, or the inversion, so far. It leaves a note on disk, by which the node's
fingerprint changes: the node runs again, and goes on from its checkpoint, or from what is kept of it. The note stays
when that run is finished, and with it the fingerprint.
"""

import logging
import time
from glob import escape
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..sliders.formats.atomic_write import written_whole
from ..training.checkpoint import plain_name


def checkpoint_folder() -> Path:
    return Path(folder_paths.get_output_directory()) / "slider_checkpoints"


def node_id_of(node: type[io.ComfyNode]) -> str | None:
    """Outside the graph there is none."""
    return node.hidden.unique_id if node.hidden else None


def note_stopped(name: str, node_id: str | None, done: int, steps: int) -> None:
    """A run of this node ended before its last step. Outside a graph, without an id, nothing is noted.

    A note that cannot be written is no reason to lose what the run has made.
    """
    if node_id is None:
        return
    note = checkpoint_folder() / f"{plain_name(name)}{_of_node(node_id)}"
    try:
        with written_whole(note) as partial:
            partial.write_text(f"stopped after step {done} of {steps}, {time.time_ns()}", encoding="utf-8")
    except OSError as error:
        logging.warning("That a run was stopped cannot be noted, so the same graph will not go on with it: %s", error)


def fingerprint(name: str | None, node_id: str | None) -> str:
    """Changes with every run of this node that is stopped. name: the slider's, None for one that is wired in."""
    wanted = "*" if name is None else escape(plain_name(name))
    notes = sorted(checkpoint_folder().glob(f"{wanted}{escape(_of_node(node_id))}"))
    return "; ".join(note.read_text(encoding="utf-8") for note in notes)


def _of_node(node_id: str | None) -> str:
    return f" (node {plain_name(str(node_id))}).stopped"
