"""Drawings with their numbers, made once and kept in shards: what the model and the probe train on."""

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from .drawing import draw
from .world import Portrait, portraits

SHARD = 2048


def drawn_pool(count: int, seed: int, folder: Path) -> tuple[list[Portrait], np.ndarray]:
    """`count` people and their pictures, (count, 128, 128, 3) uint8.

    Shards already in `folder` are read, missing ones are drawn on all cores; a shard is written whole.
    """
    shards = -(-count // SHARD)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"portraits-{seed}-{index}.npy" for index in range(shards)]
    missing = [(path, seed, index) for index, path in enumerate(paths) if not path.exists()]
    if missing:
        with ProcessPoolExecutor() as workers:
            list(workers.map(_draw_shard, *zip(*missing)))
    people = [p for index in range(shards) for p in _shard_people(seed, index)]
    pictures = np.concatenate([np.load(path) for path in paths])
    return people[:count], pictures[:count]


def _shard_people(seed: int, index: int) -> list[Portrait]:
    return portraits(SHARD, seed=seed * 100_003 + index)


def _draw_shard(path: Path, seed: int, index: int) -> None:
    pictures = np.stack([draw(p) for p in _shard_people(seed, index)])
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with open(partial, "wb") as file:
        np.save(file, pictures)
    os.replace(partial, path)
