"""One running ComfyUI with the pack in it, for all tests of this tier."""

import pytest
from concept_sliders.devtools import host
from concept_sliders.devtools import server as servers


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A `devtools.server.Server` in a folder of its own: `post`, `wait`, `interrupt`, `object_info`."""
    found = host.ready()
    if found is None:
        pytest.fail("there is no ComfyUI to run: start the tests with `python3 dev.py test server`")
    with servers.running(found, tmp_path_factory.mktemp("comfyui")) as running:
        yield running
