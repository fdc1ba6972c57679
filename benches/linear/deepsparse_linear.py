"""DeepSparse 1.8 (archived) on a pair of sparse fp32 layers. usage: deepsparse_linear.py THREADS; prints JSON lines.

`us` is the time of one layer of 14336 x 4096; the second layer of the pair keeps the first from being read in cache.
"""
import json
import pathlib
import sys
import tempfile
import time

import deepsparse
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def build(path, sparsity, batch, rows, cols):
    rng, nodes, weights, name = np.random.default_rng(0), [], [], "x"
    for i, (k, n) in enumerate(((cols, rows), (rows, cols))):
        w = rng.standard_normal((k, n)).astype(np.float32) / np.sqrt(k)
        w[rng.random((k, n)) < sparsity] = 0
        weights.append(numpy_helper.from_array(w, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [name, f"w{i}"], [f"y{i}"]))
        name = f"y{i}"
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [tensor("x", TensorProto.FLOAT, [batch, cols])],
                              [tensor(name, TensorProto.FLOAT, [batch, cols])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, path)


threads, rows, cols = int(sys.argv[1]), 14336, 4096
path = str(pathlib.Path(tempfile.mkdtemp()) / "linear.onnx")
for sparsity in (0.5, 0.8):
    build(path, sparsity, 1, rows, cols)
    engine = deepsparse.compile_model(path, batch_size=1, num_cores=threads)
    x = [np.random.randn(1, cols).astype(np.float32)]
    times = []
    for _ in range(18):
        start = time.perf_counter()
        engine.run(x)
        times.append(time.perf_counter() - start)
    print(json.dumps({"engine": f"deepsparse {deepsparse.__version__}", "format": "f32", "sparsity": sparsity, "batch": 1,
                      "threads": threads, "us": min(times[3:]) / 2 * 1e6}), flush=True)
