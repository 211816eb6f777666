"""What an inversion reports while it runs, with previews as often as there is time for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from ..comfy_host.borrow import Loan
from ..comfy_host.errors import RECOVERABLE_ERRORS, describe_error
from ..comfy_host.preview_budget import PreviewBudget

PREVIEWED = 3  # images of a preview, at most


@dataclass(frozen=True)
class InversionProgress:
    """Tells how far a run is: `done` of `of` parts of it, and in `text` which step of what that is.

    preview: clean latents (n, C, ...) that the model predicts on the way to the reconstruction, or None.
    """

    done: int
    of: int
    text: str
    preview: Tensor | None = None


ReportProgress = Callable[[InversionProgress], None]


class Reporter:
    """Reports progress, with previews as often as there is time for them.

    During a preview the model is given back to ComfyUI, which may need its memory for a VAE. A preview that fails,
    for want of memory say, is the last. note: is told so.
    """

    def __init__(self, report: ReportProgress, loan: Loan, note: Callable[[str], None]) -> None:
        self._report, self._loan, self._note = report, loan, note
        self._looks, self._failed = PreviewBudget(), False

    def __call__(self, progress: InversionProgress) -> None:
        if progress.preview is None or self._failed or not self._looks.has_time():
            self._report(replace(progress, preview=None))
            return
        preview = progress.preview[:PREVIEWED].clone()
        with self._looks.timed(), self._loan.returned():
            try:
                self._report(replace(progress, preview=preview))
            except RECOVERABLE_ERRORS as error:
                self._failed = True
                self._note(f"going on without previews, as one failed: {describe_error(error)}")
