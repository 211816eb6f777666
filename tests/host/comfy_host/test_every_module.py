"""Every kind of change on every module of every family that has parameters, at once.

Fused kernels read weights of modules whose `forward` never runs: a change that is added to a layer's output does
nothing there, without a word. So no module is left out here, whether its `forward` runs or not.
"""

from contextlib import nullcontext

import comfy.sd
import pytest
import torch
from concept_sliders.comfy_host.autograd import PlainRotary, differentiable
from concept_sliders.comfy_host.borrow import borrowed, for_autograd
from concept_sliders.comfy_host.denoiser import Denoiser
from concept_sliders.comfy_host.latents import packed
from concept_sliders.comfy_host.model_state import state_of
from concept_sliders.comfy_host.prompt_layers import prepares_prompts
from concept_sliders.comfy_host.saved_tensors import overwriting_saved_tensors
from concept_sliders.sliders.formats.slider_files import load_slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.every_module import TURNS, Factors, changed, file_of, modules_of
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.family_checks import Subject
from concept_sliders.tests.support.tiny import difference
from safetensors.torch import save_file

# In one file modules take turns at the kinds of changes: in `TURNS` files each module has had every kind, which takes
# long. With `--release` all families have all files. Without it these do; the others have two, the next families
# in the table the next two, so that modules of the same sort meet every kind in families that are alike
ALL_TURNS = ("Z-Image", "Stable Cascade B", "Wan 2.2 Animate")
# Its rotary norms are in place, and have a form with gradients in ComfyUI's training only
IN_TRAINING = ("MiniMax H3",)
# What has no gradient either way in these runs: parts for reference images, speakers or other inputs that a picture
# from words has not; what a last block makes of the prompt's tokens; experts to which no token goes, or, on
# Hunyuan3D 2.1, whose answers ComfyUI takes without gradients
_LAST = ("transformer_blocks.0.txt_mlp.", "transformer_blocks.0.attn.norm_added_q.")
_LAST_OF_QWEN = (*_LAST, "transformer_blocks.0.attn.add_q_proj.", "transformer_blocks.0.attn.to_add_out.")
_EXPERTS = "double_stream_blocks.0.block.ff_i.experts"
_CROSS = "transformer_blocks.0.cross_attn"
SILENT: dict[str, tuple[str, ...]] = {
    "Stable Cascade C": ("clip_img_mapper.weight",),
    "Stable Cascade B": ("pixels_mapper.0.weight",),
    "SD3": ("joint_blocks.0.context_block.attn.ln_q.",),
    "Hunyuan-DiT": ("text_embedding_padding",),
    "Z-Image": ("x_pad_token",),
    "Qwen-Image": _LAST_OF_QWEN,
    "Qwen-Image Edit": _LAST_OF_QWEN,
    "HiDream": (f"{_EXPERTS}.0.", f"{_EXPERTS}.2.", "single_stream_blocks.0.block.ff_i.experts.3."),
    "HiDream O1": ("visual.",),
    "OmniGen 2": ("image_index_embedding", "ref_image_"),
    "Boogu": ("image_index_embedding", "ref_image_"),
    "Lens": (*_LAST, "transformer_blocks.0.attn.to_add_out.", "transformer_blocks.0.txt_norm2."),
    "MageFlow": _LAST_OF_QWEN,
    "JoyImage": tuple(f"double_blocks.0.{n}." for n in ("txt_mlp", "attn.txt_attn_q_norm", "attn.txt_attn_proj")),
    "PixelDiT": tuple(f"patch_blocks.0.{n}." for n in ("attn.q_norm_y", "attn.proj_y", "norm_y2", "mlp_y")),
    "HunyuanVideo 1.5": ("vision_in.",),
    "Mochi": ("blocks.1.attn.q_norm_y.",),
    "ACE-Step": (f"{_CROSS}.add_", f"{_CROSS}.to_add_out.", "speaker_embedder.weight", "projectors."),
    "ACE-Step 1.5": ("null_condition_emb", "encoder.timbre_encoder.special_token", "tokenizer.", "detokenizer."),
    "Wan 2.1 image to video": ("img_emb.",),
    "Hunyuan3D 2.1": ("blocks.2.moe.experts.", "blocks.2.moe.gate."),
}
# Attention to one token, or one frame, depends on no query and no key: their gradients are zero but for rounding,
# which is zero itself on some machines
_OF_ONE = (".attn2.to_q.", ".attn2.to_k.", ".norm2.", ".time_stack.0.attn1.to_q.", ".time_stack.0.attn1.to_k.")
ROUNDED = {"Stable Zero123": _OF_ONE, "SVD": (*_OF_ONE, ".time_stack.0.norm1.")}


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request, tmp_path_factory):
    return Subject(request.param, tmp_path_factory.mktemp("every_module"))


