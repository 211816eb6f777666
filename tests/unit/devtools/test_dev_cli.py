"""The command line: what goes where, and how it ends when something is wrong."""

import json
import os
import subprocess
import sys

import pytest
from concept_sliders.devtools import checks
from concept_sliders.devtools.host import ROOT
from concept_sliders.devtools.problem import Problem
from concept_sliders.devtools.server import PACK, Server, ServerError, failure, refusal


def dev(*arguments, **environment):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("COMFYUI_")}
    return subprocess.run(
        [sys.executable, str(ROOT / "dev.py"), *arguments],
        capture_output=True,
        text=True,
        env={**inherited, **environment},
    )


def test_a_wrong_comfyui_ends_with_one_line_and_no_traceback(tmp_path):
    answer = dev("host", COMFYUI_PATH=str(tmp_path))
    assert answer.returncode == 1
    assert answer.stdout == ""
    assert answer.stderr.startswith("error: COMFYUI_PATH=")
    assert answer.stderr.count("\n") == 1


def test_a_disk_that_is_too_small_or_a_folder_in_the_way_ends_with_one_line(tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    answer = dev("host", CONCEPT_SLIDERS_CACHE=str(tmp_path / "cache"))
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: cannot set up in")
    assert answer.stderr.count("\n") == 1


def test_an_unknown_option_is_refused_where_nothing_is_passed_on():
    answer = dev("serve", "--prot", "8188")
    assert answer.returncode == 2
    assert "--prot" in answer.stderr


def test_a_version_that_cannot_be_set_up_names_those_that_can():
    answer = dev("test", "--host", "0.18.2")
    assert answer.returncode == 1
    others = "0.30.0, 0.24.0, 0.27.0, front-end-1.58.1, manager-4.2.2"
    assert answer.stderr == f"error: there is no 0.18.2 to set up; there are: {others}\n"


def test_an_unknown_benchmark_names_those_there_are():
    answer = dev("bench", "nothing", "--steps", "3")
    assert answer.returncode == 1
    assert "'nothing'" in answer.stderr


@pytest.fixture
def tree(tmp_path):
    for path in ("unit/test_a.py", "server/test_b.py", "browser/conftest.py"):
        file = tmp_path / "tests" / path
        file.parent.mkdir(parents=True)
        file.touch()
    return tmp_path


def test_every_tier_that_has_tests_is_run_by_default(tree):
    assert checks.select([], tree) == ["unit", "server"]


def test_tiers_are_run_in_their_own_order(tree):
    assert checks.select(["server", "unit"], tree) == ["unit", "server"]


@pytest.mark.parametrize(("tier", "sentence"), [("nowhere", "no tier 'nowhere'"), ("browser", "holds no tests")])
def test_a_tier_without_tests_is_one_sentence(tree, tier, sentence):
    with pytest.raises(Problem, match=sentence):
        checks.select([tier], tree)


def test_a_refused_workflow_is_told_by_node():
    wrong = {"message": "Value not in list", "details": "sampler_name: 'x'"}
    nodes = {"3": {"class_type": "KSampler", "errors": [wrong]}}
    told = refusal(json.dumps({"error": {"message": "Not valid"}, "node_errors": nodes}))
    assert told == "Not valid\nKSampler (3): Value not in list: sampler_name: 'x'"


def test_a_failed_workflow_is_told_by_node():
    told = {
        "node_id": "3",
        "node_type": "KSampler",
        "exception_type": "ValueError",
        "exception_message": "bad\n",
    }
    assert failure([["execution_start", {}], ["execution_error", told]]) == "KSampler (3): ValueError: bad\n"
    assert failure([["execution_interrupted", told]]) == "interrupted at KSampler (3)"


def test_a_pack_that_comfyui_could_not_load_is_an_error(tmp_path):
    log = tmp_path / "server.log"
    server = Server(None, "http://127.0.0.1:1", tmp_path, log)
    log.write_text("Import times for custom nodes:\n")
    server.check_pack()
    log.write_text(f"Cannot import /x/custom_nodes/{PACK} module for custom nodes: No module named 'y'\n")
    with pytest.raises(ServerError, match="No module named 'y'"):
        server.check_pack()
