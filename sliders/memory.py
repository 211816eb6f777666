"""Telling memory that ran out from other errors."""

import comfy.model_management

# Torch has no class of its own for it, and the host looks for a device's alone
_ON_THE_CPU = "DefaultCPUAllocator"


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, on a device or on the CPU."""
    return comfy.model_management.is_oom(error) or (isinstance(error, RuntimeError) and _ON_THE_CPU in str(error))
