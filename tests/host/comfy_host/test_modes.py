"""Merged and unmerged: both modes agree with ComfyUI's own weight patches, and with each other."""

import comfy.lora
import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import pytest
import torch
from concept_sliders.comfy_host import mode_choice
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.match import layer_names
from concept_sliders.comfy_host.model_state import state_of
from concept_sliders.sliders.equation import merged_weights as merging
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.tiny import difference, random_slider, sample, tiny_model, traces

MODES = mode_choice.MODES[1:]
FAMILY = "SD15"


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """The sliders of these tests are few, their runs are short: the rule is to merge all the same."""
    monkeypatch.setattr(mode_choice, "FEW", 0)


@pytest.fixture
def model():
    return tiny_model(FAMILY)


def merged_of(model):
    return state_of(model.model).merged


def own_weights(model):
    return {name: (id(p), p.clone()) for name, p in model.model.named_parameters()}


@pytest.mark.parametrize("family", ["SD15", "SDXL", "Flux"])
def test_both_modes_agree(family):
    model = tiny_model(family)
    stack = Stack.of(random_slider(model, 1), 0.7) + Stack.of(random_slider(model, 2), -0.4)
    before = own_weights(model)
    merged = sample(apply_sliders(model, stack, "merged"), family)
    assert merged_of(model).uses == 6
    assert difference(merged, sample(apply_sliders(model, stack, "unmerged"), family)) < 1e-4
    assert traces(model) == []
    for name, p in model.model.named_parameters():
        assert id(p) == before[name][0]
        assert torch.equal(p, before[name][1])


@pytest.mark.parametrize("mode", MODES)
def test_turning_one_of_many_equals_a_fresh_start(model, mode):
    sliders = [random_slider(model, seed) for seed in range(8)]
    strengths = [0.3] * 8
    for turned in range(4):
        strengths[turned] = -0.5 + turned
        stack = sum((Stack.of(s, v) for s, v in zip(sliders, strengths, strict=True)), Stack())
        ours = sample(apply_sliders(model, stack, mode), FAMILY)
        fresh = sample(apply_sliders(tiny_model(FAMILY), stack, mode), FAMILY)
        assert difference(ours, fresh) < 1e-4


def test_the_same_numbers_from_another_file_are_the_same_slider(model):
    """Reading a file again makes no new bank: what is kept is found by what the slider holds."""
    one, again = random_slider(model), random_slider(model)
    assert one is not again
    assert one.content_hash == again.content_hash
    sample(apply_sliders(model, Stack.of(one), "merged"), FAMILY)
    sample(apply_sliders(model, Stack.of(again, 0.5), "merged"), FAMILY)
    assert merged_of(model).uses == 12
    assert random_slider(model, 5).content_hash != one.content_hash


@pytest.mark.parametrize("gates", [(Gate(0.4),), (Gate(0.2, 0.7),), (Gate(0.4), Gate(0.2, 0.6))])
def test_gates_swap_pointers(model, gates):
    stack = Stack()
    for seed, gate in enumerate(gates):
        stack += Stack.of(random_slider(model, seed), 0.8, gate)
    merged, unmerged = (sample(apply_sliders(model, stack, mode), FAMILY) for mode in ("merged", "unmerged"))
    assert difference(merged, unmerged) < 1e-4
    assert 0 < merged_of(model).uses < 6


def builds_of(monkeypatch) -> list:
    """What is built or updated from now on, one entry a weight."""
    made: list[int] = []
    for name in ("build", "update"):
        real = getattr(merging, name)
        monkeypatch.setattr(merging, name, lambda *given, real=real: (made.append(1), real(*given))[1])
    return made


@pytest.mark.parametrize("gates", [(None, Gate(0.4)), (None, Gate(0.4), Gate(0.2, 0.7))])
def test_gates_that_open_at_different_times_swap_pointers(model, gates, monkeypatch):
    """In every run but the first, nothing is worked out where some sliders act from the start and some later."""
    stack = Stack()
    for seed, gate in enumerate(gates):
        stack += Stack.of(random_slider(model, seed), 0.8, gate)
    acted = apply_sliders(model, stack, "merged")
    first = sample(acted, FAMILY)
    assert difference(first, sample(apply_sliders(model, stack, "unmerged"), FAMILY)) < 1e-4
    made = builds_of(monkeypatch)
    assert torch.equal(sample(acted, FAMILY), first)
    assert made == []
    turned = stack.scaled(1.01)
    sample(apply_sliders(model, turned, "merged"), FAMILY)
    assert len(made) == len(layer_names(model)) * merged_of(model).set_count


