"""Points 4 and 5: how much of a model's variety its directions bring back."""

from __future__ import annotations

from typing import Any

import torch
from _discovery_figures import gap_closed, interval, mean_distance
from _discovery_studio import Base, Studio
from concept_sliders.evaluation.scores import clip_score, frechet_distance
from concept_sliders.nodes.model_folders import SHIPPED
from concept_sliders.pocket.measuring.figures import precision_and_recall
from concept_sliders.sliders.formats.slider_files import load_slider
from concept_sliders.sliders.stack import Stack
from torch import Tensor

PROMPT, DIRECTIONS, AT_ONCE = "portrait", 12, 3
HAND_MADE_FAR = 1.0  # strengths of sliders whose ends were named
PUBLISHED = gap_closed(12.12, 15.52, 11.72)
RECALLED = 2048  # images


def distances(studio: Studio, base: Base, count: int, far: float) -> list[str]:
    """Point 4: pairwise distance, CLIP score and Fréchet distance to drawings, with three directions and none.

    far: random strengths lie between -far and far.
    """
    drawn, found = studio.drawn(RECALLED)[0], studio.found(base, PROMPT, DIRECTIONS)
    text, closed, scores, frechet = studio.texts([PROMPT])[0], [], [], []
    for seed in range(3):
        bare, mixed, parent = (
            studio.mixed(of, found.stack, PROMPT, count, sliders, far, seed)
            for of, sliders in ((base, 0), (base, AT_ONCE), (studio.parent, 0))
        )
        closed.append(gap_closed(*(mean_distance(each) for each in (mixed, bare, drawn))))
        scores.append(float((clip_score(mixed, text) - clip_score(bare, text)).mean()))
        frechet.append(gap_closed(*(frechet_distance(each, drawn) for each in (mixed, bare, parent))))
    return [
        f"share of the gap in mean pairwise distance, from the bare model to drawings: {interval(closed)} (aim 0.5)",
        f"CLIP score with directions less that without: {interval(scores)} points (aim within 1)",
        f"share of the gap in Fréchet distance, from the bare model to its parent: {interval(frechet)} "
        f"(published {PUBLISHED:.2f})",
    ]


def recalls(studio: Studio, base: Base, count: int, far: float) -> list[str]:
    """Point 5: recall of drawings, by images with three random sliders of several kinds; far: as above."""
    drawn = studio.drawn(count)[0]

    def line(name: str, stack: Stack, far: float = far) -> str:
        made = studio.mixed(base, stack, PROMPT, count, AT_ONCE, far, 0)
        precision, recall = precision_and_recall(drawn, made)
        return f"{name}: recall {recall:.3f}, precision {precision:.3f}"

    own = studio.found(base, PROMPT, DIRECTIONS)
    kinds: dict[str, dict[str, Any]] = {
        "rank 4": {"rank": 4},
        "targets that are not orthogonal (differences of two samples)": {"given": pair_differences(studio)},
        "targets by principal components of pixels": {"given": pixel_targets(studio, base)},
    }
    others = {name: studio.found(base, PROMPT, DIRECTIONS, **settings) for name, settings in kinds.items()}
    return [
        line("discovered, rank 1", own.stack),
        line("hand-made", hand_made(), HAND_MADE_FAR),
        *(line(name, of.stack) for name, of in others.items()),
    ]


def hand_made() -> Stack:
    """The pack's own sliders of the pocket model."""
    files = sorted(SHIPPED.glob("*.safetensors"))
    return sum((Stack.of(load_slider(path), 0.0) for path in files), Stack())


def pair_differences(studio: Studio) -> Tensor:
    """(K, D): differences of the embeddings of two drawings each, which are nearly never orthogonal."""
    embeddings = studio.drawn(RECALLED)[0]
    chosen = torch.randperm(len(embeddings), generator=torch.Generator().manual_seed(0))[: 2 * DIRECTIONS]
    return embeddings[chosen[:DIRECTIONS]] - embeddings[chosen[DIRECTIONS:]]


def pixel_targets(studio: Studio, base: Base) -> Tensor:
    """(K, D): the change of the embedding along each principal component of sampled images' pixels, by regression."""
    embeddings, pixels = studio.looked_at(base, PROMPT, min(studio.samples, 512))
    _, _, components = torch.linalg.svd(pixels - pixels.mean(0), full_matrices=False)
    along = (pixels - pixels.mean(0)) @ components[:DIRECTIONS].T  # (N, K)
    return (along.T @ (embeddings - embeddings.mean(0))) / along.square().sum(0)[:, None]
