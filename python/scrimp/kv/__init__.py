"""Smaller KV caches for Hugging Face models: KVCrush (arXiv 2503.00022) with mass, as ``scrimp run --kvcrush`` has it.

All of it is torch operations on the tensors' own device, so it runs on GPUs as it is.

* :class:`CompressedCache` goes to ``model.generate`` as ``past_key_values``.
* :class:`KVCrushPress` composes with any scorer press of kvpress.
* :func:`select` is what both call: which tokens of each KV head stay, and what is added to their scores.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as _error:
    raise ImportError("scrimp.kv needs PyTorch: pip install torch") from _error

from ._cache import CompressedCache
from ._press import KVCrushPress
from ._select import Crush, Selection, select

__all__ = ["CompressedCache", "Crush", "KVCrushPress", "Selection", "select"]
