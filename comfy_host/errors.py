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

# Torch has no class for running out of CPU memory, and ComfyUI recognises that of a device alone
_ON_THE_CPU = "DefaultCPUAllocator"


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error says that there is no memory left, on a device or on the CPU."""
    return comfy.model_management.is_oom(error) or (isinstance(error, RuntimeError) and _ON_THE_CPU in str(error))


def stop_if_cancelled() -> None:
    """Raise InterruptProcessingException if ComfyUI's cancel button was pressed."""
    comfy.model_management.throw_exception_if_processing_interrupted()


# What previews and the checks of an early stop may raise without ending a run: a VAE, CLIP vision or a previewer may
# not be made for the images that it is given. Memory that runs out is a RuntimeError on a device, and a MemoryError
# elsewhere. ComfyUI's cancel and `ModelLost` are not among them.
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
    """Return the class and the text of an error: that of a KeyError alone would be a name and no more."""
    return f"{type(error).__name__}: {error}"
