"""What a training run keeps, whatever ends it: checkpoints, resuming, the last good state."""

import re
from dataclasses import replace

import comfy.model_management
import pytest
import torch
from concept_sliders.pocket.models.loading import load_pocket
from concept_sliders.tests.support.short_runs import CONCEPT, LATENTS, same, train_on
from concept_sliders.training import resume
from concept_sliders.training.average import GAMMA
from concept_sliders.training.recipe import EncoderRecipe
from concept_sliders.training.run import RunOptions, train_text_encoder
from concept_sliders.training.textual_samples import TextualSamples
from torch.optim.optimizer import register_optimizer_step_post_hook


class Crash(RuntimeError):
    """What no trainer expects."""


@pytest.fixture(scope="module")
def train():
    with torch.inference_mode():
        model, clip, *_ = load_pocket()
    return train_on(model, clip)


@pytest.mark.parametrize("crash_at", [3, 5, 7])  # in a trajectory, at its end, in the next one
def test_a_run_that_goes_on_after_a_crash_equals_one_that_never_stopped(train, tmp_path, crash_at):
    whole = train()

    def crash(progress, preview):
        if progress.steps == crash_at:
            raise Crash

    with pytest.raises(Crash):
        train(RunOptions(progress=crash, checkpoints=tmp_path, checkpoint_every=1))
    resumed_at = []
    again = train(
        RunOptions(progress=lambda p, _: resumed_at.append(p.steps), checkpoints=tmp_path, checkpoint_every=0)
    )
    assert resumed_at == list(range(crash_at + 1, 9))
    assert again.progress.losses == whole.progress.losses
    assert same(again.slider, whole.slider)


def test_what_a_run_ends_with_is_its_average(train):
    """Of the parameters after each of its steps, the first s of t making up (s / t)^(gamma + 1)."""
    after = []
    hook = register_optimizer_step_post_hook(
        lambda optimizer, *_: after.append([p.detach().clone() for p in optimizer.param_groups[0]["params"]])
    )
    try:
        slider = train(steps=6).slider
    finally:
        hook.remove()
    shares = [(step / 6) ** (GAMMA + 1) for step in range(7)]
    ended = [tensor for change in slider.layers.values() for tensor in (change.down, change.up)]
    assert len(ended) == len(after[0])
    for number, tensor in enumerate(ended):
        mean = sum((shares[step + 1] - shares[step]) * after[step][number] for step in range(6))
        torch.testing.assert_close(tensor, mean)
    assert not torch.allclose(ended[-1], after[-1][-1], rtol=1e-3)


def test_a_cancelled_run_goes_on_where_it_stopped_and_a_finished_one_goes_further(train, tmp_path):
    whole, done = train(steps=12), []
    cancel = RunOptions(
        should_stop=lambda: len(done) == 4,
        progress=lambda *_: done.append(1),
        checkpoints=tmp_path,
        checkpoint_every=100,
    )
    assert train(cancel).progress.stopped
    assert train(RunOptions(checkpoints=tmp_path)).progress.steps == 8
    assert same(train(RunOptions(checkpoints=tmp_path), steps=12).slider, whole.slider)


def test_a_cancel_inside_the_model_leaves_a_checkpoint_that_goes_on_exactly(train, tmp_path):
    whole = train()

    def cancel(progress, preview):
        comfy.model_management.interrupt_current_processing(progress.steps == 5)

    assert train(RunOptions(progress=cancel, checkpoints=tmp_path)).progress.steps == 5
    assert same(train(RunOptions(checkpoints=tmp_path)).slider, whole.slider)


def interrupted_at(progress_steps):
    """As ComfyUI's progress hook does when the button has been pressed."""

    def hook(progress, preview):
        comfy.model_management.interrupt_current_processing(progress.steps == progress_steps)
        comfy.model_management.throw_exception_if_processing_interrupted()

    return hook


def test_a_cancel_that_the_progress_bar_notices_keeps_the_step(train, tmp_path):
    whole = train()
    stopped = train(RunOptions(progress=interrupted_at(5), checkpoints=tmp_path))
    assert stopped.progress.stopped and stopped.progress.steps == 5
    assert same(stopped.slider, train(steps=5).slider)
    assert same(train(RunOptions(checkpoints=tmp_path)).slider, whole.slider)


