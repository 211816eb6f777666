"""The one kind of error that `dev.py` shows to a person, as one line with the way out."""

from __future__ import annotations


class Problem(Exception):
    """Something outside this repository is not as it has to be. The message says what, and what to do."""
