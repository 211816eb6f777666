"""The front end's workflow files as prompts that the server runs, with some of their values changed.

A workflow file holds nodes with positions, links between them, and each node's widget values as a bare list.
A prompt holds, for each node, its class and its inputs by name: a value, or [node id, output] for a link.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Prompt = dict[str, dict[str, Any]]
Overrides = Mapping[str, Mapping[str, Any]]

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
NOTES = ("Note", "MarkdownNote")  # known to the front end alone
MUTED, BYPASSED = 2, 4  # the modes of a node that does not run as it stands


def read_workflow(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def to_prompt(
    workflow: Mapping[str, Any], object_info: Mapping[str, Any], overrides: Overrides | None = None
) -> Prompt:
    """A workflow of the front end as a prompt.

    object_info: the server's description of its nodes.
    overrides: input values by node title or class, such as {"KSampler": {"seed": 7}}.
    Raises ValueError for a node that the server does not know, a node that is muted, bypassed or a subgraph,
    widget values that do not fit the node's inputs, and an override that no node takes.
    """
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}  # [id, from, output, to, ...]
    prompt = {
        str(node["id"]): _entry(node, links, object_info) for node in workflow["nodes"] if node["type"] not in NOTES
    }
    for name, values in (overrides or {}).items():
        change(prompt, name, **values)
    return prompt


def named(prompt: Prompt, name: str) -> list[str]:
    """Return the ids of the nodes with that title, or else of that class. Raises ValueError if there is none."""
    for key in (lambda entry: entry["_meta"]["title"], lambda entry: entry["class_type"]):
        if ids := [node for node, entry in prompt.items() if key(entry) == name]:
            return ids
    titles = ", ".join(entry["_meta"]["title"] for entry in prompt.values())
    raise ValueError(f"The workflow has no node {name!r}; it has: {titles}.")


def change(prompt: Prompt, node: str, /, **values: Any) -> None:
    """Set inputs of every node of that title or class, in place. Raises ValueError for an unknown input."""
    for number in named(prompt, node):
        inputs = prompt[number]["inputs"]
        if unknown := values.keys() - inputs.keys():
            raise ValueError(f"{node} has no input {min(unknown)!r}; it has: {', '.join(inputs)}.")
        inputs.update(values)


def add(prompt: Prompt, class_type: str, /, **inputs: Any) -> str:
    """Add a node, in place; its id."""
    node = str(max((int(number) for number in prompt), default=0) + 1)
    prompt[node] = {"class_type": class_type, "inputs": inputs, "_meta": {"title": class_type}}
    return node


def _entry(node: Mapping[str, Any], links: Mapping[int, list], object_info: Mapping[str, Any]) -> dict[str, Any]:
    kind = node["type"]
    title = node.get("title")
    if node.get("mode", 0) in (MUTED, BYPASSED):
        raise ValueError(f"Node {node['id']} ({title or kind}) is muted or bypassed; such workflows are not read.")
    if kind not in object_info:
        raise ValueError(f"The server has no node {kind!r}.")
    linked = {slot["name"]: links[slot["link"]] for slot in node.get("inputs", ()) if slot.get("link") is not None}
    info = object_info[kind]
    return {
        "class_type": kind,
        "inputs": {**_widget_values(node, info), **linked},
        "_meta": {"title": title or info.get("display_name") or kind},
    }


def _widget_values(node: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    names = _widget_names(info)
    values = node.get("widgets_values") or []
    if isinstance(values, Mapping):
        return {name: values[name] for name in names if name is not None and name in values}
    if len(values) != len(names):
        raise ValueError(
            f"Node {node['id']} ({node['type']}) has {len(values)} widget values "
            f"for {len(names)} widgets: {', '.join(name or 'control_after_generate' for name in names)}."
        )
    return {name: value for name, value in zip(names, values) if name is not None}


def _widget_names(info: Mapping[str, Any]) -> list[str | None]:
    """Return the inputs that have widgets, in the order of their values; None for a seed's companion widget."""
    names: list[str | None] = []
    for part in ("required", "optional"):
        for name, (kind, *more) in info["input"].get(part, {}).items():
            options = more[0] if more else {}
            if options.get("forceInput") or not (isinstance(kind, list) or kind in WIDGETS):
                continue
            names.append(name)
            if options.get("control_after_generate"):
                names.append(None)
    return names
