"""The node that measures what sliders do."""

from __future__ import annotations

from typing import Any

from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io

from ..comfy_host.seeded_sampling import SAMPLERS, SCHEDULERS, SamplerSettings
from ..evaluation.measurements import SliderMeasurements, blind_encoders
from ..evaluation.measuring import measure
from ..sliders.stack import Stack
from ..sliders.units import RAW, unit_notes
from .composing import units_input
from .measurement_output import facts, free_file, measurement_output
from .measuring_inputs import NO_LPIPS, edit_texts, instruments_of, missing_texts, plan_of, source_of, with_weights
from .model_folders import lpips_names
from .report import REPORTS
from .resume_notes import fingerprint, node_id_of, note_stopped
from .run_progress import watch_images
from .sockets import Sliders

NOTES_NAME = "measurement"  # of the notes of cancelled runs


class MeasureSlider(io.ComfyNode):
    """Samples sliders over strengths and seeds, and scores the images."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersMeasureSlider",
            display_name="Measure Slider",
            category="sliders/evaluation",
            search_aliases=["evaluate slider", "clip score", "lpips", "slider metrics"],
            description="Samples every slider of a stack alone, over strengths, prompts and seeds, and measures what "
            "it does and what it changes besides. Cancelling keeps what has been measured.",
            inputs=[
                *subject_inputs("measure", "measured"),
                *_plan_inputs(),
                *sampling_inputs(),
                *scoring_inputs(),
                units_input(" The table has the strengths that they stand for."),
            ],
            outputs=[
                io.String.Output(display_name="table", tooltip="A row for each slider and strength."),
                io.Image.Output(
                    display_name="plots", tooltip="The effect along strength, and the effect against the distortion."
                ),
                io.Image.Output(
                    display_name="sheet", tooltip="Images of every slider: a row for each prompt and seed."
                ),
                io.String.Output(
                    display_name="file", tooltip="The file of all numbers, JSON; a CSV of the table is beside it."
                ),
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
        strengths: str,
        batch_size: int,
        name: str,
        lpips: str = NO_LPIPS,
        more: str = "",
        less: str = "",
        clip_vision: ClipVisionModel | None = None,
        image_encoder: ClipVisionModel | None = None,
        score_clip: CLIP | None = None,
        units: str = RAW,
        **sampling: Any,
    ) -> io.NodeOutput:
        clip, vae = with_weights(clip, vae)
        plan = plan_of(sliders, prompts, seeds, strengths, batch_size, units)
        texts, file = edit_texts(sliders, more, less), free_file(name)
        instruments, warnings = instruments_of(model, clip, clip_vision, image_encoder, score_clip, lpips)
        warnings += missing_texts(sliders, texts, instruments)
        warnings += [note for placed in sliders for note in unit_notes(units, placed.slider, plan.strengths)]
        source = source_of(model, clip, vae, latent, negative, sampling)

        node_id = node_id_of(cls)
        measured = measure(source, plan, instruments, watch_images(node_id))
        if measured.cancelled:
            warnings.append(f"Cancelled after {len(measured.made)} of {plan.count} images: the table is of these.")
            warnings.append(note_stopped(NOTES_NAME, node_id, len(measured.made), plan.count))
        warnings += blind_encoders(measured)
        of_sliders = [SliderMeasurements(measured, at, texts[at], instruments) for at in range(len(sliders))]
        of_sliders = [each for each in of_sliders if len(each.strengths) > 1]  # a cancel may come before the others
        return measurement_output(cls, of_sliders, file, facts(source, measured), warnings)


def subject_inputs(verb: str, done: str) -> list[io.Input]:
    """Return the inputs that say what is sampled. verb, done: what is done to a slider, "measure" and "measured"."""
    return [
        io.Model.Input("model", tooltip=f"Without the sliders to {verb}; others on it stay."),
        io.Clip.Input("clip"),
        io.Vae.Input("vae"),
        Sliders.Input("sliders", tooltip=f"Each is {done} alone, with its gate; its strength is not used."),
        io.Latent.Input("latent", tooltip="An empty latent of the size to sample at."),
    ]


def prompt_inputs(prompts: str, seeds: str, count: str = "More seeds, surer figures.") -> list[io.Input]:
    """Return the inputs that say of what images are made.

    prompts: the tooltip of that input. seeds: the default of that one. count: what its tooltip says of their number.
    """
    return [
        io.String.Input("prompts", default="portrait of a person", multiline=True, tooltip=prompts),
        io.String.Input("negative", default="", multiline=True, tooltip="The negative prompt, of all images."),
        io.String.Input(
            "seeds",
            default=seeds,
            tooltip=f"Separated by commas; or from the first to the last, such as {seeds}. {count}",
        ),
    ]


def batch_size_input() -> io.Input:
    """Return the input that says how many images are sampled at a time."""
    return io.Int.Input(
        "batch_size",
        default=8,
        min=1,
        max=256,
        advanced=True,
        tooltip="Images sampled at a time, each with its own strength. Halved where memory runs out.",
    )


def _plan_inputs() -> list[io.Input]:
    return [
        *prompt_inputs("One a line. Every slider is measured on each of them.", "0:7"),
        io.String.Input(
            "strengths",
            default="-2, -1, 1, 2",
            tooltip="Separated by commas; or from:to:count, such as -2:2:9. The original, at 0, is sampled too.",
        ),
        batch_size_input(),
        io.String.Input(
            "name",
            default="slider",
            tooltip="Of the files in output/measurements, with folders if you like. A number is added rather than "
            "overwriting a file.",
        ),
    ]


def sampling_inputs() -> list[io.Input]:
    """Return the inputs that say how images are sampled."""
    defaults = SamplerSettings()
    return [
        io.Int.Input(
            "steps", default=defaults.steps, min=1, max=10_000, tooltip="Steps of sampling, as in KSampler."
        ),
        io.Float.Input(
            "cfg", default=defaults.cfg, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="As in KSampler."
        ),
        io.Combo.Input("sampler", options=list(SAMPLERS), default=defaults.sampler, tooltip="As in KSampler."),
        io.Combo.Input("scheduler", options=list(SCHEDULERS), default=defaults.scheduler, tooltip="As in KSampler."),
    ]


def scoring_inputs() -> list[io.Input]:
    """Return the inputs that say what images are measured with."""
    return [
        io.Combo.Input(
            "lpips",
            options=[NO_LPIPS, *lpips_names()],
            default=NO_LPIPS,
            optional=True,
            tooltip="The network of LPIPS: torchvision's AlexNet or VGG16, a file in models/lpips. Without one the "
            "distortion is the distance in the vision encoder.",
        ),
        io.String.Input(
            "more",
            default="",
            multiline=True,
            optional=True,
            tooltip="What the CLIP score compares with: the text of more, a line for each slider. Empty takes the "
            "label in each slider's file.",
        ),
        io.String.Input(
            "less",
            default="",
            multiline=True,
            optional=True,
            tooltip="The text of less, a line for each slider. Empty takes the label in each slider's file.",
        ),
        io.ClipVision.Input(
            "clip_vision",
            optional=True,
            tooltip="Measures distances; and the CLIP score, if it was trained together with the text encoder.",
        ),
        io.ClipVision.Input(
            "image_encoder", optional=True, tooltip="A second vision encoder for distances, such as DINOv2."
        ),
        io.Clip.Input(
            "score_clip",
            optional=True,
            tooltip="The text encoder of the CLIP score, where the model's own does not belong with clip_vision.",
        ),
    ]
