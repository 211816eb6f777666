"""Concept sliders for every model ComfyUI loads: load, train, stack, gate and measure them.

@author: The ConceptSliders authors
@title: Concept Sliders
@nickname: Concept Sliders
@description: Sliders that turn one attribute of images up and down: load, train, combine, gate, sweep.
"""

import logging

from comfyui_version import __version__

from .comfy_host.comfyui_version import too_old

if problem := too_old(__version__):
    logging.getLogger(__name__).error(problem)
    NODE_CLASS_MAPPINGS: dict = {}  # to ComfyUI, a pack without nodes
else:
    from .nodes.extension import comfy_entrypoint as comfy_entrypoint

    WEB_DIRECTORY = "./web"
