"""Workflow files as prompts: order of widgets, links, changes, and what is refused."""

import copy
from pathlib import Path

import pytest
from concept_sliders.devtools.workflow import add, change, named, read_workflow, to_prompt

EXAMPLES = sorted((Path(__file__).parents[3] / "example_workflows").glob("*.json"))
INFO = {
    "Source": {"input": {"required": {}}, "display_name": "A Source"},
    "Sampler": {
        "display_name": "Sampler",
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "seed": ["INT", {"control_after_generate": True}],
                "name": [["euler", "heun"], {}],
                "sigma": ["FLOAT", {"forceInput": True}],
            },
            "optional": {"extra": ["MODEL", {}], "text": ["STRING", {"multiline": True}]},
        },
    },
}
WORKFLOW = {
    "nodes": [
        {"id": 1, "type": "Source", "mode": 0},
        {
            "id": 2,
            "type": "Sampler",
            "title": "The Second",
            "mode": 0,
            "inputs": [
                {"name": "model", "link": 5},
                {"name": "extra", "link": None},
                {"name": "stacks.sliders0", "link": 6},
                {"name": "seed", "link": None, "widget": {"name": "seed"}},
            ],
            "widgets_values": [7, "randomize", "heun", "words"],
        },
        {"id": 3, "type": "MarkdownNote", "widgets_values": ["to whom it may concern"]},
    ],
    "links": [[5, 1, 0, 2, 0, "MODEL"], [6, 1, 2, 2, 2, "SLIDERS"]],
}


def workflow(**changes):
    changed = copy.deepcopy(WORKFLOW)
    changed["nodes"][1].update(changes)
    return changed


def test_values_and_links_find_their_inputs():
    prompt = to_prompt(WORKFLOW, INFO)
    assert prompt["2"]["class_type"] == "Sampler"
    assert prompt["2"]["inputs"] == {
        "seed": 7,
        "name": "heun",
        "text": "words",
        "model": ["1", 0],
        "stacks.sliders0": ["1", 2],
    }


def test_notes_are_left_out_and_titles_kept():
    prompt = to_prompt(WORKFLOW, INFO)
    assert {node: entry["_meta"]["title"] for node, entry in prompt.items()} == {"1": "A Source", "2": "The Second"}


def test_a_link_takes_the_place_of_a_widget():
    wired = workflow(inputs=[{"name": "seed", "link": 5, "widget": {"name": "seed"}}])
    assert to_prompt(wired, INFO)["2"]["inputs"]["seed"] == ["1", 0]


def test_widget_values_by_name_are_read_too():
    by_name = workflow(widgets_values={"seed": 3, "name": "euler", "text": "", "unknown": 1})
    inputs = to_prompt(by_name, INFO)["2"]["inputs"]
    assert (inputs["seed"], inputs["name"], inputs["text"]) == (3, "euler", "")
    assert "unknown" not in inputs


def test_overrides_go_by_title_or_class():
    assert to_prompt(WORKFLOW, INFO, {"The Second": {"seed": 9}})["2"]["inputs"]["seed"] == 9
    assert to_prompt(WORKFLOW, INFO, {"Sampler": {"seed": 9}})["2"]["inputs"]["seed"] == 9


def test_a_title_goes_before_a_class():
    prompt = to_prompt(WORKFLOW, INFO)
    other = add(prompt, "Source")
    prompt[other]["_meta"]["title"] = "Sampler"
    assert named(prompt, "Sampler") == [other]


def test_an_added_node_gets_an_id_of_its_own():
    prompt = to_prompt(WORKFLOW, INFO)
    assert add(prompt, "SaveImage", images=["2", 0]) == "3"
    assert prompt["3"]["inputs"] == {"images": ["2", 0]}


def test_an_override_that_no_node_takes_is_refused():
    with pytest.raises(ValueError, match="no node 'KSampler'; it has: A Source, The Second"):
        to_prompt(WORKFLOW, INFO, {"KSampler": {"seed": 1}})
    with pytest.raises(ValueError, match="no input 'seeds'; it has: seed, name"):
        change(to_prompt(WORKFLOW, INFO), "Sampler", seeds=1)


def test_a_node_the_server_does_not_know_is_refused():
    with pytest.raises(ValueError, match="no node 'Sampler'"):
        to_prompt(WORKFLOW, {"Source": INFO["Source"]})


def test_widget_values_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"2 widget values for 4 widgets: seed, control_after_generate, name, text"):
        to_prompt(workflow(widgets_values=[7, "heun"]), INFO)


@pytest.mark.parametrize("mode", [2, 4])
def test_muted_and_bypassed_nodes_are_refused(mode):
    with pytest.raises(ValueError, match=r"The Second.*muted or bypassed"):
        to_prompt(workflow(mode=mode), INFO)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_links_of_an_example_agree_with_its_nodes(path):
    example = read_workflow(path)
    nodes = {node["id"]: node for node in example["nodes"]}
    assert len(nodes) == len(example["nodes"])
    for link, source, output, target, slot, kind in example["links"]:
        assert link in nodes[source]["outputs"][output]["links"]
        assert nodes[target]["inputs"][slot]["link"] == link
        assert nodes[source]["outputs"][output]["type"] == nodes[target]["inputs"][slot]["type"] == kind


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_explains_itself_and_keeps_its_seeds(path):
    nodes = read_workflow(path)["nodes"]
    assert [node["type"] for node in nodes].count("MarkdownNote") == 1
    assert not any("randomize" in node.get("widgets_values", ()) for node in nodes)
