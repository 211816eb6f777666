"""Batch entries that a model cannot tell apart are evaluated apart, and put together again."""

import comfy.sample
import comfy.sd
import pytest
import torch
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.comfy_host.batch_entries import evaluate_groups, groups_of
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.family_checks import STRENGTH, Subject, tensors_of
from concept_sliders.tests.support.tiny import difference
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**16))
def test_groups_have_every_entry_once_and_share_strengths(chunks, batch_size, sliders, seed):
    generator = torch.Generator().manual_seed(seed)
    strengths = torch.randint(0, 2, (chunks * batch_size, sliders), generator=generator).float()
    parts = groups_of(strengths, chunks)
    entries = torch.cat([part.entries for part in parts])
    assert sorted(entries.tolist()) == list(range(chunks * batch_size))
    for part in parts:
        assert (strengths[part.entries] == part.strengths).all()
        # as ComfyUI has it: chunk after chunk, each with the same batch entries
        by_chunk = part.entries.view(len(part.chunks), -1)
        assert (by_chunk // batch_size == torch.tensor(part.chunks)[:, None]).all()
        assert (by_chunk % batch_size == by_chunk[0] % batch_size).all()


def test_equal_entries_have_groups_of_their_own_where_the_model_takes_one_entry():
    parts = groups_of(torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])[:, None], chunks=2, alone=True)
    assert [part.entries.tolist() for part in parts] == [[0, 3], [1, 4], [2, 5]]


def test_equal_entries_in_all_chunks_stay_together():
    (part,) = groups_of(torch.ones(6, 2), chunks=2)
    assert part.chunks == (0, 1) and part.entries.tolist() == list(range(6))


def test_what_has_an_entry_per_entry_of_the_batch_is_shared_out_with_it():
    x, seen = torch.arange(4.0)[:, None], []
    conditions = {"c": x + 10, "control": {"input": [x + 20, None]}, "guidance": torch.tensor(3.0), "size": (8, 8)}
    options = {"cond_or_uncond": [1, 0], "uuids": ["a", "b"], "sigmas": torch.ones(4), "patches": {}}

    def evaluate(part, x, conditions, options):
        assert torch.equal(conditions["c"], x + 10) and torch.equal(conditions["control"]["input"][0], x + 20)
        assert conditions["control"]["input"][1] is None and conditions["size"] == (8, 8)
        assert conditions["guidance"] == 3 and len(options["sigmas"]) == len(x)
        seen.append((options["cond_or_uncond"], options["uuids"]))
        return part.strengths * x

    strengths = torch.tensor([[1.0], [2.0], [1.0], [3.0]])
    y = evaluate_groups(evaluate, groups_of(strengths, 2), x, conditions, options)
    assert torch.equal(y, strengths * x)
    assert sorted(seen) == [([0], ["b"]), ([1], ["a"]), ([1, 0], ["a", "b"])]


@pytest.mark.parametrize("family", ["PixArt Alpha", "HiDream", "Cosmos", "MiniMax H3"])
def test_uncond_ramps_and_sweeps_at_once(tmp_path, family):
    """Each batch entry of a sweep, on uncond alone with a ramp, is the run it would be alone."""
    subject = Subject(family, tmp_path)
    placed = Stack.of(subject.slider, 1.0, Gate(0.2, 1.0, ramp=0.4)).restricted_to("uncond")
    values = (STRENGTH, 0.0, STRENGTH)
    batch = subject.acting(placed.swept(0, values))
    for entry, value in enumerate(values):
        alone = subject.acting(placed.scaled(value))
        assert difference(batch[entry : entry + 1], alone) < 1e-4, f"entry {entry}"
    assert difference(subject.acting(placed.scaled(STRENGTH)), subject.bare) > 1e-5


def latents_of(subject, model, noise):
    """What two steps make of each batch entry's own noise."""
    more, less = (subject.family.conditioning(seed) for seed in (2, 3))
    with torch.inference_mode():
        empty = torch.zeros_like(noise)
        return comfy.sample.sample(model, noise, 2, 3.0, "euler", "simple", more, less, empty, seed=5).clone()


@pytest.mark.parametrize("family", ["SD 1", "PixelDiT", "Hunyuan3D 2.1"])
def test_two_latents_at_three_strengths(tmp_path, family):
    """Each batch entry is the stock loader's run of its latent at its strength, alone."""
    subject = Subject(family, tmp_path)
    noise = torch.randn(2, *subject.family.latent, generator=torch.Generator().manual_seed(11))
    strengths, file = (-0.6, 0.0, STRENGTH), tensors_of(subject.slider)
    acted = apply_sliders(subject.model, Stack.of(subject.slider).swept(0, strengths, repeats=2))
    batch = latents_of(subject, acted, noise.repeat_interleave(3, dim=0)).view(2, 3, *subject.family.latent)
    for place, strength in enumerate(strengths):
        stock, _ = comfy.sd.load_lora_for_models(subject.model, None, file, strength, 0.0)
        for latent in range(2):
            alone = latents_of(subject, stock, noise[latent, None])
            assert difference(batch[latent, place][None], alone) < 1e-4, (latent, strength)


def test_two_latents_on_uncond_of_a_model_that_takes_halves_for_prompts(tmp_path):
    """Such a model swaps the halves of every batch of two, be they prompts or latents."""
    subject = Subject("Hunyuan3D 2.1", tmp_path)
    noise = torch.randn(2, *subject.family.latent, generator=torch.Generator().manual_seed(11))
    acted = apply_sliders(subject.model, Stack.of(subject.slider, STRENGTH).restricted_to("uncond"))
    together = latents_of(subject, acted, noise)
    for latent in range(2):
        assert difference(together[latent, None], latents_of(subject, acted, noise[latent, None])) < 1e-4


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return Subject("SVD", tmp_path_factory.mktemp("video"))


def test_frames_of_one_video_have_cond_and_uncond(video):
    """Its layers over time see all frames of a chunk, and not one frame per batch entry."""
    with torch.inference_mode():
        changed, _ = comfy.sd.load_lora_for_models(
            video.family.build(), None, tensors_of(video.slider), STRENGTH, 0.0
        )
        changed.patch_model()

    def by_hand(apply_model, args):
        chunks = args["cond_or_uncond"]
        both = (apply_model, changed.model.apply_model)
        bare, other = (run(args["input"], args["timestep"], **args["c"]) for run in both)
        parts = zip(chunks, bare.chunk(len(chunks)), other.chunk(len(chunks)), strict=True)
        return torch.cat([on if chunk == 1 else off for chunk, off, on in parts])

    switching = video.model.clone()
    switching.set_model_unet_function_wrapper(by_hand)
    expected = video.sampled(switching, batch_size=2)
    acted = video.sampled(
        apply_sliders(video.model, Stack.of(video.slider, STRENGTH).restricted_to("uncond")), batch_size=2
    )
    assert difference(acted, expected) < 1e-4 < difference(expected, video.sampled(video.model, batch_size=2))


def test_frames_of_one_video_have_no_strengths_of_their_own(video):
    with pytest.raises(ValueError, match="frames of one video"):
        video.acting(Stack.of(video.slider).swept(0, (0.0, STRENGTH)))
