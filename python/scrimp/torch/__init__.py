"""Compressed linear layers for PyTorch models on CPUs.

>>> import scrimp.torch
>>> model = scrimp.torch.compress(model, sparsity=0.5, method="wanda", format="int8", calibration=batches)
>>> print(scrimp.torch.summary(model))
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as _error:
    raise ImportError("scrimp.torch needs PyTorch: pip install torch") from _error

from .. import _threads
from ._compress import compress
from ._linear import SparseLinear
from ._load import load_compressed
from ._summary import Summary, summary

_threads.share()

__all__ = ["SparseLinear", "Summary", "compress", "load_compressed", "summary"]
