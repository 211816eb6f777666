"""What nodes report, read from the page: in both node styles, after a reload, and while a training runs."""

import pytest
import torch
from concept_sliders.devtools.host import ROOT
from concept_sliders.devtools.workflow import read_workflow
from concept_sliders.tests.browser.reading import (
    DRAWN,
    FIT,
    OPEN,
    RAN,
    REPORTED,
    SENT,
    show_anew,
    show_style,
    wait_until,
)
from safetensors.torch import load_file, save_file

STYLES = pytest.mark.parametrize("is_vue", [False, True], ids=["classic canvas", "Nodes 2.0"])
KEY, LATE_WARNING = "concept_sliders_report", "concept_sliders.warning"  # as in nodes/report.py
RUN = "() => app.queuePrompt(0)"
MONOSPACE = """() => {
    const tables = [...document.querySelectorAll(".concept-sliders-report pre")];
    return tables.length > 0 && tables.every((pre) => getComputedStyle(pre).fontFamily.includes("monospace"));
}"""
SAYS = f"([id, words]) => ({REPORTED})(id).some((line) => line.text.includes(words))"


@pytest.fixture
def odd_slider(server):
    """The name of a slider of which the pocket model has all layers but one."""
    tensors = load_file(ROOT / "pocket" / "sliders" / "pocket_age.safetensors")
    odd = {"lora_unet_odd.lora_down.weight": torch.ones(2, 3), "lora_unet_odd.lora_up.weight": torch.ones(4, 2)}
    loras = server.base / "models" / "loras"
    loras.mkdir(exist_ok=True)
    save_file({**tensors, **odd}, loras / "odd.safetensors")
    return "odd.safetensors"


def small(name, **values):
    """An example workflow with few images and steps. values: of widgets, by index, for a node by its class."""
    graph = read_workflow(ROOT / "example_workflows" / f"{name}.json")
    few = {"EmptyLatentImage": {2: 1}, "KSampler": {2: 1}, "ConceptSlidersSweepSliders": {0: "0, 1"}, **values}
    for node in graph["nodes"]:
        for index, value in few.get(node["type"], {}).items():
            node["widgets_values"][index] = value
    return graph


def of_class(graph, name):
    return next(node["id"] for node in graph["nodes"] if node["type"] == f"ConceptSliders{name}")


def wait_until_it_says(page, node, words):
    page.evaluate(FIT)  # what is out of sight is not drawn
    page.wait_for_function(SAYS, arg=[node, words])
    return page.evaluate(REPORTED, node)


def run_to_its_end(page):
    """Queue the graph and wait; the id of its prompt, which may stand on a page that has run others before."""
    before = page.evaluate(RAN)
    page.evaluate(RUN)
    wait_until(page, f"async (before) => (await ({RAN})()).some((id) => !before.includes(id))", before)
    (prompt,) = set(page.evaluate(RAN)) - set(before)
    page.wait_for_timeout(500)  # what the server has sent of it is on the page
    return prompt


@STYLES
def test_reports_stand_on_their_nodes_also_after_a_reload(page, odd_slider, is_vue):
    graph = small("use_sliders", ConceptSlidersLoadSlider={0: odd_slider})
    load, apply = of_class(graph, "LoadSlider"), of_class(graph, "ApplySliders")
    show_style(page, is_vue)
    page.evaluate(OPEN, graph)
    page.evaluate(RUN)
    count, missing = wait_until_it_says(page, apply, "not in this model")
    assert count["kind"] == missing["kind"] == "warning" and " of " in count["text"]
    assert missing["text"] == "not in this model: lora_unet_odd"
    facts = wait_until_it_says(page, load, "layers")
    assert any(line["text"].endswith(" of the model, 0 of text encoders") for line in facts)
    assert {line["kind"] for line in facts} == {"fact"}
    looks = [page.locator(f".concept-sliders-report .{kind}").first for kind in ("fact", "warning")]
    fact, warning = (look.evaluate("(line) => getComputedStyle(line).backgroundColor") for look in looks)
    assert fact != warning

    show_anew(page)
    page.evaluate(OPEN, graph)
    assert wait_until_it_says(page, apply, "not in this model") == [count, missing]
    assert wait_until_it_says(page, load, "layers") == facts


