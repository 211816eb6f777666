"""Set-up in steps: what an interruption leaves behind, and how the next run goes on."""

import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple

import pytest
from concept_sliders.devtools import host, lock, steps
from concept_sliders.devtools.problem import Problem
from concept_sliders.devtools.pythons import in_venv
from concept_sliders.devtools.steps import Step

ROOT = host.ROOT


def quiet(_):
    pass


class Recorder:
    """Three small steps that note what was asked of them; `cut` is where one is interrupted."""

    def __init__(self, cut=None):
        self.cut, self.done = cut, []

    def steps(self, lock=None):
        return [Step(name, name, 1, self.work(name)) for name in ("venv", "source", "tools")]

    def work(self, name):
        def work(home, again):
            self.done.append((name, again))
            if name == "venv":
                python = in_venv(home / "venv")
                python.parent.mkdir(parents=True, exist_ok=True)
                python.touch()
            if name == self.cut:
                raise KeyboardInterrupt
            (home / f"{name}.txt").write_text("whole")

        return work


@pytest.mark.parametrize("cut", ["venv", "source", "tools"])
def test_an_interrupted_set_up_goes_on_with_the_step_that_was_cut_off(tmp_path, cut):
    home = tmp_path / "host"
    first = Recorder(cut)
    with pytest.raises(KeyboardInterrupt):
        host.set_up(quiet, home, first.steps)
    assert not host.is_ready(home, first.steps())

    second = Recorder()
    made = host.set_up(quiet, home, second.steps)
    names = ["venv", "source", "tools"]
    assert second.done == [(name, name == cut) for name in names[names.index(cut) :]]
    assert host.is_ready(home, second.steps())
    assert made.comfy == home / "ComfyUI"


def test_a_finished_set_up_does_nothing_and_says_nothing(tmp_path):
    home, said = tmp_path / "host", []
    host.set_up(quiet, home, Recorder().steps)
    again = Recorder()
    host.set_up(said.append, home, again.steps)
    assert (again.done, said) == ([], [])


def test_a_host_whose_python_is_gone_is_made_again(tmp_path):
    home = tmp_path / "host"
    host.set_up(quiet, home, Recorder().steps)
    in_venv(home / "venv").unlink()
    again = Recorder()
    host.set_up(quiet, home, again.steps)
    assert [name for name, _ in again.done] == ["venv", "source", "tools"]


def test_a_stamp_behind_an_unfinished_step_does_not_count(tmp_path):
    chain = Recorder().steps()
    (tmp_path / "steps").mkdir()
    for step in (chain[0], chain[2]):
        (tmp_path / "steps" / f"{step.name}.done").touch()
    assert steps.left(tmp_path, chain) == chain[1:]


def test_set_up_tells_how_far_it_is(tmp_path):
    said = []
    host.set_up(said.append, tmp_path / "host", Recorder().steps)
    assert [line for line in said if "/3" in line] == ["1/3 venv", "2/3 source", "3/3 tools"]
    assert sum("done in" in line for line in said) == 3


def test_too_little_disk_is_said_before_the_work_begins(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12, 2 * 10**9))
    begun = []
    step = Step("large", "large", 9 * 10**9, lambda *_: begun.append(1))
    with pytest.raises(Problem, match=r"9\.0 GB of free disk space .* 2\.0 GB .* CONCEPT_SLIDERS_CACHE"):
        host.set_up(quiet, tmp_path / "host", lambda _: [step])
    assert not begun


def test_only_the_remaining_steps_need_room(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    chain = [Step("large", "large", 9 * 10**9, quiet), Step("small", "small", 10**9, lambda *_: None)]
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "large.done").touch()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12, 2 * 10**9))
    steps.carry_out(tmp_path, chain, quiet)
    assert steps.left(tmp_path, chain) == []


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Problem, match="CONCEPT_SLIDERS_CACHE"):
        host.set_up(quiet, tmp_path / "file" / "host", Recorder().steps)


def test_two_set_ups_do_not_work_at_the_same_time(tmp_path):
    home, told = tmp_path / "host", []
    slow, waiting = Recorder(), Recorder()
    begun, go_on = threading.Event(), threading.Event()

    def slowly(where, again):
        begun.set()
        assert go_on.wait(10)

    def slow_steps(lock):
        return [*slow.steps(), Step("slow", "slow", 1, slowly)]

    one = threading.Thread(target=host.set_up, args=(quiet, home, slow_steps))
    one.start()
    assert begun.wait(10)
    two = threading.Thread(
        target=host.set_up,
        args=(told.append, home, lambda _: [*waiting.steps(), Step("slow", "slow", 1, slowly)]),
    )
    two.start()
    time.sleep(0.2)
    assert waiting.done == []
    go_on.set()
    one.join(10)
    two.join(10)
    assert waiting.done == []  # the first one had done all of it
    assert len(told) == 1
    assert "another set-up is at work" in told[0]


def test_a_lock_dies_with_its_process(tmp_path):
    program = (
        "import sys, os; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from devtools import lock\n"
        "with lock.held(Path(sys.argv[2]), print):\n"
        "    os._exit(9)\n"
    )
    path = tmp_path / "x.lock"
    assert subprocess.call([sys.executable, "-c", program, str(ROOT), str(path)]) == 9
    waited = []
    with lock.held(path, waited.append, poll=0.01):
        assert path.exists()
    assert waited == []