def test_gates_that_open_at_different_times_where_memory_is_short(model, monkeypatch):
    """One set of merged weights is then brought from one state to the next."""
    stack = Stack.of(random_slider(model, 0), 0.8) + Stack.of(random_slider(model, 1), 0.8, Gate(0.4))
    expected = sample(apply_sliders(model, stack, "unmerged"), FAMILY)
    room = iter([2**40])  # for the first set
    monkeypatch.setattr(mode_choice, "room_beside", lambda *_: next(room, 0))
    assert difference(sample(apply_sliders(model, stack, "merged"), FAMILY), expected) < 1e-4
    assert merged_of(model).set_count == 1


def test_ramps_and_sweeps_act_unmerged_beside_merged_ones(model):
    still, ramped = (
        Stack.of(random_slider(model, 1), 0.5),
        Stack.of(random_slider(model, 2), 0.5, Gate(0.1, 1.0, 0.6)),
    )
    swept = Stack.of(random_slider(model, 3)).swept(0, (-1.0, 0.0, 1.0))
    stack = still + ramped + swept
    together, unmerged = (
        sample(apply_sliders(model, stack, mode), FAMILY, batch_size=3) for mode in ("merged", "unmerged")
    )
    assert merged_of(model).uses == 6
    assert difference(together, unmerged) < 1e-4


def test_two_stacks_on_two_clones_do_not_take_turns(model):
    """Alternating evaluations of two clones: the second stays unmerged, instead of rebuilding each time."""
    one, two = (apply_sliders(model, Stack.of(random_slider(model, seed))) for seed in (1, 2))
    first, second = sample(one, FAMILY), sample(two, FAMILY)
    for _ in range(2):
        assert difference(sample(one, FAMILY), first) < 1e-6
        assert difference(sample(two, FAMILY), second) < 1e-6


@pytest.mark.parametrize(("mode", "uses"), [("auto", mode_choice.WORTH_IT), ("merged", 1)])
def test_two_stacks_alternating_within_one_run(model, mode, uses, monkeypatch):
    """Clones evaluated in turn: with "auto" nothing is built that has not paid for itself when the next is."""
    one, two = (apply_sliders(model, Stack.of(random_slider(model, seed)), mode) for seed in (1, 2))
    expected = [sample(clone, FAMILY) for clone in (one, two)]
    state_of(model.model).clear()
    builds = builds_of(monkeypatch)
    wrappers = [clone.get_wrappers("apply_model", "concept_sliders") for clone in (one, two)]
    turn = []

    def in_turn(apply_model, args):
        turn.append(1)
        options = args["c"]["transformer_options"]
        results = []
        for which in (0, 1):
            own = {**options["wrappers"], "apply_model": {"concept_sliders": wrappers[which]}}
            c = {**args["c"], "transformer_options": {**options, "wrappers": own}}
            results.append(apply_model(args["input"], args["timestep"], **c))
        return results[first]

    for first in (0, 1):
        both = one.clone()
        both.set_model_unet_function_wrapper(in_turn)
        assert difference(sample(both, FAMILY), expected[first]) < 1e-4
    evaluations, layers = 2 * len(turn), len(layer_names(model))
    assert layers < len(builds) <= layers * evaluations / uses


def test_stock_patches_before(model):
    """ComfyUI patches weights when it loads the clone: merged weights are those of that clone's weights."""
    ours, theirs = random_slider(model, 1), random_slider(model, 2)
    key_map = comfy.lora.model_lora_keys_unet(model.model, {})
    tensors = {}
    for name, layer in theirs.layers.items():
        tensors |= {f"{name}.lora_down.weight": layer.down, f"{name}.lora_up.weight": layer.up}
    acted = apply_sliders(model, Stack.of(ours), "merged")
    alone = sample(acted, FAMILY)
    patched = acted.clone()
    patched.add_patches(comfy.lora.load_lora(tensors, key_map), 0.5)
    both = apply_sliders(model, Stack.of(ours) + Stack.of(theirs, 0.5), "unmerged")
    assert difference(sample(patched, FAMILY), sample(both, FAMILY)) < 1e-4
    assert difference(sample(acted, FAMILY), alone) < 1e-6


