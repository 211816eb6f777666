"""ComfyUI's own types, for the rooms that are handed its objects and hand them on."""

from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider
from comfy.sd import CLIP

__all__ = ["CLIP", "CFGGuider", "ModelPatcher"]
