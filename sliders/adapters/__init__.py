"""The kinds of adapters that a slider's layer can be: LoRA and DoRA, LoHa, LoKr, OFT and BOFT, GLoRA, differences.

The contract is `kind.AdapterKind`; a module a kind. To add one, write its module and list it in `KINDS`.
"""

from __future__ import annotations

from .difference import Bias, Difference, Norm
from .glora import GLoRA
from .kind import MAGNITUDES, AdapterKind, Parts
from .loha import LoHa
from .lokr import LoKr
from .lora import LoRA
from .oft import OFT

KINDS: tuple[AdapterKind, ...] = (LoRA(), LoHa(), LoKr(), OFT(), GLoRA(), Difference(), Norm(), Bias())
PARTS = frozenset(part for kind in KINDS for part in kind.known_parts)


def kind_of_parts(parts: Parts) -> AdapterKind | None:
    """Return the kind of adapter that a layer's parts make, or None if they make none."""
    return next((kind for kind in KINDS if any(part in parts for part in kind.own_parts)), None)


def described(parts: Parts) -> str:
    """Return what a layer with these parts is called: "LoRA", "DoRA", "LoHa with DoRA", "BOFT", "difference", ..."""
    kind = kind_of_parts(parts)
    if kind is None:
        return "unknown"
    if any(part in parts for part in MAGNITUDES):
        return "DoRA" if isinstance(kind, LoRA) else f"{kind.name} with DoRA"
    return kind.described(parts)
