"""An image in tiles and a video in windows of frames: what ComfyUI or another node evaluates piece by piece."""

import comfy.sample
import comfy.sd
import pytest
import torch
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from concept_sliders.comfy_host import mode_choice
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.families import FAMILIES
from concept_sliders.tests.support.tiny import condition, difference, random_slider, tensors_of, tiny_model, traces

MODES = mode_choice.MODES[1:]
VALUES = (0.8, 0.0, -0.6)


def tiles_of(x: torch.Tensor) -> list[tuple]:
    """Two tiles that overlap, as (rows, columns) of the latent."""
    return [(slice(None), slice(0, 6)), (slice(None), slice(x.shape[-1] - 6, x.shape[-1]))]


def put_together(x: torch.Tensor, answers: list[torch.Tensor]) -> torch.Tensor:
    total, weight = torch.zeros_like(x), torch.zeros_like(x)
    for (rows, columns), answer in zip(tiles_of(x), answers, strict=True):
        total[..., rows, columns] += answer
        weight[..., rows, columns] += 1
    return total / weight


def tile_by_tile(apply_model, args):
    """Every tile in an evaluation of its own."""
    x, t = args["input"], args["timestep"]
    return put_together(x, [apply_model(x[..., r, c], t, **args["c"]) for r, c in tiles_of(x)])


def tiles_in_a_batch(apply_model, args):
    """All tiles in one evaluation: tiles x chunks x batch entries, of which ComfyUI's options know nothing."""
    x, t = args["input"], args["timestep"]
    batch = torch.cat([x[..., r, c] for r, c in tiles_of(x)])
    given = {**args["c"], "c_crossattn": args["c"]["c_crossattn"].repeat(2, 1, 1)}
    return put_together(x, list(apply_model(batch, t.repeat(2), **given).chunk(2)))


def whole(apply_model, args):
    return apply_model(args["input"], args["timestep"], **args["c"])


def image(model, batch_size=1, steps=3):
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7)).repeat(batch_size, 1, 1, 1)
    more, less = condition("SD15", 2), condition("SD15", 3)
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, steps, 3.0, "euler", "normal", more, less, torch.zeros_like(noise), seed=5
        ).clone()


def tiled(model, how):
    clone = model.clone()
    clone.set_model_unet_function_wrapper(how)
    return clone


