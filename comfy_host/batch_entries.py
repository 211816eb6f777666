"""The entries of a model's batch: the strengths of each, and groups of them that are evaluated apart.

ComfyUI's batch is one chunk for each prompt, one after the other, and each chunk has every latent of the run.
Some models have layers whose first dimension is not the batch, or that see all entries at once. There, strengths
that differ between entries take several evaluations, each of a group of entries with the same strengths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..sliders.stack import Stack
from .cond_uncond import cond_or_uncond_of
from .model_classes import model_classes
from .model_state import Run

# Networks whose layers all have the batch in their first dimension, as the tests of families have shown. All others
# are taken to mix its entries: that is right for any network, only slower.
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
# Models that refuse a batch of several latents, or take its two halves for the two prompts of guidance
_BATCH_OF_ONE = model_classes("MiniMaxH3", "Hunyuan3Dv2_1")
# Models whose batch is the frames of one video, which layers over time see together
_ONE_VIDEO = model_classes("SVD_img2vid")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One call of a model's `apply_model`.

    x: (batch entries, C, ...). t: (batch entries,), their sigmas. options: ComfyUI's transformer options. run: the
    sampling run that the call belongs to.
    """

    base_model: BaseModel
    x: Tensor
    t: Tensor
    options: Mapping[str, Any]
    run: Run

    @property
    def chunk_count(self) -> int:
        """How many prompts the batch is made of."""
        return len(self.options.get("cond_or_uncond", (0,)))

    @property
    def latent_count(self) -> int:
        """How many latents each chunk has."""
        return self.x.shape[0] // self.chunk_count

    @property
    def patcher(self) -> ModelPatcher | None:
        """The patcher that ComfyUI samples with; None outside sampling."""
        return getattr(self.base_model, "current_patcher", None)

    @property
    def weights_version(self) -> Any:
        """Changes when ComfyUI patches the model's weights."""
        return getattr(self.base_model, "current_weight_patches_uuid", None)


@dataclass(frozen=True)
class EntryGroup:
    """Batch entries that share their strengths.

    entries: (n,), their indices. strengths: (1, sliders). chunks: the indices of the chunks that they are of.
    """

    entries: Tensor
    strengths: Tensor
    chunks: tuple[int, ...]


def entry_strengths(stack: Stack, evaluation: Evaluation) -> Tensor:
    """Return the strengths of an evaluation's entries: (batch entries, sliders), or (1, sliders) for all of them.

    Raises ValueError if a sweep does not fit the batch, or it is not known which entries are cond.
    """
    _check_sweep(stack, evaluation)
    chunks = evaluation.chunk_count
    if not stack.is_gated:
        strengths = stack.strengths()  # reading sigma would make ComfyUI wait for the device
    else:
        sigmas = evaluation.options.get("sigmas", evaluation.t)
        to_sigma = evaluation.run.percent_to_sigma(evaluation.base_model.model_sampling, sigmas.dtype)
        strengths = stack.strengths(float(sigmas.flatten()[0]), to_sigma)
    if any(each.cond_or_uncond != "both" for each in stack):
        _check_no_tiles(evaluation)
        kinds = cond_or_uncond_of(evaluation.base_model, evaluation.options)
        acts = torch.tensor([[each.cond_or_uncond in ("both", kind) for each in stack] for kind in kinds])
        by_latent = strengths.expand(evaluation.latent_count, -1)
        strengths = (acts[:, None] * by_latent).flatten(0, 1)  # (chunks, 1, sliders) * (B, sliders)
    elif stack.batch_size > 1:
        strengths = strengths.repeat(chunks, 1)  # (B, sliders) -> (chunks * B, sliders)
    return strengths


def _check_sweep(stack: Stack, evaluation: Evaluation) -> None:
    swept = stack.batch_size
    if swept > 1 and entries_are_frames(evaluation.base_model):
        raise ValueError(
            f"The sliders are swept over {swept} batch entries, but the batch of this model is the frames of one "
            "video, which share their strengths. Sample one video after the other, each at a strength of its own."
        )
    if swept > 1 and evaluation.x.shape[0] != swept * evaluation.chunk_count:
        raise ValueError(
            f"The sliders are swept over {swept} batch entries, but the batch that is sampled has "
            f"{evaluation.latent_count}; both numbers must be the same."
        )


def _check_no_tiles(evaluation: Evaluation) -> None:
    """Raise ValueError if the batch has more entries than ComfyUI asked for: their order is not known then."""
    asked, entries = evaluation.options.get("sigmas"), evaluation.t.numel()
    if asked is not None and entries > asked.numel() * evaluation.chunk_count:
        raise ValueError(
            f"The model is evaluated on {entries} entries at once where ComfyUI asked for "
            f"{asked.numel() * evaluation.chunk_count}: another node puts several tiles into one batch. Sliders on "
            "cond or uncond alone cannot tell there which of the two an entry is; let that node take one tile at a "
            "time, or let the sliders act on both."
        )


