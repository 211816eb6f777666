#!/usr/bin/env python3
"""One command for everything done with this pack outside ComfyUI. Standard library only.

    python3 dev.py demo                 train a slider in the real ComfyUI and turn it
    python3 dev.py train RECIPE [...]    train a slider by a recipe: a slider's file, or JSON
    python3 dev.py test [tier ...]      the tests: unit, host, server, browser; without a tier, the checks too
    python3 dev.py test --host 0.24.0   the server tier on another version of ComfyUI
    python3 dev.py test --all           all of it, on all versions and front ends
    python3 dev.py check                style, types and what the Comfy registry checks
    python3 dev.py bench NAME [...]     one of the benchmarks in bench/
    python3 dev.py serve                a running ComfyUI with this pack in it
    python3 dev.py run SCRIPT [...]     a script, by ComfyUI's Python
    python3 dev.py module NAME [...]    a module of the pack inside ComfyUI as a library, such as pocket.train
    python3 dev.py host                 which ComfyUI that is, and what is installed in it

ComfyUI is the one that COMFYUI_PATH names (run by COMFYUI_PYTHON, if that differs). Without it a pinned one is set
up once, in the per-user cache folder or in CONCEPT_SLIDERS_CACHE.
"""

from __future__ import annotations

import argparse
import functools
import signal
import subprocess
import sys

from devtools import checks, host, pins, server, variants
from devtools.problem import Problem

say = functools.partial(print, flush=True)


def script(name: str, arguments: list[str]) -> int:
    """Run a script of this repository with ComfyUI's Python."""
    path = (host.ROOT / name).resolve()
    if not path.is_file():
        raise Problem(f"there is no script {name} in {host.ROOT}")
    chosen = host.find(say)
    return subprocess.call([str(chosen.python), str(path), *arguments], env=chosen.environment())


def demo(options: argparse.Namespace) -> int:
    return script("cli/library.py", ["cli.demo", *options.rest])


def test(options: argparse.Namespace) -> int:
    if options.all:
        return checks.run_all(host.find(say), options.rest, say)
    if options.host:
        return checks.run(variants.find(options.host, say), options.tiers or ["server"], options.rest, say)
    return checks.run(host.find(say), options.tiers, options.rest, say)


def check(options: argparse.Namespace) -> int:
    return checks.run_checks(host.find(say), say)


def train(options: argparse.Namespace) -> int:
    # Ctrl-C is for the trainer alone: it stops, and writes what it has learned
    signal.signal(signal.SIGINT, lambda *_: None)
    return script("cli/library.py", ["cli.train", *options.rest])


def bench(options: argparse.Namespace) -> int:
    names = sorted(path.stem for path in (host.ROOT / "bench").glob("[!_]*.py"))
    if options.name not in names:
        raise Problem(f"there is no benchmark {options.name!r}; there are: {', '.join(names) or 'none yet'}")
    return script(f"bench/{options.name}.py", options.rest)


def run(options: argparse.Namespace) -> int:
    return script(options.script, options.rest)


def module(options: argparse.Namespace) -> int:
    return script("cli/library.py", [options.name, *options.rest])


def serve(options: argparse.Namespace) -> int:
    return server.serve(host.find(say), options.port, options.cpu, options.base, say)


def show_host(options: argparse.Namespace) -> int:
    say("\n".join(host.describe(host.find(say))))
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="dev.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, does, text: str, passes_on: bool = False) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text, add_help=not passes_on)
        made.set_defaults(does=does, passes_on=passes_on)
        return made

    command("demo", demo, "train a slider in the real ComfyUI and turn it", passes_on=True)
    command("train", train, "train a slider by a recipe: a slider's file, or JSON", passes_on=True)
    testing = command("test", test, "run the tests; arguments after -- go to pytest")
    testing.add_argument("tiers", nargs="*", metavar="tier", help=f"of {', '.join(checks.TIERS)}; default: all")
    where = testing.add_mutually_exclusive_group()
    versions = ", ".join((pins.PINNED.version, *variants.PACKAGES))
    where.add_argument("--host", metavar="NAME", help=f"one of {versions}; default tier: server")
    where.add_argument(
        "--all",
        action="store_true",
        help="before a release: on all of these, and tests that take long",
    )
    command("check", check, "check style, types and what the Comfy registry checks")
    benching = command("bench", bench, "run one of the benchmarks in bench/", passes_on=True)
    benching.add_argument("name")
    serving = command("serve", serve, "start ComfyUI with this pack in it")
    serving.add_argument("--port", type=int, default=0, help="default: a free one")
    serving.add_argument("--cpu", action="store_true", help="do not use a GPU")
    serving.add_argument("--base", help="folder for models, output and settings (default: a temporary one)")
    running = command("run", run, "run a script with ComfyUI's Python", passes_on=True)
    running.add_argument("script")
    loading = command("module", module, "run a module of the pack inside ComfyUI as a library", passes_on=True)
    loading.add_argument("name")
    command("host", show_host, "say which ComfyUI all this runs on, and what is installed in it")
    return top


def parse(arguments: list[str]) -> argparse.Namespace:
    """Split off what is for others: what stands behind `--`, and what demo, bench and run do not know."""
    before, after = arguments, []
    if "--" in arguments:
        cut = arguments.index("--")
        before, after = arguments[:cut], arguments[cut + 1 :]
    top = parser()
    options, unknown = top.parse_known_args(before)
    if unknown and not options.passes_on:
        top.error(f"unknown arguments: {' '.join(unknown)}")
    options.rest = unknown + after
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    # Being asked to stop unwinds like any other end, so that no server or pip is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return options.does(options)
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
