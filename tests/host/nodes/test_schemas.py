"""The nodes' ids, inputs and outputs against the committed `schemas.json`: saved workflows depend on them.

A change that is meant is written with `UPDATE_SCHEMAS=1 python3 dev.py test host -- -k test_schemas`.
"""

import json
import os
from pathlib import Path

import pytest
from concept_sliders.nodes import NODES

FILE = Path(__file__).with_name("schemas.json")


def described(node):
    """What a saved workflow depends on: inputs in order, with the types of their values, and outputs in order."""
    schema = node.define_schema()
    return {
        "display_name": schema.display_name,
        "category": schema.category,
        "inputs": [
            f"{each.id}: {each.io_type}{' (optional)' if each.optional else ''}"
            + (f" = {each.default!r}" if getattr(each, "default", None) is not None else "")
            for each in schema.inputs
        ],
        "outputs": [f"{each.display_name or each.io_type}: {each.io_type}" for each in schema.outputs],
    }


def test_the_nodes_are_those_of_the_snapshot():
    found = {node.define_schema().node_id: described(node) for node in NODES}
    if os.environ.get("UPDATE_SCHEMAS"):
        FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    assert found == json.loads(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_every_input_of_a_schema_is_an_argument_of_its_execute(node):
    """By name, or among `**settings`; an Autogrow input is one argument."""
    code = node.execute.__func__.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    takes_more = bool(code.co_flags & 0x08)
    assert takes_more or {each.id for each in node.define_schema().inputs} <= set(names)
