"""Which layers forward hooks reach: those that run when the model does.

A model may read the weight of a layer and never run it: a fused kernel is handed the weight, or code calls `forward`
itself. What a hook adds to the layer's output is then lost without a word. So layers are watched until they have run
for the first time, and one whose weight was read although it did not run is told apart from one that takes no part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from torch import nn

T = TypeVar("T")


class BypassedLayers(ValueError):
    """Layers of which a model reads the weights without running them: what was added to their outputs is lost.

    modules: those layers. learning: True if gradients are to reach the changes of some, which they cannot.
    """

    def __init__(self, layers: Mapping[nn.Module, str]) -> None:
        self.modules, self.learning = frozenset(layers), False
        super().__init__(
            f"The model reads weights of {', '.join(sorted(layers.values()))} without running the layer, so a change "
            "cannot be added to its output. A slider acts there by a weight in the place of the layer's own, but "
            "cannot be trained there: leave the layer out of those that are trained."
        )


@contextmanager
def watched(unreached: dict[nn.Module, str]) -> Iterator[None]:
    """Watch layers within the block, and take those that run off the list.

    unreached: layers that have not run yet, with their names in messages.
    Raises BypassedLayers after the block if weights of some were read that have not run in it.
    """
    if not unreached:
        yield
        return
    called: set[nn.Module] = set()
    read: set[nn.Module] = set()
    with ExitStack() as watching:
        for module in unreached:
            handle = module.register_forward_pre_hook(lambda module, _: called.add(module))
            watching.callback(handle.remove)
            own = module._parameters
            vars(module)["_parameters"] = _Recording(own, module, read)
            watching.callback(vars(module).__setitem__, "_parameters", own)
        yield
    for module in called:
        unreached.pop(module, None)
    if bypassed := {module: name for module, name in unreached.items() if module in read}:
        raise BypassedLayers(bypassed)


def evaluated(evaluate: Callable[[], T]) -> T:
    """Return what `evaluate` does with sliders acting in it, from anew for as long as it finds layers bypassed."""
    while True:  # each time it finds others
        try:
            return evaluate()
        except BypassedLayers as found:
            if found.learning:
                raise


class _Recording(dict[str, Any]):
    """The parameters of a module, which notes when one of them is asked for by its name.

    Parameters that are put into it or taken out go into or out of the module's own.
    """

    def __init__(self, own: dict[str, Any], module: nn.Module, read: set[nn.Module]) -> None:
        super().__init__(own)
        self._own, self._module, self._read = own, module, read

    def __getitem__(self, name: str) -> Any:
        self._read.add(self._module)
        return self._own[name]

    def get(self, name: str, default: Any = None) -> Any:
        self._read.add(self._module)
        return self._own.get(name, default)

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        self._own[name] = value

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        del self._own[name]
