"""Sliders in other forms: other tools' names, and several sliders as one."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import comfy.lora
import comfy.model_base
import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ..comfy_host.model_weights import ComfyModelWeights
from ..sliders.changes import Change, kind_of
from ..sliders.equation.layer_kinds import weight_shape
from ..sliders.formats.conventions import (
    AS_IT_IS,
    CONVENTIONS,
    DIFFUSERS,
    KOHYA,
    NATIVE,
    name_in,
    names_by_key,
    tensors_in,
)
from ..sliders.formats.conversion import convert_layers
from ..sliders.formats.layer_names import listed
from ..sliders.formats.model_family import candidates, family_of
from ..sliders.formats.slider_files import save_slider
from ..sliders.merge_sliders import Merged, merge
from ..sliders.slider import Slider, SliderInfo
from ..sliders.stack import Stack, StackedSlider
from .loading import DTYPES, as_one_slider
from .model_folders import free_path
from .sockets import Sliders

_SEVERAL_ENCODERS = (comfy.model_base.SDXL, comfy.model_base.SD3, comfy.model_base.Flux)


class ConvertSlider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersConvertSlider",
            display_name="Convert Slider",
            category="sliders",
            search_aliases=["lora", "convert", "kohya", "diffusers"],
            description="Writes a slider to models/loras under the layer names that another tool reads.",
            inputs=[
                Sliders.Input("sliders", tooltip="A stack of one slider. Its strength becomes part of its weights."),
                io.Combo.Input(
                    "names",
                    options=list(CONVENTIONS),
                    default=CONVENTIONS[1],
                    tooltip="kohya: lora_unet_..., for A1111, Forge and most others. diffusers: unet... or "
                    "transformer.... diffusion_model.: the model's own names, as ai-toolkit writes them.",
                ),
                io.String.Input(
                    "name",
                    default="sliders/converted",
                    tooltip="File name, with folders if you like. A number is added rather than overwriting a file.",
                ),
                io.Combo.Input(
                    "precision", options=list(DTYPES), default="float16", tooltip="How the numbers are stored."
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model the slider is for; needed where one name does not tell the other.",
                ),
            ],
            outputs=[Sliders.Output(display_name="sliders"), io.String.Output(display_name="file")],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, sliders: Stack, names: str, name: str, precision: str, model: ModelPatcher | None = None
    ) -> io.NodeOutput:
        folder = Path(folder_paths.get_folder_paths("loras")[0])
        path = free_path(folder, name, "Convert Slider")
        slider, lost = as_one_slider(sliders, path.stem, "Convert Slider")
        converted = Slider(path.stem, converted_layers(slider, names, model), slider.info)
        save_slider(converted, path, DTYPES[precision], partial(tensors_in, names))
        file = path.relative_to(folder).as_posix()
        text = f"Saved {file}: {len(converted.layers)} layers, such as {next(iter(converted.layers))}{lost}"
        return io.NodeOutput(Stack.of(converted), file, ui=ui.PreviewText(text))


def converted_layers(slider: Slider, convention: str, model: ModelPatcher | None = None) -> dict[str, Change]:
    """A slider's layers by their names in a convention.

    Raises ValueError if the convention has no name for one of them, or the model is needed to tell and is not there.
    """
    if convention == AS_IT_IS:
        return dict(slider.layers)
    several = _has_several_encoders(slider, model)
    by_name = slider.layers if model is None else slider.text_layers
    layers: dict[str, Change] = {}
    names = {name: name_in(name, convention, several) for name in by_name}
    if unnamed := [name for name, new in names.items() if new is None]:
        hint = "" if model is not None else " Connect the model that the slider is for: it may know them."
        raise ValueError(
            f"Names alone do not tell those in the convention '{convention}' of {listed(unnamed)}.{hint}"
        )
    for name, change in by_name.items():
        new = names[name]
        if new in layers:
            raise ValueError(f"Two layers of slider '{slider.name}' are {new} in the convention '{convention}'.")
        layers[new] = change
    if model is not None and slider.model_layers:
        layers |= _by_model(slider.model_layers, convention, model)
    return layers


def _has_several_encoders(slider: Slider, model: ModelPatcher | None) -> bool:
    """Whether the slider's family has more than one text encoder that kohya's scripts number."""
    if model is not None:
        return isinstance(model.model, _SEVERAL_ENCODERS)
    if any(re.match(r"lora_te[23]|text_encoder_[23]", name) for name in slider.layers):
        return True
    return not {"SDXL", "SD3", "Flux"}.isdisjoint(candidates(family_of(slider.layers)))


def _by_model(layers: dict[str, Change], convention: str, model: ModelPatcher) -> dict[str, Change]:
    key_map = comfy.lora.model_lora_keys_unet(model.model, {})

    def shape_of(key: str) -> tuple[int, ...]:
        return weight_shape(model.model.get_submodule(key.rpartition(".")[0]), key)

    def by(other: str) -> tuple[dict[str, Change], tuple[str, ...]]:
        flux_2 = isinstance(model.model, comfy.model_base.Flux2)
        return convert_layers(layers, key_map, names_by_key(key_map, other, flux_2), shape_of)

    named, unnamed = by(convention)
    if unnamed:
        whole = [f"'{other}'" for other in (KOHYA, DIFFUSERS, NATIVE) if other != convention and not by(other)[1]]
        hint = f" All of them have names in {' and in '.join(whole)}." if whole else ""
        raise ValueError(
            f"{len(unnamed)} of the slider's {len(layers)} layers have no name in the convention '{convention}' that "
            f"ComfyUI reads: {listed(unnamed)}.{hint}"
        )
    return named


class MergeSliders(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersMergeSliders",
            display_name="Merge Sliders",
            category="sliders",
            search_aliases=["lora", "merge", "combine", "resize"],
            description="A stack at its strengths as one slider: exactly, or at a smaller rank.",
            inputs=[
                Sliders.Input("sliders", tooltip="Sliders at one strength each, with one gate for all or none."),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="0 keeps everything: the ranks add up. Otherwise the best approximation of that rank, "
                    "layer by layer; layers that are no low-rank products stay as they are.",
                ),
                io.String.Input("name", default="merged", tooltip="The name of the slider that comes out."),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model the sliders are for. It tells two names of one layer, and takes any kinds of "
                    "change together: LoHa, DoRA and the like become differences of its weights.",
                ),
            ],
            outputs=[
                Sliders.Output(display_name="sliders"),
                io.Float.Output(
                    display_name="error", tooltip="What was left out, relative to the whole change; 0 is exact."
                ),
            ],
        )

    @classmethod
    def execute(cls, sliders: Stack, rank: int, name: str, model: ModelPatcher | None = None) -> io.NodeOutput:
        stack, merged = merged_stack(sliders, rank, name, model)
        kept = f"rank {merged.rank}" if merged.rank else "no rank"
        exactly = f"relative error {merged.error:.3g}" if rank else "exact"
        text = f"{len(sliders)} sliders in {len(merged.layers)} layers, {kept}, {exactly}{_left_whole(merged)}"
        return io.NodeOutput(stack, merged.error, ui=ui.PreviewText(text))


def _left_whole(merged: Merged) -> str:
    """A line about what a rank could not be given to; "" where there is nothing."""
    if not merged.uncompressed:
        return ""
    kinds = ", ".join(sorted({kind_of(merged.layers[name]) for name in merged.uncompressed}))
    return (
        f"\nNot compressed, and not in the error: {len(merged.uncompressed)} of the layers, which are no low-rank "
        f"products ({kinds}): {listed(merged.uncompressed, most=5)}"
    )


def merged_stack(sliders: Stack, rank: int, name: str, model: ModelPatcher | None = None) -> tuple[Stack, Merged]:
    """A stack of the one slider that does what the whole stack does, and how it was merged.

    model: the one that the sliders are for, see `merge_sliders.merge`.
    Raises ValueError if the sliders do not all act at one strength, in one part of sampling, on one branch.
    """
    if not len(sliders):
        raise ValueError("Merge Sliders needs at least one slider; the stack is empty.")
    if swept := [placed.slider.name for placed in sliders if len(set(placed.strength)) > 1]:
        raise ValueError(f"Slider '{swept[0]}' is swept; merge the sliders as they are before the sweep.")
    first = sliders[0]
    for placed in sliders:
        if _window(placed) != _window(first):
            raise ValueError(
                f"Sliders '{first.slider.name}' and '{placed.slider.name}' act in different parts of sampling or of "
                "guidance. One slider cannot do both: gate them alike, or merge them apart."
            )
    weights = None if model is None else ComfyModelWeights(model)
    merged = merge([(placed.slider, placed.strength[0]) for placed in sliders], rank, weights)
    slider = Slider(name.strip() or "merged", merged.layers, _info(sliders))
    return Stack((replace(first, slider=slider, strength=(1.0,)),)), merged


def _window(placed: StackedSlider) -> tuple:
    return tuple(gate for gate in placed.gates if not gate.always_open), placed.cond_or_uncond


def _info(sliders: Stack) -> SliderInfo:
    infos = [placed.slider.info for placed in sliders]

    def common(values: list[str]) -> str:
        return values[0] if len(set(values)) == 1 else ""

    parts = [{"name": placed.slider.name, "strength": placed.strength[0]} for placed in sliders]
    gates = sliders[0].gates
    return SliderInfo(
        recipe={"merged": parts},
        family=common([info.family for info in infos]),
        base_model_hash=common([info.base_model_hash for info in infos]),
        **({"gate": gates[0]} if len(gates) == 1 else {}),
    )
