"""The node that measures what the sliders of a stack do to each other's attributes."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import folder_paths
from comfy.clip_vision import ClipVisionModel
from comfy.model_management import InterruptProcessingException
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io, ui

from ..comfy_host.model_weights import ComfyModelWeights
from ..evaluation.crosstalk import Effects, complete_series, effects_of
from ..evaluation.crosstalk_tables import as_json, as_text, sentence, write_report
from ..evaluation.instruments import Instruments
from ..evaluation.matrix_plot import draw_crosstalk
from ..evaluation.measurements import Measured, blind_encoders
from ..evaluation.measuring import measure
from ..sliders.changes import Change
from ..sliders.formats.layer_names import listed
from ..sliders.slider import Slider
from ..sliders.stack import Stack
from ..sliders.weight_products import WeightProducts, weight_products
from .measurement_output import FOLDER, facts
from .measuring import batch_size_input, prompt_inputs, sampling_inputs, subject_inputs
from .measuring_inputs import NO_LPIPS, instruments_of, plan_of, source_of, with_weights
from .model_folders import free_path
from .report import REPORTS, Report
from .resume_notes import fingerprint, node_id_of, note_stopped
from .run_progress import watch_images

NODE = "Slider Report"
NOTES_NAME = "slider report"  # of the notes of cancelled runs
ALIKE = 0.3  # the cosine of two weight changes from which the report names it


class SliderReport(io.ComfyNode):
    """Measures the matrix of what each slider of a stack moves, beside how alike their weight changes are."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersSliderReport",
            display_name=NODE,
            category="sliders/evaluation",
            search_aliases=["cross-talk", "crosstalk", "entanglement", "disentangle", "effect matrix", "cosine"],
            description="Samples every slider of a stack alone, turned both ways on the same seeds, and measures "
            "what it moves of all that the others are for. Beside it: how alike the sliders' weights are. Cancelling "
            "keeps what has been measured.",
            inputs=[
                *subject_inputs("measure", "turned"),
                *_plan_inputs(),
                *sampling_inputs(),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="What images are read with: CLIP, SigLIP, DINOv2, DINOv3. Each slider is measured along "
                    "the direction in which it moves images itself. The pocket model's images are read by its probe.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="picture", tooltip="What each slider moves, and how alike they are."),
                io.String.Output(display_name="table", tooltip="Both matrices, and what they say in words."),
                io.String.Output(
                    display_name="effects", tooltip="For Combine Sliders: orthogonalise by effect. Text, in JSON."
                ),
                io.String.Output(
                    display_name="file", tooltip="The file of all numbers, JSON; a CSV of the matrices is beside it."
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
        strength: float,
        batch_size: int,
        name: str,
        clip_vision: ClipVisionModel | None = None,
        **sampling: Any,
    ) -> io.NodeOutput:
        clip, vae = with_weights(clip, vae, NODE)
        plan = plan_of(sliders, prompts, seeds, f"{-strength}, {strength}", batch_size)
        if len(plan.prompts) * len(plan.seeds) < 2:
            raise ValueError(f"{NODE} takes at least two seeds or prompts, to tell effects from chance; got one.")
        file = free_path(_output() / FOLDER, name, NODE, (".json", ".csv"))
        instruments = _reading(model, clip, clip_vision)
        products = products_in(model, sliders)
        source = source_of(model, clip, vae, latent, negative, sampling)

        node_id = node_id_of(cls)
        measured = measure(source, plan, instruments, watch_images(node_id))
        report = Report()
        if measured.cancelled:
            report = report.warn(*_stopped(measured, node_id))
        report = report.warn(*blind_encoders(measured))
        effects = effects_of(measured)
        write_report(file.with_suffix(""), effects, products.cosines, facts(source, measured))
        report += _in_words(effects, products, sliders)
        text = as_text(effects, products.cosines)
        report = report.fact(text, f"Saved as {file.relative_to(_output()).as_posix()}")
        picture = draw_crosstalk(effects, products.cosines)
        shown = report.on_node(ui.PreviewImage(picture, cls=cls))
        return io.NodeOutput(picture, report.text, as_json(effects), str(file), ui=shown)


def products_in(model: ModelPatcher, sliders: Stack) -> WeightProducts:
    """Return the inner products of the sliders of a stack, with two names of one weight of the model as one layer."""
    weights = ComfyModelWeights(model)

    def placed(slider: Slider) -> dict[Hashable, Change]:
        return {weights.slice_of(slider, name): change for name, change in slider.layers.items()}

    return weight_products([placed(each.slider) for each in sliders])


def _reading(model: ModelPatcher, clip: CLIP, clip_vision: ClipVisionModel | None) -> Instruments:
    """What images are read with: the probe of the model's world where there is one, else the vision encoder."""
    found, _ = instruments_of(model, clip, clip_vision, None, None, NO_LPIPS, NODE)
    return Instruments(probe=found.probe) if found.probe else Instruments(encoders=found.encoders)


def _stopped(measured: Measured, node_id: str | None) -> tuple[str, str]:
    """Note that a run was cancelled, and say of how much the report is, and why there is no note, if there is none.

    Raises InterruptProcessingException if nothing can be reported yet.
    """
    made, count = len(measured.made), measured.plan.count
    complete = complete_series(measured)
    if complete < 2:
        raise InterruptProcessingException
    cut_short = f"Cancelled after {made} of {count} images: the report is of {complete} prompts and seeds."
    return cut_short, note_stopped(NOTES_NAME, node_id, made, count)


def _in_words(effects: Effects, products: WeightProducts, sliders: Stack) -> Report:
    """Say what each slider moves, which weights are alike, and what is not in the figures."""
    report = Report()
    for slider in range(len(effects.sliders)):
        moves = bool(effects.beyond_chance[slider, effects.own[slider]])
        line = sentence(effects, slider)
        report = report.fact(line) if moves else report.warn(f"{line} Try a larger strength, or more seeds.")
    cosines = products.cosines
    for i in range(len(cosines)):
        for j in range(i + 1, len(cosines)):
            if abs(cosines[i, j]) >= ALIKE:
                names = f"{effects.sliders[i]} and {effects.sliders[j]}"
                report = report.fact(f"The weight changes of {names} are alike: cosine {float(cosines[i, j]):+.2f}.")
    for placed, left_out in zip(sliders, products.left_out):
        if left_out:
            report = report.warn(
                f"Not in the cosines of {placed.slider.name}, as they are neither low-rank products nor plain "
                f"differences: {listed([str(name) for name in left_out], most=5)}"
            )
    return report


def _plan_inputs() -> list[io.Input]:
    return [
        *prompt_inputs(
            "One a line. Every slider is measured on each of them.",
            "0:15",
            "At least two; more seeds, surer figures.",
        ),
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.05,
            max=20.0,
            step=0.05,
            tooltip="Every slider is turned to this strength and to its negative. Effects are how far it moves "
            "images from 0 to here.",
        ),
        batch_size_input(),
        io.String.Input(
            "name",
            default="slider_report",
            tooltip="Of the files in output/measurements, with folders if you like. A number is added rather than "
            "overwriting a file.",
        ),
    ]


def _output() -> Path:
    return Path(folder_paths.get_output_directory())
