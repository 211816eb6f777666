"""Errors: memory that ran out, a cancel, and what previews and an early stop may fail with."""

from __future__ import annotations

import comfy.model_management
from comfy.model_management import InterruptProcessingException

__all__ = [
    "RECOVERABLE_ERRORS",
    "InterruptProcessingException",
    "describe_error",
    "is_out_of_memory",
    "stop_if_cancelled",
]

# Torch has no class of its own for it, and the host looks for a device's alone
_ON_THE_CPU = "DefaultCPUAllocator"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, on a device or on the CPU."""
    return comfy.model_management.is_oom(error) or (isinstance(error, RuntimeError) and _ON_THE_CPU in str(error))


def stop_if_cancelled() -> None:
    """Raises InterruptProcessingException if ComfyUI's cancel button was pressed."""
    comfy.model_management.throw_exception_if_processing_interrupted()


# Failures of what a run can do without: previews, and the looks of an early stop.
# What a VAE, CLIP vision or a previewer may raise at pictures that it was not made for, or where it was not made
# well. Memory that runs out is a RuntimeError on a device, and a MemoryError elsewhere. Not among them are the
# host's cancel and `ModelLost`, neither of which a run can go on after.
RECOVERABLE_ERRORS = (
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


def describe_error(error: BaseException) -> str:
    """Its kind and what it says: a KeyError alone would say a name and no more."""
    return f"{type(error).__name__}: {error}"
