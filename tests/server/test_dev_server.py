"""The server fixture itself, on nodes that ComfyUI brings."""

import pytest
from concept_sliders.devtools.server import PACK, ServerError


def picture(width=32):
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": width, "height": 32, "batch_size": 1, "color": 255},
        },
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "test"}},
    }


def test_a_workflow_runs_and_leaves_its_picture_in_the_base_directory(server):
    entry = server.wait(server.post(picture()), timeout=60)
    (image,) = entry["outputs"]["2"]["images"]
    assert (server.base / "output" / image["filename"]).is_file()


def test_the_pack_is_linked_into_the_base_directory(server):
    assert (server.base / "custom_nodes" / PACK / "pyproject.toml").is_file()


def test_a_refused_workflow_says_why(server):
    with pytest.raises(ServerError, match=r"EmptyImage \(1\): .*width"):
        server.post(picture(width=0))


def test_a_node_that_fails_says_why(server):
    prompt = picture()
    prompt["2"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "../outside"}}
    with pytest.raises(ServerError, match=r"SaveImage \(2\): .*output"):
        server.wait(server.post(prompt), timeout=60)


def test_the_nodes_describe_themselves(server):
    assert "KSampler" in server.object_info("KSampler")
