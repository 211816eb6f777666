"""Sliders on weights in half precision and in 8 bits: what the stock loader's patches give in float32, by layers."""

import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.match import match_slider
from concept_sliders.comfy_host.mode_choice import MODES
from concept_sliders.sliders.formats.slider_files import load_slider
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.family_checks import STRENGTH, Subject, tensors_of
from concept_sliders.tests.support.layer_type_files import OTHERS, PRODUCTS, files_of
from safetensors.torch import save_file
from torch.utils._pytree import tree_map

# Of weights and of computing, None where that is the same
DTYPES = {
    "bfloat16": (torch.bfloat16, None),
    "float16": (torch.float16, None),
    "float8": (torch.float8_e4m3fn, torch.float32),
}
IN_EIGHT_BITS = {
    "MiniMax H3": "the host computes its rotary norms in the weights' own dtype, and not in this one",
    "Hunyuan3D 2.1": "the host brings what it computes into the weights' own dtype, and not into this one",
}


def in_dtype(
    subject: Subject, weights: torch.dtype, compute: torch.dtype | None
) -> tuple[ModelPatcher, ModelPatcher]:
    """The model with weights of a dtype, computed in another where one is given, and the same numbers in float32."""
    family = subject.family
    config = family.config({"dtype": weights, **family.unet})
    config.unet_config.update({**family.unet, "dtype": weights})
    config.set_inference_dtype(weights, compute)
    typed = config.get_model(dict(family.state), device=torch.device("cpu"))
    for path, make in family.parts.items():
        typed.diffusion_model.set_submodule(path, make().to(weights).eval().requires_grad_(False))
    own = subject.model.model.state_dict()
    single = family.build()
    with torch.no_grad():
        for name, parameter in typed.named_parameters():
            parameter.data = own[name].to(parameter.dtype)  # some are in float32 in every model
        for name, parameter in single.model.named_parameters():
            parameter.copy_(typed.get_parameter(name).float())
        for name, buffer in typed.named_buffers():
            buffer.copy_(own[name]) if name in own else None
    cpu = torch.device("cpu")
    return ModelPatcher(typed, cpu, cpu), single


def copied(value):
    return value.clone() if isinstance(value, torch.Tensor) else value


def in_float32(value):
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def calls_of(subject: Subject, acted: ModelPatcher, paths) -> dict[str, tuple]:
    """What each layer was first given in an evaluation, and what came of it with the sliders acting."""
    calls: dict[str, tuple] = {}

    def listen(executor, *args, **kwargs):
        modules = {path: executor.class_obj.get_submodule(path) for path in paths}

        def heard(path):
            # copies: ComfyUI changes some in place afterwards
            return lambda _, args, given, y: calls.setdefault(path, tree_map(copied, (args, given, y))) and None

        # within the sliders' own wrapper, so that these hooks come after theirs
        hooks = [m.register_forward_hook(heard(path), with_kwargs=True) for path, m in modules.items()]
        try:
            return executor(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()

    acted.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "listen", listen)
    subject.sampled(acted, steps=1)
    return calls


def compare(subject: Subject, dtype: str, slider: Slider, tensors, strength: float) -> None:
    """Each layer gives what it would give with the stock loader's patches in float32, but for the rounding.

    That is half a unit in the last place of its output's dtype, relative to its size with and without the slider; on
    most layers what the slider does is more than five times as much.
    """
    weights, compute = DTYPES[dtype]
    typed, single = in_dtype(subject, weights, compute)
    stock, _ = comfy.sd.load_lora_for_models(single, None, dict(tensors), strength, 0.0)
    layers = {path: single.model.get_submodule(path) for path in match_slider(typed, slider).layers}

    @torch.inference_mode()
    def given_by_single(calls):
        return {path: layers[path](*tree_map(in_float32, x), **tree_map(in_float32, c)) for path, (x, c, _) in calls}

    for mode in MODES[1:] if weights.itemsize > 1 else MODES[1:2]:  # in 8 bits nothing is merged
        outputs = calls_of(subject, apply_sliders(typed, Stack.of(slider, strength), mode), layers)
        calls = outputs.items()
        bare = given_by_single(calls)
        stock.patch_model()
        exact = given_by_single(calls)
        stock.unpatch_model()
        clear = []
        for path, (_, _, y) in calls:
            size = exact[path].norm() + bare[path].norm()
            close = max(0.5 * torch.finfo(y.dtype).eps, 2e-6) * size
            assert (y.float() - exact[path]).norm() <= close, (path, mode)
            clear.append(bool((exact[path] - bare[path]).norm() > 5 * close))
        assert sum(clear) > 0.7 * len(calls), f"{mode}: only {sum(clear)} of {len(calls)} layers show what acts"


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request, tmp_path_factory):
    return Subject(request.param, tmp_path_factory.mktemp("dtypes"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_low_rank_products(subject, dtype):
    if dtype == "float8" and subject.name in IN_EIGHT_BITS:
        pytest.skip(IN_EIGHT_BITS[subject.name])
    compare(subject, dtype, subject.slider, tensors_of(subject.slider), STRENGTH)


@pytest.fixture(scope="module", params=["SD 1", "Flux", "Wan 2.1", "HiDream"])
def of_kinds(request, tmp_path_factory):
    return Subject(request.param, tmp_path_factory.mktemp("dtypes"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.filterwarnings("ignore")
def test_every_kind(of_kinds, dtype):
    for tensors in (*files_of(of_kinds, PRODUCTS), *files_of(of_kinds, OTHERS)):
        path = of_kinds.folder / "kinds.safetensors"
        save_file(tensors, path)
        compare(of_kinds, dtype, load_slider(path), tensors, 1.0)
