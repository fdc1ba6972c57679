"""scrimp: language models and recommenders in a fraction of the memory, on ordinary CPUs.

| module | purpose |
|---|---|
| ``scrimp.LLM`` | language models: ``generate``, ``stream``, ``chat``, ``logits`` |
| ``scrimp.Rec`` | scores rows with the models of ``scrimp rec train`` |
| ``scrimp.torch`` | compresses the linear layers of PyTorch models: ``compress``, ``SparseLinear`` |
| ``scrimp.kv`` | compresses the KV caches of Hugging Face models: ``CompressedCache``, ``KVCrushPress`` |
| ``scrimp.rec`` | embedding tables within a memory budget: ``MemRecEmbedding``, ``MemRecEmbeddingBag`` |

Kernels for PyTorch tensors run on PyTorch's threads. All other work runs on scrimp's threads: one for each CPU of the process, or
``set_num_threads(n)``. ``set_num_threads(None)`` restores the default.
"""

import os as _os

from . import _scrimp
from ._llm import LLM, Answer
from ._recommender import Rec
from ._scrimp import __version__, get_num_threads, set_num_threads, simd_level

__all__ = ["LLM", "Answer", "Rec", "__version__", "get_num_threads", "set_num_threads", "simd_level"]

if _os.environ.get("SCRIMP_NUM_THREADS"):
    try:
        set_num_threads(int(_os.environ["SCRIMP_NUM_THREADS"]))
    except (ValueError, OverflowError) as _error:
        raise ValueError(f"SCRIMP_NUM_THREADS: {_error}") from None

# A forked child (DataLoader, multiprocessing) does not inherit the threads of its parent.
if hasattr(_os, "register_at_fork"):
    _os.register_at_fork(after_in_child=_scrimp.after_fork)
