"""PyTorch's threads for scrimp's kernels: two pools that wait for work on the same cores slow each other down by half."""

import pathlib

import torch

from . import _scrimp

_LIBRARY = pathlib.Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"


def share() -> None:
    """From now on kernels run on the threads of PyTorch's OpenMP runtime, where it has one that can be used."""
    _scrimp.use_threads_of(str(_LIBRARY))
