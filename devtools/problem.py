"""The one kind of error that `dev.py` shows to a person, as one line that says what to do."""

from __future__ import annotations


class Problem(Exception):
    """Something outside this repository is not as it has to be. The message says what, and what to do."""
