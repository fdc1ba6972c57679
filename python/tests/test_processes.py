"""Threads, forked workers and processes."""

import concurrent.futures
import os
import pathlib
import time

import pytest

import scrimp
from scrimp import _scrimp

torch = pytest.importorskip("torch")
from torch import nn

from scrimp.torch import compress


def model():
    torch.manual_seed(3)
    return compress(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8)), 0.5).eval()


def test_threads_share_a_model():
    m = model()
    inputs = [torch.randn(i % 5 + 1, 64) for i in range(64)]
    with torch.no_grad():
        want = [m(x) for x in inputs]

    def run(x):
        with torch.no_grad():
            return [m(x) for _ in range(20)][-1]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for got, expected in zip(pool.map(run, inputs), want):
            assert torch.equal(got, expected)


def test_kernels_run_on_torchs_threads():
    before = torch.get_num_threads()
    layer, x = model()[0], torch.randn(300, 64)
    try:
        scrimp.set_num_threads(None)
        with torch.no_grad():
            want = layer(x)
            for threads in (1, 3, before):
                torch.set_num_threads(threads)
                assert scrimp.get_num_threads() == threads and _scrimp.borrows_threads()
                started = threads_of_scrimp()
                assert torch.equal(layer(x), want) and threads_of_scrimp() == started
    finally:
        torch.set_num_threads(before)


def test_another_number_of_threads_is_scrimps_own():
    layer, x, others = model()[0], torch.randn(300, 64), torch.get_num_threads() + 1
    try:
        with torch.no_grad():
            want, before = layer(x), threads_of_scrimp()
            scrimp.set_num_threads(others)
            assert not _scrimp.borrows_threads()
            assert torch.equal(layer(x), want)
        # Threads give themselves their names, and a call does not wait for those that find nothing left to do.
        deadline = time.monotonic() + 10
        while threads_of_scrimp() != before + others - 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threads_of_scrimp() == before + others - 1
    finally:
        scrimp.set_num_threads(None)
    assert _scrimp.borrows_threads()


def threads_of_scrimp():
    tasks = pathlib.Path("/proc/self/task").glob("*/comm")
    return sum(task.read_text().startswith("scrimp-") for task in tasks)


def test_a_forked_child_computes():
    """In the child only our kernels run in parallel, on threads of their own: OpenMP hangs there, whoever uses it."""
    layer, x = model()[0], torch.randn(300, 64)
    with torch.no_grad():
        want = layer(x)[::37, ::11].tolist()  # starts the parent's threads
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(write, repr(layer(x)[::37, ::11].tolist()).encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            got = pipe.read()
        assert os.waitpid(child, 0)[1] == 0
    assert got == repr(want)


class Features(torch.utils.data.Dataset):
    """Runs a model in DataLoader's workers."""

    def __init__(self, m):
        self.model = m

    def __len__(self):
        return 8

    def __getitem__(self, i):
        with torch.no_grad():
            return self.model(torch.full((64,), float(i)))


def test_data_loader_workers():
    m = model()
    data = Features(m)
    want = torch.stack([data[i] for i in range(8)])
    loader = torch.utils.data.DataLoader(data, batch_size=4, num_workers=1, multiprocessing_context="fork")
    assert torch.equal(torch.cat(list(loader)), want)
