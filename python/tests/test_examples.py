"""The examples, in small form."""

import math
import os
import random
import re
import subprocess
import sys

import pytest

from conftest import ROOT

torch = pytest.importorskip("torch")
EXAMPLES = ROOT / "python" / "examples"


def run(*command, **env):
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1", **env}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_compress_llama():
    pytest.importorskip("transformers")
    out = run(EXAMPLES / "compress_llama.py")
    assert out.count("sparse layers") == 3 and "saved and loaded again" in out


def test_ddp_train():
    out = run("-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", 29517, EXAMPLES / "ddp_train.py", "--epochs", 2)
    losses = [float(line.rsplit(" ", 1)[1]) for line in out.splitlines() if line.startswith("epoch")]
    assert len(losses) == 2 and losses[-1] < 0.62, out


def test_dlrm_train(tmp_path):
    generator = random.Random(3)
    likes = [generator.gauss(0, 2) for _ in range(50)]
    lines = []
    for _ in range(6000):
        ids = [generator.randrange(50) for _ in range(26)]
        label = int(generator.random() < 1 / (1 + math.exp(-likes[ids[0]])))
        numbers = [str(generator.randrange(100)) if generator.random() < 0.9 else "" for _ in range(13)]
        lines.append("\t".join([str(label), *numbers, *(f"{i:08x}" for i in ids)]))
    data = tmp_path / "criteo.tsv"
    data.write_text("\n".join(lines) + "\n")
    for tables in (["--budget", "40kB"], ["--full"]):
        out = run(EXAMPLES / "dlrm_train.py", "--criteo", data, *tables, "--epochs", 2, "--lr", 0.1)
        assert "5400 rows, 1300 ids" in out
        assert float(re.search(r"epoch 2: .*AUC ([\d.]+)", out)[1]) > 0.7, out
