"""Embedding tables within a memory budget, for recommenders in PyTorch.

``MemRecEmbedding`` and ``MemRecEmbeddingBag`` (MEM-REC, arXiv 2305.07205) replace ``nn.Embedding`` and ``nn.EmbeddingBag``. Hashes of an id
select rows of one small table, so that every 64-bit id has a vector. ``MemRecEmbeddingBagCollection`` replaces TorchRec's
``EmbeddingBagCollection``.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as _error:
    raise ImportError("scrimp.rec needs PyTorch: pip install torch") from _error

from .. import _threads
from ._collection import EmbeddingBagConfig, KeyedTensor, MemRecEmbeddingBagCollection
from ._embedding import MemRecEmbedding, MemRecEmbeddingBag
from ._fused import Adagrad, RowWiseAdagrad, Sgd

_threads.share()

__all__ = [
    "Adagrad", "EmbeddingBagConfig", "KeyedTensor", "MemRecEmbedding", "MemRecEmbeddingBag", "MemRecEmbeddingBagCollection", "RowWiseAdagrad", "Sgd",
]
