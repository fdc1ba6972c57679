"""Runs scrimp's kernels on PyTorch's threads: two pools that spin on the same cores halve each other's speed."""

import pathlib

import torch

from . import _scrimp

_LIBRARY = pathlib.Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"


def share() -> None:
    """Makes kernels run on the threads of PyTorch's OpenMP runtime, if it has a supported one."""
    _scrimp.use_threads_of(str(_LIBRARY))
