"""The tables as text: means with their spread over training seeds, orderings checked, and the page they stand in."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

END = "<!-- end -->\n"
LARGEST, QUALITIES = 200_000, (90, 85, 80, 75, 70, 60, 50)  # bytes of a picture, and what is tried for it
HOLDS, FAILS, EQUAL, UNKNOWN = "holds here", "**does not hold here**", "no difference here", "not measured"


@dataclass(frozen=True)
class Ordering:
    """A claim that one figure is larger than another. greater, smaller: one value for each training seed, or none.

    source: where it is published; "" for a line of our own.
    """

    claim: str
    greater: Sequence[float]
    smaller: Sequence[float]
    source: str = "arXiv 2311.12092"

    @property
    def verdict(self) -> str:
        """What is found here, by the means over the seeds."""
        if not self.greater or not self.smaller:
            return UNKNOWN
        difference = statistics.fmean(self.greater) - statistics.fmean(self.smaller)
        return HOLDS if difference > 0 else FAILS if difference < 0 else EQUAL

    @property
    def seeds(self) -> str:
        """In how many of the training seeds it holds."""
        pairs = list(zip(self.greater, self.smaller))
        return f"{sum(a > b for a, b in pairs)} of {len(pairs)}" if pairs else "-"


@dataclass(frozen=True)
class Section:
    """One part of the tables. text: Markdown. rows: of its picture, a label and (n, h, w, 3) uint8 each; empty for
    none. caption: of the picture. figures: all of them, as plain values."""

    part: str
    text: str
    rows: list[tuple[str, Any]] = field(default_factory=list)
    caption: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def picture(self) -> str:
        """The name of its picture's file."""
        return f"results_{self.part}.jpg"

    @property
    def markdown(self) -> str:
        shown = f"\n![{self.caption}]({self.picture})\n\n{self.caption}.\n" if self.rows else ""
        return f"{self.text.rstrip()}\n{shown}"


def by_seed(cells: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """Return one figure of each training seed's cell; empty if it was not measured."""
    return [float(cell[name]) for cell in cells if name in cell]


def mean_over(cells: Sequence[Sequence[Mapping[str, Any]]], name: str) -> list[float]:
    """Return the mean over concepts of a figure for each training seed. cells: of each concept, of each seed."""
    found = [values for values in (by_seed(each, name) for each in cells) if values]
    return [statistics.fmean(of_seed) for of_seed in zip(*found)]


def pm(values: Sequence[float], digits: int = 3) -> str:
    """A mean and its standard deviation over training seeds; of one seed the value alone, of none a dash."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return quotients seed by seed; none where something was not measured or is nothing."""
    return [a / b for a, b in zip(above, below)] if all(below) else []


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown. Raises ValueError for a row of another length."""
    if bad := [row for row in rows if len(row) != len(columns)]:
        raise ValueError(f"A row takes {len(columns)} cells, {', '.join(columns)}; got {list(bad[0])}.")
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows))


def ordering_table(orderings: Sequence[Ordering], digits: int = 3) -> str:
    """Return what is claimed, by whom, the two figures here, and whether it holds."""
    columns = ("claim", "by", "should be larger", "should be smaller", "", "in training seeds")
    rows = [
        (
            each.claim,
            each.source or "us",
            pm(each.greater, digits),
            pm(each.smaller, digits),
            each.verdict,
            each.seeds,
        )
        for each in orderings
    ]
    return table(columns, rows)


def begin(part: str) -> str:
    """The line after which a part stands in a page."""
    return f"<!-- tables: {part} -->\n"


def written_into(page: str, part: str, text: str) -> str:
    """Return a page with a part's text between its marks. Raises ValueError if the page has not got them."""
    before, mark, rest = page.partition(begin(part))
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise ValueError(
            f"The page has no place for part {part}: {begin(part).strip()} and {END.strip()} are missing."
        )
    return f"{before}{mark}\n{text.rstrip()}\n\n{end}{after}"


def as_jpeg(image: Image.Image, largest: int = LARGEST) -> bytes:
    """Return an image as JPEG, as good as the size allows; smaller in pixels where no quality is low enough."""
    while True:
        for quality in QUALITIES:
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=quality, optimize=True)
            if stream.tell() <= largest:
                return stream.getvalue()
        image = image.resize([max(1, math.floor(side * 0.8)) for side in image.size], Image.Resampling.LANCZOS)
