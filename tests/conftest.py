"""Makes the pack importable as `concept_sliders`, without running its entry point.

The folder `nodes/` at the root must not shadow ComfyUI's own module `nodes`, so the root leaves `sys.path`
and ComfyUI, where there is one, stands first. The unit tier works without it.
"""

import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
pack = types.ModuleType("concept_sliders")
pack.__path__ = [str(ROOT)]
sys.modules["concept_sliders"] = pack

from concept_sliders.devtools import checks, host  # noqa: E402

if found := host.ready():
    sys.path.insert(0, str(found.comfy))


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist, tests run one after the other
def pytest_xdist_make_scheduler(config, log):
    """Give each process whole files, whose tests share what they set up, and whole tiers that share a server."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            tier = file.split("/")[1]
            return tier if tier in checks.SERVED else file

    return ByFile(config, log)


def pytest_addoption(parser):
    parser.addoption(
        "--release", action="store_true", help="what is run before a release alone, and every kind on every module"
    )


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--release"):
        for item in items:
            if item.get_closest_marker("release"):
                item.add_marker(pytest.mark.skip(reason="before a release: dev.py test --all"))