def test_a_cancel_after_the_last_step_is_none(train):
    assert not train(RunOptions(progress=interrupted_at(8))).progress.stopped


@pytest.fixture
def press_after():
    """`press_after(n)`: the button is pressed when the optimiser has made its nth step."""
    handles = []

    def press(step):
        made = []

        def hook(optimizer, args, kwargs):
            made.append(1)
            comfy.model_management.interrupt_current_processing(len(made) == step)

        handles.append(register_optimizer_step_post_hook(hook))
        return handles[-1].remove

    yield press
    for handle in handles:
        handle.remove()


def test_a_cancel_in_a_preview_keeps_the_step(train, tmp_path, press_after):
    whole, shown = train(), []
    release = press_after(5)
    previews = {"preview_every": 5}
    stopped = train(RunOptions(progress=lambda _, x: shown.append(x is not None), **previews, checkpoints=tmp_path))
    release()
    assert stopped.progress.stopped and stopped.progress.steps == 5 and shown == [False] * 4
    assert same(train(RunOptions(checkpoints=tmp_path)).slider, whole.slider)


def test_a_cancel_in_the_early_stop_keeps_the_step_and_the_evaluation_is_made_up_for(
    train, tmp_path, press_after, evaluated_often
):
    """The run ends where it would have ended."""
    settings = {"steps": 20, "learning_rate": 1e-9, "patience": 1, "rank": 1}
    whole = train(**settings).progress
    assert whole.converged and whole.steps == 10
    release = press_after(5)
    stopped = train(RunOptions(checkpoints=tmp_path), **settings).progress
    release()
    assert stopped.stopped and stopped.steps == 5
    again = train(RunOptions(checkpoints=tmp_path), **settings).progress
    assert again.converged and again.losses == whole.losses


def test_a_gradient_that_is_no_number_spoils_neither_the_slider_nor_the_checkpoint(train, tmp_path):
    """The loss is sound: such a gradient would go into the optimiser and stay there."""

    class Spoiled(TextualSamples):
        met = 0

        def __next__(self):
            self.met += 1
            if self.met == 6:
                self.layers.parameters()[0].register_hook(lambda gradient: gradient * float("nan"))
            return super().__next__()

    whole = train()
    broken = train(RunOptions(checkpoints=tmp_path, checkpoint_every=1), samples=Spoiled)
    kept = broken.progress.steps  # the last state whose loss was no outlier
    assert 0 < kept < 6 and broken.progress.stopped
    assert re.search(r"step 6 of 8, .*: the loss is [\d.e-]+, its gradient nan", broken.progress.failure)
    assert same(broken.slider, train(steps=kept).slider)
    again = train(RunOptions(checkpoints=tmp_path))
    assert again.progress.losses == whole.progress.losses and same(again.slider, whole.slider)


def test_one_that_breaks_down_right_after_going_on_keeps_what_the_checkpoint_has(train, tmp_path):
    class Spoiled(TextualSamples):
        def __next__(self):
            return replace(super().__next__(), target=torch.tensor(float("nan")).expand(LATENTS.shape))

    train(RunOptions(checkpoints=tmp_path), steps=4)
    broken = train(RunOptions(checkpoints=tmp_path), samples=Spoiled)
    assert broken.progress.steps == 4 and broken.progress.failure
    assert same(train(RunOptions(checkpoints=tmp_path)).slider, train().slider)


def test_what_memory_had_room_for_is_remembered(train, tmp_path):
    """A run that goes on in as few images at once as it had to equals one that never stopped."""
    two = {"latents": torch.zeros(2, 8, 8, 8)}
    whole = train(steps=4, **two)
    train(RunOptions(checkpoints=tmp_path), steps=3, **two)
    (file,) = tmp_path.iterdir()
    state = resume.read_state(file)
    assert (state["at_once"], state["predictor_at_once"], state["checkpointing"]) == (None, None, False)
    resume.write_state(file, {**state, "at_once": 1, "predictor_at_once": 2, "checkpointing": True})
    again = train(RunOptions(checkpoints=tmp_path), steps=4, **two)
    kept = resume.read_state(file)
    assert (kept["at_once"], kept["predictor_at_once"], kept["checkpointing"]) == (1, 2, True)
    torch.testing.assert_close(*(torch.tensor(run.progress.losses) for run in (again, whole)), rtol=1e-4, atol=0)
    for name, layer in whole.slider.layers.items():
        assert (again.slider.layers[name].up - layer.up).norm() < 1e-3 * layer.up.norm(), name


