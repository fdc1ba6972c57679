"""The random hyperplanes of the Rust implementation, so that both select the same tokens."""

from typing import Tuple

_MASK = (1 << 64) - 1


def mix(x: int) -> int:
    """The SplitMix64 hash of a 64-bit number (``scrimp_base::random::mix``)."""
    z = (x + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def planes(dim: int, bits: int, seed: int, layer: int) -> Tuple[Tuple[float, ...], ...]:
    """The normal vectors of a layer's hyperplanes: random signs, ``[dim][bits]``."""
    of_layer = mix(mix((seed ^ 0x5C21) & _MASK) ^ (layer << 32))
    return tuple(tuple(1.0 if mix(of_layer ^ (d * 8 + b)) & 1 else -1.0 for b in range(bits)) for d in range(dim))
