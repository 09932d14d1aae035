"""What GLUE and GSM8K judge by: F1, Matthews correlation, exact match; all from counts, on the host."""

import math

import numpy as np


def class_metrics(metric: str, predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns the task's own figures beside accuracy; empty where accuracy is all.

    F1 is that of class 1 against class 0 (MRPC, QQP); Matthews correlation (CoLA) is
    (TP TN - FP FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN)), 0 where a factor is 0. Reference: Wang et al. 2019
    (GLUE, arXiv:1804.07461), section 3.
    """
    if metric not in ("f1", "matthews"):
        return {}
    tp, fp, fn, tn = (
        float(np.sum((predicted == p) & (labels == t))) for p, t in ((1, 1), (1, 0), (0, 1), (0, 0))
    )
    if metric == "f1":
        return {"f1": 2 * tp / (2 * tp + fp + fn) if tp else 0.0}
    scale = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return {"matthews": (tp * tn - fp * fn) / scale if scale else 0.0}


def proportion_interval(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a proportion (Wilson 1927); (0, 1) for no observation."""
    if count == 0:
        return 0.0, 1.0
    share, square = right / count, z * z / count
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)
