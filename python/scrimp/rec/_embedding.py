"""MEM-REC embeddings (arXiv 2305.07205) as PyTorch modules."""

import json
import re
from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple, Union

import torch
from torch import Tensor, nn

from .._scrimp import MemRec
from ._fused import FusedOptimizer
from ._lookup import lookup

Budget = Union[int, str]
#: The options of ``MemRec`` in their order in pickles; their names are those in state_dicts.
_OPTIONS = ("features", "dim", "budget", "seed", "block", "k", "groups", "signs", "weight_share")


def _bytes(budget: Budget) -> int:
    """The number of bytes of a budget: a number, or text such as ``"64MB"``."""
    if isinstance(budget, str):
        match = re.fullmatch(r"([\d.]+)\s*([kMGT]?)(i?)B?", budget.strip())
        if not match:
            raise ValueError(f"budget {budget!r}: write a number of bytes, or '64MB', '1.5GiB'")
        number, prefix, binary = match.groups()
        return int(float(number) * (1024 if binary else 1000) ** " kMGT".index(prefix or " "))
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 0:
        raise ValueError(f"budget must be a number of bytes, not {budget!r}")
    return budget


@dataclass
class _Options:
    """The keyword arguments that both modules share; :class:`MemRecEmbedding` documents them."""

    block_dim: int = 4
    num_hashes: int = 1
    groups: int = 1
    signs: bool = True
    weight_share: float = 0.05
    seed: int = 1
    sparse: bool = False
    fused: Optional[FusedOptimizer] = None


