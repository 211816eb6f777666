"""Sliders beside stock LoRAs, whichever comes first, copies for other GPUs, and long use."""

import gc
from pathlib import Path

import comfy.sd
import pytest
import torch
from concept_sliders.comfy_host import mode_choice
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.match import layer_names
from concept_sliders.comfy_host.model_state import state_of
from concept_sliders.sliders.changes import Adapter
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.slider import Slider
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.tiny import (
    difference,
    one_evaluation,
    random_slider,
    sample,
    tensors_of,
    tiny_model,
    traces,
)

MODES = mode_choice.MODES[1:]
FAMILY = "SD15"


@pytest.fixture
def model():
    return tiny_model(FAMILY)


def stock(model, tensors, strength):
    return comfy.sd.load_lora_for_models(model, None, tensors, strength, 0.0)[0]


def dora(model) -> tuple[Slider, dict[str, torch.Tensor]]:
    """DoRA on the attention layers, and its tensors by the stock loader's keys."""
    generator, layers = torch.Generator().manual_seed(4), {}
    for name, change in random_slider(model, 3).layers.items():
        if "attn" in name:
            magnitudes = 1 + 0.3 * torch.rand(change.up.shape[0], 1, generator=generator)
            parts = {"lora_up.weight": change.up, "lora_down.weight": change.down, "dora_scale": magnitudes}
            layers[name] = Adapter(parts)
    tensors = {f"{name}.{part}": t for name, change in layers.items() for part, t in change.parts.items()}
    return Slider("DoRA", layers), tensors


@pytest.mark.parametrize("mode", mode_choice.MODES)
@pytest.mark.parametrize("stock_first", [True, False])
def test_the_stock_loader_before_and_after(model, mode, stock_first):
    """Low-rank changes add up, whichever node comes first, and the result stays the same in the next run."""
    ours, theirs = random_slider(model, 1), tensors_of(random_slider(model, 2))
    expected = sample(stock(stock(model, tensors_of(ours), 0.7), theirs, 0.5), FAMILY)
    if stock_first:
        acted = apply_sliders(stock(model, theirs, 0.5), Stack.of(ours, 0.7), mode)
    else:
        acted = stock(apply_sliders(model, Stack.of(ours, 0.7), mode), theirs, 0.5)
    for _ in range(2):
        assert difference(sample(acted, FAMILY), expected) < 1e-4
    assert traces(model) == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stock_first", [True, False])
def test_dora_acts_on_weights_as_the_stock_loader_has_patched_them(model, mode, stock_first):
    """ComfyUI patches weights as it loads them, so that its LoRA comes first, wherever its node stands."""
    (ours, tensors), theirs = dora(model), tensors_of(random_slider(model, 2))
    expected = sample(stock(stock(model, theirs, 0.5), tensors, 0.7), FAMILY)
    if stock_first:
        acted = apply_sliders(stock(model, theirs, 0.5), Stack.of(ours, 0.7), mode)
    else:
        acted = stock(apply_sliders(model, Stack.of(ours, 0.7), mode), theirs, 0.5)
    assert difference(sample(acted, FAMILY), expected) < 1e-4
    alone = sample(stock(model, tensors, 0.7), FAMILY)
    assert difference(sample(apply_sliders(model, Stack.of(ours, 0.7), mode), FAMILY), alone) < 1e-4


@pytest.mark.parametrize("mode", MODES)
def test_a_copy_for_another_gpu(model, mode):
    """ComfyUI loads such a copy anew from the file: another module tree, with the same wrappers."""
    stack = Stack.of(random_slider(model, 1), 0.7, Gate(0.3)) + Stack.of(random_slider(model, 2), -0.5).restricted_to(
        "cond"
    )
    model.cached_patcher_init = (tiny_model, (FAMILY,))
    acted = apply_sliders(model, stack, mode)
    expected = sample(acted, FAMILY)
    copy = acted.deepclone_multigpu(torch.device("cpu"))
    assert copy.model is not acted.model
    for _ in range(2):
        assert difference(sample(copy, FAMILY), expected) < 1e-6
        assert difference(sample(acted, FAMILY), expected) < 1e-6
    assert state_of(copy.model) is not state_of(acted.model)
    assert traces(copy) == traces(acted) == []


def resident_bytes() -> int:
    """The memory of this process that is in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read as Linux tells it")
def test_a_hundred_runs_with_random_stacks_leave_memory_flat(model):
    """New sliders all the time, in both modes, with gates and sweeps: what the first runs take is all there is."""
    generator = torch.Generator().manual_seed(0)
    bare, kinds = one_evaluation(model, Stack(), "unmerged"), dora(model)[0]
    names = dict(list(layer_names(model).items())[::6])

    def fresh(seed: int) -> Slider:
        return random_slider(model, seed, names, rank=48)

    def run(turn: int) -> None:
        stack = Stack()
        for _ in range(int(torch.randint(1, 5, (1,), generator=generator))):
            seed = int(torch.randint(0, 2**31, (1,), generator=generator))
            gate = Gate(0.0, 0.9) if seed % 3 == 0 else None
            stack += Stack.of(fresh(seed), 0.1 + seed % 7 / 10, gate)
        if turn % 4 == 0:
            stack += Stack.of(kinds, 0.3)
        one_evaluation(model, stack, mode_choice.MODES[turn % 3])

    for turn in range(20):
        run(turn)
    gc.collect()
    before = resident_bytes()
    for turn in range(110):
        run(turn)
    gc.collect()
    one_slider = fresh(0).size_bytes
    assert one_slider > 5e5
    assert resident_bytes() - before < 20 * one_slider  # some 300 sliders have come and gone
    assert torch.equal(one_evaluation(model, Stack(), "unmerged"), bare)
