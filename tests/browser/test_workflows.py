"""The example workflows as the front end opens them."""

from pathlib import Path

import pytest
from concept_sliders.devtools.workflow import read_workflow, to_prompt
from concept_sliders.tests.browser.reading import OPEN

EXAMPLES = sorted((Path(__file__).parents[2] / "example_workflows").glob("*.json"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_opens_whole_and_means_the_same_prompt(page, server, path):
    graph = read_workflow(path)
    opened = page.evaluate(OPEN, graph)
    assert opened["loaded"] and opened["missing"] == []
    stored = {str(node["id"]): len(node.get("widgets_values") or ()) for node in graph["nodes"]}
    assert opened["widgets"] == stored
    assert opened["prompt"] == to_prompt(graph, server.object_info())
