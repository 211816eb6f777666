// The box on a node that its report is written into: facts, warnings, or how far it is while it works.
//
// It is a DOM widget, which both the classic canvas and Nodes 2.0 draw, and comes with the first text. It is no input:
// neither saved workflows nor prompts have a value of it.

const NAME = "concept_sliders_report";
const MARGIN = 6; // pixels around the box in the classic canvas
const SIDES = 24; // pixels of a node's width that the box does not have, in either style
const HIGHEST = 360; // pixels; a longer text is scrolled
const COLUMNS = / {2}/; // in the lines of a table

const boxes = new WeakMap(); // of nodes: {widget, element, height, lines}

// Write lines, [{kind: "fact" | "warning" | "progress", text}], into the box of a node; none take it away.
export function write(node, lines) {
    if (!lines.length) return remove(node);
    const box = boxes.get(node) ?? make(node);
    box.lines = lines;
    box.element.replaceChildren(...lines.map(paragraph));
    measure(node, box);
    const [width, height] = node.computeSize();
    if (height > node.size[1]) node.setSize([Math.max(width, node.size[0]), height]);
    node.graph?.setDirtyCanvas(true, true);
}

// Write a line below those that are there, once.
export function add(node, line) {
    const lines = boxes.get(node)?.lines ?? [];
    if (!lines.some(({ text }) => text === line.text)) write(node, [...lines, line]);
}

function paragraph({ kind, text }) {
    const element = document.createElement("p");
    element.className = kind;
    for (const { isTable, lines } of parts(text)) {
        const part = document.createElement(isTable ? "pre" : "span");
        part.textContent = lines.join("\n");
        element.append(part);
    }
    return element;
}

// The lines of a text in order, those of a table together and the others together.
function parts(text) {
    const found = [];
    for (const line of text.split("\n")) {
        const isTable = COLUMNS.test(line);
        if (found.at(-1)?.isTable !== isTable) found.push({ isTable, lines: [] });
        found.at(-1).lines.push(line);
    }
    return found;
}

function make(node) {
    const element = document.createElement("div");
    element.className = "concept-sliders-report";
    element.setAttribute("role", "status");
    element.addEventListener("wheel", (event) => {
        if (element.scrollHeight > element.clientHeight) event.stopPropagation();
    });
    const box = { element, height: 0, lines: [] };
    const height = () => box.height + 2 * MARGIN;
    box.widget = node.addDOMWidget(NAME, NAME, element, {
        serialize: false, // into prompts
        hideOnZoom: false,
        margin: MARGIN,
        getMinHeight: height,
        getMaxHeight: height,
        afterResize: () => measure(node, box),
    });
    box.widget.serialize = false; // into workflows
    boxes.set(node, box);
    return box;
}

function remove(node) {
    const box = boxes.get(node);
    if (!box) return;
    boxes.delete(node);
    node.removeWidget(box.widget);
    node.graph?.setDirtyCanvas(true, true);
}

// Make the box as high as its text is at the node's width.
function measure(node, box) {
    const copy = box.element.cloneNode(true);
    Object.assign(copy.style, {
        position: "absolute",
        visibility: "hidden",
        minHeight: "0",
        height: "auto", // the classic canvas has given the box one
        width: `${node.size[0] - SIDES}px`,
    });
    document.body.append(copy);
    box.height = Math.min(copy.offsetHeight, HIGHEST);
    copy.remove();
    Object.assign(box.element.style, { minHeight: `${box.height}px`, maxHeight: `${HIGHEST}px` });
}
