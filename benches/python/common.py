"""What the benchmarks of the Python package share: quiet timing, and both sides of a comparison in turn."""

import contextlib
import os
import pathlib
import sys
import time


@contextlib.contextmanager
def realtime():
    """Real-time priority for all threads of this process meanwhile, where the system allows it: quiet on a busy machine."""

    def set_all(policy, priority):
        for task in os.listdir("/proc/self/task"):
            os.sched_setscheduler(int(task), policy, os.sched_param(priority))

    try:
        set_all(os.SCHED_FIFO, 20)
    except (OSError, AttributeError) as error:
        print(f"(no real-time priority: {error})", file=sys.stderr)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, AttributeError):
            set_all(os.SCHED_OTHER, 0)


def seconds(call, repeat=1):
    """Seconds of one call, averaged over ``repeat``."""
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - start) / repeat


def interleaved(calls, rounds, repeat=1):
    """The best time of each named call, the calls taking turns."""
    best = {name: float("inf") for name in calls}
    for call in calls.values():
        call()
    with realtime():
        for _ in range(rounds):
            for name, call in calls.items():
                best[name] = min(best[name], seconds(call, repeat))
    return best


def machine():
    """One line on what this ran on."""
    import torch

    import scrimp

    model = next(
        (line.split(":")[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?"
    )
    return (
        f"{model}, {len(os.sched_getaffinity(0))} CPUs, scrimp {scrimp.__version__} ({scrimp.simd_level()}), torch {torch.__version__}, "
        f"{time.strftime('%Y-%m-%d')}"
    )