class _MemRec(nn.Module):
    """Tables, their optimizer state and their serialization, for both modules."""

    table: Tensor
    weights: Optional[Tensor]

    def __init__(self, features: int, dim: int, budget: Budget, options: _Options) -> None:
        super().__init__()
        o, fused = options, options.fused
        if fused is not None and not isinstance(fused, FusedOptimizer):
            raise TypeError("fused must be scrimp.rec.Sgd, Adagrad or RowWiseAdagrad; give other optimizers the parameters")
        self.embedding_dim, self.sparse, self.fused = dim, o.sparse, fused
        self._arguments = (
            features, dim, _bytes(budget), o.seed, min(o.block_dim, dim), o.num_hashes, o.groups, o.signs, o.weight_share,
        )
        self._rows = MemRec(self._options())
        self.table = nn.Parameter(torch.empty(self._rows.table_shape))
        rows, _ = self._rows.weight_shape
        self.weights = nn.Parameter(torch.empty(self._rows.weight_shape)) if rows else None
        for name, values in (("table_state", self.table), ("weights_state", self.weights)):
            shape = None if fused is None or values is None else fused.state_shape(*values.shape)
            self.register_buffer(name, None if shape is None else torch.zeros(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random tables, with the distribution of ``scrimp rec train``."""
        spread = 0.5 / self.embedding_dim**0.5
        nn.init.uniform_(self.table, -spread, spread)
        if self.weights is not None:
            nn.init.uniform_(self.weights, 0.95, 1.05)
        for state in (self.table_state, self.weights_state):
            if state is not None:
                state.zero_()

    @property
    def nbytes(self) -> int:
        """Size of the tables in bytes."""
        return sum(p.numel() * p.element_size() for p in self.parameters())

    def _fused_step(self, tables: Any, lookups: Any, grad: Tensor, trained: Tuple[bool, bool]) -> None:
        """Updates the tables that ``trained`` selects. A frozen table and its state are copied, and the copies are dropped."""
        f, states = self.fused, (self.table_state, self.weights_state)

        def own(pair: Any) -> Any:
            return tuple(t if t is None or train else t.clone() for t, train in zip(pair, trained))

        self._rows.step(own(tables), lookups, grad, (f.name, f.lr, f.eps), own(states))

    def _check_distributed(self) -> None:
        """Refuses gradients that DistributedDataParallel does not average: it averages dense gradients only."""
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            raise RuntimeError(
                "DistributedDataParallel does not average the gradients of sparse=True and fused=, and the tables of the processes would "
                "diverge: use neither option, and any torch optimizer"
            )

    def _options(self) -> Dict[str, Any]:
        return dict(zip(_OPTIONS, self._arguments))

    def get_extra_state(self) -> Tensor:
        """The options as JSON, in a tensor: files of safetensors have nothing else."""
        return torch.tensor(list(json.dumps(self._options()).encode()), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Any) -> None:
        mine = self._options()
        if isinstance(state, Tensor):
            try:
                state = json.loads(bytes(state.to(torch.uint8).tolist()))
            except ValueError:
                raise ValueError("the extra state is damaged: it is not the options of a MEM-REC embedding") from None
        if state != mine:
            raise ValueError(f"the tables were trained with {state}, this embedding has {mine}: hashes would give other rows")

    def __getstate__(self) -> Dict[str, Any]:
        state = self.__dict__.copy()
        del state["_rows"]
        return state

    def __setstate__(self, state: Dict[str, Any]) -> None:
        super().__setstate__(state)
        self._rows = MemRec(self._options())

    def _ids(self, ids: Tensor) -> Tensor:
        if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            got = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
            raise TypeError(f"ids must be a tensor of integers, not {got}")
        return ids.to(torch.int64).contiguous()


class MemRecEmbedding(_MemRec):
    """A vector for each of ``num_features`` ids of a sample: ``[..., num_features]`` to ``[..., num_features, embedding_dim]``.

    Args:
        num_features: number of categorical features, which share the tables; an id has a different vector in each feature.
        embedding_dim: dimension of a vector.
        budget: size of all tables in bytes, independent of the number of ids: a number, or text such as ``"64MB"``.
        block_dim: dimension of a row of the table; a vector consists of ``embedding_dim / block_dim`` rows with a hash each.
        num_hashes: rows added up per block.
        groups: scales of a vector (alpha in the paper), each for the same number of neighboring blocks.
        signs: whether values have hashed signs, one for each 8.
        weight_share: share of the budget for the table of scales; 0 for no scales.
        seed: seed of the hashes.
        sparse: gradients are sparse tensors, for ``SGD``, ``Adagrad`` and ``SparseAdam``. Not for DistributedDataParallel.
        fused: ``scrimp.rec.Sgd``, ``Adagrad`` or ``RowWiseAdagrad``: the backward pass updates the tables, which is fastest;
            other optimizers then see no gradient. Not for DistributedDataParallel.
    """

    def __init__(
        self, num_features: int, embedding_dim: int, budget: Budget, *, block_dim: int = 4, num_hashes: int = 1, groups: int = 1,
        signs: bool = True, weight_share: float = 0.05, seed: int = 1, sparse: bool = False, fused: Optional[FusedOptimizer] = None,
    ) -> None:
        options = _Options(block_dim, num_hashes, groups, signs, weight_share, seed, sparse, fused)
        super().__init__(num_features, embedding_dim, budget, options)
        self.num_features = num_features

    def forward(self, ids: Tensor) -> Tensor:
        ids = self._ids(ids)
        if not ids.dim() or ids.shape[-1] != self.num_features:
            raise ValueError(f"ids of shape {tuple(ids.shape)}: the last dimension must be {self.num_features} features")
        return lookup(self, ids, None).view(*ids.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        return f"{self.num_features}, {self.embedding_dim}, rows={self.table.shape[0]}, bytes={self.nbytes}"


class MemRecEmbeddingBag(_MemRec):
    """``nn.EmbeddingBag`` in a budget: sums, means or maxima of the vectors of bags of ids of one feature.

    Args:
        num_embeddings: approximate number of distinct ids, from which the default budget follows; ``None`` if unknown.
        embedding_dim: dimension of a vector.
        budget: size of the tables in bytes; by default a hundredth of a full table's.
        mode: ``"sum"``, ``"mean"`` or ``"max"``.
        include_last_offset: as in ``nn.EmbeddingBag``.
        padding_idx: an id that is left out of the bags. Any integer, because ids are hashed.
        max_norm, norm_type: vectors with a larger norm are scaled to it. Unlike ``nn.EmbeddingBag``, the tables stay as they are, since
            ids share their rows.

    The other arguments are those of :class:`MemRecEmbedding`.
    """

    def __init__(
        self, num_embeddings: Optional[int], embedding_dim: int, budget: Optional[Budget] = None, *, mode: str = "mean",
        include_last_offset: bool = False, padding_idx: Optional[int] = None, max_norm: Optional[float] = None, norm_type: float = 2.0,
        block_dim: int = 4, num_hashes: int = 1, groups: int = 1, signs: bool = True,
        weight_share: float = 0.05, seed: int = 1, sparse: bool = False, fused: Optional[FusedOptimizer] = None,
    ) -> None:
        if budget is None:
            if num_embeddings is None:
                raise ValueError("without num_embeddings, give the size of the tables in bytes: budget=")
            budget = num_embeddings * embedding_dim * 4 // 100
        if mode not in ("sum", "mean", "max"):
            raise ValueError(f"mode must be 'sum', 'mean' or 'max', not {mode!r}")
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"max_norm must be greater than 0, not {max_norm}")
        options = _Options(block_dim, num_hashes, groups, signs, weight_share, seed, sparse, fused)
        super().__init__(1, embedding_dim, budget, options)
        self.num_embeddings, self.mode, self.include_last_offset = num_embeddings, mode, include_last_offset
        self.padding_idx, self.max_norm, self.norm_type = padding_idx, max_norm, norm_type

    def forward(self, input: Tensor, offsets: Optional[Tensor] = None, per_sample_weights: Optional[Tensor] = None) -> Tensor:
        """As ``nn.EmbeddingBag``. ``per_sample_weights`` have the shape of ``input`` and scale its vectors; only for sums."""
        ids, lengths = self._bags(self._ids(input), offsets)
        weights = per_sample_weights
        if weights is not None:
            if self.mode != "sum":
                raise ValueError(f"per_sample_weights are for mode='sum', not {self.mode!r}")
            if weights.shape != input.shape:
                raise ValueError(f"per_sample_weights of shape {tuple(weights.shape)} for input of shape {tuple(input.shape)}")
            weights = weights.reshape(-1)
        if self.padding_idx is not None:
            used = ids != self.padding_idx
            bag = torch.repeat_interleave(torch.arange(lengths.numel()), lengths)
            lengths = torch.bincount(bag[used], minlength=lengths.numel())
            ids, weights = ids[used].contiguous(), None if weights is None else weights[used]
        if weights is None and self.mode != "max" and self.max_norm is None:
            out = lookup(self, ids, lengths.cumsum(0) - lengths)
        else:
            out = self._pool(lookup(self, ids, None), lengths, weights)
        return out / lengths.clamp_min(1).unsqueeze(1).to(out.dtype) if self.mode == "mean" else out

    def _bags(self, ids: Tensor, offsets: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
        """The ids of all bags in a row, and the lengths of the bags."""
        if ids.dim() == 2:
            if offsets is not None:
                raise ValueError("offsets are for 1D input; a row of 2D input is a bag")
            return ids.view(-1), torch.full((ids.shape[0],), ids.shape[1])
        if ids.dim() != 1 or offsets is None:
            raise ValueError(f"input of shape {tuple(ids.shape)}: must be 2D, or 1D with offsets")
        offsets = self._ids(offsets)
        if offsets.dim() != 1:
            raise ValueError(f"offsets of shape {tuple(offsets.shape)}: must be 1D")
        if not self.include_last_offset:
            offsets = torch.cat([offsets, offsets.new_tensor([ids.numel()])])
        elif not offsets.numel() or int(offsets[-1]) != ids.numel():
            raise ValueError(f"include_last_offset: the last offset must be {ids.numel()}")
        lengths = offsets.diff()
        if (lengths < 0).any() or (offsets.numel() > 1 and int(offsets[0]) != 0):
            raise ValueError(f"offsets must start at 0, increase and not exceed the number of ids, {ids.numel()}")
        return ids, lengths

    def _pool(self, vectors: Tensor, lengths: Tensor, weights: Optional[Tensor]) -> Tensor:
        """Sums or maxima of the vectors of each bag; empty bags are 0."""
        if self.max_norm is not None:
            norm = vectors.detach().norm(self.norm_type, dim=1, keepdim=True)
            vectors = vectors * (self.max_norm / (norm + 1e-7)).clamp_max(1)
        if weights is not None:
            vectors = vectors * weights.to(vectors.dtype).unsqueeze(1)
        bag = torch.repeat_interleave(torch.arange(lengths.numel()), lengths)
        out = vectors.new_zeros(lengths.numel(), vectors.shape[1])
        if self.mode == "max":
            return out.scatter_reduce(0, bag.unsqueeze(1).expand_as(vectors), vectors, "amax", include_self=False)
        return out.index_add(0, bag, vectors)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, mode={self.mode}, rows={self.table.shape[0]}, bytes={self.nbytes}"
