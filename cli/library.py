"""ComfyUI as a library: runs a module of the pack inside it, `python cli/library.py pocket.train ...`.

The set-up is at module level so that worker processes, which import this file again, have it too.
"""

import importlib
import os
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def enter() -> None:
    """Make `comfy` (from COMFYUI_PATH) and `concept_sliders` importable; without CUDA ComfyUI runs on the CPU.

    ComfyUI parses `sys.argv` when it is first imported, so its own arguments stand there meanwhile.
    """
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, ROOT / "cli")]
    pack = types.ModuleType("concept_sliders")
    pack.__path__ = [str(ROOT)]
    sys.modules["concept_sliders"] = pack
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    import torch

    own_arguments = sys.argv
    sys.argv = ["main.py"] if torch.cuda.is_available() else ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args

    sys.argv = own_arguments


enter()

if __name__ == "__main__":
    name = sys.argv.pop(1)
    sys.exit(importlib.import_module(f"concept_sliders.{name}").main())
