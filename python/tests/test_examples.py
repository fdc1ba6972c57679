"""The examples, in small form."""

import os
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
