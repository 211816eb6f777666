"""How an inversion goes, told as it goes, now and then with the pictures it is heading for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from ..comfy_host.borrow import Loan
from ..comfy_host.errors import FAILURES, described
from ..comfy_host.preview_budget import Looks

SHOWN = 3  # pictures of a preview, at most


@dataclass(frozen=True)
class Told:
    """How a run goes: `done` of `of` parts of it; `text` says of what. preview: (rows, C, ...) clean latents as
    the model foresees them on the way to the reconstruction, or None."""

    done: int
    of: int
    text: str
    preview: Tensor | None = None


Tell = Callable[[Told], None]


class Teller:
    """Tells it. A preview is made while the model is the host's again, which may need its room for a VAE.

    Previews come as often as there is time for them. One that fails, for want of memory say, is the last.
    """

    def __init__(self, tell: Tell, loan: Loan):
        self._tell, self._loan = tell, loan
        self._looks, self._failed = Looks(), False

    def __call__(self, told: Told) -> None:
        if told.preview is None or self._failed or not self._looks.has_time():
            self._tell(replace(told, preview=None))
            return
        shown = told.preview[:SHOWN].clone()
        with self._looks.timed(), self._loan.returned():
            try:
                self._tell(replace(told, preview=shown))
            except FAILURES as error:
                self._failed = True
                logging.warning("Inversion goes on without previews, as one failed: %s", described(error))
