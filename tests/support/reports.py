"""What a node that was executed reports, read from what it hands ComfyUI."""

from concept_sliders.nodes.report import FACT, KEY, WARNING


def _texts(output, *kinds):
    return [text for line in output.ui[KEY] if line["kind"] in kinds for text in line["text"].splitlines()]


def shown(output):
    """All lines of the report."""
    return _texts(output, FACT, WARNING)


def warned(output):
    """The lines of its warnings."""
    return _texts(output, WARNING)
