"""Changes of several kinds on the same layers, in order: as the stock loader applies them one after the other."""

import comfy.sd
import pytest
import torch
from concept_sliders.comfy_host import mode_choice
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.model_state import state_of
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.adapter_sliders import slider_of
from concept_sliders.tests.support.tiny import difference, sample, tiny_model, traces

FAMILY = "SD15"
MODES = mode_choice.MODES[1:]


@pytest.fixture
def model():
    return tiny_model(FAMILY)


def stacked(model, kinds, strengths):
    """The stack of these kinds, and the model with stock loaders in the same order."""
    stack, stock = Stack(), model
    for seed, (kind, strength) in enumerate(zip(kinds, strengths, strict=True), start=3):
        slider, tensors = slider_of(model, kind, seed)
        stack += Stack.of(slider, strength)
        stock, _ = comfy.sd.load_lora_for_models(stock, None, tensors, strength, 0.0)
    return stack, stock


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "kinds",
    [
        ("LoRA", "DoRA"),
        ("DoRA", "LoRA"),
        ("LoKr", "OFT"),
        ("OFT", "DoRA", "LoRA"),
        ("BOFT", "LoRA"),
        ("LoRA", "GLoRA"),
    ],
)
def test_one_after_the_other_as_the_stock_loader(model, kinds, mode):
    stack, stock = stacked(model, kinds, (0.8, -0.6, 0.5)[: len(kinds)])
    expected, bare = sample(stock, FAMILY), sample(model, FAMILY)
    assert difference(expected, bare) > 1e-2
    assert difference(sample(apply_sliders(model, stack, mode), FAMILY), expected) < 1e-4
    assert traces(model) == []
    assert torch.equal(sample(model, FAMILY), bare)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["OFT", "BOFT"])
@pytest.mark.parametrize("strength", [0.5, -1.0])
def test_a_rotation_away_from_strength_1(model, kind, strength, mode):
    """ComfyUI applies the strength of an OFT twice; so do sliders."""
    stack, stock = stacked(model, (kind,), (strength,))
    assert difference(sample(apply_sliders(model, stack, mode), FAMILY), sample(stock, FAMILY)) < 1e-4


@pytest.mark.parametrize("mode", MODES)
def test_turning_one_of_them(model, mode):
    """The sliders before and after it are worked out with it."""
    for strength in (0.3, 0.9, 0.0, -0.4):
        stack, stock = stacked(model, ("LoRA", "DoRA", "LoRA", "LoKr"), (0.5, 0.7, strength, 0.4))
        assert difference(sample(apply_sliders(model, stack, mode), FAMILY), sample(stock, FAMILY)) < 1e-4


@pytest.mark.parametrize("kinds", [("LoRA", "DoRA"), ("OFT",)])
@pytest.mark.parametrize("mode", mode_choice.MODES)
def test_batch_entries_are_the_single_runs(model, kinds, mode):
    """What does not add up is worked out for each strength, in evaluations of its own."""
    values = (-0.5, 0.0, 0.8)
    stack, _ = stacked(model, kinds, (0.8, 0.6)[: len(kinds)])
    batch = sample(apply_sliders(model, stack.swept(0, values), mode), FAMILY, batch_size=3)
    for entry, value in enumerate(values):
        _, stock = stacked(model, kinds, (value, 0.6)[: len(kinds)])
        assert difference(batch[entry : entry + 1], sample(stock, FAMILY)) < 1e-4


def test_a_ramp_and_uncond_alone_are_worked_out_together_too(model):
    """Strength for strength: each evaluation is that of the model with stock loaders at those strengths."""
    stack, _ = stacked(model, ("LoRA", "DoRA"), (0.8, 0.6))
    still, turning = Stack((stack[0],)), Stack((stack[1],))
    for changed in (turning.gated(Gate(0.0, 1.0, 0.9)), turning.restricted_to("cond")):
        merged, unmerged = (
            sample(apply_sliders(model, still + changed, mode), FAMILY) for mode in ("merged", "unmerged")
        )
        assert difference(merged, unmerged) < 1e-5
    seen = []

    def spy(apply_model, args):
        seen.append(apply_model(args["input"], args["timestep"], **args["c"]).clone())
        by_chunk = (
            args["input"].chunk(2),
            args["timestep"].chunk(2),
            args["c"]["c_crossattn"].chunk(2),
            seen[-1].chunk(2),
        )
        for chunk, x, t, words, y in zip(args["cond_or_uncond"], *by_chunk, strict=True):
            alone = models[chunk].model.apply_model(x, t, c_crossattn=words)
            assert difference(y, alone) < 1e-4
        return seen[-1]

    models = []
    for strengths in ((0.8, 0.6), (0.8, 0.0)):
        fresh = tiny_model(FAMILY)
        _, stock = stacked(fresh, ("LoRA", "DoRA"), strengths)
        stock.patch_model()
        models.append(stock)
    acted = apply_sliders(model, still + turning.restricted_to("cond"))
    acted.set_model_unet_function_wrapper(spy)
    sample(acted, FAMILY)
    assert len(seen) == 6


def test_no_room_to_keep_anything_multiplied_out(model, monkeypatch):
    """Unmerged, what is no product is then made anew in each layer: the same numbers, and nothing kept."""
    stack, stock = stacked(model, ("LoKr", "LoRA", "LoKr"), (0.8, 0.5, -0.4))
    expected = sample(stock, FAMILY)
    acted = apply_sliders(model, stack, "unmerged")
    assert difference(sample(acted, FAMILY), expected) < 1e-4
    kept = kept_by(model)
    state_of(model.model).clear()
    monkeypatch.setattr(
        mode_choice.comfy.model_management, "get_free_memory", lambda d, both=False: (0, 0) if both else 0
    )
    assert difference(sample(acted, FAMILY), expected) < 1e-4
    assert kept_by(model) < kept


def kept_by(model) -> int:
    return state_of(model.model).size_bytes


@pytest.mark.parametrize("count", [1, 4])
def test_merged_weights_of_any_number_of_them_take_one_copy(model, count):
    """Nothing is kept multiplied out, slider by slider."""
    stack, _ = stacked(model, ("LoKr",) * count, (0.3,) * count)
    sample(apply_sliders(model, stack, "merged"), FAMILY)
    state = state_of(model.model)
    assert state.merged.uses == 6
    touched = [p for n, p in model.model.named_parameters() if "attn1" in n and n.endswith("weight") and p.ndim == 2]
    assert state.size_bytes == sum(p.numel() * p.element_size() for p in touched)
