"""How a training run goes, and how it went."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Progress:
    """How a run went.

    losses: one for every step done. stopped: it ended before its last step, other than by the early stop.
    converged: the early stop ended it. failure: what broke it, for the user; empty if nothing did.
    resumed_from: the step that it went on from, kept of an earlier run; 0 if it began anew.
    notes: what else the user should know of the run, such as what it had to do without.
    """

    losses: list[float] = field(default_factory=list)
    stopped: bool = False
    converged: bool = False
    failure: str = ""
    resumed_from: int = 0
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Keep a note for the user, if it is not empty and not kept already."""
        if text and text not in self.notes:
            self.notes.append(text)

    @property
    def steps(self) -> int:
        return len(self.losses)
