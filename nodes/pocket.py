"""The embedded model, and drawings of its world."""

import numpy as np
import torch
from comfy_api.latest import io

from ..pocket.models.loading import load_pocket
from ..pocket.world.captions import LEFT_UNSAID, caption
from ..pocket.world.drawing import draw
from ..pocket.world.portrait import portraits

_UNSEEN = 2**40  # beyond the seeds of everyone that a training has seen


class LoadPocketModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersLoadPocketModel",
            display_name="Load Pocket Model",
            category="sliders/pocket",
            search_aliases=["pocket", "demo model", "tiny model"],
            description="A small model that comes with the pack and draws portraits of 128 x 128 pixels in a second: "
            "for trying sliders without a checkpoint. Use it at that size, CFG 3, euler, 20 steps. It knows age, "
            "smile, eyes, hair, skin, face width, glasses, hat, sky, and three drawing styles.",
            outputs=[
                io.Model.Output(),
                io.Clip.Output(),
                io.Vae.Output(),
                io.ClipVision.Output(tooltip="Sees what the text encoder says: for CLIP scores and for discovery."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_pocket())


class DrawPortrait(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersDrawPortrait",
            display_name="Draw Portrait",
            category="sliders/pocket",
            search_aliases=["pocket", "demo picture", "example image"],
            description="Drawings of the world that the pocket model was trained on, with what they show in words. "
            "They are not made by the model: they take the place of photographs, for trying what is done with those.",
            inputs=[
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    control_after_generate=True,
                    tooltip="Who is drawn: each seed is another person.",
                ),
                io.Int.Input("count", default=1, min=1, max=64, tooltip="How many people are drawn."),
                io.String.Input(
                    "unsaid",
                    default="",
                    optional=True,
                    tooltip="What the caption does not name: age, smile, eye_size, with commas between. Leave out "
                    "what a slider is to turn: guidance would pull against it.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="128 x 128 pixels each."),
                io.String.Output(display_name="caption", tooltip="What the first of them shows."),
            ],
        )

    @classmethod
    def execute(cls, seed: int, count: int, unsaid: str = "") -> io.NodeOutput:
        names = [name.strip() for name in unsaid.split(",") if name.strip()]
        if unknown := [name for name in names if name not in LEFT_UNSAID]:
            raise ValueError(
                f"Draw Portrait: a caption can leave out {', '.join(LEFT_UNSAID)}; got {', '.join(unknown)}."
            )
        people = portraits(count, seed=_UNSEEN + seed)
        images = np.stack([draw(person) for person in people])  # (count, 128, 128, 3) of 0..255
        text = caption(people[0], np.random.default_rng(seed), names)
        return io.NodeOutput(torch.from_numpy(images).float() / 255, text)
