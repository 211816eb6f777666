"""What every node has to have."""

from pathlib import Path

import pytest
from concept_sliders.nodes import NODES

PACK = Path(__file__).parents[3]


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_every_node_has_a_help_page_and_a_place_in_the_readme(node):
    schema = node.define_schema()
    page = (PACK / "web" / "docs" / f"{schema.node_id}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {schema.display_name}\n") and len(page) > 100
    readme = (PACK / "README.md").read_text(encoding="utf-8")
    assert f"[{schema.display_name}](web/docs/{schema.node_id}.md)" in readme
    assert schema.node_id.startswith("ConceptSliders") and schema.category.startswith("sliders")


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_every_widget_has_a_tooltip(node):
    sockets = ("SLIDERS", "MODEL", "CLIP", "VAE", "IMAGE", "LATENT", "SLIDER_CONCEPT", "SLIDER_PAIRS")
    without = [i.id for i in node.define_schema().inputs if i.io_type not in sockets and not i.tooltip]
    assert without == []
