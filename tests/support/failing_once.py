"""A function that runs out of memory once."""

import torch


class FailingOnce:
    """A function of ours, or one of PyTorch's that ours call, that finds no memory at its nth call."""

    def __init__(self, function, at: int):
        self.function, self.at, self.calls = function, at, 0

    def __getattr__(self, name: str):
        return getattr(self.function, name)

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls == self.at:
            raise torch.cuda.OutOfMemoryError("no room")
        return self.function(*args, **kwargs)
