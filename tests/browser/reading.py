"""Questions to the page: what stands on a node, and where nodes lie over each other or text is cut."""

import time

# The front end is there with the pack's nodes, and has opened what it opens by itself.
READY = """() => Boolean(
    window.LiteGraph?.registered_node_types.ConceptSlidersApplySliders &&
    window.app?.extensionManager?.workflow?.activeWorkflow &&
    window.app.graph?.nodes.length
)"""

# Load a workflow; what came of it.
OPEN = """async (graph) => {
    const loaded = () => app.graph.nodes.length === graph.nodes.length;
    const saved = (node) => (node.widgets ?? []).filter((widget) => widget.serialize !== false).length;
    for (let tries = 0; tries < 20; tries++) {  // the first workflow of the session may come in between
        await app.loadGraphData(structuredClone(graph));
        if (loaded()) break;
        await new Promise((resolve) => setTimeout(resolve, 500));
    }
    return {
        loaded: loaded(),
        missing: app.graph.nodes.map((node) => node.type).filter((type) => !LiteGraph.registered_node_types[type]),
        widgets: Object.fromEntries(app.graph.nodes.map((node) => [node.id, saved(node)])),
        prompt: (await app.graphToPrompt()).output,
    };
}"""

# The lines in the report box of a node, as {kind, text}.
REPORTED = """(id) => {
    const widget = app.graph.getNodeById(id).widgets?.find((each) => each.name === "concept_sliders_report");
    return [...(widget?.element.querySelectorAll("p") ?? [])]
        .filter((line) => line.checkVisibility() && line.getBoundingClientRect().height > 0)
        .map((line) => ({ kind: line.className, text: line.innerText }));
}"""

# Nothing runs, and nothing waits.
DONE = (
    "async () => { const { exec_info } = await (await fetch('/prompt')).json(); return !exec_info.queue_remaining; }"
)

# The ids of all prompts that have ended.
RAN = "async () => Object.keys(await (await fetch('/history')).json())"

# All of the graph in view.
FIT = """() => {
    const boxes = app.graph.nodes.map((node) => node.boundingRect);
    const left = Math.min(...boxes.map((box) => box[0])), top = Math.min(...boxes.map((box) => box[1]));
    const right = Math.max(...boxes.map((box) => box[0] + box[2]));
    const bottom = Math.max(...boxes.map((box) => box[1] + box[3]));
    const { ds, canvas } = app.canvas;
    ds.scale = Math.min(1, canvas.clientWidth / (right - left + 80), canvas.clientHeight / (bottom - top + 80));
    ds.offset[0] = 40 - left;
    ds.offset[1] = 40 - top;
    app.canvas.setDirty(true, true);
}"""

# Pairs of nodes that lie over each other, and texts of which a part is not to be seen.
FAULTS = """() => {
    const scale = app.canvas.ds.scale;
    const rectangle = (node) => {
        if (!LiteGraph.vueNodesMode) {
            const [x, y, width, height] = node.boundingRect;
            return { left: x, top: y, right: x + width, bottom: y + height };
        }
        const element = document.querySelector(`[data-node-id="${node.id}"]`);
        const { left, top, right, bottom } = element.getBoundingClientRect();
        return { left: left / scale, top: top / scale, right: right / scale, bottom: bottom / scale };
    };
    const boxes = app.graph.nodes.map((node) => ({ title: node.title, ...rectangle(node) }));
    const place = ({ title, left, top, right, bottom }) =>
        `${title} (${[left, top, right - left, bottom - top].map(Math.round).join(" ")})`;
    const faults = [];
    for (const [index, a] of boxes.entries())
        for (const b of boxes.slice(index + 1)) {
            const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
            const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
            if (wide > 1 && high > 1) faults.push(`${place(a)} and ${place(b)} lie over each other`);
        }
    for (const text of document.querySelectorAll(".concept-sliders-report, .comfy-multiline-input, .comfy-markdown"))
        if (text.clientHeight > 0 && text.scrollHeight > text.clientHeight + 2)
            faults.push(`cut: ${(text.value ?? text.innerText).slice(0, 60)}`);
    return faults;
}"""

# The strip of images that a node shows while it trains, as the server sends it; here of one colour.
PREVIEW = """async (ids) => {
    const { api } = await import("/scripts/api.js");
    const strip = Object.assign(document.createElement("canvas"), { width: 504, height: 226 });
    strip.getContext("2d").fillRect(0, 0, 504, 226);
    const blob = await new Promise((resolve) => strip.toBlob(resolve, "image/jpeg"));
    for (const id of ids) {
        const nodes = { nodeId: id, displayNodeId: id, realNodeId: id, parentNodeId: id };
        const detail = { blob, jobId: "preview", promptId: "preview", ...nodes };
        api.dispatchEvent(new CustomEvent("b_preview_with_metadata", { detail }));
    }
}"""

# A message of the server, [type, data], as the page gets it.
SENT = """async ([type, data]) => {
    const { api } = await import("/scripts/api.js");
    api.dispatchEvent(new CustomEvent(type, { detail: data }));
}"""

# What the classic canvas writes while it draws once.
DRAWN = """() => {
    const drawn = [], fillText = CanvasRenderingContext2D.prototype.fillText;
    CanvasRenderingContext2D.prototype.fillText = function (text, ...others) {
        drawn.push(String(text));
        return fillText.call(this, text, ...others);
    };
    app.canvas.draw(true, true);
    CanvasRenderingContext2D.prototype.fillText = fillText;
    return drawn;
}"""

IS_VUE = "() => Boolean(LiteGraph.vueNodesMode)"
SET_STYLE = "(is_vue) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', is_vue)"


def wait_until(page, script, arg=None, seconds=180):
    """Wait for what a script answers after asking the server: the page's own wait takes its promise for a yes."""
    end = time.monotonic() + seconds
    while not page.evaluate(script, arg):
        assert time.monotonic() < end, f"still not so after {seconds} s: {script}"
        page.wait_for_timeout(200)


def show_style(page, is_vue):
    """Draw nodes in one style, on a page loaded anew.

    Some time after a switch the front end loads once more what was open: on a busy machine, over what comes next.
    """
    if page.evaluate(IS_VUE) != is_vue:
        page.evaluate(SET_STYLE, is_vue)
        show_anew(page)
        page.wait_for_function(f"(is_vue) => ({IS_VUE})() === is_vue", arg=is_vue)


def show_anew(page):
    """Load the page anew, as it is after a start."""
    page.reload(wait_until="domcontentloaded")
    page.wait_for_function(READY)
