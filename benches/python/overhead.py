"""What a call of SparseLinear costs beyond the kernel.

usage: overhead.py

A layer so small that nothing but overhead is left, against the Rust kernel called with ready tensors, and nn.Linear.
"""

import torch
from torch import nn

from common import interleaved, machine
from scrimp.torch import SparseLinear, _op


def main():
    print(machine())
    torch.set_num_threads(2)
    for rows, cols in ((16, 64), (2048, 2048), (8192, 2048)):
        for dtype in (torch.float32, torch.bfloat16):
            dense = nn.Linear(cols, rows, bias=False).to(dtype)
            layer = SparseLinear.from_dense(dense.weight, sparsity=0.5, method="magnitude")
            x, out = torch.randn(1, 1, cols, dtype=dtype), torch.empty(1, 1, rows, dtype=dtype)
            packed = layer._packed
            with torch.inference_mode():
                best = interleaved(
                    {
                        "the kernel": lambda: packed.linear(x, None, out),
                        "SparseLinear": lambda: layer(x),
                        "the operator": lambda: _op.sparse_linear(x, layer._matrix, None, rows),
                        "nn.Linear": lambda: dense(x),
                    },
                    rounds=20,
                    repeat=200,
                )
            times = ", ".join(f"{name} {1e6 * t:.1f} us" for name, t in best.items())
            print(f"{rows} x {cols} {str(dtype)[6:]}: {times}; SparseLinear adds {1e6 * (best['SparseLinear'] - best['the kernel']):.1f} us")


if __name__ == "__main__":
    main()
