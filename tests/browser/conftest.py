"""The real front end in a real browser, on a server of its own. Left out where there is no Chromium."""

import json
import shutil
from pathlib import Path

import pytest
from concept_sliders.devtools import host
from concept_sliders.devtools import server as servers
from concept_sliders.tests.browser.reading import READY
from playwright.sync_api import sync_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SECONDS = 180  # to wait for the front end on a busy machine
SETTINGS = {  # of someone who has been here before: no gallery of moving pictures lies over the workflow
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Workflow.Persist": False,  # nothing that was open before comes back over what a test opens
}


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium: the machine's, or the one that playwright keeps."""
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = next(filter(None, map(shutil.which, PROGRAMS)), own if Path(own).is_file() else None)
        if found is None:
            pytest.skip("no Chromium here: install the package chromium, or run `playwright install chromium`")
        launched = playwright.chromium.launch(executable_path=found, headless=True, args=list(QUIET))
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def server(browser, tmp_path_factory):
    """A running ComfyUI, started once it is known that there is a browser for it."""
    found = host.ready()
    if found is None:
        pytest.fail("there is no ComfyUI to run: start the tests with `python3 dev.py test browser`")
    base = tmp_path_factory.mktemp("comfyui")
    of_user = base / "user" / "default"
    of_user.mkdir(parents=True)
    (of_user / "comfy.settings.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    with servers.running(found, base) as running:
        yield running


@pytest.fixture(scope="session")
def page(browser, server):
    """The front end, with the pack's nodes in it."""
    opened = browser.new_page(viewport={"width": 1700, "height": 950})
    opened.set_default_timeout(SECONDS * 1000)
    opened.on("dialog", lambda dialog: dialog.accept())  # that a workflow is not saved is no reason to stay
    opened.goto(server.url, wait_until="domcontentloaded")
    opened.wait_for_function(READY)
    yield opened
    opened.close()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item, nextitem):
    """Leave the front end after the last test of this tier: it draws on, and other tiers go on for long."""
    page = getattr(item, "funcargs", {}).get("page")
    if page and not (nextitem and nextitem.nodeid.startswith("tests/browser/")):
        page.close()
