"""A running ComfyUI with this pack in it, in a folder of its own; and the questions one asks it over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .host import ROOT, Host, has_accelerator
from .problem import Problem

PACK = "ComfyUI-ConceptSliders"
FOLDERS = ("custom_nodes", "user", "input", "output", "temp", "models")
START_SECONDS = 480  # a first start on a slow disk takes minutes
REPORT = "concept_sliders_report"  # what the pack's nodes report, in a history entry

# Runs main.py in a process that ends when we do, however we end: its standard input is a pipe from us.
BOUND_TO_US = """
import os, runpy, sys, threading
def leave_with_parent():
    sys.stdin.buffer.read()
    os._exit(1)
threading.Thread(target=leave_with_parent, daemon=True).start()
sys.argv = sys.argv[1:]
sys.path[0] = os.getcwd()
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class ServerError(RuntimeError):
    """The server refused a workflow, failed while running it, or ended."""


class Server:
    """A ComfyUI process at the address `url`, with its folder `base`. No `log`: it speaks to our output."""

    def __init__(self, process: subprocess.Popen, url: str, base: Path, log: Path | None):
        self.process, self.url, self.base, self.log = process, url, base, log

    def ask(self, path: str, body: Any = None, timeout: float = 30) -> Any:
        """GET `path`, or POST `body` to it as JSON; the answer, decoded."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def post(self, prompt: dict[str, Any], client_id: str = "dev") -> str:
        """Queue a workflow in API format; its prompt id."""
        try:
            answer = self.ask("/prompt", {"prompt": prompt, "client_id": client_id})
        except urllib.error.HTTPError as error:
            raise ServerError(refusal(error.read().decode(errors="replace"))) from error
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 600) -> dict[str, Any]:
        """Return the history entry of a workflow once it has run; raises with the node's own error if it failed."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            self.check_alive()
            entry = self.ask(f"/history/{prompt_id}").get(prompt_id)
            if entry:
                if entry["status"]["status_str"] != "success":
                    raise ServerError(failure(entry["status"]["messages"]))
                return entry
            time.sleep(0.1)
        raise ServerError(f"workflow {prompt_id} has not ended after {timeout:.0f} s")

    def interrupt(self) -> None:
        """Cancel what runs now."""
        self.ask("/interrupt", {})

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """Return the description of all nodes, or of one."""
        return self.ask(f"/object_info/{node}" if node else "/object_info", timeout=120)

    def check_alive(self) -> None:
        if self.process.poll() is not None:
            raise ServerError(f"ComfyUI ended with code {self.process.returncode}\n{self.tail()}")

    def tail(self, count: int = 40) -> str:
        """Return the last lines of the server's output."""
        if self.log is None:
            return ""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])

    def check_pack(self) -> None:
        """ComfyUI goes on without a pack that it cannot import; nobody here wants that."""
        said = "" if self.log is None else self.log.read_text(encoding="utf-8", errors="replace")
        if found := re.search(rf"Cannot import .*{PACK} module for custom nodes: (.*)", said):
            raise ServerError(f"ComfyUI could not load {PACK}: {found.group(1)}\n{self.tail()}")

    def until_ready(self, seconds: float = START_SECONDS) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.check_alive()
            with contextlib.suppress(OSError):  # nobody listens yet
                self.ask("/system_stats", timeout=5)
                self.check_pack()
                return
            time.sleep(0.2)
        raise ServerError(f"ComfyUI does not answer at {self.url} after {seconds:.0f} s\n{self.tail()}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def reported(entry: dict[str, Any], node: str) -> list[str]:
    """Return the lines that a node of the pack reported, facts and warnings alike, from a history entry."""
    return [line["text"] for line in entry["outputs"].get(node, {}).get(REPORT, ())]


def saved_as(entry: dict[str, Any]) -> list[str]:
    """Return the files that Save nodes of the pack say they have written, from a history entry."""
    lines = [line for node in entry["outputs"] for line in reported(entry, node)]
    return [found[1] for line in lines if (found := re.search("saved as (.+)$", line))]


def refusal(body: str) -> str:
    """Return what is wrong with a workflow that was not accepted."""
    try:
        told = json.loads(body)
    except json.JSONDecodeError:
        return body
    if not isinstance(told, dict) or not isinstance(told.get("error"), dict):
        return body
    parts = [told["error"].get("message", "refused")]
    for node, wrong in (told.get("node_errors") or {}).items():
        reasons = "; ".join(f"{e.get('message')}: {e.get('details')}" for e in wrong.get("errors", []))
        parts.append(f"{wrong.get('class_type')} ({node}): {reasons}")
    return "\n".join(parts)


def failure(messages: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Return what ended a workflow that had begun."""
    for kind, told in messages:
        if kind == "execution_interrupted":
            return f"interrupted at {told.get('node_type')} ({told.get('node_id')})"
        if kind == "execution_error":
            trace = "".join(told.get("traceback") or [])
            what = f"{told.get('exception_type')}: {told.get('exception_message', '').strip()}"
            return f"{told.get('node_type')} ({told.get('node_id')}): {what}\n{trace}"
    return "failed without a message"


def link(source: Path, target: Path) -> None:
    """Make `target` show the folder `source`: by link, on Windows also by junction, else by copy."""
    try:
        target.symlink_to(source, target_is_directory=True)
        return
    except OSError:
        if os.name != "nt":
            raise
    made = subprocess.run(["cmd", "/c", "mklink", "/J", str(target), str(source)], capture_output=True)
    if made.returncode != 0:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(".git", "node_modules", "__pycache__"))


def prepare(base: Path, models: Path | None = None, pack: Path = ROOT) -> None:
    """Lay out a base directory with the pack in it. `models` shows another folder's models there."""
    base.mkdir(parents=True, exist_ok=True)
    if models is not None and not (base / "models").exists():
        link(models, base / "models")
    for name in FOLDERS:
        (base / name).mkdir(exist_ok=True)
    if not (base / "custom_nodes" / PACK).exists():
        link(pack, base / "custom_nodes" / PACK)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def running(
    host: Host,
    base: Path,
    port: int = 0,
    cpu: bool = False,
    arguments: Sequence[str] = ("--disable-api-nodes",),
    shown: bool = False,
    models: Path | None = None,
) -> Iterator[Server]:
    """Start ComfyUI in `base`, wait until it answers, stop it in the end. `shown`: no log file."""
    prepare(base, models)
    port = port or free_port()
    command = [str(host.python), "-c", BOUND_TO_US, "main.py", "--listen", "127.0.0.1", "--port", str(port)]
    # Its database would otherwise lie in the folder of ComfyUI itself.
    database = f"sqlite:///{(base / 'user' / 'comfyui.db').as_posix()}"
    command += [
        "--base-directory",
        str(base),
        "--database-url",
        database,
        "--disable-auto-launch",
        *arguments,
    ]
    if cpu or not has_accelerator(host):
        command += ["--cpu", "--use-pytorch-cross-attention"]  # the faster attention there
    log = None if shown else base / "server.log"
    with contextlib.ExitStack() as stack:
        output = None if log is None else stack.enter_context(open(log, "w", encoding="utf-8"))
        process = subprocess.Popen(
            command,
            cwd=host.comfy,
            env=host.environment(),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
        )
        server = Server(process, f"http://127.0.0.1:{port}", base, log)
        stack.callback(server.stop)
        server.until_ready()
        yield server


@contextlib.contextmanager
def temporary_base() -> Iterator[Path]:
    """A base directory that goes when it is no longer needed."""
    base = Path(tempfile.mkdtemp(prefix="concept-sliders-"))
    try:
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)  # takes links away, does not follow them


def serve(host: Host, port: int, cpu: bool, base: str | None, say: Callable[[str], None]) -> int:
    """`dev.py serve`: run until interrupted. Someone's own ComfyUI brings its models along."""
    models = None if host.pinned else host.comfy / "models"
    folder = contextlib.nullcontext(Path(base).expanduser().absolute()) if base else temporary_base()
    with folder as where:
        try:
            with running(host, where, port, cpu, arguments=(), shown=True, models=models) as server:
                say(f"\nComfyUI with {PACK} runs at {server.url} (its folder: {where}; stop it with Ctrl-C)")
                return server.process.wait()
        except ServerError as error:
            raise Problem(str(error).strip()) from error
        except KeyboardInterrupt:
            say("stopped")
            return 0
