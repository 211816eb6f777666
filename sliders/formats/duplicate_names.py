"""Names that a slider file gives twice.

Readers of files keep one of several entries of one name, and which one is their own affair: two tools would turn the
same file into two sliders. So a file that has such entries is refused.
"""

from __future__ import annotations

import json
import pickletools
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_LEGACY_PICKLES = 4  # a file of torch.save's old kind: a mark, a version, the machine, and then what was saved
_MARK = object()
_TEXT = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "STRING")
_NUMBERS = ("BININT", "BININT1", "BININT2", "INT", "LONG1")


def repeated_in_header(path: Path) -> str | None:
    """The first name that a safetensors file's header has twice, at any depth; None without one."""
    repeated: list[str] = []

    def noted(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs) and not repeated:
            seen: set[str] = set()
            for name, _ in pairs:
                if name in seen:
                    repeated.append(name)
                    break
                seen.add(name)
        return found

    with path.open("rb") as file:  # the library has checked the length by now
        (length,) = struct.unpack("<Q", file.read(8))
        json.loads(file.read(length), object_pairs_hook=noted)
    return repeated[0] if repeated else None


def repeated_in_pickle(path: Path) -> str | None:
    """The first name that one dictionary of a file of torch.save's has twice; None without one.

    Nothing is unpickled: the file's instructions are read, and only what they do to names is followed.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            inside = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            with archive.open(inside[0]) as file:
                return next(_repeated(file), None)
    with path.open("rb") as file:
        for _ in range(_LEGACY_PICKLES):
            if (name := next(_repeated(file), None)) is not None:
                return name
    return None


class _Made:
    """Stands for whatever is no name. names: what it has been given entries for, if it is a dictionary."""

    def __init__(self) -> None:
        self.names: set[str | int] = set()


def _repeated(file: BinaryIO) -> Iterator[str]:
    """Names given twice, in the order in which a pickle gives them again."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("SETITEM", "SETITEMS"):
            taken = _taken(stack, 2 if opcode.name == "SETITEM" else None)
            for name in taken[::2]:
                if name in stack[-1].names:
                    yield str(name)
                stack[-1].names.add(name)
        elif opcode.name == "BUILD":  # the same object, with attributes
            stack.pop()
        else:
            _follow(opcode, argument, stack, memo)


def _follow(opcode: pickletools.OpcodeInfo, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    """What an instruction does to the stack, by the standard library's own description of it."""
    if opcode.name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
        memo[int(argument)] = stack[-1]
    elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(memo[int(argument)])
    elif opcode.name in _TEXT or opcode.name in _NUMBERS:
        stack.append(argument)
    elif opcode.name == "MARK":
        stack.append(_MARK)
    elif opcode.name == "DUP":
        stack.append(stack[-1])
    else:
        before = opcode.stack_before
        if pickletools.markobject in before:
            _taken(stack)
            before = before[: before.index(pickletools.markobject)]
        _taken(stack, len(before))
        stack.extend(_Made() for _ in opcode.stack_after)


def _taken(stack: list[Any], count: int | None = None) -> list[Any]:
    """So many from the top of the stack, or all down to the last mark, which goes too."""
    if count is None:
        start = len(stack) - stack[::-1].index(_MARK)
        taken = stack[start:]
        del stack[start - 1 :]
        return taken
    taken = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return taken
