"""The node that calibrates sliders."""

from __future__ import annotations

from typing import Any

from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io

from ..evaluation.calibrating import CalibrationPlan, calibrate_stack
from ..evaluation.calibration import SCALES, Criteria
from ..evaluation.sweep_plan import parse_seeds
from ..sliders.stack import Stack
from .calibration_output import calibration_output, cut_short
from .measuring import batch_size_input, prompt_inputs, sampling_inputs, scoring_inputs, subject_inputs
from .measuring_inputs import NO_LPIPS, edit_texts, instruments_of, lines_of, source_of, with_weights
from .report import REPORTS
from .resume_notes import fingerprint, node_id_of, note_stopped
from .run_progress import watch_images
from .sockets import Sliders

NODE = "Calibrate Slider"
NOTES_NAME = "calibration"  # of the notes of cancelled runs


class CalibrateSlider(io.ComfyNode):
    """Finds what strengths stand for equal steps of the effect."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersCalibrateSlider",
            display_name=NODE,
            category="sliders/evaluation",
            search_aliases=["calibrate lora", "slider range", "useful range", "audit slider"],
            description="Measures what a slider does along strength on both sides, finds where it saturates and "
            "where images break, and gives it calibrated units: -100 to 100 in equal steps of the effect. Says in "
            "words what is wrong with it, if anything is. Save Slider keeps the calibration in its file.",
            inputs=[
                *subject_inputs("calibrate", "calibrated"),
                *_plan_inputs(),
                *sampling_inputs(),
                *scoring_inputs(),
                *_criteria_inputs(),
            ],
            outputs=[
                Sliders.Output(display_name="sliders", tooltip="The same, calibrated. Save Slider writes them."),
                io.Image.Output(display_name="sheet", tooltip="Images at equal steps, plots and the verdict."),
                io.String.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            **REPORTS,
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        return fingerprint(NOTES_NAME, node_id_of(cls))

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP | None,
        vae: VAE | None,
        sliders: Stack,
        latent: dict[str, Any],
        prompts: str,
        negative: str,
        seeds: str,
        limit: float,
        batch_size: int,
        lpips: str = NO_LPIPS,
        more: str = "",
        less: str = "",
        clip_vision: ClipVisionModel | None = None,
        image_encoder: ClipVisionModel | None = None,
        score_clip: CLIP | None = None,
        scale: str = SCALES[0],
        steps_a_side: int = 4,
        saturated: float = Criteria.saturated,
        broken: float = Criteria.broken,
        **sampling: Any,
    ) -> io.NodeOutput:
        clip, vae = with_weights(clip, vae, NODE)
        if not len(sliders):
            raise ValueError(f"{NODE} takes at least one slider; the stack has none.")
        criteria, texts = Criteria(saturated, broken, scale), edit_texts(sliders, more, less, NODE)
        wanted = tuple(lines_of(prompts)) or ("",)
        plan = CalibrationPlan(wanted, parse_seeds(seeds), limit, steps_a_side, batch_size, criteria)
        instruments, warnings = instruments_of(model, clip, clip_vision, image_encoder, score_clip, lpips, NODE)
        source = source_of(model, clip, vae, latent, negative, sampling)

        node_id = node_id_of(cls)
        found = calibrate_stack(source, sliders, texts, plan, instruments, watch_images(node_id))
        if len(found) < len(sliders) or found[-1].cancelled:
            note_stopped(NOTES_NAME, node_id, len(found), len(sliders))
            warnings.append(cut_short(found, sliders))
        return calibration_output(cls, sliders, found, warnings)


def _plan_inputs() -> list[io.Input]:
    return [
        *prompt_inputs(
            "One a line: what the slider is for, and neither of its ends. It is calibrated on all of them.", "0:15"
        ),
        io.Float.Input(
            "limit",
            default=16.0,
            min=0.1,
            max=100.0,
            step=0.5,
            tooltip="The largest strength to try on each side. Most sliders are settled long before, and then no "
            "more is sampled.",
        ),
        batch_size_input(),
    ]


def _criteria_inputs() -> list[io.Input]:
    def part(name: str, default: float, tooltip: str) -> io.Float.Input:
        options = {"min": 0.01, "max": 0.99, "step": 0.01, "optional": True, "advanced": True}
        return io.Float.Input(name, default=default, tooltip=tooltip, **options)

    return [
        io.Combo.Input(
            "scale",
            options=list(SCALES),
            default=SCALES[0],
            optional=True,
            tooltip="equal steps: a step is the same effect on both sides, and the weaker side ends before 100. each "
            "to its end: 100 and -100 are as far as each side goes, and steps differ between the sides.",
        ),
        io.Int.Input(
            "steps_a_side",
            default=4,
            min=2,
            max=16,
            optional=True,
            advanced=True,
            tooltip="Equal steps on each side that strengths are refined to. More are more exact, and slower.",
        ),
        part(
            "saturated",
            Criteria.saturated,
            "Saturated is a side where the effect rises by less than this part of its steepest slope.",
        ),
        part(
            "broken",
            Criteria.broken,
            "Images are broken where the effect per distortion is below this part of its largest.",
        ),
    ]
