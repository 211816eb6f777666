"""Makes the pack importable as `concept_sliders`, without running its entry point.

The folder `nodes/` at the root must not shadow ComfyUI's own module `nodes`, so the root leaves `sys.path`
and ComfyUI, where there is one, stands first. The unit tier works without it.
"""

import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
pack = types.ModuleType("concept_sliders")
pack.__path__ = [str(ROOT)]
sys.modules["concept_sliders"] = pack

from concept_sliders.devtools import host  # noqa: E402

if found := host.ready():
    sys.path.insert(0, str(found.comfy))
