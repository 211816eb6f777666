"""Drawings with their numbers, made once and kept in shards: what the models and the probe train on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from .drawing import draw
from .portrait import Portrait, portraits
from .unnamed import Unnamed

SHARD = 2048
TRAINING_SEED, HELD_OUT_SEED = 1, 2


@dataclass(frozen=True)
class Pool:
    """People and their drawings, which stay on disk until they are asked for."""

    people: list[Portrait]
    shards: list[np.ndarray]  # (2048, 128, 128, 3) uint8 each, mapped

    def __len__(self) -> int:
        return len(self.people)

    def pictures(self, chosen: Sequence[int] | np.ndarray) -> Tensor:
        """The drawings of the people at these places: (B, 3, 128, 128) in [-1, 1]."""
        drawn = np.stack([self.shards[i // SHARD][i % SHARD] for i in chosen])
        return rearrange(torch.from_numpy(drawn).float() / 127.5 - 1, "b h w c -> b c h w")

    def batches(self, size: int, count: int | None = None) -> Iterator[Tensor]:
        """The drawings of the first `count` people, or of all, `size` at a time."""
        last = len(self) if count is None else min(count, len(self))
        for begin in range(0, last, size):
            yield self.pictures(range(begin, min(begin + size, last)))

    def numbers(self) -> np.ndarray:
        """(N, 14): `Portrait.numbers`, then the brow, which no caption names."""
        return np.stack([[*p.numbers(), Unnamed.of(p.seed).brow] for p in self.people]).astype(np.float32)


def drawn_pool(count: int, seed: int, folder: Path) -> Pool:
    """`count` people and their pictures.

    Shards already in `folder` are read, missing ones are drawn on all cores; a shard is written whole.
    """
    shards = -(-count // SHARD)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"portraits-{seed}-{index}.npy" for index in range(shards)]
    missing = [(path, seed, index) for index, path in enumerate(paths) if not path.exists()]
    if missing:
        with ProcessPoolExecutor() as workers:
            list(workers.map(_draw_shard, *zip(*missing)))
    return Pool(people(count, seed), [np.load(path, mmap_mode="r") for path in paths])


def people(count: int, seed: int) -> list[Portrait]:
    """Those of a pool, without their pictures."""
    return [p for index in range(-(-count // SHARD)) for p in _shard_people(seed, index)][:count]


def _shard_people(seed: int, index: int) -> list[Portrait]:
    return portraits(SHARD, seed=seed * 100_003 + index)


def _draw_shard(path: Path, seed: int, index: int) -> None:
    pictures = np.stack([draw(p) for p in _shard_people(seed, index)])
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with open(partial, "wb") as file:
        np.save(file, pictures)
    os.replace(partial, path)
