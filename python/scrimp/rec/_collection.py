"""``MemRecEmbeddingBagCollection``: TorchRec's ``EmbeddingBagCollection`` within a memory budget."""

import functools
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Sequence, Union

import torch
from torch import Tensor, nn

from ._embedding import Budget, MemRecEmbeddingBag, _bytes
from ._fused import FusedOptimizer


@dataclass
class EmbeddingBagConfig:
    """A table, with the fields of TorchRec's ``EmbeddingBagConfig``, which works as well."""

    name: str
    embedding_dim: int
    num_embeddings: int
    feature_names: List[str] = field(default_factory=list)
    pooling: Any = "sum"


class KeyedTensor:
    """Pooled vectors by feature, ``[batch, sum of dims]``, with the interface of TorchRec's ``KeyedTensor``."""

    def __init__(self, keys: List[str], length_per_key: List[int], values: Tensor) -> None:
        self._keys, self._lengths, self._values = keys, length_per_key, values

    def keys(self) -> List[str]:
        return self._keys

    def length_per_key(self) -> List[int]:
        return self._lengths

    def values(self) -> Tensor:
        return self._values

    def to_dict(self) -> Dict[str, Tensor]:
        return dict(zip(self._keys, self._values.split(self._lengths, 1)))

    def __getitem__(self, key: str) -> Tensor:
        return self.to_dict()[key]


@functools.lru_cache(None)
def _keyed_tensor() -> Any:
    """TorchRec's class if it is installed, else the one above. The result is cached: Python retries failed imports."""
    try:
        from torchrec.sparse.jagged_tensor import KeyedTensor as theirs
    except Exception:  # Broken installations raise all sorts of things.
        return KeyedTensor
    return theirs


class MemRecEmbeddingBagCollection(nn.Module):
    """Replaces ``torchrec.EmbeddingBagCollection``: pooled vectors of the jagged ids of many features.

    >>> tables = [EmbeddingBagConfig("users", 16, 10_000_000, ["user"]), EmbeddingBagConfig("items", 16, 2_000_000, ["clicked", "bought"])]
    >>> collection = MemRecEmbeddingBagCollection(tables, budget="8MB")
    >>> collection(kjt)["user"]                                     # [batch, 16]

    Args:
        tables: a list of ``EmbeddingBagConfig``, TorchRec's or this module's. Poolings are sum and mean.
        budget: size of all tables in bytes, divided in proportion to full tables; by default a hundredth of their size.
        options: keyword arguments of :class:`MemRecEmbeddingBag`.

    The input is a ``KeyedJaggedTensor``, or an object with its ``keys()``, ``values()`` and ``lengths()``. Weights scale the vectors of
    tables with pooling sum.
    """

    def __init__(
        self, tables: Sequence[Any], budget: Optional[Budget] = None, *, sparse: bool = False, fused: Optional[FusedOptimizer] = None, seed: int = 1,
        **options: Any,
    ) -> None:
        super().__init__()
        if not tables:
            raise ValueError("there are no tables")
        full = [t.num_embeddings * t.embedding_dim * 4 for t in tables]
        whole = sum(full) // 100 if budget is None else _bytes(budget)
        self.embedding_bags = nn.ModuleDict()
        self._features: List[List[str]] = []
        for i, (table, size) in enumerate(zip(tables, full)):
            if table.name in self.embedding_bags:
                raise ValueError(f"there are two tables called {table.name!r}")
            if hasattr(self.embedding_bags, table.name) or "." in table.name:
                raise ValueError(f"a table cannot be called {table.name!r}: PyTorch's modules have such an attribute, or it has a dot")
            self.embedding_bags[table.name] = MemRecEmbeddingBag(
                table.num_embeddings, table.embedding_dim, whole * size // sum(full), mode=_mode(table.pooling), seed=seed + i, sparse=sparse,
                fused=fused, **options,
            )
            self._features.append(list(table.feature_names or [table.name]))
        names = [name for features in self._features for name in features]
        # TorchRec's keys for a feature of several tables.
        self._keys = [
            name if names.count(name) == 1 else f"{name}@{table}"
            for table, features in zip(self.embedding_bags, self._features) for name in features
        ]
        self._lengths = [bag.embedding_dim for bag, features in zip(self.embedding_bags.values(), self._features) for _ in features]

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        return sum(bag.nbytes for bag in self.embedding_bags.values())

    def forward(self, features: Any) -> Union[KeyedTensor, Any]:
        keys = list(features.keys())
        weights = getattr(features, "weights_or_none", lambda: None)()
        lengths = features.lengths().view(len(keys), -1)
        # Ids are stored feature after feature.
        sizes = lengths.sum(1).tolist()
        parts = dict(zip(keys, features.values().split(sizes)))
        weights_of = {} if weights is None else dict(zip(keys, weights.split(sizes)))
        lengths_of = dict(zip(keys, lengths))
        pooled = []
        for bag, names in zip(self.embedding_bags.values(), self._features):
            for name in names:
                if name not in parts:
                    raise ValueError(f"there is no feature {name!r} among {keys}")
                offsets = lengths_of[name].cumsum(0) - lengths_of[name]
                pooled.append(bag(parts[name], offsets, weights_of.get(name)))
        return _keyed_tensor()(keys=list(self._keys), length_per_key=list(self._lengths), values=torch.cat(pooled, 1))


def _mode(pooling: Any) -> str:
    """``"sum"`` or ``"mean"`` from TorchRec's ``PoolingType`` or text of any case."""
    mode = str(getattr(pooling, "value", pooling)).lower()
    if mode not in ("sum", "mean"):
        raise ValueError(f"there is no pooling {pooling!r}; these are: sum, mean")
    return mode
