"""Tells whether a version of ComfyUI has a name, and takes a call of it, by the syntax trees of its source."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .comfyui_uses import Call, Use

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# Members that no source of ComfyUI spells out: of every module and class, and of torch's modules
GIVEN = {
    "__name__",
    "__init__",
    "get_submodule",
    "named_modules",
    "named_parameters",
    "state_dict",
}


@dataclass(frozen=True)
class Found:
    """What a name stands for: a syntax tree, the module it stands in; `node` None for a module or a part of one."""

    module: str
    node: ast.AST | None


class Source:
    """The modules below a folder of ComfyUI."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._tree = functools.cache(self._read_tree)
        self._names = functools.cache(self._read_names)

    def fits(self, use: Use) -> bool:
        """Return True if the name is there, and takes every call that the pack makes of it."""
        found = self.find(use.name)
        return found is not None and all(self.takes(found, call) for call in use.calls)

    def find(self, name: str) -> Found | None:
        """Return what a dotted name stands for, or None."""
        parts = name.split(".")
        for count in range(len(parts), 0, -1):
            module = ".".join(parts[:count])
            if self._tree(module) is not None or self._is_package(module):
                return self._member(Found(module, None), parts[count:])
        return None

    def takes(self, found: Found, call: Call) -> bool:
        """Return True if what was found takes a call, as far as its definition tells."""
        node, bound = found.node, False
        if isinstance(node, ast.ClassDef):
            made = self._in_class(found, "__init__")
            node, bound = (made.node if made else None), True
        if not isinstance(node, FUNCTIONS):
            return True
        arguments = node.args
        names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
        bound |= names[:1] in (["self"], ["cls"])
        names = names[1:] if bound else names
        required = names[: len(names) - len(arguments.defaults)]
        known = {*names, *(argument.arg for argument in arguments.kwonlyargs)}
        if not arguments.kwarg and not known.issuperset(call.keywords):
            return False
        if not arguments.vararg and call.positional > len(names):
            return False
        return call.spread or set(required[call.positional :]) <= set(call.keywords)

    def _member(self, found: Found, parts: list[str]) -> Found | None:
        for part in parts:
            inside = self._in_class(found, part) if found.node else self._in_module(found.module, part)
            if inside is None:
                return None
            found = inside
        return found

    def _in_class(self, found: Found, name: str) -> Found | None:
        if not isinstance(found.node, ast.ClassDef):
            return None
        members = _members(found.node)
        if name in members:
            return Found(found.module, members[name])
        for base in map(_dotted, found.node.bases):
            of = base and self._member_of_module(found.module, base.split("."))
            if of and (inside := self._in_class(of, name)):
                return inside
        return Found(found.module, ast.Pass()) if name in GIVEN else None

    def _member_of_module(self, module: str, parts: list[str]) -> Found | None:
        first = self._in_module(module, parts[0])
        return first and self._member(first, parts[1:])

    def _in_module(self, module: str, name: str) -> Found | None:
        """Return what a name of a module stands for, where need be in the module that it is imported from."""
        if self._tree(f"{module}.{name}") is not None or self._is_package(f"{module}.{name}"):
            return Found(f"{module}.{name}", None)
        node = self._names(module).get(name)
        if isinstance(node, tuple):
            return self.find(node[0]) or (Found(module, ast.Pass()) if not node[1] else None)
        if isinstance(node, ast.Assign) and (alias := _dotted(node.value)):
            return self._member_of_module(module, alias.split(".")) if alias != name else Found(module, node)
        return Found(module, node) if node else (Found(module, ast.Pass()) if name in GIVEN else None)

    def _read_names(self, module: str) -> dict:
        """Return what a module gives names to: syntax trees, and (dotted name, True if of ComfyUI) of imports."""
        names: dict = {}
        tree = self._tree(module)
        for node in _top(tree.body if tree else ()):
            if isinstance(node, ast.ImportFrom):
                of = self._absolute(module, node)
                for alias in node.names:
                    if alias.name == "*":
                        names |= {other: (f"{of}.{other}", True) for other in self._names(of)}
                    else:
                        names[alias.asname or alias.name] = (f"{of}.{alias.name}", self._is_ours(of))
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    whole = alias.name if alias.asname else alias.name.split(".")[0]
                    names[alias.asname or whole] = (whole, self._is_ours(whole))
            else:
                names |= dict.fromkeys(_bound(node), node)
        return names

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = module.split(".") if self._is_package(module) else module.split(".")[:-1]
        above = package[: len(package) - node.level + 1]
        return ".".join((*above, *([node.module] if node.module else ())))

    def _is_ours(self, module: str) -> bool:
        top = module.split(".")[0]
        return self._tree(top) is not None or self._is_package(top)

    def _is_package(self, module: str) -> bool:
        return (self.folder / module.replace(".", "/")).is_dir()

    def _read_tree(self, module: str) -> ast.Module | None:
        path = self.folder / module.replace(".", "/")
        for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
            if file.is_file():
                return ast.parse(file.read_text(encoding="utf-8"))
        return None


def _top(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a block, and of the blocks in it that are no definitions."""
    for node in body:
        yield node
        if not isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            for part in ("body", "orelse", "finalbody", "handlers"):
                inside = getattr(node, part, ())
                yield from _top(inside if part != "handlers" else [s for h in inside for s in h.body])


def _bound(node: ast.stmt) -> list[str]:
    """Return the names that a statement gives."""
    if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [part.id for target in targets if target for part in ast.walk(target) if isinstance(part, ast.Name)]


def _members(node: ast.ClassDef) -> dict[str, ast.AST]:
    """Return what a class has, and what its methods set on `self` or on the class."""
    members: dict[str, ast.AST] = {}
    own = ("self", node.name)
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store) and _dotted(part.value) in own:
            members.setdefault(part.attr, ast.Pass())
    for part in _top(node.body):
        members |= dict.fromkeys(_bound(part), part)
    return members


def _dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (of := _dotted(node.value)):
        return f"{of}.{node.attr}"
    return None
