"""scrimp: language models and recommenders in a fraction of the memory, on ordinary CPUs.

| module | what for |
|---|---|
| ``scrimp.LLM`` | language models: ``generate``, ``stream``, ``chat``, ``logits`` |
| ``scrimp.Rec`` | recommenders that ``scrimp rec train`` wrote: ``score`` |
| ``scrimp.torch`` | makes any PyTorch model smaller and faster: ``compress`` and ``SparseLinear`` |
| ``scrimp.kv`` | smaller KV caches for Hugging Face models: ``CompressedCache``, ``KVCrushPress`` |
| ``scrimp.rec`` | embedding tables in a budget for PyTorch models: ``MemRecEmbedding``, ``MemRecEmbeddingBag`` |

Kernels for PyTorch's tensors run on PyTorch's own threads; everything else on threads of scrimp's, as many as there are CPUs for this
process. ``set_num_threads`` changes their number; None brings the default back.
"""

import os as _os

from . import _scrimp
from ._llm import LLM, Answer
from ._recommender import Rec
from ._scrimp import __version__, get_num_threads, set_num_threads, tier

__all__ = ["LLM", "Answer", "Rec", "__version__", "get_num_threads", "set_num_threads", "tier"]

if _os.environ.get("SCRIMP_NUM_THREADS"):
    try:
        set_num_threads(int(_os.environ["SCRIMP_NUM_THREADS"]))
    except (ValueError, OverflowError) as _error:
        raise ValueError(f"SCRIMP_NUM_THREADS: {_error}") from None

# A forked child (DataLoader, multiprocessing) has none of its parent's threads.
if hasattr(_os, "register_at_fork"):
    _os.register_at_fork(after_in_child=_scrimp.after_fork)
