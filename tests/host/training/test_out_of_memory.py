"""Memory that runs out beside the steps of a training: when the model comes back, in the early stop, on the CPU."""

import comfy.model_management
import pytest
import torch
from concept_sliders.comfy_host.borrow import ModelLost, borrowed
from concept_sliders.comfy_host.errors import is_out_of_memory
from concept_sliders.tests.support.short_runs import same, train_on
from concept_sliders.tests.support.tiny import traces
from concept_sliders.training.previews import PreviewSampler
from concept_sliders.training.run import RunOptions

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def train(pocket):
    return train_on(pocket[0], pocket[1])


@pytest.fixture
def full(monkeypatch):
    """full(times): ComfyUI finds no room for a model when it loads one, so many times from now on."""
    real, left = comfy.model_management.LoadedModel.model_load, [0]

    def model_load(*args, **kwargs):
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("no room for the model")
        return real(*args, **kwargs)

    monkeypatch.setattr(comfy.model_management.LoadedModel, "model_load", model_load)
    return lambda times: left.__setitem__(0, times)


def memory_of(model):
    return {name: (id(p), p.data_ptr(), p.is_inference(), p.clone()) for name, p in model.model.named_parameters()}


def assert_as_before(model, before):
    for name, (identity, pointer, inference, numbers) in before.items():
        p = model.model.get_parameter(name)
        assert (id(p), p.data_ptr(), p.is_inference()) == (identity, pointer, inference), name
        assert torch.equal(p, numbers), name
    assert traces(model) == []


def crowded_at(step, full, times):
    """The evaluation after that step takes the model's place; afterwards so many attempts to load it find no room."""

    def progress(done, latents):
        if latents is not None and done.steps >= step:
            comfy.model_management.free_memory(1e30, CPU)
            full(times)

    return progress


def test_a_model_that_finds_no_room_after_a_preview_takes_that_of_others(pocket, train, full):
    before, whole = memory_of(pocket[0]), train()
    trained = train(RunOptions(progress=crowded_at(1, full, times=1), preview_every=3))
    assert trained.progress.losses == whole.progress.losses and same(trained.slider, whole.slider)
    assert_as_before(pocket[0], before)


def test_one_that_finds_none_at_all_ends_the_run_and_what_was_learned_is_kept(pocket, train, full, tmp_path):
    """It is no preview that failed: the run must not go on with weights that are not lent."""
    before, whole, done = memory_of(pocket[0]), train(), []
    with pytest.raises(ModelLost, match="cannot be loaded again: no room for the model"):
        train(RunOptions(progress=crowded_at(1, full, times=2), preview_every=3, checkpoints=tmp_path))
    full(0)
    assert_as_before(pocket[0], before)
    again = train(RunOptions(progress=lambda progress, _: done.append(progress.steps), checkpoints=tmp_path))
    assert done == [4, 5, 6, 7, 8] and same(again.slider, whole.slider)


def test_a_model_that_cannot_be_loaded_again_says_so_whatever_had_its_place(pocket, full):
    with torch.inference_mode(), pytest.raises(ModelLost), borrowed(pocket[0]) as loan, loan.returned():
        comfy.model_management.free_memory(1e30, CPU)
        full(2)
        raise KeyError("of what was done meanwhile")
    assert traces(pocket[0]) == []


STILL = {"steps": 15, "learning_rate": 1e-9, "patience": 1, "rank": 1}


def no_room_for_vision(latents):
    raise torch.OutOfMemoryError("no room for CLIP vision")


def no_room_for_latents(self, strengths):
    raise on_the_cpu()


def on_the_cpu():
    """What torch raises for more than a CPU can have."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**46)
    return caught.value


@pytest.mark.parametrize("stage", ["seeing", "foreseeing"])
def test_a_run_whose_early_stop_has_no_memory_goes_on_without(
    train, tmp_path, monkeypatch, caplog, stage, evaluated_often
):
    assert train(**STILL).progress.converged  # it would end early
    embed, predict = no_room_for_vision if stage == "seeing" else None, PreviewSampler.predict
    if stage == "foreseeing":
        monkeypatch.setattr(PreviewSampler, "predict", no_room_for_latents)
    run_options = RunOptions(preview_every=0, checkpoints=tmp_path, embed=embed)
    trained = train(run_options, **{**STILL, "steps": 12})
    assert trained.progress.steps == 12 and not trained.progress.converged and not trained.progress.failure
    assert caplog.text.count("goes on without an early stop: there is no memory for its evaluations") == 1
    monkeypatch.setattr(PreviewSampler, "predict", predict)
    assert train(run_options, **STILL).progress.steps == 15  # it does not begin to evaluate where it goes on
    assert caplog.text.count("without an early stop") == 1


@pytest.mark.parametrize("error", [RuntimeError, ValueError, TypeError, KeyError, AssertionError, ZeroDivisionError])
def test_a_run_whose_early_stop_cannot_see_says_so_at_its_first_evaluation_and_goes_on_without(
    train, caplog, evaluated_often, error
):
    """As through a VAE and a CLIP vision that are not made for each other's images."""

    def broken(latents):
        raise error("no image of that size")

    trained = train(RunOptions(embed=broken), **{**STILL, "steps": 11})
    assert trained.progress.steps == 11 and not trained.progress.converged and not trained.progress.failure
    assert caplog.text.count(f"without an early stop: evaluation 1 failed ({error.__name__}: ") == 1
    assert "no image of that size" in caplog.text


@pytest.mark.parametrize("error", [ModelLost, comfy.model_management.InterruptProcessingException, KeyboardInterrupt])
def test_what_ends_a_run_ends_it_in_the_early_stop_and_in_a_preview_too(train, evaluated_often, error):
    def broken(*given):
        if given[-1] is not None:
            raise error("the end")

    for run_options in (RunOptions(embed=broken), RunOptions(progress=broken, preview_every=5)):
        settings = {**STILL, "steps": 7, "patience": 1 if run_options.embed else 0}
        if error is comfy.model_management.InterruptProcessingException:
            progress = train(run_options, **settings).progress
            assert progress.stopped and progress.steps == 5
        else:
            with pytest.raises(error):
                train(run_options, **settings)


def test_memory_that_ran_out_is_told_from_other_errors():
    assert not comfy.model_management.is_oom(on_the_cpu())  # or there would be no need
    assert is_out_of_memory(on_the_cpu()) and is_out_of_memory(torch.OutOfMemoryError("no room"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator: of another kind"))