def stock(model, slider, strength):
    return comfy.sd.load_lora_for_models(model, None, tensors_of(slider), strength, 0.0)[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", [tile_by_tile, tiles_in_a_batch])
def test_tiles_as_with_the_stock_loader(how, mode):
    model = tiny_model("SD15")
    slider = random_slider(model)
    expected = image(tiled(stock(model, slider, 0.8), how))
    assert difference(image(tiled(apply_sliders(model, Stack.of(slider, 0.8), mode), how)), expected) < 1e-4
    assert difference(expected, image(stock(model, slider, 0.8))) > 1e-3


def changing_over(model, slider, start, how):
    """An evaluation that changes over to the stock loader's patches when a gate would open, and what it did."""
    patched, seen = stock(model, slider, 0.8), []
    with torch.inference_mode():
        patched.patch_model()
    opens = patched.model.model_sampling.percent_to_sigma(start)

    def switch(apply_model, args):
        seen.append(bool(args["timestep"][0] <= opens))
        return how(patched.model.apply_model if seen[-1] else apply_model, args)

    return switch, seen


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", [tile_by_tile, tiles_in_a_batch])
def test_a_gate_in_tiles(how, mode):
    model = tiny_model("SD15")
    slider = random_slider(model)
    switch, seen = changing_over(tiny_model("SD15"), slider, 0.4, how)
    expected = image(tiled(model, switch))
    assert any(seen) and not all(seen)
    acted = apply_sliders(model, Stack.of(slider, 0.8, Gate(0.4)), mode)
    assert difference(image(tiled(acted, how)), expected) < 1e-4


def test_a_sweep_tile_by_tile():
    model = tiny_model("SD15")
    slider = random_slider(model)
    swept = apply_sliders(model, Stack.of(slider).swept(0, VALUES))
    batch = image(tiled(swept, tile_by_tile), batch_size=3)
    for entry, value in enumerate(VALUES):
        expected = image(tiled(stock(model, slider, value), tile_by_tile))
        assert difference(batch[entry : entry + 1], expected) < 1e-4


def test_a_sweep_of_tiles_in_a_batch_is_refused():
    """Nobody says which batch entries these are: nothing is guessed."""
    model = tiny_model("SD15")
    swept = apply_sliders(model, Stack.of(random_slider(model)).swept(0, VALUES))
    with pytest.raises(ValueError, match="swept over 3 batch entries, but the batch that is sampled has 6"):
        image(tiled(swept, tiles_in_a_batch), batch_size=3)
    assert traces(model) == []


@pytest.mark.parametrize("mode", MODES)
def test_uncond_alone_in_tiles(mode):
    """Tile by tile as without tiles; all of them in a batch, nobody says whose entries these are."""
    model = tiny_model("SD15")
    stack = Stack.of(random_slider(model), 0.8).restricted_to("uncond")
    acted = apply_sliders(model, stack, mode)
    on_and_off = {0: model, 1: stock(tiny_model("SD15"), stack[0].slider, 0.8)}
    with torch.inference_mode():
        on_and_off[1].patch_model()

    def each_by_itself(apply_model, args):
        x, t, chunks = args["input"], args["timestep"], args["cond_or_uncond"]
        answers = []
        for place, chunk in enumerate(chunks):
            prompt = {**args["c"], "c_crossattn": args["c"]["c_crossattn"][place : place + 1]}
            own = {"input": x[place : place + 1], "timestep": t[place : place + 1], "c": prompt}
            answers.append(tile_by_tile(on_and_off[chunk].model.apply_model, own))
        return torch.cat(answers)

    expected = image(tiled(model, each_by_itself))
    assert difference(image(tiled(acted, tile_by_tile)), expected) < 1e-4
    with pytest.raises(ValueError, match="on 4 entries at once where ComfyUI asked for 2"):
        image(tiled(acted, tiles_in_a_batch))
    assert traces(model) == []


FRAMES = 5


@pytest.fixture(scope="module")
def wan():
    return FAMILIES["Wan 2.1"].build()


def windowed(model):
    """ComfyUI's own windows of three frames that overlap by one."""
    return ContextWindowsManualNode.execute(
        model,
        context_length=3,
        context_overlap=1,
        context_schedule="standard_static",
        context_stride=1,
        closed_loop=False,
        fuse_method="pyramid",
        dim=2,
        freenoise=False,
    ).args[0]


def video(model, batch_size=1, steps=3):
    family = FAMILIES["Wan 2.1"]
    noise = torch.randn(1, 16, FRAMES, 8, 8, generator=torch.Generator().manual_seed(7)).repeat(
        batch_size, 1, 1, 1, 1
    )
    more, less = family.conditioning(2), family.conditioning(3)
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, steps, 3.0, "euler", "simple", more, less, torch.zeros_like(noise), seed=5
        ).clone()


@pytest.mark.parametrize("mode", MODES)
def test_a_stack_in_windows_of_frames(wan, mode):
    one, two = random_slider(wan, 1), random_slider(wan, 2)
    expected = video(windowed(stock(stock(wan, one, 0.8), two, -0.4)))
    acted = apply_sliders(wan, Stack.of(one, 0.8) + Stack.of(two, -0.4), mode)
    assert difference(video(windowed(acted)), expected) < 1e-4
    assert difference(expected, video(acted)) > 1e-3  # windows see less than the whole video
    assert difference(expected, video(windowed(wan))) > 1e-2


@pytest.mark.parametrize("mode", MODES)
def test_a_gate_in_windows_of_frames(wan, mode):
    slider = random_slider(wan)
    switch, seen = changing_over(FAMILIES["Wan 2.1"].build(), slider, 0.3, whole)
    expected = video(windowed(tiled(wan, switch)))
    assert any(seen) and not all(seen)
    acted = apply_sliders(wan, Stack.of(slider, 0.8, Gate(0.3)), mode)
    assert difference(video(windowed(acted)), expected) < 1e-4


def test_windows_of_frames_take_one_video_at_a_time(wan):
    """ComfyUI picks timesteps by frames' numbers: a batch fails there without sliders too, and so does a sweep."""
    with pytest.raises(IndexError):
        video(windowed(wan), batch_size=3)
    swept = apply_sliders(wan, Stack.of(random_slider(wan)).swept(0, VALUES))
    with pytest.raises(IndexError):
        video(windowed(swept), batch_size=3)
    assert traces(wan) == []