def test_blocks_run_twice_make_the_same_slider_and_go_on_with_each_others_checkpoints(train, tmp_path):
    once = train(RunOptions(checkpoints=tmp_path), steps=5)
    twice = train(steps=5, memory="gradient checkpointing")
    for name, layer in once.slider.layers.items():
        # Adam divides by each gradient's own size: where one is next to nothing, rounding in it is seen at full step
        apart = (layer.up - twice.slider.layers[name].up).norm()
        assert apart < 1e-3 * layer.up.norm(), name
    assert train(RunOptions(checkpoints=tmp_path), memory="gradient checkpointing").progress.steps == 8
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("changed", [{"seed": 3}, {"rank": 2}, {"latents": torch.zeros(2, 8, 8, 8)}])
def test_another_run_is_kept_apart(train, tmp_path, changed):
    train(RunOptions(checkpoints=tmp_path), steps=2)
    other = train(RunOptions(checkpoints=tmp_path), steps=4, **changed)
    assert len(list(tmp_path.iterdir())) == 2
    assert same(other.slider, train(steps=4, **changed).slider)


def test_fewer_steps_than_have_been_kept_begin_anew(train, tmp_path):
    train(RunOptions(checkpoints=tmp_path), steps=5)
    again = train(RunOptions(checkpoints=tmp_path), steps=3)
    assert again.progress.steps == 3 and same(again.slider, train(steps=3).slider)
    seen = []  # and the longer run is still there to go on with
    further = train(RunOptions(progress=lambda p, _: seen.append(p.steps), checkpoints=tmp_path))
    assert seen == [6, 7, 8] and same(further.slider, train().slider)
    kept = train(RunOptions(progress=lambda p, _: seen.append(0), checkpoints=tmp_path), steps=3)
    assert same(kept.slider, again.slider) and seen == [6, 7, 8]


def test_damaged_checkpoints_are_named(train, tmp_path):
    train(RunOptions(checkpoints=tmp_path), steps=2)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for broken in (b"", b"PK nonsense", whole[: len(whole) // 2]):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=r"age \w+\.pt cannot be read"):
            train(RunOptions(checkpoints=tmp_path), steps=4)


@pytest.mark.parametrize("letter", ["n", "\N{CJK UNIFIED IDEOGRAPH-8001}"])
def test_a_name_too_long_for_a_file_is_cut_there_and_nowhere_else(pocket, tmp_path, letter):
    """Also where the file's name says how many steps, and where letters take several bytes."""
    name, (_, clip, _) = 300 * letter, pocket

    def run(steps):
        with torch.inference_mode():
            recipe = EncoderRecipe(concepts=(CONCEPT,), steps=steps, rank=1)
            return train_text_encoder(clip, recipe, name, RunOptions(checkpoints=tmp_path)).slider

    assert run(3).name == name
    assert same(run(2), run(2)) and not same(run(2), run(3))
    assert len(list(tmp_path.iterdir())) == 2


def test_checkpoints_are_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "age.pt"
    resume.write_state(file, {"losses": [1.0]})
    with pytest.raises(AttributeError):
        resume.write_state(file, {"losses": lambda: None})  # what cannot be stored
    assert resume.read_state(file) == {"losses": [1.0]}
    assert [path.name for path in tmp_path.iterdir()] == ["age.pt"]


@pytest.mark.parametrize("wrong", [float("nan"), 1e9])
def test_a_run_that_breaks_down_keeps_the_last_good_state(train, breaks_early, wrong):
    """What was learned in the step before is given up as well: it may be what broke it."""

    class Spoiled(TextualSamples):
        met = 0

        def __next__(self):
            sample, self.met = super().__next__(), self.met + 1
            return replace(sample, target=sample.target + wrong) if self.met == 20 else sample

    trained = train(steps=40, samples=Spoiled)
    assert trained.progress.steps == 18 and trained.progress.stopped
    assert re.match(r"Training broke down at step 20 of 40, sigma [\d.]+: the loss is", trained.progress.failure)
    assert same(trained.slider, train(steps=18).slider)
