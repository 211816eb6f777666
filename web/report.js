// Shows what the pack's nodes report: when they have run, while they run, and again after the page was reloaded.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { add, write } from "./report_box.js";

const REPORT = "concept_sliders_report"; // in what a node puts out for its own display: [{kind, text}]
const PROGRESS = "concept_sliders.progress"; // a message of the server: {node, text, prompt_id}
const LATE_WARNING = "concept_sliders.warning"; // another: what comes out about a node that has reported already
const LAST_PROMPT = "concept_sliders.prompt "; // and a graph's id: where the id of its last prompt is kept

const working = new Set(); // nodes that tell how far they are
const shown = new WeakMap(); // of nodes: the id of the prompt whose report stands on each, if it is known
const origins = new Map(); // of prompts, by id: a promise of the id of the graph that each was queued from

app.registerExtension({
    name: "ConceptSliders.Report",
    init() {
        const style = document.createElement("link");
        Object.assign(style, { rel: "stylesheet", href: new URL("report.css", import.meta.url).href });
        document.head.append(style);
    },
    setup() {
        api.addEventListener("executed", async ({ detail }) => {
            if (!(await isOfThisGraph(detail.prompt_id))) return;
            const { prompt_id: promptId, output } = detail;
            if (showOutput(detail.display_node ?? detail.node, output, promptId)) remember(promptId);
        });
        api.addEventListener(PROGRESS, async ({ detail }) => {
            const node = (await isOfThisGraph(detail.prompt_id)) && packNode(detail.node);
            if (!node) return;
            working.add(node);
            write(node, [{ kind: "progress", text: detail.text }]);
        });
        api.addEventListener(LATE_WARNING, async ({ detail }) => {
            const node = (await isOfThisGraph(detail.prompt_id)) && packNode(detail.node);
            if (node) add(node, { kind: "warning", text: detail.text });
        });
        for (const end of ["execution_error", "execution_interrupted"]) api.addEventListener(end, clearProgress);
        api.addEventListener("execution_success", async ({ detail }) => {
            if (!(await isOfThisGraph(detail.prompt_id))) return;
            remember(detail.prompt_id);
            recall(); // of nodes that ran before the page was reloaded
        });
    },
    afterConfigureGraph: () => recall(),
    onNodeOutputsUpdated(outputs) {
        for (const [id, output] of Object.entries(outputs)) showOutput(id, output);
    },
});

// Show the report in a node's output. Returns false if there is none.
function showOutput(id, output, promptId) {
    const lines = output?.[REPORT];
    const node = lines && packNode(id);
    if (!node) return false;
    working.delete(node);
    shown.set(node, promptId);
    write(node, lines);
    return true;
}

// Find a node of the pack by its id. In a subgraph it comes after the ids of the nodes that lead to it, or after the
// subgraph's own, with colons between.
function packNode(id) {
    let graph = root();
    let node = null;
    for (const part of String(id).split(":")) {
        const inside = graph?.subgraphs?.get(part);
        node = inside ? null : (graph?.getNodeById(part) ?? graph?.getNodeById(Number(part)));
        graph = inside ?? node?.subgraph;
    }
    return node?.comfyClass?.startsWith("ConceptSliders") ? node : null;
}

function clearProgress() {
    for (const node of working) write(node, []);
    working.clear();
}

function root() {
    return app.rootGraph ?? app.graph;
}

// Whether a prompt was queued from the graph on the page. Another workflow, which may still run, has nodes of the same ids.
async function isOfThisGraph(promptId) {
    if (!promptId) return true;
    if (!origins.has(promptId)) origins.set(promptId, origin(promptId).catch(() => undefined));
    const id = await origins.get(promptId);
    return id === undefined || id === root().id;
}

// The id of the graph that a prompt was queued from; undefined if it was queued without one.
async function origin(promptId) {
    const { queue_running = [], queue_pending = [] } = await read("/queue");
    const queued = [...queue_running, ...queue_pending].find(([, id]) => id === promptId);
    const prompt = queued ?? (await read(`/history/${promptId}`))[promptId]?.prompt;
    return prompt?.[3]?.extra_pnginfo?.workflow?.id;
}

async function read(path) {
    const answer = await api.fetchApi(path);
    return answer.ok ? answer.json() : {};
}

function remember(promptId) {
    if (promptId) sessionStorage.setItem(LAST_PROMPT + root().id, promptId);
}

// Show the reports of the last prompt of this graph, which the server keeps.
async function recall() {
    const graph = root();
    const last = () => sessionStorage.getItem(LAST_PROMPT + graph.id);
    const promptId = last();
    if (!promptId) return;
    const entry = (await read(`/history/${promptId}`))[promptId]; // none while it runs, or once the server was restarted
    if (!entry || root() !== graph || last() !== promptId) return; // a later prompt has reported meanwhile
    const nodes = entry.prompt[2];
    for (const [id, output] of Object.entries(entry.outputs)) {
        const node = packNode(id);
        if (node?.comfyClass !== nodes[id]?.class_type) continue;
        if (shown.get(node) !== promptId) showOutput(id, output, promptId); // else warnings may stand below it by now
    }
}
