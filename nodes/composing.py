"""Nodes that make stacks of sliders, and set their strengths and gates: pure values in, new values out."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..sliders.gate import Gate
from ..sliders.stack import COND_OR_UNCOND, Stack
from ..sliders.sweep import parse_values, swept_latent
from .sockets import Sliders

STRENGTH_TOOLTIP = "How far the slider is turned: 0 is off, negative turns it the other way."


def gate_inputs() -> list[io.Input]:
    """Return the inputs that say in which part of sampling sliders act."""

    def percent(name: str, default: float, tooltip: str) -> io.Float.Input:
        return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)

    return [
        percent("start_percent", 0.2, "Where in sampling the effect begins: 0 is the first step, 1 the last."),
        percent("end_percent", 1.0, "Where in sampling the effect ends: 0 is the first step, 1 the last."),
        percent(
            "ramp",
            0.0,
            "Part of sampling over which the effect grows after the start, and falls before an end below 1. 0 "
            "switches at once.",
        ),
    ]


class CombineSliders(io.ComfyNode):
    """Joins stacks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        growing = io.Autogrow.TemplatePrefix(Sliders.Input("sliders"), prefix="sliders", min=2, max=50)
        return io.Schema(
            node_id="ConceptSlidersCombineSliders",
            display_name="Combine Sliders",
            category="sliders",
            description="Several sliders as one stack, in order. Their effects add up.",
            inputs=[io.Autogrow.Input("stacks", template=growing, tooltip="A new input appears as you connect.")],
            outputs=[Sliders.Output(display_name="sliders")],
        )

    @classmethod
    def execute(cls, stacks: io.Autogrow.Type) -> io.NodeOutput:
        return io.NodeOutput(sum((stack for stack in stacks.values() if stack is not None), Stack()))


class ScaleSliders(io.ComfyNode):
    """Multiplies strengths."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersScaleSliders",
            display_name="Scale Sliders",
            category="sliders",
            description="Multiplies the strength of every slider of the stack.",
            inputs=[
                Sliders.Input("sliders"),
                io.Float.Input("strength", default=1.0, min=-20.0, max=20.0, step=0.05, tooltip=STRENGTH_TOOLTIP),
            ],
            outputs=[Sliders.Output(display_name="sliders")],
        )

    @classmethod
    def execute(cls, sliders: Stack, strength: float) -> io.NodeOutput:
        return io.NodeOutput(sliders.scaled(strength))


class GateSliders(io.ComfyNode):
    """Limits sliders to a part of sampling, and of guidance."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersGateSliders",
            display_name="Gate Sliders",
            category="sliders",
            description="Lets sliders act in a part of sampling only. The first part of sampling fixes the structure "
            "of an image: sliders that start later leave it alone.",
            inputs=[
                Sliders.Input("sliders"),
                *gate_inputs(),
                io.Combo.Input(
                    "cond_or_uncond",
                    options=list(COND_OR_UNCOND),
                    default=COND_OR_UNCOND[0],
                    optional=True,
                    advanced=True,
                    tooltip="With guidance (CFG above 1): act on the predictions for the positive prompt (cond) and "
                    "for the negative prompt (uncond), or on one of them only.",
                ),
            ],
            outputs=[Sliders.Output(display_name="sliders")],
        )

    @classmethod
    def execute(
        cls,
        sliders: Stack,
        start_percent: float,
        end_percent: float,
        ramp: float,
        cond_or_uncond: str = COND_OR_UNCOND[0],
    ) -> io.NodeOutput:
        return io.NodeOutput(sliders.gated(Gate(start_percent, end_percent, ramp)).restricted_to(cond_or_uncond))


class SweepSliders(io.ComfyNode):
    """Sets one slider to several strengths in one batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersSweepSliders",
            display_name="Sweep Sliders",
            category="sliders",
            description="One slider at several strengths in one batch: every latent is repeated once for each value, "
            "with the same noise. Sample the latent that comes out, with these sliders applied.",
            inputs=[
                Sliders.Input("sliders"),
                io.Latent.Input("latent", tooltip="The latents to sweep over; each becomes one row of images."),
                io.String.Input(
                    "values",
                    default="-3, -2, -1, 0, 1, 2, 3",
                    tooltip="Strengths, separated by commas; or from:to:count, such as -3:3:7.",
                ),
                io.Int.Input(
                    "position",
                    default=1,
                    min=1,
                    max=1000,
                    tooltip="Which slider of the stack is swept, counted from 1. The others keep their strength.",
                ),
            ],
            outputs=[Sliders.Output(display_name="sliders"), io.Latent.Output()],
        )

    @classmethod
    def execute(cls, sliders: Stack, latent: dict[str, Any], values: str, position: int) -> io.NodeOutput:
        strengths = parse_values(values)
        count = latent["samples"].shape[0]
        return io.NodeOutput(sliders.swept(position - 1, strengths, count), swept_latent(latent, len(strengths)))