def test_the_rule(model, monkeypatch):
    stack = Stack.of(random_slider(model))
    sample(apply_sliders(model, stack, "unmerged"), FAMILY)
    assert merged_of(model).uses == 0
    few = mode_choice.evaluations_left(
        {"sample_sigmas": torch.tensor([3.0, 2.0, 1.0, 0.0]), "sigmas": torch.tensor([2.0])}
    )
    assert few == 2
    with monkeypatch.context() as patch:
        patch.setattr(comfy.model_management, "get_free_memory", lambda device, both=False: (0, 0) if both else 0)
        without_room = sample(apply_sliders(model, stack), FAMILY)
    assert merged_of(model).uses == 0
    assert difference(sample(apply_sliders(model, stack), FAMILY), without_room) < 1e-4
    assert merged_of(model).uses == 6


def test_a_stack_after_one_that_was_cancelled_is_merged(model):
    """What a run that was cut off has left behind keeps nobody from merging."""
    one, two = (apply_sliders(model, Stack.of(random_slider(model, seed))) for seed in (1, 2))
    seen = []

    def cancel(*_):
        seen.append(1)
        if len(seen) == 3:
            raise comfy.model_management.InterruptProcessingException

    handle = model.model.diffusion_model.register_forward_pre_hook(cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(one, FAMILY)
    handle.remove()
    assert merged_of(model).uses == merged_of(model).size_bytes == 0
    sample(two, FAMILY)
    assert merged_of(model).uses == 6


@pytest.mark.parametrize("mode", MODES)
def test_a_run_after_a_failed_one_is_as_on_a_fresh_model(model, mode):
    stack = Stack.of(random_slider(model, 1), 0.6) + Stack.of(random_slider(model, 2), 0.3)
    turned = stack.scaled(1.5)
    fresh = sample(apply_sliders(tiny_model(FAMILY), turned, mode), FAMILY)
    sample(apply_sliders(model, stack, mode), FAMILY)
    acted = apply_sliders(model, turned, mode)
    for layer in list(layer_names(model))[::5]:
        module = model.model.get_submodule(layer)
        handle = module.register_forward_hook(out_of_memory)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            sample(acted, FAMILY)
        handle.remove()
        assert traces(model) == []
        assert torch.equal(sample(acted, FAMILY), fresh)


def out_of_memory(*args):
    raise torch.cuda.OutOfMemoryError("in a layer")


def test_unloading_gives_the_memory_back(model):
    acted = apply_sliders(model, Stack.of(random_slider(model)), "merged")
    before = sample(acted, FAMILY)
    assert merged_of(model).size_bytes > 0
    comfy.model_management.unload_all_models()
    assert merged_of(model).size_bytes == 0
    assert torch.equal(sample(acted, FAMILY), before)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cond_or_uncond", ["cond", "uncond"])
def test_cond_or_uncond_alone(model, mode, cond_or_uncond):
    """With guidance g, a slider on cond alone is bare + g (slider - bare) of that prediction."""
    stack = Stack.of(random_slider(model))
    seen = []

    def spy(apply_model, args):
        seen.append((args["cond_or_uncond"], apply_model(args["input"], args["timestep"], **args["c"]).clone()))
        return seen[-1][1]

    outputs = {}
    for kind in ("both", cond_or_uncond, "bare"):
        acted = apply_sliders(model, Stack() if kind == "bare" else stack.restricted_to(kind), mode)
        acted.set_model_unet_function_wrapper(spy)
        seen.clear()
        sample(acted, FAMILY)
        outputs[kind] = dict(zip(seen[0][0], seen[0][1], strict=True))  # the first evaluation, by chunk
    on, off = (0, 1) if cond_or_uncond == "cond" else (1, 0)
    assert difference(outputs[cond_or_uncond][on], outputs["both"][on]) < 1e-5
    assert difference(outputs[cond_or_uncond][off], outputs["bare"][off]) < 1e-6
    assert difference(outputs["both"][off], outputs["bare"][off]) > 1e-2
