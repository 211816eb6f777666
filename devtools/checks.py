"""`dev.py test`: the style check, the registry's validator, then the tiers of tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from .host import ROOT, Host, demand_tools
from .problem import Problem

# From what runs in seconds on nothing to what needs a browser.
TIERS = ("unit", "host", "server", "browser", "js")
TOOLS = {"pytest": "pytest", "hypothesis": "hypothesis", "ruff": "ruff", "comfy_cli": "comfy-cli"}
QUIET = {"DO_NOT_TRACK": "1", "COMFY_NO_TELEMETRY": "1", "NO_COLOR": "1"}


def run(
    host: Host,
    tiers: Sequence[str],
    pytest_arguments: Sequence[str],
    say: Callable[[str], None],
    root: Path = ROOT,
) -> int:
    """All the checks. pytest comes last, so that a good run ends with its own summary."""
    chosen = select(tiers, root)
    demand_tools(host, TOOLS)
    failed = [] if tiers else lint(host, say)
    if "js" in chosen and not run_js(root, say):
        failed.append("js")
    folders = [f"tests/{tier}" for tier in chosen if tier != "js"]
    if folders:
        say(f"pytest {' '.join(folders)}")
        command = [str(host.python), "-m", "pytest", *folders, *pytest_arguments]
        code = subprocess.call(command, cwd=root, env=host.environment())
        if code != 0:
            failed.append("pytest")
    if failed:
        say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def select(tiers: Sequence[str], root: Path) -> list[str]:
    """The tiers asked for, or all that have tests."""
    unknown = [tier for tier in tiers if tier not in TIERS]
    if unknown:
        raise Problem(f"there is no tier {unknown[0]!r}; there are: {', '.join(TIERS)}")
    empty = [tier for tier in tiers if not tests_of(tier, root)]
    if empty:
        raise Problem(f"tests/{empty[0]} holds no tests")
    return [tier for tier in TIERS if (tier in tiers if tiers else tests_of(tier, root))]


def tests_of(tier: str, root: Path) -> list[Path]:
    pattern = "*.test.*js" if tier == "js" else "test_*.py"
    return sorted((root / "tests" / tier).rglob(pattern))


def run_js(root: Path, say: Callable[[str], None]) -> bool:
    node = shutil.which("node")
    if node is None:
        say("js: left out, there is no node here")
        return True
    say("node --test tests/js")
    files = [str(path.relative_to(root)) for path in tests_of("js", root)]
    return subprocess.call([node, "--test", *files], cwd=root) == 0


def lint(host: Host, say: Callable[[str], None], root: Path = ROOT) -> list[str]:
    """Our ruff rules, then what the Comfy registry checks when a pack is published. Names what failed."""
    failed = []
    say("ruff check")
    if subprocess.call([str(host.python), "-m", "ruff", "check", "--quiet", "."], cwd=root) != 0:
        failed.append("ruff")
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
