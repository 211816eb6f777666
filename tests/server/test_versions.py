"""What the pack calls on ComfyUI is what its page says, and the ComfyUI that all these tests run on has it."""

import pytest
from concept_sliders.comfy_host.comfyui_version import OLDEST
from concept_sliders.devtools import host, hosts_page
from concept_sliders.devtools.comfyui_names import Source
from concept_sliders.devtools.comfyui_uses import uses


def test_the_page_lists_what_the_pack_calls():
    listed = hosts_page.listed(hosts_page.PAGE.read_text(encoding="utf-8"))
    assert {name: may_be_missing for name, (_, may_be_missing) in listed.items()} == {
        name: use.by_name for name, use in uses().items()
    }, "run: python3 -m devtools.hosts_page"


def test_the_oldest_version_has_all_that_is_not_looked_up_by_name():
    listed = hosts_page.listed(hosts_page.PAGE.read_text(encoding="utf-8"))
    later = {
        name: version
        for name, (version, may_be_missing) in listed.items()
        if not may_be_missing and host.numbers(version) > host.numbers(OLDEST)
    }
    assert len(listed) > 200 and later == {}


@pytest.fixture(scope="module")
def comfyui():
    return host.ready()


def test_all_that_the_pack_calls_is_there_and_takes_its_calls(comfyui):
    source = Source(comfyui.comfy)
    assert [name for name, use in uses().items() if not use.by_name and not source.fits(use)] == []


def test_the_page_says_since_when_names_are_there(comfyui):
    source, version = Source(comfyui.comfy), host.numbers(comfyui.version())
    listed = hosts_page.listed(hosts_page.PAGE.read_text(encoding="utf-8"))
    told = {name: since for name, (since, _) in listed.items() if since != hosts_page.RUN_TIME}
    wrong = [
        name
        for name, use in uses().items()
        if name in told and source.fits(use) is not (host.numbers(told[name]) <= version)
    ]
    assert wrong == []
