"""Concept sliders for every model ComfyUI loads: load, train, stack, gate and measure them.

@author: The ConceptSliders authors
@title: Concept Sliders
@nickname: Concept Sliders
@description: Sliders that turn one attribute of images up and down: load, train, combine, gate, sweep.
"""

from comfy_api.latest import ComfyExtension, io

from .nodes import NODES

WEB_DIRECTORY = "./web"


class ConceptSlidersExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)


async def comfy_entrypoint() -> ConceptSlidersExtension:
    return ConceptSlidersExtension()
