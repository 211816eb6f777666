"""The embedded model."""

from comfy_api.latest import io

from ..pocket.model import load_pocket


class LoadPocketModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersLoadPocketModel",
            display_name="Load Pocket Model",
            category="sliders/pocket",
            search_aliases=["pocket", "demo model", "tiny model"],
            description="A small model that comes with the pack and draws 64 x 64 portraits in a second: for trying "
            "sliders without a checkpoint. Use it at 64 x 64 pixels, CFG 3, euler, 20 steps. It knows age, smile, "
            "eyes, hair, skin, face width, glasses, hat, sky, and three drawing styles.",
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_pocket())
