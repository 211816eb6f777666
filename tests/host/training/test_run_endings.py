"""However a run ends, what was learned by then is there to go on with."""

from dataclasses import replace

import pytest
import torch
from comfy.model_management import InterruptProcessingException
from concept_sliders.comfy_host.apply import apply_sliders
from concept_sliders.pocket.train_sliders import FOLDER
from concept_sliders.sliders.formats.slider_files import load_slider
from concept_sliders.sliders.gate import Gate
from concept_sliders.sliders.stack import Stack
from concept_sliders.tests.support.short_runs import same, train_on
from concept_sliders.training import automatic, resume
from concept_sliders.training.run import RunOptions
from concept_sliders.training.textual_samples import TextualSamples


class Injected(Exception):
    """An error that nobody expects."""


@pytest.fixture(scope="module")
def train(pocket):
    return train_on(pocket[0], pocket[1])


def failing_at(call: int, real, after: bool = False):
    """A function that raises at its `call`-th call, before or after what it does."""
    calls = []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == call and not after:
            raise Injected
        result = real(*args, **kwargs)
        if len(calls) == call:
            raise Injected
        return result

    return failing


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InterruptProcessingException(), "was not measured, as that was cancelled"),
        (RuntimeError("no such kernel"), "cannot be measured: RuntimeError: no such kernel"),
    ],
)
def test_a_run_whose_reach_is_not_measured_is_whole_and_says_so(train, monkeypatch, caplog, error, said):
    def failing(*_):
        raise error

    monkeypatch.setattr(automatic, "reached", failing)
    trained = train()
    assert trained.progress.steps == 8 and "reached" not in trained.slider.info.recipe
    (note,) = trained.progress.notes
    assert said in note and note in caplog.text


@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [
        (TextualSamples, "__next__", False),
        (TextualSamples, "__next__", True),
        (torch.Tensor, "backward", True),
        (torch.optim.AdamW, "step", True),  # the parameters have changed, and the run does not know
    ],
)
def test_a_run_goes_on_from_the_step_that_failed(train, tmp_path, monkeypatch, owner, name, after):
    """Bit for bit, although no checkpoint was due."""
    whole = train()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing_at(6, getattr(owner, name), after))
        with pytest.raises(Injected):
            train(RunOptions(checkpoints=tmp_path))
    seen = []
    again = train(RunOptions(progress=lambda progress, _: seen.append(progress.steps), checkpoints=tmp_path))
    assert seen == [6, 7, 8]
    assert again.progress.losses == whole.progress.losses and same(again.slider, whole.slider)


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(train, tmp_path, monkeypatch, caplog):
    def full(path, state):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resume, "write_state", full)
    trained = train(RunOptions(checkpoints=tmp_path, checkpoint_every=3))
    assert trained.progress.steps == 8 and same(trained.slider, train().slider)
    assert caplog.text.count("No space left on device") == 3  # at 3, 6, and the end


class Growing(TextualSamples):
    """Whose losses grow from the 21st on: to tens and hundreds of times, then beyond what is an explosion."""

    met = 0

    def __next__(self):
        sample, self.met = super().__next__(), self.met + 1
        factor = {21: 0.2, 22: 0.6, 23: 0.6, 24: 1e4}.get(self.met, 0.0)
        return replace(sample, target=sample.target + factor)


def test_an_explosion_that_takes_some_steps_is_fallen_back_from_as_a_whole(train, breaks_early):
    trained = train(steps=40, samples=Growing)
    assert "broke down at step 24 of 40" in trained.progress.failure
    assert trained.progress.steps == len(trained.progress.losses) == 19  # what a step learned may be what broke it
    assert same(trained.slider, train(steps=19).slider)


@pytest.mark.parametrize("rollout_steps", [2, 10])
@pytest.mark.parametrize(("start", "end"), [(0.95, 1.0), (0.75, 1.0), (0.99, 1.0), (0.0, 0.01), (0.5, 0.51)])
def test_narrow_ranges_of_noise_have_levels(train, rollout_steps, start, end):
    trained = train(steps=2, rollout_steps=rollout_steps, start_percent=start, end_percent=end)
    assert trained.progress.steps == 2
    assert trained.slider.info.gate == Gate(start, end)  # it is to act where it was trained


def test_what_acts_on_the_model_tells_runs_apart(pocket, tmp_path):
    """A run must not go on against another frozen model."""
    model, clip, _ = pocket
    age = load_slider(FOLDER / "pocket_age.safetensors")
    once = train_on(model, clip)(RunOptions(checkpoints=tmp_path), steps=4)
    models = [
        apply_sliders(model, Stack.of(age, 0.5)),
        apply_sliders(model, Stack.of(age, 1.0)),
        apply_sliders(model, Stack.of(age, 1.0, Gate(0.3))),
    ]
    for others, acted in enumerate(models, start=1):
        trained = train_on(acted, clip)(RunOptions(checkpoints=tmp_path), steps=4)
        assert len(list(tmp_path.iterdir())) == others + 1
        assert not same(trained.slider, once.slider)


def test_half_precision_that_overflows_at_every_step_ends_the_run(train, monkeypatch):
    """The scaler skips such steps: without an end, the run would do nothing and not say so."""
    from concept_sliders.training.loop import Training

    init = Training.__init__

    def half(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self._scaler = torch.amp.GradScaler("cpu")
        self._take_snapshot(self._random_state())
        for parameter in self._parameters:
            parameter.register_hook(lambda gradient: gradient * float("inf"))

    monkeypatch.setattr(Training, "__init__", half)
    trained = train(steps=60)
    assert "broke down at step" in trained.progress.failure and "its gradient" in trained.progress.failure
    assert trained.progress.steps < 30
    assert not any(layer.up.any() for layer in trained.slider.layers.values())
