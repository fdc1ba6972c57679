"""Lookups as an autograd function, whose forward and backward passes run in Rust on the tensors' memory."""

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Lookup(torch.autograd.Function):
    """Vectors of ids. ``owner`` chooses the form of the gradients: dense, sparse, or a step of a fused optimizer."""

    @staticmethod
    def forward(ctx: Any, owner: Any, ids: Tensor, offsets: Optional[Tensor], table: Tensor, weights: Optional[Tensor]) -> Tensor:
        outputs = ids.numel() if offsets is None else offsets.numel()
        out = torch.empty(outputs, owner.embedding_dim, dtype=torch.float32)
        owner._rows.forward((table, weights), (ids, offsets), out)
        ctx.owner = owner
        ctx.save_for_backward(ids, offsets, table, weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        ids, offsets, table, weights = ctx.saved_tensors
        owner, inputs = ctx.owner, ((table, weights), (ids, offsets), grad.contiguous())
        if owner.fused is not None or owner.sparse:
            owner._check_distributed()
        needed = ctx.needs_input_grad[3:5]
        if owner.fused is not None:
            owner._fused_step(*inputs, needed)
            table_grad = weight_grad = None
        elif owner.sparse:
            table_grad, weight_grad = _sparse(owner._rows, *inputs)
        else:
            table_grad = torch.zeros_like(table)
            weight_grad = None if weights is None else torch.zeros_like(weights)
            owner._rows.backward_dense(*inputs, (table_grad, weight_grad))
        return None, None, None, table_grad, weight_grad


def _sparse(rows: Any, tables: Any, lookups: Any, grad: Tensor) -> Any:
    """Gradients of the rows that the ids touch, as sparse tensors without duplicates."""
    (table, weights), n = tables, lookups[0].numel()

    def room(values: Tensor, most: int) -> Any:
        count = min(values.shape[0], most)
        return torch.empty(count, dtype=torch.int64), torch.empty(count, values.shape[1])

    table_to = room(table, n * rows.table_rows_per_lookup)
    weight_to = None if weights is None else room(weights, n * rows.weight_rows_per_lookup)
    counts = rows.backward_sparse(tables, lookups, grad, table_to, weight_to)

    def tensor(of: Optional[Tensor], to: Any, count: int) -> Optional[Tensor]:
        if of is None:
            return None
        indices, values = to[0][:count].unsqueeze(0), to[1][:count]
        return torch.sparse_coo_tensor(indices, values, of.shape, is_coalesced=True, check_invariants=False)

    return tensor(table, table_to, counts[0]), tensor(weights, weight_to, counts[1])


@torch.compiler.disable
def lookup(owner: Any, ids: Tensor, offsets: Optional[Tensor]) -> Tensor:
    """Vectors of ids, or sums of their bags, ``[outputs, dim]``; ids and offsets are int64 and contiguous."""
    dtype = owner.table.dtype
    if dtype == torch.float32:
        return Lookup.apply(owner, ids, offsets, owner.table, owner.weights)
    if owner.fused is not None or owner.sparse:
        raise TypeError(f"sparse=True and fused= need float32 tables, not {dtype}")
    # The kernels read float32. Conversions have gradients.
    weights = None if owner.weights is None else owner.weights.float()
    return Lookup.apply(owner, ids, offsets, owner.table.float(), weights).to(dtype)
