"""Writes the grids of the types IQ1_*, IQ2_* and IQ3_* to crates/scrimp-kernels/src/quant/iq/grids.bin.

usage: python3 testdata/formats/grids.py     (numpy, gguf)

The vectors of each grid as little-endian u16: 8 elements of 2 bits or 4 of 3 bits, each an index into the grid's values, the
first in the lowest bits. llama.cpp has the grids in ggml-common.h; the gguf package has the same.
"""

import pathlib

import numpy as np
from gguf import quants

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates/scrimp-kernels/src/quant/iq/grids.bin"
GRIDS = [quants.IQ2_XXS, quants.IQ2_XS, quants.IQ2_S, quants.IQ1_S, quants.IQ3_XXS, quants.IQ3_S]


def main():
    out = []
    for kind in GRIDS:
        kind.init_grid()
        grid = kind.grid.reshape(kind.grid_shape)
        values = list(kind.grid_map)
        width = 2 if grid.shape[1] == 8 else 3
        for vector in grid:
            out.append(sum(values.index(int(value)) << (width * i) for i, value in enumerate(vector)))
    OUT.write_bytes(np.array(out, "<u2").tobytes())
    print(f"{len(out)} vectors")


if __name__ == "__main__":
    main()
