"""Writes the table of what the pack calls on ComfyUI, and since when it is there: the last part of `docs/hosts.md`.

python3 -m devtools.hosts_page      writes it anew; reads the sources of all versions in `pins`, 12 MB each
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

from . import pins, variants
from .architecture import ROOT
from .comfyui_names import Source
from .comfyui_uses import Use, uses
from .steps import write_whole

PAGE = ROOT / "docs" / "hosts.md"
BEGIN, END = "<!-- what the pack calls -->\n", "<!-- end -->\n"
IMPORT = "(the module)"
MAYBE = "?"  # behind a name that is looked up when it is needed, and may be missing
RUN_TIME = "run time"  # of an attribute that no class spells out: it is set from outside


def since(found: Mapping[str, Use], sources: Sequence[tuple[str, Source]]) -> dict[str, str]:
    """Return the version from which on each name is there and takes the pack's calls.

    sources: versions and their sources, the oldest first.
    """
    fits = {name: [source.fits(use) for _, source in sources] for name, use in found.items()}
    first = {name: len(there) - len(list(itertools.takewhile(bool, reversed(there)))) for name, there in fits.items()}
    return {name: sources[at][0] if at < len(sources) else RUN_TIME for name, at in first.items()}


def table(found: Mapping[str, Use], versions: Mapping[str, str]) -> str:
    """Return the table in Markdown: a row for each module of ComfyUI and version."""
    rows: dict[tuple[str, str], list[str]] = {}
    for name, use in found.items():
        within = name.removeprefix(use.module).lstrip(".") or IMPORT
        rows.setdefault((use.module, versions[name]), []).append(f"`{within}{MAYBE * use.by_name}`")
    lines = [f"| `{module}` | {version} | {', '.join(names)} |" for (module, version), names in rows.items()]
    return "\n".join(("| module | since | names |", "|---|---|---|", *sorted(lines, key=_by_version), ""))


def listed(page: str) -> dict[str, tuple[str, bool]]:
    """Return the names that a page lists: since when they are there, and True if they may be missing."""
    names = {}
    for module, version, within in re.findall(r"^\| `([\w.]+)` \| ([\w. ]+) \| (.*) \|$", page, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", within):
            whole = module if name == IMPORT else f"{module}.{name.rstrip(MAYBE)}"
            names[whole] = (version, name.endswith(MAYBE))
    return names


def _by_version(line: str) -> tuple:
    module, version = line.split(" | ")[:2]
    return module, [int(number) for number in re.findall(r"\d+", version)]


def main() -> None:
    sources = [(release.version, Source(variants.source(release, print))) for release in pins.READABLE]
    found = uses()
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    write_whole(PAGE, f"{before}{BEGIN}\n{table(found, since(found, sources))}\n{END}{after}")


if __name__ == "__main__":
    main()
