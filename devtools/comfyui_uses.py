"""Finds what the pack calls on ComfyUI, by the syntax trees of its modules.

Names that are imported are followed, and so are values whose type is told: by an annotation, or by `TYPES`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .architecture import COMFYUI, ROOMS, ROOT

BESIDE = ("comfy_kitchen", "comfy_aimdo")  # packages that ComfyUI requires: with versions of their own

PATCHER, MODEL = "comfy.model_patcher.ModelPatcher", "comfy.model_base.BaseModel"
TYPES = {  # what ComfyUI's untyped attributes and functions give
    f"{PATCHER}.clone": PATCHER,
    f"{PATCHER}.model": MODEL,
    "comfy_api.latest.io.Autogrow.Type": "",  # of a dict
    "comfy.sd.CLIP.clone": "comfy.sd.CLIP",
    "comfy.sd.CLIP.patcher": PATCHER,
    "comfy.sd.VAE.patcher": PATCHER,
    "comfy.samplers.CFGGuider.model_patcher": PATCHER,
    "comfy.clip_vision.ClipVisionModel.patcher": PATCHER,
}
BY_NAME = "model_classes"  # the pack's function that looks classes up by name


@dataclass(frozen=True)
class Call:
    """How something is called. `spread`: there may be more arguments than those that are counted and named."""

    positional: int
    keywords: tuple[str, ...]
    spread: bool = False


@dataclass
class Use:
    """A dotted name of ComfyUI, the module that it stands in, and how the pack calls it."""

    name: str
    module: str = ""
    calls: set[Call] = field(default_factory=set)
    by_name: bool = True  # only ever looked up by name: it may be missing


def uses(root: Path = ROOT) -> dict[str, Use]:
    """Return all that the rooms of the pack use of ComfyUI, by dotted name."""
    files = (path for room in ROOMS if room != "devtools" for path in sorted((root / room).rglob("*.py")))
    named, modules = read(path.read_text(encoding="utf-8") for path in (root / "__init__.py", *files))
    found: dict[str, Use] = {}
    for name, call, by_name in named:
        use = found.setdefault(name, Use(name))
        use.calls |= {call} if call else set()
        use.by_name &= by_name
    # Not a package for the sake of a module in it, nor a module for the sake of its names
    packages = {name for name in found if any(module.startswith(f"{name}.") for module in modules)}
    found = {name: use for name, use in found.items() if name not in packages}
    for name, use in found.items():
        use.module = max((module for module in modules if f"{name}.".startswith(f"{module}.")), key=len)
    needed = {use.module for name, use in found.items() if name != use.module}
    kept = sorted(name for name in found if name not in needed and not name.startswith(BESIDE))
    return {name: found[name] for name in kept}


def read(sources: Iterable[str]) -> tuple[list[tuple[str, Call | None, bool]], set[str]]:
    """Return what source texts use of ComfyUI, and its modules that they import.

    The first is a list of (name, how it is called or None, True if it is looked up by name).
    """
    reader = _Reader()
    for source in sources:
        reader.names = {}
        reader.visit(ast.parse(source))
    return reader.found, reader.modules


class _Reader(ast.NodeVisitor):
    """Walks modules. `names`: what the local names of one stand for, a module, a class or a value of a class."""

    def __init__(self) -> None:
        self.found: list[tuple[str, Call | None, bool]] = []  # a name, how it is called, True if looked up by name
        self.modules: set[str] = set()  # of ComfyUI, as they are imported
        self.names: dict[str, str] = {}
        self.own: set[str] = set()  # attributes of `self` that the class around defines itself

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            top = alias.name.split(".")[0]
            if top in COMFYUI:
                self.names[alias.asname or top] = alias.name if alias.asname else top
                self.modules.add(alias.name)
                self.found.append((alias.name, None, False))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level or (node.module or "").split(".")[0] not in COMFYUI:
            return
        self.modules.add(node.module or "")
        for alias in node.names:
            self.names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            self.found.append((f"{node.module}.{alias.name}", None, False))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        around, self.own = (dict(self.names), self.own), set()
        for part in ast.walk(node):
            if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
                self.own.add(part.name)
            elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                self.own.add(part.target.id)
            elif isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store) and _is_self(part.value):
                self.own.add(part.attr)
        for part in node.body:
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                self._bind(f"self.{part.target.id}", self._annotated(part.annotation))
        if base := next(filter(None, map(self._name, node.bases)), None):
            self.names["self"] = self.names["super()"] = base
        self.generic_visit(node)
        self.names, self.own = around

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        around = dict(self.names)
        arguments = node.args
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            if argument.arg != "self":
                self._bind(argument.arg, self._annotated(argument.annotation))
        self.generic_visit(node)
        kept = {name: kind for name, kind in self.names.items() if name.startswith("self.")}
        self.names = around | kept

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            if isinstance(target, ast.Name):
                self._bind(target.id, self._value(node.value))
            elif isinstance(target, ast.Attribute) and _is_self(target.value):
                self._bind(f"self.{target.attr}", self._value(node.value))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if name := self._name(node):
            self.found.append((name, None, False))
        self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        if name := self._name(node.func):
            counted = [argument for argument in node.args if not isinstance(argument, ast.Starred)]
            named = tuple(sorted(keyword.arg for keyword in node.keywords if keyword.arg))
            spread = len(counted) + len(named) < len(node.args) + len(node.keywords)
            self.found.append((name, Call(len(counted), named, spread), False))
        self.found += [(name, None, True) for name in self._looked_up(node)]
        self.generic_visit(node)

    def _looked_up(self, node: ast.Call) -> list[str]:
        """Return the names that a call looks up and that may be missing."""
        texts = [part.value for part in node.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        called = node.func.id if isinstance(node.func, ast.Name) else ""
        if called == BY_NAME:
            return [f"comfy.model_base.{text}" for text in texts]
        if called in ("getattr", "hasattr") and texts and (of := self._value(node.args[0])):
            return [f"{of}.{texts[0]}"]
        return []

    def _bind(self, local: str, name: str | None) -> None:
        if name:
            self.names[local] = name
        else:
            self.names.pop(local, None)

    def _name(self, node: ast.AST) -> str | None:
        """Return the name in ComfyUI of what an expression stands for."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if not isinstance(node, ast.Attribute):
            return None
        if _is_self(node.value) and (f"self.{node.attr}" in self.names or node.attr in self.own):
            return self.names.get(f"self.{node.attr}")
        of = self._value(node.value)
        return of and f"{of}.{node.attr}"

    def _value(self, node: ast.AST) -> str | None:
        """Return the module or class that has the attributes of an expression's value."""
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id == "super":
                return self.names.get("super()")
            name = self._name(node.func)
            return TYPES.get(name or "", name if name and _is_class(name) else None)
        name = self._name(node)
        if name is None or name in TYPES:
            return TYPES.get(name or "")
        of, _, last = name.rpartition(".")
        return name if _is_class(last) or not _is_class(of) else None

    def _annotated(self, node: ast.AST | None) -> str | None:
        """Return the class that an annotation names; of `A | None`, A."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        if isinstance(node, ast.BinOp):
            return self._annotated(node.left) or self._annotated(node.right)
        return self._name(node) if isinstance(node, ast.Name | ast.Attribute) else None


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _is_class(name: str) -> bool:
    return name.rpartition(".")[2].lstrip("_")[:1].isupper()
