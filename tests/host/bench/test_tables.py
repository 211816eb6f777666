"""`bench tables` as a whole, with counts that take seconds: what it leaves behind, and that it goes on from there."""

import importlib
import json
import subprocess
import sys

import pytest
from concept_sliders.devtools import host

SMALL = (
    *("--seeds", "1", "--people", "2", "--steps", "2", "--batch", "1", "--eta", "0.5"),
    *("--iterations", "2", "--visual-iterations", "1", "--concepts", "smile", "--only", "a"),
)


@pytest.fixture
def tables(tmp_path):
    """The command with small counts, a cache and a folder of its own: what it says, and its exit status."""

    def run(*arguments):
        where = ("--cache", tmp_path / "cache", "--out", tmp_path / "out")
        command = [sys.executable, host.ROOT / "bench" / "tables.py", *SMALL, *where, *arguments]
        answer = subprocess.run(
            list(map(str, command)),
            env=host.ready().environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return answer.stdout, answer.returncode

    run.folder = tmp_path
    return run


@pytest.mark.slow
def test_a_part_is_measured_once_and_what_is_missing_is_made_again(tables):
    said, status = tables("--ab")
    assert status == 0, said
    out, cache = tables.folder / "out", tables.folder / "cache"
    (only,) = cache.glob("slider_*.safetensors")
    cells = {path: path.stat().st_mtime_ns for path in cache.glob("cell_*.pt")}
    assert len(cells) == 5 and (out / "results_a.jpg").stat().st_size < 200_000
    text, figures = (out / "tables.md").read_text(), json.loads((out / "results.json").read_text())
    slider = figures["a"]["smile"]["slider, at 1"][0]
    assert {"delta CLIP", "|delta CLIP|", "distance", "own", "others"} <= set(slider)
    assert f"{slider['distance']:.3f}" in text and "arXiv 2311.12092" in text
    assert (out / "ab.html").read_text().count("data:image/jpeg") > 4

    trained = only.stat().st_mtime_ns
    missing = next(iter(cells))
    missing.unlink()
    said, status = tables()
    assert status == 0, said
    assert "trained" not in said and (out / "tables.md").read_text() == text
    again = {path: path.stat().st_mtime_ns for path in cache.glob("cell_*.pt")}
    assert again.keys() == cells.keys() and again.pop(missing) > cells.pop(missing) and again == cells
    assert only.stat().st_mtime_ns == trained


@pytest.fixture
def refused(monkeypatch, capsys):
    """What the command says of arguments that it refuses, before anything is loaded."""
    monkeypatch.syspath_prepend(str(host.ROOT / "bench"))
    options = importlib.import_module("_tables_options")

    def run(*arguments):
        with pytest.raises(SystemExit):
            options.parsed("", list(map(str, arguments)))
        return capsys.readouterr().err

    run.parsed = lambda *arguments: options.parsed("", list(map(str, arguments)))
    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--concepts", "moods"), "there is no concept 'moods'; there are: age, smile"),
        (("--people", "1"), "--people takes 2 or more; got 1"),
        (("--composed", "1"), "--composed takes 2 or more; got 1"),
        (("--gate", "1"), "--gate lies in [0, 1); got 1"),
        (("--eta", "-1"), "--eta is above 0, or 0 for automatic; got -1"),
        (("--cache", host.ROOT / "output"), "--cache lies in the repository"),
        (("--checkpoint", "model.safetensors"), "a real model takes --clip-vision FILE"),
        (("--checkpoint", "m", "--clip-vision", "v", "--only", "b"), "part b of a real model takes --pairs FOLDER"),
        (("--checkpoint", "m", "--clip-vision", "v", "--docs"), "docs/results.md is of the pocket model"),
    ],
)
def test_what_cannot_be_measured_is_refused(refused, arguments, message):
    assert message in refused(*arguments)


def test_what_depends_on_the_model(refused):
    pocket, real = refused.parsed(), refused.parsed("--checkpoint", "m", "--clip-vision", "v")
    assert (pocket.parts, len(pocket.subjects), pocket.batch, pocket.cfg) == (["a", "b", "c", "d", "e"], 12, 4, 3.0)
    assert (real.parts, len(real.subjects), real.batch, real.cfg) == (["a", "c", "d"], 30, 1, 7.0)
    assert pocket.ablated.kept == ("glasses",) and real.ablated.concept.preserve == ("male", "female")
