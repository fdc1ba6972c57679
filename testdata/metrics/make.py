#!/usr/bin/env python3
"""Golden values of AUC, log loss and calibration, from scikit-learn.

usage: pip install scikit-learn; python3 testdata/metrics/make.py      writes golden.json beside it
"""

import json
import pathlib

import numpy as np
import sklearn
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss, roc_auc_score

OUT = pathlib.Path(__file__).resolve().parent / "golden.json"


def case(name, labels, predictions, bins=10):
    labels = np.asarray(labels, dtype=np.float32)
    predictions = np.asarray(predictions, dtype=np.float32)
    actual, predicted = calibration_curve(labels, predictions.astype(np.float64), n_bins=bins, strategy="uniform")
    return {
        "name": name,
        "labels": labels.astype(int).tolist(),
        # f32 values, exactly: as bits.
        "predictions": predictions.view(np.uint32).tolist(),
        "auc": float(roc_auc_score(labels, predictions)),
        "logloss": float(log_loss(labels, predictions, labels=[0, 1])),
        "bins": bins,
        "actual": actual.tolist(),
        "predicted": predicted.tolist(),
    }


def main():
    rng = np.random.default_rng(14)
    cases = []
    p = rng.random(300).astype(np.float32)
    cases.append(case("calibrated", rng.random(300) < p, p))
    cases.append(case("nothing learned", rng.random(300) < 0.3, p, 7))
    ties = np.round(rng.random(400) * 6) / 6
    cases.append(case("many ties", rng.random(400) < 0.2 + 0.5 * ties, ties, 5))
    rare = 1 / (1 + np.exp(4 - 1.5 * rng.standard_normal(500)))
    cases.append(case("rare positives", rng.random(500) < rare, rare, 20))
    cases.append(case("all the same", rng.random(50) < 0.4, np.full(50, 0.4)))
    extremes = rng.choice([0.0, 1.0, 1e-9, 0.5, 1 - 6e-8], 200)
    cases.append(case("zeros and ones", rng.random(200) < 0.5, extremes))
    text = ",\n".join(json.dumps(c) for c in cases)
    OUT.write_text(f'{{"scikit_learn": "{sklearn.__version__}", "cases": [\n{text}\n]}}\n')


if __name__ == "__main__":
    main()
