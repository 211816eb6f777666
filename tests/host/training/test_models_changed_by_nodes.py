"""Training on models that other nodes have changed: attention without a backward pass, compilation, wrappers."""

import comfy.ldm.modules.attention as host_attention
import pytest
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from comfy_extras.nodes_torch_compile import TorchCompileModel
from concept_sliders.comfy_host.attention import OVERRIDE, LearningAttention
from concept_sliders.tests.support.short_runs import same, train_on
from concept_sliders.training.run import RunOptions

FEW = {
    "steps": 4,
    "rank": 2,
    "rollout_steps": 2,
    "samples_per_rollout": 2,
    "learning_rate": 2e-3,
    "on_policy_rollouts": 1.0,
}
QKV = torch.randn(3, 1, 6, 16, generator=torch.Generator().manual_seed(0))


def trained(model, clip):
    return train_on(model, clip)(RunOptions(preview_every=0), **FEW).slider


@torch.library.custom_op("concept_sliders_tests::off", mutates_args=())
def off(out: torch.Tensor) -> torch.Tensor:
    """A kernel that torch cannot follow, and that is a little off, as those in few bits are."""
    return 1.1 * out


@off.register_fake
def _(out):
    return torch.empty_like(out)


FORWARD_ONLY = {  # overrides as nodes put them in: a result that stands alone, and one that raises in backward
    "detached": lambda usual, q, k, v, *args, **kwargs: (
        1.1 * usual(*(t.detach() for t in (q, k, v)), *args, **kwargs)
    ),
    "without a formula": lambda usual, *args, **kwargs: off(usual(*args, **kwargs)),
}


def with_option(model, name, value):
    clone = model.clone()
    clone.model_options["transformer_options"][name] = value
    return clone


@pytest.mark.parametrize("kind", FORWARD_ONLY)
def test_attention_of_a_node_that_has_no_gradient_gives_way_to_torch(pocket, caplog, kind):
    """In all that training asks, or the slider would learn how far the kernel is off."""
    model, clip, _ = pocket
    changed = with_option(model, OVERRIDE, FORWARD_ONLY[kind])
    run = train_on(changed, clip)(RunOptions(preview_every=0), **FEW)
    assert same(trained(model, clip), run.slider)
    (note,) = run.progress.notes
    assert "has no backward pass" in note and caplog.text.count(note) == 1


def test_attention_of_a_node_that_has_a_gradient_is_kept(pocket):
    model, clip, _ = pocket
    halved = with_option(model, OVERRIDE, lambda usual, *args, **kwargs: 0.5 * usual(*args, **kwargs))
    assert not same(trained(model, clip), trained(halved, clip))


def kernel(name):
    def attention(*args, **kwargs):
        raise AssertionError("not to be called")

    attention.__name__ = name
    return attention


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("name", ["attention_sage", "attention_flash"])
def test_comfyuis_kernels_without_a_gradient_give_way_to_torch(name, learns):
    """In all that training asks: targets and predictions are to be of one model."""
    q, k, v = QKV.clone().requires_grad_(learns).unbind()
    out = LearningAttention({})(kernel(name), q, k, v, 2)
    torch.testing.assert_close(out, host_attention.attention_basic(q, k, v, 2))
    assert out.requires_grad == learns


def test_attention_that_learns_is_torchs_and_else_comfyuis():
    usual, (q, k, v) = host_attention.attention_sub_quad, QKV.clone().unbind()
    assert torch.equal(LearningAttention({})(usual, q, k, v, 2), usual(q, k, v, 2))
    learning = LearningAttention({})(kernel("attention_sub_quad"), q.requires_grad_(), k, v, 2)
    torch.testing.assert_close(learning, usual(q, k, v, 2))


def test_a_compiled_model_learns_what_it_learns_uncompiled(pocket):
    """By its slider's own trajectories, too, which are made without gradients."""
    model, clip, _ = pocket
    torch.compiler.reset()
    fast = TorchCompileModel.execute(model, "cudagraphs").args[0]
    assert same(trained(model, clip), trained(fast, clip))


def test_wrappers_in_the_models_options_act(pocket):
    model, clip, _ = pocket
    calls, clone = [], model.clone()

    def count(executor, *args, **kwargs):
        calls.append(1)
        return executor(*args, **kwargs)

    add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count, clone.model_options, is_model_options=True)
    assert same(trained(model, clip), trained(clone, clip)) and calls