def needs_separate_evaluations(base_model: BaseModel, strengths: Tensor) -> bool:
    """Return True if strengths (batch entries, sliders) differ between entries that the model's layers mix.

    Text encoders, which have no diffusion model, keep their prompts apart.
    """
    if not hasattr(base_model, "diffusion_model"):
        return False
    apart = network_of(base_model) in BATCH_FIRST_NETWORKS and not entries_are_frames(base_model)
    return not apart and bool((strengths != strengths[:1]).any())


def network_of(base_model: BaseModel) -> str:
    """Return where the class of the model's network is, such as "comfy.ldm.flux.model.Flux"."""
    network = type(getattr(base_model.diffusion_model, "_orig_mod", base_model.diffusion_model))  # or as compiled
    return f"{network.__module__}.{network.__qualname__}"


def takes_batches_of_one(base_model: BaseModel) -> bool:
    """Return True if the model has to be evaluated on one latent after the other."""
    return isinstance(base_model, _BATCH_OF_ONE)


def entries_are_frames(base_model: BaseModel) -> bool:
    """Return True if the batch is the frames of one video, which cannot have strengths of their own."""
    return isinstance(base_model, _ONE_VIDEO)


def groups_of(strengths: Tensor, chunks: int, alone: bool = False) -> list[EntryGroup]:
    """Divide a batch with strengths (chunks * B, sliders) into groups: as few as hold whole latents or whole chunks.

    alone: each latent has a group of its own, even where others have its strengths.
    """
    by_latent = strengths.unflatten(0, (chunks, -1)).transpose(0, 1)  # (B, chunks, sliders)
    alike, member = by_latent.unique(dim=0, return_inverse=True)
    if alone:
        alike, member = by_latent, torch.arange(len(by_latent))
    found = []
    for index, each in enumerate(alike):  # each: (chunks, sliders)
        latents = torch.nonzero(member == index).flatten()
        same = bool((each == each[:1]).all())
        for taken in [range(chunks)] if same else [(chunk,) for chunk in range(chunks)]:
            entries = torch.cat([chunk * len(by_latent) + latents for chunk in taken])
            found.append(EntryGroup(entries, each[taken[0]][None], tuple(taken)))
    return found


def evaluate_groups(
    evaluate: Callable[..., Tensor],
    groups: Sequence[EntryGroup],
    x: Tensor,
    conditions: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Tensor:
    """Evaluate groups of a batch x (batch entries, C, ...) one after the other, and return the whole batch's result.

    evaluate: (group, x, conditions, options) -> (entries of the group, C, ...). conditions: what ComfyUI hands to the
    model beside x; of whatever in it has one entry per batch entry, each group gets its own. options: ComfyUI's
    transformer options.
    """
    whole = torch.empty(0)
    for number, group in enumerate(groups):
        entries = group.entries.to(x.device)
        own = _entries_of(dict(conditions), entries, len(x))
        y = evaluate(group, x[entries], own, _options_of(options, group, len(x)))
        if number == 0:
            whole = y.new_empty(len(x), *y.shape[1:])
        whole[entries] = y
    return whole


def own_containers(value: Any) -> Any:
    """Return the same tensors in dictionaries and lists of their own.

    Models take what a ControlNet adds off its lists, and may be evaluated more than once.
    """
    if type(value) is dict:
        return {key: own_containers(each) for key, each in value.items()}
    return [own_containers(each) for each in value] if type(value) is list else value


def _options_of(options: Mapping[str, Any], group: EntryGroup, batch: int) -> dict[str, Any]:
    """ComfyUI's transformer options for the chunks and entries of a group."""
    own = dict(options)
    for name in ("cond_or_uncond", "uuids"):
        if name in own:
            own[name] = [own[name][chunk] for chunk in group.chunks]
    if own.get("sigmas") is not None:
        own["sigmas"] = _entries_of(own["sigmas"], group.entries.to(own["sigmas"].device), batch)
    return own


def _entries_of(value: Any, entries: Tensor, batch: int) -> Any:
    """These entries of every tensor, at any depth, that has one for each batch entry; all else as it is."""
    if isinstance(value, Tensor):
        return value[entries.to(value.device)] if value.ndim and len(value) == batch else value
    if isinstance(value, dict):
        return {key: _entries_of(each, entries, batch) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_entries_of(each, entries, batch) for each in value)
    return value
