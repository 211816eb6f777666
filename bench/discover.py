"""What discovered directions are worth, on the pocket model, nine points one by one.

    python3 dev.py bench discover [--points 2 3 7] [--models turbo] [--seeds 16] [--samples 256] [--steps 200]
        [--discovery-seed 0]

Directions are of the pocket vision tower's embeddings; attributes are read by the probe, which discovery never sees.
Each point says its figures and what they should be:

    1 the loss, its gradient and the components: the tests that check them
    2 cosine of the change that each direction makes with its component, on seeds not seen, beside untrained sliders
    3 groups of attributes that directions of "portrait" move, beside the ceiling on drawings
    4 variety that three random directions at a time give back to the few-step model
    5 recall of drawings by images with three random directions, of several kinds
    6 directions with style words projected out
    7 directions of a woman's portrait on a man's
    8 effect and distortion without the first steps
    9 cost in forward passes, beside the published schedule

Point 4 is of the few-step model, the others of both. Discoveries, images' embeddings and readings are kept in the
folder --out, and a run that was broken off goes on.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import _models  # isort: skip  (makes ComfyUI and the pack importable, for the others too)
import _discovery_directions as directions
from _discovery_cost import costs
from _discovery_diversity import RECALLED, distances, recalls
from _discovery_studio import Base, Studio

log = logging.getLogger("bench")
Point = Callable[[Studio, Base], list[str]]
BOTH, TURBO, PARENT = ("parent", "turbo"), ("turbo",), ("parent",)


def points(options: argparse.Namespace) -> dict[int, tuple[Point, tuple[str, ...]]]:
    """Return each point with the models that it is measured on."""
    return {
        1: (directions.by_tests, PARENT),
        2: (directions.realised_directions, BOTH),
        3: (directions.groups_found, BOTH),
        4: (partial(distances, count=options.images, far=options.far), TURBO),
        5: (partial(recalls, count=options.images, far=options.far), BOTH),
        6: (directions.without_style, BOTH),
        7: (directions.carried_over, BOTH),
        8: (directions.first_steps_skipped, BOTH),
        9: (partial(costs, counts=tuple(options.directions)), BOTH),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, nargs="*", choices=range(1, 10), default=list(range(1, 10)))
    parser.add_argument("--models", nargs="+", choices=BOTH, default=BOTH, help="of points that are of both")
    parser.add_argument("--seeds", type=int, default=16, help="to measure single directions on")
    parser.add_argument("--samples", type=int, default=256, help="trajectories of a discovery")
    parser.add_argument("--steps", type=int, default=200, help="of its training")
    parser.add_argument("--discovery-seed", type=int, default=0, help="of its samples, its weights and its lessons")
    parser.add_argument("--images", type=int, default=RECALLED, help="of points 4 and 5")
    parser.add_argument("--far", type=float, default=2.5, help="the largest strength of directions there")
    parser.add_argument("--directions", type=int, nargs="*", default=[8, 32], help="numbers of them in point 9")
    parser.add_argument("--out", type=Path, default=Path("output/discover"), help="folder of what is kept")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    studio = Studio(options.out, options.samples, options.steps, options.seeds, options.discovery_seed)
    bases = {"parent": studio.parent, "turbo": studio.turbo}
    wanted = points(options)
    for number in options.points:
        point, names = wanted[number]
        for name in [name for name in names if name in options.models] or names:
            log.info("%d, %s:", number, name)
            base, began = bases[name], _models.now()
            lines = point(studio, base)
            log.info("%s\n    (%.0f s)", "\n".join(f"    {line}" for line in lines), _models.now() - began)


if __name__ == "__main__":
    main()