@STYLES
def test_the_end_of_a_training_takes_the_place_of_its_progress(page, is_vue):
    # an eta is not searched for, one image of 64 x 64 is trained on: its first steps come at once on any machine
    quick = {"ConceptSlidersSliderConcept": {4: 1.0}, "EmptyLatentImage": {0: 64, 1: 64, 2: 1}}
    training = {"ConceptSlidersTrainSlider": {0: f"cut {is_vue}", 1: 100_000, 9: 2}}
    graph = small("train_a_textual_slider", **quick, **training)
    train, save = of_class(graph, "TrainSlider"), of_class(graph, "SaveSlider")
    show_style(page, is_vue)
    page.evaluate(OPEN, graph)
    page.evaluate(RUN)
    (progress,) = wait_until_it_says(page, train, " left")
    assert progress["kind"] == "progress" and "of 100000, loss " in progress["text"]
    page.evaluate("async () => (await import('/scripts/api.js')).api.interrupt()")
    end, *_ = wait_until_it_says(page, train, "stopped at step ")
    assert end["kind"] == "warning" and " of 100000; loss " in end["text"] and " left" not in end["text"]
    file = f"sliders/cut {is_vue}.safetensors"  # until then the node may say what the same graph's last run saved
    (saved,) = wait_until_it_says(page, save, file)
    assert saved["text"].startswith("stopped at step ") and saved["text"].endswith(f", saved as {file}")


@STYLES
def test_a_table_stands_in_even_columns(page, is_vue):
    graph = small("measure_a_slider", ConceptSlidersMeasureSlider={2: "0", 3: "-1, 1", 6: 1})
    show_style(page, is_vue)
    page.evaluate(OPEN, graph)
    page.evaluate(RUN)
    wait_until_it_says(page, of_class(graph, "MeasureSlider"), "Saved as")
    table = page.locator(".concept-sliders-report pre")
    rows = table.text_content().split("\n")
    assert len(rows) == 4 and len({len(row) for row in rows}) == 1
    page.wait_for_function(MONOSPACE)


@STYLES
def test_what_comes_out_in_sampling_stands_below_the_report_once(page, is_vue):
    """A node that has reported already is warned of, as often as the server says it."""
    graph = read_workflow(ROOT / "example_workflows" / "use_sliders.json")
    apply = of_class(graph, "ApplySliders")
    fact, late = {"kind": "fact", "text": "age: all layers"}, {"kind": "warning", "text": "not merged"}
    show_style(page, is_vue)
    page.evaluate(OPEN, graph)
    page.evaluate(SENT, ["executed", {"node": apply, "output": {KEY: [fact]}}])
    for _ in range(2):
        page.evaluate(SENT, [LATE_WARNING, {"node": apply, "text": late["text"]}])
    assert wait_until_it_says(page, apply, "not merged") == [fact, late]
    page.evaluate(SENT, ["executed", {"node": apply, "output": {KEY: [fact]}}])  # it runs again
    page.wait_for_function(f"([id, words]) => !({SAYS})([id, words])", arg=[apply, "not merged"])
    assert page.evaluate(REPORTED, apply) == [fact]


def test_a_late_warning_outlasts_the_end_of_its_prompt(page):
    """When a prompt has ended, what the server keeps of it is shown again: without the warnings that came late."""
    graph = small("use_sliders")
    apply, late = of_class(graph, "ApplySliders"), {"kind": "warning", "text": "not merged"}
    page.evaluate(OPEN, graph)
    prompt = run_to_its_end(page)
    wait_until_it_says(page, apply, "layers")
    page.evaluate(SENT, [LATE_WARNING, {"node": apply, "prompt_id": prompt, "text": late["text"]}])
    assert late in wait_until_it_says(page, apply, late["text"])
    page.evaluate(SENT, ["execution_success", {"prompt_id": prompt}])
    page.wait_for_timeout(1000)
    assert late in page.evaluate(REPORTED, apply)


def test_what_another_workflow_reports_is_not_taken_over(page):
    """Its nodes may have the same ids: one that still runs while another is looked at, say."""
    graph = small("use_sliders")
    apply, fact = of_class(graph, "ApplySliders"), {"kind": "fact", "text": "of the first workflow"}
    page.evaluate(OPEN, graph)
    prompt = run_to_its_end(page)
    wait_until_it_says(page, apply, "layers")
    executed = ["executed", {"node": apply, "prompt_id": prompt, "output": {KEY: [fact]}}]
    page.evaluate(OPEN, {**graph, "id": "00000000-0000-4000-8000-000000000000"})
    page.evaluate(SENT, executed)
    page.wait_for_timeout(1000)
    assert page.evaluate(REPORTED, apply) == []
    page.evaluate(OPEN, graph)
    page.evaluate(SENT, executed)
    assert wait_until_it_says(page, apply, fact["text"]) == [fact]


@STYLES
def test_every_text_box_is_labelled(page, is_vue):
    """The classic canvas shows no names of multi-line boxes: *more* could not be told from *less*."""
    graph = read_workflow(ROOT / "example_workflows" / "train_a_textual_slider.json")
    show_style(page, is_vue)
    page.evaluate(OPEN, graph)
    names = ["target", "more", "less", "preserve"]
    if is_vue:
        concept = page.locator(f"[data-node-id='{of_class(graph, 'SliderConcept')}']")
        for name in names:
            concept.get_by_text(name, exact=True).first.wait_for()
    else:
        assert set(names) <= set(page.evaluate(DRAWN))
