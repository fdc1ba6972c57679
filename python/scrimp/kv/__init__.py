"""Compressed KV caches for Hugging Face models: eviction policies and KVCrush (arXiv 2503.00022), as in ``scrimp run --kvcrush``.

All computations are torch operations on the device of the tensors.

* :class:`CompressedCache` is a cache for ``model.generate(past_key_values=...)``.
* :class:`KVCrushPress` adds KVCrush to a press of kvpress.
* :func:`select` selects the tokens of one layer; both use it.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as _error:
    raise ImportError("scrimp.kv needs PyTorch: pip install torch") from _error

from ._cache import CompressedCache
from ._press import KVCrushPress
from ._select import Crush, Selection, select

__all__ = ["CompressedCache", "Crush", "KVCrushPress", "Selection", "select"]
