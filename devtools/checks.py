"""`dev.py test` and `check`: style, types and the registry's validator, then the tiers of tests."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from .host import ROOT, Host, demand_tools
from .problem import Problem

# From what runs in seconds on nothing to what needs a browser.
TIERS = ("unit", "host", "server", "browser")
TOOLS = {"pytest": "pytest", "hypothesis": "hypothesis", "ruff": "ruff", "mypy": "mypy", "comfy_cli": "comfy-cli"}
NAME = "concept_sliders"  # the pack as a package
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
    folders = [f"tests/{tier}" for tier in chosen]
    if folders:
        say(f"pytest {' '.join(folders)}")
        command = [str(host.python), "-m", "pytest", *folders, *pytest_arguments]
        code = subprocess.call(command, cwd=root, env=host.environment())
        if code != 0:
            failed.append("pytest")
    if failed:
        say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def run_checks(host: Host, say: Callable[[str], None]) -> int:
    """Run all but the tests."""
    demand_tools(host, TOOLS)
    failed = lint(host, say)
    if failed:
        say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


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