def unreached(subject, modules, tensors):
    """What the stock loader leaves out of a file, parameters of modules with others in them, by parameter.

    But for those that prepare prompts: sliders leave them out too, and say so.
    """
    blocks = {p: m for p, m in modules.items() if any(m.children()) and not prepares_prompts(subject.model.model, p)}
    own = {f"{p}.{n}": f"{p}.{n}.diff" for p, m in blocks.items() for n in m._parameters}
    return {name: tensors[key] for name, key in own.items() if key in tensors}


def turns_of(family, every):
    if every or family in ALL_TURNS:
        return range(TURNS)
    first = list(FAMILIES).index(family) % TURNS
    return first, (first + TURNS // 2) % TURNS


@pytest.mark.parametrize("kind", range(TURNS))
def test_modules_of_families_that_are_alike_meet_every_kind(kind):
    alike = [name for name in FAMILIES if name.startswith("Wan")]
    assert any(kind in turns_of(name, every=False) for name in alike if name not in ALL_TURNS)
    assert all(kind in turns_of(name, every=True) for name in FAMILIES)


@pytest.mark.filterwarnings("ignore")
def test_unmerged_is_merged_is_the_stock_loader(subject, pytestconfig):
    """At strength 1, since of an OFT ComfyUI takes the strength twice."""
    modules, bare = modules_of(subject), subject.sampled(subject.model, steps=1)
    for turn in turns_of(subject.name, pytestconfig.getoption("release")):
        tensors = file_of(modules, turn)
        path = subject.folder / "every_module.safetensors"
        save_file(tensors, path)
        slider = load_slider(path)
        stock, _ = comfy.sd.load_lora_for_models(subject.model, None, tensors, 1.0, 0.0)
        with changed(subject, unreached(subject, modules, tensors), 1.0):
            expected = subject.sampled(stock, steps=1)
        assert difference(expected, bare) > 1e-2
        for mode in ("unmerged", "merged"):
            assert difference(subject.acting(Stack.of(slider), mode, steps=1), expected) < 1e-4, (mode, turn)
    assert torch.equal(subject.sampled(subject.model, steps=1), bare)  # ComfyUI takes its patches off for it
    assert not state_of(subject.model.model).bypassed
    subject.assert_untouched()


def test_every_factor_has_the_same_gradient_both_ways(subject):
    """Of one random number of the model's answer, in ComfyUI's way of inference, fused kernels and all."""
    factors = Factors(subject)
    with torch.inference_mode(), borrowed(subject.model):
        x, shapes = packed(subject.family.noise())
        denoiser = Denoiser(subject.model, {"": for_autograd(subject.family.conditioning(2))}, shapes)
        sigma = denoiser.sigmas(4)[1]
        x = denoiser.scale_noise(sigma, x)
        along = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))

        def gradients(acting):
            training = differentiable(False) if subject.name in IN_TRAINING else nullcontext()
            with overwriting_saved_tensors(), PlainRotary(), training, acting:
                asked = (denoiser(x, sigma, [""]) * along).sum()
                found = torch.autograd.grad(asked, list(factors.values.values()), allow_unused=True)
            return torch.stack([torch.zeros(()) if each is None else each for each in found])

        ours, expected = gradients(factors.unmerged()), gradients(factors.merged())
    wrong = (ours - expected).abs() > 1e-3 * expected.abs() + 1e-5 * expected.abs().max()
    assert not [(n, o, e) for n, o, e, bad in zip(factors.values, ours, expected, wrong, strict=True) if bad]
    silent = tuple(f"diffusion_model.{name}" for name in SILENT.get(subject.name, ()))
    without = {name for name, gradient in zip(factors.values, ours, strict=True) if not gradient}
    rounded = {name for name in without if any(part in name for part in ROUNDED.get(subject.name, ()))}
    assert without - rounded == {name for name in factors.values if name.startswith(silent)}
    subject.assert_untouched()
