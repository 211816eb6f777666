"""Rows of a batch evaluated apart, on models that cannot tell them from each other.

Some models have layers whose first dimension is not the batch, or that see all rows at once. There strengths that
differ between rows are worked out in several evaluations, each of rows that share their strengths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_base
import torch
from comfy.model_base import BaseModel
from torch import Tensor

# Networks of the host whose layers all have the entries of the batch one after the other in their first dimension, as
# the tests of families have shown. All others are taken to mix them: that is right for any network, only slower.
BATCH_FIRST_NETWORKS = frozenset(
    f"comfy.ldm.{name}"
    for name in (
        "anima.model.Anima",
        "aura.mmdit.MMDiT",
        "audio.dit.AudioDiffusionTransformer",
        "boogu.model.BooguTransformer2DModel",
        "cascade.stage_b.StageB",
        "cascade.stage_c.StageC",
        "chroma.model.Chroma",
        "chroma_radiance.model.ChromaRadiance",
        "cogvideo.model.CogVideoXTransformer3DModel",
        "cosmos.predict2.MiniTrainDIT",
        "ernie.model.ErnieImageModel",
        "flux.model.Flux",
        "genmo.joint_model.asymm_models_joint.AsymmDiTJoint",
        "hidream_o1.model.HiDreamO1Transformer",
        "hunyuan3d.model.Hunyuan3Dv2",
        "hunyuan_video.model.HunyuanVideo",
        "ideogram4.model.Ideogram4Transformer2DModel",
        "joyimage.model.JoyImageTransformer3DModel",
        "kandinsky5.model.Kandinsky5",
        "krea2.model.SingleStreamDiT",
        "lens.model.LensTransformer2DModel",
        "lightricks.av_model.LTXAVModel",
        "lightricks.model.LTXVModel",
        "lumina.model.NextDiT",
        "mage_flow.model.MageFlowTransformer2DModel",
        "modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper",
        "modules.diffusionmodules.openaimodel.UNetModel",
        "omnigen.omnigen2.OmniGen2Transformer2DModel",
        "qwen_image.model.QwenImageTransformer2DModel",
        "wan.model.CameraWanModel",
        "wan.model.HumoWanModel",
        "wan.model.VaceWanModel",
        "wan.model.WanModel",
        "wan.model.WanModel_S2V",
        "wan.model_animate.AnimateWanModel",
        "wan.model.SCAILWanModel",
    )
)
# Models that refuse a batch of several rows, or take its two halves for the two prompts of guidance
_ONE_ROW = (comfy.model_base.MiniMaxH3, comfy.model_base.Hunyuan3Dv2_1)
# Models whose batch is the frames of one film, which layers over time see together
_ONE_FILM = (comfy.model_base.SVD_img2vid,)


@dataclass(frozen=True)
class EntryGroup:
    """Entries of a model batch that share their strengths. strengths: (1, sliders). chunks: of the host's batch."""

    entries: Tensor
    strengths: Tensor
    chunks: tuple[int, ...]


def needs_separate_evaluations(base_model: BaseModel, strengths: Tensor) -> bool:
    """Whether these strengths, (rows, sliders), differ between rows that the model cannot tell apart.

    Text encoders, which have no network of diffusion, keep their prompts apart.
    """
    if not hasattr(base_model, "diffusion_model"):
        return False
    apart = network_of(base_model) in BATCH_FIRST_NETWORKS and not entries_are_frames(base_model)
    return not apart and bool((strengths != strengths[:1]).any())


def network_of(base_model: BaseModel) -> str:
    """Where the class of the model's network is, such as "comfy.ldm.flux.model.Flux"."""
    network = type(getattr(base_model.diffusion_model, "_orig_mod", base_model.diffusion_model))  # or as compiled
    return f"{network.__module__}.{network.__qualname__}"


def takes_batches_of_one(base_model: BaseModel) -> bool:
    """Whether the model is to be evaluated on one row after the other."""
    return isinstance(base_model, _ONE_ROW)


def entries_are_frames(base_model: BaseModel) -> bool:
    """Whether the rows of a batch are frames of one film, and so cannot have strengths of their own."""
    return isinstance(base_model, _ONE_FILM)


def groups_of(strengths: Tensor, chunks: int, alone: bool = False) -> list[EntryGroup]:
    """The batch, strengths (chunks * B, sliders), shared out; as few parts as hold whole rows or whole chunks.

    alone: each row in a part of its own, even where others have its strengths.
    """
    by_row = strengths.unflatten(0, (chunks, -1)).transpose(0, 1)  # (B, chunks, sliders)
    alike, member = by_row.unique(dim=0, return_inverse=True)
    if alone:
        alike, member = by_row, torch.arange(len(by_row))
    found = []
    for index, each in enumerate(alike):  # each: (chunks, sliders)
        rows = torch.nonzero(member == index).flatten()
        same = bool((each == each[:1]).all())
        for taken in [range(chunks)] if same else [(chunk,) for chunk in range(chunks)]:
            entries = torch.cat([chunk * len(by_row) + rows for chunk in taken])
            found.append(EntryGroup(entries, each[taken[0]][None], tuple(taken)))
    return found


def evaluate_groups(
    evaluate: Callable[..., Tensor],
    parts: Sequence[EntryGroup],
    x: Tensor,
    conditions: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Tensor:
    """The parts' results, put together in the order of the batch x, (batch, C, ...).

    evaluate: (part, x, conditions, options) -> (entries of the part, C, ...). conditions: what the host hands to the
    model beside x; whatever in it has one entry per entry of the batch is shared out with it.
    """
    result = None
    for part in parts:
        entries = part.entries.to(x.device)
        taken = _taken(dict(conditions), entries, len(x))
        y = evaluate(part, x[entries], taken, _options_of(options, part, len(x)))
        result = y.new_empty(len(x), *y.shape[1:]) if result is None else result
        result[entries] = y
    return result


def _options_of(options: Mapping[str, Any], part: EntryGroup, batch: int) -> dict[str, Any]:
    """The host's transformer options for the chunks and entries of a part."""
    own = dict(options)
    for name in ("cond_or_uncond", "uuids"):
        if name in own:
            own[name] = [own[name][chunk] for chunk in part.chunks]
    if own.get("sigmas") is not None:
        own["sigmas"] = _taken(own["sigmas"], part.entries.to(own["sigmas"].device), batch)
    return own


def _taken(value: Any, entries: Tensor, batch: int) -> Any:
    """The entries of whatever has as many as the batch, at any depth; all else as it is."""
    if isinstance(value, Tensor):
        return value[entries.to(value.device)] if value.ndim and len(value) == batch else value
    if isinstance(value, dict):
        return {key: _taken(each, entries, batch) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_taken(each, entries, batch) for each in value)
    return value
