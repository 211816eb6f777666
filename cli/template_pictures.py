"""The pictures of the template browser: `python3 dev.py module cli.template_pictures --only use_sliders`.

Runs every example workflow on a server of its own, as it is, and stores what its nodes show, one below the other.
"""

from __future__ import annotations

import argparse
import functools
import io
import sys
import time
from pathlib import Path

from PIL import Image

from ..devtools import host, server, workflow
from ..devtools.problem import Problem
from .live import run_live

say = functools.partial(print, flush=True)
EXAMPLES = host.ROOT / "example_workflows"
SHOWING = tuple(
    f"ConceptSliders{name}"
    for name in (
        "SliderStrip",
        "MeasureSlider",
        "CalibrateSlider",
        "SliderReport",
        "DiscoverSliders",
        "DiscoverPromptDirections",
    )
)
GAP, PAPER = 8, (250, 250, 248)
QUALITIES, MOST_BYTES = (88, 80, 70, 60), 200_000  # of a JPEG: the first by which it is no larger, or the last


def picture_of(running: server.Server, name: str) -> Image.Image:
    """Run one workflow and return what it shows."""
    prompt = workflow.to_prompt(workflow.read_workflow(EXAMPLES / f"{name}.json"), running.object_info())
    entry = run_live(running, prompt, lambda moment: None)
    showing = [node for node, own in prompt.items() if own["class_type"] in SHOWING and node in entry["outputs"]]
    files = [image for node in sorted(showing, key=int) for image in entry["outputs"][node]["images"]]
    if not files:
        raise Problem(f"the workflow {name} shows no image: it has none of {', '.join(SHOWING)}")
    return stacked([Image.open(running.base / f["type"] / f["subfolder"] / f["filename"]) for f in files])


def stacked(images: list[Image.Image]) -> Image.Image:
    """One below the other, each in the middle."""
    width = max(image.width for image in images)
    sheet = Image.new("RGB", (width, sum(i.height for i in images) + GAP * (len(images) - 1)), PAPER)
    top = 0
    for image in images:
        sheet.paste(image, ((width - image.width) // 2, top))
        top += image.height + GAP
    return sheet


def jpeg_of(picture: Image.Image) -> bytes:
    """Return it as JPEG, in as good a quality as its size allows."""
    for quality in QUALITIES:
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=quality)
        if content.tell() <= MOST_BYTES:
            break
    return content.getvalue()


def main() -> int:
    names = sorted(path.stem for path in EXAMPLES.glob("*.json"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--folder", type=Path, default=EXAMPLES, help="where the pictures go")
    options = parser.parse_args()
    try:
        with server.temporary_base() as base, server.running(host.find(say), base) as running:
            for name in options.only:
                began = time.monotonic()
                (options.folder / f"{name}.jpg").write_bytes(jpeg_of(picture_of(running, name)))
                say(f"{name}: {time.monotonic() - began:.0f} s")
    except (Problem, server.ServerError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
