"""Runs that are cut off: cancelled, or out of memory in the sliders' own products. The next one is as the first."""

import comfy.model_management
import pytest
import torch
from concept_sliders.comfy_host import mode_choice
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.match import layer_names
from concept_sliders.comfy_host.model_state import state_of
from concept_sliders.sliders.changes import Adapter
from concept_sliders.sliders.equation import dense_hooks, hooks, weight_updates
from concept_sliders.sliders.equation.layer_kinds import weight_shape
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.failing_once import FailingOnce
from concept_sliders.tests.support.tiny import STEPS, difference, random_slider, sample, tiny_model, traces

FAMILY = "SD15"
MODES = mode_choice.MODES[1:]


@pytest.fixture
def model():
    return tiny_model(FAMILY)


def stack_on(model) -> Stack:
    """A low-rank slider and one that is no product."""
    generator = torch.Generator().manual_seed(4)
    layers = {}
    for path, name in layer_names(model).items():
        if "attn1" in path:
            out, inner = weight_shape(model.model.get_submodule(path), name)
            w1, w2 = ((0.3 * torch.randn(*s, generator=generator)) for s in ((2, 2), (out // 2, inner // 2)))
            layers[name] = Adapter({"lokr_w1": w1, "lokr_w2": w2})
    return Stack.of(random_slider(model), 0.6) + Stack.of(Slider("kronecker", layers), 0.5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("call", range(1, STEPS + 1))
def test_cancelled_at_any_call(model, mode, call):
    acted = apply_sliders(model, stack_on(model), mode)
    before, bare = sample(acted, FAMILY), sample(model, FAMILY)
    calls = []

    def cancel(apply_model, args):
        calls.append(1)
        if len(calls) == call:
            # as the button does, in the middle of an evaluation
            comfy.model_management.interrupt_current_processing()
            handle = model.model.diffusion_model.middle_block.register_forward_pre_hook(
                lambda module, given: comfy.model_management.throw_exception_if_processing_interrupted()
            )
            try:
                return apply_model(args["input"], args["timestep"], **args["c"])
            finally:
                handle.remove()
        return apply_model(args["input"], args["timestep"], **args["c"])

    cancelled = acted.clone()
    cancelled.set_model_unet_function_wrapper(cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(cancelled, FAMILY)
    assert len(calls) == call
    assert traces(model) == []
    assert torch.equal(sample(acted, FAMILY), before)
    assert torch.equal(sample(model, FAMILY), bare)


@pytest.mark.parametrize("at", [1, 5])
@pytest.mark.parametrize(
    ("module", "name"),
    [(hooks, "join"), (hooks, "add_linear"), (hooks, "add_convolution"), (dense_hooks, "_multiplied")],
)
def test_out_of_memory_unmerged(model, monkeypatch, module, name, at):
    """It is the run's, as out of memory anywhere in it is; nothing is left of it."""
    acted = apply_sliders(model, stack_on(model), "unmerged")
    before, bare = sample(acted, FAMILY), sample(model, FAMILY)
    state_of(model.model).clear()
    with monkeypatch.context() as patched:
        patched.setattr(module, name, FailingOnce(getattr(module, name), at))
        with pytest.raises(torch.cuda.OutOfMemoryError):
            sample(acted, FAMILY)
    assert traces(model) == []
    assert torch.equal(sample(acted, FAMILY), before)
    assert torch.equal(sample(model, FAMILY), bare)


@pytest.mark.parametrize("at", [1, 7])
@pytest.mark.parametrize("name", ["_add", "_add_products", "apply_changes", "flat_weight"])
def test_out_of_memory_while_merging_goes_on_unmerged(model, monkeypatch, caplog, name, at):
    """In the middle of building, low-rank or not: the run goes on unmerged, and the next one merges."""
    acted = apply_sliders(model, stack_on(model), "merged")
    before, bare = sample(acted, FAMILY), sample(model, FAMILY)
    unmerged = sample(apply_sliders(model, stack_on(model), "unmerged"), FAMILY)
    state_of(model.model).clear()
    with monkeypatch.context() as patched:
        patched.setattr(weight_updates, name, FailingOnce(getattr(weight_updates, name), at))
        assert difference(sample(acted, FAMILY), unmerged) < 1e-4
    assert "no memory for merged weights" in caplog.text
    assert traces(model) == []
    assert torch.equal(sample(acted, FAMILY), before)
    assert torch.equal(sample(model, FAMILY), bare)
