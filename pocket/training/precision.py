"""The precision that training multiplies in."""

import torch


def bfloat16() -> torch.autocast:
    """Matrix products and convolutions in bfloat16, but for CPUs without AVX-512: there it is ten times slower."""
    fast = torch.cuda.is_available() or "AVX512" in torch.backends.cpu.get_cpu_capability()
    return torch.autocast("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16, enabled=fast)
