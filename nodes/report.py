"""What a node tells the user once it has run: facts and warnings, drawn on the node by the pack's extension.

ComfyUI's own `PreviewText` is drawn on the stock node Preview Any alone. A report therefore goes out under a key of
the pack's own, and `web/report.js` draws it on any node of the pack. The key's value is a list of lines; where
a node runs several times for one prompt, ComfyUI joins the lists.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from comfy_api.latest import io

KEY = "concept_sliders_report"  # in the `ui` output, in the `executed` event and in /history
PROGRESS = "concept_sliders.progress"  # the message by which a node that works tells how far it is
LATE_WARNING = "concept_sliders.warning"  # and one that warns of what comes out after its report, in sampling
FACT, WARNING = "fact", "warning"

# Of the schema of every node that reports: runs that take the node from the cache send its report again.
REPORTS: dict[str, Any] = {  # older ComfyUI lacks it
    each.name: True for each in fields(io.Schema) if each.name == "has_intermediate_output"
}


@dataclass(frozen=True)
class Report:
    """Lines for the user, in order, each a fact or a warning: `Report().fact("12 layers").warn("left out: a")`.

    lines: (FACT or WARNING, text). A text may have several lines of its own.
    """

    lines: tuple[tuple[str, str], ...] = ()

    def fact(self, *texts: str) -> Report:
        """Return the report with these texts added as facts; empty ones are left out."""
        return self._with(FACT, texts)

    def warn(self, *texts: str) -> Report:
        """Return the report with these texts added as warnings: what did not act, was left out, or was guessed."""
        return self._with(WARNING, texts)

    def __add__(self, other: Report) -> Report:
        return Report(self.lines + other.lines)

    @property
    def text(self) -> str:
        """All lines as plain text."""
        return "\n".join(text for _, text in self.lines)

    def on_node(self, *beside: Any) -> dict[str, list[Any]]:
        """Return what a node hands ComfyUI as `ui`. beside: what else it shows, such as PreviewImages."""
        shown: dict[str, list[Any]] = {}
        for each in beside:
            for key, values in each.as_dict().items():
                shown.setdefault(key, []).extend(values)
        return {**shown, KEY: [{"kind": kind, "text": text} for kind, text in self.lines]}

    def _with(self, kind: str, texts: Iterable[str]) -> Report:
        return Report((*self.lines, *((kind, text) for text in texts if text)))
