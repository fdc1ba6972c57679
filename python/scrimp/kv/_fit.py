"""Fitted values: what the kept keys of a cache must hold so that attention over them gives what attention over all keys gave.

::

    X[i][j] = softmax over the kept keys of (q_i . k_j + bias_j)
    V'      = V + (X^T X + ridge I)^-1 X^T (O - X V)              O: the outputs of the queries over all keys
            = V + X^T (X X^T + ridge I)^-1 (O - X V)              with fewer queries than keys

The same solution as in ``crates/scrimp-kernels/src/ops/fit``.
"""

from typing import Optional

import torch
from torch import Tensor

from ._future import attention

#: The ridge, as a share of the mean diagonal element of X^T X.
_RIDGE = 0.03
#: The largest magnitude of a fitted value. It is below the largest number of float16.
_LARGEST = 32768.0


def fit_values(queries: Tensor, outputs: Tensor, scaling: float, keys: Tensor, values: Tensor, bias: Optional[Tensor]) -> Tensor:
    """Fitted values of the kept keys, ``[batch, kv_heads, kept, dim]``. Heads whose system has no finite solution keep their values.

    Args:
        queries: queries that represent future ones, ``[batch, kv_heads, rows, dim]``.
        outputs: their outputs over all keys, float32, of the same shape.
        keys, values: the kept ones.
        bias: added to the scores of the kept keys.
    """
    fitted = torch.empty_like(values)
    # One KV head at a time bounds the memory of the systems.
    for head in range(keys.shape[1]):
        one = slice(head, head + 1)
        x = attention(queries[:, one], keys[:, one], scaling, None if bias is None else bias[:, one])
        v = values[:, one].float()
        residual, xt = outputs[:, one] - x @ v, x.transpose(2, 3)
        rows, kept = x.shape[2:]
        dual = rows < kept
        ridge = _RIDGE * x.square().sum((2, 3), keepdim=True) / kept
        gram = x @ xt if dual else xt @ x
        gram = gram + ridge * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        factor, failed = torch.linalg.cholesky_ex(gram)
        change = torch.cholesky_solve(residual if dual else xt @ residual, factor)
        new = v + (xt @ change if dual else change)
        good = (failed == 0)[..., None, None] & (new.abs() <= _LARGEST).all(-1, keepdim=True).all(-2, keepdim=True)
        fitted[:, one] = torch.where(good, new, v).to(values.dtype)
    return fitted
