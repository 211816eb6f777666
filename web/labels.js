// Writes the names of text boxes above them in the classic canvas, which shows none. Nodes 2.0 labels them itself.

import { app } from "../../scripts/app.js";

const MARGIN = 14; // pixels around such a box: room for its name
const FONT = "11px system-ui, sans-serif";

app.registerExtension({
    name: "ConceptSliders.Labels",
    nodeCreated(node) {
        if (!node.comfyClass?.startsWith("ConceptSliders")) return;
        const boxes = (node.widgets ?? []).filter((widget) => widget.type === "customtext");
        if (!boxes.length) return;
        for (const box of boxes) box.options.margin = MARGIN;
        const draw = node.onDrawForeground;
        node.onDrawForeground = function (context, ...others) {
            draw?.call(this, context, ...others);
            if (!this.flags.collapsed && !app.canvas.low_quality) boxes.forEach((box) => label(context, box));
        };
    },
});

function label(context, box) {
    context.save();
    context.font = FONT;
    context.fillStyle = LiteGraph.WIDGET_SECONDARY_TEXT_COLOR;
    context.fillText(box.label ?? box.name, MARGIN, box.y + MARGIN - 3);
    context.restore();
}
