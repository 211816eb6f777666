"""Training where memory is short: fewer images at once, blocks run twice, and the same gradients."""

import logging
from contextlib import nullcontext

import pytest
import torch
from concept_sliders.comfy_host.autograd import differentiable
from concept_sliders.comfy_host.borrow import borrowed
from concept_sliders.comfy_host.denoiser import Denoiser
from concept_sliders.comfy_host.gradient_checkpointing import blocks_of, checkpointed
from concept_sliders.comfy_host.latents import packed
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.sliders.equation.layer_kinds import can_act_on
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.gradients import PROMPT, RECIPE, Samples, close, gradients
from concept_sliders.training.trainable_layers import TrainableLayers


@pytest.fixture(scope="module")
def pocket():
    with torch.inference_mode():
        model, clip, *_ = load_pocket()
        return model, {PROMPT: clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))}


def full_device():
    raise torch.OutOfMemoryError("no room")


def full_cpu():
    torch.empty(2**46)  # its own error, in its own words


class Room:
    """Memory for batches of so many entries, and no more: raises what a full device raises, or a full CPU."""

    def __init__(self, model, entries, times=99, full=full_device):
        self.entries, self.times, self.asked, self.full = entries, times, [], full
        self.handle = model.model.diffusion_model.register_forward_pre_hook(self)

    def __call__(self, module, args):
        self.asked.append(len(args[0]))
        if len(args[0]) > self.entries and self.times:
            self.times -= 1
            self.full()


@pytest.mark.parametrize("full", [full_device, full_cpu])
@pytest.mark.parametrize(("room", "asked"), [(4, [4]), (3, [4, 2, 2]), (1, [4, 2, 1, 1, 1, 1])])
def test_fewer_images_at_once_give_the_same_gradient(pocket, caplog, room, asked, full):
    model, conditionings = pocket
    samples = Samples(4, (8, 8, 8))
    whole, _ = gradients(model, conditionings, samples)
    short = Room(model, room, full=full)
    try:
        with caplog.at_level(logging.WARNING):
            parts, _ = gradients(model, conditionings, samples)
    finally:
        short.handle.remove()
    assert short.asked == asked
    assert ("no memory for 4 images at once" in caplog.text) == (room < 4)
    close(whole, parts)


def test_blocks_are_run_twice_before_giving_up(pocket, caplog):
    model, conditionings = pocket
    samples = Samples(2, (8, 8, 8))
    whole, _ = gradients(model, conditionings, samples)
    short = Room(model, 0, times=2)  # two images, then one, then with blocks run twice
    try:
        with caplog.at_level(logging.WARNING):
            parts, training = gradients(model, conditionings, samples)
    finally:
        short.handle.remove()
    assert "going on with gradient checkpointing" in caplog.text and training._checkpointing
    close(whole, parts)


def test_a_single_image_without_room_is_an_error(pocket):
    model, conditionings = pocket
    short = Room(model, 0)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            gradients(model, conditionings, Samples(2, (8, 8, 8)))
    finally:
        short.handle.remove()
    assert not any("forward" in vars(module) for module in model.model.modules())


@pytest.mark.parametrize("full", [full_device, full_cpu])
def test_questions_are_asked_in_fewer_at_once_too(pocket, full):
    model, conditionings = pocket
    x = torch.randn(3, 8, 8, 8, generator=torch.Generator().manual_seed(2))
    sigma = torch.tensor(0.5)
    with borrowed(model):
        layers = TrainableLayers(model, RECIPE, torch.Generator().manual_seed(1))
        for change in layers.by_name.values():
            torch.nn.init.constant_(change.up, 0.01)
        strengths = torch.tensor([0.0, 1.0, -1.0, 1.0, 0.0, 0.5]).view(2, 3, 1)
        denoiser = Denoiser(model, conditionings)
        whole = denoiser.predict(x, sigma, [PROMPT, PROMPT], layers, strengths)
        short = Room(model, 2, full=full)
        try:
            parts = Denoiser(model, conditionings).predict(x, sigma, [PROMPT, PROMPT], layers, strengths)
        finally:
            short.handle.remove()
    assert max(short.asked) == 6 and short.asked[-1] <= 2
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(whole[0, 0], whole[0, 1], atol=1e-3)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """A family and its model, which no test changes."""
    with torch.inference_mode():
        return FAMILIES[request.param], FAMILIES[request.param].build()


def test_blocks_run_twice_give_the_same_gradient_on(family):
    """Also where blocks write to their inputs or to the options they are given."""
    of, model = family
    with torch.inference_mode():
        conditionings = {PROMPT: of.conditioning(1)}
        latents, shapes = packed(of.empty(1))
    samples = Samples(2, latents.shape[1:])
    whole, _ = gradients(model, conditionings, samples, shapes=shapes)

    def recompute(training):
        training._checkpointing = True

    twice, _ = gradients(model, conditionings, samples, recompute, shapes=shapes)
    close(whole, twice)


def test_blocks_that_run_twice_are_found_on(family):
    """Or running them twice would save nothing there. Of these models many have a single block, and large ends."""
    network = family[1].model.diffusion_model
    inside = {module for block in blocks_of(network) for module in block.modules()}
    layers = [module for module in network.modules() if can_act_on(module)]
    assert sum(layer in inside for layer in layers) > len(layers) / 4


def test_blocks_run_twice_keep_less_for_backward(pocket):
    model, conditionings = pocket
    kept = {}
    with borrowed(model):
        layers = TrainableLayers(model, RECIPE, torch.Generator().manual_seed(1))
        denoiser, x = Denoiser(model, conditionings), torch.randn(1, 8, 16, 16)
        for name in ("once", "twice"):
            sizes = {}

            def pack(tensor, sizes=sizes):
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
            again = checkpointed(model.model.diffusion_model) if name == "twice" else nullcontext()
            with differentiable(), layers.acting(torch.ones(1, 1)), hooks, again:
                denoiser(x, torch.tensor(0.5), [PROMPT])
            kept[name] = sum(sizes.values())
    assert kept["twice"] < 0.5 * kept["once"]


def test_half_precision_trains_without_overflow():
    """The loss is scaled up for backward, and down again: gradients are those of float32 within rounding."""
    with torch.inference_mode():
        single, half = (FAMILIES["SD 1"].build() for _ in range(2))
        half.model.half()
        half.model.diffusion_model.dtype = torch.float16
        conditionings = {PROMPT: FAMILIES["SD 1"].conditioning(1)}
        shape = FAMILIES["SD 1"].empty(1).shape[1:]
    samples = Samples(2, shape)
    exact, _ = gradients(single, conditionings, samples)
    rounded, training = gradients(half, conditionings, samples)
    assert training.predictor.dtype == torch.float16 and training._scaler.get_scale() > 1
    one, other = (torch.cat([g.flatten() for g in grads]) for grads in (exact, rounded))
    other = other / training._scaler.get_scale()
    assert torch.isfinite(other).all()
    assert float((one - other).norm() / one.norm()) < 0.05
