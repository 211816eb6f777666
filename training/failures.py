"""Failures of what a run can do without: previews, and the looks of an early stop."""

from __future__ import annotations

# What a VAE, CLIP vision or a previewer may raise at pictures that it was not made for, or where it was not made
# well. Memory that runs out is a RuntimeError on a device, and a MemoryError elsewhere. Not among them are the
# host's cancel and `ModelLost`, neither of which a run can go on after.
FAILURES = (
    RuntimeError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    ImportError,
    NameError,
)


def described(error: BaseException) -> str:
    """Its kind and what it says: a KeyError alone would say a name and no more."""
    return f"{type(error).__name__}: {error}"
