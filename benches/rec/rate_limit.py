#!/usr/bin/env python3
"""What the best possible code of so many bytes could reach on the rows of `generate:criteo-tb`: a limit for every encoder.

usage: benches/rec/rate_limit.py [--cap 150000] [--rows 20000000] [--dim 64] [--compression 2900] [--draws 5]        (needs NumPy)

Hidden effects of ids are drawn as the generator draws them (crates/scrimp-rec/src/generate). As far as --rows rows can tell
them (variance s of an effect shrinks to s (s n i) / (1 + s n i), n occurrences of Fisher information i), they are coded at
the rate-distortion limit of Gaussian sources, the ids weighted by how often they occur (reverse water-filling; Cover and
Thomas, Elements of Information Theory, 10.3.3), in as many bits as a full f32 table / --compression has. The code's values
are simulated by its backward test channel, and rows scored by them. AUCs are expectations over labels.
"""

import argparse

import numpy as np

# The generator's constants.
CRITEO_TB = [39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346, 10, 2208, 11938, 155, 4, 976, 14,
             39979771, 25641295, 39664984, 585935, 12972, 108, 36]
FACTORS, NUMERIC, POWERS = 4, 13, 13
ZIPF, EFFECTS, INTERACTIONS, NUMERIC_EFFECTS, BIAS = 1.1, 1.0, 0.6, 0.5, -1.2


def weights(n):
    w = 0.5 + (np.arange(n) * 7 % 13) / 12
    return w / np.sqrt((w**2).sum())


def four(rng, n):
    return (rng.random((n, FACTORS)) - 0.5) * np.sqrt(12)


def auc(score, p):
    p = p[np.argsort(score)]
    q = 1 - p
    return (p * (np.cumsum(q) - q / 2)).sum() / (p.sum() * q.sum())


class Draw:
    """Hidden effects, and rows that show them."""

    def __init__(self, seed, cap, rows):
        self.rng = rng = np.random.default_rng(seed)
        sizes = [min(c, cap) for c in CRITEO_TB]
        self.share = [(p := np.arange(1, n + 1.0) ** -ZIPF) / p.sum() for n in sizes]
        self.scale = EFFECTS * weights(len(sizes))
        pairs = len(sizes) * (len(sizes) - 1) / 2
        self.factor = np.sqrt(INTERACTIONS / np.sqrt(pairs * FACTORS))
        self.effects = [four(rng, n).sum(1) / 2 * s for n, s in zip(sizes, self.scale)]
        self.factors = [four(rng, n) * self.factor for n in sizes]
        self.ids = [np.searchsorted(np.cumsum(p), rng.random(rows)).clip(0, len(p) - 1) for p in self.share]
        numbers = rng.integers(0, POWERS, (NUMERIC, rows)) - (POWERS - 1) / 2
        signs = rng.choice([-1, 1], NUMERIC) * NUMERIC_EFFECTS * weights(NUMERIC) / np.sqrt((POWERS**2 - 1) / 12)
        self.base = BIAS + signs @ numbers
        self.p = 1 / (1 + np.exp(-self.logit(self.effects, self.factors)))

    def logit(self, effects, factors):
        total, squares, out = 0.0, 0.0, self.base.copy()
        for ids, m, v in zip(self.ids, effects, factors):
            out += m[ids]
            total = total + v[ids]
            squares = squares + (v[ids] ** 2).sum(1)
        return out + 0.5 * ((total**2).sum(1) - squares)

    def known(self, rows):
        """Of each feature: what is known of an id's effect and of each of its factors after so many rows, as variances,
        and what their square error counts in a row's logit."""
        information = (self.p * (1 - self.p)).mean()
        others = (len(self.share) - 1) * self.factor**2

        def learned(variance, n):
            return variance * variance * n / (1 + variance * n)

        return [((learned(s**2, rows * p * information), p), (learned(self.factor**2, rows * p * information * others), p * others))
                for p, s in zip(self.share, self.scale)]

    def reached(self, known, level):
        """AUC if errors are cut at the water level."""
        effects, factors = [], []
        for f, ((s, w), (t, u)) in enumerate(known):
            keep = (s - np.minimum(s, level / w)) / self.scale[f] ** 2
            noise = self.rng.standard_normal(len(keep)) * self.scale[f]
            effects.append(keep * self.effects[f] + np.sqrt(keep * (1 - keep)) * noise)
            keep = ((t - np.minimum(t, level / u)) / self.factor**2)[:, None]
            noise = self.rng.standard_normal((len(keep), FACTORS)) * self.factor
            factors.append(keep * self.factors[f] + np.sqrt(keep * (1 - keep)) * noise)
        return auc(self.logit(effects, factors), self.p)


def water_level(known, bits):
    low, high = -100.0, 20.0
    logs = [(np.log2(s * w), np.log2(t * u)) for (s, w), (t, u) in known]
    for _ in range(60):
        middle = (low + high) / 2
        need = sum(np.maximum(0, a - middle).sum() / 2 + FACTORS * np.maximum(0, b - middle).sum() / 2 for a, b in logs)
        low, high = (middle, high) if need > bits else (low, middle)
    return 2.0**high


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cap", type=int, default=150_000)
    parser.add_argument("--rows", type=float, default=20e6)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--compression", type=float, default=2900)
    parser.add_argument("--draws", type=int, default=5)
    args = parser.parse_args()
    print("| draw | all effects known | as far as the rows tell them | these in KB | loses |\n|---|---|---|---|---|")
    for seed in range(1, args.draws + 1):
        draw = Draw(seed, args.cap, 500_000)
        known = draw.known(args.rows)
        ids = sum((1 - np.exp(-args.rows * p)).sum() for p in draw.share)
        size = ids * args.dim * 4 / args.compression
        best, told = auc(draw.logit(draw.effects, draw.factors), draw.p), draw.reached(known, 0.0)
        coded = draw.reached(known, water_level(known, size * 8))
        print(f"| {seed} | {best:.4f} | {told:.4f} | {size / 1e3:.0f}: {coded:.4f} | {told - coded:.4f} |", flush=True)


if __name__ == "__main__":
    main()
