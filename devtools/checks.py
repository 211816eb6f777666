"""`dev.py test` and `check`: style, types and the registry's validator, then the tiers of tests."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from . import variants
from .host import ROOT, Host, demand_tools
from .problem import Problem

# From what runs in seconds on nothing to what needs a browser.
TIERS = ("unit", "host", "server", "browser")
SERVED = ("server", "browser")  # each has one ComfyUI running for all its tests
MOST_WORKERS = 4  # each imports torch and ComfyUI, and takes about 2 GB
SLOWEST = "--durations=20"  # how many of the slowest tests pytest names at the end
TOOLS = {
    "pytest": "pytest",
    "xdist": "pytest-xdist",
    "hypothesis": "hypothesis",
    "ruff": "ruff",
    "mypy": "mypy",
    "comfy_cli": "comfy-cli",
}
NAME = "concept_sliders"  # the pack as a package
# What `--all` adds: (the variant, the tests that are run on it)
ROUNDS = (
    *((version, "server") for version in variants.OLDER),
    *((manager, "server") for manager in variants.MANAGERS),
    *((front_end, "browser") for front_end in variants.FRONT_ENDS),
)
# Tests that take too long for each commit, and every kind of change on every module of every family of models
RELEASE = "--release"
QUIET = {"DO_NOT_TRACK": "1", "COMFY_NO_TELEMETRY": "1", "NO_COLOR": "1"}


def run(
    host: Host,
    tiers: Sequence[str],
    pytest_arguments: Sequence[str],
    say: Callable[[str], None],
    root: Path = ROOT,
) -> int:
    """Run all checks. pytest comes last, so that a good run ends with its own summary."""
    chosen = select(tiers, root)
    demand_tools(host, TOOLS)
    failed = [] if tiers else lint(host, say)
    if chosen and not passes(host, chosen, pytest_arguments, say, root):
        failed.append("pytest")
    return ended(failed, say)


def run_all(host: Host, pytest_arguments: Sequence[str], say: Callable[[str], None], root: Path = ROOT) -> int:
    """Run what is run before a release: all checks, the tests with those of `RELEASE`, and what `ROUNDS` has."""
    demand_tools(host, TOOLS)
    failed = lint(host, say, root)
    if not passes(host, select((), root), pytest_arguments, say, root, options=(RELEASE,)):
        failed.append("the tests on the pinned ComfyUI")
    for variant, tier in ROUNDS:
        say(f"\n{tier} tests on {variant}")
        if not passes(variants.find(variant, say), (tier,), pytest_arguments, say, root):
            failed.append(f"{tier} on {variant}")
    return ended(failed, say)


def passes(
    host: Host,
    tiers: Sequence[str],
    pytest_arguments: Sequence[str],
    say: Callable[[str], None],
    root: Path,
    options: Sequence[str] = (),
) -> bool:
    """Run pytest over tiers, with `options`; returns True if it ends well.

    Unless pytest is given arguments, each core has a process that takes the next file of tests when it is done with
    one, see `pytest_xdist_make_scheduler` in `tests/conftest.py`. A tier of `SERVED` is taken as a whole. Those come
    first, so that all processes end at about the same time.
    """
    cores = os.cpu_count() or 1
    divisible = len(tiers) > 1 or tiers[0] not in SERVED
    workers = min(cores, MOST_WORKERS) if divisible and not pytest_arguments else 1
    environment = host.environment()
    several: tuple[str, ...] = ()
    if workers > 1:
        tiers = sorted(tiers, key=TIERS.index, reverse=True)
        several = ("-n", str(workers), "--no-loadscope-reorder")
        environment["OMP_NUM_THREADS"] = str(cores // workers)
    folders = [f"tests/{tier}" for tier in tiers]
    say(f"pytest {' '.join(folders)}" + (f", by {workers} processes" if workers > 1 else ""))
    command = [str(host.python), "-m", "pytest", SLOWEST, *options, *several, *pytest_arguments, *folders]
    return subprocess.call(command, cwd=root, env=environment) == 0


def ended(failed: Sequence[str], say: Callable[[str], None]) -> int:
    """Say what failed; returns the exit status."""
    if failed:
        say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def run_checks(host: Host, say: Callable[[str], None]) -> int:
    """Run all but the tests."""
    demand_tools(host, TOOLS)
    return ended(lint(host, say), say)


def select(tiers: Sequence[str], root: Path) -> list[str]:
    """Return the tiers asked for, or all that have tests."""
    unknown = [tier for tier in tiers if tier not in TIERS]
    if unknown:
        raise Problem(f"there is no tier {unknown[0]!r}; there are: {', '.join(TIERS)}")
    empty = [tier for tier in tiers if not tests_of(tier, root)]
    if empty:
        raise Problem(f"tests/{empty[0]} holds no tests")
    return [tier for tier in TIERS if (tier in tiers if tiers else tests_of(tier, root))]


def tests_of(tier: str, root: Path) -> list[Path]:
    return sorted((root / "tests" / tier).rglob("test_*.py"))


def lint(host: Host, say: Callable[[str], None], root: Path = ROOT) -> list[str]:
    """Run our ruff rules, mypy, and what the Comfy registry checks when a pack is published. Names what failed."""
    failed = []
    say("ruff check")
    if subprocess.call([str(host.python), "-m", "ruff", "check", "--quiet", "."], cwd=root) != 0:
        failed.append("ruff")
    say("ruff format --check")
    if subprocess.call([str(host.python), "-m", "ruff", "format", "--check", "--quiet", "."], cwd=root) != 0:
        failed.append("ruff format")
    if not typed(host, say, root):
        failed.append("mypy")
    say("comfy node validate")
    answer = subprocess.run(
        [str(host.python), "-m", "comfy_cli", "--skip-prompt", "node", "validate"],
        cwd=root,
        env={**os.environ, **QUIET},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    # It ends well even where it has warnings; those of the registry are errors to us.
    if answer.returncode != 0 or "warning" in answer.stdout.lower():
        say(answer.stdout.rstrip())
        failed.append("comfy node validate")
    return failed


def typed(host: Host, say: Callable[[str], None], root: Path = ROOT) -> bool:
    """Run mypy over the whole pack, under the name that it has in the tests. Returns False if there are errors.

    A link beside mypy's cache gives the folder that name: its own one may be no name of a package.
    """
    say("mypy")
    home = root / ".mypy_cache" / "as_package"
    home.mkdir(parents=True, exist_ok=True)
    link = home / NAME
    if not link.is_symlink():
        link.symlink_to(root, target_is_directory=True)
    where = ["--config-file", str(root / "pyproject.toml"), "--cache-dir", str(root / ".mypy_cache")]
    answer = subprocess.run(
        [str(host.python), "-m", "mypy", *where, "--package", NAME],
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if answer.returncode != 0:
        say(re.sub(f"^{NAME}/", "", answer.stdout.rstrip(), flags=re.MULTILINE))
    else:
        say(answer.stdout.rstrip().rpartition("\n")[2])
    return answer.returncode == 0
