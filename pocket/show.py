"""Shows whether prompts rule the pictures: `python3 dev.py module pocket.show --folder FOLDER`.

For every attribute two opposing prompts are sampled from the same noises by the host's own nodes and read
with the probe. What comes out: a table (`show.md`), the same as JSON with every other reading beside it,
a contact sheet for each attribute and one of all.
"""

import argparse
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import comfy.utils
import torch
from PIL import Image

import nodes

from .measuring.prompts import OPPOSITIONS, Opposition
from .measuring.sheet import contact_sheet, overview
from .model import WEIGHTS, load_pocket
from .probe import SIZE, load_probe
from .world.portrait import CONTINUOUS

ENOUGH = 0.6  # of the range: what the distance of two opposing prompts should reach
ON_A_SHEET = 8  # pictures of each end
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampling:
    """How pictures are sampled; the defaults are what suits the pocket model."""

    steps: int = 20
    cfg: float = 3.0
    sampler: str = "euler"
    scheduler: str = "simple"
    seed: int = 1000  # the first batch's noise; the next batch takes the next seed
    batch: int = 32


@dataclass(frozen=True)
class Figure:
    """Readings of one opposition: mean and standard deviation at both ends, and the distance of the means."""

    opposition: Opposition
    low: float
    low_spread: float
    high: float
    high_spread: float

    @property
    def distance(self) -> float:
        """As a share of the attribute's range; of a binary attribute or a style, the difference of rates."""
        return self.high - self.low

    @property
    def enough(self) -> bool:
        return self.distance >= ENOUGH


def sample(pocket, prompt: str, count: int, sampling: Sampling) -> torch.Tensor:
    """(count, 64, 64, 3) in [0, 1]: CLIPTextEncode, EmptyLatentImage, KSampler and VAEDecode in a row."""
    model, clip, vae = pocket
    pictures = []
    with torch.inference_mode():  # as the host runs its nodes
        encode = nodes.CLIPTextEncode().encode
        positive, negative = encode(clip, prompt)[0], encode(clip, "")[0]
        for index, begin in enumerate(range(0, count, sampling.batch)):
            (latent,) = nodes.EmptyLatentImage().generate(SIZE, SIZE, min(sampling.batch, count - begin))
            (latent,) = nodes.common_ksampler(
                model,
                sampling.seed + index,
                sampling.steps,
                sampling.cfg,
                sampling.sampler,
                sampling.scheduler,
                positive,
                negative,
                latent,
            )
            pictures += nodes.VAEDecode().decode(vae, latent)
    return torch.cat(pictures)


def measure(opposition: Opposition, low: torch.Tensor, high: torch.Tensor) -> Figure:
    """The figure of (N,) readings at each end; a probability counts as yes or no."""
    if opposition.column not in CONTINUOUS:
        low, high = (low > 0.5).float(), (high > 0.5).float()
    ends = [f(end).item() for end in (low, high) for f in (torch.mean, lambda t: t.std(correction=0))]
    return Figure(opposition, *ends)


def markdown(figures: list[Figure], count: int, sampling: Sampling) -> str:
    lines = [
        f"{count} pictures a prompt, the same noises at both ends; {sampling.steps} steps, "
        f"{sampling.sampler}, {sampling.scheduler}, CFG {sampling.cfg:g}. "
        "Mean reading, with its spread over the pictures.",
        "",
        "| attribute | prompts | low | high | distance | 60 %? |",
        "|---|---|---|---|---|---|",
    ]
    for f in figures:
        lines.append(
            f"| {f.opposition.column} | {f.opposition.low} / {f.opposition.high} "
            f"| {f.low:.2f} ({f.low_spread:.2f}) | {f.high:.2f} ({f.high_spread:.2f}) "
            f"| {f.distance:.0%} | {'yes' if f.enough else 'no'} |"
        )
    return "\n".join(lines) + "\n"


def show(pocket, oppositions: list[Opposition], count: int, sampling: Sampling, folder: Path) -> list[Figure]:
    """Sample, read and write everything into `folder`; the figures, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    probe, pictures, readings = load_probe(), {}, {}
    figures, rows = [], []
    for o in oppositions:
        for prompt in (o.low, o.high):
            if prompt not in pictures:  # a style's prompt serves twice
                pictures[prompt] = sample(pocket, prompt, count, sampling)
                readings[prompt] = probe.read(pictures[prompt])
        figure = measure(o, readings[o.low][o.column], readings[o.high][o.column])
        log.info("%-12s %.2f .. %.2f  %3.0f %%", o.column, figure.low, figure.high, 100 * figure.distance)
        ends = [
            (f"{o.low}: {o.column} {figure.low:.2f}", pictures[o.low]),
            (f"{o.high}: {o.column} {figure.high:.2f}", pictures[o.high]),
        ]
        _store(
            contact_sheet([(label, shown[:ON_A_SHEET]) for label, shown in ends]),
            folder / f"{o.column.replace(' ', '_')}.png",
        )
        figures.append(figure)
        rows.append((o.column, pictures[o.low][: ON_A_SHEET // 2], pictures[o.high][: ON_A_SHEET // 2]))
    _store(overview(rows), folder / "overview.png")
    (folder / "show.md").write_text(markdown(figures, count, sampling), encoding="utf-8")
    report = {
        "sampling": asdict(sampling),
        "count": count,
        "figures": [{**asdict(f), "distance": f.distance, "enough": f.enough} for f in figures],
        "readings": {prompt: reading.mean() for prompt, reading in readings.items()},
    }
    (folder / "show.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    return figures


def _store(sheet: Image.Image, path: Path) -> None:
    sheet.save(path, optimize=True)


def main() -> None:
    defaults = Sampling()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="table and sheets go here")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--count", type=int, default=64, help="pictures a prompt")
    parser.add_argument("--only", nargs="+", choices=[o.column for o in OPPOSITIONS], help="default: all")
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    comfy.utils.set_progress_bar_enabled(False)
    sampling = Sampling(**{name: getattr(options, name) for name in asdict(defaults)})
    chosen = [o for o in OPPOSITIONS if not options.only or o.column in options.only]
    show(load_pocket(options.weights), chosen, options.count, sampling, options.folder)


if __name__ == "__main__":
    main()
