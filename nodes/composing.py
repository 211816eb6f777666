"""Nodes that make stacks of sliders, and set their strengths and gates: pure values in, new values out."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..sliders.gate import Gate
from ..sliders.stack import COND_OR_UNCOND, Stack
from ..sliders.sweep import parse_values, swept_latent
from ..sliders.units import RAW, UNITS, unit_notes
from .combining import BY_EFFECT, BY_WEIGHTS, OFF, kept_within, orthogonalised
from .report import REPORTS, Report
from .sockets import Sliders

STRENGTH_TOOLTIP = "How far the slider is turned: 0 is off, negative turns it the other way."


def units_input(more: str = "") -> io.Input:
    """Return the input that says in which units strengths are given. more: what else its tooltip says."""
    return io.Combo.Input(
        "units",
        options=list(UNITS),
        default=RAW,
        optional=True,
        advanced=True,
        tooltip="raw: strengths as they are. calibrated: from -100 to 100, where equal steps have equal effects, of "
        f"sliders that Calibrate Slider has measured.{more}",
    )


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
    """Joins stacks; on request their sliders leave each other alone, and keep within a total."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        growing = io.Autogrow.TemplatePrefix(Sliders.Input("sliders"), prefix="sliders", min=1, max=50)
        return io.Schema(
            node_id="ConceptSlidersCombineSliders",
            display_name="Combine Sliders",
            category="sliders",
            search_aliases=["stack", "orthogonal", "disentangle", "budget"],
            description="Several sliders as one stack, in order. Their effects add up. Optionally what they share is "
            "taken out of them, and the total is kept within a budget.",
            inputs=[
                io.Autogrow.Input("stacks", template=growing, tooltip="A new input appears as you connect."),
                *_combining_inputs(),
            ],
            outputs=[Sliders.Output(display_name="sliders")],
            **REPORTS,
        )

    @classmethod
    def execute(
        cls, stacks: io.Autogrow.Type, budget: float = 0.0, orthogonalise: str = OFF, effects: str = ""
    ) -> io.NodeOutput:
        stack = sum((stack for stack in stacks.values() if stack is not None), Stack())
        stack, mixing = orthogonalised(stack, orthogonalise, effects)
        stack, turning = kept_within(stack, budget)
        return io.NodeOutput(stack, ui=(mixing + turning).on_node())


def _combining_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "budget",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.05,
            optional=True,
            tooltip="The most that all sliders together may change the weights, in units of what the largest of them "
            "changes alone at its strength. Above it all strengths are turned down by one factor. 1 to 2 is usual; 0 "
            "is off.",
        ),
        io.Combo.Input(
            "orthogonalise",
            options=[OFF, BY_WEIGHTS, BY_EFFECT],
            default=OFF,
            optional=True,
            tooltip="Take out of each slider what it shares. by weights: each gives up what its weights have in "
            "common with those before it in the stack. by effect: each takes on so much of the others that it leaves "
            "alone what they are for, as Slider Report has measured it; connect effects. Low-rank sliders only.",
        ),
        io.String.Input(
            "effects",
            default="",
            optional=True,
            force_input=True,
            tooltip="For by effect: what Slider Report puts out of these sliders, or the text of its JSON file.",
        ),
    ]


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
                units_input(" It is then the effect that is multiplied."),
            ],
            outputs=[Sliders.Output(display_name="sliders")],
            **REPORTS,
        )

    @classmethod
    def execute(cls, sliders: Stack, strength: float, units: str = RAW) -> io.NodeOutput:
        notes = [note for placed in sliders for note in unit_notes(units, placed.slider)]
        return io.NodeOutput(sliders.scaled(strength, units), ui=Report().warn(*notes).on_node())


class PickSlider(io.ComfyNode):
    """Takes one slider out of a stack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersPickSlider",
            display_name="Pick Slider",
            category="sliders",
            search_aliases=["select slider", "one of a stack"],
            description="Takes one slider out of a stack, such as that of Discover Sliders, at a strength of its "
            "own: to apply it, to save it, or to combine it with others.",
            inputs=[
                Sliders.Input("sliders"),
                io.Int.Input(
                    "position",
                    default=1,
                    min=1,
                    max=1000,
                    tooltip="Which slider of the stack, counted from 1.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.05,
                    tooltip=f"{STRENGTH_TOOLTIP} The one that it has in the stack is not used.",
                ),
                units_input(),
            ],
            outputs=[Sliders.Output(display_name="sliders", tooltip="A stack of that slider alone.")],
            **REPORTS,
        )

    @classmethod
    def execute(cls, sliders: Stack, position: int, strength: float, units: str = RAW) -> io.NodeOutput:
        picked = sliders.picked(position - 1, strength, units)
        slider = picked[0].slider
        report = Report().fact(slider.name).warn(*unit_notes(units, slider, [strength]))
        return io.NodeOutput(picked, ui=report.on_node())


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
                units_input(),
            ],
            outputs=[Sliders.Output(display_name="sliders"), io.Latent.Output()],
            **REPORTS,
        )

    @classmethod
    def execute(
        cls, sliders: Stack, latent: dict[str, Any], values: str, position: int, units: str = RAW
    ) -> io.NodeOutput:
        given, count = parse_values(values), latent["samples"].shape[0]
        swept = sliders.swept(position - 1, given, count, units)
        report = Report().warn(*unit_notes(units, sliders[position - 1].slider, given))
        return io.NodeOutput(swept, swept_latent(latent, len(given)), ui=report.on_node())
