#!/usr/bin/env python3
"""Golden results of linear layers with integer weights: bits that every SIMD level of every architecture must give.

The results are those of the scalar level on x86-64, which the tests of linear layers compare with dequantized f64
arithmetic. `crates/scrimp-kernels/tests/linear_golden.rs` defines the weights and activations, and writes or checks
`golden.bin`: f32, little-endian, [format][batch][token][row].

    python3 testdata/linear/make.py
"""

import os
import pathlib
import subprocess

FOLDER = pathlib.Path(__file__).resolve().parent

subprocess.run(
    ["cargo", "test", "--release", "--workspace", "--test", "linear_golden"],
    cwd=FOLDER, env={**os.environ, "SCRIMP_WRITE_GOLDEN": str(FOLDER / "golden.bin")}, check=True)
