"""What ComfyUI asks of a pack: its extension, which lists the nodes."""

from comfy_api.latest import ComfyExtension, io

from . import NODES


class ConceptSlidersExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)


async def comfy_entrypoint() -> ConceptSlidersExtension:
    return ConceptSlidersExtension()
