"""The pages that people read: their size, and that what they link to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "web" / "docs").glob("*.md")),
]
README_BYTES = 9_000


def repository() -> str:
    """The address that pyproject.toml gives."""
    return re.findall(r'^Repository = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)[0]


def targets(text: str) -> list[str]:
    """What a page links to or shows, in Markdown or HTML, as written."""
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)


def anchors(text: str) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def missing(page: Path, text: str) -> list[str]:
    """The links of a page to files or headings of this repository that are not there."""
    bad = []
    for target in targets(text):
        inside = re.sub(rf"^{re.escape(repository())}/(blob|tree)/main/", "/", target)
        if inside.startswith(("http:", "https:", "mailto:")):
            continue
        name, _, anchor = inside.partition("#")
        base = ROOT if name.startswith("/") else page.parent
        file = (base / name.lstrip("/")).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            bad.append(target)
    return bad


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_is_there(page):
    assert missing(page, page.read_text(encoding="utf-8")) == []


def test_a_link_that_leads_nowhere_is_seen():
    page = ROOT / "README.md"
    assert missing(page, "[a](docs/none.md) [b](README.md#none) [c](#install) <img src='x'>") == [
        "docs/none.md",
        "README.md#none",
    ]
    assert missing(page, f"[a]({repository()}/blob/main/docs/none.md)") == [f"{repository()}/blob/main/docs/none.md"]


def test_help_pages_link_by_address():
    """ComfyUI shows them alone: a relative link would lead to its own server."""
    pages = [page for page in PAGES if page.parent.name == "docs" and page.parent.parent.name == "web"]
    relative = {page.name: t for page in pages for t in targets(page.read_text("utf-8")) if "://" not in t}
    assert relative == {}


def test_the_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= README_BYTES


def test_every_page_of_the_documentation_is_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"docs/{page.name}" not in text] == []
