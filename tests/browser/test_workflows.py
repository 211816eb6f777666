"""The example workflows as the front end opens them."""

from pathlib import Path

import pytest
from concept_sliders.devtools.workflow import read_workflow, to_prompt

EXAMPLES = sorted((Path(__file__).parents[2] / "example_workflows").glob("*.json"))
OPEN = """async (graph) => {
    const loaded = () => app.graph.nodes.length === graph.nodes.length;
    for (let tries = 0; tries < 20; tries++) {  // the first workflow of the session may come in between
        await app.loadGraphData(structuredClone(graph));
        if (loaded()) break;
        await new Promise((resolve) => setTimeout(resolve, 500));
    }
    return {
        loaded: loaded(),
        missing: app.graph.nodes.map((node) => node.type).filter((type) => !LiteGraph.registered_node_types[type]),
        widgets: Object.fromEntries(app.graph.nodes.map((node) => [node.id, node.widgets?.length ?? 0])),
        prompt: (await app.graphToPrompt()).output,
    };
}"""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_opens_whole_and_means_the_same_prompt(page, server, path):
    graph = read_workflow(path)
    opened = page.evaluate(OPEN, graph)
    assert opened["loaded"] and opened["missing"] == []
    stored = {str(node["id"]): len(node.get("widgets_values") or ()) for node in graph["nodes"]}
    assert opened["widgets"] == stored
    assert opened["prompt"] == to_prompt(graph, server.object_info())
