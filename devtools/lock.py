"""A lock between processes that the operating system gives back when its holder dies."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

if sys.platform == "win32":
    import msvcrt

    def _take(file: IO[str]) -> None:
        # A byte far behind the text, so that others can still read who holds the lock.
        file.seek(1 << 20)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _take(file: IO[str]) -> None:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def held(path: Path, on_wait: Callable[[str], None], poll: float = 0.5) -> Iterator[int]:
    """Hold the lock at `path`, and yield its file descriptor.

    A child process that inherits the descriptor keeps the lock (outside Windows): if we are killed while pip
    is still writing, the next set-up waits for that pip instead of working beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        told = False
        while True:
            try:
                _take(file)
                break
            except OSError:
                if not told:
                    file.seek(0)
                    on_wait(file.read(32).strip() or "unknown")
                    told = True
                time.sleep(poll)
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield file.fileno()
