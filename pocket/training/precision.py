"""The precision that training multiplies in."""

import torch


def bfloat16_is_fast(device: str) -> bool:
    """On a GPU ("cuda"), and on CPUs with AVX-512; on others it is ten times slower than single precision."""
    return device == "cuda" or "AVX512" in torch.backends.cpu.get_cpu_capability()


def bfloat16() -> torch.autocast:
    """Matrix products and convolutions in bfloat16, where it is fast."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.autocast(device, torch.bfloat16, enabled=bfloat16_is_fast(device))
