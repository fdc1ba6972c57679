"""Statistics of the inputs of linear layers on calibration data."""

from collections.abc import Mapping
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Union

import torch
from torch import Tensor, nn

from .._scrimp import InputStatistics
from ._layers import Layer

Calibration = Union[Iterable[Any], Callable[[nn.Module], Any]]


class Recorder:
    """Collects statistics of the inputs of layers. Layers with the same input tensor share them."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.statistics: Dict[str, InputStatistics] = {}
        self._last: Optional[Tensor] = None
        self._last_statistics: Optional[InputStatistics] = None
        self._added: set = set()

    def hook(self, layer: Layer, features: int) -> Any:
        def record(_module: nn.Module, args: Any, kwargs: Any) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            same = x is self._last
            statistics = self.statistics.get(layer.name)
            if statistics is None:
                shared = self._last_statistics if same else None
                statistics = shared or InputStatistics(features, self.method)
                self.statistics[layer.name] = statistics
            if not same:
                self._last, self._added = x, set()
            self._last_statistics = statistics
            if id(statistics) not in self._added:
                self._added.add(id(statistics))
                statistics.add(x.detach().contiguous())

        return layer.module.register_forward_pre_hook(record, with_kwargs=True)


def run(model: nn.Module, calibration: Calibration) -> bool:
    """Runs the model once over all data, without gradients and in evaluation mode. False: there are no data."""
    training = model.training
    model.eval()
    empty = True
    try:
        with torch.no_grad():
            if callable(calibration):
                calibration(model)
                return True
            for batch in calibration:
                empty = False
                if isinstance(batch, Mapping):
                    model(**batch)
                elif isinstance(batch, (tuple, list)):
                    model(*batch)
                else:
                    model(batch)
        return not empty
    finally:
        model.train(training)


def groups(layers: List[Layer], method: str, memory: int) -> Iterator[List[Layer]]:
    """Groups layers so that the statistics of a group fit into ``memory`` bytes. Each group costs a pass over the data.

    The statistics of later groups include the errors of the compressed earlier ones.
    """
    group: List[Layer] = []
    used = 0
    for layer in layers:
        features = layer.weight().shape[1]
        # X^T X, and during pruning the factor of its inverse.
        size = 8 * features * features if method == "sparsegpt" else 8 * features
        if group and used + size > memory:
            yield group
            group, used = [], 0
        group.append(layer)
        used += size
    if group:
        yield group


def collect(model: nn.Module, group: List[Layer], method: str, calibration: Calibration) -> Dict[str, InputStatistics]:
    """Statistics of the inputs of a group, by layer name. Layers without a call, and those called with no rows only (experts that no
    token chooses), have none.
    """
    recorder = Recorder(method)
    handles = [recorder.hook(layer, layer.weight().shape[1]) for layer in group]
    try:
        has_data = run(model, calibration)
    finally:
        for handle in handles:
            handle.remove()
    if not has_data:
        raise ValueError("no layer was called: the calibration data is empty")
    return {name: statistics for name, statistics in recorder.statistics.items() if statistics.tokens}
